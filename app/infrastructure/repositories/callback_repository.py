"""Callbacks: recorded with what they tell of, delivered in order per session."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.ids import new_event_id
from app.infrastructure.persistence.models import Callback, CallbackLane, CallbackStatusEnum, PromptSession

_record = text(
    """
    WITH numbered AS (
        UPDATE prompt_sessions SET callback_seq = callback_seq + 1 WHERE id = :session_id RETURNING callback_seq
    ), event AS (
        INSERT INTO callbacks (event_id, session_id, callback_seq, type, payload, status, next_try_at)
        SELECT :event_id, :session_id, callback_seq, :type, CAST(:payload AS jsonb), CAST(:status AS text),
               CASE WHEN CAST(:status AS text) = 'pending' THEN now() END
        FROM numbered
        RETURNING id, status
    ), lane AS (
        INSERT INTO callback_lanes (session_id)
        SELECT :session_id FROM event WHERE status = 'pending'
        ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1
    )
    SELECT id FROM event
    """
)
_claim = text(
    """
    WITH due AS (
        SELECT session_id FROM callback_lanes
        WHERE claimed_by IS NULL AND due_at <= now()
        ORDER BY due_at LIMIT :lanes FOR UPDATE SKIP LOCKED
    )
    UPDATE callback_lanes AS lane SET claimed_by = :worker FROM due
    WHERE lane.session_id = due.session_id
      AND EXISTS (SELECT 1 FROM workers WHERE id = :worker AND fenced_at IS NULL)
    RETURNING lane.session_id, lane.wakes
    """
)
_next_events = text(
    """
    SELECT e.id, e.event_id, e.session_id, e.callback_seq, e.type, e.payload, e.attempts, e.occurred_at,
           s.exam_id, s.participant_id
    FROM callback_lanes AS lane
    JOIN prompt_sessions AS s ON s.id = lane.session_id
    JOIN callbacks AS e ON e.session_id = lane.session_id AND e.status = 'pending'
    WHERE lane.session_id = :session_id AND lane.claimed_by = :worker
    ORDER BY e.callback_seq LIMIT :limit
    """
)
_report = text(
    """
    UPDATE callbacks AS c
    SET status = r.status, attempts = c.attempts + 1, last_error = r.error,
        next_try_at = CASE WHEN r.status = 'pending' THEN now() + make_interval(secs => r.delay_s) END,
        delivered_at = CASE WHEN r.status = 'delivered' THEN now() END
    FROM unnest(CAST(:ids AS bigint[]), CAST(:statuses AS text[]), CAST(:errors AS text[]), CAST(:delays AS float8[]))
         AS r(id, status, error, delay_s)
    WHERE c.id = r.id AND c.status = 'pending'
    """
)
_remove_lane = text(
    "DELETE FROM callback_lanes WHERE session_id = :session_id AND claimed_by = :worker AND wakes = :wakes"
)
_release_lane = text(
    """
    UPDATE callback_lanes SET claimed_by = NULL, due_at = now() + make_interval(secs => :delay_s)
    WHERE session_id = :session_id AND claimed_by = :worker
    """
)
_wake_lanes = text(
    """
    INSERT INTO callback_lanes (session_id)
    SELECT DISTINCT session_id FROM callbacks WHERE id = ANY(CAST(:ids AS bigint[])) AND status = 'pending'
    ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1, due_at = now()
    """
)


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


@dataclass(frozen=True, slots=True)
class ClaimedLane:
    """A session whose events are ours to deliver for now; ``wakes`` as it was when claimed."""

    session_id: int
    wakes: int


@dataclass(frozen=True, slots=True)
class TryResult:
    """What became of one try. ``delay_s`` is the wait before the next one, where ``status`` is pending."""

    callback_id: int
    status: CallbackStatusEnum
    error: str | None = None
    delay_s: float = 0.0


class CallbackRepository:
    """Reads and writes callbacks within the transaction at hand."""

    def __init__(self, db: AsyncSession) -> None:
        self._db = db

    async def record(self, session_id: int, kind: str, payload: dict[str, Any], *, held: bool) -> int | None:
        """Store one event with the session's next ``callback_seq``, and wake its lane unless it is held.

        Returns the event's key, or ``None`` where there is no such session. The session's row stays locked until the
        transaction ends; so numbers are given in the order of commits and none is lost or skipped.
        """
        status = CallbackStatusEnum.HELD if held else CallbackStatusEnum.PENDING
        values = {
            "session_id": session_id,
            "event_id": new_event_id(),
            "type": kind,
            "payload": json.dumps(payload, ensure_ascii=False, separators=(",", ":")),
            "status": status.value,
        }
        return (await self._db.scalars(_record, values)).first()

    async def claim(self, worker: int, *, lanes: int) -> list[ClaimedLane]:
        """Claim at most ``lanes`` sessions that have something due; none twice, whoever else claims."""
        rows = await self._db.execute(_claim, {"worker": worker, "lanes": lanes})
        return [ClaimedLane(row.session_id, row.wakes) for row in rows]

    async def wakes(self, session_id: int, worker: int) -> int | None:
        """How often the lane has been woken; ``None`` where the claim is not the worker's any more."""
        statement = select(CallbackLane.wakes).where(
            CallbackLane.session_id == session_id, CallbackLane.claimed_by == worker
        )
        return (await self._db.scalars(statement)).first()

    async def next_events(self, session_id: int, worker: int, *, limit: int) -> list[CallbackEvent]:
        """The session's next events in order; none where the claim is not the worker's any more."""
        rows = await self._db.execute(_next_events, {"session_id": session_id, "worker": worker, "limit": limit})
        return [CallbackEvent(**row._mapping) for row in rows]

    async def report(self, results: Sequence[TryResult]) -> None:
        """Write down what became of some tries."""
        await self._db.execute(
            _report,
            {
                "ids": [result.callback_id for result in results],
                "statuses": [result.status.value for result in results],
                "errors": [result.error for result in results],
                "delays": [result.delay_s for result in results],
            },
        )

    async def remove_lane(self, lane: ClaimedLane, worker: int) -> bool:
        """Remove a lane that is empty; ``False`` when it has been woken since it was claimed."""
        result: Any = await self._db.execute(
            _remove_lane, {"session_id": lane.session_id, "worker": worker, "wakes": lane.wakes}
        )
        return bool(result.rowcount)

    async def release_lane(self, session_id: int, worker: int, *, delay_s: float) -> None:
        """Give a lane back, due again after ``delay_s``."""
        await self._db.execute(_release_lane, {"session_id": session_id, "worker": worker, "delay_s": delay_s})

    async def seconds_to_next(self) -> float | None:
        """Seconds until an unclaimed lane falls due (negative: it is overdue); ``None`` where nothing waits."""
        wait = func.extract("epoch", func.min(CallbackLane.due_at) - func.now())
        value = (await self._db.scalars(select(wait).where(CallbackLane.claimed_by.is_(None)))).first()
        return None if value is None else float(value)

    async def release_held(self) -> int:
        """Let go what was held while no receiver was set; returns how many events."""
        statement = (
            update(Callback)
            .where(Callback.status == CallbackStatusEnum.HELD)
            .values(status=CallbackStatusEnum.PENDING, next_try_at=func.now())
            .returning(Callback.id)
            .execution_options(synchronize_session=False)
        )
        ids = (await self._db.scalars(statement)).all()
        if ids:
            await self._db.execute(_wake_lanes, {"ids": list(ids)})
        return len(ids)

    async def replay(self, event_id: str) -> Callback | None:
        """Send an event once more with all its tries, whatever became of it; keeps its id and its number."""
        statement = (
            update(Callback)
            .where(Callback.event_id == event_id)
            .values(status=CallbackStatusEnum.PENDING, attempts=0, next_try_at=func.now(), last_error=None)
            .returning(Callback)
        )
        callback = (await self._db.scalars(statement)).first()
        if callback is not None:
            await self._db.execute(_wake_lanes, {"ids": [callback.id]})
        return callback

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
        self,
        *,
        status: CallbackStatusEnum | None = None,
        kind: str | None = None,
        session_id: int | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[tuple[Callback, PromptSession]]:
        """Events with a key above ``after``, oldest first; each filter may be left out."""
        statement = (
            select(Callback, PromptSession)
            .join(PromptSession, PromptSession.id == Callback.session_id)
            .where(Callback.id > after)
            .order_by(Callback.id)
            .limit(limit)
        )
        if status is not None:
            statement = statement.where(Callback.status == status)
        if kind is not None:
            statement = statement.where(Callback.type == kind)
        if session_id is not None:
            statement = statement.where(Callback.session_id == session_id)
        return [(row[0], row[1]) for row in await self._db.execute(statement)]

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

    async def waiting(self) -> tuple[int, float]:
        """How many events wait for delivery, and the age of the oldest in seconds."""
        age = func.coalesce(func.extract("epoch", func.now() - func.min(Callback.occurred_at)), 0.0)
        statement = select(func.count(), age).where(Callback.status == CallbackStatusEnum.PENDING)
        count, seconds = (await self._db.execute(statement)).one()
        return int(count), float(seconds)
