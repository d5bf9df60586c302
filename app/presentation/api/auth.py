"""Who may call. Works for HTTP and WebSocket alike."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from app.core.errors import ErrorCode, TurnstoneError
from app.core.settings import Settings, is_loopback
from app.presentation.api.problems import problem

SUBPROTOCOL = "turnstone.v1"
PUBLIC_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics", "/openapi.json"})
"""What load balancers, scrapers and browsers ask for before anybody has a token. Nothing private is there."""
PUBLIC_PREFIX = "/static/"
_BEARER = "bearer."


def check_origin(connection: HTTPConnection) -> None:
    """In mode ``open``, let in only what comes from this machine's own pages.

    Any page in a browser can open a socket to localhost; its Origin gives it away, and a name that was rebound to this
    address shows in Host.

    Raises:
        TurnstoneError: ``forbidden``.
    """
    origin = connection.headers.get("origin")
    foreign_host = not _is_ours(f"//{connection.headers.get('host', '')}")
    foreign_origin = origin is not None and not _is_ours(origin)
    if foreign_host or foreign_origin:
        raise TurnstoneError(ErrorCode.FORBIDDEN, "In open mode only pages and programs of this machine may call.")


def _is_ours(url: str) -> bool:
    """Whether a URL of nothing but (scheme,) host and port names this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port  # asking for the port checks it
    except ValueError:
        return False
    nothing_else = url.endswith(f"//{parts.netloc}") and "@" not in parts.netloc
    return host is not None and is_loopback(host) and nothing_else


def token_of(connection: HTTPConnection) -> str | None:
    """The token sent with the request or handshake, by header or subprotocol."""
    scheme, _, value = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    for protocol in connection.scope.get("subprotocols", ()):
        if protocol.startswith(_BEARER):
            return str(protocol.removeprefix(_BEARER))
    return None


def check_token(settings: Settings, token: str | None) -> None:
    """Check a token of mode ``token``.

    Raises:
        TurnstoneError: ``unauthenticated``.
    """
    assert settings.auth.api_key is not None, "the settings hold mode token to a key"
    wanted = settings.auth.api_key.get_secret_value().encode()
    if token is None or not hmac.compare_digest(token.encode(errors="surrogatepass"), wanted):
        raise TurnstoneError(ErrorCode.UNAUTHENTICATED, "A valid token is needed.")


def check(connection: HTTPConnection, settings: Settings) -> None:
    """Check who makes a request.

    Raises:
        TurnstoneError: ``forbidden`` or ``unauthenticated``.
    """
    if settings.auth.mode == "open":
        check_origin(connection)
    else:
        check_token(settings, token_of(connection))


class Gate:
    """ASGI middleware that lets no HTTP request past which may not call, but to the public paths.

    It stands in front of the routes, so none can forget it, and nothing of a stranger's body is read. A WebSocket
    passes: it is refused by a close code after its handshake, so that a browser sees why.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 401 or 403."""
        if scope["type"] == "http" and not _is_public(scope["path"]):
            try:
                check(HTTPConnection(scope), self._settings)
            except TurnstoneError as error:
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX)
