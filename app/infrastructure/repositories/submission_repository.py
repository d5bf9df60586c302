"""Submissions as they are handed in, looked at, and sent round again by people."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert

from app.domain.submission import Progress
from app.infrastructure.persistence.models import (
    ProblemVersion,
    PromptSession,
    ReviewItem,
    ReviewReasonEnum,
    RevisionStatusEnum,
    Submission,
    SubmissionEvaluation,
    SubmissionScores,
    SubmissionStatusEnum,
)
from app.infrastructure.persistence.session import Transaction

_WAITING = SubmissionEvaluation.status == RevisionStatusEnum.WAITING
_hasten = """
    UPDATE submission_evaluations SET due_at = now()
    WHERE status = 'waiting' AND owner IS NULL AND due_at > now()
      AND submission_id IN (SELECT id FROM submissions WHERE session_id = %(session_id)s)
      AND NOT EXISTS (
          SELECT 1 FROM evaluation_runs WHERE session_id = %(session_id)s AND status = 'waiting' AND turn IS NOT NULL
      )
    """
_last_ended_turn = """
    SELECT coalesce(min(turn) FILTER (WHERE status = 'running') - 1, max(turn), 0) AS turn
    FROM prompt_turns WHERE session_id = %(session_id)s
    """
_copy_steps = """
    INSERT INTO evaluation_steps (evaluation_id, node, status, outcome, worker, started_at, ended_at)
    SELECT %(to)s, node, status, outcome, worker, started_at, ended_at
    FROM evaluation_steps WHERE evaluation_id = %(from)s AND node = ANY(%(nodes)s::text[])
    """
_release = """
    UPDATE submission_evaluations
    SET status = 'waiting', due_at = now(), tries = 0, revision = %(revision)s,
        basis = basis || jsonb_build_object('released_by', %(person)s::jsonb)
    WHERE id = %(evaluation_id)s AND status = 'held'
    """
_forget_steps = """
    DELETE FROM evaluation_steps WHERE evaluation_id = %(evaluation_id)s AND node = ANY(%(nodes)s::text[])
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class NewSubmission:
    """Code as it is handed in; see `Submission`."""

    session_id: int
    client_id: str
    client_id_is_int: bool
    language: str
    code: str
    code_hash: str
    last_turn: int


@dataclass(frozen=True, slots=True)
class SubmissionCounts:
    """How evaluations stand: those to be made, the age of the oldest in seconds, and those that wait for a person."""

    waiting: int
    oldest_s: float
    held: int


class SubmissionRepository:
    """Reads and writes submissions within the transaction at hand; who writes locks the session's row before."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def find(self, client_id: str) -> Submission | None:
        """The submission by its id as text, as it stands now."""
        statement = select(Submission).where(Submission.client_id == client_id)
        return (await self._db.scalars(statement.execution_options(populate_existing=True))).first()

    async def create(self, new: NewSubmission) -> Submission | None:
        """Record a submission with its first evaluation, to be made; ``None`` where there is one of that id."""
        values = {name: getattr(new, name) for name in new.__slots__}
        statement = (
            pg_insert(Submission)
            .values(**values, status=SubmissionStatusEnum.QUEUED, progress=Progress().to_json())
            .on_conflict_do_nothing(index_elements=[Submission.client_id])
            .returning(Submission)
        )
        submission = (await self._db.scalars(statement)).first()
        if submission is not None:
            await self.add_evaluation(submission.id, cause="submission", asked_by=None, basis={})
        return submission

    async def add_evaluation(
        self, submission_id: int, *, cause: str, asked_by: str | None, basis: Mapping[str, Any]
    ) -> SubmissionEvaluation:
        """Record a further evaluation, to be made, under the submission's next revision."""
        highest = select(func.coalesce(func.max(SubmissionEvaluation.revision), 0)).where(
            SubmissionEvaluation.submission_id == submission_id
        )
        values = {
            "submission_id": submission_id,
            "revision": int((await self._db.execute(highest)).scalar_one()) + 1,
            "status": RevisionStatusEnum.WAITING,
            "cause": cause,
            "asked_by": asked_by,
            "basis": dict(basis),
        }
        return (await self._db.scalars(insert(SubmissionEvaluation).returning(SubmissionEvaluation), [values])).one()

    async def last_ended_turn(self, session_id: int) -> int:
        """The number of the last turn before which, and with which, all have ended; 0 where none has."""
        [row] = await self._db.run(_last_ended_turn, {"session_id": session_id})
        return int(row.turn)

    async def problem_version(self, spec_id: int | None) -> int | None:
        """The newest version of a session's problem; ``None`` where nothing is known of it."""
        newest = select(func.max(ProblemVersion.version)).where(ProblemVersion.spec_id == spec_id)
        return (await self._db.execute(newest)).scalar_one()

    async def languages_of(self, spec_id: int | None) -> list[str] | None:
        """In which languages a session's problem may be solved; ``None`` where nothing is known of it."""
        newest = (
            select(ProblemVersion.content["languages"])
            .where(ProblemVersion.spec_id == spec_id)
            .order_by(ProblemVersion.version.desc())
            .limit(1)
        )
        return (await self._db.execute(newest)).scalar_one_or_none()

    async def count_of_session(self, session_id: int) -> int:
        """How many submissions of the session count against what the exam allows; failed ones do not."""
        statement = select(func.count()).where(
            Submission.session_id == session_id, Submission.status != SubmissionStatusEnum.FAILED
        )
        return int((await self._db.execute(statement)).scalar_one())

    async def list_submissions(
        self,
        *,
        session_id: int | None = None,
        exam_id: int | None = None,
        status: SubmissionStatusEnum | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Submission]:
        """Submissions with a key above ``after`` that fit all that is set, oldest first."""
        statement = select(Submission).where(Submission.id > after).order_by(Submission.id).limit(limit)
        if session_id is not None:
            statement = statement.where(Submission.session_id == session_id)
        if exam_id is not None:
            of_exam = select(PromptSession.id).where(PromptSession.exam_id == exam_id)
            statement = statement.where(Submission.session_id.in_(of_exam))
        if status is not None:
            statement = statement.where(Submission.status == status)
        return (await self._db.scalars(statement)).all()

    async def newest_of_session(self, session_id: int) -> Submission | None:
        """The session's last submission."""
        statement = select(Submission).where(Submission.session_id == session_id).order_by(Submission.id.desc())
        return (await self._db.scalars(statement.limit(1))).first()

    async def evaluations(self, submission_ids: Collection[int]) -> dict[int, list[SubmissionEvaluation]]:
        """Every evaluation of some submissions, by submission, by revision."""
        statement = (
            select(SubmissionEvaluation)
            .where(SubmissionEvaluation.submission_id.in_(submission_ids))
            .order_by(SubmissionEvaluation.submission_id, SubmissionEvaluation.revision)
        )
        found: dict[int, list[SubmissionEvaluation]] = {key: [] for key in submission_ids}
        for evaluation in await self._db.scalars(statement.execution_options(populate_existing=True)):
            found[evaluation.submission_id].append(evaluation)
        return found

    async def scores(self, evaluation_id: int) -> SubmissionScores | None:
        """The row of ``scores`` of an evaluation."""
        return await self._db.get(SubmissionScores, evaluation_id)

    async def copy_steps(self, source: int, target: int, nodes: Collection[str]) -> None:
        """Let an evaluation have what another has found out."""
        await self._db.run(_copy_steps, {"from": source, "to": target, "nodes": list(nodes)})

    async def release(self, evaluation_id: int, person: str, *, revision: int, anew: Collection[str]) -> None:
        """Let a held evaluation go on, under this revision, with the nodes ``anew`` done once more."""
        said = json.dumps(person, ensure_ascii=False)
        values = {"evaluation_id": evaluation_id, "person": said, "revision": revision}
        await self._db.run(_release, values)
        await self._db.run(_forget_steps, {"evaluation_id": evaluation_id, "nodes": list(anew)})
        await self._db.execute(
            update(ReviewItem)
            .where(
                ReviewItem.evaluation_id == evaluation_id,
                ReviewItem.reason == ReviewReasonEnum.HELD_FOR_REVIEW,
                ReviewItem.resolved_at.is_(None),
            )
            .values(resolved_at=func.now(), resolved_by=person, resolution="released")
            .execution_options(synchronize_session=False)
        )

    async def hasten(self, session_id: int) -> None:
        """The session's last judgement that was to be made is there: evaluations that wait for it need not any more."""
        await self._db.run(_hasten, {"session_id": session_id})

    async def counts(self) -> SubmissionCounts:
        """How all evaluations stand."""
        held = SubmissionEvaluation.status == RevisionStatusEnum.HELD
        oldest = func.extract("epoch", func.now() - func.min(SubmissionEvaluation.created_at).filter(_WAITING))
        statement = select(func.count().filter(_WAITING), func.coalesce(oldest, 0.0), func.count().filter(held)).where(
            _WAITING | held
        )
        waiting, seconds, on_hold = (await self._db.execute(statement)).one()
        return SubmissionCounts(int(waiting), float(seconds), int(on_hold))
