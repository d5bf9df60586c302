"""The processes under measurement, each started, watched and stopped by the benchmark."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg

from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres

_ROOT = Path(__file__).parents[1]
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_START_S = 60.0
_STOP_S = 15.0


class BenchError(Exception):
    """The benchmark cannot go on: a process did not start, or did not do what is measured."""


class Server:
    """A Python module that runs as a process and prints ``http://127.0.0.1:PORT`` once it serves.

    Its output goes to a file in ``scratch``, which is quoted when it does not start.
    """

    def __init__(self, name: str, arguments: Sequence[str], scratch: Path, env: Mapping[str, str] | None = None):
        self.name = name
        self._log = scratch / f"{name}.log"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("TURNSTONE_")}
        with self._log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env={**clean, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1", **(env or {})},
                cwd=scratch,  # where no .env lies
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is the benchmark's: it stops them in order
            )
        self.process = psutil.Process(self._popen.pid)
        self.port = 0

    def wait(self) -> Server:
        """Wait for its address.

        Raises:
            BenchError: it ended, or said nothing in time.
        """
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._popen.poll() is None:
            if found := _ADDRESS.search(self._log.read_text(errors="replace")):
                self.port = int(found[1])
                return self
            time.sleep(0.02)
        raise BenchError(f"{self.name} did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    @property
    def url(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self.port}"

    def cpu_s(self) -> float:
        """Seconds of CPU used so far, user and system."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> int:
        """Resident memory in bytes."""
        return int(self.process.memory_info().rss)

    def stop(self) -> None:
        """End it: politely, then not."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()


class Postgres:
    """An embedded PostgreSQL of the benchmark's own."""

    def __init__(self, scratch: Path) -> None:
        self._handle = EmbeddedPostgres.open(scratch / "database")
        self.url = self._handle.url
        pid = int((scratch / "database/postgres/data/postmaster.pid").read_text().split()[0])
        self._postmaster = psutil.Process(pid)

    def cpu_s(self) -> float:
        """Seconds of CPU of the postmaster and all its children so far, those that have ended too."""
        own = self._postmaster.cpu_times()
        total = own.user + own.system + own.children_user + own.children_system
        for child in self._postmaster.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system
        return float(total)

    def new_database(self, name: str) -> str:
        """Create an empty database; returns its address."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url.replace("/postgres?", f"/{name}?", 1)

    def stop(self) -> None:
        """Stop the server."""
        self._handle.close()


class Provider(Server):
    """The scripted provider, told by HTTP what to do."""

    async def play(self, script: Mapping[str, Any]) -> None:
        """Answer from now on by this script (see ``tests.support.provider.Script``), and forget earlier requests."""
        await self._call("PUT", "/script", json.dumps(script).encode())
        await self._call("DELETE", "/requests")

    async def requests(self) -> list[dict[str, Any]]:
        """What came in since the script was set, and what became of it."""
        found: list[dict[str, Any]] = json.loads(await self._call("GET", "/requests"))
        return found

    async def _call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        return await asyncio.to_thread(fetch, f"{self.url}{path}", method, body)


def fetch(url: str, method: str = "GET", body: bytes | None = None) -> bytes:
    """One HTTP request; returns the answer's body."""
    headers = {} if body is None else {"content-type": "application/json"}
    request = urllib.request.Request(url, method=method, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        data: bytes = response.read()
        return data


@dataclass
class Scene:
    """Everything that runs during the measurements."""

    scratch: Path
    postgres: Postgres
    provider: Provider
    receiver: Server
    ours: Server
    usual: Server
    database_url: str
    stack: ExitStack

    @property
    def environment(self) -> dict[str, str]:
        """What a process of this service is told by its environment."""
        return _environment(self.scratch, self.database_url, self.provider, self.receiver)

    def start_ours(self, name: str, redis_url: str) -> Server:
        """Another process of this service on the same database, with Redis."""
        return self.start_another(name, {"TURNSTONE_REDIS__URL": redis_url})

    def start_another(self, name: str, more: Mapping[str, str]) -> Server:
        """Another process of this service on the same database, with these variables besides."""
        server = Server(name, ["app.cli", "serve"], self.scratch, {**self.environment, **more})
        self.stack.callback(server.stop)
        return server.wait()

    def start_judging(self, name: str, judge_url: str) -> Server:
        """Another process of this service, on a database of its own, in which every prompt is judged."""
        more = {
            "TURNSTONE_DATA_DIR": str(self.scratch / name),
            "TURNSTONE_JUDGE__MODEL": "openai:bench",
            "TURNSTONE_JUDGE__BASE_URL": f"{judge_url}/v1",
            "TURNSTONE_JUDGE__API_KEY": "unused",
        }
        return self.start_another(name, {**more, "TURNSTONE_DATABASE__URL": self.postgres.new_database("judged")})

    def start_judge(self) -> Server:
        """A judge that answers every request at once."""
        server = Server("judge", ["bench.judge"], self.scratch)
        self.stack.callback(server.stop)
        return server.wait()

    def start_usual(self, name: str) -> Server:
        """Another process of the usual way; the caller stops it as soon as it is not needed."""
        server = _usual(name, self.scratch, self.provider)
        self.stack.callback(server.stop)
        return server.wait()


def _environment(scratch: Path, database_url: str, provider: Server, receiver: Server) -> dict[str, str]:
    return {
        "TURNSTONE_PORT": "0",
        "TURNSTONE_DATA_DIR": str(scratch / "data"),
        "TURNSTONE_LOG_LEVEL": "warning",
        "TURNSTONE_SHUTDOWN_GRACE_S": "0",  # nobody waits for the turns that still run
        "TURNSTONE_DATABASE__URL": database_url,
        "TURNSTONE_LLM__MODEL": "openai:scripted",
        "TURNSTONE_LLM__BASE_URL": f"{provider.url}/v1",
        "TURNSTONE_LLM__API_KEY": "unused",
        "TURNSTONE_CALLBACKS__URL": f"{receiver.url}/callbacks",
    }


def _usual(name: str, scratch: Path, provider: Server) -> Server:
    return Server(name, ["bench.usual", "--provider", provider.url], scratch)


@contextmanager
def open_scene() -> Iterator[Scene]:
    """Start everything; at the end stop all of it and remove what it wrote.

    Raises:
        BenchError: something did not start.
    """
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="turnstone-bench-"))
        scratch.chmod(0o755)  # the database may run as a user of its own
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        postgres = Postgres(scratch)
        stack.callback(postgres.stop)
        provider = Provider("provider", ["tests.support.provider"], scratch)
        stack.callback(provider.stop)
        receiver = Server("receiver", ["bench.receiver"], scratch)
        stack.callback(receiver.stop)
        provider.wait(), receiver.wait()
        database_url = postgres.new_database("turnstone")
        environment = _environment(scratch, database_url, provider, receiver)
        ours = Server("turnstone-serve", ["app.cli", "serve"], scratch, environment)
        stack.callback(ours.stop)
        usual = _usual("usual", scratch, provider)
        stack.callback(usual.stop)
        ours.wait(), usual.wait()
        yield Scene(scratch, postgres, provider, receiver, ours, usual, database_url, stack)
