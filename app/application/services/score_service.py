"""What people say of a submission's scores: another score in a part's place, and appeals."""

from __future__ import annotations

from typing import Any, Final

from app.application.submissions.again import is_to_be_told, scores_again
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.final_scores import Component, Override
from app.domain.scoring import ScorePolicy
from app.domain.submission import Node
from app.infrastructure.persistence.models import (
    ReviewReasonEnum,
    RevisionStatusEnum,
    ScoreOverride,
    Submission,
    SubmissionEvaluation,
)
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import SubmissionClaims
from app.infrastructure.repositories.submission_repository import SubmissionRepository

_MOST_JUDGES = 9
_OF_THE_CODE: Final = frozenset({"last_turn", "turns", "code_hash", "language"})
"""What is frozen and is the submission's own, so that it need not be pinned."""


async def override_component(submission_id: str, component: Component, override: Override) -> ScoreOverride:
    """Set a person's score of a part. It counts in the machine's place, which stays beside it.

    Core is told under the next revision, soon; of a submission whose scores are still being made, or are held, as soon
    as those are told.

    Raises:
        TurnstoneError: ``submission_not_found``.
    """
    async with get_db_context() as db:
        submission, evaluations = await _locked(db, submission_id)
        told = _told(evaluations)
        last = evaluations[-1]
        if told is not None and not any(map(is_to_be_told, evaluations)):
            last = await scores_again(db, submission.id, told.id, override.person)
        return await ReviewRepository(db).override_component(
            submission.session_id, submission.id, component, override, last.revision
        )


async def appeal_scores(submission_id: str, reason: str, person: str) -> tuple[int, SubmissionEvaluation]:
    """Have a submission evaluated once more, by a larger panel, for people to look at; returns the review and that.

    Nobody is told of what comes of it before a person releases it. An appeal that is open is not opened again.

    Raises:
        TurnstoneError: ``submission_not_found``, or ``not_scored``: there is nothing yet to appeal against.
    """
    async with get_db_context() as db:
        submission, evaluations = await _locked(db, submission_id)
        told = _told(evaluations)
        if told is None:
            raise TurnstoneError(ErrorCode.NOT_SCORED, "The submission has no scores yet.")
        reviews = ReviewRepository(db)
        for opened in evaluations:
            if opened.cause == "appeal" and opened.status is not RevisionStatusEnum.DONE:
                item_id = await reviews.of_evaluation(opened.id, ReviewReasonEnum.APPEAL)
                assert item_id is not None, "an appeal has its item"
                return item_id, opened
        basis = await _larger_panel(db, told)
        further = await SubmissionRepository(db).add_evaluation(
            submission.id, cause="appeal", asked_by=person, basis=basis
        )
        details = {"reason": reason, "submission_id": submission.told_id, "revision": further.revision}
        item = await reviews.open(
            submission.session_id,
            None,
            None,
            ReviewReasonEnum.APPEAL,
            details,
            evaluation_id=further.id,
            asked_by=person,
        )
        assert item is not None, "the evaluation is new, so it has no item"
        return item, further


async def _larger_panel(db: Transaction, told: SubmissionEvaluation) -> dict[str, Any]:
    """Everything as it was, with twice as many judges and one more; held, whatever the exam says."""
    frozen = (await SubmissionClaims(db).steps(told.id))[Node.FREEZE].value
    policy = ScorePolicy.parse(await DocumentRepository(db).content("policy", frozen["policy"]))
    judges = min(2 * (frozen.get("panel_judges") or policy.panel_judges) + 1, _MOST_JUDGES)
    pinned = {name: value for name, value in frozen.items() if name not in _OF_THE_CODE}
    return {**pinned, "panel_judges": judges, "hold_scores": True}


async def _locked(db: Transaction, submission_id: str) -> tuple[Submission, list[SubmissionEvaluation]]:
    submissions = SubmissionRepository(db)
    found = await submissions.find(submission_id) if "\x00" not in submission_id else None
    if found is None:
        raise TurnstoneError(ErrorCode.SUBMISSION_NOT_FOUND, "There is no such submission.")
    await SessionRepository(db).lock_session(found.session_id)
    return found, (await submissions.evaluations([found.id]))[found.id]


def _told(evaluations: list[SubmissionEvaluation]) -> SubmissionEvaluation | None:
    return next((each for each in reversed(evaluations) if each.published and each.result is not None), None)
