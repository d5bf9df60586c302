"""kill -9 of the embedded PostgreSQL under a service: it is started again, nothing is lost, and none is left behind."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from app.core.settings import Settings
from tests.conftest import change
from tests.support.chat import Command, connect, environment, new_pair, processes_of, wait_until
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import ServiceProcess, running

WAIT_S = 30.0
AGAIN = "postgres_had_died_and_runs_again"


@pytest.fixture
def data_dir(scratch: Path) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=scratch))
    path.chmod(0o755)
    yield path
    for process in processes_of(path):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def none_is_left(data_dir: Path) -> None:
    """The children of a killed server end by themselves, a moment after it."""
    wait_until(lambda: not processes_of(data_dir), WAIT_S)


@pytest.fixture
def env(settings: Settings, data_dir: Path) -> dict[str, str]:
    """A service on an embedded database of its own."""
    env = environment(change(settings, log_level="info", data_dir=data_dir), TURNSTONE_PORT="0")
    del env["TURNSTONE_DATABASE__URL"]
    return env


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])


def kill_postmaster(data_dir: Path) -> int:
    pid = postmaster(data_dir)
    os.kill(pid, signal.SIGKILL)
    return pid


def messages(url: str, session_id: int) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/sessions/{session_id}/messages", timeout=WAIT_S) as answer:
        items: list[dict[str, Any]] = json.load(answer)["items"]
    return items


async def test_a_turn_outlives_the_embedded_database_that_dies_under_it(
    env: dict[str, str], data_dir: Path, provider: Provider, core: FakeCore
) -> None:
    script = Script(pieces=[f"word{i} " for i in range(150)], piece_delay_s=0.01)
    provider.next(script)
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            turn = await chat.start("Hello", "t1", text="word20 ", **new_pair())
            killed_at = time.monotonic()
            pid = kill_postmaster(data_dir)
            turn = await chat.turn(seen=turn, timeout=WAIT_S)
            assert (turn.end["type"], turn.text) == ("done", script.text)
            assert time.monotonic() - killed_at < WAIT_S
            assert postmaster(data_dir) != pid
            again = await chat.ask("Hello again", "t2", session_id=turn.session_id)
            assert (again.end["type"], again.end["turn"]) == ("done", 2)
        stored = await asyncio.to_thread(messages, process.url, turn.session_id)
        assert [message["content"] for message in stored] == ["Hello", script.text, "Hello again", again.text]
        await core.reaches(4, WAIT_S)
        assert [(event.type, event.seq) for event in core.events(turn.session_id)] == [
            ("usage", 1), ("message_response", 2), ("usage", 3), ("message_response", 4),
        ]  # fmt: skip
        await asyncio.to_thread(process.wait_for_line, AGAIN)
        assert process.output.count(AGAIN) == 1
        assert await asyncio.to_thread(process.stop) == 0
    none_is_left(data_dir)
    assert "Traceback" not in process.output


@pytest.mark.slow
async def test_of_processes_that_share_it_one_starts_it_again_and_the_others_find_it(
    env: dict[str, str], data_dir: Path, provider: Provider, core: FakeCore
) -> None:
    with ExitStack() as stack:
        processes: list[ServiceProcess] = []
        for command, line in (("serve", "listening"), ("worker", "working"), ("worker", "working")):
            processes.append(stack.enter_context(running(Command(command, env=env))))
            await asyncio.to_thread(processes[-1].wait_for_line, line)
        serve = processes[0].wait_ready()
        for round_ in range(1, 3):
            kill_postmaster(data_dir)
            await asyncio.to_thread(
                wait_until, lambda n=round_: sum(process.output.count(AGAIN) for process in processes) == n, WAIT_S
            )
        async with asyncio.timeout(WAIT_S), connect(serve.url) as chat:
            for turn_id in itertools.count():  # the one that serves may find out later than another has started it
                end = (await chat.ask("Hello", turn_id, **new_pair())).end
                if not end.get("retryable"):
                    break
            assert end["type"] == "done"
        await core.reaches(2, WAIT_S)
        for process in processes:
            assert processes_of(data_dir)
            assert await asyncio.to_thread(process.stop) == 0
        assert sum(process.output.count(AGAIN) for process in processes) == 2
    none_is_left(data_dir)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 0.9, 1.1, 1.4])
def test_a_stop_just_then_leaves_no_server_behind(env: dict[str, str], data_dir: Path, after_s: float) -> None:
    env["TURNSTONE_SHUTDOWN_GRACE_S"] = "0"
    with running(Command("serve", env=env)) as process:
        process.wait_ready()
        kill_postmaster(data_dir)
        time.sleep(after_s)  # into the restart, wherever it is by then
        assert process.stop(timeout=60) == 0, process.output
    assert "Traceback" not in process.output
    none_is_left(data_dir)
