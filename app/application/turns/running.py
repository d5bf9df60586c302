"""A turn that runs in this process."""

from __future__ import annotations

import time
from dataclasses import dataclass

from app.application.turns.generation import Generation
from app.application.turns.input import TurnInput
from app.core import metrics
from app.domain.conversation import TurnId
from app.domain.langgraph.context import Opening
from app.domain.langgraph.state import TurnState
from app.domain.model_client import ModelRequest
from app.domain.turn_log import TurnLog
from app.infrastructure.repositories.state_repository import TurnKey
from app.infrastructure.repositories.turn_repository import Chunk


@dataclass(frozen=True, slots=True)
class TurnRef:
    """Which turn: its key in the database, and how the client and the session call it."""

    pk: int
    session_id: int
    turn: int
    turn_id: TurnId
    owner: int

    @property
    def key(self) -> TurnKey:
        """The turn's key in the live-turn store."""
        return TurnKey(self.session_id, str(self.turn_id))


class RunningTurn:
    """One turn under way: where its text goes, and the handle to stop it."""

    def __init__(
        self, ref: TurnRef, given: TurnInput, log: TurnLog, generation: Generation, *, arrived_at: float
    ) -> None:
        self.ref = ref
        self.given = given
        self.log = log
        self.generation = generation
        self.arrived_at = arrived_at
        self.flushed_seq = 0
        self.settling = False
        self.cancel_requested = False
        self.interrupted = False
        self.disowned = False
        self._first_delta_at: float | None = None
        self._cancelled_at = 0.0

    @property
    def first_token_ms(self) -> int | None:
        """Milliseconds from the message's arrival to the first text."""
        return None if self._first_delta_at is None else round((self._first_delta_at - self.arrived_at) * 1000)

    @property
    def duration_ms(self) -> int:
        """Milliseconds since the message's arrival."""
        return round((time.monotonic() - self.arrived_at) * 1000)

    @property
    def stopped(self) -> bool:
        """Whether somebody wants the turn to end early."""
        return self.cancel_requested or self.interrupted or self.disowned

    def emit(self, content: str) -> None:
        """Take a piece of the answer."""
        if self._first_delta_at is None:
            self._first_delta_at = time.monotonic()
            metrics.FIRST_TOKEN.observe(self._first_delta_at - self.arrived_at)
        self.log.append(content)

    def cancel(self) -> None:
        """The candidate wants the turn to stop. Once is enough; again does nothing."""
        if not self.cancel_requested:
            self.cancel_requested = True
            self._cancelled_at = time.monotonic()
            self._stop()

    def interrupt(self) -> None:
        """The process has to end before the turn does."""
        self.interrupted = True
        self._stop()

    def disown(self) -> None:
        """Another process has taken the turn over: stop, and write nothing."""
        self.disowned = True
        self._stop()

    def begin(self, request: ModelRequest) -> None:
        """The message is stored: let the graph ask the model."""
        self.generation.open(Opening(request, self.emit, self.given.exam))

    async def ended(self) -> TurnState:
        """Await the graph's end, which `cancel` and its kin can bring about.

        Returns:
            The graph's last state.

        Raises:
            asyncio.CancelledError: the run was stopped; the connection to the provider is closed by now.
        """
        try:
            return await self.generation.run
        finally:
            if self._cancelled_at:
                metrics.CANCEL.observe(time.monotonic() - self._cancelled_at)

    def unflushed(self) -> Chunk | None:
        """The text that is not in the database yet."""
        piece = self.log.since(self.flushed_seq)
        if piece is None:
            return None
        lengths = [len(content) for content in self.log.contents[piece.first_seq - 1 : piece.last_seq]]
        return Chunk(self.ref.pk, piece.first_seq, piece.content, lengths)

    def _stop(self) -> None:
        self.generation.run.cancel()
