"""Bringing the schema to the version of this code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from app.core.errors import StartupError

_SCRIPTS = Path(__file__).parent / "migrations"
_LOCK = 0x7475726E  # any number; all processes that migrate wait for each other on it


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The schema's version in the database (``None``: empty) and the version that this code wants."""

    current: str | None
    wanted: str

    @property
    def up_to_date(self) -> bool:
        """Whether nothing has to be done."""
        return self.current == self.wanted


def alembic_config() -> Config:
    """Alembic's configuration; there is no ini file."""
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    return config


def wanted_version() -> str:
    """The newest migration in this code."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    assert head is not None, "the project ships at least one migration"
    return head


def schema_state(url: URL) -> SchemaState:
    """Where the schema stands; blocks, so call it in a thread."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            return SchemaState(MigrationContext.configure(connection).get_current_revision(), wanted_version())
    finally:
        engine.dispose()


def migrate(url: URL, *, timeout_s: float = 5.0) -> SchemaState:
    """Run the missing migrations; blocks, so call it in a thread. Safe to run from several processes at once.

    Returns:
        The state as it was found.

    Raises:
        StartupError: the database cannot be reached.
    """
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": max(1, round(timeout_s))})
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            found = SchemaState(MigrationContext.configure(connection).get_current_revision(), wanted_version())
            connection.commit()
            if not found.up_to_date:
                config = alembic_config()
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.commit()
            return found
    except OperationalError as error:
        raise unreachable(url, error) from None
    finally:
        engine.dispose()


def unreachable(url: URL, error: Exception) -> StartupError:
    """What to tell an operator whose database does not answer; the password is left out."""
    reason = str(getattr(error, "orig", error)).strip().splitlines()
    where = url.render_as_string(hide_password=True).replace("postgresql+psycopg://", "postgresql://")
    return StartupError(
        f"The database {where} cannot be used: {reason[0] if reason else 'no answer'}.",
        "Start it, or mend TURNSTONE_DATABASE__URL (unset, an embedded PostgreSQL is used).",
    )
