"""Bodies of submissions."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.application.services.submission_service import Again, RerunOrder, Seen
from app.domain.final_scores import Component, Override
from app.domain.submission import Node, Outcome, Progress
from app.domain.waiting import Wait
from app.infrastructure.persistence.models import SubmissionEvaluation
from app.presentation.schemas.bodies import Said as Code
from app.presentation.schemas.bodies import TurnIdField
from app.presentation.schemas.evaluation_bodies import OverrideRequest, Person
from app.presentation.schemas.exam_bodies import JudgeModel, Name
from app.presentation.schemas.scores import FinalScores, TurnScores

Status = Literal["QUEUED", "RUNNING", "DONE", "FAILED"]
SubmissionIdField = TurnIdField
"""As a turn's id: 1 to 128 characters, or an integer; 7 and "7" are the same one."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class SubmissionRequest(_Body):
    """Code, handed in. Without a ``submission_id`` it gets one of ours, and every call is a submission of its own."""

    code: Code
    language: Annotated[Name, Field(description="one of the problem's languages")]
    submission_id: SubmissionIdField | None = Field(None, description="unique among all submissions")


class RerunRequest(_Body):
    """Who wants a submission evaluated again, what of it, and by what; what is left out stays as it was."""

    person: Person
    again: Again = Field(
        "all", description="`all`; what was `missing`, the rest is taken over; the `scores` alone, from what was found"
    )
    rubric: Name | None = None
    score_policy: Name | None = None
    judge_model: JudgeModel | None = None
    as_set_now: bool = Field(False, strict=True, description="go by the exam's settings as they are now")

    def order(self) -> RerunOrder:
        """What the service takes."""
        return RerunOrder(**self.model_dump())


class ScoreOverrideRequest(OverrideRequest):
    """A person's score of a part of a submission, 0 to 100, and why."""

    component: Component

    def override(self) -> Override:
        """What the service takes."""
        return Override(self.score, self.reason, self.person)


class ScoreAppealBody(BaseModel):
    """The review that the appeal has opened, and the revision that is made for it; a person releases that."""

    review_id: str
    revision: int


class ReleaseRequest(_Body):
    """Who has looked at the scores."""

    person: Person


class ProgressBody(BaseModel):
    """How far it is: ``percent`` of 100, and of the test cases how many of how many have been run."""

    stage: str
    percent: int
    cases_done: int
    cases_total: int

    @classmethod
    def of(cls, progress: Progress) -> ProgressBody:
        """The progress as a body."""
        return cls(**progress.to_json())


class WaitBody(BaseModel):
    """What a step has to wait for, and since when."""

    step: str
    reason: str
    since: datetime


class SubmissionEvaluationBody(BaseModel):
    """One evaluation. ``published``: Core was told of it; ``held``: a person has to release it."""

    revision: int
    status: Literal["waiting", "held", "done"]
    cause: Literal["submission", "rerun", "appeal"]
    asked_by: str | None
    published: bool
    tries: int
    waits_for: list[WaitBody]
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, evaluation: SubmissionEvaluation) -> SubmissionEvaluationBody:
        """The stored evaluation as a body."""
        return cls(
            revision=evaluation.revision,
            status=evaluation.status.value,
            cause=evaluation.cause,
            asked_by=evaluation.asked_by,
            published=evaluation.published,
            tries=evaluation.tries,
            waits_for=[
                WaitBody(step=step, reason=wait["reason"], since=datetime.fromtimestamp(wait["since"], UTC))
                for step, wait in evaluation.waits.items()
                if not Wait.from_json(wait).is_over(time.time())  # such a step is given up
            ],
            created_at=evaluation.created_at,
            ended_at=evaluation.ended_at,
        )


class StepCostBody(BaseModel):
    """What a step took: calls to a judge with their tokens, and milliseconds in all."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    ms: int


class StepBody(BaseModel):
    """What came of a step, as it was stored. ``missing``: it cannot be had, for ``reason``."""

    step: str
    status: Literal["ok", "missing", "skipped"]
    reason: str | None
    value: Any = Field(description="what it found; its form is the step's own")
    evidence: Any = Field(description="where to look for what it rests on")
    versions: dict[str, Any] = Field(description="what it was made by")
    cost: StepCostBody


class StepsBody(BaseModel):
    """An evaluation with its steps, in their order, as far as they are done."""

    revision: int
    status: Literal["waiting", "held", "done"]
    steps: list[StepBody]

    @classmethod
    def of(cls, evaluation: SubmissionEvaluation, steps: Mapping[Node, Outcome]) -> StepsBody:
        """The stored steps as a body."""
        told = [StepBody(step=node.value, **steps[node].to_json()) for node in Node if node in steps]
        return cls(revision=evaluation.revision, status=evaluation.status.value, steps=told)


class SubmissionBody(BaseModel):
    """A submission; the result is that of the highest ``revision`` that is known, and null before there is one.

    To be shown without what is unset: a result is what Core was told, to the letter.
    """

    submission_id: str | int
    session_id: str
    language: str
    code_hash: str
    last_turn: int
    status: Status
    progress: ProgressBody
    revision: int | None
    final_scores: FinalScores | None
    turn_scores: TurnScores | None
    evaluations: list[SubmissionEvaluationBody]
    created_at: datetime
    ended_at: datetime | None

    @classmethod
    def of(cls, seen: Seen) -> SubmissionBody:
        """The stored submission as a body."""
        submission, told = seen.submission, seen.told
        result = told.result if told is not None and told.result is not None else {}
        return cls(
            submission_id=submission.told_id,
            session_id=str(submission.session_id),
            language=submission.language,
            code_hash=submission.code_hash,
            last_turn=submission.last_turn,
            status=submission.status.value,
            progress=ProgressBody.of(Progress.from_json(submission.progress)),
            revision=None if told is None else told.revision,
            final_scores=result.get("final_scores"),
            turn_scores=result.get("turn_scores"),
            evaluations=[SubmissionEvaluationBody.of(each) for each in seen.evaluations],
            created_at=submission.created_at,
            ended_at=submission.ended_at,
        )
