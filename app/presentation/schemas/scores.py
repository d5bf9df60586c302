"""What Core is told of a submission: ``final_scores`` and ``turn_scores``, as models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from app.domain.policy_terms import CaseGroup
from app.presentation.schemas.fields import absent

Points = Annotated[float, Field(ge=0, le=100)]
MaybePoints = Annotated[Points | None, Field(description="0 to 100, not rounded; null where there is none, never 0")]
Count = Annotated[int, Field(ge=0)]


class ComponentScore(BaseModel):
    """A part of the result: its score, or why it has none. ``missing`` is no zero: people have to look."""

    status: Literal["ok", "missing", "overridden"]
    score: MaybePoints
    reason: str | None = Field(description="why it is missing, or why a person has set it")
    person: str | SkipJsonSchema[None] = absent("who has set it; there where it is overridden")
    machine_score: MaybePoints = absent("what a person's score stands beside; there where it is overridden")


class Components(BaseModel):
    """Every part."""

    prompt: ComponentScore
    correctness: ComponentScore
    performance: ComponentScore
    total: ComponentScore


class PromptParts(BaseModel):
    """What the prompt score is made of."""

    holistic: MaybePoints
    turn_mean: MaybePoints
    session_r4: MaybePoints


class PolicyName(BaseModel):
    """By which formulas."""

    name: str
    hash: str


class TestCaseResult(BaseModel):
    """One test case. ``SE``: it could not be run, by no fault of the code."""

    __test__ = False

    index: Count
    group: CaseGroup
    verdict: Literal["AC", "WA", "TLE", "MLE", "RE", "CE", "OLE", "SE"]
    cause: str | SkipJsonSchema[None] = absent("what led to the verdict; never words of the program")
    time_ms: Count | None = Field(description="processor time")
    memory_kb: Count | None
    stdout_bytes: Count | None
    stderr_bytes: Count | None


class FinalScores(BaseModel):
    """The scores of a submission; a person has to look where the status is ``PENDING_REVIEW``."""

    status: Literal["SCORED", "PENDING_REVIEW"]
    prompt_score: MaybePoints
    correctness_score: MaybePoints
    performance_score: MaybePoints
    total_score: MaybePoints
    grade: str | None = Field(description="null where there is no total")
    components: Components
    prompt: PromptParts
    policy: PolicyName
    versions: dict[str, Any] = Field(description="what it was made by: documents by hash, models, versions, isolation")
    test_cases: list[TestCaseResult]


class TurnScore(BaseModel):
    """One prompt's score as it went into the result; ``left_out``: the policy leaves it out of every mean."""

    score: MaybePoints
    intent: str | None
    status: Literal["ok", "missing", "left_out", "overridden"]
    reason: str | None = Field(description="why there is no score")


TurnScores = Annotated[dict[str, TurnScore], Field(description="by the turn's number, as text")]
