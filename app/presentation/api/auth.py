"""Who may call. Works for HTTP and WebSocket alike."""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from app.core.errors import ErrorCode, TurnstoneError
from app.core.settings import Settings, is_loopback

SUBPROTOCOL = "turnstone.v1"
_BEARER = "bearer."


def check_origin(connection: HTTPConnection) -> None:
    """In mode ``open``, let in only what comes from this machine's own pages.

    Any page in a browser can open a socket to localhost; its Origin gives it away, and a name that was rebound to this
    address shows in Host.

    Raises:
        TurnstoneError: ``forbidden``.
    """
    host = urlsplit(f"//{connection.headers.get('host', '')}").hostname
    origin = connection.headers.get("origin")
    foreign_host = host is None or not is_loopback(host)
    foreign_origin = origin is not None and not is_loopback(urlsplit(origin).hostname or "")
    if foreign_host or foreign_origin:
        raise TurnstoneError(ErrorCode.FORBIDDEN, "In open mode only pages and programs of this machine may call.")


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


async def authorized(connection: HTTPConnection) -> None:
    """A dependency of REST routes.

    Raises:
        TurnstoneError: ``forbidden`` or ``unauthenticated``.
    """
    settings: Settings = connection.app.state.resources.settings
    if settings.auth.mode == "open":
        check_origin(connection)
    else:
        check_token(settings, token_of(connection))
