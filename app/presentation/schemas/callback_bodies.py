"""Bodies of the REST interface that tell of callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from app.infrastructure.persistence.models import Callback, CallbackAttempt, PromptSession
from app.infrastructure.repositories.callback_repository import CallbackEvent
from app.presentation.schemas.callbacks import CallbackPayload


class CallbackBody(BaseModel):
    """A callback and where it stands; ``id`` is its ``webhook-id``, ``payload`` the body Core receives."""

    id: str
    type: str
    session_id: str
    callback_seq: int
    status: Literal["held", "pending", "delivered", "failed"]
    attempts: int
    payload: CallbackPayload
    next_try_at: datetime | None
    last_error: str | None
    occurred_at: datetime
    delivered_at: datetime | None

    @classmethod
    def of(cls, callback: Callback, session: PromptSession) -> CallbackBody:
        """The stored callback as a body."""
        return cls(
            id=callback.event_id,
            type=callback.type,
            session_id=str(callback.session_id),
            callback_seq=callback.callback_seq,
            status=callback.status.value,
            attempts=callback.attempts,
            payload=CallbackEvent.of(callback, session).body(),
            next_try_at=callback.next_try_at,
            last_error=callback.last_error,
            occurred_at=callback.occurred_at,
            delivered_at=callback.delivered_at,
        )


class CallbackTry(BaseModel):
    """One try: Core's answer with the first characters of a refusal's body, or why there was none."""

    number: int
    tried_at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    body_start: str | None

    @classmethod
    def of(cls, attempt: CallbackAttempt) -> CallbackTry:
        """The stored try as a body."""
        return cls(
            number=attempt.number,
            tried_at=attempt.tried_at,
            duration_ms=attempt.duration_ms,
            status=attempt.answered,
            error=attempt.error,
            body_start=attempt.body_start,
        )


class CallbackWithTries(CallbackBody):
    """A callback with every try there was, those before a replay too."""

    tries: list[CallbackTry]

    @classmethod
    def with_tries(
        cls, callback: Callback, session: PromptSession, tries: Sequence[CallbackAttempt]
    ) -> CallbackWithTries:
        """The stored callback as a body."""
        return cls(**CallbackBody.of(callback, session).model_dump(), tries=[CallbackTry.of(one) for one in tries])


class ReplayRequest(BaseModel):
    """Which callbacks to send once more: those that fit all that is set, and something has to be.

    Without a ``status`` only those that failed. ``since`` is included, ``until`` is not.
    """

    model_config = ConfigDict(extra="forbid")

    status: Literal["failed", "delivered", "pending"] = "failed"
    type: Annotated[str, StringConstraints(max_length=32, pattern="^[a-z_]+$")] | None = None
    session_id: str | None = Field(None, max_length=64)
    exam_id: int | None = Field(None, ge=1, le=2**63 - 1)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class Replayed(BaseModel):
    """How many callbacks are on their way again."""

    replayed: int


class FeedItem(BaseModel):
    """An event of the feed; ``cursor`` is what ``after`` takes to go on behind it."""

    cursor: str
    id: str
    payload: CallbackPayload
