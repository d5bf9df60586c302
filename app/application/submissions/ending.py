"""Aggregate and tell: the result, and the one transaction in which all of it becomes true, or waits for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.application.evaluation.judging import when_database_is_there
from app.application.services.callback_service import CallbackService
from app.application.submissions.again import SCORES_AGAIN, is_to_be_told, scores_again
from app.application.submissions.work import Made, SubmissionDesk, Work
from app.core import metrics
from app.core.errors import ErrorCode
from app.domain.final_scores import Override
from app.domain.final_scores import aggregate as scores_of
from app.domain.langgraph.submission_state import Outcomes
from app.domain.scoring import ScorePolicy
from app.domain.submission import DONE, FAILED, HELD, Node, Outcome
from app.infrastructure.persistence.models import ReviewReasonEnum
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import ClaimedEvaluation, SubmissionClaims
from app.infrastructure.repositories.submission_repository import SubmissionRepository

_SCORES = ("status", "prompt_score", "correctness_score", "performance_score", "total_score", "grade")


async def aggregate(work: Work, came: Outcomes) -> Made:
    """The scores, by the pinned policy, what has come of the nodes, and what people have set; nothing else goes in."""
    async with get_db_context() as db:
        content = await DocumentRepository(db).content("policy", came[Node.FREEZE].value["policy"])
        rows = await ReviewRepository(db).component_overrides(work.evaluation.submission_id)
    overrides = {name: Override(row.score, row.reason, row.person) for name, row in rows.items()}
    scores = scores_of(ScorePolicy.parse(content), came, overrides)
    return Made(Outcome("ok", scores, evidence={"overrides": {name: row.id for name, row in rows.items()}}))


async def tell(work: Work, came: Outcomes) -> Made:
    """End the evaluation: scores, review items, the session's end and Core's events together; or hold it.

    Raises:
        EvaluationNotOursError: somebody else has it; nothing was written.
    """
    held = came[Node.HOLD].value["held"] and "released_by" not in work.evaluation.basis

    async def end() -> None:
        async with get_db_context() as db:
            await SessionRepository(db).lock_session(work.evaluation.session_id)
            await (_hold if held else _tell)(db, work, came)

    await when_database_is_there(end)
    result = came[Node.AGGREGATE].value["final_scores"]
    metrics.SUBMISSIONS.labels("held" if held else result["status"].lower()).inc()
    work.desk.on_told()
    return Made(Outcome("ok", {"held": held}))


async def _tell(db: Transaction, work: Work, came: Outcomes) -> None:
    evaluation, result = work.evaluation, came[Node.AGGREGATE].value
    claims = SubmissionClaims(db)
    await claims.end(evaluation, result)
    await claims.keep_scores(evaluation, result["final_scores"])
    await _open_reviews(db, evaluation, came)
    await _keep_holistic(db, evaluation, came)
    await SessionRepository(db).end_session(evaluation.session_id)
    await CallbackService(db, held=work.desk.held).send_final_scores(
        evaluation.session_id,
        evaluation.exam_id,
        evaluation.participant_id,
        evaluation.client_id,
        result["final_scores"],
        result["turn_scores"],
        revision=evaluation.revision,
        previous_revision=await claims.told_before(evaluation),
    )
    done = work.reporter.then(DONE)
    if await claims.end_submission(evaluation, "DONE", done):
        await claims.tell(evaluation.news("DONE", done))
    await _count_what_people_set_meanwhile(db, evaluation.submission_id)


async def _count_what_people_set_meanwhile(db: Transaction, submission_id: int) -> None:
    """Scores that people have set, and that are not in what is told now, get a revision of their own.

    Where an evaluation is still to be told, it will have them.
    """
    evaluations = (await SubmissionRepository(db).evaluations([submission_id]))[submission_id]
    told = next((each for each in reversed(evaluations) if each.published), None)
    if told is None or any(map(is_to_be_told, evaluations)):
        return
    aggregated = (await SubmissionClaims(db).steps(told.id))[Node.AGGREGATE]
    counted = set((aggregated.evidence or {}).get("overrides", {}).values())
    rows = await ReviewRepository(db).component_overrides(submission_id)
    set_since = [row for row in rows.values() if row.id not in counted]
    if set_since:
        await scores_again(db, submission_id, told.id, set_since[-1].person)


async def _hold(db: Transaction, work: Work, came: Outcomes) -> None:
    """The scores are there, and nobody is told: a person has to release them."""
    evaluation, result = work.evaluation, came[Node.AGGREGATE].value
    claims = SubmissionClaims(db)
    await claims.end(evaluation, result, held=True)
    await _open_reviews(db, evaluation, came)
    scores = {name: result["final_scores"].get(name) for name in _SCORES}
    await _open(db, evaluation, ReviewReasonEnum.HELD_FOR_REVIEW, scores)
    await SessionRepository(db).end_session(evaluation.session_id)
    if evaluation.is_first:
        progress = work.reporter.then(HELD)
        if await claims.end_submission(evaluation, "RUNNING", progress):
            await claims.tell(evaluation.news("RUNNING", progress))
    await _count_what_people_set_meanwhile(db, evaluation.submission_id)


async def _open_reviews(db: Transaction, evaluation: ClaimedEvaluation, came: Outcomes) -> None:
    for found in came[Node.CHECKS].value["reasons"]:
        await _open(db, evaluation, ReviewReasonEnum(found["reason"]), found["details"])


async def _open(
    db: Transaction, evaluation: ClaimedEvaluation, reason: ReviewReasonEnum, details: Mapping[str, Any]
) -> None:
    said = {"submission_id": evaluation.client_id, "revision": evaluation.revision, **details}
    await ReviewRepository(db).open(evaluation.session_id, None, None, reason, said, evaluation_id=evaluation.id)


async def _keep_holistic(db: Transaction, evaluation: ClaimedEvaluation, came: Outcomes) -> None:
    """The session as a whole where others read it; one that nobody could judge has none."""
    value = came[Node.PANEL].value
    run_id = await SubmissionClaims(db).run_key(evaluation.id, "panel")
    if not value or run_id is None:
        return
    holistic = came[Node.AGGREGATE].value["final_scores"]["prompt"]["holistic"]
    details = {
        "submission_id": evaluation.client_id,
        "revision": evaluation.revision,
        "score": holistic,
        "analysis": value.get("analysis") or value.get("reason") or "",
        "marks": value["marks"],
        "spread": value["spread"],
    }
    await EvaluationRepository(db).add_holistic(run_id, evaluation.session_id, details)


async def give_up(evaluation: ClaimedEvaluation, desk: SubmissionDesk) -> None:
    """End an evaluation without a result: it cannot be made. Core is told, and people are asked.

    Raises:
        EvaluationNotOursError: somebody else has it; nothing was written.
    """

    async def end() -> None:
        async with get_db_context() as db:
            await SessionRepository(db).lock_session(evaluation.session_id)
            claims = SubmissionClaims(db)
            await claims.end(evaluation, None)
            await _open(db, evaluation, ReviewReasonEnum.UNSCORED, {"reason": "it could not be evaluated"})
            if SCORES_AGAIN not in evaluation.basis:  # else it was made for just that, and would be again and again
                await _count_what_people_set_meanwhile(db, evaluation.submission_id)
            failed = FAILED.after(evaluation.progress)
            if not await claims.end_submission(evaluation, "FAILED", failed):
                return
            await claims.tell(evaluation.news("FAILED", failed))
            async with CallbackService(db, held=desk.held).together() as callbacks:
                await callbacks.send_error(
                    evaluation.session_id,
                    ErrorCode.INTERNAL,
                    "The submission could not be evaluated.",
                    {"submission_id": evaluation.client_id, "retryable": False},
                )
                if desk.tells_stages:
                    await callbacks.send_submission_status(evaluation.session_id, evaluation.client_id, "failed")

    await when_database_is_there(end)
    metrics.SUBMISSIONS.labels("failed").inc()
    desk.on_told()
