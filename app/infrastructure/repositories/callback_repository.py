"""Callbacks: recorded with what they tell of, delivered in order per session."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import case, func, null, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.ids import new_event_id
from app.infrastructure.persistence.models import Callback, CallbackStatusEnum, PromptSession

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
# Claims and results are committed without waiting for the disk (`set_config`, for this transaction alone). If the
# database crashes in that moment, a lane is free again or an event is sent once more, which both may happen anyway.
_claim = text(
    """
    WITH due AS (
        SELECT session_id FROM callback_lanes
        WHERE failing = :failing AND claimed_by IS NULL AND due_at <= now()
        ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
    ), me AS (
        -- Waits for whoever fences us just now: a lane claimed meanwhile would never be freed.
        SELECT id FROM workers WHERE id = :worker AND fenced_at IS NULL AND EXISTS (SELECT 1 FROM due) FOR SHARE
    )
    UPDATE callback_lanes AS lane SET claimed_by = me.id FROM due, me
    WHERE lane.session_id = due.session_id
    RETURNING lane.session_id, lane.wakes, set_config('synchronous_commit', 'off', true)
    """
)
_seconds_to_next = text(
    """
    SELECT extract(epoch FROM min(next.due_at) - now())
    FROM unnest(CAST(:kinds AS boolean[])) AS kind(failing), LATERAL (
        SELECT due_at FROM callback_lanes AS lane
        WHERE lane.failing = kind.failing AND lane.claimed_by IS NULL ORDER BY due_at LIMIT 1
    ) AS next
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
    FROM unnest(
        CAST(:ids AS bigint[]), CAST(:tries AS int[]), CAST(:statuses AS text[]), CAST(:errors AS text[]),
        CAST(:delays AS float8[])
    ) AS r(id, try, status, error, delay_s)
    WHERE c.id = r.id AND c.status = 'pending' AND (c.attempts = r.try - 1 OR r.status = 'delivered')
    RETURNING set_config('synchronous_commit', 'off', true)
    """
)
_remove_lane = text(
    """
    DELETE FROM callback_lanes
    WHERE session_id = :session_id AND claimed_by = :worker AND wakes = :wakes
      AND NOT EXISTS (SELECT 1 FROM callbacks WHERE session_id = :session_id AND status = 'pending')
    """
)
_release_lane = text(
    """
    UPDATE callback_lanes SET claimed_by = NULL, failing = :failing, due_at = now() + make_interval(secs => :delay_s)
    WHERE session_id = :session_id AND claimed_by = :worker
    """
)
_release_forgotten = text(
    """
    UPDATE callback_lanes SET claimed_by = NULL
    WHERE claimed_by = :worker AND session_id <> ALL(CAST(:session_ids AS bigint[]))
    """
)
_release_held = text(
    """
    WITH released AS (
        UPDATE callbacks SET status = 'pending', next_try_at = now() WHERE status = 'held' RETURNING session_id
    ), lanes AS (
        INSERT INTO callback_lanes (session_id) SELECT DISTINCT session_id FROM released
        ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1
    )
    SELECT count(*) FROM released
    """
)
_wake_lane = text(
    """
    INSERT INTO callback_lanes (session_id) VALUES (:session_id)
    ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1, due_at = now(), failing = false
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
    """A session whose events are ours to deliver for now.

    ``wakes`` and ``failing`` are as they were when it was claimed, under the id of ``worker``.
    """

    session_id: int
    wakes: int
    failing: bool
    worker: int


@dataclass(frozen=True, slots=True)
class TryResult:
    """What became of an event's try; ``number`` counts them from 1.

    ``delay_s`` is the wait before the next one, where ``status`` is pending.
    """

    callback_id: int
    number: int
    status: CallbackStatusEnum
    error: str | None = None
    delay_s: float = 0.0


_PENDING = CallbackStatusEnum.PENDING
_is_held = Callback.status == CallbackStatusEnum.HELD


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

    async def claim(self, worker: int, *, failing: bool, limit: int) -> list[ClaimedLane]:
        """Claim at most ``limit`` due lanes, longest due first; none twice, whoever else claims.

        Args:
            worker: under whose id; nothing is claimed for one that is fenced.
            failing: those whose last try failed, or else the others.
            limit: how many at most.
        """
        rows = await self._db.execute(_claim, {"worker": worker, "failing": failing, "limit": limit})
        return [ClaimedLane(row.session_id, row.wakes, failing, worker) for row in rows]

    async def seconds_to_next(self, kinds: Sequence[bool]) -> float | None:
        """Seconds until an unclaimed lane falls due, failing or not as ``kinds`` says; ``None`` where there is none.

        Negative where it is overdue.
        """
        value = (await self._db.scalars(_seconds_to_next, {"kinds": list(kinds)})).first()
        return None if value is None else float(value)

    async def next_events(self, lane: ClaimedLane, *, limit: int) -> list[CallbackEvent]:
        """The lane's next events in order; none where the claim is not the worker's any more."""
        values = {"session_id": lane.session_id, "worker": lane.worker, "limit": limit}
        return [CallbackEvent(**row._mapping) for row in await self._db.execute(_next_events, values)]

    async def report(self, results: Sequence[TryResult]) -> None:
        """Write down what became of some tries. Doing so twice changes nothing."""
        await self._db.execute(
            _report,
            {
                "ids": [result.callback_id for result in results],
                "tries": [result.number for result in results],
                "statuses": [result.status.value for result in results],
                "errors": [result.error for result in results],
                "delays": [result.delay_s for result in results],
            },
        )

    async def give_back(self, lane: ClaimedLane, *, failing: bool, delay_s: float = 0.0) -> None:
        """End a claim: the lane is removed if it is empty, and due again after ``delay_s`` if it is not.

        Nothing happens where the claim is not the worker's any more.
        """
        place = {"session_id": lane.session_id, "worker": lane.worker}
        removed: Any = await self._db.execute(_remove_lane, {**place, "wakes": lane.wakes})
        if not removed.rowcount:
            await self._db.execute(_release_lane, {**place, "failing": failing, "delay_s": delay_s})

    async def release_forgotten(self, worker: int, session_ids: Collection[int]) -> int:
        """End the worker's claims on all other sessions than these; returns how many."""
        result: Any = await self._db.execute(_release_forgotten, {"worker": worker, "session_ids": list(session_ids)})
        return int(result.rowcount)

    async def release_held(self) -> int:
        """Let go what was held while no receiver was set; returns how many events."""
        return int((await self._db.scalars(_release_held)).one())

    async def replay(self, event_id: str) -> Callback | None:
        """Send an event once more with all its tries, whatever became of it; keeps its id and its number.

        What is held stays so: it goes out as soon as there is somebody to send it to.
        """
        statement = (
            update(Callback)
            .where(Callback.event_id == event_id)
            .values(
                status=case((_is_held, Callback.status), else_=_PENDING),
                attempts=0,
                next_try_at=case((_is_held, null()), else_=func.now()),
                last_error=None,
                delivered_at=None,
            )
            .returning(Callback)
        )
        callback = (await self._db.scalars(statement)).first()
        if callback is not None and callback.status is _PENDING:
            await self._db.execute(_wake_lane, {"session_id": callback.session_id})
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
