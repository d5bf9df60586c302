"""Reading a turn's log from a coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import overload

from app.domain.turn_log import Ending, Piece, TurnLog


class _Waiting:
    """A reader that a coroutine can wait on."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def wake(self) -> None:
        self._event.set()

    async def wait(self, patience_s: float | None = None) -> bool:
        """Wait for news; ``False`` where there are none for so long."""
        try:
            async with asyncio.timeout(patience_s):
                await self._event.wait()
        except TimeoutError:
            return False
        self._event.clear()
        return True


@contextmanager
def held(log: TurnLog) -> Iterator[None]:
    """Read a log and make nothing of it: one of another process grows only for as long as somebody reads it."""
    reader = _Waiting()
    log.attach(reader)
    try:
        yield
    finally:
        log.detach(reader)


@overload
def read(log: TurnLog, after_seq: int = 0) -> AsyncIterator[Piece | Ending]: ...
@overload
def read(log: TurnLog, after_seq: int = 0, *, heartbeat_s: float) -> AsyncIterator[Piece | Ending | None]: ...
async def read(
    log: TurnLog, after_seq: int = 0, *, heartbeat_s: float | None = None
) -> AsyncIterator[Piece | Ending | None]:
    """A log's events after ``after_seq``, up to and with its ending; ``None`` after each ``heartbeat_s`` of silence."""
    reader = _Waiting()
    log.attach(reader)
    try:
        while True:
            piece = log.since(after_seq)
            if piece is not None:
                after_seq = piece.last_seq
                yield piece
            elif log.ending is not None:
                yield log.ending
                return
            elif not await reader.wait(heartbeat_s):
                yield None
    finally:
        log.detach(reader)


async def ended(log: TurnLog) -> Ending:
    """Wait for a log's ending."""
    reader = _Waiting()
    log.attach(reader)
    try:
        while log.ending is None:
            await reader.wait()
        return log.ending
    finally:
        log.detach(reader)
