"""A small HTTP/1.1 client for answers that stream: what a read brings is handed on in the same tick.

A general client puts a queue and a task switch between the socket and its reader. Where fifty reads a second bring ten
bytes of text each, those are what a read costs. So here the socket's callback feeds the parser (httptools), and the
parser's output goes to the `Answer` at once.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
import zlib
from collections.abc import Callable, Mapping
from enum import Enum, auto
from functools import partial
from typing import Protocol, cast
from urllib.parse import unquote, urlsplit

import httptools
from aiohappyeyeballs import start_connection

_CONNECT_S = 10.0
_NEXT_ADDRESS_S = 0.25
"""A name's next address is tried beside one that has not answered for so long (RFC 8305): IPv6 may lead nowhere."""
_IDLE_S = 15.0
"""How long a connection is kept for the next request; servers close theirs after some time too, and mostly later."""
_DRAIN_S = 1.0
"""How long the rest of an answer may take of which nobody needs more, so that its connection can be kept."""
_READ_FIRST_S = 0.01
_LONGEST_HEAD = 65_536
_GZIP_OR_ZLIB = 47
"""zlib's window bits for either format, told apart by their first bytes."""


class ExchangeError(Exception):
    """An exchange that failed; the connection is closed by then. The text is ours, fit for a log."""


class NoConnectionError(ExchangeError):
    """Nothing was sent: nobody listens, the name is not known, TLS failed, or it took too long."""


class SilenceError(ExchangeError):
    """No byte came for as long as the client waits."""


class BrokenError(ExchangeError):
    """The connection ended in the middle of the answer, or what came is not HTTP."""


class Answer(Protocol):
    """Takes a response as it arrives. What a method raises ends the exchange, and `StreamingHttp.post` raises it."""

    def sent(self) -> None:
        """The request has been handed to the socket."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The final status and the headers, named in lower case."""

    def data(self, data: bytes) -> bool:
        """The body's bytes that one read has brought; returns whether the answer needs no more."""


class StreamingHttp:
    """Sends POST requests to one address; any number at once, each on a connection of its own.

    Args:
        url: ``http`` or ``https``; a name and password in it are sent as basic authentication.
        headers: sent with every request.
        timeout_s: silence (no byte at all) that ends an exchange.
        keep_alive: keep connections for the next request.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(self, url: str, headers: Mapping[str, str], *, timeout_s: float, keep_alive: bool = True) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("not an http or https URL with a host")
        self._host = parts.hostname.encode("idna").decode()
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._keep_alive = keep_alive
        self._head = _request_head(parts.netloc.rpartition("@")[2], parts.path, parts.query, headers, keep_alive)
        if parts.username is not None and not any(name.lower() == "authorization" for name in headers):
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self._head += f"authorization: Basic {base64.b64encode(login).decode()}\r\n".encode()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def post(self, body: bytes, answer: Answer) -> bool:
        """Send one request; returns when its answer is over.

        Returns:
            Whether ``answer`` said that it needs no more; ``False`` where the response ended before that, properly.

        Raises:
            ExchangeError: see its kinds. Also whatever ``answer`` raises. Cancelled or failed, the connection is closed
                before the exception goes on.
        """
        connection = self._take_idle() or await self._connect()
        request = b"%bcontent-length: %d\r\n\r\n%b" % (self._head, len(body), body)
        over: asyncio.Future[bool] | None = None
        try:
            over = connection.exchange(request, answer)
            return await over
        except BaseException:
            if over is None or connection.carries(over):  # else it is free again, or another's by now
                connection.abort()
                await asyncio.wait([connection.closed])  # a second cancellation must not reach the future itself
            raise

    async def aclose(self) -> None:
        """Close all connections; no request may be under way."""
        connections = list(self._open)
        for connection in connections:
            connection.abort()
        if connections:
            await asyncio.wait([connection.closed for connection in connections])

    def _take_idle(self) -> _Connection | None:
        """A connection that was kept, unless it has just been closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                addresses = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                opened = await start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, interleave=1)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._timeout_s, self._back, self._gone),
                    sock=opened,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except TimeoutError:
            raise NoConnectionError("connection timeout") from None
        except OSError as error:  # refused, unknown name, TLS
            raise NoConnectionError(type(error).__name__) from None
        if not connection.usable:  # uvloop reads before it wakes us: it has spoken unasked, or is gone already
            connection.abort()
            await asyncio.wait([connection.closed])
            raise NoConnectionError("closed at once")
        self._open.add(connection)
        return connection

    def _back(self, connection: _Connection) -> bool:
        """A connection is free again; returns whether it is kept."""
        if self._keep_alive:
            self._idle.append(connection)
        return self._keep_alive

    def _gone(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


def _request_head(host: str, path: str, query: str, headers: Mapping[str, str], keep_alive: bool) -> bytes:
    target = (path or "/") + (f"?{query}" if query else "")
    lines = [f"POST {target} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers.items())]
    if not keep_alive:
        lines.append("connection: close")
    return "".join(f"{line}\r\n" for line in lines).encode("ascii")


class _State(Enum):
    IDLE = auto()
    ANSWERING = auto()
    DRAINING = auto()
    CLOSED = auto()


class _Connection(asyncio.Protocol):
    """One connection and, at most, one exchange on it.

    Args:
        timeout_s: silence that ends an exchange.
        back: takes the connection when it is free for another exchange, and says whether it is kept.
        gone: told when the connection is closed.
    """

    def __init__(
        self, timeout_s: float, back: Callable[[_Connection], bool], gone: Callable[[_Connection], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_s = timeout_s
        self._back = back
        self._gone = gone
        self._state = _State.IDLE
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[bool] | None = None
        self._complete = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def exchange(self, request: bytes, answer: Answer) -> asyncio.Future[bool]:
        """Send a request; the future is what `StreamingHttp.post` returns or raises."""
        assert self._state is _State.IDLE and self._transport is not None, "one exchange at a time"
        self._state = _State.ANSWERING
        self._answer = answer
        self._over = over = self._loop.create_future()
        self._begin_response()
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._heard_at = self._loop.time()
        self._set_timer(self._timeout_s, self._check_silence)
        self._transport.write(request)
        answer.sent()
        return over

    @property
    def usable(self) -> bool:
        """Whether another exchange can be begun."""
        return self._state is _State.IDLE and self._transport is not None and not self._transport.is_closing()

    def carries(self, over: asyncio.Future[bool]) -> bool:
        """Whether the exchange with this end is still on the connection."""
        return self._over is over and self._state is not _State.IDLE

    def abort(self) -> None:
        """Close the connection now, whatever is still to be sent or read; an exchange under way is over."""
        self._state = _State.CLOSED
        if self._over is not None:
            if not self._over.done():
                self._over.set_exception(BrokenError("closed"))
            if not self._over.cancelled():
                self._over.exception()  # whoever awaited it may be gone; then nobody needs to hear of it
        assert self._transport is not None, "nobody has it before it is connected"
        self._transport.abort()

    # what the socket says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._state is _State.IDLE:
            self.abort()  # nobody asked
        if self._state is _State.CLOSED:
            return
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if not self._complete:
                self._hand_on()
                self._end(BrokenError("not HTTP"))
                return
            self._reusable = False  # what follows a whole response is nobody's, and takes nothing from it
        if not self._head_done:
            self._head_bytes += len(data)
            if self._head_bytes > _LONGEST_HEAD:
                self._end(BrokenError("headers too long"))
            return
        self._hand_on()
        if self._complete:
            self._response_over()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._state is _State.ANSWERING:
            if self._head_done and self._until_close and exc is None:
                self._settle(False)
            else:
                self._end(BrokenError("connection lost" if exc is None else type(exc).__name__))
        self._state = _State.CLOSED
        self._set_timer(None)
        self._gone(self)
        if not self.closed.done():
            self.closed.set_result(None)

    # what the parser says; after a whole response nobody listens

    def on_message_begin(self) -> None:
        """The first byte of a response; of one too many, where this one is whole."""
        if self._complete:
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is as good as none."""
        if not self._head_done:
            self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head of a response; one that only announces the real one (1xx) is passed over."""
        if self._complete:
            return
        self._status = self._parser.get_status_code()
        self._head_done = self._status >= 200

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        if not self._complete:
            self._bodies.append(data)

    def on_message_complete(self) -> None:
        """The response is whole."""
        if self._complete:
            return
        if self._head_done:
            self._complete = True
            self._reusable = self._parser.should_keep_alive()
        else:
            self._begin_response()

    # what follows from it

    def _begin_response(self) -> None:
        self._status = 0
        self._headers: dict[str, str] = {}
        self._bodies: list[bytes] = []
        self._inflate: Callable[[bytes], bytes] | None = None
        self._head_done = self._head_told = self._complete = self._reusable = False

    @property
    def _until_close(self) -> bool:
        """Whether the body ends with the connection, because nothing in the head says where it ends."""
        return "content-length" not in self._headers and "transfer-encoding" not in self._headers

    def _hand_on(self) -> None:
        bodies, self._bodies = self._bodies, []
        if self._state is not _State.ANSWERING:
            return
        try:
            if self._head_done and not self._head_told:
                self._head_told = True
                if self._headers.get("content-encoding", "identity") in {"gzip", "x-gzip", "deflate"}:
                    self._inflate = zlib.decompressobj(_GZIP_OR_ZLIB).decompress  # nobody asked for it
                self._answer.head(self._status, self._headers)
            data = bodies[0] if len(bodies) == 1 else b"".join(bodies)
            if self._inflate is not None:
                data = self._inflate(data)
            if data and self._answer.data(data):
                self._state = _State.DRAINING
                self._set_timer(_DRAIN_S, self.abort)
                self._settle(True)
        except zlib.error:
            self._end(BrokenError("not gzip"))
        except Exception as error:  # noqa: BLE001  # it belongs to whoever awaits the answer
            self._end(error)

    def _response_over(self) -> None:
        """The last byte of the response is here."""
        if self._state is _State.CLOSED:
            return
        self._state = _State.IDLE
        self._settle(False)
        if self._reusable and self._back(self):
            self._set_timer(_IDLE_S, self.abort)
        else:
            self.abort()

    def _end(self, error: Exception) -> None:
        """The exchange has failed, and the connection is of no more use."""
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)
        self.abort()

    def _settle(self, enough: bool) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(enough)

    def _check_silence(self, *, is_sure: bool = False) -> None:
        left = self._heard_at + self._timeout_s - self._loop.time()
        if left > 0:
            self._set_timer(left, self._check_silence)
        elif not is_sure:
            # A process that stood still hears of the time first, and then of what came meanwhile.
            self._set_timer(_READ_FIRST_S, partial(self._check_silence, is_sure=True))
        else:
            self._end(SilenceError("silence"))

    def _set_timer(self, delay_s: float | None, then: Callable[[], None] | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None or then is None else self._loop.call_later(delay_s, then)
