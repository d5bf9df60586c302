"""Bodies of the REST interface."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app.application.turns.exchange import ChatCommand, ChatResult, Started
from app.core.ids import new_turn_id
from app.domain.conversation import Usage
from app.infrastructure.persistence.models import PromptMessage, PromptSession, PromptTurn
from app.presentation.schemas.frames import MessageFrame, command_of

_BIGGEST_ID = 2**63 - 1


def _whole_characters(text: str) -> str:
    """JSON can say half of a surrogate pair, which no encoding has room for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_whole_characters)]
Said = Annotated[Text, Field(json_schema_extra={"minLength": 1, "pattern": r"\S"})]
"""A candidate's message. That it is empty is found by `check_message`, which says so in words; here it is announced."""
PositiveId = Annotated[int, Field(gt=0, le=_BIGGEST_ID, strict=True)]
TurnIdField = (
    Annotated[Text, StringConstraints(min_length=1, max_length=128)]
    | Annotated[int, Field(ge=-(2**63), le=_BIGGEST_ID, strict=True)]
)
SessionIdField = Annotated[Text, StringConstraints(max_length=64)] | PositiveId
Item = TypeVar("Item")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ChatRequest(_Body):
    """A message; the session is named by its id, or by exam and participant."""

    message: Said
    turn_id: TurnIdField | None = None
    session_id: SessionIdField | None = None
    exam_id: PositiveId | None = None
    participant_id: PositiveId | None = None
    spec_id: PositiveId | None = None

    def command(self, message_limit: int) -> ChatCommand:
        """Check what the schema cannot say.

        Raises:
            TurnstoneError: ``invalid_frame``, ``message_too_large`` or ``session_not_found``.
        """
        frame = MessageFrame(
            message=self.message,
            turn_id=new_turn_id() if self.turn_id is None else self.turn_id,
            session_id=self.session_id,
            exam_id=self.exam_id,
            participant_id=self.participant_id,
            spec_id=self.spec_id,
        )
        return command_of(frame, message_limit)


class UsageBody(BaseModel):
    """Tokens used; ``source`` says whose figures they are."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    source: Literal["provider", "counted"]

    @classmethod
    def of(cls, usage: Usage) -> UsageBody:
        """The usage as a body."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            source=usage.source,
        )


class ChatAnswer(BaseModel):
    """A whole answer. ``finish_reason`` is ``cancelled`` where somebody stopped it; the text is what had come."""

    session_id: str
    turn: int
    turn_id: str | int
    ai_message: str
    finish_reason: str
    usage: UsageBody

    @classmethod
    def of(cls, result: ChatResult) -> ChatAnswer:
        """The result as a body."""
        return cls(
            session_id=str(result.session_id),
            turn=result.turn,
            turn_id=result.turn_id,
            ai_message=result.ai_message,
            finish_reason=result.finish_reason,
            usage=UsageBody.of(result.usage),
        )


class BegunTurn(BaseModel):
    """A turn whose message is stored; its answer is read at its ``events``."""

    session_id: str
    turn: int
    turn_id: str | int

    @classmethod
    def of(cls, started: Started) -> BegunTurn:
        """The begun turn as a body."""
        return cls(session_id=str(started.session_id), turn=started.turn, turn_id=started.turn_id)


class TurnBody(BaseModel):
    """A turn that has ended; ``labels`` are the guard's, ``exam_version`` is of the exam's settings it ran under."""

    session_id: str
    turn: int
    turn_id: str | int
    status: Literal["completed", "cancelled", "failed", "interrupted"]
    finish_reason: str | None
    usage: UsageBody
    labels: list[str]
    exam_version: int | None

    @classmethod
    def of(cls, turn: PromptTurn, usage: Usage, turn_id: str | int) -> TurnBody:
        """The stored turn as a body."""
        return cls(
            session_id=str(turn.session_id),
            turn=turn.turn,
            turn_id=turn_id,
            status=turn.status.value,
            finish_reason=turn.finish_reason,
            usage=UsageBody.of(usage),
            labels=turn.labels or [],
            exam_version=turn.exam_version,
        )


class SessionRequest(_Body):
    """Whose session, of which exam."""

    exam_id: PositiveId
    participant_id: PositiveId
    spec_id: PositiveId | None = None


class SessionBody(BaseModel):
    """A session; ``ended_at`` is null while it is active."""

    id: str
    exam_id: int
    participant_id: int
    spec_id: int | None
    started_at: datetime
    ended_at: datetime | None
    total_tokens: int

    @classmethod
    def of(cls, session: PromptSession) -> SessionBody:
        """The stored session as a body."""
        return cls(
            id=str(session.id),
            exam_id=session.exam_id,
            participant_id=session.participant_id,
            spec_id=session.spec_id,
            started_at=session.started_at,
            ended_at=session.ended_at,
            total_tokens=session.total_tokens,
        )


class MessageBody(BaseModel):
    """One message of a conversation."""

    id: str
    turn: int
    turn_id: str | int | None
    role: Literal["USER", "ASSISTANT"]
    content: str
    token_count: int | None
    created_at: datetime
    meta: dict[str, Any]

    @classmethod
    def of(cls, message: PromptMessage, turn_id: str | int | None) -> MessageBody:
        """The stored message as a body."""
        return cls(
            id=str(message.id),
            turn=message.turn,
            turn_id=turn_id,
            role=message.role.value,
            content=message.content,
            token_count=message.token_count,
            created_at=message.created_at,
            meta=message.meta,
        )


class Page(BaseModel, Generic[Item]):
    """Part of a list; ``next`` is the cursor of the next part, or null."""

    items: list[Item]
    next: str | None = None


class MarkdownRequest(_Body):
    """Markdown to show."""

    markdown: Annotated[Text, StringConstraints(max_length=1_000_000)]


class MarkdownBody(BaseModel):
    """HTML that is safe to put into a page."""

    html: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it, with the protocol's code."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
