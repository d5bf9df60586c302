"""Evaluations of submissions, to be made: claimed by workers, kept step by step, put off, and ended once."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.domain.submission import Node, Outcome, Progress, SubmissionId, SubmissionNews
from app.domain.waiting import Wait
from app.infrastructure.persistence.bell import SUBMISSIONS
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.evaluation_repository import RunBasis
from app.infrastructure.repositories.evaluation_runs import ClaimedRun

# As with runs: a claim that is lost in the database's crash leaves the evaluation free, as it was.
_claim = """
    WITH due AS (
        SELECT id FROM submission_evaluations WHERE status = 'waiting' AND owner IS NULL AND due_at <= now()
        ORDER BY cause <> 'submission', due_at LIMIT %(room)s FOR UPDATE SKIP LOCKED
    ), me AS (
        -- Waits for whoever fences us just now: what is claimed meanwhile would never be freed.
        SELECT id FROM workers WHERE id = %(worker)s AND fenced_at IS NULL AND EXISTS (SELECT 1 FROM due) FOR SHARE
    ), claimed AS (
        UPDATE submission_evaluations AS evaluation SET owner = me.id FROM due, me WHERE evaluation.id = due.id
        RETURNING evaluation.*
    )
    SELECT claimed.id, claimed.submission_id, claimed.revision, claimed.cause, claimed.tries, claimed.basis,
           claimed.waits, extract(epoch FROM now())::float8 AS claimed_at,
           submission.session_id, submission.client_id, submission.client_id_is_int, submission.progress,
           session.exam_id, session.participant_id, session.spec_id,
           set_config('synchronous_commit', 'off', true)
    FROM claimed JOIN submissions AS submission ON submission.id = claimed.submission_id
    JOIN prompt_sessions AS session ON session.id = submission.session_id
    ORDER BY claimed.id
    """
_postpone = """
    UPDATE submission_evaluations
    SET owner = NULL, tries = tries + 1, due_at = now() + make_interval(secs => %(delay_s)s),
        waits = coalesce(%(waits)s::jsonb, waits)
    WHERE id = %(evaluation_id)s AND owner = %(worker)s AND status = 'waiting'
    """
_release_forgotten = """
    UPDATE submission_evaluations SET owner = NULL
    WHERE status = 'waiting' AND owner = %(worker)s AND id <> ALL(%(evaluation_ids)s::bigint[])
    RETURNING id
    """
_steps = "SELECT node, outcome FROM evaluation_steps WHERE evaluation_id = %(evaluation_id)s"
# Whoever fences the worker waits until what is kept is committed; so whoever takes over sees it.
_keep_step = """
    WITH mine AS MATERIALIZED (
        SELECT evaluation.id FROM submission_evaluations AS evaluation JOIN workers ON workers.id = evaluation.owner
        WHERE evaluation.id = %(evaluation_id)s AND evaluation.owner = %(worker)s AND evaluation.status = 'waiting'
          AND workers.fenced_at IS NULL
        FOR SHARE OF workers
    )
    INSERT INTO evaluation_steps (evaluation_id, node, status, outcome, worker, started_at)
    SELECT mine.id, %(node)s, %(status)s, %(outcome)s::jsonb, %(worker)s, %(started_at)s FROM mine
    ON CONFLICT DO NOTHING
    RETURNING node
    """
_begin = """
    UPDATE submissions SET status = 'RUNNING' WHERE id = %(submission_id)s AND status = 'QUEUED' RETURNING id
    """
_note_progress = """
    WITH told AS (
        UPDATE submissions SET progress = %(progress)s::jsonb
        WHERE id = %(submission_id)s AND status = 'RUNNING' AND EXISTS (
            SELECT 1 FROM submission_evaluations
            WHERE id = %(evaluation_id)s AND owner = %(worker)s AND status = 'waiting'
        )
        RETURNING id
    )
    SELECT pg_notify(%(channel)s, %(news)s) FROM told
    """
_tell = "SELECT pg_notify(%(channel)s, %(news)s)"
_end = """
    UPDATE submission_evaluations
    SET status = %(status)s::text, published = %(published)s, owner = NULL, waits = '{}',
        result = coalesce(%(result)s::jsonb, result),
        ended_at = CASE WHEN %(status)s::text = 'done' THEN now() END
    WHERE id = %(evaluation_id)s AND owner = %(worker)s AND status = 'waiting'
      AND EXISTS (SELECT 1 FROM workers WHERE workers.id = %(worker)s AND fenced_at IS NULL)
    RETURNING id
    """
_end_submission = """
    UPDATE submissions SET status = %(status)s::text, progress = %(progress)s::jsonb,
        ended_at = CASE WHEN %(status)s::text IN ('DONE', 'FAILED') THEN coalesce(ended_at, now()) END
    WHERE id = %(submission_id)s AND status <> 'DONE' AND (
        %(status)s::text <> 'FAILED' OR NOT EXISTS (
            SELECT 1 FROM submission_evaluations WHERE submission_id = %(submission_id)s AND status <> 'done'
        )
    )
    RETURNING id
    """
_told_before = """
    SELECT max(revision) AS revision FROM submission_evaluations
    WHERE submission_id = %(submission_id)s AND published AND id <> %(evaluation_id)s
    """
_keep_scores = """
    INSERT INTO scores (evaluation_id, submission_id, revision, status, prompt_score, correctness_score,
                        performance_score, total_score, grade, components, policy_hash)
    VALUES (%(evaluation_id)s, %(submission_id)s, %(revision)s, %(status)s, %(prompt_score)s, %(correctness_score)s,
            %(performance_score)s, %(total_score)s, %(grade)s, %(components)s::jsonb, %(policy_hash)s)
    """
# The run goes along with the evaluation: who has taken that over owns this too. What it is made by stays as it was.
_open_run = """
    INSERT INTO evaluation_runs (session_id, evaluation_id, revision, status, cause, owner, rubric_hash, prompt_hash,
                                 policy_hash, settings)
    SELECT %(session_id)s, mine.id, %(revision)s, 'waiting', %(cause)s, mine.owner, %(rubric)s, %(prompt)s, %(policy)s,
           %(settings)s::jsonb
    FROM submission_evaluations AS mine
    WHERE mine.id = %(evaluation_id)s AND mine.owner = %(worker)s AND mine.status = 'waiting'
    ON CONFLICT (evaluation_id, cause) DO UPDATE SET owner = EXCLUDED.owner WHERE evaluation_runs.status = 'waiting'
    RETURNING id, tries, created_at, extract(epoch FROM now())::float8 AS claimed_at
    """
_run_key = "SELECT id FROM evaluation_runs WHERE evaluation_id = %(evaluation_id)s AND cause = %(cause)s"
_keep_case_runs = """
    INSERT INTO submission_runs (evaluation_id, program, repetition, case_index, case_name, case_group, weight, verdict,
                                 cause, cpu_ms, wall_ms, memory_kb, stdout_bytes, stderr_bytes, exit_code, signal,
                                 isolation)
    SELECT %(evaluation_id)s, run.* FROM jsonb_to_recordset(%(runs)s::jsonb) AS run(
        program text, repetition int, case_index int, case_name text, case_group text, weight numeric, verdict text,
        cause text, cpu_ms numeric, wall_ms numeric, memory_kb bigint, stdout_bytes bigint, stderr_bytes bigint,
        exit_code int, signal int, isolation text
    )
    """


class EvaluationNotOursError(Exception):
    """The evaluation was ended already, or belongs to another worker by now. Nothing was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedEvaluation:
    """An evaluation that is ours to make for now, under the id of ``worker``, with whose it is.

    ``basis`` is what it is to be made by in the place of the exam's settings; ``waits`` what its nodes had to wait for
    when it was last tried; ``progress`` how far the submission has come; ``claimed_at`` is in seconds of the epoch, by
    the database's clock.
    """

    id: int
    submission_id: int
    client_id: SubmissionId
    session_id: int
    exam_id: int
    participant_id: int
    spec_id: int | None
    revision: int
    cause: str
    basis: Mapping[str, Any]
    tries: int
    waits: Mapping[Node, Wait]
    progress: Progress
    claimed_at: float
    worker: int

    @property
    def is_first(self) -> bool:
        """Whether the candidate waits for it."""
        return self.cause == "submission"

    def news(self, status: str, progress: Progress) -> SubmissionNews:
        """What those who follow the session are told."""
        return SubmissionNews(self.session_id, self.client_id, status, progress)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRun:
    """One run of one test case; see `SubmissionRun`."""

    program: str
    repetition: int
    case_index: int
    case_name: str
    case_group: str
    weight: float
    verdict: str
    cause: str
    cpu_ms: float | None
    wall_ms: float | None
    memory_kb: int | None
    stdout_bytes: int | None
    stderr_bytes: int | None
    exit_code: int | None
    signal: int | None
    isolation: str

    def to_json(self) -> dict[str, Any]:
        """As the statement reads it."""
        return {name: getattr(self, name) for name in self.__slots__}


class SubmissionClaims:
    """Claims evaluations, keeps what came of their nodes, and ends them, within the transaction at hand.

    A transaction that ends one, or records anything of its session, locks the session's row before.
    """

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def claim(self, worker: int, *, room: int) -> list[ClaimedEvaluation]:
        """Claim at most ``room`` due evaluations, candidates' first; none twice, whoever else claims.

        Nothing is claimed for a worker that is fenced.
        """
        return [
            ClaimedEvaluation(
                id=row.id,
                submission_id=row.submission_id,
                client_id=int(row.client_id) if row.client_id_is_int else row.client_id,
                session_id=row.session_id,
                exam_id=row.exam_id,
                participant_id=row.participant_id,
                spec_id=row.spec_id,
                revision=row.revision,
                cause=row.cause,
                basis=row.basis,
                tries=row.tries,
                waits={Node(node): Wait.from_json(wait) for node, wait in row.waits.items()},
                progress=Progress.from_json(row.progress),
                claimed_at=row.claimed_at,
                worker=worker,
            )
            for row in await self._db.run(_claim, {"worker": worker, "room": room})
        ]

    async def postpone(
        self, evaluation: ClaimedEvaluation, delay_s: float, waits: Mapping[Node, Wait] | None = None
    ) -> None:
        """End the claim; it is due again after the delay. Does nothing where the claim is not ours any more.

        Where no ``waits`` are given it waits for what it waited for before.
        """
        said = None if waits is None else _json({node.value: wait.to_json() for node, wait in waits.items()})
        await self._db.run(_postpone, {**_key(evaluation), "delay_s": delay_s, "waits": said})

    async def release_forgotten(self, worker: int, evaluation_ids: Collection[int]) -> int:
        """End the worker's claims on all other evaluations than these; returns how many."""
        values = {"worker": worker, "evaluation_ids": list(evaluation_ids)}
        return len(await self._db.run(_release_forgotten, values))

    async def steps(self, evaluation_id: int) -> dict[Node, Outcome]:
        """What has come of the nodes that are done."""
        rows = await self._db.run(_steps, {"evaluation_id": evaluation_id})
        return {Node(row.node): Outcome.from_json(row.outcome) for row in rows}

    async def keep_step(
        self, evaluation: ClaimedEvaluation, node: Node, outcome: Outcome, started_at: datetime
    ) -> bool:
        """Store what came of a node, once. ``False`` where there is such a row, or the evaluation is not ours."""
        values = {"node": node.value, "status": outcome.status, "outcome": _json(outcome.to_json())}
        return bool(await self._db.run(_keep_step, {**_key(evaluation), **values, "started_at": started_at}))

    async def begin(self, evaluation: ClaimedEvaluation) -> bool:
        """The submission is being evaluated; ``False`` where it was before."""
        return bool(await self._db.run(_begin, {"submission_id": evaluation.submission_id}))

    async def note_progress(self, evaluation: ClaimedEvaluation, progress: Progress) -> None:
        """Write down how far it is, and tell those who follow the session, in whatever process they are."""
        news = evaluation.news("RUNNING", progress)
        values = {
            "submission_id": evaluation.submission_id,
            "progress": json.dumps(progress.to_json()),
            "channel": SUBMISSIONS,
            "news": _json(news.to_json()),
        }
        await self._db.run(_note_progress, {**_key(evaluation), **values})

    async def tell(self, news: SubmissionNews) -> None:
        """Tell those who follow the session, with the commit."""
        await self._db.run(_tell, {"channel": SUBMISSIONS, "news": _json(news.to_json())})

    async def end(self, evaluation: ClaimedEvaluation, result: Mapping[str, Any] | None, *, held: bool = False) -> None:
        """Write what came of it all; ``held``: it is not to be known yet.

        Raises:
            EvaluationNotOursError: see there; give up the transaction.
        """
        values = {
            "status": "held" if held else "done",
            "published": not held and result is not None,
            "result": None if result is None else _json(result),
        }
        if not await self._db.run(_end, {**_key(evaluation), **values}):
            raise EvaluationNotOursError

    async def told_before(self, evaluation: ClaimedEvaluation) -> int | None:
        """The highest revision of the submission that Core has been told of besides; ``None`` where it knows none."""
        values = {"submission_id": evaluation.submission_id, "evaluation_id": evaluation.id}
        [row] = await self._db.run(_told_before, values)
        return None if row.revision is None else int(row.revision)

    async def end_submission(self, evaluation: ClaimedEvaluation, status: str, progress: Progress) -> bool:
        """Set where the submission stands; ``False`` where it is done already, which it stays.

        It has not failed as long as another evaluation of it may still be told.
        """
        values = {"submission_id": evaluation.submission_id, "status": status}
        return bool(await self._db.run(_end_submission, {**values, "progress": json.dumps(progress.to_json())}))

    async def keep_scores(self, evaluation: ClaimedEvaluation, final_scores: Mapping[str, Any]) -> None:
        """Write the row of ``scores``."""
        names = ("status", "prompt_score", "correctness_score", "performance_score", "total_score", "grade")
        values = {name: final_scores.get(name) for name in names} | {
            "evaluation_id": evaluation.id,
            "submission_id": evaluation.submission_id,
            "revision": evaluation.revision,
            "components": _json(final_scores["components"]),
            "policy_hash": final_scores["policy"]["hash"],
        }
        await self._db.run(_keep_scores, values)

    async def open_run(self, evaluation: ClaimedEvaluation, cause: str, basis: RunBasis) -> ClaimedRun:
        """The evaluation's run of a judge (``panel`` or ``review``), recorded or taken along; it is ours.

        Raises:
            EvaluationNotOursError: the evaluation is not.
        """
        values = {
            "session_id": evaluation.session_id,
            "revision": evaluation.revision,
            "cause": cause,
            "rubric": basis.rubric,
            "prompt": basis.prompt,
            "policy": basis.policy,
            "settings": _json(basis.settings),
        }
        rows = await self._db.run(_open_run, {**_key(evaluation), **values})
        if not rows:
            raise EvaluationNotOursError
        [row] = rows
        return ClaimedRun(
            row.id, evaluation.session_id, None, row.tries, row.created_at, evaluation.worker, row.claimed_at
        )

    async def run_key(self, evaluation_id: int, cause: str) -> int | None:
        """The key of the evaluation's run of that cause."""
        rows = await self._db.run(_run_key, {"evaluation_id": evaluation_id, "cause": cause})
        return rows[0].id if rows else None

    async def keep_case_runs(self, evaluation: ClaimedEvaluation, runs: Sequence[CaseRun]) -> None:
        """Write every run of every test case."""
        values = {"evaluation_id": evaluation.id, "runs": _json([run.to_json() for run in runs])}
        await self._db.run(_keep_case_runs, values)


def _key(evaluation: ClaimedEvaluation) -> dict[str, Any]:
    return {"evaluation_id": evaluation.id, "worker": evaluation.worker}


def _json(value: Any) -> str:
    return json.dumps(_storable(value), ensure_ascii=False, allow_nan=False)


def _storable(value: Any) -> Any:
    """As PostgreSQL has room for: no NUL and no half of a surrogate pair, which programs may print."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_storable(name): _storable(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(inner) for inner in value]
    return value
