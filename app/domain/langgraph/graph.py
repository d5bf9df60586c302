"""The graph of a turn: guard, then writer unless the guard has answered. Edges only."""

from __future__ import annotations

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langsmith.run_helpers import tracing_context

from app.domain.langgraph.context import TurnContext
from app.domain.langgraph.nodes.guard import guard
from app.domain.langgraph.nodes.writer import writer
from app.domain.langgraph.state import TurnState


class TurnGraph:
    """The compiled graph. Any number of turns may run through it at once."""

    def __init__(self, compiled: CompiledStateGraph[TurnState, TurnContext, TurnState, TurnState]) -> None:
        self._compiled = compiled

    async def ainvoke(self, context: TurnContext) -> TurnState:
        """Run one turn; returns its last state.

        Raises:
            ModelError: no answer, or one that broke off.
        """
        # The tracer that LANGSMITH_TRACING switches on would send the candidate's message to a third party.
        with tracing_context(enabled=False):
            ended: TurnState = await self._compiled.ainvoke({"refused": False}, context=context)  # type: ignore[assignment]
        return ended


def build_graph() -> TurnGraph:
    """Compile the graph; do it once per process."""
    graph = StateGraph(TurnState, context_schema=TurnContext)
    graph.add_node("guard", guard)
    graph.add_node("writer", writer)
    graph.add_edge(START, "guard")
    graph.add_conditional_edges("guard", _after_guard, ["writer", END])
    graph.add_edge("writer", END)
    return TurnGraph(graph.compile(name="turn"))


async def _after_guard(state: TurnState) -> str:
    # A coroutine, because LangGraph runs plain functions in a thread.
    return END if state["refused"] else "writer"
