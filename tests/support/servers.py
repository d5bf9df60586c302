"""Runs an aiohttp application on a thread of its own, so that a busy test loop does not disturb it.

``AppThread`` is the server, ``Journal`` the list it writes and a test reads and waits for. ``port_of_ones_own`` is for
servers that are processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, Self, TypeVar

from aiohttp import web

T = TypeVar("T")
WAIT_S = 30.0
"""How long a test waits for something that should happen at once, unless it says otherwise."""
_LOOK_AGAIN_S = 0.01  # a count inside an item, such as of pieces sent, grows without a notice


class Journal(Generic[T]):
    """A growing list that is written on one thread and read and waited for on others."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._condition = threading.Condition()

    def add(self, item: T) -> None:
        """Append ``item`` and wake who waits."""
        with self._condition:
            self._items.append(item)
            self._condition.notify_all()

    def changed(self) -> None:
        """Wake who waits: an item in the list became another."""
        with self._condition:
            self._condition.notify_all()

    def clear(self) -> None:
        """Forget everything."""
        with self._condition:
            self._items.clear()

    def wait(self, predicate: Callable[[list[T]], bool], timeout: float = WAIT_S) -> list[T]:
        """Block until ``predicate`` holds for the items; returns a copy of them.

        Raises:
            TimeoutError: it did not hold within ``timeout`` seconds; the message shows the items.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            while not predicate(list(self._items)):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not within {timeout} s; {len(self._items)} items: {self._items[-20:]}")
                self._condition.wait(min(left, _LOOK_AGAIN_S))
            return list(self._items)

    @property
    def items(self) -> list[T]:
        """A copy of what is in the list now."""
        with self._condition:
            return list(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __getitem__(self, index: int) -> T:
        return self._items[index]


@contextlib.contextmanager
def port_of_ones_own() -> Iterator[int]:
    """A port for processes that listen there one after the other; meanwhile no connection of others gets it.

    It is bound here and nobody listens, so whoever sets SO_REUSEADDR, as servers do, can still take it.
    """
    with socket.socket() as kept:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind(("127.0.0.1", 0))
        yield int(kept.getsockname()[1])


class AppThread:
    """Serves ``build()`` on loopback from a background thread.

    ``stop`` and ``start`` may be called again: the port stays the same, so a test can show what happens while
    a server is down and after it came back. Stopping drops every open connection.

    Args:
        build: makes the application, once per start.
        port: 0 for a free one, which is then kept.
        new_loop: makes the event loop of the thread.
    """

    def __init__(
        self,
        build: Callable[[], web.Application],
        *,
        port: int = 0,
        new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._build = build
        self._new_loop = new_loop
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._kept: socket.socket | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Address without a path, ``http://127.0.0.1:PORT``."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._thread is not None

    @property
    def stopping(self) -> bool:
        """Whether it has been told to stop; open connections are dropped from then on."""
        return self._stopping is not None and self._stopping.is_set()

    def start(self) -> Self:
        """Listen; returns when connections are accepted.

        Raises:
            OSError: the port is taken.
        """
        if self._thread is not None:
            raise RuntimeError("already running")
        self._let_go()
        ready = threading.Event()
        failure: list[Exception] = []

        def main() -> None:
            loop = self._new_loop()
            try:
                loop.run_until_complete(self._serve(ready))
            except Exception as error:
                if ready.is_set():
                    raise
                failure.append(error)  # raised again on the caller's thread
            finally:
                loop.close()
                ready.set()

        thread = threading.Thread(target=main, name=f"server-{self.port}", daemon=True)
        thread.start()
        ready.wait()
        if failure:
            raise failure[0]
        self._thread = thread
        return self

    async def _serve(self, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        # a handler whose client has gone is cancelled at once, so it learns of that while it sleeps
        runner = web.AppRunner(self._build(), handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", self.port)
            await site.start()
            self.port = runner.addresses[0][1]
            ready.set()
            await self._stopping.wait()
            await site.stop()
            if runner.server is not None:
                for connection in runner.server.connections:
                    if connection.transport is not None:
                        connection.transport.abort()
        finally:
            await runner.cleanup()

    def stop(self) -> None:
        """Drop every connection and stop listening; nothing happens when it does not run."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(timeout=WAIT_S)
        if self._thread.is_alive():
            raise RuntimeError("the server's thread does not end")
        self._thread = None
        # Bound and not listening: whoever connects is refused, and no connection of others gets the port meanwhile.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", self.port))

    def _let_go(self) -> None:
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._let_go()
