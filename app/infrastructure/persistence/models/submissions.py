"""Submissions: the code, every evaluation of it with its checkpoints, each run of a test case, and the scores."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Numeric, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.infrastructure.persistence.models.base import Base, Big, BigId, Json, MaybeMoment, Moment, word_of
from app.infrastructure.persistence.models.enums import RevisionStatusEnum, SubmissionStatusEnum


class ProblemVersion(Base):
    """A problem as it once was: statement, limits, cases, references. The newest one is the problem.

    ``verification`` is what came of running its reference solutions before it was accepted.
    """

    __tablename__ = "problem_versions"

    spec_id: Mapped[Big] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[dict[str, Any]] = mapped_column(JSONB)
    content_hash: Mapped[str] = mapped_column(String(64))
    verification: Mapped[Json]
    created_at: Mapped[Moment]


class Submission(Base):
    """A candidate's code, handed in. ``client_id`` is Core's id of it, or ours, as text; see `PromptTurn`.

    ``last_turn`` is the conversation's last turn when it came, so that what is judged with it stays the same.
    ``progress`` is what is told while it is evaluated: ``stage``, ``percent`` (0 to 100), ``cases_done``,
    ``cases_total``.
    """

    __tablename__ = "submissions"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"), index=True)
    client_id: Mapped[str] = mapped_column(String(128), unique=True)
    client_id_is_int: Mapped[bool]
    language: Mapped[str] = mapped_column(String(32))
    code: Mapped[str] = mapped_column(Text)
    code_hash: Mapped[str] = mapped_column(String(64))
    last_turn: Mapped[int]
    status: Mapped[SubmissionStatusEnum] = mapped_column(word_of(SubmissionStatusEnum, "status"))
    progress: Mapped[Json]
    created_at: Mapped[Moment]
    ended_at: Mapped[MaybeMoment]

    @property
    def told_id(self) -> str | int:
        """Its id as Core wrote it."""
        return int(self.client_id) if self.client_id_is_int else self.client_id


class SubmissionEvaluation(Base):
    """One evaluation of a submission: a job while it is to be done, and a record for ever after.

    A later one of the same submission has a higher ``revision``. ``owner`` is the worker that has claimed it; the claim
    ends with the worker's lease. ``basis`` is what it is to be made by, where that differs from the exam's settings.
    ``waits`` has for each node that has to wait what for (`Wait`). ``result`` is what Core is told; ``published`` once
    it was.
    """

    __tablename__ = "submission_evaluations"

    id: Mapped[BigId]
    submission_id: Mapped[int] = mapped_column(ForeignKey("submissions.id", ondelete="CASCADE"))
    revision: Mapped[int]
    status: Mapped[RevisionStatusEnum] = mapped_column(word_of(RevisionStatusEnum, "status"))
    cause: Mapped[str] = mapped_column(String(16), server_default="submission")
    asked_by: Mapped[str | None] = mapped_column(Text)
    basis: Mapped[Json]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    published: Mapped[bool] = mapped_column(server_default="false")
    due_at: Mapped[Moment]
    owner: Mapped[int | None] = mapped_column(BigInteger)
    tries: Mapped[int] = mapped_column(server_default="0")
    waits: Mapped[Json]
    created_at: Mapped[Moment]
    ended_at: Mapped[MaybeMoment]

    __table_args__ = (
        UniqueConstraint("submission_id", "revision"),
        Index("ix_submission_evaluations_waiting", "due_at", postgresql_where="status = 'waiting'"),
        CheckConstraint("cause IN ('submission', 'rerun', 'appeal')", name="cause"),
    )


class EvaluationStep(Base):
    """What came of one node of an evaluation: its checkpoint. Written once, by whoever holds the evaluation then."""

    __tablename__ = "evaluation_steps"

    evaluation_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("submission_evaluations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    node: Mapped[str] = mapped_column(String(32), primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    outcome: Mapped[dict[str, Any]] = mapped_column(JSONB)
    worker: Mapped[Big]
    started_at: Mapped[Moment]
    ended_at: Mapped[Moment]

    __table_args__ = (CheckConstraint("status IN ('ok', 'missing', 'skipped')", name="status"),)


class SubmissionRun(Base):
    """One run of one test case, of the candidate's program or of the reference it is measured by.

    ``repetition`` 0 is the run that was graded; those from 1 on were measured. ``cause`` says what led to the verdict;
    times are in milliseconds, ``cpu_ms`` by whatever ``isolation`` says measured it.
    """

    __tablename__ = "submission_runs"

    id: Mapped[BigId]
    evaluation_id: Mapped[int] = mapped_column(ForeignKey("submission_evaluations.id", ondelete="CASCADE"))
    program: Mapped[str] = mapped_column(String(16))
    repetition: Mapped[int]
    case_index: Mapped[int]
    case_name: Mapped[str] = mapped_column(Text)
    case_group: Mapped[str] = mapped_column(String(16))
    weight: Mapped[float] = mapped_column(Numeric(asdecimal=False))
    verdict: Mapped[str] = mapped_column(String(8))
    cause: Mapped[str] = mapped_column(Text, server_default="")
    cpu_ms: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    wall_ms: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    memory_kb: Mapped[int | None] = mapped_column(BigInteger)
    stdout_bytes: Mapped[int | None] = mapped_column(BigInteger)
    stderr_bytes: Mapped[int | None] = mapped_column(BigInteger)
    exit_code: Mapped[int | None]
    signal: Mapped[int | None]
    isolation: Mapped[str] = mapped_column(Text, server_default="")

    __table_args__ = (
        UniqueConstraint("evaluation_id", "program", "repetition", "case_index"),
        CheckConstraint("program IN ('candidate', 'reference')", name="program"),
        CheckConstraint("verdict IN ('AC', 'WA', 'TLE', 'MLE', 'RE', 'CE', 'OLE', 'SE')", name="verdict"),
    )


class SubmissionScores(Base):
    """The scores of one evaluation, 0 to 100; null where a component is missing, which is never a zero.

    ``components`` says of each part its status, its score and why it has none.
    """

    __tablename__ = "scores"

    evaluation_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("submission_evaluations.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    submission_id: Mapped[int] = mapped_column(ForeignKey("submissions.id", ondelete="CASCADE"), index=True)
    revision: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    prompt_score: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    correctness_score: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    performance_score: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    total_score: Mapped[float | None] = mapped_column(Numeric(asdecimal=False))
    grade: Mapped[str | None] = mapped_column(Text)
    components: Mapped[Json]
    policy_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[Moment]

    __table_args__ = (CheckConstraint("status IN ('SCORED', 'PENDING_REVIEW')", name="status"),)
