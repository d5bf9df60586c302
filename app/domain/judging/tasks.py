"""What judging passes around: the task, the request, the answer and what was read in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, Generic, Literal, Protocol, TypeVar

from app.domain.conversation import Usage
from app.domain.model_client import ChatMessage
from app.domain.rubric import Rubric
from app.domain.scoring import Criterion, Intent, ScorePolicy, Unscored, Verdict

Language = Literal["en", "ko"]
Purpose = Literal["judge", "control", "probe", "set_aside"]
Said = TypeVar("Said")
"""What is read in an answer."""


class Withhold(IntEnum):
    """How much of the passages that speak to the judge it is not shown."""

    NOTHING = 0
    CLAUSES = 1
    SENTENCES = 2
    TALK = 3
    """Every sentence that names anything of judging."""


class Trials(StrEnum):
    """When the judge is tried before it marks: whether anything in a prompt acts on it.

    ``SUSPICIOUS``: where the prompt names anything of judging; a quarter of honest ones does, each for one call more.
    ``ALWAYS``: for every prompt; two calls for each, and nothing depends on words that somebody thought of.
    """

    SUSPICIOUS = "suspicious"
    ALWAYS = "always"


class UnreadableAnswerError(ValueError):
    """A judge's answer is not what the schema and the rules ask for; the text says what is wrong, for the judge.

    ``no_evidence``: all that is wrong is a quote that is none.
    """

    def __init__(self, reason: str, *, no_evidence: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.no_evidence = no_evidence


@dataclass(frozen=True, slots=True)
class JudgeTask:
    """One prompt to be judged.

    Attributes:
        message: the candidate's prompt as it was sent.
        context: the conversation before it, oldest first; trimmed by whoever makes the task.
        problem_text: the exam's problem, where it has one.
        language: of the instructions and of the advice.
        rubric: what is asked of a prompt.
        policy: which criteria count, and how.
        prompt: the judge's instructions, a template (`app.domain.judging.requests`).
        trials: when the judge is tried.
        withhold: what is left out of passages that speak to the judge; `judge_turn` finds that out.
        earlier: how many prompts of the session there were before it, also those that are not shown.
    """

    message: str
    context: Sequence[ChatMessage]
    problem_text: str | None
    language: Language
    rubric: Rubric
    policy: ScorePolicy
    prompt: str
    trials: Trials = Trials.SUSPICIOUS
    withhold: Withhold = Withhold.NOTHING
    earlier: int = 0


@dataclass(frozen=True, slots=True)
class JudgeRequest:
    """One call. ``input_hash`` is the SHA-256 of all that decides the answer: model, parameters, messages, schema.

    ``parameters`` are ``temperature`` (0), ``seed`` and ``max_output_tokens``.
    """

    messages: tuple[ChatMessage, ...]
    schema: Mapping[str, Any]
    parameters: Mapping[str, Any]
    input_hash: str


@dataclass(frozen=True, slots=True)
class JudgeAnswer:
    """What came of one call: the text as it was written, and what it cost. ``kept``: it was given an earlier time."""

    raw: str
    usage: Usage | None
    latency_ms: int
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """One criterion's mark, 1 to 5, with the candidate's words for it: ``message[start:end]``."""

    criterion: Criterion
    score: int
    quote: str
    start: int
    end: int
    reason: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """One readable answer. ``marks`` has every criterion once."""

    intent: Intent
    marks: tuple[Mark, ...]
    advice: str

    def mark(self, criterion: Criterion) -> Mark:
        """The mark for a criterion."""
        return next(mark for mark in self.marks if mark.criterion == criterion)


@dataclass(frozen=True, slots=True)
class JudgeCall(Generic[Said]):
    """One call for the record.

    ``purpose`` ``judge`` is a sample of the turn or the session itself; ``control`` and ``probe`` find out whether
    suspicious passages act on the judge, and have sample numbers from 100 on; ``set_aside`` is a sample that was made
    before it was known what acts on the judge, and that does not count. ``judgement`` is missing where the answer
    could not be read; then ``error`` says why.
    """

    purpose: Purpose
    sample: int
    attempt: int
    request: JudgeRequest
    answer: JudgeAnswer
    judgement: Said | None
    error: str | None


@dataclass(frozen=True, slots=True)
class TurnJudgement:
    """What came out for one prompt.

    Attributes:
        intent: by majority; ``None`` where no sample could be read.
        marks: the median of each criterion.
        verdict: the prompt's score.
        spread: the largest difference between two samples in one criterion that counts.
        advice: of one of the samples next to the median.
        evidence: the marks of all samples, sample by sample.
        is_suspicious: something in the prompt moved the judge where it should not; a person should look.
        withhold: how much was left out because it acts on the judge.
        withheld: the parts of the message that were left out, ``(start, end)``. A person should look at them; they cost
            nothing by themselves.
        calls: every call that was made.
    """

    intent: Intent | None
    marks: Mapping[Criterion, float | Unscored]
    verdict: Verdict
    spread: int
    advice: str
    evidence: tuple[tuple[Mark, ...], ...]
    is_suspicious: bool = False
    withhold: Withhold = Withhold.NOTHING
    withheld: tuple[tuple[int, int], ...] = ()
    calls: tuple[JudgeCall[Judgement], ...] = ()


class JudgeClient(Protocol):
    """A model that judges. Safe for any number of calls at once."""

    @property
    def model(self) -> str:
        """Name under which calls are stored, ``provider:model``."""

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """One call, one try.

        Raises:
            ModelError: ``llm_unavailable``, ``llm_rejected`` or ``llm_timeout``.
        """

    async def aclose(self) -> None:
        """Close what is open. No call may be running."""
