"""Callbacks: recorded with what they tell of, looked at, sent once more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, case, func, null, select, text, tuple_, update

from app.core.ids import new_event_id
from app.infrastructure.persistence.models import Callback, CallbackAttempt, CallbackStatusEnum, PromptSession
from app.infrastructure.persistence.session import Transaction, get_db_context

# A transaction has its number before it waits for the session's row, and whoever was let in before it may have a larger
# one. So the feed's place is never smaller than that of the session's last event.
_record = """
    WITH numbered AS (
        UPDATE prompt_sessions SET callback_seq = callback_seq + %(count)s::int,
            feed_place = greatest(feed_place, ((pg_current_xact_id())::text)::bigint)
        WHERE id = %(session_id)s
        RETURNING id, callback_seq - %(count)s::int AS before, feed_place
    ), recorded AS (
        INSERT INTO callbacks (event_id, session_id, callback_seq, type, payload, status, next_try_at, recorded_in)
        SELECT event.event_id, numbered.id, numbered.before + event.place, event.type, event.payload,
               %(status)s::text, CASE WHEN %(status)s::text = 'pending' THEN now() END, numbered.feed_place
        FROM numbered, unnest(%(event_ids)s::text[], %(types)s::text[], %(payloads)s::jsonb[])
                       WITH ORDINALITY AS event(event_id, type, payload, place)
        ORDER BY event.place
    ), lane AS (
        INSERT INTO callback_lanes (session_id)
        SELECT id FROM numbered WHERE %(status)s::text = 'pending'
        ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1
    )
    SELECT id FROM numbered
    """
_wake_lanes = """
    INSERT INTO callback_lanes (session_id) SELECT unnest(%(session_ids)s::bigint[])
    ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1, due_at = now(), failing = false
    """


@dataclass(frozen=True, slots=True)
class NewCallback:
    """An event to record: its type, and the fields that go with it."""

    type: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CallbackEvent:
    """One event as it goes out."""

    id: int
    event_id: str
    session_id: int
    callback_seq: int
    type: str
    payload: dict[str, Any]
    attempts: int
    occurred_at: datetime
    exam_id: int
    participant_id: int

    @classmethod
    def of(cls, callback: Callback, session: PromptSession) -> CallbackEvent:
        """The event that a stored callback is."""
        return cls(
            id=callback.id,
            event_id=callback.event_id,
            session_id=callback.session_id,
            callback_seq=callback.callback_seq,
            type=callback.type,
            payload=callback.payload,
            attempts=callback.attempts,
            occurred_at=callback.occurred_at,
            exam_id=session.exam_id,
            participant_id=session.participant_id,
        )

    def body(self) -> dict[str, Any]:
        """The JSON object that Core receives: the common fields, then those of the type."""
        return {
            "type": self.type,
            "session_id": str(self.session_id),
            "exam_id": self.exam_id,
            "participant_id": self.participant_id,
            "occurred_at": self.occurred_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "callback_seq": self.callback_seq,
            **self.payload,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CallbackFilter:
    """Which events: those that fit all that is set. ``since`` is included, ``until`` is not.

    Of the types ``once`` only failed ones; see `CallbackRepository.replay`.
    """

    status: CallbackStatusEnum | None = None
    kind: str | None = None
    session_id: int | None = None
    exam_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    once: frozenset[str] = frozenset()

    def conditions(self) -> list[ColumnElement[bool]]:
        """What to ask of a statement on callbacks."""
        of_exam = select(PromptSession.id).where(PromptSession.exam_id == self.exam_id)
        conditions: list[ColumnElement[bool]] = [_replayable(self.once)] if self.once else []
        if self.status is not None:
            conditions.append(Callback.status == self.status)
        if self.kind is not None:
            conditions.append(Callback.type == self.kind)
        if self.session_id is not None:
            conditions.append(Callback.session_id == self.session_id)
        if self.exam_id is not None:
            conditions.append(Callback.session_id.in_(of_exam))
        if self.since is not None:
            conditions.append(Callback.occurred_at >= self.since)
        if self.until is not None:
            conditions.append(Callback.occurred_at < self.until)
        return conditions


_PENDING = CallbackStatusEnum.PENDING
_is_held = Callback.status == CallbackStatusEnum.HELD
_once_more = update(Callback).values(
    status=case((_is_held, Callback.status), else_=_PENDING),
    attempts=0,
    next_try_at=case((_is_held, null()), else_=func.now()),
    last_error=None,
    delivered_at=None,
)


def _replayable(once: Collection[str]) -> ColumnElement[bool]:
    return Callback.type.not_in(once) | (Callback.status == CallbackStatusEnum.FAILED)


class CallbackRepository:
    """Reads and writes callbacks within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def record(self, session_id: int, events: Sequence[NewCallback], *, held: bool) -> bool:
        """Store events in their order with the session's next ``callback_seq``; wake its lane unless they are held.

        ``False`` where there is no such session. The session's row stays locked until the transaction ends; so numbers
        are given in the order of commits and none is lost or skipped.
        """
        status = CallbackStatusEnum.HELD if held else CallbackStatusEnum.PENDING
        values = {
            "session_id": session_id,
            "count": len(events),
            "event_ids": [new_event_id() for _ in events],
            "types": [event.type for event in events],
            "payloads": [json.dumps(event.payload, ensure_ascii=False, separators=(",", ":")) for event in events],
            "status": status.value,
        }
        return bool(await self._db.run(_record, values))

    async def replay(self, event_id: str, *, once: Collection[str] = ()) -> Callback | None:
        """Send an event once more with all its tries, whatever became of it; keeps its id and its number.

        What is held stays so: it goes out as soon as there is somebody to send it to. Of the types ``once``, which Core
        takes a single time, only failed ones are sent; ``None`` for the others, as where there is no such event.
        """
        statement = _once_more.where(Callback.event_id == event_id, _replayable(once)).returning(Callback)
        callback = (await self._db.scalars(statement)).first()
        if callback is not None and callback.status is _PENDING:
            await self._wake([callback.session_id])
        return callback

    async def replay_all(self, which: CallbackFilter, *, after: int, up_to: int, limit: int = 500) -> list[Callback]:
        """Do what `replay` does to the first ``limit`` events behind the key ``after`` that the filter lets through."""
        chosen = select(Callback.id).where(Callback.id > after, Callback.id <= up_to, *which.conditions())
        # Locked in this order by everybody, before they are changed, so that two of us never wait for each other.
        locked = chosen.order_by(Callback.id).limit(limit).with_for_update(of=Callback)
        ids = list(await self._db.scalars(locked))
        replayed = list(await self._db.scalars(_once_more.where(Callback.id.in_(ids)).returning(Callback)))
        await self._wake({callback.session_id for callback in replayed if callback.status is _PENDING})
        return sorted(replayed, key=lambda callback: callback.id)

    async def last_key(self, which: CallbackFilter) -> int:
        """The largest key of those that the filter lets through; 0 where there is none."""
        return (await self._db.execute(select(func.max(Callback.id)).where(*which.conditions()))).scalar() or 0

    async def count(self, which: CallbackFilter) -> int:
        """How many events the filter lets through."""
        return (await self._db.execute(select(func.count(Callback.id)).where(*which.conditions()))).scalar_one()

    async def _wake(self, session_ids: Collection[int]) -> None:
        await self._db.run(_wake_lanes, {"session_ids": sorted(session_ids)})

    async def get(self, event_id: str) -> tuple[Callback, PromptSession] | None:
        """An event by its ``webhook-id``, with its session."""
        statement = (
            select(Callback, PromptSession)
            .join(PromptSession, PromptSession.id == Callback.session_id)
            .where(Callback.event_id == event_id)
        )
        row = (await self._db.execute(statement)).first()
        return None if row is None else (row[0], row[1])

    async def list_callbacks(
        self, which: CallbackFilter, *, after: int = 0, limit: int = 100
    ) -> list[tuple[Callback, PromptSession]]:
        """Events with a key above ``after`` that the filter lets through, oldest first."""
        statement = (
            select(Callback, PromptSession)
            .join(PromptSession, PromptSession.id == Callback.session_id)
            .where(Callback.id > after, *which.conditions())
            .order_by(Callback.id)
            .limit(limit)
        )
        return [(row[0], row[1]) for row in await self._db.execute(statement)]

    async def tries(self, callback: Callback) -> list[CallbackAttempt]:
        """Every try of an event, those before a replay too, in order."""
        statement = (
            select(CallbackAttempt).where(CallbackAttempt.callback_id == callback.id).order_by(CallbackAttempt.id)
        )
        return list(await self._db.scalars(statement))

    async def committed_events(
        self, *, after: tuple[int, int] = (0, 0), limit: int = 100
    ) -> list[tuple[Callback, PromptSession]]:
        """Events behind the place ``after`` (transaction, key), in an order in which none can appear in front later.

        An event is shown when no transaction older than its own is still open; so nothing is skipped, and what is
        recorded shows up a moment later than it is committed.
        """
        settled = text("callbacks.recorded_in < (pg_snapshot_xmin(pg_current_snapshot())::text)::bigint")
        statement = (
            select(Callback, PromptSession)
            .join(PromptSession, PromptSession.id == Callback.session_id)
            .where(tuple_(Callback.recorded_in, Callback.id) > after, settled)
            .order_by(Callback.recorded_in, Callback.id)
            .limit(limit)
        )
        return [(row[0], row[1]) for row in await self._db.execute(statement)]

    async def waiting(self) -> tuple[int, float, int]:
        """How many events wait for delivery, the age of the oldest in seconds, and how many ran out of tries."""
        pending, failed = (Callback.status == status for status in (_PENDING, CallbackStatusEnum.FAILED))
        oldest = func.min(Callback.occurred_at).filter(pending)
        statement = select(
            func.count().filter(pending),
            func.coalesce(func.extract("epoch", func.now() - oldest), 0.0),
            func.count().filter(failed),
        ).where(Callback.status != CallbackStatusEnum.DELIVERED)
        count, seconds, given_up = (await self._db.execute(statement)).one()
        return int(count), float(seconds), int(given_up)


async def replay_each(which: CallbackFilter) -> AsyncIterator[list[Callback]]:
    """`replay_all`, part by part, each in a transaction of its own; yields each part once it is committed.

    What is recorded, or comes to fit, after the beginning is left out; so it ends.
    """
    async with get_db_context() as db:
        last = await CallbackRepository(db).last_key(which)
    after = 0
    while after < last:
        async with get_db_context() as db:
            part = await CallbackRepository(db).replay_all(which, after=after, up_to=last)
        if not part:
            return
        yield part
        after = part[-1].id
