"""Errors as ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import ErrorCode, TurnstoneError
from app.core.logging import place_of
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
    ErrorCode.SUBMISSION_NOT_FOUND: 404,
    ErrorCode.SUBMISSION_ID_CONFLICT: 409,
    ErrorCode.SUBMISSIONS_EXHAUSTED: 409,
    ErrorCode.NOT_HELD: 409,
    ErrorCode.NOT_SCORED: 409,
    ErrorCode.NOT_REPLAYABLE: 409,
    ErrorCode.EXAM_CLOSED: 409,
    ErrorCode.BUDGET_EXHAUSTED: 409,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.OVERLOADED: 503,
    ErrorCode.LLM_UNAVAILABLE: 503,
    ErrorCode.LLM_REJECTED: 422,
    ErrorCode.LLM_TIMEOUT: 504,
    ErrorCode.INTERRUPTED: 503,
    ErrorCode.RUNNER_UNAVAILABLE: 503,
    ErrorCode.REFERENCE_FAILED: 422,
    ErrorCode.INTERNAL: 500,
}
"""HTTP status of each code."""

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": "A problem"} for status in sorted(set(STATUS.values()))
}
"""What any route may answer besides its result; what is not there yet says so itself."""

_INTERNAL = TurnstoneError(ErrorCode.INTERNAL, "Something went wrong on our side; try again.")
_OF_STATUS = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.NOT_FOUND, 413: ErrorCode.MESSAGE_TOO_LARGE}


def problem(
    error: TurnstoneError, *, status: int | None = None, headers: Mapping[str, str] | None = None, **more: Any
) -> JSONResponse:
    """The response that tells of an error; ``more`` are members of its document besides the usual ones."""
    status = STATUS[error.code] if status is None else status
    body = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        detail=error.message,
        code=error.code,
        retryable=error.retryable,
    )
    headers = dict(headers or {})
    if error.retry_after_s is not None or error.code is ErrorCode.OVERLOADED:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body.model_dump() | more, status, headers, media_type="application/problem+json")


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
    async def of_framework(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # the only one that the framework raises: a body it cannot read
            return problem(TurnstoneError(ErrorCode.INVALID_FRAME, "The body is not valid JSON."))
        code = _OF_STATUS.get(error.status_code, ErrorCode.INVALID_FRAME)
        phrase = HTTPStatus(error.status_code).phrase
        error_of_ours = TurnstoneError(code, f"{phrase}.", retryable=False)
        headers = {"allow": _allowed(request)} if error.status_code == 405 else error.headers
        return problem(error_of_ours, status=error.status_code, headers=headers)

    make = app.openapi

    def openapi() -> dict[str, Any]:
        return app.openapi_schema or _with_problems(make())

    app.openapi = openapi  # type: ignore[method-assign]  # the framework's own way to change the document


def _allowed(request: Request) -> str:
    """The methods of a path. The framework names those of one route, and several may have the path."""
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    found = [
        method
        for method in ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ", ".join(found) or "GET, HEAD"  # what is mounted are files


def _with_problems(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, with problems under their own media type; the framework knows only one for all answers."""
    for path in document["paths"].values():
        for operation in path.values():
            for response in operation["responses"].values():
                content = response.get("content", {})
                if content.get("application/json", {}).get("schema") == {"$ref": "#/components/schemas/Problem"}:
                    content["application/problem+json"] = content.pop("application/json")
    return document


class LastResort:
    """ASGI middleware that answers 500 to what nobody foresaw, and logs where it happened.

    The server would log the exception itself, whose text may quote a prompt.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. A socket's frames have a last resort of their own."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # noqa: BLE001  # the boundary: nothing behind it may leak
            log.error("request_failed", error=type(error).__name__, at=place_of(error))
            if not begun:
                await problem(_INTERNAL)(scope, receive, send)
