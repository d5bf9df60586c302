"""Runs the application under uvicorn, from the first signal to the last settled turn."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
import uvloop
from fastapi import FastAPI
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from app.core.errors import StartupError
from app.core.settings import Settings

_UNREAD_MS = 60_000
"""A client that takes nothing of what waits for it for this long is disconnected; it may resume.

WebSockets are closed sooner, by a ping that is not answered; this is for streams over plain HTTP.
"""


_SEND_BUFFER_BYTES = 256 * 1024
"""Of each connection, in the kernel: left alone it grows to megabytes for whoever does not read."""


def listen(host: str, port: int) -> socket.socket:
    """Take a port, before anything else is started; 0 takes any that is free.

    Raises:
        StartupError: the port is taken, or the host is not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; every connection inherits it
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_MS)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        listener.bind(address)
        listener.listen(2048)
    except UnicodeError:
        raise StartupError("TURNSTONE_HOST is no host's name.", "Mend TURNSTONE_HOST.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise StartupError(
                f"{host}:{port} is taken by another program.", "End it, or choose another port with TURNSTONE_PORT."
            ) from None
        raise StartupError(
            f"Cannot listen on {host}:{port}: {error.strerror}.", "Mend TURNSTONE_HOST and TURNSTONE_PORT."
        ) from None
    return listener


_PING_EVERY_S = 20.0
_PONG_WITHIN_S = 20.0
_LAST_READ_S = 10.0
"""For a client that was too slow, to read what is on its way to it, and that it was closed."""
_TOO_SLOW = 4408
_QUIET_S = 0.2
"""A client that has sent nothing for this long has sent all of what was refused."""


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, but: a client whose frame is refused hears why.

    uvicorn closes the connection at once. What the client is still sending then resets it, and the close frame may be
    lost on the way. Here the rest is read and thrown away until no more comes.

    A client that answers no ping, because it is gone or because it is too slow with what waits for it, is closed with
    4408 and given a moment to hear of it. It may reconnect and resume; until then it costs nothing.

    And a client that is closing just when the server stops does not break the server's stop.
    """

    _linger_until = 0.0

    def keepalive_timeout(self) -> None:
        """Close with 4408. uvicorn would say 1011, which is a bug's, and wait without end for it to read all."""
        self.pong_timer = None
        if self.close_sent or self.transport.is_closing():
            return
        self.conn.fail(_TOO_SLOW, "No answer to a ping; reconnect and resume.")
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": _TOO_SLOW})
        self.transport.close()
        self.loop.call_later(_LAST_READ_S, self.transport.abort)

    def shutdown(self) -> None:
        """Close with 1012; where the client has said its close already, there is nothing left to say."""
        try:
            super().shutdown()
        except InvalidState:
            self.transport.close()

    def handle_parser_exception(self) -> None:
        """Send the close frame; called again for whatever else comes, of which nothing is kept."""
        now = self.loop.time()
        if not self.close_sent:
            assert self.conn.close_sent is not None, "the parser has refused something"
            refused = self.conn.close_sent
            self.close_sent = True
            self._linger_until = now + self.close_timeout
            self.transport.write(b"".join(self.conn.data_to_send()))
            self.queue.put_nowait({"type": "websocket.disconnect", "code": refused.code, "reason": refused.reason})
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
        elif self.close_timer is not None:
            self.close_timer.cancel()
        quiet = min(_QUIET_S, max(0.0, self._linger_until - now))
        self.close_timer = self.loop.call_later(quiet, self.transport.close)


class Server(uvicorn.Server):
    """uvicorn, but: signals come from `run`, and running turns finish before sockets are closed."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self._app = app
        self._grace_s = settings.shutdown_grace_s
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws=WebSocketProtocol,
                ws_max_size=settings.limits.frame_bytes,
                ws_per_message_deflate=False,
                ws_ping_interval=_PING_EVERY_S,
                ws_ping_timeout=_PONG_WITHIN_S,
                lifespan="off",  # whoever runs the server opens the application first, and hears its errors
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise them again at the end, in the middle of tidying up."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running turns end while their readers are still connected, then close."""
        resources = getattr(self._app.state, "resources", None)
        if resources is not None:
            draining = asyncio.create_task(resources.runner.drain(self._grace_s))
            while not draining.done():
                await asyncio.wait([draining], timeout=0.1)
                if self.force_exit:
                    resources.runner.interrupt_all()
        await super().shutdown(sockets)


async def serve(app: FastAPI, settings: Settings, listener: socket.socket, stopping: Stopping) -> None:
    """Serve until a signal; the application is open by now."""
    server = Server(app, settings)
    stopping.call(server, settings.shutdown_grace_s, hurry=app.state.resources.relay.hurry)
    await server.serve(sockets=[listener])


class Stopping:
    """What SIGINT, SIGTERM and SIGHUP do: before there is a server they end the start, then they ask it to stop.

    Args:
        say: tells whoever started the process that it was heard.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._server: uvicorn.Server | None = None
        self._then = ""
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        self._hurry: Callable[[], None] | None = None
        self.asked = asyncio.Event()

    def call(self, server: uvicorn.Server, grace_s: float, *, hurry: Callable[[], None]) -> None:
        """From now on, signals go to ``server``, which gives running turns ``grace_s``; a second calls ``hurry``."""
        self._server = server
        self._hurry = hurry
        self._then = f"; running answers may end within {grace_s:g} s; Ctrl-C again ends it now"
        self._task = None

    def wait_instead(self, *, hurry: Callable[[], None]) -> None:
        """From now on, the first signal only sets ``asked``, and a second one calls ``hurry``."""
        self._task = None
        self._hurry = hurry

    def on_signal(self, number: int) -> None:
        """Handle one. Any second one ends what still runs."""
        if self.asked.is_set():
            # A terminal that closes says so twice, through the kernel and the shell; that is no impatience.
            if number != signal.SIGHUP:
                if self._server is not None:
                    self._server.force_exit = True
                if self._hurry is not None:
                    self._hurry()
            return
        self.asked.set()
        self._tell(f"stopping{self._then}")
        if self._server is not None:
            self._server.should_exit = True
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _tell(self, line: str) -> None:
        try:
            self._say(line)
        except OSError:
            # The terminal is gone. Nothing that is said or logged from now on may fail, and so disturb the closing.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stderr.fileno())
            os.close(nowhere)


def run(main: Callable[[Stopping], Coroutine[Any, Any, None]], say: Callable[[str], None]) -> None:
    """Run ``main`` on uvloop; it is told how to be stopped.

    Raises:
        StartupError: as ``main`` does.
    """

    async def with_signals() -> None:
        stopping = Stopping(say)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it for us
                loop.add_signal_handler(number, stopping.on_signal, number)
        try:
            await main(stopping)
        except asyncio.CancelledError:
            if not stopping.asked.is_set():
                raise

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(with_signals())
