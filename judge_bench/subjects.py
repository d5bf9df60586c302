"""From the data to what a judge is given, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from app.domain.documents import shipped
from app.domain.judging import (
    JudgeClient,
    JudgeTask,
    TurnJudgement,
    build_request,
    judge_turn,
)
from app.domain.judging.requests import shown_message
from app.domain.judging.tasks import Language, Trials, Withhold
from app.domain.model_client import ChatMessage
from app.domain.rubric import Rubric
from app.domain.scoring import Criterion, Intent, Score, ScorePolicy, Unscored
from guard_training.data import Example
from judge_bench.data import Attack, Ladder

ANSWER = "OK."
"""Stands for the chat model's answers between a candidate's prompts, which the data does not have."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a judge made of a prompt. Points are 0 to 100; ``None``: unscored, for the reason in ``unscored``."""

    marks: Mapping[Criterion, float]
    intent: Intent | None
    points: float | None
    unscored: str | None
    withhold: Withhold
    suspicious: bool
    tried: bool
    calls: int
    tokens: int
    false_quotes: int

    @property
    def withheld(self) -> bool:
        """Whether anything was left out of what the judge was shown."""
        return self.withhold is not Withhold.NOTHING

    @property
    def is_scored(self) -> bool:
        """Whether there are marks."""
        return self.points is not None


@cache
def documents(language: Language) -> tuple[Rubric, ScorePolicy, str]:
    """The shipped ones, the policy with one sample and no rounding."""
    rubric = Rubric.parse(shipped("rubric", "standard"))
    policy = replace(ScorePolicy.parse(shipped("policy", "compat-2026")), samples=1, rounding={})
    return rubric, policy, shipped("prompt", f"judge.{language}")


def task_of(
    message: str,
    language: Language,
    context: Sequence[ChatMessage] = (),
    *,
    problem: str | None = None,
    trials: Trials = Trials.SUSPICIOUS,
) -> JudgeTask:
    """A prompt with the shipped documents and one sample."""
    rubric, policy, prompt = documents(language)
    return JudgeTask(message, tuple(context), problem, language, rubric, policy, prompt, trials)


def attacked(attack: Attack, trials: Trials) -> JudgeTask:
    """The attack with the turns before it."""
    return task_of(attack.attack, attack.language, _turns(attack.earlier), trials=trials)


def reference(attack: Attack, trials: Trials) -> JudgeTask:
    """What the attack is compared with: its honest request alone, or the twin where that cannot stand alone."""
    if attack.bare is not None:
        # The turns before an attack may be half of it, so they would lift what it is compared with as well.
        return task_of(attack.bare, attack.language, _turns(attack.twin_earlier), trials=trials)
    return harmless(attack, trials)


def harmless(attack: Attack, trials: Trials) -> JudgeTask:
    """The twin with the turns before it."""
    return task_of(attack.twin, attack.language, _turns(attack.twin_earlier), trials=trials)


def harmless_task(example: Example, trials: Trials) -> JudgeTask:
    """A harmless prompt that uses an attack's words, at the start of a session."""
    return task_of(example.text, "ko" if example.language == "ko" else "en", trials=trials)


def rungs(ladder: Ladder, trials: Trials) -> list[JudgeTask]:
    """The six prompts of a ladder."""
    context = (ChatMessage("assistant", ladder.context),) if ladder.context else ()
    return [
        task_of(version.text, ladder.language, context, problem=ladder.problem, trials=trials)
        for version in ladder.versions
    ]


async def judged(judge: JudgeClient, task: JudgeTask) -> Outcome:
    """Judge with the whole defence."""
    return _outcome(await judge_turn(judge, task), task)


async def unguarded(judge: JudgeClient, task: JudgeTask) -> Outcome:
    """Judge without it: the text goes to the judge as it was sent, once, and its marks are taken as they are.

    An answer without an intent and four marks of 1 to 5 is unscored.
    """
    request = build_request(task, model=judge.model, sample=0)
    *others, last = request.messages
    shown, sent = shown_message(task).text, task.message
    messages = (*others, ChatMessage("user", sent.join(last.content.rsplit(shown, 1)) if shown else last.content))
    answer = await judge.complete(replace(request, messages=messages))
    try:
        intent, marks = _read_as_it_is(answer.raw)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Outcome({}, None, None, "unreadable answer", Withhold.NOTHING, False, False, 1, 0, 0)
    verdict = task.policy.turn(intent, marks)
    points = verdict.value if isinstance(verdict, Score) else None
    return Outcome(marks, intent, points, None, Withhold.NOTHING, False, False, 1, 0, 0)


def _read_as_it_is(raw: str) -> tuple[Intent, dict[Criterion, float]]:
    said = json.loads(raw)
    marks = {name: float(said["criteria"][name]["score"]) for name in Criterion}
    if not all(1 <= mark <= 5 for mark in marks.values()):
        raise ValueError("a mark is not on the scale")
    return Intent(said["intent"]), marks


def _turns(earlier: Sequence[str]) -> list[ChatMessage]:
    return [said for text in earlier for said in (ChatMessage("user", text), ChatMessage("assistant", ANSWER))]


def _outcome(judgement: TurnJudgement, task: JudgeTask) -> Outcome:
    verdict = judgement.verdict
    quotes = [mark for sample in judgement.evidence for mark in sample]
    usages = [call.answer.usage for call in judgement.calls if call.answer.usage is not None]
    return Outcome(
        marks={name: mark for name, mark in judgement.marks.items() if not isinstance(mark, Unscored)},
        intent=judgement.intent,
        points=verdict.value if isinstance(verdict, Score) else None,
        unscored=verdict.reason if isinstance(verdict, Unscored) else None,
        withhold=judgement.withhold,
        suspicious=judgement.is_suspicious,
        tried=any(call.purpose == "probe" for call in judgement.calls),
        calls=sum(call.purpose != "control" for call in judgement.calls),  # controls are asked once, then kept
        tokens=sum(usage.total_tokens for usage in usages),
        false_quotes=sum(mark.quote != task.message[mark.start : mark.end] or not mark.quote for mark in quotes),
    )
