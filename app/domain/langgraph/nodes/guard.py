"""Guard: looks at the candidate's message before the model does."""

from __future__ import annotations

import asyncio

from langgraph.runtime import Runtime

from app.core.errors import ErrorCode, ModelError
from app.domain.conversation import FinishReason
from app.domain.guard_inspection import Inspection, inspected_aside
from app.domain.guard_question import TIME_LIMIT_S, GuardCall, question_about, read_answer
from app.domain.guarding import GuardLabel
from app.domain.langgraph.context import TurnContext
from app.domain.langgraph.state import TurnState
from app.domain.model_client import ModelCall
from app.domain.prompting import refusal


async def guard(state: TurnState, runtime: Runtime[TurnContext]) -> TurnState:
    """Find the message's labels and do what the exam wants done; a refused message is answered here.

    What the exam wants is known only when the message is stored. Nothing is done about a message without labels,
    whatever the exam; so that one goes on to the writer right away.
    """
    context = runtime.context
    message = await context.message
    await asyncio.sleep(0)  # the statement that stores the message goes out first; the database works meanwhile
    found = await inspected_aside(message)
    if not found.labels and not found.doubtful:
        return {"refused": False}
    opening = await context.opening
    rules = opening.exam.guard or context.guard
    context.verdict = rules.decide(found.labels)
    if rules.ask_model and found.doubtful:
        context.verdict = rules.decide(await _asked(context, found))
    if not context.verdict.refused:
        return {"refused": False}
    opening.emit(refusal(opening.exam.language))
    return {"refused": True, "finish_reason": FinishReason.REFUSED}


async def _asked(context: TurnContext, found: Inspection) -> frozenset[GuardLabel]:
    """The labels after a model was asked; those that were found without it where it says nothing of use in time."""
    asked = GuardCall(question_about(found.passage), ModelCall(context.client.model))
    context.guard_calls.append(asked)
    try:
        async with asyncio.timeout(TIME_LIMIT_S):
            await context.client.stream(asked.request, asked.call, asked.pieces.append)
    except ModelError as error:
        asked.call.outcome = error.code
    except TimeoutError:
        asked.call.outcome = ErrorCode.LLM_TIMEOUT
    else:
        asked.call.outcome = "completed"
        attack = read_answer(asked.answer)
        if attack is not None:
            return found.labels_with(attack)
    return found.labels
