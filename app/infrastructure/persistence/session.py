"""The database of this process and its transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString, NoReturn

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import QueuePool

from app.infrastructure.persistence.connection import BoundedConnection, patient_url

PoolExhausted = PoolTimeoutError
"""All connections are in use, and none came back in time."""
DATABASE_DOWN = (OperationalError, InterfaceError, InternalError, PoolExhausted, OSError)
"""What a statement raises when the database is away, or cannot do now what it could do a moment later.

That it takes no writes for a while, as in a failover, is an ``InternalError`` (25006).
A statement that is wrong raises something else (``ProgrammingError``, ``IntegrityError`` …).
"""


def fault(error: BaseException) -> str:
    """The kind of a database's error, for the log: its text may quote what was to be stored."""
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    return f"{type(error).__name__} {state}" if state else type(error).__name__


_GIVEN_BACK_S = 5.0
"""For connections in use at the end; a rollback takes a millisecond."""
_VITAL = 3
"""Connections for what cannot wait: to renew the lease, to watch over the others, to make text safe."""
_STREAMED = 1_000
"""Rows of one round trip."""


class Database:
    """The engine of one process. `bind` makes it the one that `get_db_context` uses, `close` ends that.

    Args:
        url: ``postgresql://…``.
        pool_size: connections at most, besides three for what is ``vital``.
        timeout_s: longest wait for a connection, from the pool or from the server.
        statement_s: longest time for one statement; ``None``: as long as it takes, for commands that people wait for.
    """

    def __init__(
        self, url: str, *, pool_size: int = 10, timeout_s: float = 5.0, statement_s: float | None = None
    ) -> None:
        self.url = patient_url(make_url(url).set(drivername="postgresql+psycopg"), timeout_s)
        self._timeout_s = timeout_s
        self._statement_s = statement_s
        self.engine = self._open_engine(pool_size)
        self._vital_engine = self._open_engine(_VITAL)

    def _open_engine(self, pool_size: int) -> AsyncEngine:
        return create_async_engine(
            self.url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=self._timeout_s,
            hide_parameters=True,  # an error's text may end in a log, and a parameter may be what a candidate wrote
            connect_args={"async_creator_fn": self._connect},
        )

    async def _connect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        if self._statement_s is None:
            return await psycopg.AsyncConnection.connect(**options)
        connection = await BoundedConnection.connect(**options)
        try:
            # The server speaks first, where it can.
            await connection.limit(self._statement_s, self._statement_s + self._timeout_s)
        except BaseException:
            await connection.close()
            raise
        return connection

    @property
    def dsn(self) -> str:
        """The address as libpq reads it, password included."""
        return self.url.set(drivername="postgresql").render_as_string(hide_password=False)

    @asynccontextmanager
    async def transaction(self, *, vital: bool = False) -> AsyncIterator[Transaction]:
        """One transaction: committed at the end of the block, rolled back by an exception.

        One that is ``vital`` waits for no other: what others would take this process for dead without, or lose text.
        """
        connection = await (self._vital_engine if vital else self.engine).connect()
        try:
            db = await Transaction.on(connection)
            yield db
            await db.commit()
        except BaseException as error:
            # What is open is rolled back, also when the task is being cancelled.
            await asyncio.shield(asyncio.ensure_future(connection.close()))
            is_cut = isinstance(error, DBAPIError) and error.connection_invalidated
            if vital and is_cut and not self.pool.checkedout():
                # The others are cut as well, mostly, and nobody uses one who would notice: turns need not find out.
                await self.engine.dispose()
            raise
        await connection.close()

    @property
    def pool(self) -> QueuePool:
        """Its connections, but for those that are kept for what is vital."""
        return _pool_of(self.engine)

    async def close(self) -> None:
        """Close all connections, once those in use have been given back.

        Whoever is cancelled at the end rolls back first. Where the loop is closed in the middle of that, nobody ever
        closes the connection, and its locks stay in force for as long as the process lives.
        """
        unbind(self)
        engines = (self.engine, self._vital_engine)
        with suppress(TimeoutError):
            async with asyncio.timeout(_GIVEN_BACK_S):
                while any(_pool_of(engine).checkedout() for engine in engines):  # noqa: ASYNC110  # a pool tells nobody
                    await asyncio.sleep(_GIVEN_BACK_S / 1000)
        for engine in engines:
            await engine.dispose()


def _pool_of(engine: AsyncEngine) -> QueuePool:
    pool = engine.pool
    assert isinstance(pool, QueuePool), "the engine's kind of pool"
    return pool


class Transaction(AsyncSession):
    """A transaction: SQLAlchemy's session, and a short way past it for the statements of the hot path.

    Both use the same connection. `run` takes a fifth of the processor time of ``execute``, which matters where every
    turn pays for it; everywhere else the session is the better tool.
    """

    def __init__(self, connection: AsyncConnection, driver: psycopg.AsyncConnection[Any]) -> None:
        super().__init__(connection, expire_on_commit=False, autoflush=False)
        self._connection = connection
        self._driver = driver

    @classmethod
    async def on(cls, connection: AsyncConnection) -> Transaction:
        """A transaction on a connection of its own."""
        driver = (await connection.get_raw_connection()).driver_connection
        assert isinstance(driver, psycopg.AsyncConnection), "the engine's driver"
        return cls(connection, driver)

    async def run(self, statement: LiteralString, values: Mapping[str, Any], *, whole: bool = False) -> list[Any]:
        """Execute SQL with psycopg's parameters (``%(name)s``).

        Args:
            statement: the SQL.
            values: its parameters.
            whole: it is all there is to this transaction, and commits by itself, in one round trip.

        Returns:
            Its rows as named tuples; none for a statement that returns nothing.

        Raises:
            sqlalchemy.exc.DBAPIError: as ``execute`` does.
        """
        try:
            if whole:
                await self._driver.set_autocommit(True)
            try:
                cursor = self._driver.cursor(row_factory=namedtuple_row)
                await cursor.execute(statement, values)
                return await cursor.fetchall() if cursor.description is not None else []
            finally:
                if whole and not self._driver.closed:
                    await self._driver.set_autocommit(False)
        except psycopg.Error as error:
            await self._raise(error, statement)

    async def copy(self, statement: LiteralString, rows: Iterable[Sequence[Any]]) -> None:
        """Send rows with ``COPY … FROM STDIN``, taking one after the other."""
        try:
            async with self._driver.cursor() as cursor, cursor.copy(statement) as copy:
                for row in rows:
                    await copy.write_row(row)
        except psycopg.Error as error:
            await self._raise(error, statement)

    async def run_streaming(self, statement: LiteralString, values: Mapping[str, Any]) -> AsyncIterator[Any]:
        """The rows of a query as `run` gives them, one after the other: few of them are in memory at a time."""
        try:
            async with self._driver.cursor(name="stream", row_factory=namedtuple_row) as cursor:
                cursor.itersize = _STREAMED
                await cursor.execute(statement, values)
                async for row in cursor:
                    yield row
        except psycopg.Error as error:
            await self._raise(error, statement)

    async def commit(self) -> None:
        """Commit what went either way."""
        if self.in_transaction():
            await super().commit()
        try:
            await self._driver.commit()
        except psycopg.Error as error:
            await self._raise(error, "COMMIT")

    async def _raise(self, error: psycopg.Error, statement: str) -> NoReturn:
        """SQLAlchemy's own treatment of an error: its exceptions, and a pool that forgets what a disconnect broke."""
        await self._connection.run_sync(lambda c: c._handle_dbapi_exception(error, statement, None, None, None))
        raise AssertionError("it has raised") from error


_bound: list[tuple[asyncio.AbstractEventLoop, Database]] = []
"""With the event loop that each one's connections belong to; another one that waits for them may never be woken."""


def bind(database: Database) -> None:
    """Make ``database`` the one that `get_db_context` uses on the running event loop, until `unbind`."""
    _bound.append((asyncio.get_running_loop(), database))


def unbind(database: Database) -> None:
    """Undo `bind`; harmless when it was not bound."""
    _bound[:] = [entry for entry in _bound if entry[1] is not database]


@asynccontextmanager
async def get_db_context(*, vital: bool = False) -> AsyncIterator[Transaction]:
    """A transaction on this process's database: committed at the end of the block, rolled back by an exception.

    One that is ``vital`` does not wait for a connection that turns have.

    Raises:
        RuntimeError: no database is bound (`bind`) on this event loop, because nothing was started there.
    """
    here = asyncio.get_running_loop()
    database = next((each for loop, each in reversed(_bound) if loop is here), None)
    if database is None:
        raise RuntimeError("no database is open on this event loop")
    async with database.transaction(vital=vital) as db:
        yield db
