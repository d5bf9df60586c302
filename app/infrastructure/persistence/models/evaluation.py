"""Judgements: what they were made by and of, every call of a judge, and what people said of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Numeric, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.infrastructure.persistence.models.base import Base, Big, BigId, Json, MaybeMoment, Moment, word_of
from app.infrastructure.persistence.models.enums import ReviewReasonEnum, RunStatusEnum


class EvaluationDocument(Base):
    """A rubric, a judge's prompt or a score policy, kept under the SHA-256 of its content in hex; never changed."""

    __tablename__ = "evaluation_documents"

    hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(64))
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Moment]

    __table_args__ = (CheckConstraint("kind IN ('rubric', 'prompt', 'policy')", name="kind"),)


class EvaluationRun(Base):
    """One judgement of one turn: a job while it is to be done, and a record for ever after.

    Or one of a submission's: the session's panel, or the review of the code, with ``evaluation_id`` set and without a
    turn; whoever evaluates the submission makes that. A later judgement of the same turn is another row with a higher
    ``revision``. ``owner`` is the worker that has claimed it; the claim ends with the worker's lease. What it is judged
    by is fixed when it is recorded: documents by hash, ``settings`` with the number of samples and the judge's model.
    ``wait`` is what it has to wait for (`Wait`); ``result`` holds what came out of it. ``batch`` names those that were
    asked for together; they have become known (``published``) once somebody said so.
    """

    __tablename__ = "evaluation_runs"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    turn: Mapped[int | None]
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("submission_evaluations.id", ondelete="CASCADE"))
    revision: Mapped[int]
    status: Mapped[RunStatusEnum] = mapped_column(word_of(RunStatusEnum, "status"))
    cause: Mapped[str] = mapped_column(String(16), server_default="turn")
    asked_by: Mapped[str | None] = mapped_column(Text)
    batch: Mapped[str | None] = mapped_column(String(32))
    rubric_hash: Mapped[str | None] = mapped_column(String(64))
    prompt_hash: Mapped[str | None] = mapped_column(String(64))
    policy_hash: Mapped[str | None] = mapped_column(String(64))
    settings: Mapped[Json]
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    published: Mapped[bool] = mapped_column(server_default="true")
    due_at: Mapped[Moment]
    owner: Mapped[int | None] = mapped_column(BigInteger)
    tries: Mapped[int] = mapped_column(server_default="0")
    wait: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    created_at: Mapped[Moment]
    ended_at: Mapped[MaybeMoment]

    __table_args__ = (
        UniqueConstraint("session_id", "turn", "revision"),
        Index("ix_evaluation_runs_waiting", "cause", "due_at", postgresql_where="status = 'waiting'"),
        Index("ix_evaluation_runs_batch", "batch", postgresql_where="batch IS NOT NULL"),
        UniqueConstraint("evaluation_id", "cause"),
        CheckConstraint("cause IN ('turn', 'rerun', 'appeal', 'panel', 'review')", name="cause"),
        CheckConstraint("(turn IS NULL) = (evaluation_id IS NOT NULL)", name="of_a_turn_or_a_submission"),
    )

    @property
    def judged_turn(self) -> int:
        """The turn, where the run judges one.

        Raises:
            LookupError: it belongs to a submission.
        """
        if self.turn is None:
            raise LookupError("the run judges no turn")
        return self.turn


class JudgeCall(Base):
    """One call to a judge, or the use of an earlier one's answer (``cached``).

    ``input_hash`` is of everything that decides the answer: model, parameters, messages. ``parsed`` is null where the
    answer could not be read, or none came (``raw_answer`` is empty); then ``error`` says why. ``attempt`` counts the
    calls of one sample from 1. ``source`` says whose figures the tokens are. ``cost`` is theirs at the price of
    the time, in ``currency``: 0 of what was not paid for, null where the model had no price.
    """

    __tablename__ = "judge_calls"

    id: Mapped[BigId]
    run_id: Mapped[int] = mapped_column(ForeignKey("evaluation_runs.id", ondelete="CASCADE"), index=True)
    sample: Mapped[int]
    attempt: Mapped[int]
    input_hash: Mapped[str] = mapped_column(String(64))
    cached: Mapped[bool]
    model: Mapped[str] = mapped_column(Text)
    parameters: Mapped[Json]
    raw_answer: Mapped[str] = mapped_column(Text)
    parsed: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    error: Mapped[str | None] = mapped_column(Text)
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    source: Mapped[str] = mapped_column(String(16), server_default="provider")
    cost: Mapped[float | None]
    currency: Mapped[str | None] = mapped_column(String(8))
    latency_ms: Mapped[int]
    created_at: Mapped[Moment]

    __table_args__ = (
        UniqueConstraint("run_id", "sample", "attempt"),
        Index("ix_judge_calls_answered", "input_hash", postgresql_where="raw_answer <> ''"),
    )


class CriterionScore(Base):
    """One criterion's score by one sample, 1 to 5, with the candidate's own words for it and where they stand.

    ``turn`` is where the quote stands, for a judgement of the whole session.
    """

    __tablename__ = "criterion_scores"

    id: Mapped[BigId]
    run_id: Mapped[int] = mapped_column(ForeignKey("evaluation_runs.id", ondelete="CASCADE"))
    sample: Mapped[int]
    criterion: Mapped[str] = mapped_column(String(16))
    score: Mapped[int]
    turn: Mapped[int | None]
    quote: Mapped[str] = mapped_column(Text)
    quote_start: Mapped[int]
    quote_end: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        UniqueConstraint("run_id", "sample", "criterion"),
        CheckConstraint("score BETWEEN 1 AND 5", name="score"),
    )


class ReviewItem(Base):
    """A turn, or a submission's evaluation, that a person is to look at, and what came of it.

    An appeal is one that a candidate's side asked for.
    """

    __tablename__ = "review_items"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    turn: Mapped[int | None]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evaluation_runs.id", ondelete="CASCADE"))
    evaluation_id: Mapped[int | None] = mapped_column(ForeignKey("submission_evaluations.id", ondelete="CASCADE"))
    reason: Mapped[ReviewReasonEnum] = mapped_column(word_of(ReviewReasonEnum, "reason"))
    details: Mapped[Json]
    asked_by: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Moment]
    resolved_at: Mapped[MaybeMoment]
    resolved_by: Mapped[str | None] = mapped_column(Text)
    resolution: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        UniqueConstraint("session_id", "turn", "run_id", "reason"),
        UniqueConstraint("evaluation_id", "reason"),
        Index("ix_review_items_open", "id", postgresql_where="resolved_at IS NULL"),
        CheckConstraint("(resolved_at IS NULL) = (resolved_by IS NULL)", name="resolved_by_somebody"),
    )


class ScoreOverride(Base):
    """A person's score (0 to 100) of a turn, or of a submission's ``component``: ``prompt``, ``correctness``, ….

    It stands beside the machine's; the latest one counts.

    ``revision`` is that of the event that told of it; runs and overrides of a turn share their numbers.
    """

    __tablename__ = "score_overrides"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    turn: Mapped[int | None]
    submission_id: Mapped[int | None] = mapped_column(ForeignKey("submissions.id", ondelete="CASCADE"))
    component: Mapped[str | None] = mapped_column(String(16))
    revision: Mapped[int] = mapped_column(server_default="1")
    score: Mapped[float] = mapped_column(Numeric(asdecimal=False))
    reason: Mapped[str] = mapped_column(Text)
    person: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Moment]

    __table_args__ = (
        Index("ix_score_overrides_session_id_turn", "session_id", "turn"),
        CheckConstraint("(submission_id IS NULL) = (component IS NULL)", name="component_of_a_submission"),
        CheckConstraint("(turn IS NULL) = (submission_id IS NOT NULL)", name="of_a_turn_or_a_submission"),
        CheckConstraint("score BETWEEN 0 AND 100", name="score"),
    )


class ExamVersion(Base):
    """An exam's settings as they once were; a turn says which version it ran under."""

    __tablename__ = "exam_versions"

    exam_id: Mapped[Big] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    problem_text: Mapped[str] = mapped_column(Text)
    settings: Mapped[Json]
    content_hash: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[Moment]
