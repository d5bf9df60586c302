"""The real service for tests: on a thread of this process, or as a process of its own that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import uvloop
from fastapi import FastAPI

from app.application.resources import Resources
from app.core.settings import Settings
from app.main import create_app
from app.server import Server, listen

_START_S = 60.0


class Service:
    """The service on a thread with a loop of its own, listening on a free loopback port."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._main, name="service", daemon=True)
        self._server: Server | None = None
        self.app: FastAPI = create_app(settings)
        self.loop: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self._thread.start()
        assert self._ready.wait(_START_S), f"the service did not start in time; it is at:\n{self._where()}"
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """What SIGTERM does; returns when everything is closed."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(_START_S)
        assert not self._thread.is_alive(), "the service did not stop in time"
        self._listener.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def resources(self) -> Resources:
        resources: Resources = self.app.state.resources
        return resources

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the service's own loop, and wait for its result."""
        assert self.loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(_START_S)

    def _where(self) -> str:
        """What its thread and its tasks are doing."""
        said = io.StringIO()
        if (frame := sys._current_frames().get(self._thread.ident or 0)) is not None:
            traceback.print_stack(frame, file=said)
        for task in () if self.loop is None else asyncio.all_tasks(self.loop):
            task.print_stack(file=said)
        return said.getvalue()

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # handed over to the test's thread
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        async with self.app.router.lifespan_context(self.app):
            self._server = Server(self.app, self.settings)
            serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
            while not self._server.started and not serving.done():
                await asyncio.sleep(0.005)
            self._ready.set()
            await serving


class ServiceProcess:
    """``turnstone …`` as a process. Its output is kept; ``kill`` is kill -9."""

    def __init__(self, *arguments: str, env: dict[str, str], cwd: Path | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TURNSTONE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app.cli", *arguments],
            env={**clean, "PYTHONPATH": str(Path(__file__).parents[2]), **env},
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(env.get("TURNSTONE_PORT", "0"))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> str:
        return "".join(self._lines)

    def wait_for_line(self, part: str, timeout: float = _START_S) -> str:
        """The first line of output that holds ``part``."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            for line in list(self._lines):
                if part in line:
                    return line
            if self.process.poll() is not None:
                self._reader.join(5)
                if not any(part in line for line in self._lines):
                    raise AssertionError(f"it ended with {self.process.returncode}:\n{self.output}")
            time.sleep(0.02)
        raise AssertionError(f"no line with {part!r} within {timeout} s:\n{self.output}")

    def wait_ready(self) -> Self:
        """Wait until ``serve`` or ``demo`` answers; finds out the port where it was 0."""
        line = self.wait_for_line("http://127.0.0.1:")
        if not self.port:
            self.port = int(line.split("http://127.0.0.1:")[1].split("/")[0])
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return self
            time.sleep(0.05)
        raise AssertionError(f"not ready in time:\n{self.output}")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.append(line)

    def kill(self) -> None:
        """kill -9, as a crash is."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Ask it to end; returns its exit code, when its last words have been read too."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(timeout)
        self._reader.join(5)  # unless somebody else holds its output open
        return code


@contextlib.contextmanager
def running(process: ServiceProcess) -> Iterator[ServiceProcess]:
    """``process``, which is killed at the end if it still runs."""
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.kill()
