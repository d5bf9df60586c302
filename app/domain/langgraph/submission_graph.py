"""The graph of an evaluation. Edges only.

::

    freeze → turns, tests, analysis (at once) → review → panel → checks → hold → aggregate → tell
"""

from __future__ import annotations

from itertools import pairwise

from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langsmith.run_helpers import tracing_context

from app.domain.langgraph.nodes.submission import node_of
from app.domain.langgraph.submission_state import EvaluationContext, EvaluationState
from app.domain.submission import Node

_AT_ONCE = (Node.TURNS, Node.TESTS, Node.ANALYSIS)
_THEN = (Node.REVIEW, Node.PANEL, Node.CHECKS, Node.HOLD, Node.AGGREGATE, Node.TELL)


class EvaluationGraph:
    """The compiled graph. Any number of evaluations may run through it at once."""

    def __init__(
        self, compiled: CompiledStateGraph[EvaluationState, EvaluationContext, EvaluationState, EvaluationState]
    ) -> None:
        self._compiled = compiled

    async def ainvoke(self, context: EvaluationContext) -> EvaluationState:
        """Evaluate from the beginning; what was done before is found. Returns the last state."""
        # The tracer that LANGSMITH_TRACING switches on would send the candidate's code to a third party.
        with tracing_context(enabled=False):
            ended: EvaluationState = await self._compiled.ainvoke(  # type: ignore[assignment]
                {"outcomes": {}, "put_off": []}, context=context
            )
        return ended


def build_evaluation_graph() -> EvaluationGraph:
    """Compile the graph; do it once per process."""
    graph = StateGraph(EvaluationState, context_schema=EvaluationContext)
    for node in Node:
        graph.add_node(node.value, node_of(node))
    graph.add_edge(START, Node.FREEZE.value)
    for node in _AT_ONCE:
        graph.add_edge(Node.FREEZE.value, node.value)
    graph.add_edge([node.value for node in _AT_ONCE], _THEN[0].value)
    for node, following in pairwise(_THEN):
        graph.add_edge(node.value, following.value)
    graph.add_edge(_THEN[-1].value, END)
    return EvaluationGraph(graph.compile(name="evaluation"))
