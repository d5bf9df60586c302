"""Everything that can be tortured: PostgreSQL, Redis, a provider, Core, and the processes of the service."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import make_url

from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import migrate
from tests.support.chat import Command
from tests.support.core import FakeCore
from tests.support.provider import Provider
from tests.support.redis_server import RedisServer

_GONE_S = 30.0


class Postgres:
    """A server that can be taken away as a crash does it, and brought back."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._handle = EmbeddedPostgres.open(data_dir)
        with psycopg.connect(self._handle.url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE torture")
        url = make_url(self._handle.url).set(database="torture")
        migrate(url.set(drivername="postgresql+psycopg"))
        self.url = url.render_as_string(hide_password=False)

    def restart(self) -> None:
        """Stop it at once (``pg_ctl stop -m immediate``), and start it again."""
        pid = int((self._data_dir / "postgres/data/postmaster.pid").read_text().split()[0])
        postmaster = psutil.Process(pid)
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(_GONE_S)
        EmbeddedPostgres.open(self._data_dir).close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """Read the database; waits while it is being restarted."""
        deadline = time.monotonic() + _GONE_S
        while True:
            try:
                with psycopg.connect(self.url, autocommit=True) as connection:
                    return connection.execute(statement).fetchall()  # type: ignore[arg-type]  # our own constants
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def close(self) -> None:
        """Stop it."""
        self._handle.close()


@dataclass
class Scene:
    """What runs. ``urls`` names the serving processes that are up; the candidates choose among them."""

    postgres: Postgres
    redis: RedisServer
    provider: Provider
    core: FakeCore
    env: dict[str, str]
    log_dir: Path
    processes: list[Command] = field(default_factory=list)
    generation: int = 0

    @property
    def urls(self) -> list[str]:
        """Addresses of the processes that were ready when they were last looked at."""
        return [process.url for process in self.processes if process.port and process.process.poll() is None]

    def start_one(self) -> Command:
        """Start a serving process, and wait until it is ready."""
        process = Command("serve", env=self.env)
        self.generation += 1
        process.wait_ready()
        return process

    def replace(self, place: int, *, kill: bool) -> None:
        """End the process at ``place``, by kill -9 or politely, and start another."""
        old = self.processes[place]
        if kill:
            old.kill()
        else:
            old.stop()
        self.keep_log(old)
        self.processes[place] = self.start_one()

    def keep_log(self, process: Command) -> None:
        """Keep what a process said, for whoever looks into a finding."""
        keep_log(process, self.log_dir, "serve")

    def rows(self, statement: str) -> list[tuple[object, ...]]:
        """Read the database."""
        return self.postgres.rows(statement)


@contextlib.contextmanager
def open_scene(processes: int, log_dir: Path) -> Iterator[Scene]:
    """Start everything; at the end stop all of it and remove what it wrote."""
    with contextlib.ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="turnstone-torture-"))
        scratch.chmod(0o755)  # the database may run as a user of its own
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        postgres = Postgres(scratch / "database")
        stack.callback(postgres.close)
        redis = stack.enter_context(RedisServer())
        provider = stack.enter_context(Provider())
        core = stack.enter_context(FakeCore())
        env = {
            "TURNSTONE_PORT": "0",
            "TURNSTONE_DATA_DIR": str(scratch / "data"),
            "TURNSTONE_DATABASE__URL": postgres.url,
            "TURNSTONE_DATABASE__TIMEOUT_S": "2",
            "TURNSTONE_REDIS__URL": redis.url,
            "TURNSTONE_LLM__MODEL": "openai:scripted",
            "TURNSTONE_LLM__BASE_URL": provider.base_url,
            "TURNSTONE_LLM__API_KEY": "unused",
            "TURNSTONE_LLM__TIMEOUT_S": "5",
            "TURNSTONE_CALLBACKS__URL": core.callback_url,
            "TURNSTONE_CALLBACKS__TIMEOUT_S": "2",
            "TURNSTONE_CALLBACKS__RETRY_DELAYS_S": str([0.2] * 1000),
            "TURNSTONE_SHUTDOWN_GRACE_S": "2",
            "TURNSTONE_LEASE_S": "2",
        }
        scene = Scene(postgres, redis, provider, core, env, log_dir)
        try:
            for _ in range(processes):
                scene.processes.append(scene.start_one())
            yield scene
        finally:
            for process in scene.processes:
                scene.keep_log(process)
                with contextlib.suppress(Exception):
                    process.kill()


def keep_log(process: Command, log_dir: Path, name: str) -> None:
    """Write down what a process said."""
    path = log_dir / f"{name}-{process.process.pid}.log"
    path.write_text(process.output, encoding="utf-8")


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def pick(chance: random.Random, weights: dict[str, float]) -> str:
    """One of the names, by weight."""
    return chance.choices(list(weights), list(weights.values()))[0]
