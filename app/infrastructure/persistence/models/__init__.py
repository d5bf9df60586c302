"""The tables."""

from app.infrastructure.persistence.models.base import Base, SchemaReach
from app.infrastructure.persistence.models.callbacks import Callback, CallbackAttempt, CallbackLane
from app.infrastructure.persistence.models.enums import (
    CallbackStatusEnum,
    EvaluationTypeEnum,
    PromptRoleEnum,
    ReviewReasonEnum,
    RevisionStatusEnum,
    RunStatusEnum,
    SubmissionStatusEnum,
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
from app.infrastructure.persistence.models.submissions import (
    EvaluationStep,
    ProblemVersion,
    Submission,
    SubmissionEvaluation,
    SubmissionRun,
    SubmissionScores,
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
    "EvaluationStep",
    "EvaluationTypeEnum",
    "Exam",
    "ExamVersion",
    "JudgeCall",
    "ProblemVersion",
    "PromptEvaluation",
    "PromptMessage",
    "PromptRoleEnum",
    "PromptSession",
    "PromptTurn",
    "ProviderCall",
    "ReviewItem",
    "ReviewReasonEnum",
    "RevisionStatusEnum",
    "RunStatusEnum",
    "SchemaReach",
    "ScoreOverride",
    "Submission",
    "SubmissionEvaluation",
    "SubmissionRun",
    "SubmissionScores",
    "SubmissionStatusEnum",
    "TurnChunk",
    "Worker",
]
