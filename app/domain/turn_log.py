"""The log of one turn: its deltas with their sequence numbers, its one ending, and those who read along. Pure.

Whoever runs the turn appends; readers keep a cursor of their own and are told, in the same tick, that there is
something to take. A reader that is slow takes several deltas joined; it never holds up the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.core.errors import ErrorCode
from app.domain.conversation import FinishReason, Usage


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete."""

    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody stopped the turn; what had come is kept."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Failed:
    """The turn ended with an error; what had come up to ``last_seq`` is kept."""

    code: ErrorCode
    message: str
    retryable: bool
    usage: Usage
    last_seq: int


Ending = Done | Cancelled | Failed


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of the deltas ``first_seq`` to ``last_seq``, joined."""

    first_seq: int
    last_seq: int
    content: str


class TurnReader(Protocol):
    """Somebody who reads a log."""

    def wake(self) -> None:
        """There is something new to take, or the turn has ended. Must return at once and must not raise."""


class IllegalMoveError(RuntimeError):
    """The log was written to after its end, or ended twice: a bug of the caller."""


class TurnLog:
    """Deltas 1, 2, 3 … without a gap, then one ending."""

    __slots__ = ("_contents", "_ending", "_readers")

    def __init__(self) -> None:
        self._contents: list[str] = []
        self._ending: Ending | None = None
        self._readers: list[TurnReader] = []

    @classmethod
    def restored(cls, content: str, lengths: Iterable[int], ending: Ending | None = None) -> TurnLog:
        """A log made from stored text and the lengths of its deltas in characters."""
        log = cls()
        position = 0
        for length in lengths:
            log._contents.append(content[position : position + length])
            position += length
        log._ending = ending
        return log

    @property
    def last_seq(self) -> int:
        """Number of the newest delta; 0 before the first."""
        return len(self._contents)

    @property
    def ending(self) -> Ending | None:
        """How the turn ended; ``None`` while it runs."""
        return self._ending

    @property
    def text(self) -> str:
        """All deltas joined."""
        return "".join(self._contents)

    @property
    def lengths(self) -> list[int]:
        """Length of every delta in characters."""
        return [len(content) for content in self._contents]

    @property
    def contents(self) -> Sequence[str]:
        """The deltas; not to be changed."""
        return self._contents

    def append(self, content: str) -> None:
        """Add the next delta (never empty) and tell the readers."""
        if self._ending is not None:
            raise IllegalMoveError("a turn that has ended has no further deltas")
        self._contents.append(content)
        for reader in tuple(self._readers):
            reader.wake()

    def end(self, ending: Ending) -> None:
        """End the turn, once, and tell the readers."""
        if self._ending is not None:
            raise IllegalMoveError("a turn ends once")
        self._ending = ending
        for reader in tuple(self._readers):
            reader.wake()

    def since(self, after_seq: int) -> Piece | None:
        """Everything after ``after_seq`` as one piece; ``None`` where there is nothing."""
        last = len(self._contents)
        if after_seq >= last:
            return None
        if after_seq == last - 1:
            return Piece(last, last, self._contents[-1])
        return Piece(after_seq + 1, last, "".join(self._contents[after_seq:]))

    def attach(self, reader: TurnReader) -> None:
        """Tell ``reader`` of everything from now on; what is there already it takes by itself."""
        self._readers.append(reader)

    def detach(self, reader: TurnReader) -> None:
        """Undo `attach`; harmless when it was not attached."""
        if reader in self._readers:
            self._readers.remove(reader)
