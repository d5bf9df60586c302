"""What Core receives, as models: the source of the OpenAPI document's webhooks and of the files in docs/schemas.

Nothing is checked against them when an event is recorded: that happens in the turn's last transaction. A test holds
every delivered body to them, field for field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, Field, GetJsonSchemaHandler, TypeAdapter
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema

from app.domain.conversation import FinishReason, UsageSource
from app.domain.ledger import CallbackPurpose
from app.domain.problem import Problem
from app.presentation.schemas.fields import absent
from app.presentation.schemas.scores import FinalScores, TurnScores

_DIALECT = "https://json-schema.org/draft/2020-12/schema"

Tokens = Annotated[int, Field(ge=0)]
Turn = Annotated[int, Field(ge=1, description="1, 2, 3 … in its session")]
TurnId = Annotated[str | int, Field(description="as the client chose it, with its JSON type")]
Revision = Annotated[int, Field(ge=1, description="a later judgement of the same has a higher one; the highest counts")]


class _Event(BaseModel):
    """What every event has. A receiver ignores fields and types that it does not know."""

    type: str
    session_id: str = Field(description="of digits", pattern="^[0-9]+$")
    exam_id: int = Field(ge=1)
    participant_id: int = Field(ge=1)
    occurred_at: AwareDatetime = Field(description="when it was recorded, RFC 3339 in UTC")
    callback_seq: int = Field(ge=1, description="1, 2, 3 … in its session, without a gap")


class _Work(_Event):
    """The work that tokens were used for."""

    turn: Turn | None = Field(description="null for work on a whole session")
    turn_id: TurnId | None = Field(description="null for work on a whole session")
    model: str | None
    source: UsageSource = Field(description="whose figures these are")
    purpose: CallbackPurpose


class UsageCallback(_Work):
    """Tokens of a turn that reached the provider, however it ended; all its provider calls together."""

    type: Literal["usage"]
    prompt_tokens: Tokens = Field(description="cached ones included")
    completion_tokens: Tokens = Field(description="reasoning included")
    total_tokens: Tokens
    cached_tokens: Tokens


class UsageAdjustedCallback(_Work):
    """A correction of what was reported as used: the differences, which may be negative."""

    type: Literal["usage_adjusted"]
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reason: str


class MessageMetadata(BaseModel):
    """How a turn ended."""

    status: Literal["completed", "cancelled", "failed"]
    finish_reason: FinishReason | None = Field(description="null where the turn did not complete")
    error_type: str | SkipJsonSchema[None] = absent("a code of the protocol; there for a failed turn alone")
    labels: list[str] | SkipJsonSchema[None] = absent("the guard's labels; there where it found any")


class MessageResponseCallback(_Event):
    """A turn ended; ``ai_message`` is the stored answer, byte for byte, and empty where none came."""

    type: Literal["message_response"]
    turn: Turn
    turn_id: TurnId | None
    ai_message: str
    metadata: MessageMetadata


class TurnEvaluationCallback(_Event):
    """The judgement of one prompt; ``turn_score`` is null where it could not be scored."""

    type: Literal["turn_evaluation"]
    turn: Turn
    turn_log: dict[str, Any]
    turn_score: float | None
    revision: Revision


class FinalScoresCallback(_Event):
    """The scores of a submission."""

    type: Literal["final_scores"]
    submission_id: str | int
    final_scores: FinalScores
    turn_scores: TurnScores
    revision: Revision
    previous_revision: Revision | None = Field(
        description="the highest one of this submission that was told before; null where this is the first"
    )


class SubmissionStatusCallback(_Event):
    """How far a submission is; told where `TURNSTONE_CALLBACKS__PROFILE` has a place for it."""

    type: Literal["submission_status"]
    submission_id: str | int
    status: Literal["queued", "running", "failed"]


class ErrorMetadata(BaseModel):
    """Where it happened; the fields are there for an error of a turn."""

    turn: Turn | SkipJsonSchema[None] = absent("1, 2, 3 … in its session")
    turn_id: TurnId | SkipJsonSchema[None] = absent("as the client chose it, with its JSON type")
    retryable: bool | SkipJsonSchema[None] = absent("whether the same message may be sent again")
    submission_id: str | int | SkipJsonSchema[None] = absent("of a submission that could not be evaluated")


class ErrorCallback(_Event):
    """A turn failed or was interrupted, or something else went wrong that Core ought to know."""

    type: Literal["error"]
    error_type: str = Field(description="a code of the protocol")
    error_message: str
    metadata: ErrorMetadata


CALLBACKS: dict[str, type[_Event]] = {
    "usage": UsageCallback,
    "message_response": MessageResponseCallback,
    "usage_adjusted": UsageAdjustedCallback,
    "turn_evaluation": TurnEvaluationCallback,
    "submission_status": SubmissionStatusCallback,
    "final_scores": FinalScoresCallback,
    "error": ErrorCallback,
}
"""The model of each type."""

AnyCallback = Annotated[
    UsageCallback
    | MessageResponseCallback
    | UsageAdjustedCallback
    | TurnEvaluationCallback
    | SubmissionStatusCallback
    | FinalScoresCallback
    | ErrorCallback,
    Field(discriminator="type"),
]
ANY_CALLBACK: TypeAdapter[_Event] = TypeAdapter(AnyCallback)


class _DescribedAsCallback:
    """Makes a JSON object that is described as a callback's body, and neither checked nor changed.

    What is stored is shown as it is, also what another version has recorded.
    """

    @classmethod
    def __get_pydantic_json_schema__(cls, _schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(ANY_CALLBACK.core_schema)


CallbackPayload = Annotated[dict[str, Any], _DescribedAsCallback]
"""The body that Core receives, within another."""


def json_schemas() -> dict[str, dict[str, Any]]:
    """A JSON Schema for the body of each type, each complete in itself, by the type's name."""
    return {name: {"$schema": _DIALECT, **model.model_json_schema()} for name, model in CALLBACKS.items()}


def published_schemas() -> dict[str, dict[str, Any]]:
    """Everything that stands in docs/schemas, by name: what Core receives, and the problems that it sends."""
    return {**json_schemas(), "problem": {"$schema": _DIALECT, **Problem.model_json_schema()}}


def write_json_schemas(folder: Path) -> None:
    """Write ``<name>.json`` for each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, schema in published_schemas().items():
        text = json.dumps(schema, ensure_ascii=False, indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
