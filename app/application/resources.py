"""What the parts of a running process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from app.application.services.callback_relay import CallbackRelay
from app.application.services.eval_service import EvalService
from app.application.services.evaluation_service import EvaluationService
from app.application.services.problem_service import ProblemService
from app.application.services.submission_service import SubmissionService
from app.application.submissions.followers import Followers
from app.application.turns.runner import TurnRunner
from app.core.settings import Settings
from app.infrastructure.llm.models import OpenedModel
from app.infrastructure.persistence.session import Database


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything that is open in this process and that requests need.

    ``wake_delivery`` tells whoever does the background jobs, here or in another process, that there is something to
    send, to judge or to evaluate. ``followers`` are the connections that are told how far submissions are.
    """

    settings: Settings
    database: Database
    model: OpenedModel
    runner: TurnRunner
    relay: CallbackRelay
    service: EvalService
    evaluations: EvaluationService
    problems: ProblemService
    submissions: SubmissionService
    followers: Followers
    wake_delivery: Callable[[], None]
