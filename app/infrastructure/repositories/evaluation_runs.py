"""Runs, the judgements to be made: claimed by workers, tried again, and ended once."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.domain.conversation import Usage
from app.domain.waiting import Wait
from app.infrastructure.persistence.session import Transaction

# Committed without waiting for the disk: a claim that is lost in the database's crash leaves the run free, as it was.
_claim = """
    WITH appeal AS (
        SELECT id FROM evaluation_runs WHERE status = 'waiting' AND cause = 'appeal' AND owner IS NULL
          AND due_at <= now() AND (%(batch)s::text IS NULL OR batch = %(batch)s)
          AND coalesce(settings ->> 'model', '') <> ALL(%(without)s::text[])
          AND (%(only)s::text IS NULL OR settings ->> 'model' = %(only)s)
        ORDER BY due_at LIMIT %(room)s FOR UPDATE SKIP LOCKED
    ), fresh AS (
        SELECT id FROM evaluation_runs WHERE status = 'waiting' AND cause = 'turn' AND owner IS NULL
          AND due_at <= now() AND %(batch)s::text IS NULL
          AND coalesce(settings ->> 'model', '') <> ALL(%(without)s::text[])
          AND (%(only)s::text IS NULL OR settings ->> 'model' = %(only)s)
        ORDER BY due_at LIMIT %(room)s - (SELECT count(*) FROM appeal) FOR UPDATE SKIP LOCKED
    ), again AS (
        SELECT id FROM evaluation_runs WHERE status = 'waiting' AND cause = 'rerun' AND owner IS NULL
          AND due_at <= now() AND (%(batch)s::text IS NULL OR batch = %(batch)s)
          AND coalesce(settings ->> 'model', '') <> ALL(%(without)s::text[])
          AND (%(only)s::text IS NULL OR settings ->> 'model' = %(only)s)
        ORDER BY due_at LIMIT %(room)s - (SELECT count(*) FROM appeal) - (SELECT count(*) FROM fresh)
        FOR UPDATE SKIP LOCKED
    ), due AS (
        SELECT id FROM appeal UNION ALL SELECT id FROM fresh UNION ALL SELECT id FROM again
    ), me AS (
        -- Waits for whoever fences us just now: a run claimed meanwhile would never be freed.
        SELECT id FROM workers WHERE id = %(worker)s AND fenced_at IS NULL AND EXISTS (SELECT 1 FROM due) FOR SHARE
    )
    UPDATE evaluation_runs AS run SET owner = me.id FROM due, me WHERE run.id = due.id
    RETURNING run.id, run.session_id, run.turn, run.tries, run.created_at, run.wait,
              extract(epoch FROM now())::float8 AS claimed_at,
              set_config('synchronous_commit', 'off', true)
    """
_postpone = """
    UPDATE evaluation_runs
    SET owner = NULL, tries = tries + 1, due_at = now() + make_interval(secs => %(delay_s)s),
        wait = coalesce(%(wait)s::jsonb, wait)
    WHERE id = %(run_id)s AND owner = %(worker)s AND status = 'waiting'
    """
_release_forgotten = """
    UPDATE evaluation_runs SET owner = NULL
    WHERE status = 'waiting' AND turn IS NOT NULL AND owner = %(worker)s AND id <> ALL(%(run_ids)s::bigint[])
    RETURNING id
    """
# So that two owners (one of them fenced) number their calls apart. A statement of its own: one that waits for the lock
# would not see what was stored meanwhile.
_lock_run = "SELECT id FROM evaluation_runs WHERE id = %(run_id)s FOR UPDATE"
# An answer whose place is taken is one that we kept already, by a commit of which we did not hear, or another owner's.
_keep_call = """
    WITH run AS (
        SELECT id FROM evaluation_runs WHERE id = %(run_id)s AND status = 'waiting'
    ), call AS (
        SELECT %(run_id)s::bigint AS run_id, %(sample)s::int AS sample, %(input_hash)s::text AS input_hash,
               %(raw_answer)s::text AS raw_answer
    )
    INSERT INTO judge_calls (run_id, sample, attempt, input_hash, raw_answer, cached, model, parameters, error,
                             prompt_tokens, completion_tokens, cached_tokens, source, cost, currency, latency_ms)
    SELECT call.run_id, call.sample, 1 + coalesce(before.attempts, 0), call.input_hash, call.raw_answer,
           %(cached)s, %(model)s, %(parameters)s::jsonb, %(error)s,
           %(prompt_tokens)s, %(completion_tokens)s, %(cached_tokens)s, %(source)s, %(cost)s, %(currency)s,
           %(latency_ms)s
    FROM run, call, LATERAL (
        SELECT max(attempt) AS attempts,
               count(*) FILTER (WHERE known.input_hash = call.input_hash AND known.raw_answer <> '') AS answers
        FROM judge_calls AS known WHERE known.run_id = call.run_id AND known.sample = call.sample
    ) AS before
    WHERE call.raw_answer = '' OR before.answers <= %(place)s
    RETURNING id
    """
# Of this sample's own answers, which an interruption may have left, all count; of another run's those that led to one
# that could be read: the same way is gone again, call by call. Where none did, the judge is asked anew. Of several runs
# an earlier one of the same turn comes first: where two turns asked the same at once, each is judged again as it was.
_find_answers = """
    WITH known AS (
        SELECT call.id, call.run_id, call.raw_answer,
               call.run_id = %(run_id)s AND call.sample = %(sample)s AS ours,
               run.session_id = me.session_id AND run.turn IS NOT DISTINCT FROM me.turn AS same_turn
        FROM judge_calls AS call
        JOIN evaluation_runs AS run ON run.id = call.run_id
        JOIN evaluation_runs AS me ON me.id = %(run_id)s
        WHERE call.input_hash = %(input_hash)s AND call.raw_answer <> '' AND (
            call.parsed IS NOT NULL OR (call.run_id = %(run_id)s AND call.sample = %(sample)s) OR EXISTS (
                SELECT FROM judge_calls AS later WHERE later.run_id = call.run_id AND later.sample = call.sample
                  AND later.attempt > call.attempt AND later.parsed IS NOT NULL
            )
        )
    )
    SELECT raw_answer, ours FROM known
    WHERE ours OR run_id = (SELECT run_id FROM known WHERE NOT ours ORDER BY NOT same_turn, id LIMIT 1)
    ORDER BY NOT ours, id
    """
_note_reading = """
    UPDATE judge_calls AS call SET parsed = reading.parsed, error = reading.error
    FROM unnest(
        %(samples)s::int[], %(places)s::int[], %(parsed)s::jsonb[], %(errors)s::text[]
    ) AS reading(sample, place, parsed, error),
    LATERAL (
        SELECT id FROM judge_calls AS nth
        WHERE nth.run_id = %(run_id)s AND nth.sample = reading.sample AND nth.raw_answer <> ''
        ORDER BY attempt OFFSET reading.place LIMIT 1
    ) AS nth
    WHERE call.id = nth.id
    """
_end = """
    UPDATE evaluation_runs
    SET status = 'done', owner = NULL, ended_at = now(), result = %(result)s::jsonb
    WHERE id = %(run_id)s AND owner = %(worker)s AND status = 'waiting'
      AND EXISTS (SELECT 1 FROM workers WHERE workers.id = %(worker)s AND fenced_at IS NULL)
    RETURNING id
    """
_keep_scores = """
    INSERT INTO criterion_scores (run_id, sample, criterion, score, quote, quote_start, quote_end, reason, turn)
    SELECT %(run_id)s, mark.* FROM unnest(
        %(samples)s::int[], %(criteria)s::text[], %(scores)s::int[], %(quotes)s::text[],
        %(starts)s::int[], %(ends)s::int[], %(reasons)s::text[], %(turns)s::int[]
    ) AS mark
    """
# The ledger's rows of a run: each call that was not taken from an earlier one, and that used anything.
_to_ledger = """
    INSERT INTO provider_calls (session_id, turn, purpose, model, prompt_tokens, completion_tokens, cached_tokens,
                                reasoning_tokens, source, outcome)
    SELECT %(session_id)s, %(turn)s, 'evaluation', model, prompt_tokens, completion_tokens, cached_tokens, 0, source,
           CASE WHEN raw_answer <> '' OR source = 'provider' THEN 'completed'
                ELSE coalesce(left(error, 32), 'empty answer') END
    FROM judge_calls
    WHERE run_id = %(run_id)s AND NOT cached AND (raw_answer <> '' OR prompt_tokens + completion_tokens > 0)
    ORDER BY id
    RETURNING model, prompt_tokens, completion_tokens, cached_tokens, source
    """


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A judgement that is ours to make for now, under the id of ``worker``.

    ``turn`` is ``None`` where it judges a submission. ``wait`` is what the last try had to wait for; ``claimed_at`` is
    in seconds of the epoch, by the database's clock.
    """

    id: int
    session_id: int
    turn: int | None
    tries: int
    created_at: datetime
    worker: int
    claimed_at: float
    wait: Wait | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptCall:
    """A call of a judge as it is stored; see `JudgeCall`. ``place``: the same request was answered so often before."""

    run_id: int
    sample: int
    input_hash: str
    model: str
    parameters: dict[str, Any]
    place: int = 0
    raw_answer: str = ""
    error: str | None = None
    usage: Usage = field(default_factory=Usage)
    cost: float | None = None
    currency: str | None = None
    latency_ms: int = 0
    cached: bool = False


@dataclass(frozen=True, slots=True)
class KnownAnswers:
    """What judges have answered to one request: to this very sample before it was interrupted, and to another run."""

    ours: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read in the ``place``-th (0, 1 …) answer to a sample: ``parsed``, or why it could not be."""

    sample: int
    place: int
    parsed: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True, slots=True)
class KeptScore:
    """One criterion's mark by one sample, with its evidence; see `CriterionScore`.

    ``turn`` is where the quote stands, where the whole session was judged.
    """

    sample: int
    criterion: str
    score: int
    quote: str
    start: int
    end: int
    reason: str
    turn: int | None = None


class EvaluationRuns:
    """Claims runs, keeps what judges answered, and ends runs, within the transaction at hand.

    A transaction that ends a run locks the session's row before.
    """

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def claim(
        self,
        worker: int,
        *,
        room: int,
        batch: str | None = None,
        without: Collection[str] = (),
        only: str | None = None,
    ) -> list[ClaimedRun]:
        """Claim at most ``room`` due runs, appeals first and re-runs last; none twice, whoever else claims.

        With a ``batch`` only its runs; none of judges in ``without``, and where ``only`` is given just that judge's.
        Nothing is claimed for a worker that is fenced.
        """
        rows = await self._db.run(
            _claim, {"worker": worker, "room": room, "batch": batch, "without": list(without), "only": only}
        )
        return [
            ClaimedRun(
                row.id,
                row.session_id,
                row.turn,
                row.tries,
                row.created_at,
                worker,
                row.claimed_at,
                None if row.wait is None else Wait.from_json(row.wait),
            )
            for row in rows
        ]

    async def postpone(self, run: ClaimedRun, delay_s: float, wait: Wait | None = None) -> None:
        """End the claim; the run is due again after the delay. Does nothing where the claim is not ours any more.

        Where no ``wait`` is given it waits for what it waited for before.
        """
        said = None if wait is None else json.dumps(wait.to_json(), ensure_ascii=False)
        await self._db.run(_postpone, {"run_id": run.id, "worker": run.worker, "delay_s": delay_s, "wait": said})

    async def release_forgotten(self, worker: int, run_ids: Collection[int]) -> int:
        """End the worker's claims on all other runs than these; returns how many."""
        return len(await self._db.run(_release_forgotten, {"worker": worker, "run_ids": list(run_ids)}))

    async def known_answers(self, run: ClaimedRun, sample: int, input_hash: str) -> KnownAnswers:
        """What judges have answered to the very same request before, each in the order in which it was given."""
        rows = await self._db.run(_find_answers, {"run_id": run.id, "sample": sample, "input_hash": input_hash})
        return KnownAnswers(
            tuple(row.raw_answer for row in rows if row.ours), tuple(row.raw_answer for row in rows if not row.ours)
        )

    async def note_readings(self, run: ClaimedRun, readings: Sequence[Reading]) -> None:
        """Write beside the run's answers what was read in them."""
        await self._db.run(
            _note_reading,
            {
                "run_id": run.id,
                "samples": [reading.sample for reading in readings],
                "places": [reading.place for reading in readings],
                "parsed": [None if r.parsed is None else json.dumps(r.parsed, ensure_ascii=False) for r in readings],
                "errors": [reading.error for reading in readings],
            },
        )

    async def keep_call(self, call: KeptCall) -> bool:
        """Store a call. ``False`` where another worker has ended the run meanwhile, or the place has an answer."""
        await self._db.run(_lock_run, {"run_id": call.run_id})
        rows = await self._db.run(
            _keep_call,
            {
                "run_id": call.run_id,
                "sample": call.sample,
                "place": call.place,
                "input_hash": call.input_hash,
                "cached": call.cached,
                "model": call.model,
                "parameters": json.dumps(call.parameters, ensure_ascii=False),
                "raw_answer": call.raw_answer,
                "error": call.error,
                "prompt_tokens": call.usage.prompt_tokens,
                "completion_tokens": call.usage.completion_tokens,
                "cached_tokens": call.usage.cached_tokens,
                "source": call.usage.source,
                "cost": call.cost,
                "currency": call.currency,
                "latency_ms": call.latency_ms,
            },
        )
        return bool(rows)

    async def end(self, run: ClaimedRun, result: dict[str, Any], scores: Sequence[KeptScore]) -> bool:
        """Write what came of a run. ``False`` where it is not the worker's to end any more; give up the transaction."""
        values = {"run_id": run.id, "worker": run.worker, "result": json.dumps(result, ensure_ascii=False)}
        if not await self._db.run(_end, values):
            return False
        if scores:
            await self._db.run(
                _keep_scores,
                {
                    "run_id": run.id,
                    "samples": [score.sample for score in scores],
                    "criteria": [score.criterion for score in scores],
                    "scores": [score.score for score in scores],
                    "quotes": [score.quote for score in scores],
                    "starts": [score.start for score in scores],
                    "ends": [score.end for score in scores],
                    "reasons": [score.reason for score in scores],
                    "turns": [score.turn for score in scores],
                },
            )
        return True

    async def to_ledger(self, run: ClaimedRun) -> list[tuple[str, Usage]]:
        """Write the run's calls into the ledger of provider calls; returns each one's model and usage."""
        values = {"run_id": run.id, "session_id": run.session_id, "turn": run.turn}
        return [
            (
                row.model,
                Usage(
                    row.prompt_tokens,
                    row.completion_tokens,
                    row.cached_tokens,
                    0,
                    "provider" if row.source == "provider" else "counted",
                ),
            )
            for row in await self._db.run(_to_ledger, values)
        ]
