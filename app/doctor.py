"""What ``turnstone doctor`` looks at."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from sqlalchemy import text

from app.bootstrap import make_data_dir, open_database
from app.core.errors import StartupError
from app.core.settings import Settings
from app.infrastructure.cache.redis_client import RedisClient
from app.infrastructure.llm.local_model import find_weights
from app.infrastructure.llm.models import check_remote
from app.infrastructure.persistence.migrate import schema_state, wrong_version
from app.infrastructure.persistence.session import DATABASE_DOWN, get_db_context
from app.infrastructure.webhook import WebhookSender
from app.server import listen


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; ``remedy`` says what to do where there is something to do."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything the service needs. Changes nothing, but starts the embedded database if none runs."""
    checks: list[tuple[str, Callable[[Settings], Awaitable[str]]]] = [
        ("port", _port),
        ("data directory", _data_dir),
        ("database", _database),
        ("redis", _redis),
        ("model", _model),
        ("callbacks", _callbacks),
    ]
    findings = []
    for what, check in checks:
        try:
            findings.append(Finding(what, True, await check(settings)))
        except StartupError as error:
            findings.append(Finding(what, False, error.problem, error.remedy))
    return findings


async def _port(settings: Settings) -> str:
    listen(settings.host, settings.port).close()
    return f"{settings.host}:{settings.port} is free"


async def _data_dir(settings: Settings) -> str:
    await asyncio.to_thread(make_data_dir, settings.data_dir)
    return f"{settings.data_dir.absolute()} can be written"


async def _database(settings: Settings) -> str:
    try:
        async with open_database(settings, as_found=True) as database, get_db_context() as db:
            version = (await db.execute(text("SHOW server_version"))).scalar()
            schema = await asyncio.to_thread(schema_state, database.url, timeout_s=settings.database.timeout_s)
    except DATABASE_DOWN:
        raise StartupError(
            "The database does not answer.", "Start it, or mend TURNSTONE_DATABASE__URL (unset: an embedded one)."
        ) from None
    kind = "embedded PostgreSQL" if settings.database.url is None else "PostgreSQL"
    if schema.up_to_date:
        return f"{kind} {version}, tables at version {schema.current}"
    if settings.database.migrate and schema.known:
        return (
            f"{kind} {version}, tables at version {schema.current or 'none'} (`serve` brings them to {schema.wanted})"
        )
    raise wrong_version(schema)


async def _redis(settings: Settings) -> str:
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
    if settings.llm.model == "local":
        if importlib.util.find_spec("xllamacpp") is None:
            raise StartupError(
                "The local model's server is not installed.",
                "pip install 'turnstone[local]', or set TURNSTONE_LLM__MODEL.",
            )
        return f"local ({find_weights().name}), for trying out"
    warning = await check_remote(settings.llm)
    if warning is not None:
        raise StartupError(warning, "Mend TURNSTONE_LLM__BASE_URL or the network.")
    return settings.llm.model


async def _callbacks(settings: Settings) -> str:
    if settings.callbacks.url is None:
        return "no receiver is set; callbacks are held until TURNSTONE_CALLBACKS__URL is"
    await WebhookSender(settings.callbacks).close()
    signed = "signed" if settings.callbacks.signing_secret is not None else "not signed"
    return f"go to {settings.callbacks.url}, {signed}"
