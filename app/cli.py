"""The command ``turnstone``. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 ended by Ctrl-C.

What a command runs is imported when it runs: the whole service takes seconds to load, and ``--help`` should not.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from app import __version__
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.core.settings import DatabaseSettings, Settings
    from app.server import Stopping

cli = typer.Typer(
    name="turnstone",
    help="The AI worker of AI-assisted coding exams. Settings are environment variables, see docs/operations.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
callbacks_cli = typer.Typer(help="What Core was told, and what it still has to be told.", no_args_is_help=True)
sessions_cli = typer.Typer(help="Sessions and their conversations.", no_args_is_help=True)
cli.add_typer(callbacks_cli, name="callbacks")
cli.add_typer(sessions_cli, name="sessions")

_LARGEST_ID = 2**63 - 1
_ALL = 1_000_000
SessionId = Annotated[int, typer.Argument(max=_LARGEST_ID, help="The session's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for other programs.")]
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]
Status = Literal["held", "pending", "delivered", "failed"]
"""As `CallbackStatusEnum` has them, which comes with the database's driver."""


def main() -> None:
    """Entry point: expected failures become one clear line and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # what stands behind it was exchanged
            sys.stdout.reconfigure(errors="backslashreplace")  # a sign that a terminal cannot show is no failure
    try:
        cli()
    except StartupError as error:
        _fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit:
        raise  # how every command ends; to look below whether it is a database's error would load the driver
    except _database_down():
        _fail(StartupError("The database does not answer.", "Try `turnstone doctor`."))


@cli.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="Where to listen [TURNSTONE_HOST].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any [TURNSTONE_PORT].")] = None,
) -> None:
    """Run the service: REST, WebSocket and, unless TURNSTONE_WORKER__EMBEDDED=false, the background jobs."""
    with _loading("starting the service"):
        settings = _settings(host=host, port=port)
        from app.main import create_app
        from app.server import listen, run, serve

    async def main(stopping: Stopping) -> None:
        listener = listen(settings.host, settings.port)
        app = create_app(settings, say=_say)
        async with app.router.lifespan_context(app):
            _say(f"listening on http://{settings.host}:{listener.getsockname()[1]}/ ; Ctrl-C ends it")
            await serve(app, settings, listener, stopping)

    run(main, _say)


@cli.command("worker")
def worker_command() -> None:
    """Run the background jobs alone: callbacks are delivered, and turns of dead processes settled."""
    with _loading("starting the background jobs"):
        settings = _settings()
        from app.server import run
        from app.worker import work

    async def main(stopping: Stopping) -> None:
        await work(settings, stopping, say=_say)

    run(main, _say)


@cli.command("demo")
def demo_command(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any [TURNSTONE_PORT].")] = None,
) -> None:
    """Try it out: the service, a small receiver that plays Core, and the chat page. Needs nothing else."""
    with _loading("starting the demo"):
        settings = _settings(port=port, quiet=True)
        from app.demo import demo
        from app.server import run

    async def main(stopping: Stopping) -> None:
        await demo(settings, stopping, say=_say)

    run(main, _say)


@cli.command("migrate")
def migrate_command() -> None:
    """Bring the database's tables to this version. Safe to run at any time and from several places at once."""
    with _loading():
        settings = _settings()
        from app.bootstrap import open_database

    async def main() -> None:
        async with open_database(settings.model_copy(update={"database": _migrating(settings)})):
            typer.echo("The database is up to date.")

    asyncio.run(main())


@cli.command("doctor")
def doctor_command() -> None:
    """Check everything the service needs, and say what to do about what is missing."""
    with _loading():
        settings = _settings(quiet=True)
        from app.doctor import examine

    failed = 0
    for finding in asyncio.run(examine(settings)):
        failed += not finding.ok
        typer.secho(
            f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.found}", fg=None if finding.ok else "red"
        )
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
    raise typer.Exit(1 if failed else 0)


@cli.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(__version__)


@callbacks_cli.command("list")
def list_callbacks(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this type, such as usage.")] = None,
    session: Annotated[int | None, typer.Option(max=_LARGEST_ID, help="Only this session's.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List callbacks, oldest first."""

    async def show() -> None:
        from app.infrastructure.persistence.models import CallbackStatusEnum
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository

        if kind is not None and not _is_text(kind):
            return
        async with get_db_context() as db:
            found = await CallbackRepository(db).list_callbacks(
                status=CallbackStatusEnum(status) if status else None, kind=kind, session_id=session, limit=limit
            )
        if as_json:
            from app.presentation.schemas.bodies import CallbackBody

            for entry in found:
                typer.echo(CallbackBody.of(*entry).model_dump_json())
            return
        for callback, _ in found:
            tries = f"{callback.attempts:>3} {'try  ' if callback.attempts == 1 else 'tries'}"
            state = f"{callback.status.value:<9} {tries}"
            place = f"session {callback.session_id} #{callback.callback_seq}"
            typer.echo(f"{callback.event_id}  {state}  {place:<20}  {callback.type}  {callback.last_error or ''}")

    _with_database(show)


@callbacks_cli.command("show")
def show_callback(event_id: Annotated[str, typer.Argument(help="Its webhook-id.")]) -> None:
    """Show one callback with the body that Core receives."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository
        from app.presentation.schemas.bodies import CallbackBody

        async with get_db_context() as db:
            found = await CallbackRepository(db).get(event_id) if _is_text(event_id) else None
        if found is None:
            raise _no_such("callback", event_id)
        _print_json(CallbackBody.of(*found).model_dump(mode="json"))

    _with_database(show)


@callbacks_cli.command("replay")
def replay_callback(event_ids: Annotated[list[str], typer.Argument(help="Their webhook-ids.")]) -> None:
    """Send callbacks once more, with all their tries; their ids stay the same. A running service delivers them."""

    async def replay() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository

        for event_id in event_ids:
            async with get_db_context() as db:
                callback = await CallbackRepository(db).replay(event_id) if _is_text(event_id) else None
                if callback is None:
                    raise _no_such("callback", event_id)
            typer.echo(f"{event_id}  {callback.status.value}")

    _with_database(replay)


@sessions_cli.command("list")
def list_sessions(
    exam: Annotated[int | None, typer.Option(max=_LARGEST_ID, help="Only this exam's.")] = None,
    participant: Annotated[int | None, typer.Option(max=_LARGEST_ID, help="Only this participant's.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List sessions, oldest first."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.session_repository import SessionRepository

        async with get_db_context() as db:
            found = await SessionRepository(db).list_sessions(exam, participant, limit=limit)
        if as_json:
            from app.presentation.schemas.bodies import SessionBody

            for session in found:
                typer.echo(SessionBody.of(session).model_dump_json())
            return
        for session in found:
            who = f"exam {session.exam_id} participant {session.participant_id}"
            ended = f"ended {_when(session.ended_at)}" if session.ended_at else "active"
            turns = f"{session.last_turn} turns, {session.total_tokens} tokens"
            typer.echo(f"{session.id}  {who}  {turns}  started {_when(session.started_at)}  {ended}")

    _with_database(show)


@sessions_cli.command("show")
def show_session(session_id: SessionId) -> None:
    """Show a session's conversation."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.session_repository import SessionRepository

        async with get_db_context() as db:
            session = await SessionRepository(db).get_session(session_id)
            if session is None:
                raise _no_such("session", session_id)
            messages = await SessionRepository(db).list_messages(session_id, limit=_ALL)
        typer.secho(f"session {session_id}, exam {session.exam_id}", bold=True)
        for message in messages:
            typer.secho(f"\n[{message.turn}] {message.role.value.lower()}", bold=True)
            typer.echo(message.content)

    _with_database(show)


@sessions_cli.command("export")
def export_session(
    session_id: SessionId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output without it.")] = None,
) -> None:
    """Write a session with all its messages and callbacks as one JSON document."""

    async def export() -> None:
        document = json.dumps(await _export(session_id), ensure_ascii=False, indent=2)
        if output is None:
            typer.echo(document)
            return
        try:
            output.write_text(f"{document}\n", encoding="utf-8")
        except OSError as error:
            raise StartupError(f"{output} cannot be written: {error.strerror}.", "Choose another file.") from None

    _with_database(export)


async def _export(session_id: int) -> dict[str, Any]:
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.callback_repository import CallbackEvent, CallbackRepository
    from app.infrastructure.repositories.session_repository import SessionRepository
    from app.infrastructure.repositories.turn_repository import TurnRepository
    from app.presentation.schemas.bodies import MessageBody, SessionBody

    async with get_db_context() as db:
        sessions = SessionRepository(db)
        session = await sessions.get_session(session_id)
        if session is None:
            raise _no_such("session", session_id)
        messages = await sessions.list_messages(session_id, limit=_ALL)
        turn_ids = await TurnRepository(db).client_ids(session_id, {message.turn for message in messages})
        callbacks = await CallbackRepository(db).list_callbacks(session_id=session_id, limit=_ALL)
    return {
        "session": SessionBody.of(session).model_dump(mode="json"),
        "messages": [MessageBody.of(m, turn_ids.get(m.turn)).model_dump(mode="json") for m in messages],
        "callbacks": [CallbackEvent.of(*found).body() for found in callbacks],
    }


@contextmanager
def _loading(what: str | None = None) -> Iterator[None]:
    """Load what a command needs, which may take seconds; say what comes.

    Nothing is open by then, so Ctrl-C ends the process on the spot: an exception raised within an import prints a
    traceback, comes out as another one, or gets lost.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        if what is not None:
            _say(what)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _with_database(action: Callable[[], Awaitable[None]]) -> None:
    """Run ``action`` on the database that is there. It is neither made nor migrated: these commands only look."""
    with _loading():
        settings = _settings(quiet=True)
        from app.doctor import database_as_found
        from app.infrastructure.persistence.migrate import wrong_version

    async def main() -> None:
        async with database_as_found(settings) as (_, schema):
            if not schema.usable:
                raise wrong_version(schema)
            await action()

    asyncio.run(main())


def _settings(*, quiet: bool = False, **overrides: Any) -> Settings:
    import structlog

    from app.core.logging import configure_logging
    from app.core.settings import load_settings, strange_variables

    settings = load_settings(**{name: value for name, value in overrides.items() if value is not None})
    if quiet and settings.log_level == "info":
        settings = settings.model_copy(update={"log_level": "warning", "log_format": "console"})
    configure_logging(settings)
    if strange := strange_variables():
        structlog.get_logger().warning("variables_are_no_settings", names=strange)
    return settings


def _migrating(settings: Settings) -> DatabaseSettings:
    return settings.database.model_copy(update={"migrate": True})


def _database_down() -> tuple[type[Exception], ...]:
    from app.infrastructure.persistence.session import DATABASE_DOWN

    return DATABASE_DOWN


def _is_text(argument: str) -> bool:
    """Whether an argument's bytes were text: others name nothing in a database."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_such(what: str, which: object) -> StartupError:
    return StartupError(f"There is no {what} {which}.", f"`turnstone {what}s list` shows which there are.")


def _when(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M")


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _say(line: str) -> None:
    typer.echo(f"turnstone: {line}", err=True)


def _fail(error: StartupError) -> NoReturn:
    typer.secho(f"turnstone: {error.problem}", fg="red", err=True)
    typer.echo(f"  {error.remedy}", err=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
