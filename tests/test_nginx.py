"""The configuration in ``deploy/`` under the real nginx, with two processes behind it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import websockets

from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_until
from tests.support.provider import Provider, Script
from tests.support.service import Service

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
CONF = Path(__file__).parents[1] / "deploy/nginx.conf"
SLOW = Script(pieces=[f"낱말{i} " for i in range(40)], piece_delay_s=0.02)
WAIT_S = 20.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None, reason="there is no nginx; install Debian's package nginx-light"),
]


def free_port() -> int:
    """One of those that no connection gets by itself: none takes it before nginx does."""
    while True:
        port = random.randrange(15_000, 32_000)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("127.0.0.1", port))
            return port


@pytest.fixture(params=[2], ids=["two"])
def services(request: pytest.FixtureRequest, start: Callable[..., Service]) -> tuple[Service, Service]:
    """Two processes, or one in both places. Their patience with a silent provider ends no test."""
    patient = {"llm": {"timeout_s": 60}}
    first = start(**patient)
    return first, first if request.param == 1 else start(**patient)


@pytest.fixture(params=["as it stands", "with buffering"])
def front(request: pytest.FixtureRequest, services: tuple[Service, Service], tmp_path: Path) -> Iterator[str]:
    """The address of nginx before the two."""
    conf = CONF.read_text()
    if request.param == "with buffering":
        # What others put before us may buffer, whatever we ask for.
        conf = conf.replace(
            "location / {", "location / {\n proxy_buffering on; proxy_ignore_headers X-Accel-Buffering;"
        )
    with nginx_before(services, conf, tmp_path) as url:
        yield url


@contextmanager
def nginx_before(services: tuple[Service, Service], conf: str, tmp_path: Path) -> Iterator[str]:
    """nginx with a configuration like the one in ``deploy/`` before two services; gives its address."""
    assert NGINX is not None
    port = free_port()
    for ours, theirs in ((8000, services[0].port), (8001, services[1].port), (8080, port)):
        assert f"127.0.0.1:{ours}" in conf
        conf = conf.replace(f"127.0.0.1:{ours}", f"127.0.0.1:{theirs}")
    (tmp_path / "nginx.conf").write_text(conf)
    command = [NGINX, "-p", str(tmp_path), "-c", "nginx.conf", "-g", "user root;"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as nginx:
        try:
            wait_until(lambda: nginx.poll() is not None or answers(port), WAIT_S)
            assert nginx.poll() is None, nginx.stderr.read() if nginx.stderr else ""
            yield f"http://127.0.0.1:{port}"
        finally:
            nginx.terminate()
            nginx.wait(WAIT_S)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
async def http(front: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=front, timeout=WAIT_S) as client:
        yield client


@pytest.mark.parametrize("services", [1, 2], ids=["one", "two"], indirect=True)
async def test_complaint_23_a_turn_streams_and_goes_on_wherever_the_socket_lands(
    front: str, services: tuple[Service, Service], provider: Provider, rows: Rows
) -> None:
    provider.next(SLOW)
    async with connect(front) as chat:
        await chat.send(message="hello", turn_id="t1", **new_pair())
        session_id = (await chat.until("started"))["session_id"]
        first = await chat.until("delta")
        assert first["seq"] == 1
    text, last, landed = first["content"], first["seq"], set()
    for _ in range(200):
        async with connect(front) as again:
            landed.add(tuple(service.app.state.places.taken for service in services))
            await again.send(type="resume", session_id=session_id, turn_id="t1", after_seq=last)
            frame = await again.receive()
            if frame["type"] != "delta":
                break
            assert frame.get("first_seq", frame["seq"]) == last + 1
            text, last = text + frame["content"], frame["seq"]
    assert frame["type"] == "done"
    assert text == SLOW.text
    for _ in range(20):  # a machine that stood still has left no time for more than one
        if services[0] is services[1] or len(landed) > 1:
            break
        async with connect(front):
            landed.add(tuple(service.app.state.places.taken for service in services))
    assert services[0] is services[1] or len(landed) > 1, "both processes have been asked"


async def test_deltas_are_not_held_back(front: str, provider: Provider) -> None:
    provider.next(Script(pieces=("first ", "second"), ending="hang", ending_at=1))
    async with connect(front) as chat:
        await chat.send(message="hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        assert provider.requests[0].ended is None, "the answer goes on, and its beginning is here"
        await chat.send(type="cancel", turn_id="t1")
        await chat.until("cancelled")


async def test_cancel_reaches_whichever_process_runs_the_turn(
    front: str, services: tuple[Service, Service], provider: Provider, http: httpx.AsyncClient
) -> None:
    for number in range(4):
        provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
        async with connect(front) as chat:
            await chat.send(message="hello", turn_id=number, **new_pair())
            session_id = (await chat.until("started"))["session_id"]
            await chat.until("delta")
            ended = await http.post(f"/api/sessions/{session_id}/turns/{number}/cancel")
            assert ended.json()["status"] == "cancelled"
            assert (await chat.until("cancelled"))["turn_id"] == number


async def test_events_come_through_and_a_long_poll_where_they_are_held_back(
    front: str, provider: Provider, http: httpx.AsyncClient
) -> None:
    provider.next(SLOW)
    async with connect(front) as chat:
        await chat.send(message="hello", turn_id="t1", **new_pair())
        session_id = (await chat.until("started"))["session_id"]
    path = f"/api/sessions/{session_id}/turns/t1/events"
    text, after = "", 0
    while True:
        answer = await http.get(path, params={"after_seq": after}, headers={"accept": "application/json"})
        body = answer.json()
        text += "".join(frame["content"] for frame in body["items"] if frame["type"] == "delta")
        after = body["next"]
        if body["ended"]:
            break
    assert text == SLOW.text
    async with http.stream("GET", path) as response:
        frames = [json.loads(line[6:]) async for line in response.aiter_lines() if line.startswith("data: ")]
    assert "".join(frame["content"] for frame in frames if frame["type"] == "delta") == SLOW.text


async def test_a_process_that_goes_is_not_noticed_by_new_turns(
    front: str, services: tuple[Service, Service], http: httpx.AsyncClient
) -> None:
    await asyncio.to_thread(services[0].stop)
    for _ in range(6):
        answer = await http.post("/api/chat/message", json={"message": "hello", **new_pair()})
        assert answer.status_code == 200, answer.text


async def test_what_is_too_large_is_said_by_the_service(front: str) -> None:
    async with connect(front) as chat:
        await chat.send(message="x" * 40_000, turn_id="t1", **new_pair())
        assert (await chat.receive())["code"] == "message_too_large"
        with pytest.raises(websockets.ConnectionClosed):
            await chat.send_raw("x" * 4_300_000)
            await chat.receive()
        assert chat.connection.close_code == 1009
