"""The graph of a turn: guard, then writer unless the guard has answered. Edges only."""

from __future__ import annotations

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from app.domain.langgraph.context import TurnContext
from app.domain.langgraph.nodes.guard import guard
from app.domain.langgraph.nodes.writer import writer
from app.domain.langgraph.state import TurnState

TurnGraph = CompiledStateGraph[TurnState, TurnContext, TurnState, TurnState]


def build_graph() -> TurnGraph:
    """Compile the graph; do it once per process."""
    graph = StateGraph(TurnState, context_schema=TurnContext)
    graph.add_node("guard", guard)
    graph.add_node("writer", writer)
    graph.add_edge(START, "guard")
    graph.add_conditional_edges("guard", _after_guard, ["writer", END])
    graph.add_edge("writer", END)
    return graph.compile(name="turn")


def _after_guard(state: TurnState) -> str:
    return END if state["refused"] else "writer"
