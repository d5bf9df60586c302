"""Sessions, their messages and turns."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.application.turns.reading import ended
from app.core.errors import ErrorCode, TurnstoneError
from app.infrastructure.persistence.models import PromptSession
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository
from app.presentation.api.paging import EMPTY_IS_NONE, Cursor, Limit, page
from app.presentation.api.paths import ANY_TEXT
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import (
    MessageBody,
    Page,
    SessionBody,
    SessionRequest,
    TurnBody,
)
from app.presentation.schemas.frames import check_turn_id, session_id_of

router = APIRouter(prefix="/api", responses=PROBLEMS, tags=["sessions"])

SessionId = Annotated[str, Path(max_length=64)]
IdFilter = Annotated[int | None, Query(gt=0, le=2**63 - 1), EMPTY_IS_NONE]


@router.post("/sessions", status_code=201, responses={200: {"model": SessionBody, "description": "The active session"}})
async def start_session(body: SessionRequest, response: Response) -> SessionBody:
    """Start a session; the pair's active one is returned (200) where there is one."""
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        session, is_new = await sessions.ensure_session(body.exam_id, body.participant_id, body.spec_id)
    if not is_new:
        response.status_code = 200
    if body.spec_id is not None and session.spec_id != body.spec_id:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The session was started with another spec_id.")
    return SessionBody.of(session)


@router.get("/sessions")
async def list_sessions(
    exam_id: IdFilter = None, participant_id: IdFilter = None, cursor: Cursor = 0, limit: Limit = 100
) -> Page[SessionBody]:
    """Sessions, oldest first."""
    async with get_db_context() as db:
        found = await SessionRepository(db).list_sessions(exam_id, participant_id, after=cursor, limit=limit + 1)
    return page(found, limit, SessionBody.of, lambda session: session.id)


@router.get("/sessions/{session_id}")
async def show_session(session_id: SessionId) -> SessionBody:
    """One session."""
    async with get_db_context() as db:
        return SessionBody.of(_found(await SessionRepository(db).get_session(session_id_of(session_id))))


@router.get("/sessions/{session_id}/messages")
async def list_messages(session_id: SessionId, cursor: Cursor = 0, limit: Limit = 100) -> Page[MessageBody]:
    """The conversation, in order."""
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        session = _found(await sessions.get_session(session_id_of(session_id)))
        found = await sessions.list_messages(session.id, after=cursor, limit=limit + 1)
        turn_ids = await TurnRepository(db).client_ids(session.id, {message.turn for message in found})
    return page(
        found, limit, lambda message: MessageBody.of(message, turn_ids.get(message.turn)), lambda message: message.id
    )


@router.post(f"/sessions/{{session_id}}/turns/{{turn_id:{ANY_TEXT}}}/cancel")
async def cancel_turn(session_id: SessionId, turn_id: str, request: Request) -> TurnBody:
    """Stop a turn; answers when it has ended. A turn that had ended before stays as it was."""
    check_turn_id(turn_id)
    if not 0 < len(turn_id) <= 128:
        raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "The session has no such turn.")
    service = request.app.state.resources.service
    attached = await service.cancel(session_id_of(session_id), turn_id)
    ending = await ended(attached.log)
    async with get_db_context() as db:
        turns = TurnRepository(db)
        turn = await turns.find(attached.started.session_id, turn_id)
        assert turn is not None, "it has just ended"
        turn_ids = await turns.client_ids(turn.session_id, {turn.turn})
    return TurnBody.of(turn, ending.usage, turn_ids[turn.turn])


@router.post("/sessions/{session_id}/end")
async def end_session(session_id: SessionId) -> SessionBody:
    """End a session: later messages get ``session_ended``. A turn that runs may finish."""
    async with get_db_context() as db:
        return SessionBody.of(_found(await SessionRepository(db).end_session(session_id_of(session_id))))


def _found(session: PromptSession | None) -> PromptSession:
    if session is None:
        raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
    return session
