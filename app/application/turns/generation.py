"""Runs of the graph that stand ready for the next messages.

LangGraph takes the better part of a millisecond from a run's start to its first node, twice that on a processor that
has slept. It needs no message for that. So runs are begun ahead, and wait in the guard (`TurnContext.message`); and
while a message is being stored, its run goes on to the writer, which waits for that (`TurnContext.opening`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.domain.guard_policy import GuardRules
from app.domain.langgraph.context import Opening, TurnContext
from app.domain.langgraph.graph import TurnGraph
from app.domain.langgraph.state import TurnState
from app.domain.model_client import ModelClient

_READY = 8
_PAUSE_S = 0.01
"""Between two runs that are begun ahead: turns that run meanwhile are not to notice."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A run of the graph, from before its message is known."""

    context: TurnContext
    run: asyncio.Future[TurnState]

    def open(self, opening: Opening) -> None:
        """The message is stored: go on, unless `fail` was first."""
        if not self.context.opening.done():
            self.context.opening.set_result(opening)

    def fail(self, error: Exception) -> None:
        """The message is stored and cannot be answered: the run ends with ``error``, and nobody is asked."""
        self.context.opening.set_exception(error)
        self.context.opening.exception()  # where the run is stopped before it comes here, nobody hears of it

    def discard(self) -> None:
        """There is nothing to answer."""
        self.run.add_done_callback(lambda run: None if run.cancelled() else run.exception())
        self.run.cancel()


class Generations:
    """Begins runs of the graph, some of them ahead.

    Args:
        graph: the compiled graph.
        client: the model that answers.
        guard: what to do about the guard's labels in an exam that does not say.
    """

    def __init__(self, graph: TurnGraph, client: ModelClient, guard: GuardRules) -> None:
        self._graph = graph
        self._client = client
        self._guard = guard
        self._ready: list[Generation] = []
        self._refill: asyncio.TimerHandle | None = None

    def take(self, message: str) -> Generation:
        """A run for this message, which its guard looks at right away."""
        generation = self._ready.pop() if self._ready else self._begin()
        if generation.run.done():  # whatever ended it, a new one says it to somebody
            generation = self._begin()
        generation.context.message.set_result(message)
        self.fill()
        return generation

    def fill(self) -> None:
        """Begin runs ahead, one after the other."""
        if self._refill is None and len(self._ready) < _READY:
            self._refill = asyncio.get_running_loop().call_later(_PAUSE_S, self._add_one)

    def close(self) -> None:
        """End the runs that nobody has taken."""
        if self._refill is not None:
            self._refill.cancel()
        while self._ready:
            self._ready.pop().discard()

    def _add_one(self) -> None:
        self._refill = None
        self._ready.append(self._begin())
        self.fill()

    def _begin(self) -> Generation:
        loop = asyncio.get_running_loop()
        context = TurnContext(self._client, self._guard, loop.create_future(), loop.create_future())
        return Generation(context, asyncio.ensure_future(self._graph.ainvoke(context)))
