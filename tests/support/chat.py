"""A client of the WebSocket protocol for tests: sends frames, keeps what comes, checks promise 1 as it goes."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
import websockets
from pydantic import SecretStr
from websockets.asyncio.client import ClientConnection

from app.cli import main
from app.core.settings import Settings
from tests.support.service import ServiceProcess

WAIT_S = 30.0
TERMINAL = {"done", "cancelled", "error"}

_participants = itertools.count(1)


def new_pair() -> dict[str, Any]:
    """Exam and participant that no other test of this run uses."""
    return {"exam_id": 1, "participant_id": next(_participants)}


@dataclass
class TurnSeen:
    """What a client saw of one turn."""

    frames: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(frame["content"] for frame in self.frames if frame["type"] == "delta")

    @property
    def started(self) -> dict[str, Any]:
        return next(frame for frame in self.frames if frame["type"] == "started")

    @property
    def session_id(self) -> int:
        return int(self.started["session_id"])

    @property
    def end(self) -> dict[str, Any]:
        assert self.frames and self.frames[-1]["type"] in TERMINAL, f"not ended: {self.frames[-3:]}"
        return self.frames[-1]

    @property
    def last_seq(self) -> int:
        return max((frame["seq"] for frame in self.frames if frame["type"] == "delta"), default=0)

    def check_order(self, after_seq: int = 0) -> None:
        """Deltas follow each other without a gap, none is empty, and there is one ending, at the end."""
        expected = after_seq + 1
        for frame in self.frames:
            if frame["type"] == "delta":
                assert frame.get("first_seq", frame["seq"]) == expected, frame
                assert frame["content"], frame
                frame["content"].encode()  # never half a character
                expected = frame["seq"] + 1
        endings = [frame["type"] for frame in self.frames if frame["type"] in TERMINAL]
        assert len(endings) == 1, endings
        assert self.frames[-1]["type"] in TERMINAL


class ChatClient:
    """One connection. Frames of all turns come in one stream; `turn` collects those of one."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **frame: Any) -> None:
        await self.connection.send(json.dumps(frame))

    async def send_raw(self, data: str | bytes) -> None:
        await self.connection.send(data)

    async def receive(self, timeout: float = WAIT_S) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            data = await self.connection.recv()
        frame: dict[str, Any] = json.loads(data)
        return frame

    async def until(self, kind: str, timeout: float = WAIT_S) -> dict[str, Any]:
        """The next frame of a type; others are dropped."""
        async with asyncio.timeout(timeout):
            while (frame := await self.receive(timeout))["type"] != kind:
                pass
        return frame

    async def turn(self, *, seen: TurnSeen | None = None, after_seq: int = 0, timeout: float = WAIT_S) -> TurnSeen:
        """Read to a turn's end, in order; frames of no turn are dropped."""
        seen = seen or TurnSeen()
        async with asyncio.timeout(timeout):
            while not seen.frames or seen.frames[-1]["type"] not in TERMINAL:
                frame = await self.receive(timeout)
                if frame["type"] != "pong":
                    seen.frames.append(frame)
        seen.check_order(after_seq)
        return seen

    async def ask(self, message: str, turn_id: str | int = "t1", **where: Any) -> TurnSeen:
        """Send a message and read to the turn's end."""
        await self.send(type="message", message=message, turn_id=turn_id, **where)
        return await self.turn()

    async def start(self, message: str, turn_id: str | int = "t1", *, text: str = "", **where: Any) -> TurnSeen:
        """Send a message and read until the turn has started and ``text`` has come."""
        await self.send(type="message", message=message, turn_id=turn_id, **where)
        seen = TurnSeen()
        while not seen.frames or text not in seen.text:
            frame = await self.receive()
            assert frame["type"] in {"started", "delta"}, frame
            seen.frames.append(frame)
        return seen

    async def close(self) -> None:
        await self.connection.close()

    def drop(self) -> None:
        """Lose the connection without a word."""
        self.connection.transport.abort()


@asynccontextmanager
async def connect(url: str, path: str = "/chat", **options: Any) -> AsyncIterator[ChatClient]:
    """A connection to the service at ``http://…``."""
    options.setdefault("open_timeout", WAIT_S)
    async with websockets.connect(url.replace("http", "ws", 1) + path, max_size=None, **options) as connection:
        yield ChatClient(connection)


@asynccontextmanager
async def connect_many(url: str, count: int, **options: Any) -> AsyncIterator[list[ChatClient]]:
    """So many connections at once."""
    async with AsyncExitStack() as stack:
        connections = [stack.enter_async_context(connect(url, **options)) for _ in range(count)]
        yield [await connection for connection in connections]


# `turnstone` as a process

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["app.main", "app.demo", "app.worker", __name__])


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The variables that give a process ``settings``; ``more`` are further ones."""
    return {**dict(_variables("TURNSTONE_", settings.model_dump())), **more}


def _variables(prefix: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        variable = prefix + name.upper()
        if isinstance(value, dict):
            yield from _variables(f"{variable}__", value)
        elif isinstance(value, SecretStr):
            yield variable, value.get_secret_value()
        elif value is not None:
            yield variable, json.dumps(value) if isinstance(value, bool | tuple) else str(value)


class Command(ServiceProcess):
    """A `ServiceProcess` that starts at once: forked from a process that has loaded the program already."""

    def __init__(self, *arguments: str, env: dict[str, str], cwd: Path | None = None) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TURNSTONE_")}
        ours, its = multiprocessing.Pipe(duplex=False)
        self.process: Any = _Forked(_forks.Process(target=_run, args=(arguments, {**clean, **env}, cwd, its)))
        its.close()
        self._output = ours
        self._lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port = int(env.get("TURNSTONE_PORT", "0"))

    def ended(self, timeout: float = 60.0) -> tuple[int, str]:
        """Wait until it ends by itself; returns its exit code and what it printed."""
        code: int = self.process.wait(timeout)
        self._reader.join(timeout)
        return code, self.output

    def _read(self) -> None:
        with open(self._output.fileno(), encoding="utf-8", errors="replace", closefd=False) as lines:
            for line in lines:
                self._lines.append(line)


class _Forked:
    """What `ServiceProcess` wants of a ``subprocess.Popen``."""

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        process.start()
        self.pid = process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("turnstone", timeout or 0)
        return self._process.exitcode


def _run(arguments: tuple[str, ...], env: dict[str, str], cwd: Path | None, output: Connection) -> None:
    """The forked process: it becomes ``turnstone`` with its own session, environment and output."""
    os.setsid()
    for number in (1, 2):
        os.dup2(output.fileno(), number)
    output.close()
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd or "/")
    sys.argv = ["turnstone", *arguments]
    try:
        main()
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out


def processes_of(data_dir: Path) -> list[psutil.Process]:
    """The processes of an embedded database or model that belong to ``data_dir``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(f"{data_dir.resolve()}/") or any(
                file.path.startswith(f"{data_dir.resolve()}/") for file in process.open_files()
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_listening(rows: Callable[[str], list[Any]], services: int = 1) -> None:
    """Wait until so many services hear what others tell of: what was told before that is not heard of."""
    query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle' AND query = '{}'"
    wait_until(lambda: len(rows(query.format("LISTEN turnstone_submissions"))) >= services)


def wait_gone(data_dir: Path) -> None:
    """Wait until no process of ``data_dir`` is left: those that end with another may need a moment more."""
    wait_until(lambda: not processes_of(data_dir))


def wait_until(condition: Callable[[], Any], timeout: float = WAIT_S) -> Any:
    """Wait for a condition that nothing tells of; returns what it says then."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return result
