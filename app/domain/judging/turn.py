"""Judging one prompt: which calls are made, and what follows from their answers.

Where nothing in a prompt speaks to the judge, each sample is one call. Where something may, the judge is tried first:
it marks a plain request (the control), and that request again with the prompt in the conversation before it, or with
suspicious passages behind it (the probes). What moves its marks there is obeyed, not read, and is left out of what is
judged: first the telling clauses, then their sentences, then all that talks of judging. A prompt with nothing
suspicious is tried behind its marks, where they are the best there are. The decision is the code's; no mark rises by
what an answer says besides its integers. docs/adr/0008 has the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from app.domain.judging.answers import read_answer
from app.domain.judging.aside import aside
from app.domain.judging.asking import Asked, ask, at_once, set_aside
from app.domain.judging.combining import combine, is_settled, spread
from app.domain.judging.pasted import is_pasted_problem
from app.domain.judging.requests import (
    all_shown,
    build_request,
    is_quotable,
    mentions_of_judging,
    names_an_intent,
    suspicious_texts,
    withheld_spans,
)
from app.domain.judging.tasks import (
    JudgeCall,
    JudgeClient,
    Judgement,
    JudgeTask,
    Purpose,
    Trials,
    TurnJudgement,
    Withhold,
)
from app.domain.judging.trials import CONTROLS, FIRST_TRIAL, OBEYED_FROM, TIMES, is_moved, is_too_good
from app.domain.model_client import ChatMessage
from app.domain.sampling import Doubt
from app.domain.scoring import Criterion, Intent, Score, Unscored

Samples = list[Judgement | Unscored]
EDGES_OF: Final = 5
"""How many of a session's prompts may cost more samples for lying at a grade's edge. Good ones lie there again and
again, and the more there are the less each one counts; so an exam of twenty stays within 45 calls."""


async def judge_turn(client: JudgeClient, task: JudgeTask) -> TurnJudgement:
    """Judge one prompt.

    The same task gives the same requests bit by bit, so a client that keeps answers by ``input_hash`` asks for none
    twice. Samples that do not wait for each other are asked at the same time.

    Raises:
        ModelError: the judge cannot be asked. Calls made before are lost to the caller but not to such a client.
    """
    if await aside(is_pasted_problem, task.message, task.problem_text):
        verdict = task.policy.pasted_problem()
        return TurnJudgement(None, {}, verdict, 0, "", ())
    run = _Run(client, [])
    tried = task.trials is Trials.ALWAYS or await aside(mentions_of_judging, task)
    if tried:
        acquitted = await run.without_what_acts(task)
        if isinstance(acquitted, Unscored):
            return await run.judgement(task, [acquitted])
        task = acquitted
    samples = await run.first_samples(task)
    if not tried and any(isinstance(one, Judgement) and is_too_good(_scores(one)) for one in samples):
        acquitted = await run.without_what_acts(task)
        if isinstance(acquitted, Unscored):
            return await run.judgement(task, [acquitted])
        if acquitted is not task:
            run.set_samples_aside()
            task, samples = acquitted, await run.first_samples(acquitted)
    return await run.judgement(task, await run.all_samples(task, samples))


class Placed(Enum):
    """Where a text stood when it moved the judge's marks for a request that has nothing to do with it."""

    AHEAD = auto()
    BEHIND = auto()


@dataclass(slots=True)
class _Run:
    client: JudgeClient
    calls: list[JudgeCall[Judgement]]
    controls: dict[int, Judgement | Unscored] = field(default_factory=dict)
    trials: int = 0
    is_moved: bool = False
    is_suspicious: bool = False

    async def judgement(self, task: JudgeTask, samples: Sequence[Judgement | Unscored]) -> TurnJudgement:
        """What the samples come to, and what was done for it."""
        return replace(
            combine(samples, task.policy),
            withhold=task.withhold,
            withheld=await aside(withheld_spans, task),
            is_suspicious=self.is_suspicious,
            calls=tuple(self.calls),
        )

    async def first_samples(self, task: JudgeTask) -> Samples:
        """Those that are asked for whatever comes of them."""
        first = task.policy.samples if task.policy.all_samples_where is None else 1
        return await self._samples(task, range(first))

    def set_samples_aside(self) -> None:
        """Marks that were made under an order count no longer."""
        self.calls = set_aside(self.calls)

    async def all_samples(self, task: JudgeTask, samples: Samples) -> Samples:
        """The others too, where there is a doubt, and one more where two are apart.

        More than half of them come first: where these agree, the others could not change the median.
        """
        most = task.policy.samples
        if len(samples) < most and self._doubts(task, samples):
            samples = samples + await self._samples(task, range(len(samples), most // 2 + 1))
            if not is_settled(samples, most, task.policy):
                samples = samples + await self._samples(task, range(len(samples), most))
        read = [sample for sample in samples if isinstance(sample, Judgement)]
        if len(read) > 1 and spread(read, task.policy) >= task.policy.another_sample_at_spread:
            samples = samples + await self._samples(task, range(len(samples), len(samples) + 1))
        return samples

    def _doubts(self, task: JudgeTask, samples: Samples) -> bool:
        policy, verdict = task.policy, combine(samples, task.policy).verdict
        read = [sample for sample in samples if isinstance(sample, Judgement)]
        counted = [_scores(one)[name] for one in read for name in policy.criteria_for(one.intent)]
        holds = {
            Doubt.ACTED_ON: self.is_moved,
            Doubt.ASKED_AGAIN: any(call.purpose == "judge" and call.error is not None for call in self.calls),
            # A single mark lies at an edge two times of five, which tells nothing.
            Doubt.GRADE_EDGE: task.earlier < EDGES_OF
            and len(counted) > 1
            and isinstance(verdict, Score)
            and policy.near_grade_edge(verdict),
            Doubt.FAR_APART: bool(counted) and max(counted) - min(counted) >= policy.another_sample_at_spread,
        }
        return any(holds[doubt] for doubt in policy.all_samples_where or ())

    async def _samples(self, task: JudgeTask, numbers: range) -> Samples:
        asked = await at_once(self._ask(task, "judge", number) for number in numbers)
        self.calls += [call for one in asked for call in one.calls]
        return [one.said for one in asked]

    async def without_what_acts(self, task: JudgeTask) -> JudgeTask | Unscored:
        """The task itself where it does not act on the judge, or else without what does."""
        while (how := await self._how_obeyed(task)) is not None:
            if (shorter := await aside(_with_less, task)) is None:
                return Unscored("the prompt acts on the judge, and by what cannot be told")
            if not await aside(is_quotable, shorter):
                if how is Placed.BEHIND:
                    break  # an honest sentence may earn the control that much, so it is no reason to judge nothing
                return Unscored("all of the prompt speaks to the judge")
            task = shorter
        return task

    async def _how_obeyed(self, task: JudgeTask) -> Placed | None:
        """How what is shown of a task acts on this judge, if it does; one that then cannot answer is acted on.

        Two ways are tried with requests that have nothing to do with the task: suspicious passages behind the request,
        where orders about "this prompt" hold for it; and the whole prompt in the conversation before it, where no
        honest word can earn the request a mark, so that everything may be tried.
        """
        texts = await aside(suspicious_texts, task)
        # An order about the intent shows only where the request is for something else than the order says.
        controls = 1 + await aside(names_an_intent, task)
        for number, control in enumerate(CONTROLS[task.language][:controls]):
            plain = replace(task, message=control, context=(), problem_text=None, withhold=Withhold.NOTHING)
            if number not in self.controls:
                self.controls[number] = await self._tried(plain, "control", FIRST_TRIAL + number)
            before = self.controls[number]
            if isinstance(before, Unscored):
                return None  # it cannot judge at all, which the samples will show
            # The conversation comes first: what moves the judge from there is certain.
            ahead = replace(plain, context=(*task.context, ChatMessage("user", task.message)), withhold=task.withhold)
            follows = frozenset({before.intent, Intent.FOLLOW_UP})  # as any question does behind a conversation
            if await self._moves(before, ahead, r4_from=OBEYED_FROM + 1, intents=follows if number else None):
                return Placed.AHEAD
            # An empty line keeps them passages of their own.
            behind = replace(plain, message="\n\n".join((control, *texts)))
            if texts and await self._moves(before, behind, intents=frozenset({before.intent}) if number else None):
                return Placed.BEHIND
        return None

    async def _moves(
        self,
        before: Judgement,
        trial: JudgeTask,
        *,
        intents: frozenset[Intent] | None = None,
        r4_from: int = OBEYED_FROM,
    ) -> bool:
        """Whether marks rise, or the intent is none of ``intents``, or nothing can be read; twice.

        A judge that is not sure of itself may rise once. That is a reason to ask it more often, and no more.
        """
        for _ in range(TIMES):
            self.trials += 1
            after = await self._tried(trial, "probe", FIRST_TRIAL + len(CONTROLS) + self.trials)
            if not (
                isinstance(after, Unscored)
                or is_moved(_scores(before), _scores(after), r4_from=r4_from)
                or (intents is not None and after.intent not in intents)
            ):
                return False
            self.is_moved = True
        self.is_suspicious = True
        return True

    async def _tried(self, task: JudgeTask, purpose: Purpose, number: int) -> Judgement | Unscored:
        asked = await self._ask(task, purpose, number)
        self.calls += asked.calls
        return asked.said

    async def _ask(self, task: JudgeTask, purpose: Purpose, number: int) -> Asked[Judgement]:
        return await ask(
            self.client,
            lambda told: build_request(task, model=self.client.model, sample=number, told_error=told),
            lambda raw: read_answer(raw, task),
            purpose=purpose,
            sample=number,
        )


def _with_less(task: JudgeTask) -> JudgeTask | None:
    """The task at the next level at which less is shown, if there is one."""
    shown = all_shown(task)
    levels = [replace(task, withhold=level) for level in Withhold if level > task.withhold]
    return next((one for one in levels if all_shown(one) != shown), None)


def _scores(judgement: Judgement) -> Mapping[Criterion, int]:
    return {mark.criterion: mark.score for mark in judgement.marks}
