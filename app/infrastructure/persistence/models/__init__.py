"""The tables."""

from app.infrastructure.persistence.models.base import Base, SchemaReach
from app.infrastructure.persistence.models.callbacks import Callback, CallbackAttempt, CallbackLane
from app.infrastructure.persistence.models.enums import (
    CallbackStatusEnum,
    EvaluationTypeEnum,
    PromptRoleEnum,
    ReviewReasonEnum,
    RunStatusEnum,
)
from app.infrastructure.persistence.models.evaluation import (
    CriterionScore,
    EvaluationDocument,
    EvaluationRun,
    ExamVersion,
    JudgeCall,
    ReviewItem,
    ScoreOverride,
)
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
    "CriterionScore",
    "EvaluationDocument",
    "EvaluationRun",
    "EvaluationTypeEnum",
    "Exam",
    "ExamVersion",
    "JudgeCall",
    "PromptEvaluation",
    "PromptMessage",
    "PromptRoleEnum",
    "PromptSession",
    "PromptTurn",
    "ProviderCall",
    "ReviewItem",
    "ReviewReasonEnum",
    "RunStatusEnum",
    "SchemaReach",
    "ScoreOverride",
    "TurnChunk",
    "Worker",
]
