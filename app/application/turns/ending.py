"""How a turn's outcome becomes its usage, its row and its terminal event. Pure but for the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

from app.core.errors import ErrorCode, TurnstoneError
from app.domain.conversation import FinishReason, TurnStatus, Usage
from app.domain.guard_question import GuardCall
from app.domain.model_client import ChatMessage, ModelCall
from app.domain.turn_log import Cancelled, Done, Ending, Failed
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.models import PromptTurn
from app.infrastructure.repositories.turn_repository import CallRecord, TurnEnding, unpack_lengths

INTERRUPTED = TurnstoneError(
    ErrorCode.INTERRUPTED, "The service was interrupted while it answered; send the message again."
)
INTERNAL = TurnstoneError(ErrorCode.INTERNAL, "Something went wrong on our side; try again.")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a turn's run: finished, cancelled (neither field set), or failed."""

    finish_reason: FinishReason | None = None
    error: TurnstoneError | None = None

    @property
    def status(self) -> TurnStatus:
        """The status this outcome ends the turn with."""
        if self.error is not None:
            return TurnStatus.INTERRUPTED if self.error.code is ErrorCode.INTERRUPTED else TurnStatus.FAILED
        return TurnStatus.CANCELLED if self.finish_reason is None else TurnStatus.COMPLETED


@dataclass(frozen=True, slots=True)
class FinalTurn:
    """Everything that is stored and reported at a turn's end.

    ``calls`` are those of all purposes; the row's usage is that of the chat's.
    """

    text: str
    row: TurnEnding
    calls: Sequence[CallRecord]
    token_count: int
    meta: dict[str, Any] = field(default_factory=dict)


def record_calls(
    calls: Sequence[ModelCall], text: str, messages: Sequence[ChatMessage], counter: TokenCounter
) -> list[CallRecord]:
    """The ledger's rows for a turn's calls; those that never reached the provider have none.

    Args:
        calls: the turn's calls in order. Only the last one can have brought text: a call is repeated only before any.
        text: the answer.
        messages: what each call sent.
        counter: counts where the provider did not say.
    """
    records = []
    for call in calls:
        if not call.reached:
            continue
        if call.usage is not None and call.usage_complete:
            records.append(CallRecord(call.model, call.usage, call.outcome, provider_ref=call.provider_ref))
        elif not call.accepted and call.outcome in {ErrorCode.LLM_UNAVAILABLE, ErrorCode.LLM_REJECTED}:
            # The provider refused to work, so it used nothing.
            records.append(CallRecord(call.model, Usage(), call.outcome, provider_ref=call.provider_ref))
        else:
            records.append(count_call(call, text if call is calls[-1] else "", messages, counter))
    return records


def record_guard_calls(calls: Sequence[GuardCall], counter: TokenCounter) -> list[CallRecord]:
    """The ledger's rows for what the guard asked a model."""
    records: list[CallRecord] = []
    for asked in calls:
        records += record_calls([asked.call], asked.answer, asked.messages, counter)
    return [replace(record, purpose="guard") for record in records]


def count_call(call: ModelCall, text: str, messages: Sequence[ChatMessage], counter: TokenCounter) -> CallRecord:
    """The ledger's row for a call of which the provider did not report all: what it did say is kept."""
    said = call.usage or Usage()
    completion = counter.count(text)
    usage = Usage(
        prompt_tokens=said.prompt_tokens or counter.count_messages(messages).tokens,
        # What it said so far, thinking included, may lag behind what came.
        completion_tokens=max(said.completion_tokens, completion.tokens + said.reasoning_tokens),
        cached_tokens=said.cached_tokens,
        reasoning_tokens=said.reasoning_tokens,
        source="counted",
    )
    return CallRecord(
        call.model,
        usage,
        call.outcome,
        tokenizer=completion.tokenizer,
        approximate=completion.approximate,
        provider_ref=call.provider_ref,
    )


def sum_usage(calls: Sequence[CallRecord]) -> Usage:
    """Usage of all calls together. One that used nothing does not take away that the others are the provider's."""
    used = [call.usage for call in calls if call.usage.total_tokens]
    return reduce(add, used) if used else Usage()


def ending_of(turn: PromptTurn) -> Ending | None:
    """The terminal event of a stored turn; ``None`` while it runs."""
    if turn.status is TurnStatus.RUNNING:
        return None
    usage = Usage(
        turn.prompt_tokens,
        turn.completion_tokens,
        turn.cached_tokens,
        turn.reasoning_tokens,
        "provider" if turn.usage_source == "provider" else "counted",
    )
    return ending_from(
        TurnEnding(
            status=turn.status,
            usage=usage,
            finish_reason=turn.finish_reason,
            error_code=turn.error_code,
            error_message=turn.error_message,
            error_retryable=turn.error_retryable,
            lengths=unpack_lengths(turn.delta_lengths),
        )
    )


def ending_from(row: TurnEnding) -> Ending:
    """The terminal event that a turn's row stands for."""
    if row.status is TurnStatus.COMPLETED:
        assert row.finish_reason is not None, "a completed turn has a reason"
        return Done(row.finish_reason, row.usage)
    if row.status is TurnStatus.CANCELLED:
        return Cancelled(row.usage)
    assert row.error_code is not None and row.error_message is not None, "a failed turn has an error"
    return Failed(ErrorCode(row.error_code), row.error_message, bool(row.error_retryable), row.usage, len(row.lengths))
