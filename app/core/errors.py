"""Every error that may leave the process, as one tree.

::

    TurnstoneError            what a client may be told: code, message, retryable
    ├── ModelError            the provider failed or refused (``llm_*``)
    ├── DocumentError         a rubric, judge's prompt or policy cannot be used (``domain/documents.py``)
    ├── ProblemError          a problem or its package cannot be used (``domain/problem.py``)
    ├── ReferenceFailedError  a problem's own solutions do not pass it
    └── PatternError          a problem's code patterns cannot be used (``domain/code_patterns.py``)
    StartupError              what an operator is told when a command cannot run
    └── ExportError           a file that a command was given cannot be taken

A message of these errors is written by us, for the reader. What an exception, a provider or a database said
never becomes part of one.
"""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """The codes of the protocol; the same ones stand in frames and in problem documents."""

    INVALID_FRAME = "invalid_frame"
    MESSAGE_TOO_LARGE = "message_too_large"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    SESSION_NOT_FOUND = "session_not_found"
    SESSION_ENDED = "session_ended"
    TURN_NOT_FOUND = "turn_not_found"
    TURN_IN_PROGRESS = "turn_in_progress"
    TURN_ID_CONFLICT = "turn_id_conflict"
    SUBMISSION_NOT_FOUND = "submission_not_found"
    SUBMISSION_ID_CONFLICT = "submission_id_conflict"
    SUBMISSIONS_EXHAUSTED = "submissions_exhausted"
    NOT_HELD = "not_held"
    NOT_SCORED = "not_scored"
    NOT_REPLAYABLE = "not_replayable"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXHAUSTED = "budget_exhausted"
    EXAM_CLOSED = "exam_closed"
    OVERLOADED = "overloaded"
    LLM_UNAVAILABLE = "llm_unavailable"
    LLM_REJECTED = "llm_rejected"
    LLM_TIMEOUT = "llm_timeout"
    INTERRUPTED = "interrupted"
    RUNNER_UNAVAILABLE = "runner_unavailable"
    REFERENCE_FAILED = "reference_failed"
    INTERNAL = "internal"


RETRYABLE = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.OVERLOADED,
        ErrorCode.TURN_IN_PROGRESS,
        ErrorCode.LLM_UNAVAILABLE,
        ErrorCode.LLM_TIMEOUT,
        ErrorCode.INTERRUPTED,
        ErrorCode.RUNNER_UNAVAILABLE,
        ErrorCode.INTERNAL,
    }
)
"""Codes for which trying again later may help, unless the error says otherwise."""


class TurnstoneError(Exception):
    """An expected failure with a code a client can act on.

    Args:
        code: one of the protocol's codes.
        message: one sentence for the reader; holds nothing private.
        retryable: whether the same request may succeed later; by default what is usual for the code.
        retry_after_s: seconds after which to try again, where that is known.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = code in RETRYABLE if retryable is None else retryable
        self.retry_after_s = retry_after_s


class ModelError(TurnstoneError):
    """The provider could not be reached, refused, fell silent or broke off.

    ``detail`` is for the log only (a status code, the kind of the fault): never the provider's own words, which may
    quote the prompt.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(code, message, retryable=retryable, retry_after_s=retry_after_s)
        self.detail = detail


class StartupError(Exception):
    """A command cannot run as asked; ``problem`` says what is wrong and ``remedy`` what to do about it."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class ExportError(StartupError):
    """A file is not the export that it should be; ``problem`` names the file and, where it is known, the line."""

    def __init__(self, file: object, line: int | None, problem: str, remedy: str) -> None:
        place = f"{file}" if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {problem}", remedy)
        self.line = line
