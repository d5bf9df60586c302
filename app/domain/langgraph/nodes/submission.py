"""The nodes of an evaluation. All are alike: what each does is `EvaluationContext.run`'s matter."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from langgraph.runtime import Runtime

from app.domain.langgraph.submission_state import EvaluationContext, EvaluationState
from app.domain.submission import Node, PutOff


class EvaluationNode(Protocol):
    """A node as LangGraph takes it."""

    def __call__(self, state: EvaluationState, runtime: Runtime[EvaluationContext]) -> Awaitable[EvaluationState]:
        """What the node adds to the state."""


def node_of(node: Node) -> EvaluationNode:
    """The graph's node for a step. Where one ahead of it was put off it does nothing; those beside it go on."""

    async def step(state: EvaluationState, runtime: Runtime[EvaluationContext]) -> EvaluationState:
        if state.get("put_off"):
            return {}
        came = await runtime.context.run(node, state.get("outcomes", {}))
        return {"put_off": [came]} if isinstance(came, PutOff) else {"outcomes": {node: came}}

    return step
