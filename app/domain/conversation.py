"""What a turn is: its states, its endings and its token usage. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

TurnId = str | int
"""A turn's id as the client wrote it. Ids are compared as text: 7 and "7" are one turn."""


class TurnStatus(StrEnum):
    """Where a turn stands. ``RUNNING`` is left once, for one of the others, and never entered again."""

    RUNNING = "running"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


class FinishReason(StrEnum):
    """Why an answer ended, as ``done`` says it."""

    STOP = "stop"
    LENGTH = "length"
    REFUSED = "refused"
    EXAM_CLOSED = "exam_closed"
    BUDGET_EXHAUSTED = "budget_exhausted"


UsageSource = Literal["provider", "counted"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one provider call, or of several summed.

    ``prompt_tokens`` includes ``cached_tokens``; ``completion_tokens`` includes ``reasoning_tokens``. So the total is
    always ``prompt_tokens + completion_tokens`` and nothing is counted twice, whatever the provider's own habit is.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "counted"

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def told(self) -> dict[str, int | str]:
        """What the protocol shows of it."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.total_tokens,
            "source": self.source,
        }

    def __add__(self, other: Usage) -> Usage:
        """Sum of two calls; only two figures of the provider make a figure of the provider."""
        both = self.source == other.source == "provider"
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            "provider" if both else "counted",
        )
