"""The database of this process and its transactions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import make_url
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

DATABASE_DOWN = (OperationalError, InterfaceError, PoolTimeoutError, OSError)
"""What a statement raises when the database is away, or cannot do now what it could do a moment later.

A statement that is wrong raises something else (``ProgrammingError``, ``IntegrityError`` …).
"""


def fault(error: BaseException) -> str:
    """The kind of a database's error, for the log: its text may quote what was to be stored."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else type(error).__name__


class Database:
    """The engine of one process. `open` makes it the one that `get_db_context` uses, `close` ends that."""

    def __init__(self, url: str, *, pool_size: int = 10, timeout_s: float = 5.0) -> None:
        self.url = make_url(url).set(drivername="postgresql+psycopg")
        self.engine: AsyncEngine = create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=timeout_s,
            hide_parameters=True,  # an error's text may end in a log, and a parameter may be what a candidate wrote
            connect_args={"connect_timeout": max(1, round(timeout_s)), "application_name": "turnstone"},
        )

    @property
    def dsn(self) -> str:
        """The address as libpq reads it, password included."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncSession]:
        """One transaction: committed at the end of the block, rolled back by an exception."""
        async with AsyncSession(self.engine, expire_on_commit=False, autoflush=False) as db, db.begin():
            yield db

    async def close(self) -> None:
        """Close all connections."""
        unbind(self)
        await self.engine.dispose()


_bound: list[Database] = []


def bind(database: Database) -> None:
    """Make ``database`` the one that `get_db_context` uses, until `unbind`."""
    _bound.append(database)


def unbind(database: Database) -> None:
    """Undo `bind`; harmless when it was not bound."""
    if database in _bound:
        _bound.remove(database)


@asynccontextmanager
async def get_db_context() -> AsyncIterator[AsyncSession]:
    """A transaction on this process's database: committed at the end of the block, rolled back by an exception.

    Raises:
        RuntimeError: no database is bound (`bind`), because nothing was started.
    """
    if not _bound:
        raise RuntimeError("no database is open in this process")
    async with _bound[-1].transaction() as db:
        yield db
