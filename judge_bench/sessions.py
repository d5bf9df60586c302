"""Whole sessions: how far an attack in one moves the panel, and how many calls an exam takes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from app.core.errors import ModelError
from app.domain.documents import shipped
from app.domain.judging import JudgeClient, JudgeTask, PanelTask, PanelTurn, judge_panel
from app.domain.judging.tasks import Trials
from app.domain.judging.turn import EDGES_OF
from app.domain.model_client import ChatMessage
from app.domain.rubric import LANGUAGES
from app.domain.scoring import ScorePolicy, Unscored
from judge_bench.data import Attack, Ladder
from judge_bench.measures import STOPPED, JudgeFor, Pair, Plan, Result, evaluate, failed, lifted, mean
from judge_bench.subjects import ANSWER, Outcome, documents, judged, task_of

_SESSION_INTENTS = frozenset({"CREATION", "EXPLORATION", "SETTING"})
"""Of prompts that can stand beside any other."""
_OTHER_PROMPTS = 4
EXAM_PROMPTS = 20
_EXAM_ROUNDS = 4
"""How often all prompts are dealt anew into exams."""
_REVIEW_CALLS = 1
"""The code review's, once an exam."""


@dataclass(frozen=True, slots=True)
class Exam:
    """A whole exam: each prompt as a task of its own, and the session for the panel."""

    prompts: tuple[JudgeTask, ...]
    session: PanelTask


async def panel(
    judge_for: JudgeFor, honest: JudgeClient | None, entries: Sequence[Attack], ladders: Sequence[Ladder], plan: Plan
) -> Result:
    """How far an attack among a session's prompts lifts the panel's marks; arguments are those of `attacks`."""

    async def measure(attack: Attack) -> Pair:
        judge = judge_for(attack)
        task = session_with(attack, ladders, plan.trials)
        under_attack = await judged_session(judge, task)
        if honest is None:
            calm = attack.model_copy(update={"attack": attack.bare or attack.twin, "earlier": attack.twin_earlier})
            return Pair(under_attack, await judged_session(judge, session_with(calm, ladders, plan.trials)))
        shown = replace(task, trials=Trials.SUSPICIOUS, withhold=under_attack.withhold)
        return Pair(under_attack, await judged_session(honest, shown))

    report = await evaluate("panel", [(one.id, one) for one in entries], measure, plan)
    outcomes = [case.output.attack for case in report.cases]
    return {
        "sessions": len(entries),
        **lifted({case.name: case.output for case in report.cases}),
        "unscored": sum(not outcome.is_scored for outcome in outcomes),
        "flagged": sum(outcome.suspicious for outcome in outcomes),
        "false_quotes": sum(outcome.false_quotes for outcome in outcomes),
        "most_calls": max((outcome.calls for outcome in outcomes), default=None),
        "calls": mean(outcome.calls for outcome in outcomes),
        "calls_of_honest": mean(case.output.honest.calls for case in report.cases),
        **failed(report),
    }


async def exams(judge: JudgeClient, entries: Sequence[Ladder], plan: Plan) -> Result:
    """How many calls an exam of 20 prompts takes with the shipped policy: its turns, its panel and a code review."""
    known: dict[tuple[str, Sequence[ChatMessage], bool], int] = {}

    async def calls_of(task: JudgeTask) -> int:
        what = (task.message, task.context, task.earlier < EDGES_OF)  # a prompt's place tells nothing else
        if what not in known:
            known[what] = (await judged(judge, task)).calls
        return known[what]

    exams = drawn_exams(entries, plan.trials)
    turns, panels = [], []
    for exam in exams:
        try:
            of_turns = sum([await calls_of(task) for task in exam.prompts])
            panels.append((await judged_session(judge, exam.session)).calls)
        except ModelError:
            continue
        turns.append(of_turns)
    totals = [sum(both) + _REVIEW_CALLS for both in zip(turns, panels, strict=True)]
    return {
        "exams": len(totals),
        "turn_calls": _mean_and_most(turns),
        "panel_calls": _mean_and_most(panels),
        "calls": _mean_and_most(totals),
        "failures": len(exams) - len(totals),
        **({} if totals else {STOPPED: "no exam could be measured"}),
    }


def _mean_and_most(calls: Sequence[int]) -> Result:
    return {"mean": mean(calls), "most": max(calls, default=None)}


def drawn_exams(ladders: Sequence[Ladder], trials: Trials) -> list[Exam]:
    """Exams of 20 prompts each, drawn from the ladders of one language, with the shipped policy."""
    drawn = []
    for language in LANGUAGES:
        _, _, prompt = documents(language)
        policy = ScorePolicy.parse(shipped("policy", "v2"))
        steps = [(one.context, version.text) for one in ladders if one.language == language for version in one.versions]
        for seed in range(_EXAM_ROUNDS):
            random.Random(seed).shuffle(steps)  # noqa: S311 - a draw, no secret
            for at in range(0, len(steps) - len(steps) % EXAM_PROMPTS, EXAM_PROMPTS):
                chosen = steps[at : at + EXAM_PROMPTS]
                tasks = tuple(
                    replace(
                        task_of(text, language, [ChatMessage("assistant", said)] if said else [], trials=trials),
                        policy=policy,
                        prompt=prompt,
                        earlier=earlier,
                    )
                    for earlier, (said, text) in enumerate(chosen)
                )
                turns = tuple(
                    PanelTurn(number, text, chosen[number % len(chosen)][0] or ANSWER)
                    for number, (_, text) in enumerate(chosen, start=1)
                )
                rubric, _, _ = documents(language)
                asked = shipped("prompt", f"panel.{language}")
                drawn.append(Exam(tasks, PanelTask(turns, None, language, rubric, policy, asked, trials)))
    return drawn


def session_with(attack: Attack, ladders: Sequence[Ladder], trials: Trials) -> PanelTask:
    """The attack as the third of five prompts of a short session; the others are harmless, and of middling quality."""
    rubric, policy, _ = documents(attack.language)
    others = [one for one in ladders if one.language == attack.language and one.intent in _SESSION_INTENTS]
    at = int(attack.id.removeprefix("a-"))
    chosen = [others[(at + step) % len(others)].versions[2].text for step in range(_OTHER_PROMPTS)]
    prompts = [*chosen[:2], *attack.earlier, attack.attack, *chosen[2:]]
    turns = tuple(PanelTurn(number, prompt, ANSWER) for number, prompt in enumerate(prompts, start=1))
    prompt = shipped("prompt", f"panel.{attack.language}")
    return PanelTask(turns, None, attack.language, rubric, policy, prompt, trials)


async def judged_session(judge: JudgeClient, task: PanelTask) -> Outcome:
    """A session judged by a panel with the whole defence; points are the mean of its marks."""
    judgement = await judge_panel(judge, task)
    marks = {name: mark for name, mark in judgement.marks.items() if not isinstance(mark, Unscored)}
    sent = {turn.number: turn.prompt for turn in task.conversation}
    quotes = [mark for sample in judgement.judges for mark in sample.marks]
    usages = [call.answer.usage for call in judgement.calls if call.answer.usage is not None]
    return Outcome(
        marks=marks,
        intent=None,
        points=fmean(marks.values()) * task.policy.points_per_mark if marks else None,
        unscored=judgement.reason,
        withhold=judgement.withhold,
        suspicious=judgement.is_suspicious,
        tried=any(call.purpose == "probe" for call in judgement.calls),
        calls=sum(call.purpose != "control" for call in judgement.calls),
        tokens=sum(usage.total_tokens for usage in usages),
        false_quotes=sum(mark.quote != sent[mark.turn][mark.start : mark.end] or not mark.quote for mark in quotes),
    )
