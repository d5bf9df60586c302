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
