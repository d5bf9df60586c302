"""Bodies of the REST interface that tell of judgements and reviews."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app.infrastructure.persistence.models import EvaluationRun, ReviewItem, ScoreOverride
from app.infrastructure.repositories.evaluation_repository import CallsSummary
from app.presentation.schemas.bodies import Text

ReviewReason = Literal[
    "samples_differ",
    "attack_flagged",
    "refused",
    "near_grade_edge",
    "unscored",
    "appeal",
    "component_missing",
    "held_for_review",
    "evidence_missing",
    "unlike_conversation",
]


def _can_be_stored(text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    if not text.strip():
        raise ValueError("is empty")
    return text


Said = Annotated[Text, StringConstraints(max_length=4_000), AfterValidator(_can_be_stored)]
Person = Annotated[Text, StringConstraints(max_length=200), AfterValidator(_can_be_stored)]


class CallsBody(BaseModel):
    """A run's calls to judges. ``cached``: answers taken from an earlier call, which used nothing.

    ``cost`` at the prices of the time, in ``currency``; null where the model had none.
    """

    calls: int
    cached: int
    failed: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    currency: str | None


class EvaluationBody(BaseModel):
    """A run: one judgement of one turn. ``result`` is what Core reads in ``turn_log``; null while it waits.

    ``published``: Core knows it, or will as soon as it is done.
    """

    id: str
    turn: int
    turn_id: str | int | None
    revision: int
    status: Literal["waiting", "done"]
    cause: Literal["turn", "rerun", "appeal"]
    batch: str | None
    asked_by: str | None
    published: bool
    score: float | None
    result: dict[str, Any] | None
    calls: CallsBody
    tries: int
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, run: EvaluationRun, turn_id: str | int | None, calls: CallsSummary) -> EvaluationBody:
        """The stored run as a body."""
        return cls(
            id=str(run.id),
            turn=run.judged_turn,
            turn_id=turn_id,
            revision=run.revision,
            status=run.status.value,
            cause=run.cause,
            batch=run.batch,
            asked_by=run.asked_by,
            published=run.published,
            score=None if run.result is None else run.result["score"],
            result=run.result,
            calls=CallsBody(
                calls=calls.calls,
                cached=calls.cached,
                failed=calls.failed,
                prompt_tokens=calls.prompt_tokens,
                completion_tokens=calls.completion_tokens,
                cost=calls.cost,
                currency=calls.currency,
            ),
            tries=run.tries,
            created_at=run.created_at,
            ended_at=run.ended_at,
        )


class ReviewBody(BaseModel):
    """A turn, or a submission, that a person is to look at, why, and what came of it.

    Of a submission's item ``turn`` is null, and ``submission_id`` and ``revision`` say which evaluation it is about.
    """

    id: str
    session_id: str
    exam_id: int
    turn: int | None
    evaluation_id: str | None
    submission_id: str | int | None
    revision: int | None
    reason: ReviewReason
    details: dict[str, Any]
    asked_by: str | None
    status: Literal["open", "resolved"]
    resolved_by: str | None
    resolution: str | None
    created_at: datetime
    resolved_at: datetime | None

    @classmethod
    def of(cls, item: ReviewItem, exam_id: int) -> ReviewBody:
        """The stored item as a body."""
        return cls(
            id=str(item.id),
            session_id=str(item.session_id),
            exam_id=exam_id,
            turn=item.turn,
            evaluation_id=None if item.run_id is None else str(item.run_id),
            submission_id=None if item.turn is not None else item.details.get("submission_id"),
            revision=None if item.turn is not None else item.details.get("revision"),
            reason=item.reason.value,
            details=item.details,
            asked_by=item.asked_by,
            status="open" if item.resolved_at is None else "resolved",
            resolved_by=item.resolved_by,
            resolution=item.resolution,
            created_at=item.created_at,
            resolved_at=item.resolved_at,
        )


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ResolveRequest(_Body):
    """Who has looked, and what came of it."""

    person: Person
    resolution: Said


class OverrideRequest(_Body):
    """A person's score of a turn, 0 to 100, and why."""

    score: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=True)]
    reason: Said
    person: Person


class OverrideBody(BaseModel):
    """A person's score as it is kept; ``revision`` is that of the event that tells Core.

    It is of a turn, or of a submission's ``component``; then ``turn`` is null.
    """

    session_id: str
    turn: int | None
    component: str | None
    score: float
    reason: str
    person: str
    revision: int
    created_at: datetime

    @classmethod
    def of(cls, override: ScoreOverride) -> OverrideBody:
        """The stored override as a body."""
        return cls(
            session_id=str(override.session_id),
            turn=override.turn,
            component=override.component,
            score=override.score,
            reason=override.reason,
            person=override.person,
            revision=override.revision,
            created_at=override.created_at,
        )


class AppealRequest(_Body):
    """Who asks that a turn be looked at again, and why."""

    person: Person
    reason: Said


class AppealBody(BaseModel):
    """The review that the appeal has opened, and the further judgement made for it.

    Core is told of that judgement when somebody publishes ``batch``.
    """

    review_id: str
    evaluation_id: str
    batch: str
