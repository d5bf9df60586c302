"""The WebSocket protocol's frames: what comes in is checked here, what goes out is written here. No I/O."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec

from app.application.turns.exchange import ChatCommand, Started
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.conversation import TurnId
from app.domain.submission import SubmissionNews
from app.domain.turn_log import Cancelled, Done, Ending, Piece

_BIGGEST_ID = 2**63 - 1

PositiveId = Annotated[int, msgspec.Meta(ge=1, le=_BIGGEST_ID)]
_TextId = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_IntId = Annotated[int, msgspec.Meta(ge=-(2**63), le=_BIGGEST_ID)]


class MessageFrame(msgspec.Struct):
    """A candidate's message."""

    message: str
    turn_id: _TextId | _IntId
    session_id: str | PositiveId | None = None
    exam_id: PositiveId | None = None
    participant_id: PositiveId | None = None
    spec_id: PositiveId | None = None


class CancelFrame(msgspec.Struct):
    """Stop a turn. ``session_id`` may be left out where the connection knows the turn."""

    turn_id: _TextId | _IntId
    session_id: str | PositiveId | None = None


class ResumeFrame(msgspec.Struct):
    """Read a turn from the delta after ``after_seq`` on."""

    session_id: str | PositiveId
    turn_id: _TextId | _IntId
    after_seq: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


class FollowFrame(msgspec.Struct):
    """Be told how far the session's submissions are."""

    session_id: str | PositiveId


class PingFrame(msgspec.Struct):
    """Asks for a pong."""


class AuthFrame(msgspec.Struct):
    """The token, where it could not be sent with the handshake."""

    token: str


ClientFrame = MessageFrame | CancelFrame | ResumeFrame | FollowFrame | PingFrame | AuthFrame

_TYPES: dict[str, type[ClientFrame]] = {
    "message": MessageFrame,
    "cancel": CancelFrame,
    "resume": ResumeFrame,
    "follow": FollowFrame,
    "ping": PingFrame,
    "auth": AuthFrame,
}


class BadFrameError(Exception):
    """A frame that cannot be used; ``turn_id`` is its turn where that much can be read."""

    def __init__(self, error: TurnstoneError, turn_id: TurnId | None = None) -> None:
        super().__init__(error.message)
        self.error = error
        self.turn_id = turn_id


def invalid(message: str, turn_id: TurnId | None = None) -> BadFrameError:
    """A frame of the wrong form."""
    return BadFrameError(TurnstoneError(ErrorCode.INVALID_FRAME, message), turn_id)


def parse(data: str | None) -> ClientFrame:
    """Read one frame from a client; ``None`` stands for a binary one.

    Raises:
        BadFrameError: ``invalid_frame``, and which field is wrong.
    """
    if data is None:
        raise invalid("Frames are JSON text, not binary.")
    try:
        fields = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        raise invalid("The frame is not valid JSON, or holds half a character.", _turn_id_at_least(data)) from None
    if not isinstance(fields, dict):
        raise invalid("A frame is a JSON object.")
    turn_id = _readable_turn_id(fields.get("turn_id"))
    name = fields.get("type", "message")
    struct = _TYPES.get(name) if isinstance(name, str) else None
    if struct is None:
        raise invalid("The frame's type is unknown; it is message, cancel, resume, follow or ping.", turn_id)
    try:
        return msgspec.convert(fields, struct)
    except msgspec.ValidationError as error:
        # msgspec names the field and the type it wants, never the value it got.
        raise invalid(f"The frame is not a valid {name} frame: {error}.", turn_id) from None


def _turn_id_at_least(data: str) -> TurnId | None:
    """The turn of a frame that cannot be used, where a more lenient reader sees it."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    turn_id = _readable_turn_id(fields.get("turn_id")) if isinstance(fields, dict) else None
    sendable = not isinstance(turn_id, str) or turn_id.encode(errors="replace").decode() == turn_id
    return turn_id if sendable else None


def _readable_turn_id(value: Any) -> TurnId | None:
    if isinstance(value, str) and 0 < len(value) <= 128:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value <= _BIGGEST_ID:
        return value
    return None


def session_id_of(value: str | int) -> int:
    """A session's id as the database knows it.

    Raises:
        TurnstoneError: ``session_not_found``; no session of ours is called so.
    """
    if isinstance(value, int):
        return value
    if value.isascii() and value.isdigit() and value[0] != "0" and int(value[:20]) <= _BIGGEST_ID:
        return int(value)
    raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")


def check_message(message: str, limit: int) -> None:
    """Check a candidate's text.

    Raises:
        TurnstoneError: ``invalid_frame`` or ``message_too_large``.
    """
    if not message.strip():
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The message is empty.")
    if len(message) > limit:
        raise TurnstoneError(
            ErrorCode.MESSAGE_TOO_LARGE, f"The message has {len(message)} characters; the limit is {limit}."
        )
    if "\x00" in message:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The message holds a NUL character.")


def check_turn_id(turn_id: TurnId) -> None:
    """Check a turn id.

    Raises:
        TurnstoneError: ``invalid_frame``.
    """
    if isinstance(turn_id, str) and "\x00" in turn_id:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The turn_id holds a NUL character.")


def command_of(frame: MessageFrame, message_limit: int) -> ChatCommand:
    """A valid message frame as a command.

    Raises:
        TurnstoneError: ``invalid_frame``, ``message_too_large`` or ``session_not_found``.
    """
    check_turn_id(frame.turn_id)
    check_message(frame.message, message_limit)
    if frame.session_id is not None:
        if frame.exam_id is not None or frame.participant_id is not None:
            raise TurnstoneError(ErrorCode.INVALID_FRAME, "Give session_id, or exam_id and participant_id, not both.")
    elif frame.exam_id is None or frame.participant_id is None:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "Give session_id, or exam_id and participant_id.")
    return ChatCommand(
        message=frame.message,
        turn_id=frame.turn_id,
        session_id=None if frame.session_id is None else session_id_of(frame.session_id),
        exam_id=frame.exam_id,
        participant_id=frame.participant_id,
        spec_id=frame.spec_id,
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


PONG = _json({"type": "pong"})


def started_frame(started: Started) -> str:
    """The candidate's message is stored, and the turn has its number."""
    return _json(
        {
            "type": "started",
            "session_id": str(started.session_id),
            "turn_id": started.turn_id,
            "turn": started.turn,
        }
    )


def submission_frame(news: SubmissionNews) -> str:
    """How far a submission is."""
    return _json({"type": "submission", **news.to_json()})


def error_frame(error: TurnstoneError, turn_id: TurnId | None) -> str:
    """An error that no started turn has."""
    fields: dict[str, Any] = {"type": "error", "turn_id": turn_id, "code": error.code, "message": error.message}
    fields["retryable"] = error.retryable
    if error.retry_after_s is not None:
        fields["retry_after_s"] = error.retry_after_s
    return _json(fields)


class TurnFrames:
    """Writes one turn's frames for one client: everything but the content is prepared once."""

    __slots__ = ("_delta", "_started")

    def __init__(self, started: Started) -> None:
        self._started = started
        self._delta = f'{{"type":"delta","turn_id":{_json(started.turn_id)},"seq":'

    def delta(self, piece: Piece) -> str:
        """New text; says ``first_seq`` where it joins several deltas."""
        content = msgspec.json.encode(piece.content).decode()
        if piece.first_seq == piece.last_seq:
            return f'{self._delta}{piece.last_seq},"content":{content}}}'
        return f'{self._delta}{piece.last_seq},"first_seq":{piece.first_seq},"content":{content}}}'

    def ending(self, ending: Ending) -> str:
        """The terminal frame."""
        turn_id, turn, usage = self._started.turn_id, self._started.turn, ending.usage.told
        if isinstance(ending, Done):
            reason = ending.finish_reason
            return _json({"type": "done", "turn_id": turn_id, "turn": turn, "finish_reason": reason, "usage": usage})
        if isinstance(ending, Cancelled):
            return _json({"type": "cancelled", "turn_id": turn_id, "turn": turn, "usage": usage})
        return _json(
            {
                "type": "error",
                "turn_id": turn_id,
                "turn": turn,
                "code": ending.code,
                "message": ending.message,
                "retryable": ending.retryable,
                "usage": usage,
                "last_seq": ending.last_seq,
            }
        )
