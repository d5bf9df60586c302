"""Judging a whole session: independent judges, their medians, and how it is found out that a session acts on them.

The judges are samples: each has an order of criteria of its own, and none is shown a score, or what another has said.
Where two are apart there is one more. As with a turn (`turn`), a judge is tried before it is believed where something
in the session may speak to it: it marks a plain session (the control), and that session again with the candidate's
shown as what is not to be marked. docs/adr/0008 has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final

from app.domain.judging.aside import aside
from app.domain.judging.asking import Asked, ask, at_once, set_aside
from app.domain.judging.panel_requests import (
    PanelMark,
    PanelSample,
    PanelTask,
    build_panel_request,
    read_panel_answer,
)
from app.domain.judging.session import PanelTurn, ShownSession
from app.domain.judging.suspicion import mentions_judging
from app.domain.judging.tasks import JudgeCall, JudgeClient, Language, Purpose, Trials, Withhold
from app.domain.judging.trials import CONTROLS, FIRST_TRIAL, OBEYED_FROM, TIMES, is_moved, is_too_good
from app.domain.scoring import Criterion, Unscored

FEWEST_JUDGES: Final = 2
"""Of those that could be read; a single one is no panel."""
_STEPS: Final = (Withhold.SENTENCES, Withhold.TALK)
"""What is left out, one after the other, where a session acts on the judge. Each costs a call to try."""
_TOO_GOOD_FROM: Final = 1
"""Criteria with the highest mark from which on the judges are tried: a panel's marks weigh most of all."""

__all__ = ["PanelJudgement", "PanelMark", "PanelSample", "PanelTask", "PanelTurn", "judge_panel"]


@dataclass(frozen=True, slots=True)
class PanelJudgement:
    """What came out for a session.

    Attributes:
        judges: what each judge said that could be read.
        marks: the median of each criterion.
        spread: the largest difference between two judges in one criterion, in marks.
        another: there was one judge more, since two were apart or one could not be read.
        analysis: of the judge that is nearest to the medians.
        session: what the judges were shown.
        withhold: how much was left out because it acts on the judge.
        is_suspicious: something in the session moved the judge where it should not; a person should look.
        calls: every call that was made.
    """

    judges: tuple[PanelSample, ...]
    marks: Mapping[Criterion, float | Unscored]
    spread: int
    another: bool
    analysis: str
    session: ShownSession
    withhold: Withhold = Withhold.NOTHING
    is_suspicious: bool = False
    calls: tuple[JudgeCall[PanelSample], ...] = ()

    @property
    def reason(self) -> str | None:
        """Why there are no marks; ``None`` where there are."""
        return next((mark.reason for mark in self.marks.values() if isinstance(mark, Unscored)), None)

    def to_json(self) -> dict[str, Any]:
        """As it is stored: a mark that is missing is null, and ``reason`` says why."""
        return {
            "judges": [judge.to_json() for judge in self.judges],
            "marks": {name.value: None if isinstance(mark, Unscored) else mark for name, mark in self.marks.items()},
            "reason": self.reason,
            "spread": self.spread,
            "fourth": self.another,
            "analysis": self.analysis,
            "suspicious": self.is_suspicious,
            "withhold": self.withhold.name.lower(),
            "shown": {
                "turns": [turn.number for turn in self.session.turns],
                "turns_left_out": list(self.session.left_out),
                "prompt_characters_left_out": self.session.prompt_characters,
                "answer_characters_left_out": self.session.answer_characters,
            },
        }


async def judge_panel(client: JudgeClient, task: PanelTask) -> PanelJudgement:
    """Mark a session as a whole.

    The same task gives the same requests bit by bit, so a client that keeps answers by ``input_hash`` asks for none
    twice; judges are asked at the same time.

    Raises:
        ModelError: the judge cannot be asked. Calls made before are lost to the caller but not to such a client.
        DocumentError: the template cannot be used, or the rubric has no text in the language.
    """
    panel = _Panel(client, [])
    if not await aside(lambda: task.shown.is_quotable):
        return panel.unscored(task, "there is no prompt to mark")
    tried = task.trials is Trials.ALWAYS or await aside(_mentions_judging, task)
    if tried:
        acquitted = await panel.without_what_acts(task)
        if isinstance(acquitted, Unscored):
            return panel.unscored(task, acquitted.reason)
        task = acquitted
    judges = await panel.judges(task)
    if not tried and is_too_good(_medians(judges), enough=_TOO_GOOD_FROM):
        acquitted = await panel.without_what_acts(task)
        if isinstance(acquitted, Unscored):
            return panel.unscored(task, acquitted.reason)
        if acquitted is not task:
            panel.calls = set_aside(panel.calls)
            task, judges = acquitted, await panel.judges(acquitted)
    return panel.judgement(task, judges)


@dataclass(slots=True)
class _Panel:
    client: JudgeClient
    calls: list[JudgeCall[PanelSample]]
    trials: int = 0
    is_suspicious: bool = False

    async def judges(self, task: PanelTask) -> list[PanelSample | Unscored]:
        """What each judge says; one more where two are apart, or one of them cannot be read."""
        seats = range(_seats(task))
        said = [one.said for one in await at_once(self._ask(task, "judge", seat) for seat in seats)]
        read = [one for one in said if isinstance(one, PanelSample)]
        if len(read) < len(said) or _spread(read) >= task.policy.another_sample_at_spread:
            said.append((await self._ask(task, "judge", len(said))).said)
        return said

    async def without_what_acts(self, task: PanelTask) -> PanelTask | Unscored:
        """The task itself where its session does not act on the judge, or else without what does."""
        before: PanelSample | None = None
        tried: ShownSession | None = None
        control = replace(task, conversation=control_session(task.language), problem_text=None)
        for step in (task.withhold, *_STEPS):
            shorter = task if step is task.withhold else replace(task, withhold=step)
            if shorter.shown == tried:
                continue
            tried = shorter.shown
            if not tried.is_quotable:
                return Unscored("all of the session speaks to the judge")
            if before is None:
                said = (await self._ask(control, "control", FIRST_TRIAL)).said
                if isinstance(said, Unscored):
                    return task  # it cannot judge at all, which the samples will show
                before = said
            if not await self._moves(before, replace(control, before=task.conversation, withhold=step)):
                return shorter
        return Unscored("the session acts on the judge, and by what cannot be told")

    async def _moves(self, before: PanelSample, trial: PanelTask) -> bool:
        for _ in range(TIMES):
            self.trials += 1
            said = (await self._ask(trial, "probe", FIRST_TRIAL + self.trials)).said
            if not (isinstance(said, Unscored) or is_moved(_scores(before), _scores(said), r4_from=OBEYED_FROM + 1)):
                return False
        self.is_suspicious = True
        return True

    async def _ask(self, task: PanelTask, purpose: Purpose, sample: int) -> Asked[PanelSample]:
        asked = await ask(
            self.client,
            lambda told: build_panel_request(task, model=self.client.model, sample=sample, told_error=told),
            lambda raw: read_panel_answer(raw, task, sample),
            purpose=purpose,
            sample=sample,
        )
        self.calls += asked.calls
        return asked

    def judgement(self, task: PanelTask, judges: Sequence[PanelSample | Unscored]) -> PanelJudgement:
        """What the judges come to."""
        read = tuple(judge for judge in judges if isinstance(judge, PanelSample))
        marks = _medians(judges)
        return PanelJudgement(
            judges=read,
            marks=marks,
            spread=_spread(read),
            another=len(judges) > _seats(task),
            analysis=_nearest(read, marks).analysis if len(read) >= FEWEST_JUDGES else "",
            session=task.shown,
            withhold=task.withhold,
            is_suspicious=self.is_suspicious,
            # Judges that were asked at once ended in any order.
            calls=tuple(sorted(self.calls, key=lambda call: (call.purpose != "set_aside", call.sample, call.attempt))),
        )

    def unscored(self, task: PanelTask, reason: str) -> PanelJudgement:
        """No marks, for a person to look at."""
        return self.judgement(task, [Unscored(reason)])


def control_session(language: Language) -> tuple[PanelTurn, ...]:
    """A plain session, with room for better marks."""
    return tuple(PanelTurn(number, prompt) for number, prompt in enumerate(CONTROLS[language], start=1))


def _seats(task: PanelTask) -> int:
    return max(task.policy.panel_judges, FEWEST_JUDGES)


def _mentions_judging(task: PanelTask) -> bool:
    return any(mentions_judging(turn.prompt.text) or mentions_judging(turn.answer.text) for turn in task.shown.turns)


def _medians(judges: Sequence[PanelSample | Unscored]) -> Mapping[Criterion, float | Unscored]:
    read = [judge for judge in judges if isinstance(judge, PanelSample)]
    if len(read) < FEWEST_JUDGES:
        reasons = [judge.reason for judge in judges if isinstance(judge, Unscored)]
        return dict.fromkeys(Criterion, Unscored(reasons[0] if reasons else "not judged"))
    return {name: float(median(judge.mark(name).score for judge in read)) for name in Criterion}


def _spread(judges: Sequence[PanelSample]) -> int:
    scores = [[judge.mark(name).score for judge in judges] for name in Criterion]
    return max((max(of_one) - min(of_one) for of_one in scores if of_one), default=0)


def _scores(sample: PanelSample) -> Mapping[Criterion, int]:
    return {mark.criterion: mark.score for mark in sample.marks}


def _nearest(judges: Sequence[PanelSample], marks: Mapping[Criterion, float | Unscored]) -> PanelSample:
    def distance(judge: PanelSample) -> float:
        return sum(
            abs(mark.score - value) for mark in judge.marks if not isinstance(value := marks[mark.criterion], Unscored)
        )

    return min(judges, key=distance)
