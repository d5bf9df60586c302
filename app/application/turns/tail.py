"""Following a turn that runs in another process, or in one that has just died."""

from __future__ import annotations

import asyncio
import time

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app.application.turns.ending import ending_of
from app.application.turns.reading import held
from app.application.turns.running import TurnRef
from app.domain.turn_log import TurnLog
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.state_repository import Place, StateRepository
from app.infrastructure.repositories.turn_repository import StoredText, TurnRepository

log = structlog.get_logger()

_INTERVAL_S = 0.25
_MIRRORED_S = 0.1
"""Between two looks into Redis, where a turn's text comes sooner than into the database."""


class TailedLog(TurnLog):
    """A copy of a log that is written elsewhere; kept up to date while somebody reads it."""

    __slots__ = ()

    @property
    def has_readers(self) -> bool:
        """Whether anybody reads."""
        return bool(self._readers)

    def take(self, stored: StoredText) -> bool:
        """Append what is new in ``stored``; ``False`` where something is missing in between."""
        held = self.last_seq - stored.first_seq + 1
        if held < 0:
            return not stored.lengths
        position = sum(stored.lengths[:held])
        for length in stored.lengths[held:]:
            self.append(stored.content[position : position + length])
            position += length
        return True


class Tails:
    """Follows turns of other processes, one poller per turn however many read it."""

    def __init__(self, state: StateRepository) -> None:
        self._state = state
        self._tails: dict[int, tuple[TailedLog, asyncio.Event, asyncio.Task[None]]] = {}

    async def follow(self, ref: TurnRef) -> TurnLog:
        """A log that holds what is known now, and grows as the turn does.

        Attach a reader at once: a tail without any stops.
        """
        if ref.pk not in self._tails:
            tail, looked = TailedLog(), asyncio.Event()
            task = asyncio.create_task(self._poll(ref, tail, looked), name=f"tail of {ref.pk}")
            self._tails[ref.pk] = (tail, looked, task)
        tail, looked, _ = self._tails[ref.pk]
        with held(tail):
            await looked.wait()  # whoever does not wait for more is shown what there is
        return tail

    async def close(self) -> None:
        """Stop following."""
        tasks = [task for *_, task in self._tails.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, ref: TurnRef, tail: TailedLog, looked: asyncio.Event) -> None:
        asked_at = -_INTERVAL_S
        place: Place | None = None
        try:
            while tail.has_readers and tail.ending is None:
                mirrored = await self._state.read(ref.key, place)
                place = None
                if mirrored is not None and tail.take(mirrored[0]):
                    place = mirrored[1]
                if place is None or time.monotonic() - asked_at >= _INTERVAL_S:
                    asked_at = time.monotonic()
                    try:
                        await self._ask_database(ref, tail, text_too=place is None)
                    except DATABASE_DOWN as error:
                        log.warning("tail_waits_for_database", error=fault(error))
                    except SQLAlchemyError as error:  # a bug, and no reason to leave readers without an end
                        log.error("tail_failed", error=fault(error))
                looked.set()
                if tail.ending is None:
                    await asyncio.sleep(_INTERVAL_S if place is None else _MIRRORED_S)
        finally:
            looked.set()
            del self._tails[ref.pk]

    async def _ask_database(self, ref: TurnRef, tail: TailedLog, *, text_too: bool) -> None:
        """Whether the turn has ended; and what is flushed of it, where the live-turn store knows nothing."""
        async with get_db_context() as db:
            turns = TurnRepository(db)
            turn = await turns.get(ref.pk)
            assert turn is not None, "turns are never deleted while they run"
            ending = ending_of(turn)
            if ending is not None:
                tail.take(await turns.stored_text(turn))
            elif text_too and not tail.take(await turns.flushed_text(ref.pk, after_seq=tail.last_seq)):
                # A chunk reaches over what is held already.
                tail.take(await turns.flushed_text(ref.pk))
        if ending is not None:
            tail.end(ending)
