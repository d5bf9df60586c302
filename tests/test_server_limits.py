"""Connections that the server has to end against the client's habits."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Callable

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
