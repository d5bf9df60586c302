"""Bringing the schema to the version of this code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from app.core.errors import StartupError

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x7475726E  # any number; all processes that migrate wait for each other on it


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema's version in the database (``None``: empty) and the version that this code wants.

    ``known``: this code knows the version that is there; a later program's it does not. ``serves``: a later program's
    tables say that they still serve this one.
    """

    current: str | None
    wanted: str
    known: bool = True
    serves: bool = False

    @property
    def up_to_date(self) -> bool:
        """Whether nothing has to be done."""
        return self.current == self.wanted

    @property
    def usable(self) -> bool:
        """Whether this program can run on the tables as they are."""
        return self.up_to_date or (not self.known and self.serves)


def alembic_config() -> Config:
    """Alembic's configuration; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config


@cache
def wanted_version() -> str:
    """The newest migration in this code."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None, "the project ships at least one migration"
    return head


def schema_state(url: URL, *, timeout_s: float = 5.0) -> SchemaState:
    """Where the schema stands; blocks, so call it in a thread.

    Raises:
        StartupError: the database cannot be reached, or does not let us.
    """
    with _connected(url, timeout_s) as connection:
        return _state(connection)


def migrate(url: URL, *, timeout_s: float = 5.0) -> SchemaState:
    """Run the missing migrations; blocks, so call it in a thread. Safe to run from several processes at once.

    Returns:
        The state as it was found.

    Raises:
        StartupError: the database cannot be reached, does not let us, or was made by a later program.
    """
    with _connected(url, timeout_s) as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        found = _state(connection)
        connection.commit()
        if not found.known and not found.serves:
            raise wrong_version(found)
        if found.known and not found.up_to_date:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
        return found


@contextmanager
def _connected(url: URL, timeout_s: float) -> Iterator[Connection]:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": max(1, round(timeout_s))})
    try:
        with engine.connect() as connection:
            yield connection
    except DBAPIError as error:
        raise unreachable(url, error) from None
    finally:
        engine.dispose()


@cache
def _versions() -> frozenset[str]:
    """The migrations in this code. Read once: readiness is asked for often, on the loop of the streams."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions())


def state_from(current: str | None, oldest_program: str | None) -> SchemaState:
    """The schema's state by what the database says: its version, and the oldest program that its tables serve."""
    known = current is None or current in _versions()
    return SchemaState(current, wanted_version(), known=known, serves=oldest_program in _versions())


def _state(connection: Connection) -> SchemaState:
    current = MigrationContext.configure(connection).get_current_revision()
    reach = None
    if connection.execute(text("SELECT to_regclass('schema_reach')")).scalar() is not None:
        reach = connection.execute(text("SELECT oldest_program FROM schema_reach")).scalar()
    return state_from(current, reach)


def wrong_version(found: SchemaState) -> StartupError:
    """What to tell an operator whose tables are not, and are not to be made, what this program wants."""
    return StartupError(
        f"The database's tables are at version {found.current or 'none'}, this program wants {found.wanted}.",
        "Run `turnstone migrate`." if found.known else "A later program made them: use that one, or another database.",
    )


def unreachable(url: URL, error: Exception) -> StartupError:
    """What to tell an operator whose database does not answer; the password is left out."""
    # Options in the query may hold secrets too; only those that say where the server is are shown.
    shown = url.set(query={name: value for name, value in url.query.items() if name in {"host", "port"}})
    reason = str(getattr(error, "orig", error)).strip().splitlines()
    where = shown.render_as_string(hide_password=True).replace("postgresql+psycopg://", "postgresql://")
    return StartupError(
        f"The database {where} cannot be used: {reason[0] if reason else 'no answer'}.",
        "Start it, or mend TURNSTONE_DATABASE__URL (unset, an embedded PostgreSQL is used).",
    )
