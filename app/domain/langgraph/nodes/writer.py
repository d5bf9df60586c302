"""Writer: streams the model's answer into the turn's log, and keeps book of what each call used."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from langgraph.runtime import Runtime

from app.core.errors import ErrorCode, ModelError
from app.domain.conversation import FinishReason
from app.domain.langgraph.context import TurnContext
from app.domain.langgraph.state import TurnState
from app.domain.model_client import ModelCall
from app.domain.prompting import hinted

TRIES = 2
"""Provider calls per turn at most: the first and one quick repetition."""
PAUSE_S = 0.2
LONGEST_PAUSE_S = 1.0
"""A provider that asks for a longer pause than this is not asked again; the candidate is told instead."""


async def writer(state: TurnState, runtime: Runtime[TurnContext]) -> TurnState:
    """Stream one answer, once the candidate's message is stored.

    A call that failed before any text came is repeated once, where that may help.

    Raises:
        ModelError: no answer, or one that broke off; the text that came is in the log.
    """
    context = runtime.context
    opening = await context.opening
    request = replace(opening.request, messages=hinted(opening.request.messages, context.verdict.hints))
    for attempt in range(1, TRIES + 1):
        call = ModelCall(context.client.model)
        context.calls.append(call)
        try:
            await context.client.stream(request, call, opening.emit)
        except ModelError as error:
            call.outcome = error.code
            pause = _pause_before_next_try(error, call, attempt)
            if pause is None:
                raise
            await asyncio.sleep(pause)
        else:
            call.outcome = "completed"
            return {"finish_reason": call.finish_reason or FinishReason.STOP}
    raise AssertionError("the last try returns or raises")


def _pause_before_next_try(error: ModelError, call: ModelCall, attempt: int) -> float | None:
    """Seconds to wait, or ``None`` where trying again is wrong, hopeless or too late."""
    hopeless = not error.retryable or error.code is not ErrorCode.LLM_UNAVAILABLE
    if attempt == TRIES or hopeless or call.text_chars:
        return None
    pause = PAUSE_S if error.retry_after_s is None else max(PAUSE_S, error.retry_after_s)
    return pause if pause <= LONGEST_PAUSE_S else None
