"""Telling other processes at once what they would find by themselves a moment later: NOTIFY, and whoever listens.

A notification is a hint and nothing more. What it tells of is in the tables: a relay finds new callbacks within a
second anyway, and whoever runs a turn finds with its next flush that somebody wants it stopped. So callbacks are told
of after the commit on a connection of its own, once for all commits of the moment: inside the turn's transaction it
would make commits wait for each other. A cancel, and a step of a submission's evaluation, are rare, and told of with
their commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, LiteralString

import psycopg
import structlog

from app.infrastructure.persistence.connection import BoundedConnection

log = structlog.get_logger()

CALLBACKS: Final = "turnstone_callbacks"
CANCELS: Final = "turnstone_cancels"
"""The payload is the turn's key."""
SUBMISSIONS: Final = "turnstone_submissions"
"""The payload is a `submission` frame: how far one is. Where it gets lost, the submission's row says the same."""
_RECONNECT_S = 1.0


class Bell:
    """One process's end of the channels.

    Args:
        dsn: the database, as libpq reads it.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Callbacks were committed."""
        self._rung.set()

    async def send_forever(self) -> None:
        """Pass on what is rung, until cancelled."""
        while True:
            try:
                async with await BoundedConnection.connect(self._dsn, autocommit=True) as connection:
                    while True:
                        await self._rung.wait()
                        self._rung.clear()
                        await connection.execute(f"NOTIFY {CALLBACKS}")
            except (psycopg.Error, OSError) as error:
                log.warning("bell_waits_for_database", error=type(error).__name__)
                self._rung.set()  # it may not have been passed on
                await asyncio.sleep(_RECONNECT_S)

    async def listen_forever(self, handlers: Mapping[LiteralString, Callable[[str], None]]) -> None:
        """Call a channel's handler with the payload of whatever is told there, until cancelled."""
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(self._dsn, autocommit=True) as connection:
                    for channel in handlers:
                        await connection.execute(f"LISTEN {channel}")
                    async for told in connection.notifies():
                        if told.channel in handlers:
                            handlers[told.channel](told.payload)
            except (psycopg.Error, OSError) as error:
                log.warning("bell_waits_for_database", error=type(error).__name__)
                await asyncio.sleep(_RECONNECT_S)
