"""A turn's events over plain HTTP, for networks that let no WebSocket through: as a stream, and as a long poll."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse

from app.application.services.eval_service import EvalService
from app.application.turns.exchange import AttachedTurn, Started
from app.application.turns.reading import held, read
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.turn_log import Piece
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.turn_repository import TurnRepository
from app.presentation.api.problems import PROBLEMS
from app.presentation.api.routes.sessions import SessionId
from app.presentation.schemas.frames import TurnFrames, check_turn_id, session_id_of

router = APIRouter(prefix="/api", responses=PROBLEMS, tags=["sessions"])

_HEARTBEAT_S = 15.0
"""Silence after which a stream says that it lives; proxies cut off what is silent for a minute."""
_UNBUFFERED = {"cache-control": "no-store", "x-accel-buffering": "no"}
Seq = Annotated[int | None, Query(ge=0, le=2**31 - 1)]


@router.get(
    "/sessions/{session_id}/turns/{turn_id:any_text}/events",
    responses={
        200: {
            "description": "The frames of the WebSocket, as server-sent events or, if JSON is accepted, a list",
            "content": {"text/event-stream": {}, "application/json": {}},
        }
    },
    response_class=Response,
)
async def turn_events(
    session_id: SessionId,
    turn_id: str,
    request: Request,
    after_seq: Seq = None,
    wait_s: Annotated[float, Query(ge=0, le=60)] = 25.0,
    last_event_id: Annotated[str, Header(max_length=16, pattern="^[0-9]*$")] = "",
) -> Response:
    """A turn's deltas and its end, from the delta after ``Last-Event-ID`` (or ``after_seq``) on.

    With ``Accept: application/json`` it is a long poll: the answer comes as soon as there is something, or empty after
    ``wait_s``; ask again with its ``next``.
    """
    attached = await _attach(request.app.state.resources.service, session_id_of(session_id), turn_id)
    after = int(last_event_id) if last_event_id else after_seq or 0
    if "application/json" in request.headers.get("accept", ""):
        return await _poll(attached, after, wait_s)
    stream = _stream(attached, after)
    opened = await anext(stream)  # from now on the log is read
    return StreamingResponse(_chain(opened, stream), media_type="text/event-stream", headers=_UNBUFFERED)


async def _attach(service: EvalService, session_id: int, turn_id: str) -> AttachedTurn:
    """The turn; a path does not tell 7 from "7", so it is called as its client wrote it."""
    check_turn_id(turn_id)
    if not 0 < len(turn_id) <= 128:
        raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "The session has no such turn.")
    async with get_db_context() as db:
        turns = TurnRepository(db)
        turn = await turns.find(session_id, turn_id)
        written = await turns.client_ids(session_id, {turn.turn}) if turn is not None else {}
    attached = await service.resume(session_id, turn_id)
    started = attached.started
    return AttachedTurn(
        Started(started.session_id, started.turn, written.get(started.turn, turn_id)), attached.log, fresh=False
    )


async def _stream(attached: AttachedTurn, after: int) -> AsyncGenerator[str]:
    frames, seq = TurnFrames(attached.started), after
    with held(attached.log):
        yield ": reading\n\n"
        async for event in read(attached.log, after, heartbeat_s=_HEARTBEAT_S):
            if event is None:
                yield ": still here\n\n"
            elif isinstance(event, Piece):
                seq = event.last_seq
                yield f"id: {seq}\ndata: {frames.delta(event)}\n\n"
            else:
                yield f"id: {seq}\ndata: {frames.ending(event)}\n\n"


async def _chain(first: str, others: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(others):
        yield first
        async for other in others:
            yield other


async def _poll(attached: AttachedTurn, after: int, wait_s: float) -> Response:
    frames, items = TurnFrames(attached.started), list[str]()
    body: dict[str, Any] = {"next": after, "ended": False}
    async for event in read(attached.log, after, heartbeat_s=wait_s):
        if isinstance(event, Piece):
            items.append(frames.delta(event))
            body["next"] = event.last_seq
            if attached.log.ending is None:
                break
        elif event is not None:
            items.append(frames.ending(event))
            body["ended"] = True
        else:
            break
    content = msgspec.json.encode({"items": [msgspec.Raw(item.encode()) for item in items], **body})
    return Response(content, media_type="application/json", headers=_UNBUFFERED)
