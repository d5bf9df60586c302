"""Guard: looks at the candidate's message before the model does."""

from __future__ import annotations

from langgraph.runtime import Runtime

from app.domain.conversation import FinishReason
from app.domain.langgraph.context import TurnContext
from app.domain.langgraph.state import TurnState
from app.domain.prompting import prompt


async def guard(state: TurnState, runtime: Runtime[TurnContext]) -> TurnState:
    """Ask the policy; a refused message is answered here, like any other answer."""
    context = runtime.context
    verdict = context.guard(await context.message)
    context.labels = verdict.labels
    if not verdict.refused:
        return {"refused": False}
    _, emit = await context.opening
    emit(prompt("refusal"))
    return {"refused": True, "finish_reason": FinishReason.REFUSED}
