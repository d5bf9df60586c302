"""Connections that the server has to end against the client's habits."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Callable

import httpx
import pytest
import websockets

from app import server
from app.presentation.api.routes.chat import Conversation
from tests.support.chat import connect, new_pair, wait_until
from tests.support.provider import Provider, Script
from tests.support.service import Service


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
    service = start()
    provider.default = Script(pieces=["x" * 8000] * 5000, piece_delay_s=0.002)
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect(("127.0.0.1", service.port))

    def conversations() -> int:
        return sum(isinstance(thing, Conversation) for thing in gc.get_objects())

    async with connect(service.url, sock=opened, max_queue=1) as client:
        seen = await client.start("hello", **new_pair())
        await asyncio.to_thread(wait_until, lambda: conversations() == 0)
        client.drop()
    async with connect(service.url) as client:
        await client.send(type="cancel", turn_id="t1", session_id=seen.session_id)
        assert (await client.until("cancelled"))["turn_id"] == "t1"


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
    service = start(limits={"turns": 1})
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    pair = new_pair()
    async with connect(service.url) as client, httpx.AsyncClient(base_url=service.url) as rest:
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
