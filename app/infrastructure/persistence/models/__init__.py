"""The tables."""

from app.infrastructure.persistence.models.base import Base, SchemaReach
from app.infrastructure.persistence.models.callbacks import Callback, CallbackAttempt, CallbackLane
from app.infrastructure.persistence.models.enums import CallbackStatusEnum, EvaluationTypeEnum, PromptRoleEnum
from app.infrastructure.persistence.models.sessions import (
    Exam,
    PromptEvaluation,
    PromptMessage,
    PromptSession,
)
from app.infrastructure.persistence.models.turns import PromptTurn, ProviderCall, TurnChunk, Worker

__all__ = [
    "Base",
    "Callback",
    "CallbackAttempt",
    "CallbackLane",
    "CallbackStatusEnum",
    "EvaluationTypeEnum",
    "Exam",
    "PromptEvaluation",
    "PromptMessage",
    "PromptRoleEnum",
    "PromptSession",
    "PromptTurn",
    "ProviderCall",
    "SchemaReach",
    "TurnChunk",
    "Worker",
]
