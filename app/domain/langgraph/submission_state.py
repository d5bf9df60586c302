"""What flows through the graph of an evaluation, and what its nodes are given besides."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from operator import add, or_
from typing import Annotated, TypedDict

from app.domain.submission import Node, Outcome, PutOff

Outcomes = Mapping[Node, Outcome]


class EvaluationState(TypedDict, total=False):
    """What came of the nodes that are done, and which of them have to be tried later.

    Nodes that run at once each add their own.
    """

    outcomes: Annotated[dict[Node, Outcome], or_]
    put_off: Annotated[list[PutOff], add]


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """``run`` does a node, or finds that it was done before.

    It is given what has come of the nodes ahead of it. It raises where the evaluation is not ours any more.
    """

    run: Callable[[Node, Outcomes], Awaitable[Outcome | PutOff]]
