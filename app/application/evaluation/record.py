"""The one transaction that ends a run: scores, evaluation, ledger, callbacks and reviews, all or nothing."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from app.application.evaluation.outcome import details, told
from app.application.services.callback_service import CallbackService
from app.core import metrics
from app.domain.conversation import TurnId
from app.infrastructure.persistence.models import EvaluationRun, ReviewReasonEnum
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository
from app.infrastructure.repositories.evaluation_runs import ClaimedRun, EvaluationRuns, KeptScore, Reading
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository


class RunNotOursError(Exception):
    """The run was ended already, or belongs to another worker by now. Nothing was written."""


async def end_run(
    run: ClaimedRun,
    turn_id: TurnId,
    result: dict[str, Any],
    *,
    scores: list[KeptScore],
    readings: list[Reading],
    reviews: dict[ReviewReasonEnum, dict[str, Any]],
    held: bool,
) -> None:
    """Write what came of a run and all that follows from it.

    Raises:
        RunNotOursError: see there.
    """
    async with get_db_context() as db:
        await SessionRepository(db).lock_session(run.session_id)
        runs = EvaluationRuns(db)
        if not await runs.end(run, result, scores):
            raise RunNotOursError
        if readings:
            await runs.note_readings(run, readings)
        used = await runs.to_ledger(run)
        ended = await EvaluationRepository(db).get_run(run.id)
        assert ended is not None, "it has just been ended"
        async with CallbackService(db, held=held).together() as callbacks:
            if used:
                usage = reduce(add, (usage for _, usage in used))
                await callbacks.send_usage(
                    run.session_id,
                    run.turn,
                    usage.prompt_tokens,
                    usage.completion_tokens,
                    usage.total_tokens,
                    turn_id=turn_id,
                    cached_tokens=usage.cached_tokens,
                    model=used[-1][0],
                    source=usage.source,
                    purpose="evaluation",
                )
            if ended.published:
                await tell(db, callbacks, ended, await _revision(db, ended))
        await SubmissionRepository(db).hasten(run.session_id)
        for reason, facts in reviews.items():
            await ReviewRepository(db).open(run.session_id, run.turn, run.id, reason, facts)
    metrics.JUDGEMENTS.labels(result["status"]).inc()


async def _revision(db: Transaction, ended: EvaluationRun) -> int:
    """What a run is told under, which is above all that was told while it waited, such as a person's score.

    But a judgement that was asked for later and brought a score stays the one that counts.
    """
    evaluations = EvaluationRepository(db)
    told_before = await evaluations.told_run(ended.session_id, ended.judged_turn, besides=ended.id)
    if told_before is not None and told_before.result is not None and told_before.result["score"] is not None:
        return ended.revision
    return await evaluations.publish(ended)


async def tell(db: Transaction, callbacks: CallbackService, run: EvaluationRun, revision: int) -> None:
    """Store a run's judgement where others read it, and tell Core. Once for each run."""
    assert run.result is not None, "it has ended"
    await EvaluationRepository(db).add_evaluation(run.id, run.session_id, run.judged_turn, details(run.result))
    override = await ReviewRepository(db).latest_override(run.session_id, run.judged_turn)
    log, score = told(run.result, override)
    await callbacks.send_turn_evaluation(run.session_id, run.judged_turn, log, score, revision=revision)
