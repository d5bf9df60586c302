"""What all commands share: settings, the database as it is, and how success and failure are told.

What a command runs is imported when it runs: the whole service takes seconds to load, and ``--help`` should not.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.core.settings import Settings

LARGEST_ID = 2**63 - 1
ALL = 1_000_000
_LONGEST_SHOWN = 100
SessionId = Annotated[int, typer.Argument(max=LARGEST_ID, help="The session's id.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line, for other programs.")]
MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"]
"""How options take a moment; all are UTC."""
Limit = Annotated[int, typer.Option(min=1, max=100_000, help="How many at most.")]


@contextmanager
def loading(what: str | None = None) -> Iterator[None]:
    """Load what a command needs, which may take seconds; say what comes.

    Nothing is open by then, so Ctrl-C ends the process on the spot: an exception raised within an import prints a
    traceback, comes out as another one, or gets lost.
    """
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        if what is not None:
            say(what)
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def with_database(action: Callable[[], Awaitable[None]]) -> None:
    """Run ``action`` on the database that is there. It is neither made nor migrated: these commands only look."""
    with loading():
        settings = read_settings(quiet=True)
        from app.doctor import database_as_found
        from app.infrastructure.persistence.migrate import wrong_version

    async def main() -> None:
        async with database_as_found(settings) as (_, schema):
            if not schema.usable:
                raise wrong_version(schema)
            await action()

    asyncio.run(main())


def read_settings(*, quiet: bool = False, **overrides: Any) -> Settings:
    """Read the settings, with what the command line says above them, and set up the log. ``quiet``: for people."""
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


def database_down() -> tuple[type[Exception], ...]:
    """What a command raises when the database is away; imported late, see above."""
    from app.infrastructure.persistence.session import DATABASE_DOWN

    return DATABASE_DOWN


def is_text(argument: str) -> bool:
    """Whether an argument's bytes were text: others name nothing in a database."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file(which: str) -> bool:
    """Whether an argument names a file. A name that no file can have, or a place that is closed to us, is told."""
    try:
        return Path(which).is_file()
    except OSError as error:
        shown = which if len(which) <= _LONGEST_SHOWN else f"{which[:_LONGEST_SHOWN]}…"
        raise StartupError(f"{shown} names no file that can be read: {error.strerror}.", "Choose another.") from None


def no_such(what: str, which: object) -> StartupError:
    """What to tell whoever named something that is not there."""
    return StartupError(f"There is no {what} {which}.", f"`turnstone {what}s list` shows which there are.")


def utc(moment: datetime | None) -> datetime | None:
    """A moment of an option, which is UTC."""
    return None if moment is None else moment.replace(tzinfo=UTC)


def when(moment: datetime) -> str:
    """A moment, to the minute."""
    return moment.strftime("%Y-%m-%d %H:%M")


def print_json(value: Any) -> None:
    """Print a value as JSON for people."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def say(line: str) -> None:
    """One line of progress; it goes to standard error, the answer of a command to standard output."""
    typer.echo(f"turnstone: {line}", err=True)


def fail(error: StartupError) -> NoReturn:
    """Tell what is wrong and what to do, and end with exit code 1."""
    typer.secho(f"turnstone: {error.problem}", fg="red", err=True)
    typer.echo(f"  {error.remedy}", err=True)
    raise SystemExit(1)
