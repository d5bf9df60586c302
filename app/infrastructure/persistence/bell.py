"""Waking delivery in another process: a NOTIFY after commits, and whoever listens.

A notification is a hint and nothing more: what it tells of is in the tables, where a relay finds it within a second
anyway. So it is sent after the commit on a connection of its own, once for all commits of the moment: inside the turn's
transaction it would make commits wait for each other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import psycopg
import structlog

from app.infrastructure.persistence.connection import BoundedConnection

log = structlog.get_logger()

_CHANNEL = "turnstone_callbacks"
_RECONNECT_S = 1.0


class Bell:
    """One process's end of the channel.

    Args:
        dsn: the database, as libpq reads it.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Something was committed."""
        self._rung.set()

    async def send_forever(self) -> None:
        """Pass on what is rung, until cancelled."""
        while True:
            try:
                async with await BoundedConnection.connect(self._dsn, autocommit=True) as connection:
                    while True:
                        await self._rung.wait()
                        self._rung.clear()
                        await connection.execute(f"NOTIFY {_CHANNEL}")
            except (psycopg.Error, OSError) as error:
                log.warning("bell_waits_for_database", error=type(error).__name__)
                self._rung.set()  # it may not have been passed on
                await asyncio.sleep(_RECONNECT_S)

    async def listen_forever(self, heard: Callable[[], None]) -> None:
        """Call ``heard`` whenever any process rings, until cancelled."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                    await connection.execute(f"LISTEN {_CHANNEL}")
                    heard()  # what was rung while nobody listened
                    async for _ in connection.notifies():
                        heard()
            except (psycopg.Error, OSError) as error:
                log.warning("bell_waits_for_database", error=type(error).__name__)
                await asyncio.sleep(_RECONNECT_S)
