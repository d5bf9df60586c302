"""Connections that the server has to end against the client's habits."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence

import httpx
import psutil
import pytest
import websockets
from redis import Redis

from app import server
from app.core.settings import Settings
from app.presentation.api.routes.chat import Conversation
from tests.conftest import Rows, change
from tests.support.chat import WAIT_S, ChatClient, Command, connect, environment, new_pair, wait_until
from tests.support.provider import Provider, Script
from tests.support.redis_server import RedisServer
from tests.support.service import Service, running


def _with_little_room(service: Service) -> socket.socket:
    """A connection of a client that takes little of what it does not read."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect(("127.0.0.1", service.port))
    return opened


async def lose_patience(service: Service, client: ChatClient, *, ping_every_s: float, pong_within_s: float) -> None:
    """Let the server ask whether this client is there, sooner than it usually would; others keep their time."""

    async def with_it() -> None:
        assert service._server is not None
        port = client.connection.local_address[1]
        [connection] = [
            one
            for one in service._server.server_state.connections
            if isinstance(one, server.WebSocketProtocol) and one.transport.get_extra_info("peername")[1] == port
        ]
        connection.stop_keepalive()
        connection.ping_interval, connection.ping_timeout = ping_every_s, pong_within_s
        connection.start_keepalive()

    await asyncio.to_thread(service.call, with_it())


async def test_a_client_hears_1009_even_while_it_is_still_sending(service: Service) -> None:
    for _ in range(8):
        async with connect(service.url) as client:
            await client.send_raw(json.dumps({"type": "ping", "more": "x" * 4_194_000}))
            assert await client.receive() == {"type": "pong"}
            with pytest.raises(websockets.ConnectionClosed):
                await client.connection.send(["x" * 4_194_305])
                await client.receive()
            assert client.connection.close_code == 1009


async def test_a_client_that_never_reads_again_is_let_go(
    start: Callable[..., Service], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_UNREAD_MS", 1000)
    service = start(llm={"timeout_s": 60})
    provider.default = Script(pieces=["x" * 8000] * 2000, piece_delay_s=0.002, ending="hang")
    opened = _with_little_room(service)

    def conversations() -> int:
        gc.collect()
        return sum(isinstance(thing, Conversation) for thing in gc.get_objects())

    async with connect(service.url, sock=opened, max_queue=1) as client:
        seen = await client.start("hello", **new_pair())
        await asyncio.to_thread(wait_until, lambda: conversations() == 0)
        client.drop()
    async with connect(service.url) as client:
        await client.send(type="cancel", turn_id="t1", session_id=seen.session_id)
        assert (await client.until("cancelled"))["turn_id"] == "t1"


async def test_complaint_24_a_reader_that_is_too_slow_is_closed_with_a_code_and_goes_on_where_it_was(
    start: Callable[..., Service], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LAST_READ_S", 60.0)
    service = start()
    provider.next(script := Script(pieces=[f"{n:06d} " * 1500 for n in range(300)], piece_delay_s=0.001))
    pair = new_pair()
    opened = _with_little_room(service)
    async with (
        connect(service.url, sock=opened, max_queue=1, ping_interval=None) as slow,
        connect(service.url) as quick,
    ):
        await slow.send(message="hello", turn_id="t1", **pair)
        session_id = (await slow.until("started"))["session_id"]
        slow.connection.transport.pause_reading()
        await lose_patience(service, slow, ping_every_s=0.5, pong_within_s=1.0)
        await quick.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
        seen = await quick.turn()
        assert (seen.end["type"], seen.text) == ("done", script.text)
        await asyncio.to_thread(wait_until, lambda: service.app.state.places.taken == 1)
        slow.connection.transport.resume_reading()
        text, last = "", 0
        with pytest.raises(websockets.ConnectionClosed):
            while True:
                frame = await slow.receive()
                assert frame["type"] == "delta" and frame.get("first_seq", frame["seq"]) == last + 1
                text, last = text + frame["content"], frame["seq"]
        assert slow.connection.close_code == 4408
        assert 0 < last < 300
    async with connect(service.url) as again:
        await again.send(type="resume", session_id=session_id, turn_id="t1", after_seq=last)
        assert text + (await again.turn(after_seq=last)).text == script.text


async def come_and_go(urls: Sequence[str]) -> None:
    """Thirty candidates drop, resume, cancel and leave."""

    async def candidate(number: int) -> None:
        one, other = urls[number % len(urls)], urls[(number + 1) % len(urls)]
        for turn_id in range(3):
            async with connect(one) as client:
                await client.send(message="hello", turn_id=turn_id, **new_pair())
                session_id = (await client.until("started"))["session_id"]
                await client.until("delta")
                client.drop()
            async with connect(other) as client:
                if turn_id == 1:
                    await client.send(type="cancel", session_id=session_id, turn_id=turn_id)
                await client.send(type="resume", session_id=session_id, turn_id=turn_id, after_seq=0)
                while (await client.receive())["type"] not in ("cancelled", "done"):  # it may have ended before
                    pass

    await asyncio.gather(*(candidate(number) for number in range(30)))


WORDS = Script(pieces=["word "] * 20, piece_delay_s=0.02)


async def test_complaint_24_no_task_and_no_turn_is_left_over(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    def leftovers() -> tuple[Counter[str], int, int]:
        """Names of the service's tasks without their numbers, its turns, and the logs in its store."""

        async def tasks() -> Counter[str]:
            return Counter(task.get_name().rstrip("0123456789") for task in asyncio.all_tasks())

        resources = service.resources
        return service.call(tasks()), len(resources.runner._turns), len(resources.service._state)

    def at_rest() -> bool:
        """Whether nothing of the candidates is under way."""
        return leftovers()[1:] == (0, 0) and rows("SELECT 1 FROM callbacks WHERE status = 'pending'") == []

    def nothing_more() -> bool:
        """Whether there is no more than before; what was still ending then may have ended since."""
        tasks, turns, logs = leftovers()
        return tasks <= before[0] and (turns, logs) == before[1:]

    with RedisServer() as redis:
        service = start(redis={"url": redis.url})
        provider.default = WORDS
        await come_and_go([service.url])  # loads what is loaded once
        await asyncio.to_thread(wait_until, at_rest)
        await asyncio.sleep(1)
        before = leftovers()
        await come_and_go([service.url])
        await asyncio.to_thread(wait_until, nothing_more)
        with Redis.from_url(redis.url) as client:
            await asyncio.to_thread(wait_until, lambda: client.keys("*") == [])


async def test_complaint_24_two_processes_keep_no_socket_no_turn_and_no_key(
    settings: Settings, provider: Provider, rows: Rows
) -> None:
    provider.default = WORDS
    with RedisServer() as redis:
        env = environment(change(settings, redis={"url": redis.url}), TURNSTONE_PORT="0")
        with running(Command("serve", env=env)) as one, running(Command("serve", env=env)) as other:
            urls = [(await asyncio.to_thread(process.wait_ready)).url for process in (one, other)]
            await come_and_go(urls)
            async with httpx.AsyncClient(timeout=WAIT_S) as http:
                for url in urls:
                    async with asyncio.timeout(30):
                        while not {"turnstone_sockets 0.0", "turnstone_turns_running 0.0"} <= set(
                            (await http.get(f"{url}/metrics")).text.splitlines()
                        ):
                            await asyncio.sleep(0.1)
            with Redis.from_url(redis.url) as client:
                await asyncio.to_thread(wait_until, lambda: client.keys("*") == [])
            await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks") == [])  # they are swept


@pytest.mark.slow
async def test_a_client_that_reads_nothing_at_all_is_cut_off(
    start: Callable[..., Service], provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_LAST_READ_S", 0.5)
    service = start()
    provider.next(Script(pieces=["x" * 8000] * 2000, piece_delay_s=0.001))
    async with connect(service.url, max_queue=1, ping_interval=None) as client:
        await client.start("hello", **new_pair())
        client.connection.transport.pause_reading()
        await lose_patience(service, client, ping_every_s=0.5, pong_within_s=0.5)
        await asyncio.to_thread(wait_until, lambda: service.app.state.places.taken == 0)

        def sockets() -> list[int]:
            return [
                c.raddr.port for c in psutil.Process().net_connections() if c.raddr and c.laddr.port == service.port
            ]

        own = client.connection.local_address[1]
        await asyncio.to_thread(wait_until, lambda: own not in sockets())


async def test_a_connection_too_many_is_closed_with_4503_and_the_others_go_on(start: Callable[..., Service]) -> None:
    service = start(limits={"connections": 2})
    async with connect(service.url) as first, connect(service.url) as second:
        assert (await first.ask("hello", **new_pair())).end["type"] == "done"
        async with connect(service.url) as third:
            with pytest.raises(websockets.ConnectionClosed):
                await third.receive()
            assert third.connection.close_code == 4503
        await second.send(type="ping")
        assert await second.receive() == {"type": "pong"}
        first.drop()
        await asyncio.to_thread(wait_until, lambda: service.app.state.places.taken == 1)
        async with connect(service.url) as fourth:
            assert (await fourth.ask("hello", **new_pair())).end["type"] == "done"


async def test_a_turn_too_many_is_refused_and_one_that_is_known_is_not(
    start: Callable[..., Service], provider: Provider
) -> None:
    service = start(limits={"turns": 1}, llm={"timeout_s": 60})
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    pair = new_pair()
    async with connect(service.url) as client, httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as rest:
        await client.send(message="hello", turn_id="t1", **pair)
        await client.until("delta")
        await client.send(message="hello", turn_id="t2", **new_pair())
        refused = await client.until("error")
        assert (refused["code"], refused["turn_id"], refused["retryable"]) == ("overloaded", "t2", True)
        answer = await rest.post("/api/chat/message", json={"message": "hello", **new_pair()})
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "overloaded", "1")
        async with connect(service.url) as other:
            await other.send(message="hello", turn_id="t1", **pair)
            assert (await other.until("started"))["turn"] == 1
        await client.send(type="cancel", turn_id="t1")
        await client.until("cancelled")
        assert (await client.ask("hello", "t3", **new_pair())).end["type"] == "done"
    assert len(provider.requests) == 2
