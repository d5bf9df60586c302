"""Review and panel: a model reads the code, judges mark the session as a whole; every answer is kept as it comes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any

from app.application.services.callback_service import CallbackService
from app.application.submissions.conversation import read_conversation
from app.application.submissions.work import Made, Work
from app.domain.judging.code_review import Review, ReviewTask, review_code
from app.domain.judging.panel import PanelJudgement, PanelSample, PanelTask, PanelTurn, judge_panel
from app.domain.judging.tasks import JudgeCall
from app.domain.langgraph.submission_state import Outcomes
from app.domain.rubric import Rubric
from app.domain.scoring import ScorePolicy
from app.domain.submission import Cost, Node, Outcome
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import CallsSummary, EvaluationRepository, RunBasis
from app.infrastructure.repositories.evaluation_runs import ClaimedRun, EvaluationRuns, KeptScore, Reading
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.submission_claims import EvaluationNotOursError, SubmissionClaims

NO_JUDGE = "no judge is set"


async def panel(work: Work, came: Outcomes) -> Made:
    """Independent judges mark the conversation as a whole; none is shown a score.

    Raises:
        ModelError: they cannot be asked now; what they have said is kept.
        DocumentError: what they are to go by cannot be used.
    """
    frozen, evaluation = came[Node.FREEZE].value, work.evaluation
    if frozen["judge_model"] is None:
        return Made(Outcome.missing(NO_JUDGE))
    if came[Node.TURNS].value is None:
        return Made(Outcome.missing(f"there are no prompts to show: {came[Node.TURNS].reason}"))
    basis = RunBasis(frozen["rubric"], frozen["panel_prompt"], frozen["policy"], {"model": frozen["judge_model"]})
    async with get_db_context() as db:
        documents = DocumentRepository(db)
        task = PanelTask(
            conversation=await _shown_turns(db, work, came),
            problem_text=await _problem_text(db, work, frozen),
            language=frozen["spoken"],
            rubric=Rubric.parse(await documents.content("rubric", frozen["rubric"])),
            policy=_policy(await documents.content("policy", frozen["policy"]), frozen.get("panel_judges")),
            prompt=await documents.content("prompt", frozen["panel_prompt"]),
            trials=work.desk.trials,
        )
        run = await SubmissionClaims(db).open_run(evaluation, "panel", basis)
    judgement = await judge_panel(await work.desk.judges.keeping(frozen["judge_model"], run, work.desk.counter), task)
    kept = _Kept(judgement.to_json(), _scores(judgement), _readings(judgement.calls, PanelSample.to_json))
    if judgement.reason is not None:
        outcome = Outcome.missing(judgement.reason, kept.result)
    else:
        outcome = Outcome("ok", kept.result)
    return await _made(work, run, outcome, kept)


async def review(work: Work, came: Outcomes) -> Made:
    """A model says what is good and bad about the code, in words alone. It sees no comment and no text of it.

    Raises:
        ModelError: it cannot be asked now; what it has said is kept.
        DocumentError: what it is to go by cannot be used.
    """
    frozen, evaluation = came[Node.FREEZE].value, work.evaluation
    if frozen["judge_model"] is None:
        return Made(Outcome.missing(NO_JUDGE))
    sanitised = (came[Node.ANALYSIS].value or {}).get("sanitised")
    if sanitised is None:
        return Made(Outcome.missing(f"there is no code without comments: {came[Node.ANALYSIS].reason}"))
    basis = RunBasis(None, frozen["review_prompt"], None, {"model": frozen["judge_model"]})
    async with get_db_context() as db:
        task = ReviewTask(
            code=sanitised["code"],
            code_language=frozen["language"],
            problem_text=await _problem_text(db, work, frozen),
            language=frozen["spoken"],
            prompt=await DocumentRepository(db).content("prompt", frozen["review_prompt"]),
        )
        run = await SubmissionClaims(db).open_run(evaluation, "review", basis)
    reviewed = await review_code(await work.desk.judges.keeping(frozen["judge_model"], run, work.desk.counter), task)
    readings = _readings(reviewed.calls, Review.to_json)
    if isinstance(reviewed.review, Review):
        result = reviewed.review.to_json()
        return await _made(work, run, Outcome("ok", result), _Kept(result, [], readings))
    reason = reviewed.review.reason
    return await _made(work, run, Outcome.missing(reason), _Kept({"reason": reason}, [], readings))


def _policy(text: str, judges: int | None) -> ScorePolicy:
    """The pinned policy; an appeal is heard by more judges than it asks for."""
    policy = ScorePolicy.parse(text)
    return policy if judges is None else replace(policy, panel_judges=judges)


def given_up(work: Work, node: Node, reason: str) -> Callable[[Transaction], Awaitable[None]]:
    """Ends the judge's run of a node that is done without; what it has used is paid for all the same."""

    async def end(db: Transaction) -> None:
        key = await SubmissionClaims(db).run_key(work.evaluation.id, node.value)
        if key is not None:
            run = await SubmissionClaims(db).open_run(work.evaluation, node.value, RunBasis(None, None, None, {}))
            await _end(db, work, run, _Kept({"reason": reason}, [], []))

    return end


@dataclass(frozen=True, slots=True)
class _Kept:
    result: dict[str, Any]
    scores: list[KeptScore]
    readings: list[Reading]


async def _made(work: Work, run: ClaimedRun, outcome: Outcome, kept: _Kept) -> Made:
    async with get_db_context() as db:
        calls = (await EvaluationRepository(db).calls_of([run.id])).get(run.id, CallsSummary())
    cost = Cost(calls.calls - calls.cached, calls.prompt_tokens, calls.completion_tokens, calls.cached_tokens)

    async def also(db: Transaction) -> None:
        await _end(db, work, run, kept)

    return Made(replace(outcome, evidence={"run_id": run.id}, cost=cost), also)


async def _end(db: Transaction, work: Work, run: ClaimedRun, kept: _Kept) -> None:
    """End a judge's run with what follows: the ledger, and what Core is told of the tokens, once."""
    runs = EvaluationRuns(db)
    if not await runs.end(run, kept.result, kept.scores):
        raise EvaluationNotOursError
    if kept.readings:
        await runs.note_readings(run, kept.readings)
    used = await runs.to_ledger(run)
    if not used:
        return
    usage = reduce(add, (usage for _, usage in used))
    await CallbackService(db, held=work.desk.held).send_usage(
        run.session_id,
        None,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        cached_tokens=usage.cached_tokens,
        model=used[-1][0],
        source=usage.source,
        purpose="evaluation",
    )


async def _shown_turns(db: Transaction, work: Work, came: Outcomes) -> tuple[PanelTurn, ...]:
    """The frozen turns that were answered; what acted on the judge of a turn is not shown to the panel either."""
    frozen = came[Node.FREEZE].value
    judged = {entry["turn"]: entry for entry in came[Node.TURNS].value["turns"]}
    said = await read_conversation(db, work.evaluation.session_id, frozen["last_turn"])
    return tuple(
        PanelTurn(
            turn.number,
            turn.prompt,
            turn.answer,
            tuple((start, end) for start, end in judged[turn.number]["withheld"]),
        )
        for turn in said
        if turn.number in judged and not judged[turn.number]["refused"]
    )


async def _problem_text(db: Transaction, work: Work, frozen: dict[str, Any]) -> str | None:
    settings = await ExamRepository(db).settings_of(work.evaluation.exam_id, frozen["exam_version"])
    return settings.problem_text or None if settings is not None else None


def _scores(judgement: PanelJudgement) -> list[KeptScore]:
    return [
        KeptScore(judge.sample, mark.criterion, mark.score, mark.quote, mark.start, mark.end, mark.reason, mark.turn)
        for judge in judgement.judges
        for mark in judge.marks
    ]


def _readings(calls: Iterable[JudgeCall[Any]], to_json: Callable[[Any], dict[str, Any]]) -> list[Reading]:
    """What was read in each answer. An empty one is none: a judge that says nothing is asked again next time."""
    counted: dict[int, int] = {}
    found = []
    for call in sorted(calls, key=lambda call: (call.sample, call.attempt)):
        if not call.answer.raw:
            continue
        place = counted.get(call.sample, 0)
        counted[call.sample] = place + 1
        parsed = None if call.judgement is None else to_json(call.judgement)
        found.append(Reading(call.sample, place, parsed, call.error))
    return found
