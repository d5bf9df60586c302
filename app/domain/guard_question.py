"""What a model is asked about a message that the guard itself is in doubt about, and how its answer is read. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.domain.guarding import ATTACKS, GuardLabel
from app.domain.model_client import ChatMessage, ModelCall, ModelRequest
from app.domain.prompting import prompt

TIME_LIMIT_S = 3.0
"""A candidate waits for no longer than this; then the guard goes by what it has found itself."""
_MOST_TOKENS = 64
_HARMLESS = "HARMLESS"


@dataclass(slots=True)
class GuardCall:
    """One call of the guard: what it sent, what became of it, and the pieces of the answer so far."""

    request: ModelRequest
    call: ModelCall
    pieces: list[str] = field(default_factory=list)

    @property
    def messages(self) -> Sequence[ChatMessage]:
        """What was sent."""
        return self.request.messages

    @property
    def answer(self) -> str:
        """The text that came."""
        return "".join(self.pieces)


def question_about(passage: str) -> ModelRequest:
    """Ask which attack a passage of a message is, if any."""
    # Who wrote the passage cannot have put its own hash into it, so the fence ends where we end it.
    fence = f"=== {hashlib.sha256(passage.encode()).hexdigest()[:16]} ==="
    system = prompt("guard").replace("{fence}", fence)
    return ModelRequest(
        [ChatMessage("system", system), ChatMessage("user", f"{fence}\n{passage}\n{fence}")], _MOST_TOKENS
    )


def read_answer(answer: str) -> frozenset[GuardLabel] | None:
    """The attack that a model named, an empty set where it said harmless; ``None`` where it said anything else."""
    word = answer.strip().strip("`*\"'.").upper()
    if word == _HARMLESS:
        return frozenset()
    return frozenset({GuardLabel(word)}) if word in {label.value for label in ATTACKS} else None
