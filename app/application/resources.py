"""What the parts of a running process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.application.services.callback_relay import CallbackRelay
from app.application.services.eval_service import EvalService
from app.application.turns.runner import TurnRunner
from app.core.settings import Settings
from app.infrastructure.llm.models import OpenedModel
from app.infrastructure.persistence.session import Database


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that is open in this process and that requests need.

    ``wake_delivery`` tells whoever delivers callbacks, here or in another process, that there is something to send.
    """

    settings: Settings
    database: Database
    model: OpenedModel
    runner: TurnRunner
    relay: CallbackRelay
    service: EvalService
    wake_delivery: Callable[[], None]
