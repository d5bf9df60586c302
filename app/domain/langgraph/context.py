"""What the nodes of a turn's graph are given besides the state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from app.domain.exam_settings import ExamTerms
from app.domain.guard_policy import NO_VERDICT, GuardRules, GuardVerdict
from app.domain.guard_question import GuardCall
from app.domain.model_client import ModelCall, ModelClient, ModelRequest


class Opening(NamedTuple):
    """What an answer takes, and what there is only when the candidate's message is stored.

    ``request`` is what to ask the model; ``emit`` takes every new piece of the answer; ``exam`` is what the turn goes
    by.
    """

    request: ModelRequest
    emit: Callable[[str], None]
    exam: ExamTerms


@dataclass(slots=True)
class TurnContext:
    """Dependencies of one run, and what it waits for: a run begins before there is a message.

    Attributes:
        client: the model.
        guard: what to do about the guard's labels, where the exam does not say.
        message: the candidate's text, as soon as it is here.
        opening: awaited by whoever answers, so that nobody is asked or answered before the message is stored.
        calls: the provider calls made, in order; the writer adds to it as it makes them, so that whoever ends the turn
            knows of each, however it ends.
        guard_calls: the calls that the guard made, in order, for the same purpose.
        verdict: what the guard decided about the candidate's message.
    """

    client: ModelClient
    guard: GuardRules
    message: asyncio.Future[str]
    opening: asyncio.Future[Opening]
    calls: list[ModelCall] = field(default_factory=list)
    guard_calls: list[GuardCall] = field(default_factory=list)
    verdict: GuardVerdict = NO_VERDICT
