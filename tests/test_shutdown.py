"""SIGTERM and Ctrl-C: turns may finish, what does not is ended and stored, and no process is left behind."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import (
    ChatClient,
    Command,
    connect,
    environment,
    new_pair,
    processes_of,
    wait_gone,
    wait_until,
)
from tests.support.core import Answer, FakeCore
from tests.support.locks import locked, waiting
from tests.support.provider import Provider, Script
from tests.support.service import ServiceProcess, running

RESTARTING = 1012


@pytest.fixture
def env(settings: Settings) -> dict[str, str]:
    """A service with a long grace period, and with patience for a provider that says nothing."""
    changed = change(settings, shutdown_grace_s=30, log_level="info", llm={"timeout_s": 60})
    return environment(changed, TURNSTONE_PORT="0")


@pytest.fixture
def data_dir(scratch: Path) -> Iterator[Path]:
    """An empty data directory; processes of it that a failed test leaves are killed."""
    path = Path(tempfile.mkdtemp(dir=scratch))
    path.chmod(0o755)
    yield path
    for process in processes_of(path):
        process.kill()


@pytest.fixture
def embedded(env: dict[str, str], data_dir: Path) -> dict[str, str]:
    """A service with an embedded database."""
    del env["TURNSTONE_DATABASE__URL"]
    return {**env, "TURNSTONE_DATA_DIR": str(data_dir)}


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


async def closed(chat: ChatClient) -> int | None:
    """Wait until the server closes; returns its close code."""
    try:
        while True:
            await chat.receive()
    except websockets.ConnectionClosed as error:
        return error.rcvd.code if error.rcvd else None


async def test_running_turns_finish_on_open_sockets_and_nothing_new_is_taken(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    script = Script(pieces=[f"word{i} " for i in range(150)], piece_delay_s=0.01)
    provider.next(script)
    provider.holding = True
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat, connect(process.url) as other:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            session_id = (await chat.until("started"))["session_id"]
            await chat.until("delta")
            process.process.send_signal(signal.SIGTERM)
            status, body = await asyncio.to_thread(
                wait_until, lambda: (answer := get(f"{process.url}/readyz"))[0] != 200 and answer
            )
            assert (status, body["checks"]["accepting"], body["checks"]["database"]) == (503, False, True)
            assert get(f"{process.url}/healthz")[0] == 200
            await other.send(type="message", message="Me too", turn_id="t1", **new_pair())
            refused = await other.until("error")
            assert (refused["code"], refused["retryable"]) == ("overloaded", True)
            provider.holding = False
            done = await chat.until("done")
            assert done["finish_reason"] == "stop"
            assert await closed(chat) == RESTARTING
            assert await closed(other) == RESTARTING
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    assert len(provider.requests) == 1
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == script.text
    assert rows.one("SELECT count(*) AS n FROM callbacks WHERE session_id = %s", int(session_id))["n"] == 2
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "completed"


@pytest.mark.parametrize("others", [0, 1])
async def test_a_turn_whose_start_is_under_way_is_answered_too(
    env: dict[str, str], database_url: str, provider: Provider, rows: Rows, others: int
) -> None:
    """It was not refused, so it has the whole grace period; also where those that ran already end before it."""
    script = Script(pieces=[f"word{i} " for i in range(20)], piece_delay_s=0.05)
    provider.default = script
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat, connect(process.url) as other:
            session_id = (await chat.ask("Hello", "t1", **new_pair())).session_id
            async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE"):
                await chat.send(type="message", message="And now?", turn_id="t2", session_id=session_id)
                await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 1)
                for _ in range(others):
                    await other.send(type="message", message="Hello", turn_id="t1", **new_pair())
                    await other.until("delta")
                process.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_until, lambda: get(f"{process.url}/readyz")[0] == 503)
                await asyncio.sleep(1)  # it looks every tenth of a second whether all have ended
            turn = await chat.turn()
            assert (turn.end["type"], turn.text) == ("done", script.text)
            assert await closed(chat) == RESTARTING
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"completed"}


async def test_a_second_signal_interrupts_a_turn_whose_start_is_under_way(
    env: dict[str, str], database_url: str, provider: Provider, rows: Rows
) -> None:
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            session_id = (await chat.ask("Hello", "t1", **new_pair())).session_id
            async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE"):
                await chat.send(type="message", message="And now?", turn_id="t2", session_id=session_id)
                await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 1)
                process.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_until, lambda: get(f"{process.url}/readyz")[0] == 503)
                process.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.15)  # it looks for one every tenth of a second, and waits for two
            assert (await chat.until("error"))["code"] == "interrupted"
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    statement = "SELECT status FROM prompt_turns ORDER BY turn"
    assert [row["status"] for row in rows(statement)] == ["completed", "interrupted"]


async def test_a_second_signal_does_not_wait_for_a_start_that_hangs(
    env: dict[str, str], database_url: str, provider: Provider, rows: Rows
) -> None:
    env["TURNSTONE_SHUTDOWN_GRACE_S"] = "300"
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            session_id = (await chat.ask("Hello", "t1", **new_pair())).session_id
            async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE"):
                await chat.send(type="message", message="And now?", turn_id="t2", session_id=session_id)
                await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 1)
                process.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(wait_until, lambda: get(f"{process.url}/readyz")[0] == 503)
                begun = time.monotonic()
                process.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.process.wait, 60) == 0
                assert time.monotonic() - begun < 50, "two seconds each time it is waited for, five for its connection"
    assert [row["status"] for row in rows("SELECT status FROM prompt_turns")] == ["completed"]


async def test_a_turn_that_does_not_end_in_time_is_interrupted_and_stored(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    env["TURNSTONE_SHUTDOWN_GRACE_S"] = "0.5"
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            process.process.send_signal(signal.SIGTERM)
            error = await chat.until("error")
            assert (error["code"], error["retryable"], error["last_seq"]) == ("interrupted", True, 1)
            assert await closed(chat) == RESTARTING
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    assert (await provider.closed_reach(1))[0].ended == "client_closed"
    assert rows.one("SELECT status, error_code FROM prompt_turns") == {
        "status": "interrupted",
        "error_code": "interrupted",
    }
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == "so far"
    kinds = [row["type"] for row in rows("SELECT type FROM callbacks ORDER BY callback_seq")]
    assert kinds == ["usage", "message_response", "error"]
    assert rows("SELECT 1 FROM turn_chunks") == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
async def test_the_first_signal_is_answered_at_once_and_a_second_does_not_wait_for_turns(
    env: dict[str, str], provider: Provider, rows: Rows, first: signal.Signals, second: signal.Signals
) -> None:
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            process.process.send_signal(first)
            line = await asyncio.to_thread(process.wait_for_line, "stopping")
            assert line == "turnstone: stopping; running answers may end within 30 s; Ctrl-C again ends it now\n"
            await asyncio.to_thread(wait_until, lambda: get(f"{process.url}/readyz")[0] == 503)
            begun = time.monotonic()
            process.process.send_signal(second)
            assert (await chat.until("error"))["code"] == "interrupted"
            assert await asyncio.to_thread(process.process.wait, 30) == 0
            assert time.monotonic() - begun < 25, "the grace period is 30 s"
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "interrupted"


@pytest.mark.slow
async def test_doctor_knows_a_service_that_is_stopping(env: dict[str, str], provider: Provider) -> None:
    provider.next(Script(ending="hang", ending_at=1))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            process.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(wait_until, lambda: get(f"{process.url}/readyz")[0] == 503)
            doctor = Command("doctor", env={**env, "TURNSTONE_PORT": str(process.port)})
            code, output = await asyncio.to_thread(doctor.ended)
            assert f"127.0.0.1:{process.port}, a service runs there (not ready: accepting)" in output
            assert code == 0
            assert await asyncio.to_thread(process.stop) == 0


async def test_a_terminal_that_closes_may_say_so_twice(env: dict[str, str], provider: Provider, rows: Rows) -> None:
    provider.next(Script(pieces=[f"word{i} " for i in range(100)], piece_delay_s=0.01))
    provider.holding = True
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            for _ in range(2):
                process.process.send_signal(signal.SIGHUP)
                await asyncio.to_thread(process.wait_for_line, "stopping")
            await asyncio.sleep(0.1)
            provider.holding = False
            assert (await chat.until("done"))["finish_reason"] == "stop"
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "completed"


async def test_a_post_under_way_is_waited_for_and_not_repeated_after_the_restart(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    core.always(Answer(delay_s=0.5))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.ask("Hello", "t1", **new_pair())
        await core.reaches(lambda posts: len(posts) >= 1)
        assert await asyncio.to_thread(process.stop) == 0
    core.always(Answer())
    with running(Command("serve", env=env)) as process:
        await core.reaches(2, 30)
        await asyncio.to_thread(
            wait_until, lambda: rows.one("SELECT count(*) AS n FROM callbacks WHERE status = 'delivered'")["n"] == 2
        )
    assert [delivery.seq for delivery in core.deliveries] == [1, 2]


async def test_a_process_that_waits_for_core_at_its_end_keeps_its_lease(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    """Or another one would send again what is under way, and what comes after it."""
    env["TURNSTONE_LEASE_S"] = "2"
    answers = threading.Event()
    core.always(Answer(after=answers))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.ask("Hello", "t1", **new_pair())
        await core.reaches(lambda posts: len(posts) >= 1)
        process.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait_for_line, "stopping")

        def beats() -> int:
            return int(rows.one("SELECT beats FROM workers")["beats"])

        before = beats()
        await asyncio.to_thread(wait_until, lambda: beats() >= before + 6)
        answers.set()
        assert await asyncio.to_thread(process.process.wait, 30) == 0
    assert rows.one("SELECT status FROM callbacks WHERE callback_seq = 1")["status"] == "delivered"


@pytest.mark.slow
@pytest.mark.parametrize("pause_s", [0.0, 1.0], ids=["at once", "while it waits"])
@pytest.mark.parametrize("command", ["serve", "worker"])
async def test_a_second_signal_does_not_wait_for_a_core_that_hangs_and_its_event_is_sent_again(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows, command: str, pause_s: float
) -> None:
    env["TURNSTONE_CALLBACKS__TIMEOUT_S"] = "60"
    core.always(Answer(delay_s=120))
    serving = Command("serve", env={**env, "TURNSTONE_WORKER__EMBEDDED": "true" if command == "serve" else "false"})
    with running(serving) as serve:
        await asyncio.to_thread(serve.wait_ready)
        with running(serve if command == "serve" else Command("worker", env=env)) as process:
            if command == "worker":
                await asyncio.to_thread(process.wait_for_line, "working")
            async with connect(serve.url) as chat:
                await chat.ask("Hello", "t1", **new_pair())
            await core.reaches(lambda posts: len(posts) == 1)
            process.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait_for_line, "stopping")
            await asyncio.sleep(pause_s)
            assert process.process.poll() is None
            process.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.process.wait, 25) == 0
        assert await asyncio.to_thread(serve.stop) == 0
    core.always(Answer())
    with running(Command("worker", env=env)):
        await core.reaches(lambda posts: sum(post.accepted for post in posts) == 2, 30)
    first, again, other = core.deliveries
    assert first.id == again.id != other.id
    assert {row["status"] for row in rows("SELECT status FROM callbacks")} <= {"pending", "delivered"}


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_was_started_ends_with_the_command(
    embedded: dict[str, str], data_dir: Path, command: str, number: signal.Signals
) -> None:
    with running(Command(command, env=embedded)) as process:
        process.wait_for_line("working" if command == "worker" else "listening")
        assert processes_of(data_dir)
        assert process.stop(number) == 0, process.output
    assert "Traceback" not in process.output
    wait_gone(data_dir)


@pytest.mark.slow
def test_a_closed_terminal_ends_the_service_and_what_it_started(embedded: dict[str, str], data_dir: Path) -> None:
    terminal, its_end = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TURNSTONE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve"],
        env={**clean, "PYTHONPATH": str(Path(__file__).parents[1]), **embedded},
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # it takes no lock
    )
    os.close(its_end)
    try:
        shown = b""
        while b"listening" not in shown:
            shown += os.read(terminal, 4096)
        assert processes_of(data_dir)
        os.close(terminal)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    wait_gone(data_dir)


@pytest.mark.slow
def test_nohup_is_respected(env: dict[str, str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does; a child inherits it
    try:
        process = ServiceProcess("serve", env=env)
    finally:
        signal.signal(signal.SIGHUP, before)
    with running(process):
        process.wait_ready()
        process.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert get(f"{process.url}/readyz")[0] == 200
        assert process.stop() == 0


LOADS_FOR_LONG = """
import sys, time


class Long:
    def find_spec(self, name, path=None, target=None):
        if name == "app.server":
            time.sleep(60)


sys.meta_path.insert(0, Long())
"""


@pytest.mark.parametrize("command", ["serve", "worker", "demo"])
def test_ctrl_c_while_the_program_loads_ends_it_without_a_traceback(
    embedded: dict[str, str], data_dir: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(LOADS_FOR_LONG)  # so that it loads still, however late the signal comes
    embedded["PYTHONPATH"] = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[1])))
    with running(ServiceProcess(command, env=embedded)) as process:  # a new one, in which everything is to be loaded
        process.wait_for_line("turnstone: starting")
        assert process.stop(signal.SIGINT) == 130
    assert len(process.output.splitlines()) == 1, process.output
    assert list(data_dir.iterdir()) == []


async def test_the_demos_core_hears_of_what_ended_last(env: dict[str, str], provider: Provider, rows: Rows) -> None:
    env["TURNSTONE_SHUTDOWN_GRACE_S"] = "0.5"
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    with running(Command("demo", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            assert await asyncio.to_thread(process.stop, signal.SIGINT) == 0
    kinds = ["usage", "message_response", "error"]
    assert rows("SELECT type, status FROM callbacks ORDER BY callback_seq") == [
        {"type": kind, "status": "delivered"} for kind in kinds
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("serve", "starting the embedded PostgreSQL"),
        ("serve", "postgres_initialising"),
        ("serve", "postgres_initialised"),
        ("serve", "postgres_started"),
        ("worker", "postgres_initialised"),
        ("demo", "starting the embedded PostgreSQL"),
    ],
)
def test_a_signal_during_the_start_leaves_nothing(
    embedded: dict[str, str], data_dir: Path, command: str, line: str
) -> None:
    with running(Command(command, env=embedded)) as process:
        process.wait_for_line(line)
        assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
    wait_gone(data_dir)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("after_s", [0.0, 0.3, 1.0])
def test_a_signal_while_the_local_model_starts_leaves_nothing(
    embedded: dict[str, str], data_dir: Path, after_s: float
) -> None:
    embedded["TURNSTONE_LLM__MODEL"] = "local"
    with running(Command("serve", env=embedded)) as process:
        process.wait_for_line("local_model_starting")
        time.sleep(after_s)  # into the start, wherever it is by then
        assert process.stop() == 0, process.output
    assert "Traceback" not in process.output
    wait_gone(data_dir)


async def test_a_client_that_is_closing_just_then_does_not_break_the_end(
    env: dict[str, str], provider: Provider
) -> None:
    """It has said its close and reads nothing of what is still to be sent; another is told to come back."""
    provider.next(Script(pieces=("x" * 500_000,) * 8))
    message = json.dumps({"message": "much", "turn_id": "t1", **new_pair()}).encode()
    with running(Command("serve", env=env)) as process, socket.socket() as slow:
        await asyncio.to_thread(process.wait_ready)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", process.port))
        slow.sendall(
            b"GET /chat HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dHVybnN0b25lLWJlbmNoIQ==\r\nSec-WebSocket-Version: 13\r\n\r\n" % process.port
        )
        slow.recv(300)
        slow.sendall(bytes((0x81, 0x80 | len(message))) + b"\0\0\0\0" + message)
        await asyncio.to_thread(provider.wait_closed, 1)
        await asyncio.sleep(0.5)
        slow.sendall(b"\x88\x82\0\0\0\0\x03\xe8")  # 1000, masked with zeros
        async with connect(process.url) as chat:
            await chat.send(type="ping")
            await chat.receive()
            process.process.send_signal(signal.SIGTERM)
            with pytest.raises(websockets.ConnectionClosed):
                await chat.receive(30)
            assert chat.connection.close_code == RESTARTING
        assert isinstance(process, Command)
        code, output = await asyncio.to_thread(process.ended)
        assert code == 0, output
        assert "Traceback" not in output
