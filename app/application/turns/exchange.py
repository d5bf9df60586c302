"""What is asked of the conversation's use cases, and what they answer with."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.conversation import FinishReason, TurnId, Usage
from app.domain.turn_log import TurnLog


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """A candidate's message, valid in form. Either ``session_id`` is set, or exam and participant are."""

    message: str
    turn_id: TurnId
    session_id: int | None = None
    exam_id: int | None = None
    participant_id: int | None = None
    spec_id: int | None = None

    @property
    def session(self) -> int | tuple[int, int]:
        """The session's id, or the pair (exam, participant) whose active session is meant."""
        if self.session_id is not None:
            return self.session_id
        assert self.exam_id is not None and self.participant_id is not None, "checked where it came in"
        return self.exam_id, self.participant_id


@dataclass(frozen=True, slots=True)
class Started:
    """The turn's number and session are known, and the candidate's message is stored."""

    session_id: int
    turn: int
    turn_id: TurnId


@dataclass(frozen=True, slots=True)
class AttachedTurn:
    """A turn and its log, to read from any ``seq`` on. ``fresh``: this call has started it."""

    started: Started
    log: TurnLog
    fresh: bool


@dataclass(frozen=True, slots=True)
class ChatResult:
    """A whole answer. ``ending`` says how it ended; ``finish_reason`` is ``cancelled`` where somebody stopped it."""

    session_id: int
    turn: int
    turn_id: TurnId
    ai_message: str
    finish_reason: FinishReason | str
    usage: Usage
