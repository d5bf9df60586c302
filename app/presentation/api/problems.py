"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.core.errors import ErrorCode, TurnstoneError
from app.presentation.schemas.bodies import Problem

log = structlog.get_logger()

STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_FRAME: 422,
    ErrorCode.MESSAGE_TOO_LARGE: 413,
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.SESSION_NOT_FOUND: 404,
    ErrorCode.TURN_NOT_FOUND: 404,
    ErrorCode.SESSION_ENDED: 409,
    ErrorCode.TURN_IN_PROGRESS: 409,
    ErrorCode.TURN_ID_CONFLICT: 409,
    ErrorCode.EXAM_CLOSED: 409,
    ErrorCode.BUDGET_EXHAUSTED: 409,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.LLM_UNAVAILABLE: 503,
    ErrorCode.LLM_REJECTED: 422,
    ErrorCode.LLM_TIMEOUT: 504,
    ErrorCode.INTERRUPTED: 503,
    ErrorCode.INTERNAL: 500,
}
"""HTTP status of each code."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": "A problem", "content": {"application/problem+json": {}}}
    for status in sorted(set(STATUS.values()))
}
"""What any route may answer besides its result."""

_OF_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.NOT_FOUND, 413: ErrorCode.MESSAGE_TOO_LARGE}


def problem(error: TurnstoneError, *, status: int | None = None) -> JSONResponse:
    """The response that tells of an error."""
    status = STATUS[error.code] if status is None else status
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        retryable=error.retryable,
    )
    headers = {}
    if error.retry_after_s is not None or error.code is ErrorCode.OVERLOADED:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(), status, headers, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Let every error of ``app`` become a problem document."""

    @app.exception_handler(TurnstoneError)
    async def ours(_request: Request, error: TurnstoneError) -> JSONResponse:
        return problem(error)

    @app.exception_handler(RequestValidationError)
    async def unreadable(_request: Request, error: RequestValidationError) -> JSONResponse:
        places = sorted({".".join(str(part) for part in item["loc"]) + ": " + item["msg"] for item in error.errors()})
        return problem(TurnstoneError(ErrorCode.INVALID_FRAME, "; ".join(places)[:1000]))

    @app.exception_handler(HTTPException)
    async def of_framework(_request: Request, error: HTTPException) -> JSONResponse:
        code = _OF_STATUS.get(error.status_code, ErrorCode.INVALID_FRAME)
        phrase = HTTPStatus(error.status_code).phrase
        return problem(TurnstoneError(code, f"{phrase}.", retryable=False), status=error.status_code)

    @app.exception_handler(Exception)
    async def bug(_request: Request, error: Exception) -> JSONResponse:
        log.error("request_failed", error=type(error).__name__)
        return problem(TurnstoneError(ErrorCode.INTERNAL, "Something went wrong on our side; try again."))
