"""What the nodes of a turn's graph are given besides the state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from app.domain.guarding import GuardLabel, GuardPolicy
from app.domain.model_client import ModelCall, ModelClient, ModelRequest


@dataclass(slots=True)
class TurnContext:
    """Dependencies of one run.

    Attributes:
        client: the model.
        request: what to ask it.
        emit: takes every new piece of the answer.
        guard: decides about the candidate's message.
        calls: the provider calls made, in order; the writer adds to it as it makes them, so that whoever ends the turn
            knows of each, however it ends.
        labels: what the guard found in the candidate's message.
    """

    client: ModelClient
    request: ModelRequest
    emit: Callable[[str], None]
    guard: GuardPolicy
    calls: list[ModelCall] = field(default_factory=list)
    labels: frozenset[GuardLabel] = frozenset()
