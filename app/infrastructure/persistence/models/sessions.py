"""The conversation: sessions, messages, and the exam's own text."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.infrastructure.persistence.models.base import Base, Big, BigId, Json, MaybeMoment, Moment, word_of
from app.infrastructure.persistence.models.enums import EvaluationTypeEnum, PromptRoleEnum


class Exam(Base):
    """What the worker knows of an exam: the problem's text, which becomes part of the system prompt, and its settings.

    It is the newest of its versions (`ExamVersion`).
    """

    __tablename__ = "exams"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    problem_text: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(server_default="1")
    settings: Mapped[Json]
    updated_at: Mapped[Moment]


class PromptSession(Base):
    """One candidate in one exam. At most one session of the pair is active (``ended_at`` null).

    ``last_turn`` and ``callback_seq`` are counters; they move only under this row's lock. ``feed_place`` is the last
    callback's ``recorded_in``.
    """

    __tablename__ = "prompt_sessions"

    id: Mapped[BigId]
    exam_id: Mapped[Big]
    participant_id: Mapped[Big]
    spec_id: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[Moment]
    ended_at: Mapped[MaybeMoment]
    total_tokens: Mapped[Big] = mapped_column(server_default="0")
    last_turn: Mapped[int] = mapped_column(server_default="0")
    callback_seq: Mapped[int] = mapped_column(server_default="0")
    feed_place: Mapped[Big] = mapped_column(server_default="0")

    __table_args__ = (
        Index(
            "uq_prompt_sessions_active",
            "exam_id",
            "participant_id",
            unique=True,
            postgresql_where="ended_at IS NULL",
        ),
        Index("ix_prompt_sessions_exam_id_participant_id", "exam_id", "participant_id"),
        CheckConstraint("exam_id > 0 AND participant_id > 0 AND spec_id > 0", name="ids_positive"),
    )


class PromptMessage(Base):
    """One message. ``token_count`` counts its text alone, by the tokenizer that ``meta`` names."""

    __tablename__ = "prompt_messages"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    turn: Mapped[int]
    role: Mapped[PromptRoleEnum] = mapped_column(word_of(PromptRoleEnum, "role"))
    content: Mapped[str] = mapped_column(Text)
    token_count: Mapped[int | None]
    meta: Mapped[Json]
    created_at: Mapped[Moment]

    __table_args__ = (UniqueConstraint("session_id", "turn", "role"),)


class PromptEvaluation(Base):
    """A judgement of one turn, or of the session as a whole (``turn`` null); one for each run."""

    __tablename__ = "prompt_evaluations"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"), index=True)
    turn: Mapped[int | None]
    run_id: Mapped[int | None] = mapped_column(ForeignKey("evaluation_runs.id", ondelete="CASCADE"), unique=True)
    evaluation_type: Mapped[EvaluationTypeEnum] = mapped_column(word_of(EvaluationTypeEnum, "evaluation_type"))
    details: Mapped[Json]
    created_at: Mapped[Moment]

    __table_args__ = (
        CheckConstraint("(evaluation_type = 'TURN_EVAL') = (turn IS NOT NULL)", name="turn_where_one_is_judged"),
    )
