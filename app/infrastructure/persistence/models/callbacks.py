"""Callbacks to Core: the events, and the lanes in which a session's events go out in order."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, ForeignKey, Index, String, Text, UniqueConstraint, func, text
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

from app.infrastructure.persistence.models.base import Base, Big, BigId, Json, MaybeMoment, Moment, word_of
from app.infrastructure.persistence.models.enums import CallbackStatusEnum


class Callback(Base):
    """One event for Core. ``payload`` holds the fields of its type; the common ones are columns here.

    ``event_id`` is the ``webhook-id`` of every try. ``next_try_at`` is set while tries remain. ``recorded_in`` is the
    transaction that recorded the event (an xid8, which never wraps), or a later one of which the session had an event
    before: the feed goes by it, because keys are given before commits and in another order.
    """

    __tablename__ = "callbacks"

    id: Mapped[BigId]
    event_id: Mapped[str] = mapped_column(String(64), unique=True)
    session_id: Mapped[int] = mapped_column(ForeignKey("prompt_sessions.id", ondelete="CASCADE"))
    callback_seq: Mapped[int]
    type: Mapped[str] = mapped_column(String(32))
    payload: Mapped[Json]
    status: Mapped[CallbackStatusEnum] = mapped_column(word_of(CallbackStatusEnum, "status"))
    attempts: Mapped[int] = mapped_column(server_default="0")
    next_try_at: Mapped[MaybeMoment]
    last_error: Mapped[str | None] = mapped_column(Text)
    occurred_at: Mapped[Moment]
    delivered_at: Mapped[MaybeMoment]
    recorded_in: Mapped[Big] = mapped_column(server_default=text("((pg_current_xact_id())::text)::bigint"))

    __table_args__ = (
        UniqueConstraint("session_id", "callback_seq"),
        Index("ix_callbacks_recorded_in_id", "recorded_in", "id"),
        Index("ix_callbacks_pending", "session_id", "callback_seq", postgresql_where="status = 'pending'"),
        Index("ix_callbacks_not_delivered", "status", "id", postgresql_where="status <> 'delivered'"),
    )


class CallbackAttempt(Base):
    """One try of one event. ``number`` counts from 1, and anew after a replay; ``duration_ms`` is the POST's.

    ``answered`` is Core's HTTP status, null where no answer came; then ``error`` says why. ``body_start``: the first
    characters of an answer that was no success.
    """

    __tablename__ = "callback_attempts"

    id: Mapped[BigId]
    callback_id: Mapped[int] = mapped_column(ForeignKey("callbacks.id", ondelete="CASCADE"), index=True)
    number: Mapped[int]
    tried_at: Mapped[Moment]
    duration_ms: Mapped[int]
    answered: Mapped[int | None]
    error: Mapped[str | None] = mapped_column(Text)
    body_start: Mapped[str | None] = mapped_column(Text)


class CallbackLane(Base):
    """A session that has something to deliver; there is no row where nothing waits.

    Whoever delivers writes its worker id into ``claimed_by``; a claim lasts until it is released or the worker is
    fenced. ``wakes`` grows with every recorded event, so that a lane is only removed by somebody who has seen the last
    of them. ``failing``: the last try failed, and there will be another; such lanes and the others are claimed apart,
    lest one kind keeps the other waiting.
    """

    __tablename__ = "callback_lanes"

    session_id: Mapped[int] = mapped_column(
        BigInteger,
        ForeignKey("prompt_sessions.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    )
    due_at: Mapped[datetime] = mapped_column(TIMESTAMP(timezone=True), server_default=func.now())
    claimed_by: Mapped[int | None] = mapped_column(BigInteger)
    wakes: Mapped[int] = mapped_column(server_default="1")
    failing: Mapped[bool] = mapped_column(server_default="false")

    __table_args__ = (Index("ix_callback_lanes_failing_due_at", "failing", "due_at"),)
