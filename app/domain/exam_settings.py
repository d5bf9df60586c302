"""What Core sets about an exam: its text, and what its chat and its judgements go by. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from app.domain.documents import DocumentKind, content_hash, shipped
from app.domain.guard_policy import GuardAction, GuardRules

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
DEFAULT_LANGUAGE: Language = "en"
MOST_SAMPLES = 9
MOST_SUBMISSIONS = 100


@dataclass(frozen=True, slots=True)
class ExamTerms:
    """What of an exam a chat's turn goes by: some of `ExamSettings`, and which ``version`` they are.

    All ``None`` where Core has said nothing of the exam; ``version`` also where it had before there were versions.
    """

    problem_text: str | None = None
    language: Language = DEFAULT_LANGUAGE
    guard: GuardRules | None = None
    version: int | None = None

    @property
    def hints_only(self) -> bool:
        """Whether the model is to write no code, whatever it is asked."""
        return self.guard is not None and self.guard.code is GuardAction.HINT


def default_document(kind: DocumentKind, language: Language) -> str:
    """The name of the shipped document that an exam goes by which names none."""
    return {"rubric": "standard", "prompt": f"judge.{language}", "policy": "v2"}[kind]


@dataclass(frozen=True, slots=True)
class ExamSettings:
    """An exam's settings. Whatever they name is named by the hash of its content, so a version says all there is to it.

    Attributes:
        problem_text: the problem, which the model is told, and the judge.
        language: of refusals and of the judge's prompt.
        guard: what to do about the guard's labels; ``None``: what the service is set to.
        rubric: hash of a rubric.
        judge_prompt: hash of a judge's prompt.
        score_policy: hash of a score policy.
        samples: independent judgements of each prompt, 1 to 9; ``None``: as the score policy has it.
        judge_model: the model that judges; ``None``: the service's.
        submissions: how many each session may hand in, 1 to 100.
        hold_scores: a person looks at a submission's scores before anybody is told of them.
    """

    problem_text: str
    rubric: str
    judge_prompt: str
    score_policy: str
    language: Language = DEFAULT_LANGUAGE
    guard: GuardRules | None = None
    samples: int | None = None
    judge_model: str | None = None
    submissions: int = 1
    hold_scores: bool = False

    @classmethod
    def default(cls, problem_text: str = "", language: Language = DEFAULT_LANGUAGE) -> ExamSettings:
        """Settings of an exam of which Core has said nothing else: what is shipped."""
        rubric, judge_prompt, score_policy = (
            content_hash(shipped(kind, default_document(kind, language))) for kind in ("rubric", "prompt", "policy")
        )
        return cls(problem_text, rubric, judge_prompt, score_policy, language)

    def to_json(self) -> dict[str, Any]:
        """All but the problem's text, which is stored beside it."""
        stored = asdict(self) | {"guard": None if self.guard is None else self.guard.to_json()}
        del stored["problem_text"]
        return stored

    @classmethod
    def from_json(cls, problem_text: str, stored: Mapping[str, Any]) -> ExamSettings:
        """The inverse of `to_json`. Of an exam older than its settings only the text is known."""
        if not stored:
            return cls.default(problem_text)
        guard = stored["guard"]
        return cls(
            problem_text,
            rubric=stored["rubric"],
            judge_prompt=stored["judge_prompt"],
            score_policy=stored["score_policy"],
            language=stored["language"],
            guard=None if guard is None else GuardRules.from_json(guard),
            samples=stored["samples"],
            judge_model=stored["judge_model"],
            submissions=stored.get("submissions", 1),
            hold_scores=stored.get("hold_scores", False),
        )

    def terms(self, version: int | None) -> ExamTerms:
        """What a chat's turn goes by."""
        return ExamTerms(self.problem_text, self.language, self.guard, version)

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything, in hex: equal settings have equal hashes."""
        whole = {"problem_text": self.problem_text, **self.to_json()}
        return content_hash(json.dumps(whole, ensure_ascii=False, sort_keys=True, separators=(",", ":")))
