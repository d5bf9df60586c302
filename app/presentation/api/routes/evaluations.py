"""Judgements and what people say of them. For Core alone: candidates see no score while an exam runs."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request

from app.application.resources import Resources
from app.application.services.evaluation_service import resolve_review_item
from app.core.errors import ErrorCode, TurnstoneError
from app.infrastructure.persistence.models import ReviewReasonEnum
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.evaluation_repository import CallsSummary, EvaluationRepository
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository
from app.presentation.api.paging import EMPTY_IS_NONE, Cursor, Limit, page
from app.presentation.api.paths import ANY_TEXT
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import Page
from app.presentation.schemas.evaluation_bodies import (
    AppealBody,
    AppealRequest,
    EvaluationBody,
    OverrideBody,
    OverrideRequest,
    ResolveRequest,
    ReviewBody,
)
from app.presentation.schemas.frames import check_turn_id, session_id_of

router = APIRouter(prefix="/api", responses=PROBLEMS, tags=["evaluations"])

SessionId = Annotated[str, Path(max_length=64)]
ItemId = Annotated[int, Path(gt=0, le=2**63 - 1)]
_NO_CALLS = CallsSummary()


@router.get("/sessions/{session_id}/evaluations")
async def list_evaluations(session_id: SessionId, cursor: Cursor = 0, limit: Limit = 100) -> Page[EvaluationBody]:
    """Every judgement of a session's turns, in the order in which they were asked for, with what it took."""
    async with get_db_context() as db:
        session = await SessionRepository(db).get_session(session_id_of(session_id))
        if session is None:
            raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
        evaluations = EvaluationRepository(db)
        runs = await evaluations.runs(session.id, after=cursor, limit=limit + 1)
        calls = await evaluations.calls_of([run.id for run in runs])
        turn_ids = await TurnRepository(db).client_ids(session.id, {run.judged_turn for run in runs})
    return page(
        runs,
        limit,
        lambda run: EvaluationBody.of(run, turn_ids.get(run.judged_turn), calls.get(run.id, _NO_CALLS)),
        lambda run: run.id,
    )


@router.post(f"/sessions/{{session_id}}/turns/{{turn_id:{ANY_TEXT}}}/override")
async def override_score(session_id: SessionId, turn_id: str, body: OverrideRequest, request: Request) -> OverrideBody:
    """Set a person's score of a turn. It stands beside the machine's and is the one that counts; Core is told."""
    resources: Resources = request.app.state.resources
    override = await resources.evaluations.override(
        session_id_of(session_id), _turn_id(turn_id), body.score, body.reason, body.person
    )
    resources.wake_delivery()
    return OverrideBody.of(override)


@router.post(f"/sessions/{{session_id}}/turns/{{turn_id:{ANY_TEXT}}}/appeal", status_code=202)
async def appeal(session_id: SessionId, turn_id: str, body: AppealRequest, request: Request) -> AppealBody:
    """Ask that people look at a turn. It is judged once more with more samples, for them to see."""
    resources: Resources = request.app.state.resources
    item_id, run = await resources.evaluations.appeal(
        session_id_of(session_id), _turn_id(turn_id), body.reason, body.person
    )
    resources.wake_delivery()
    return AppealBody(review_id=str(item_id), evaluation_id=str(run.id), batch=run.batch or "")


@router.get("/reviews")
async def list_reviews(
    status: Annotated[Literal["open", "resolved"] | None, EMPTY_IS_NONE] = None,
    reason: Annotated[ReviewReasonEnum | None, EMPTY_IS_NONE] = None,
    exam_id: Annotated[int | None, Query(gt=0, le=2**63 - 1), EMPTY_IS_NONE] = None,
    cursor: Cursor = 0,
    limit: Limit = 100,
) -> Page[ReviewBody]:
    """Turns and submissions that a person is to look at, oldest first."""
    async with get_db_context() as db:
        found = await ReviewRepository(db).list_items(
            is_open=None if status is None else status == "open",
            reason=reason,
            exam_id=exam_id,
            after=cursor,
            limit=limit + 1,
        )
    return page(found, limit, lambda row: ReviewBody.of(*row), lambda row: row[0].id)


@router.post("/reviews/{item_id}/resolve")
async def resolve_review(item_id: ItemId, body: ResolveRequest) -> ReviewBody:
    """Say what came of a review. The same said again changes nothing."""
    await resolve_review_item(item_id, body.person, body.resolution)
    async with get_db_context() as db:
        found = await ReviewRepository(db).get(item_id)
    if found is None:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "There is no such review item.")
    return ReviewBody.of(*found)


def _turn_id(text: str) -> str:
    check_turn_id(text)
    if not 0 < len(text) <= 128:
        raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "The session has no such turn.")
    return text
