"""Lanes: a session's callbacks are claimed together, sent in order, and what became of them is written down."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.callback_repository import CallbackEvent

# Claims and results are committed without waiting for the disk (`set_config`, for this transaction alone). If the
# database crashes in that moment, a lane is free again or an event is sent once more, which both may happen anyway.
_claim = """
    WITH fresh AS (
        SELECT session_id FROM callback_lanes WHERE NOT failing AND claimed_by IS NULL AND due_at <= now()
        ORDER BY due_at LIMIT %(fresh)s FOR UPDATE SKIP LOCKED
    ), again AS (
        SELECT session_id FROM callback_lanes WHERE failing AND claimed_by IS NULL AND due_at <= now()
        ORDER BY due_at LIMIT least(%(failing)s, %(all)s - (SELECT count(*) FROM fresh)) FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT session_id FROM fresh UNION ALL SELECT session_id FROM again
    ), me AS (
        -- Waits for whoever fences us just now: a lane claimed meanwhile would never be freed.
        SELECT id FROM workers WHERE id = %(worker)s AND fenced_at IS NULL AND EXISTS (SELECT 1 FROM due) FOR SHARE
    ), claimed AS (
        UPDATE callback_lanes AS lane SET claimed_by = me.id FROM due, me WHERE lane.session_id = due.session_id
        RETURNING lane.session_id, lane.wakes, lane.failing, set_config('synchronous_commit', 'off', true)
    ), next AS (
        -- Of a kind of which more is due than there is room for, the next one is claimed when a lane ends.
        SELECT min(next.due_at) AS due_at FROM (VALUES
            (false, (SELECT count(*) FROM fresh) < %(fresh)s), (true, (SELECT count(*) FROM again) < %(failing)s)
        ) AS kind(failing, exhausted), LATERAL (
            SELECT due_at FROM callback_lanes AS lane
            WHERE kind.exhausted AND lane.failing = kind.failing AND lane.claimed_by IS NULL
              AND lane.session_id NOT IN (SELECT session_id FROM due)
            ORDER BY due_at LIMIT 1
        ) AS next
    )
    SELECT extract(epoch FROM next.due_at - now()) AS due_in, claimed.session_id, claimed.wakes, claimed.failing
    FROM next LEFT JOIN claimed ON true
    """
_next_events = """
    SELECT event.id, event.event_id, event.session_id, event.callback_seq, event.type, event.payload, event.attempts,
           event.occurred_at, session.exam_id, session.participant_id
    FROM prompt_sessions AS session, LATERAL (
        SELECT * FROM callbacks AS event WHERE event.session_id = session.id AND event.status = 'pending'
        ORDER BY event.callback_seq LIMIT %(limit)s
    ) AS event
    WHERE session.id = ANY(%(session_ids)s::bigint[])
    ORDER BY event.session_id, event.callback_seq
    """
# What is `told` here is not seen by the rest of the statement, so it is subtracted from what is pending.
_write_down = """
    WITH told AS (
        UPDATE callbacks AS event
        SET status = try.status, attempts = event.attempts + 1, last_error = try.error,
            next_try_at = CASE WHEN try.status = 'pending' THEN now() + make_interval(secs => try.delay_s) END,
            delivered_at = CASE WHEN try.status = 'delivered' THEN now() END
        FROM unnest(
            %(ids)s::bigint[], %(numbers)s::int[], %(statuses)s::text[], %(errors)s::text[],
            %(delays)s::float8[]
        ) AS try(id, number, status, error, delay_s)
        WHERE event.id = try.id
          AND (event.status = 'pending' OR event.status = 'failed' AND try.status = 'delivered')
          AND (event.attempts = try.number - 1 OR try.status = 'delivered')
        RETURNING event.id, event.status
    ), kept AS (
        INSERT INTO callback_attempts (callback_id, number, tried_at, duration_ms, answered, error, body_start)
        SELECT try.id, try.number, try.tried_at, try.duration_ms, try.answered, try.error, try.body_start
        FROM unnest(
            %(ids)s::bigint[], %(numbers)s::int[], %(moments)s::timestamptz[], %(durations)s::int[],
            %(answers)s::int[], %(errors)s::text[], %(bodies)s::text[]
        ) AS try(id, number, tried_at, duration_ms, answered, error, body_start)
        JOIN told ON told.id = try.id
    ), removed AS (
        DELETE FROM callback_lanes
        WHERE session_id = %(session_id)s AND claimed_by = %(worker)s AND wakes = %(wakes)s AND NOT EXISTS (
            SELECT 1 FROM callbacks WHERE session_id = %(session_id)s AND status = 'pending'
              AND id NOT IN (SELECT id FROM told WHERE status <> 'pending')
        )
        RETURNING session_id
    )
    SELECT (SELECT count(*) FROM told), (SELECT count(*) FROM removed) AS removed,
           set_config('synchronous_commit', 'off', true)
    """
# The mark outlives a crash, so this one is committed to the disk. Every outcome that is written down removes it.
_begin_only_try = """
    UPDATE callbacks SET last_error = 'being sent'
    WHERE id = %(id)s AND status = 'pending' AND last_error IS DISTINCT FROM 'being sent'
    RETURNING id
    """
_release_lane = """
    UPDATE callback_lanes
    SET claimed_by = NULL, failing = coalesce(%(failing)s::boolean, failing),
        due_at = now() + make_interval(secs => %(delay_s)s)
    WHERE session_id = %(session_id)s AND claimed_by = %(worker)s
    """
_release_forgotten = """
    UPDATE callback_lanes SET claimed_by = NULL
    WHERE claimed_by = %(worker)s AND session_id <> ALL(%(session_ids)s::bigint[])
    RETURNING session_id
    """
_release_held = """
    WITH released AS (
        UPDATE callbacks SET status = 'pending', next_try_at = now() WHERE status = 'held' RETURNING session_id
    ), lanes AS (
        INSERT INTO callback_lanes (session_id) SELECT DISTINCT session_id FROM released
        ON CONFLICT (session_id) DO UPDATE SET wakes = callback_lanes.wakes + 1
    )
    SELECT count(*) AS events FROM released
    """


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

    ``delay_s`` is the wait before the next one, where ``status`` is pending. ``answered`` is the HTTP status, if there
    was one, and ``body_start`` the first characters of what came with it.
    """

    callback_id: int
    number: int
    status: CallbackStatusEnum
    error: str | None = None
    delay_s: float = 0.0
    tried_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    duration_ms: int = 0
    answered: int | None = None
    body_start: str | None = None


class CallbackLanes:
    """Claims lanes, and ends claims, within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def claim(
        self, worker: int, *, fresh: int, failing: int, room: int
    ) -> tuple[list[ClaimedLane], float | None]:
        """Claim due lanes, longest due first; none twice, whoever else claims.

        Args:
            worker: under whose id; nothing is claimed for one that is fenced.
            fresh: at most so many of those whose last try did not fail.
            failing: at most so many of the others.
            room: at most so many in all.

        Returns:
            The lanes, and the seconds until the next one falls due of a kind that there was room for (negative where it
            is overdue); ``None`` where there is none.
        """
        limits = {"fresh": min(fresh, room), "failing": failing, "all": room}
        rows = await self._db.run(_claim, {"worker": worker, **limits})
        lanes = [ClaimedLane(row.session_id, row.wakes, row.failing, worker) for row in rows if row.session_id]
        return lanes, None if rows[0].due_in is None else float(rows[0].due_in)

    async def next_events(self, lanes: Sequence[ClaimedLane], *, limit: int) -> dict[int, list[CallbackEvent]]:
        """The next events of each lane by its session, in order, at most ``limit`` of each."""
        events: dict[int, list[CallbackEvent]] = {lane.session_id: [] for lane in lanes}
        for row in await self._db.run(_next_events, {"session_ids": list(events), "limit": limit}):
            events[row.session_id].append(CallbackEvent(*row))
        return events

    async def begin_only_try(self, callback_id: int) -> bool:
        """Mark an event as being sent; ``False`` where it is marked, by somebody who never wrote the outcome."""
        return bool(await self._db.run(_begin_only_try, {"id": callback_id}))

    async def write_down(self, lane: ClaimedLane, results: Sequence[TryResult]) -> None:
        """Note what became of a lane's tries, and end the claim.

        That Core took an event counts, whatever others have written of it meanwhile.

        The lane is removed if nothing is pending in it any more, and else due again when its last try says so. Doing so
        twice changes nothing, and where the claim is not the worker's any more, the lane is left alone.
        """
        place = {"session_id": lane.session_id, "worker": lane.worker}
        [row] = await self._db.run(
            _write_down,
            {
                **place,
                "wakes": lane.wakes,
                "ids": [result.callback_id for result in results],
                "numbers": [result.number for result in results],
                "statuses": [result.status.value for result in results],
                "errors": [result.error for result in results],
                "delays": [result.delay_s for result in results],
                "moments": [result.tried_at for result in results],
                "durations": [result.duration_ms for result in results],
                "answers": [result.answered for result in results],
                "bodies": [result.body_start for result in results],
            },
        )
        if not row.removed:
            waits = bool(results) and results[-1].status is CallbackStatusEnum.PENDING
            delay_s = results[-1].delay_s if waits else 0.0
            failing = waits if results else None
            await self._db.run(_release_lane, {**place, "failing": failing, "delay_s": delay_s})

    async def release_forgotten(self, worker: int, session_ids: Collection[int]) -> int:
        """End the worker's claims on all other sessions than these; returns how many."""
        return len(await self._db.run(_release_forgotten, {"worker": worker, "session_ids": list(session_ids)}))

    async def release_held(self) -> int:
        """Let go what was held while no receiver was set; returns how many events."""
        [released] = await self._db.run(_release_held, {})
        return int(released.events)
