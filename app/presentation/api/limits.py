"""A limit on the size of request bodies, before anything parses them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.core.errors import ErrorCode, TurnstoneError
from app.presentation.api.problems import problem


class _TooLargeError(Exception):
    pass


class BodyLimit:
    """ASGI middleware that answers 413 to bodies of more than ``limit`` bytes, announced or not.

    ``larger`` has limits of their own for paths that begin so.
    """

    def __init__(self, app: ASGIApp, limit: int, larger: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._limit = limit
        self._larger = larger or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, counting its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = next((own for path, own in self._larger.items() if scope["path"].startswith(path)), self._limit)
        taken = 0
        begun = False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > limit:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            if taken > limit and not begun:
                raise _TooLargeError  # whoever reads the body has made an answer of its own of the error above
            begun = True
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            await self._refuse(limit, scope, receive, send)
            return
        try:
            await self._app(scope, counted, watched)
        except _TooLargeError:
            if not begun:
                await self._refuse(limit, scope, receive, send)

    @staticmethod
    async def _refuse(limit: int, scope: Scope, receive: Receive, send: Send) -> None:
        error = TurnstoneError(ErrorCode.MESSAGE_TOO_LARGE, f"The body is larger than {limit} bytes.")
        await problem(error)(scope, receive, send)
