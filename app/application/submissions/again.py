"""A further evaluation that takes over what was found, so that only the scores are made anew."""

from __future__ import annotations

from typing import Final

from app.domain.submission import Node
from app.infrastructure.persistence.models import RevisionStatusEnum, SubmissionEvaluation
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.submission_repository import SubmissionRepository

_TAKEN_OVER: Final = (Node.FREEZE, Node.TESTS, Node.ANALYSIS, Node.REVIEW, Node.PANEL)
"""All but what people may have changed: their scores of turns, and of the submission itself."""


SCORES_AGAIN: Final = "scores_again"
"""In the basis of an evaluation that `scores_again` has recorded."""


def is_to_be_told(evaluation: SubmissionEvaluation) -> bool:
    """Whether it is being made, and told then: an appeal only where a person has released it."""
    return evaluation.status is RevisionStatusEnum.WAITING and (
        evaluation.cause != "appeal" or "released_by" in evaluation.basis
    )


async def scores_again(db: Transaction, submission_id: int, source: int, person: str) -> SubmissionEvaluation:
    """Record an evaluation under the next revision, from what ``source`` found. It is told without being held.

    The session's row is locked.
    """
    submissions = SubmissionRepository(db)
    further = await submissions.add_evaluation(
        submission_id, cause="rerun", asked_by=person, basis={"released_by": person, SCORES_AGAIN: True}
    )
    await submissions.copy_steps(source, further.id, [node.value for node in _TAKEN_OVER])
    return further
