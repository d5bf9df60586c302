"""What Core calls in the profile ``vibecode``; see docs/vibecode.md. Turns follow the same rules as everywhere."""

from __future__ import annotations

from fastapi import APIRouter, Request

from app.application.resources import Resources
from app.application.services.eval_service import EvalService
from app.application.turns.exchange import ChatCommand, ChatResult
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.conversation import TurnStatus
from app.domain.turn_log import Failed
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.frames import check_message
from app.presentation.schemas.vibecode import (
    AiMessage,
    AnswerForCore,
    MessageOfCore,
    SubmissionForCore,
    SubmissionOfCore,
)

router = APIRouter(prefix="/api", responses=PROBLEMS, tags=["vibecode"])

_MOST_TRIES = 100
"""Turns of one message that may fail one after the other; then the last failure is the answer for good."""


@router.post("/chat/messages")
async def answer_message(body: MessageOfCore, request: Request) -> AnswerForCore:
    """Answer a candidate's message.

    The session is ``sessionId``, one of ours, of this participant. Or the context names the exam: then the
    participant's active session of that exam is found or created, ``sessionId`` may be any name that Core has for it,
    and comes back as it came. The same ``turnId`` with the same content gets the same answer; one whose turn failed is
    answered anew.
    """
    resources: Resources = request.app.state.resources
    if body.role.upper() != "USER":
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "Only messages of the role USER are answered.")
    check_message(body.content, resources.settings.limits.message_chars)
    session_id = await _session_of(body)
    result = await _result_of(resources.service, ChatCommand(body.content, body.turnId, session_id))
    async with get_db_context() as db:
        total = await TurnRepository(db).tokens_until(session_id, result.turn)
    return AnswerForCore(
        aiMessage=AiMessage(
            sessionId=session_id if body.sessionId is None else body.sessionId,
            turn=body.turnId + 1,
            content=result.ai_message,
            tokenCount=result.usage.total_tokens,
            totalToken=total,
        )
    )


@router.post("/session/submit", status_code=202)
async def submit(body: SubmissionOfCore, request: Request) -> SubmissionForCore:
    """Take a candidate's final code, to be judged with the participant's session of the exam.

    The same ``submissionId`` with the same code is the same submission, whatever has become of it.
    """
    resources: Resources = request.app.state.resources
    session_id = await _session_of_submission(body)
    seen = await resources.submissions.submit(session_id, body.finalCode, body.our_language, body.submissionId)
    resources.wake_delivery()
    return SubmissionForCore(submissionId=body.submissionId, status=seen.submission.status.value)


async def _session_of_submission(body: SubmissionOfCore) -> int:
    """The session that the submission was handed in with before; the active one; the last one; or a new one."""
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        known = await SubmissionRepository(db).find(str(body.submissionId))
        session = None if known is None else await sessions.get_session(known.session_id)
        if session is not None and (session.exam_id, session.participant_id) == (body.examId, body.participantId):
            return session.id
        found = await sessions.get_active_session(body.examId, body.participantId)
        found = found or await sessions.newest_session(body.examId, body.participantId)
        if found is None:
            found, _ = await sessions.ensure_session(body.examId, body.participantId, body.specId)
        elif body.specId is not None:
            await sessions.name_problem(found.id, body.specId)
        return found.id


async def _session_of(body: MessageOfCore) -> int:
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        if body.sessionId is not None:
            session = await sessions.get_session(body.sessionId)
            its_exam = session is not None and body.exam_id in (None, session.exam_id)
            if session is not None and its_exam and session.participant_id == body.participantId:
                return session.id
        if body.exam_id is None:
            raise TurnstoneError(
                ErrorCode.SESSION_NOT_FOUND,
                "The participant has no such session; start it with POST /api/sessions, or name context.examId.",
            )
        session, _ = await sessions.ensure_session(body.exam_id, body.participantId, body.spec_id)
        return session.id


async def _result_of(service: EvalService, command: ChatCommand) -> ChatResult:
    """Answer a message; where its turn has failed before, in another turn.

    A Core that got no answer takes back the message's number and gives it to the next message. So a turn that failed
    does not keep its id to itself here, as it does for clients who choose ids themselves: it would end the session.
    """
    attempt = command
    for number in range(2, _MOST_TRIES + 1):
        try:
            attached = await service.attach(attempt)
        except TurnstoneError as error:
            if error.code is not ErrorCode.TURN_ID_CONFLICT or not await _has_failed(attempt):
                raise
        else:
            before = attached.log.ending if not attached.fresh else None
            if not (isinstance(before, Failed) and before.retryable):
                return await service.result(attached)
        attempt = ChatCommand(command.message, f"{command.turn_id}.{number}", command.session_id)
    return await service.result(await service.attach(attempt))


async def _has_failed(command: ChatCommand) -> bool:
    assert command.session_id is not None, "it was found before"
    async with get_db_context() as db:
        turn = await TurnRepository(db).find(command.session_id, str(command.turn_id))
    return turn is not None and turn.status in (TurnStatus.FAILED, TurnStatus.INTERRUPTED)
