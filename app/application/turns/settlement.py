"""The one transaction that ends a turn: answer, usage, session total, callbacks and their lane, all or nothing."""

from __future__ import annotations

from typing import Any, get_args

from app.application.services.callback_service import CallbackService
from app.application.turns.ending import FinalTurn, sum_usage
from app.application.turns.running import TurnRef
from app.core import metrics
from app.domain.conversation import TurnStatus
from app.domain.ledger import CallbackPurpose, purpose_for_core
from app.infrastructure.persistence.models import PromptRoleEnum
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.evaluation_repository import JUDGED_ENDINGS
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import JudgedBy, TurnRepository


class NotOursError(Exception):
    """The turn has ended already, or belongs to somebody else by now. Nothing was written."""


async def settle(
    ref: TurnRef, final: FinalTurn, *, held: bool, judged_by: JudgedBy | None = None, after_fencing: bool = False
) -> None:
    """Store a turn's ending and what follows from it.

    Args:
        ref: the turn.
        final: its ending.
        held: callbacks wait, because no receiver is set.
        judged_by: what its prompt is judged by, where the exam does not say.
        after_fencing: the turn's owner is fenced and somebody else ends it.

    Raises:
        NotOursError: see there.
    """
    usage = final.row.usage
    async with get_db_context() as db:
        sessions, turns = SessionRepository(db), TurnRepository(db)
        if not await turns.settle(
            ref.pk,
            ref.session_id,
            ref.owner,
            final.row,
            final.calls,
            judged_by=judged_by if final.row.finish_reason in JUDGED_ENDINGS else None,
            after_fencing=after_fencing,
        ):
            raise NotOursError
        if final.text:
            await sessions.add_message(
                ref.session_id,
                ref.turn,
                PromptRoleEnum.ASSISTANT,
                final.text,
                token_count=final.token_count,
                meta={**final.meta, "usage": usage.told},
            )
        async with CallbackService(db, held=held).together() as callbacks:
            await _record_callbacks(callbacks, ref, final)
    metrics.TURNS.labels(final.row.status.value).inc()
    metrics.TOKENS.labels("prompt", usage.source).inc(usage.prompt_tokens)
    metrics.TOKENS.labels("completion", usage.source).inc(usage.completion_tokens)


async def _record_callbacks(callbacks: CallbackService, ref: TurnRef, final: FinalTurn) -> None:
    for purpose in get_args(CallbackPurpose):
        calls = [call for call in final.calls if purpose_for_core(call.purpose) == purpose]
        if not calls:
            continue  # it did not reach the provider
        usage = sum_usage(calls)
        await callbacks.send_usage(
            ref.session_id,
            ref.turn,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            turn_id=ref.turn_id,
            cached_tokens=usage.cached_tokens,
            model=calls[-1].model,
            source=usage.source,
            purpose=purpose,
        )
    metadata: dict[str, Any] = {
        "status": _status_for_core(final.row.status),
        "finish_reason": final.row.finish_reason,
    }
    if final.row.labels:
        metadata["labels"] = list(final.row.labels)
    if final.row.error_code is not None:
        metadata["error_type"] = final.row.error_code
    await callbacks.send_message_response(ref.session_id, ref.turn, final.text, metadata, turn_id=ref.turn_id)
    if final.row.error_code is not None:
        await callbacks.send_error(
            ref.session_id,
            final.row.error_code,
            final.row.error_message or "",
            {"turn": ref.turn, "turn_id": ref.turn_id, "retryable": final.row.error_retryable},
        )


def _status_for_core(status: TurnStatus) -> str:
    return "failed" if status is TurnStatus.INTERRUPTED else status.value
