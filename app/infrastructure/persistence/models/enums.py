"""Values of the columns that hold one of a few words."""

from __future__ import annotations

from enum import StrEnum


class PromptRoleEnum(StrEnum):
    """Who wrote a message."""

    USER = "USER"
    ASSISTANT = "ASSISTANT"


class EvaluationTypeEnum(StrEnum):
    """What an evaluation judges: one prompt, or the session as a whole."""

    TURN_EVAL = "TURN_EVAL"
    HOLISTIC_FLOW = "HOLISTIC_FLOW"


class CallbackStatusEnum(StrEnum):
    """Where a callback stands.

    ``HELD``: no receiver is set. ``PENDING``: to be sent. ``DELIVERED``: Core said 2xx. ``FAILED``: out of tries,
    kept for a replay.
    """

    HELD = "held"
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class RunStatusEnum(StrEnum):
    """Where a judgement stands.

    ``WAITING``: to be made, or tried again. ``DONE``: there is a score, or a reason why there is none.
    """

    WAITING = "waiting"
    DONE = "done"


class ReviewReasonEnum(StrEnum):
    """Why a person is to look at a turn, or at a submission."""

    SAMPLES_DIFFER = "samples_differ"
    ATTACK_FLAGGED = "attack_flagged"
    REFUSED = "refused"
    NEAR_GRADE_EDGE = "near_grade_edge"
    UNSCORED = "unscored"
    APPEAL = "appeal"
    COMPONENT_MISSING = "component_missing"
    HELD_FOR_REVIEW = "held_for_review"


class SubmissionStatusEnum(StrEnum):
    """Where a submission stands, as the contract has it.

    ``DONE``: there is a result, which may be that people have to look. ``FAILED``: it cannot be evaluated at all.
    """

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    DONE = "DONE"
    FAILED = "FAILED"


class RevisionStatusEnum(StrEnum):
    """Where an evaluation of a submission stands.

    ``WAITING``: to be made, or tried again. ``HELD``: made, and not told of before a person has looked. ``DONE``: there
    is a result.
    """

    WAITING = "waiting"
    HELD = "held"
    DONE = "done"
