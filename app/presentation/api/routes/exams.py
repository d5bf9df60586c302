"""What Core sets about exams, and every version that it was."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app.core.errors import ErrorCode, TurnstoneError
from app.domain.documents import DocumentKind
from app.domain.exam_settings import ExamSettings, default_document
from app.domain.judge_prompt import Shape
from app.domain.rubric import Rubric
from app.infrastructure.persistence.models import Exam
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.presentation.api.paging import Cursor, Limit, page
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import Page
from app.presentation.schemas.exam_bodies import ExamBody, ExamRequest, ExamVersionBody

router = APIRouter(prefix="/api/exams", responses=PROBLEMS, tags=["exams"])

ExamId = Annotated[int, Path(gt=0, le=2**63 - 1)]


@router.put("/{exam_id}")
async def put_exam(exam_id: ExamId, body: ExamRequest) -> ExamBody:
    """Set everything about an exam; turns from now on go by it. A new version comes about where something changed."""
    async with get_db_context() as db:
        settings = await _settings(db, body)
        exams = ExamRepository(db)
        await exams.put(exam_id, settings)
        return ExamBody.of(_known(await exams.get(exam_id)))


@router.get("/{exam_id}")
async def show_exam(exam_id: ExamId) -> ExamBody:
    """What the worker knows of an exam."""
    async with get_db_context() as db:
        return ExamBody.of(_known(await ExamRepository(db).get(exam_id)))


@router.get("/{exam_id}/versions")
async def list_exam_versions(exam_id: ExamId, cursor: Cursor = 0, limit: Limit = 100) -> Page[ExamVersionBody]:
    """All that the exam was ever set to, oldest first."""
    async with get_db_context() as db:
        exams = ExamRepository(db)
        _known(await exams.get(exam_id))
        found = await exams.list_versions(exam_id, after=cursor, limit=limit + 1)
    return page(found, limit, ExamVersionBody.of, lambda version: version.version)


async def _settings(db: Transaction, body: ExamRequest) -> ExamSettings:
    """The body with its documents pinned: a name may mean another text tomorrow, a hash never does."""
    documents = DocumentRepository(db)

    async def pin(kind: DocumentKind, named: str | None) -> str:
        shape: Shape | None = "judge" if kind == "prompt" else None
        return await documents.pin(kind, named or default_document(kind, body.language), shape=shape)

    rubric = await pin("rubric", body.rubric)
    if body.rubric is not None:  # what is shipped has every language
        Rubric.parse(await documents.content("rubric", rubric)).text(body.language)
    return ExamSettings(
        body.problem_text,
        rubric=rubric,
        judge_prompt=await pin("prompt", body.judge_prompt),
        score_policy=await pin("policy", body.score_policy),
        language=body.language,
        guard=None if body.guard is None else body.guard.rules(),
        samples=body.samples,
        judge_model=body.judge_model,
        submissions=body.submissions,
        hold_scores=body.hold_scores,
    )


def _known(exam: Exam | None) -> Exam:
    if exam is None:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "Nothing is known of this exam.")
    return exam
