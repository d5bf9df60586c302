"""A further evaluation that takes over what was found, so that only the scores are made anew."""

from __future__ import annotations

from typing import Final

from app.domain.submission import Node
from app.infrastructure.persistence.models import SubmissionEvaluation
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.submission_repository import SubmissionRepository

_TAKEN_OVER: Final = (Node.FREEZE, Node.TESTS, Node.ANALYSIS, Node.REVIEW, Node.PANEL)
"""All but what people may have changed: their scores of turns, and of the submission itself."""


async def scores_again(db: Transaction, submission_id: int, source: int, person: str) -> SubmissionEvaluation:
    """Record an evaluation under the next revision, from what ``source`` found. It is told without being held.

    The session's row is locked.
    """
    submissions = SubmissionRepository(db)
    further = await submissions.add_evaluation(
        submission_id, cause="rerun", asked_by=person, basis={"released_by": person}
    )
    await submissions.copy_steps(source, further.id, [node.value for node in _TAKEN_OVER])
    return further
