"""Freeze: what the evaluation is of and by is read once, and stays so whatever is changed meanwhile."""

from __future__ import annotations

from typing import Any

from app.application.evaluation.basis import basis_of_exam
from app.application.submissions.work import Made, Work
from app.domain.exam_settings import ExamSettings
from app.domain.langgraph.submission_state import Outcomes
from app.domain.submission import Outcome
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository


async def freeze(work: Work, _came: Outcomes) -> Made:
    """Pin the exam's settings, the problem, every document, the judge's model, the code and the turns."""
    evaluation = work.evaluation
    async with get_db_context() as db:
        submission = await SubmissionRepository(db).find(str(evaluation.client_id))
        assert submission is not None, "an evaluation has a submission"
        turns = await EvaluationRepository(db).judgeable_until(evaluation.session_id, submission.last_turn)
        value = {
            "last_turn": submission.last_turn,
            "turns": turns,
            "code_hash": submission.code_hash,
            "language": submission.language,
            **await _pinned(db, work),
        }
    return Made(Outcome("ok", value))


async def _pinned(db: Transaction, work: Work) -> dict[str, Any]:
    """What whoever asked has named, and for the rest what is set now."""
    evaluation = work.evaluation
    exam = await ExamRepository(db).get(evaluation.exam_id)
    settings = ExamSettings.from_json(exam.problem_text, exam.settings) if exam is not None else None
    stored = settings.to_json() if settings is not None else {}
    by = basis_of_exam(stored, work.desk.default)
    spoken = settings.language if settings is not None else "en"
    documents = DocumentRepository(db)
    pinned = {
        "exam_version": exam.version if exam is not None and exam.settings else None,
        "problem_version": await SubmissionRepository(db).problem_version(evaluation.spec_id),
        "spoken": spoken,
        "rubric": by.rubric,
        "judge_prompt": by.prompt,
        "panel_prompt": await documents.pin("prompt", f"panel.{spoken}"),
        "review_prompt": await documents.pin("prompt", f"review.{spoken}"),
        "policy": by.policy,
        "judge_model": by.settings.get("model"),
        "samples": by.settings.get("samples"),
        "panel_judges": None,
        "hold_scores": settings is not None and settings.hold_scores,
    }
    return pinned | {name: value for name, value in evaluation.basis.items() if name in pinned}
