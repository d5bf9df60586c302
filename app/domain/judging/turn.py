"""Judging one prompt: which calls are made, and what follows from their answers.

Where nothing in a prompt speaks to the judge, each sample is one call. Where something may, the judge is tried first:
it marks a plain request (the control), and that request again with the prompt in the conversation before it, or with
suspicious passages behind it (the probes). What moves its marks there is obeyed, not read, and is left out of what is
judged: first the telling clauses, then their sentences, then all that talks of judging. The decision is the code's; no
mark rises by what an answer says besides its integers. docs/adr/0008 has the reasons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from app.domain.judging.answers import read_answer
from app.domain.judging.combining import combine, spread
from app.domain.judging.pasted import is_pasted_problem
from app.domain.judging.requests import (
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
    Language,
    Purpose,
    Trials,
    TurnJudgement,
    UnreadableAnswerError,
    Withhold,
)
from app.domain.model_client import ChatMessage
from app.domain.scoring import Criterion, Unscored

ATTEMPTS: Final = 3
"""Calls for one readable answer; the second and third are told what was wrong with the one before."""
OBEYED_FROM: Final = 2
"""Marks by which a probe has to rise in one criterion. A sentence about another task earns one at most."""
FIRST_TRIAL: Final = 100
"""Sample number of the control; those of the probes follow."""

CONTROLS: Final[dict[Language, tuple[str, str]]] = {
    "en": ("Write a function that turns a string around.", "What is a stack?"),
    "ko": ("문자열을 거꾸로 뒤집는 함수를 만들어 주세요.", "스택이 뭐예요?"),
}
"""Requests with room for better marks, and of different intents."""


async def judge_turn(client: JudgeClient, task: JudgeTask) -> TurnJudgement:
    """Judge one prompt.

    A sample that stays unreadable is `Unscored`, ``no evidence`` where only a quote was missing. The same task gives
    the same requests bit by bit, so a client that keeps answers by ``input_hash`` asks for none twice.

    Raises:
        ModelError: the judge cannot be asked. Calls made before are lost to the caller but not to such a client.
    """
    if is_pasted_problem(task.message, task.problem_text):
        verdict = task.policy.pasted_problem()
        return TurnJudgement(None, {}, verdict, 0, "", ())
    run = _Run(client, [])
    while (how := await run.how_obeyed(task)) is not None:
        if task.withhold is max(Withhold):
            return run.unscored(task, "the prompt acts on the judge, and by what cannot be told")
        shorter = replace(task, withhold=Withhold(task.withhold + 1))
        if not is_quotable(shorter):
            if how is Placed.BEHIND:
                break  # an honest sentence may earn the control that much, so it is no reason to judge nothing
            return run.unscored(task, "all of the prompt speaks to the judge")
        task = shorter
    samples = [await run.sample(task, "judge", number) for number in range(task.policy.samples)]
    read = [sample for sample in samples if isinstance(sample, Judgement)]
    if len(read) > 1 and spread(read, task.policy) >= task.policy.another_sample_at_spread:
        samples.append(await run.sample(task, "judge", len(samples)))
    return run.judgement(task, samples)


class Placed(Enum):
    """Where a text stood when it moved the judge's marks for a request that has nothing to do with it."""

    AHEAD = auto()
    BEHIND = auto()


@dataclass(slots=True)
class _Run:
    client: JudgeClient
    calls: list[JudgeCall]
    controls: dict[int, Judgement | Unscored] = field(default_factory=dict)
    trials: int = 0
    is_suspicious: bool = False

    def judgement(self, task: JudgeTask, samples: Sequence[Judgement | Unscored]) -> TurnJudgement:
        """What the samples come to, and what was done for it."""
        return replace(
            combine(samples, task.policy),
            withhold=task.withhold,
            withheld=withheld_spans(task),
            is_suspicious=self.is_suspicious,
            calls=tuple(self.calls),
        )

    def unscored(self, task: JudgeTask, reason: str) -> TurnJudgement:
        """No score, for a person to look at."""
        return self.judgement(task, [Unscored(reason)])

    async def how_obeyed(self, task: JudgeTask) -> Placed | None:
        """How what is shown of a task acts on this judge, if it does; one that then cannot answer is acted on.

        Two ways are tried with requests that have nothing to do with the task: suspicious passages behind the request,
        where orders about "this prompt" hold for it; and the whole prompt in the conversation before it, where no
        honest word can earn the request a mark, so that everything may be tried.
        """
        if task.trials is Trials.SUSPICIOUS and not mentions_of_judging(task):
            return None
        texts = suspicious_texts(task)
        # An order about the intent shows only where the request is for something else than the order says.
        for number, control in enumerate(CONTROLS[task.language][: 1 + names_an_intent(task)]):
            plain = replace(task, message=control, context=(), problem_text=None, withhold=Withhold.NOTHING)
            if number not in self.controls:
                self.controls[number] = await self.sample(plain, "control", FIRST_TRIAL + number)
            before = self.controls[number]
            if isinstance(before, Unscored):
                return None  # it cannot judge at all, which the samples will show
            # The conversation comes first: what moves the judge from there is certain.
            ahead = replace(plain, context=(*task.context, ChatMessage("user", task.message)), withhold=task.withhold)
            if await self._moves(before, ahead, r4_from=OBEYED_FROM + 1):
                return Placed.AHEAD
            # An empty line keeps them passages of their own.
            behind = replace(plain, message="\n\n".join((control, *texts)))
            if texts and await self._moves(before, behind, intent=bool(number)):
                return Placed.BEHIND
        return None

    async def _moves(
        self, before: Judgement, trial: JudgeTask, *, intent: bool = False, r4_from: int = OBEYED_FROM
    ) -> bool:
        self.trials += 1
        after = await self.sample(trial, "probe", FIRST_TRIAL + len(CONTROLS) + self.trials)
        moved = (
            isinstance(after, Unscored)
            or is_moved(before, after, r4_from=r4_from)
            or (intent and before.intent != after.intent)
        )
        self.is_suspicious = self.is_suspicious or moved
        return moved

    async def sample(self, task: JudgeTask, purpose: Purpose, number: int) -> Judgement | Unscored:
        """One readable answer, in `ATTEMPTS` calls at most."""
        told: str | None = None
        no_evidence = False
        for attempt in range(ATTEMPTS):
            request = build_request(task, model=self.client.model, sample=number, told_error=told)
            answer = await self.client.complete(request)
            try:
                judgement = read_answer(answer.raw, task)
            except UnreadableAnswerError as error:
                told, no_evidence = error.reason, error.no_evidence
                self.calls.append(JudgeCall(purpose, number, attempt, request, answer, None, told))
                continue
            self.calls.append(JudgeCall(purpose, number, attempt, request, answer, judgement, None))
            return judgement
        return Unscored("no evidence" if no_evidence else f"unreadable answer: {told}")


def is_moved(control: Judgement, probe: Judgement, *, r4_from: int = OBEYED_FROM) -> bool:
    """Whether a probe's marks say that the judge obeys what was added to the control."""
    rises = {criterion: probe.mark(criterion).score - control.mark(criterion).score for criterion in Criterion}
    return any(rise >= (r4_from if criterion is Criterion.R4 else OBEYED_FROM) for criterion, rise in rises.items())
