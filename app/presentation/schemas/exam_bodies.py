"""Bodies of exams: what Core sets about them, and what they are set to."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app.domain.exam_settings import DEFAULT_LANGUAGE, MOST_SAMPLES, MOST_SUBMISSIONS, ExamSettings, Language
from app.domain.guard_policy import GuardAction, GuardRules
from app.domain.guarding import GuardLabel
from app.domain.judge_names import JUDGES, is_judge
from app.infrastructure.persistence.models import Exam, ExamVersion
from app.presentation.schemas.bodies import Text


def _without_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("holds a NUL character")
    return text


Storable = Annotated[Text, AfterValidator(_without_nul)]
Name = Annotated[Storable, StringConstraints(min_length=1, max_length=128)]


def _a_judge(model: str) -> str:
    if not is_judge(model):
        raise ValueError(f"is no judge: it is {JUDGES}")
    return model


JudgeModel = Annotated[Name, AfterValidator(_a_judge)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GuardBody(_Body):
    """What the exam wants done about the guard's labels; a label that is left out is flagged."""

    actions: dict[GuardLabel, GuardAction] = Field(
        default_factory=dict, description="`allow`: not labelled; `flag`; `hint`: hints and no code; `refuse`"
    )
    code: Literal["allow", "hint"] = Field(
        "allow", description="`hint`: the model is told to write no code, whatever it is asked"
    )
    ask_model: bool = Field(False, strict=True, description="a model decides where the guard is in doubt")

    def rules(self) -> GuardRules:
        """The policy that this says."""
        return GuardRules(self.actions, GuardAction(self.code), self.ask_model)


class ExamRequest(_Body):
    """An exam's settings. What is left out is set to its default; documents are named, or given by their hash."""

    problem_text: Annotated[Storable, StringConstraints(max_length=100_000)]
    language: Language = Field(DEFAULT_LANGUAGE, description="of refusals and of the judge's prompt")
    guard: GuardBody | None = Field(None, description="null: as the service is set")
    rubric: Name | None = Field(None, description="a rubric; by default `standard`")
    judge_prompt: Name | None = Field(None, description="a judge's prompt; by default `judge.` and the language")
    score_policy: Name | None = Field(None, description="a score policy; by default `v2`")
    samples: Annotated[int, Field(ge=1, le=MOST_SAMPLES, strict=True)] | None = Field(
        None, description="independent judgements of each prompt; null: as the score policy has it"
    )
    judge_model: JudgeModel | None = Field(None, description="the model that judges; null: the service's")
    submissions: Annotated[int, Field(ge=1, le=MOST_SUBMISSIONS, strict=True)] = Field(
        1, description="how many each session may hand in"
    )
    hold_scores: bool = Field(
        False, strict=True, description="a person looks at a submission's scores before anybody is told of them"
    )


class _ExamSettingsBody(BaseModel):
    """An exam's settings; documents are hashes, which a PUT takes as well."""

    id: int
    version: int | None = Field(description="null for an exam that was told before there were versions")
    problem_text: str
    language: Language
    guard: GuardBody | None
    rubric: str
    judge_prompt: str
    score_policy: str
    samples: int | None
    judge_model: str | None
    submissions: int
    hold_scores: bool


class ExamBody(_ExamSettingsBody):
    """What the worker knows of an exam: the newest version of its settings."""

    updated_at: datetime

    @classmethod
    def of(cls, exam: Exam) -> ExamBody:
        """The stored exam as a body."""
        version = exam.version if exam.settings else None
        settings = ExamSettings.from_json(exam.problem_text, exam.settings)
        return cls(updated_at=exam.updated_at, **_members(exam.id, version, settings))


class ExamVersionBody(_ExamSettingsBody):
    """Settings that an exam has, or once had."""

    created_at: datetime

    @classmethod
    def of(cls, version: ExamVersion) -> ExamVersionBody:
        """The stored version as a body."""
        settings = ExamSettings.from_json(version.problem_text, version.settings)
        return cls(created_at=version.created_at, **_members(version.exam_id, version.version, settings))


def _members(exam_id: int, version: int | None, settings: ExamSettings) -> dict[str, Any]:
    return {"id": exam_id, "version": version, "problem_text": settings.problem_text, **settings.to_json()}
