"""A turn's life: who runs it, what is flushed of it, how it ended and what it used."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.domain.conversation import FinishReason, TurnStatus
from app.infrastructure.persistence.models.base import Base, Big, BigId, MaybeMoment, Moment, word_of


class Worker(Base):
    """A process that runs turns. ``id`` is its fencing token; ``beats`` grows while it lives.

    ``lease_s`` is for how many seconds they may stand still; a program before this column said nothing of it.
    Once ``fenced_at`` is set the process owns nothing any more: every write of a turn asks for it.
    """

    __tablename__ = "workers"

    id: Mapped[BigId]
    name: Mapped[str] = mapped_column(Text)
    started_at: Mapped[Moment]
    beats: Mapped[Big] = mapped_column(server_default="0")
    lease_s: Mapped[float] = mapped_column(server_default="15")
    fenced_at: Mapped[MaybeMoment]


class PromptTurn(Base):
    """One turn of a session, from its start to its only ending.

    ``client_turn_id`` is the client's id as text; ``turn_id_is_int`` says how to write it back in JSON.
    ``delta_lengths`` holds the length in characters of every delta as little-endian uint32, so that a replay of the
    stored answer can begin after any ``seq``. ``owner`` is a worker's id; no foreign key, because every insert of a
    turn would lock the same worker's row. ``exam_version`` is the version of the exam's settings that it ran under,
    null where there are none. ``labels`` are the guard's, null where it found none.
    """

    __tablename__ = "prompt_turns"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    turn: Mapped[int]
    client_turn_id: Mapped[str] = mapped_column(String(128))
    turn_id_is_int: Mapped[bool]
    status: Mapped[TurnStatus] = mapped_column(word_of(TurnStatus, "status"))
    owner: Mapped[Big]
    cancel_requested_at: Mapped[MaybeMoment]
    model: Mapped[str] = mapped_column(Text)
    finish_reason: Mapped[FinishReason | None] = mapped_column(word_of(FinishReason, "finish_reason"))
    error_code: Mapped[str | None] = mapped_column(String(32))
    error_message: Mapped[str | None] = mapped_column(Text)
    error_retryable: Mapped[bool | None]
    delta_lengths: Mapped[bytes] = mapped_column(LargeBinary, server_default="")
    prompt_tokens: Mapped[int] = mapped_column(server_default="0")
    completion_tokens: Mapped[int] = mapped_column(server_default="0")
    cached_tokens: Mapped[int] = mapped_column(server_default="0")
    reasoning_tokens: Mapped[int] = mapped_column(server_default="0")
    usage_source: Mapped[str] = mapped_column(String(16), server_default="counted")
    started_at: Mapped[Moment]
    ended_at: Mapped[MaybeMoment]
    first_token_ms: Mapped[int | None]
    exam_version: Mapped[int | None]
    labels: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    duration_ms: Mapped[int | None]

    __table_args__ = (
        UniqueConstraint("session_id", "turn"),
        UniqueConstraint("session_id", "client_turn_id"),
        Index("uq_prompt_turns_running", "session_id", unique=True, postgresql_where="status = 'running'"),
        Index("ix_prompt_turns_running_owner", "owner", postgresql_where="status = 'running'"),
    )


class TurnChunk(Base):
    """Text of a running turn that is safe already; the turn's ending replaces its chunks by the message."""

    __tablename__ = "turn_chunks"

    turn_pk: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("prompt_turns.id", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    first_seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[str] = mapped_column(Text)
    delta_lengths: Mapped[bytes] = mapped_column(LargeBinary)


class ProviderCall(Base):
    """One call to a provider and what it used, or a correction of one. Rows are only ever added.

    A correction has the differences as its figures, which may be negative, and says which call it ``adjusts`` and for
    what ``reason``. ``provider_ref`` is the provider's own id of the call, where it gave one.
    """

    __tablename__ = "provider_calls"

    id: Mapped[BigId]
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"), index=True)
    turn: Mapped[int | None]
    purpose: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(Text)
    prompt_tokens: Mapped[int]
    completion_tokens: Mapped[int]
    cached_tokens: Mapped[int]
    reasoning_tokens: Mapped[int]
    source: Mapped[str] = mapped_column(String(16))
    tokenizer: Mapped[str | None] = mapped_column(Text)
    approximate: Mapped[bool] = mapped_column(server_default="false")
    outcome: Mapped[str] = mapped_column(String(32))
    provider_ref: Mapped[str | None] = mapped_column(Text)
    adjusts: Mapped[int | None] = mapped_column(ForeignKey("provider_calls.id", ondelete="CASCADE"))
    reason: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Moment]

    __table_args__ = (
        CheckConstraint("(adjusts IS NULL) = (reason IS NULL)", name="corrections_have_reasons"),
        Index("ix_provider_calls_adjusts", "adjusts", postgresql_where="adjusts IS NOT NULL"),
        Index("ix_provider_calls_created_at", "created_at"),
    )
