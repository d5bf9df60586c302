"""What ``turnstone doctor`` looks at."""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import text

from app.core.errors import StartupError
from app.core.settings import Settings, without_secrets
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import SchemaState, schema_state, unreachable, wrong_version
from app.infrastructure.persistence.session import DATABASE_DOWN, Database, bind, get_db_context

# What a single check needs is imported there: `database_as_found` serves commands that want nothing else.


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do where there is something to do."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything the service needs. Changes nothing, but starts an embedded database that does not run."""
    checks: list[tuple[str, Callable[[Settings], Awaitable[str]]]] = [
        ("port", _port),
        ("data directory", _data_dir),
        ("database", _database),
        ("redis", _redis),
        ("model", _model),
        ("callbacks", _callbacks),
        ("code runner", _runner),
        ("code analyser", _analyser),
    ]
    findings = []
    for what, check in checks:
        try:
            findings.append(Finding(what, True, await check(settings)))
        except StartupError as error:
            findings.append(Finding(what, False, error.problem, error.remedy))
    return findings


@asynccontextmanager
async def database_as_found(settings: Settings) -> AsyncIterator[tuple[Database, SchemaState]]:
    """The database of the settings, bound for `get_db_context`, with its tables as they are.

    Raises:
        StartupError: there is none, or it cannot be reached.
    """
    async with AsyncExitStack() as stack:
        url = settings.database.url
        if url is None:
            if not _embedded_exists(settings):
                raise StartupError(
                    f"There is no database in {_place(settings)}.",
                    "Let TURNSTONE_DATA_DIR or TURNSTONE_DATABASE__URL say where it is, or start `turnstone serve` "
                    "first.",
                )
            embedded = await asyncio.to_thread(EmbeddedPostgres.open, settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, embedded.close)
            url = embedded.url
        database = Database(url, pool_size=settings.database.pool_size, timeout_s=settings.database.timeout_s)
        stack.push_async_callback(database.close)
        schema = await asyncio.to_thread(schema_state, database.url, timeout_s=settings.database.timeout_s)
        bind(database)
        yield database, schema


def _place(settings: Settings) -> Path:
    return settings.data_dir.expanduser().resolve()


def _embedded_exists(settings: Settings) -> bool:
    try:
        return (_place(settings) / "postgres" / "data").exists()
    except OSError:
        return True  # it may be there; opening it says why it cannot be looked at


async def _port(settings: Settings) -> str:
    from app.server import listen

    where = f"{settings.host}:{settings.port}"
    try:
        listen(settings.host, settings.port).close()
    except StartupError:
        state = await _service_at(settings)
        if state is None:
            raise
        return f"{where}, a service runs there ({state})"
    return f"{where} is free"


async def _service_at(settings: Settings) -> str | None:
    """The state of the Turnstone that has the port; ``None`` where it is another program.

    Many programs answer /healthz as we do, so /readyz is asked, whose answer is ours alone.
    """
    import aiohttp

    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # where to ask, not to listen
    host = everywhere.get(settings.host, settings.host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"
    patience = aiohttp.ClientTimeout(total=settings.database.timeout_s + 5)  # it asks its database meanwhile
    try:
        async with (
            aiohttp.ClientSession(timeout=patience) as client,
            client.get(url, allow_redirects=False) as response,
        ):
            answer = await response.json(content_type=None)
            missing = [str(name) for name, passed in answer["checks"].items() if not passed]
            if not answer["checks"].keys() >= {"database", "migrations", "model"}:
                return None
            return f"not ready: {', '.join(missing)}" if missing else "ready"
    except (aiohttp.ClientError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


async def _data_dir(settings: Settings) -> str:
    from app.bootstrap import make_data_dir

    path = _place(settings)
    if path.exists():
        await asyncio.to_thread(make_data_dir, path)
        return f"{path} can be written"
    nearest = next(parent for parent in path.parents if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise StartupError(f"{path} cannot be made in {nearest}.", "Set TURNSTONE_DATA_DIR.")
    return f"{path} is not there yet; `serve` will make it"


async def _database(settings: Settings) -> str:
    if settings.database.url is None and not _embedded_exists(settings):
        return f"there is none in {_place(settings)} yet; `serve` will make an embedded PostgreSQL there"
    async with database_as_found(settings) as (database, schema):
        try:
            async with get_db_context() as db:
                version = (await db.execute(text("SHOW server_version"))).scalar()
        except DATABASE_DOWN as error:
            raise unreachable(database.url, error) from None
    kind = "embedded PostgreSQL" if settings.database.url is None else "PostgreSQL"
    if schema.usable:
        later = "" if schema.up_to_date else ", of a later program, which still serve this one"
        return f"{kind} {version}, tables at version {schema.current}{later}"
    if settings.database.migrate and schema.known:
        return (
            f"{kind} {version}, tables at version {schema.current or 'none'} (`serve` brings them to {schema.wanted})"
        )
    raise wrong_version(schema)


async def _redis(settings: Settings) -> str:
    from app.infrastructure.cache.redis_client import RedisClient

    if settings.redis.url is None:
        return "not set; running turns stay in one process"
    client = RedisClient(settings.redis.url, timeout_s=settings.redis.timeout_s)
    try:
        if not await client.ping():
            raise StartupError(
                "Redis does not answer.", "Start it, or mend TURNSTONE_REDIS__URL (unset: none is used)."
            )
    finally:
        await client.close()
    return "answers"


async def _model(settings: Settings) -> str:
    from app.infrastructure.llm.local_model import find_weights
    from app.infrastructure.llm.models import check_remote, open_model

    if settings.llm.model == "local":
        if importlib.util.find_spec("xllamacpp") is None:
            raise StartupError(
                "The local model's server is not installed.",
                "pip install 'turnstone[local]', or set TURNSTONE_LLM__MODEL.",
            )
        return f"local ({find_weights().name}), for trying out"
    warning = await check_remote(settings.llm)
    if warning is not None:
        raise StartupError(warning, "Mend the network, or TURNSTONE_LLM__BASE_URL, …__API_KEY or …__MODEL.")
    async with AsyncExitStack() as stack:
        await open_model(settings, stack)
    return settings.llm.model


async def _callbacks(settings: Settings) -> str:
    from app.infrastructure.webhook import WebhookSender

    if settings.callbacks.url is None:
        return "no receiver is set; callbacks are held until TURNSTONE_CALLBACKS__URL is"
    await WebhookSender(settings.callbacks).close()
    signed = "signed" if settings.callbacks.signing_secret is not None else "not signed"
    return f"go to {without_secrets(settings.callbacks.url)}, {signed}"


async def _runner(settings: Settings) -> str:
    from app.domain.code_runner import RunnerUnavailableError
    from app.infrastructure.runner.opening import open_runner

    async with AsyncExitStack() as stack:
        runner = await open_runner(settings.runner, stack)
        if runner is None:
            return "none is set; submissions are not run"
        try:
            isolation = await runner.self_test()
            languages = await runner.languages()
        except RunnerUnavailableError as error:
            if settings.runner.backend == "auto":  # the service does its other work without
                return f"nothing can be run here, so submissions are put off: {error}"
            raise StartupError(error.problem, error.remedy) from None
    known = ", ".join(f"{name} {toolchain.version}" for name, toolchain in languages.items())
    if isolation.level == "remote":
        place = without_secrets(settings.runner.url or "")
        open_key = settings.runner.api_key is not None and place.startswith("http://")
        plainly = "; its key and programs go there without encryption" if open_key else ""
        return f"{isolation.backend} {isolation.details['version']} at {place}, tried from inside{plainly}; {known}"
    return f"{isolation.backend}, limits by {isolation.level}; {known}"


async def _analyser(_: Settings) -> str:
    from app.infrastructure.analysis.analyser import self_test
    from app.infrastructure.analysis.errors import AnalysisError

    if importlib.util.find_spec("lizard") is None and importlib.util.find_spec("tree_sitter") is None:
        return "not installed; submitted code is not analysed (pip install 'turnstone[judge]')"
    try:
        found = await self_test()
    except AnalysisError as error:
        raise StartupError(error.problem, error.remedy) from None
    return ", ".join(f"{name} {version}" for name, version in found.items())
