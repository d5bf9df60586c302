"""What Core is told, recorded in the transaction that makes it true."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from app.domain.ledger import CallbackPurpose, Tokens
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.callback_repository import CallbackRepository, NewCallback


class CallbackService:
    """Records callbacks into the transaction at hand; delivery is the relay's work, after the commit.

    Args:
        db: the transaction that the callbacks belong to.
        held: no receiver is set, so the callbacks wait until one is.
    """

    def __init__(self, db: Transaction, *, held: bool = False) -> None:
        self._callbacks = CallbackRepository(db)
        self._held = held
        self._gathered: dict[int, list[NewCallback]] | None = None

    @asynccontextmanager
    async def together(self) -> AsyncIterator[CallbackService]:
        """Record what is sent in the block at its end, in one statement for each session; nothing, if it raises."""
        self._gathered = {}
        try:
            yield self
            gathered = self._gathered
        finally:
            self._gathered = None
        for session_id, events in gathered.items():
            await self._store(session_id, events)

    async def send_usage(
        self,
        session_id: int,
        turn: int | None,
        prompt_tokens: int,
        completion_tokens: int,
        total_tokens: int,
        *,
        turn_id: str | int | None = None,
        cached_tokens: int = 0,
        model: str | None = None,
        source: str = "provider",
        purpose: CallbackPurpose = "chat",
    ) -> None:
        """Tokens used by a turn, all its provider calls summed; ``turn`` is ``None`` for work on a whole session."""
        await self._record(
            session_id,
            "usage",
            {
                "turn": turn,
                "turn_id": turn_id,
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": total_tokens,
                "cached_tokens": cached_tokens,
                "model": model,
                "source": source,
                "purpose": purpose,
            },
        )

    async def send_usage_adjusted(
        self,
        session_id: int,
        turn: int | None,
        difference: Tokens,
        reason: str,
        *,
        turn_id: str | int | None = None,
        model: str | None = None,
        source: str = "provider",
        purpose: CallbackPurpose = "chat",
    ) -> None:
        """What was told of tokens was wrong by ``difference``, which is to be added and may be negative."""
        await self._record(
            session_id,
            "usage_adjusted",
            {
                "turn": turn,
                "turn_id": turn_id,
                "prompt_tokens": difference.prompt,
                "completion_tokens": difference.completion,
                "total_tokens": difference.total,
                "cached_tokens": difference.cached,
                "model": model,
                "source": source,
                "purpose": purpose,
                "reason": reason,
            },
        )

    async def send_message_response(
        self,
        session_id: int,
        turn: int,
        ai_message: str,
        metadata: dict[str, Any],
        *,
        turn_id: str | int | None = None,
    ) -> None:
        """A turn's answer as stored; ``metadata`` says how the turn ended."""
        await self._record(
            session_id,
            "message_response",
            {"turn": turn, "turn_id": turn_id, "ai_message": ai_message, "metadata": metadata},
        )

    async def send_turn_evaluation(
        self, session_id: int, turn: int, turn_log: dict[str, Any], turn_score: float | None, *, revision: int = 1
    ) -> None:
        """The judgement of one prompt; a later judgement of the same prompt has a higher ``revision``."""
        await self._record(
            session_id,
            "turn_evaluation",
            {"turn": turn, "turn_log": turn_log, "turn_score": turn_score, "revision": revision},
        )

    async def send_final_scores(
        self,
        session_id: int,
        exam_id: int,
        participant_id: int,
        submission_id: str | int,
        final_scores: dict[str, Any],
        turn_scores: dict[str, Any],
        *,
        revision: int = 1,
        previous_revision: int | None = None,
    ) -> None:
        """The scores of a submission; ``previous_revision`` is the highest one that was told before."""
        await self._record(
            session_id,
            "final_scores",
            {
                "exam_id": exam_id,
                "participant_id": participant_id,
                "submission_id": submission_id,
                "final_scores": final_scores,
                "turn_scores": turn_scores,
                "revision": revision,
                "previous_revision": previous_revision,
            },
        )

    async def send_submission_status(self, session_id: int, submission_id: str | int, status: str) -> None:
        """How far a submission is: ``queued``, ``running`` or ``failed``; for profiles that have a place for it."""
        await self._record(session_id, "submission_status", {"submission_id": submission_id, "status": status})

    async def send_error(
        self, session_id: int, error_type: str, error_message: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Something went wrong that Core ought to know; ``error_type`` is one of the protocol's codes."""
        await self._record(
            session_id,
            "error",
            {"error_type": error_type, "error_message": error_message, "metadata": metadata or {}},
        )

    async def _record(self, session_id: int, kind: str, payload: dict[str, Any]) -> None:
        event = NewCallback(kind, payload)
        if self._gathered is None:
            await self._store(session_id, [event])
        else:
            self._gathered.setdefault(session_id, []).append(event)

    async def _store(self, session_id: int, events: Sequence[NewCallback]) -> None:
        if not await self._callbacks.record(session_id, events, held=self._held):
            raise LookupError(f"there is no session {session_id}")
