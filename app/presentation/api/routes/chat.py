"""The conversation: ``WS /chat`` and ``POST /api/chat/message``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from app.application.resources import Resources
from app.application.turns.exchange import AttachedTurn, Started
from app.core import metrics
from app.core.errors import ErrorCode, TurnstoneError
from app.core.settings import Settings
from app.domain.conversation import TurnId
from app.domain.turn_log import Ending
from app.infrastructure.repositories.state_repository import TurnKey
from app.presentation.api.auth import SUBPROTOCOL, check_origin, check_token, token_of
from app.presentation.api.problems import PROBLEMS
from app.presentation.api.socket import Outbox, SocketReader, SubmissionReader
from app.presentation.schemas.bodies import BegunTurn, ChatAnswer, ChatRequest
from app.presentation.schemas.frames import (
    PONG,
    AuthFrame,
    BadFrameError,
    CancelFrame,
    FollowFrame,
    MessageFrame,
    PingFrame,
    ResumeFrame,
    TurnFrames,
    check_turn_id,
    command_of,
    error_frame,
    parse,
    session_id_of,
    started_frame,
)

log = structlog.get_logger()
router = APIRouter()

_RESPOND_ASYNC = "respond-async"
_AUTH_WITHIN_S = 5.0
_UNAUTHENTICATED = 4401
_FORBIDDEN = 4403
_FULL = 4503
_MOST_REMEMBERED = 256
"""Ended turns that a connection remembers."""


@router.post(
    "/api/chat/message",
    responses={**PROBLEMS, 202: {"model": BegunTurn, "description": "Begun, as ``Prefer: respond-async`` asked"}},
    response_model=ChatAnswer,
    tags=["chat"],
)
async def post_message(
    body: ChatRequest, request: Request, prefer: Annotated[str, Header()] = ""
) -> ChatAnswer | Response:
    """Answer a message as a whole, by the same rules as over the WebSocket.

    Without a ``turn_id`` every call is a turn of its own. With ``Prefer: respond-async`` (RFC 7240) the answer is 202
    as soon as the message is stored; the turn is then read at its ``events``.
    """
    resources: Resources = request.app.state.resources
    command = body.command(resources.settings.limits.message_chars)
    place: dict[str, Any] = {
        "session_id": command.session_id,
        "exam_id": command.exam_id,
        "participant_id": command.participant_id,
        "spec_id": command.spec_id,
    }
    if not _wants_no_wait(prefer):
        return ChatAnswer.of(await resources.service.process_message(command.message, command.turn_id, **place))
    attached = await resources.service.process_message_stream(command.message, command.turn_id, **place)
    begun = BegunTurn.of(attached.started)
    return JSONResponse(begun.model_dump(), 202, headers={"preference-applied": _RESPOND_ASYNC})


def _wants_no_wait(prefer: str) -> bool:
    preferences = (part.partition(";")[0].strip().lower() for part in prefer.split(","))
    return _RESPOND_ASYNC in preferences


@router.websocket("/chat")
@router.websocket("/api/chat/ws")
async def chat(websocket: WebSocket) -> None:
    """Frames in, frames out; see docs/protocol.md."""
    settings: Settings = websocket.app.state.resources.settings
    subprotocol = SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", ()) else None
    await websocket.accept(subprotocol=subprotocol)
    places: Places = websocket.app.state.places
    try:
        if places.taken >= settings.limits.connections:
            await websocket.close(_FULL, "The service is full; try again in a moment.")
            return
        with places.take():
            if await _let_in(websocket, settings):
                await Conversation(websocket, websocket.app.state.resources).run()
    except WebSocketDisconnect:
        return


class Places:
    """Counts the connections that are being served."""

    def __init__(self) -> None:
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Take a place, for as long as the block lasts."""
        self.taken += 1
        try:
            with metrics.SOCKETS.track_inprogress():
                yield
        finally:
            self.taken -= 1


async def _let_in(websocket: WebSocket, settings: Settings) -> bool:
    """Check who it is; a socket that is refused is closed with a code, so that a browser sees why."""
    try:
        if settings.auth.mode == "open":
            check_origin(websocket)
        else:
            check_token(settings, token_of(websocket) or await _token_in_first_frame(websocket))
    except TurnstoneError as error:
        code = _FORBIDDEN if error.code is ErrorCode.FORBIDDEN else _UNAUTHENTICATED
        await websocket.close(code, error.message)
        return False
    return True


async def _token_in_first_frame(websocket: WebSocket) -> str | None:
    try:
        async with asyncio.timeout(_AUTH_WITHIN_S):
            message = await websocket.receive()
    except TimeoutError:
        return None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005))
    try:
        frame = parse(message.get("text"))
    except BadFrameError:
        return None
    return frame.token if isinstance(frame, AuthFrame) else None


@dataclass(slots=True)
class _Turn:
    """A turn that a connection knows: its number, who reads it for the client, and the ending the client was told."""

    number: int
    reader: SocketReader | None = None
    ending: Ending | None = None

    def end(self, ending: Ending) -> None:
        self.reader, self.ending = None, ending


class Conversation:
    """One connection: its frames, and the turns it reads."""

    def __init__(self, websocket: WebSocket, resources: Resources) -> None:
        self._websocket = websocket
        self._service = resources.service
        self._submissions = resources.submissions
        self._message_limit = resources.settings.limits.message_chars
        self._outbox = Outbox(websocket.send)
        self._news = SubmissionReader(resources.followers, self._outbox)
        self._turns: dict[TurnKey, _Turn] = {}

    async def run(self) -> None:
        """Serve the client until it goes. Turns it started go on without it."""
        try:
            while not self._outbox.closed:
                message = await self._websocket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                await self._handle(message.get("text"))
                await self._outbox.room()
        finally:
            self._news.stop()
            for turn in self._turns.values():
                if turn.reader is not None:
                    turn.reader.stop()
            await self._outbox.close()

    async def _handle(self, data: str | None) -> None:
        turn_id: TurnId | None = None
        try:
            frame = parse(data)
            turn_id = getattr(frame, "turn_id", None)
            if isinstance(frame, MessageFrame):
                await self._message(frame)
            elif isinstance(frame, CancelFrame):
                await self._cancel(frame)
            elif isinstance(frame, ResumeFrame):
                await self._resume(frame)
            elif isinstance(frame, FollowFrame):
                await self._follow(frame)
            elif isinstance(frame, PingFrame):
                self._outbox.say(PONG)
        except BadFrameError as bad:
            self._outbox.say(error_frame(bad.error, bad.turn_id))
        except TurnstoneError as error:
            self._outbox.say(error_frame(error, turn_id))
        except Exception as error:  # noqa: BLE001  # the boundary: the connection stays usable, and nothing leaks
            log.error("frame_failed", error=type(error).__name__)
            self._outbox.say(
                error_frame(TurnstoneError(ErrorCode.INTERNAL, "Something went wrong on our side; try again."), turn_id)
            )

    async def _message(self, frame: MessageFrame) -> None:
        command = command_of(frame, self._message_limit)
        attached = await self._service.process_message_stream(
            command.message,
            command.turn_id,
            session_id=command.session_id,
            exam_id=command.exam_id,
            participant_id=command.participant_id,
            spec_id=command.spec_id,
        )
        self._outbox.say(started_frame(attached.started))
        self._read(attached)

    async def _follow(self, frame: FollowFrame) -> None:
        """From now on it is told how far submissions are; and at once, how far the newest is."""
        session_id = session_id_of(frame.session_id)
        self._news.follow(session_id)
        news = await self._submissions.news(session_id)
        if news is not None:
            self._news.tell(news)

    async def _resume(self, frame: ResumeFrame) -> None:
        check_turn_id(frame.turn_id)
        attached = await self._service.resume(session_id_of(frame.session_id), frame.turn_id)
        self._read(attached, after_seq=frame.after_seq)

    async def _cancel(self, frame: CancelFrame) -> None:
        check_turn_id(frame.turn_id)
        key = TurnKey(self._session_of(frame), str(frame.turn_id))
        known = self._turns.get(key)
        if known is not None and known.reader is None and known.ending is not None:
            # It stays as it ended: however often somebody asks, the database is left in peace.
            self._outbox.say(TurnFrames(Started(key.session_id, known.number, frame.turn_id)).ending(known.ending))
            return
        attached = await self._service.cancel(key.session_id, frame.turn_id)
        self._news.follow(key.session_id)
        turn = self._turn(attached)
        if turn.reader is None:
            turn.reader = SocketReader.of_ending(attached, self._outbox, on_end=turn.end)
            turn.reader.start()

    def _session_of(self, frame: CancelFrame) -> int:
        if frame.session_id is not None:
            return session_id_of(frame.session_id)
        sessions = [key.session_id for key in self._turns if key.turn_id == str(frame.turn_id)]
        if len(sessions) > 1:
            raise TurnstoneError(ErrorCode.INVALID_FRAME, "Several sessions have such a turn; give its session_id.")
        if not sessions:
            raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "This connection knows no such turn; give its session_id.")
        return sessions[0]

    def _read(self, attached: AttachedTurn, *, after_seq: int = 0) -> None:
        """Show a turn from ``after_seq`` on, in place of an earlier reading of it on this connection."""
        self._news.follow(attached.started.session_id)
        turn = self._turn(attached)
        if turn.reader is not None:
            turn.reader.stop()
        turn.reader = SocketReader(attached, self._outbox, after_seq=after_seq, on_end=turn.end)
        turn.reader.start()

    def _turn(self, attached: AttachedTurn) -> _Turn:
        key = TurnKey(attached.started.session_id, str(attached.started.turn_id))
        if key not in self._turns:
            if len(self._turns) >= _MOST_REMEMBERED:
                self._forget_one()
            self._turns[key] = _Turn(attached.started.turn)
        return self._turns[key]

    def _forget_one(self) -> None:
        """Forget the turn that is known the longest; one that the client still reads is not forgotten."""
        for key, turn in self._turns.items():
            if turn.reader is None:
                del self._turns[key]
                return
