"""A proxy between browser and service that does to the traffic what proxies of schools and companies do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum

import aiohttp
from aiohttp import WSMsgType, web
from yarl import URL

_OF_THE_HOP = {"connection", "keep-alive", "transfer-encoding", "upgrade", "content-length", "content-encoding"}


class Sockets(Enum):
    """What becomes of WebSockets."""

    PASS = "pass"
    REFUSE = "refuse"
    """The handshake is answered with a page that forbids it."""
    SWALLOW = "swallow"
    """The handshake is answered as it should be, and nothing ever comes through."""
    DIE = "die"
    """The connection is cut as soon as the handshake is over."""
    DIE_YOUNG = "die young"
    """The connection is cut after the service's first frame."""


@dataclass
class HostileProxy:
    """The proxy and what it saw.

    Attributes:
        target: the service's address; ``None``: nothing is there, and the proxy says so.
        sockets: what becomes of WebSockets.
        buffers: whether an answer is kept back until it is whole.
        cut_after: bytes of an event stream after which its connection is cut; never before the first event is through.
        loses: how many of the next POSTs reach the service and are cut before their answer.
        intercept: what is answered in the service's place; ``None`` where the request goes on.
        hangs: requests hang until this is set; ``None``: none does.
        requests: every request, in order.
        handshakes: how many WebSockets were tried.
    """

    target: str | None
    sockets: Sockets = Sockets.PASS
    buffers: bool = False
    cut_after: int | None = None
    loses: int = 0
    intercept: Callable[[web.Request], web.Response | None] = lambda _: None
    hangs: asyncio.Event | None = None
    url: str = ""
    requests: list[web.Request] = field(default_factory=list)
    handshakes: int = 0
    _open: list[web.Request] = field(default_factory=list)
    _client: aiohttp.ClientSession | None = None

    def cut(self) -> None:
        """Drop every connection without a word."""
        for request in list(self._open):
            _abort(request)

    def asked(self, method: str, ending: str) -> list[web.Request]:
        """The requests of a method whose path ends so."""
        return [request for request in self.requests if request.method == method and request.path.endswith(ending)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Pass one request on, or do not."""
        self._open.append(request)
        try:
            if self.hangs is not None:
                await self.hangs.wait()
            if request.headers.get("Upgrade", "").lower() == "websocket":
                self.handshakes += 1
                return await self._socket(request)
            self.requests.append(request)
            answer = self.intercept(request)
            if answer is not None:
                return answer
            if self.target is None:
                return web.Response(status=502, text="<h1>Bad Gateway</h1>", content_type="text/html")
            return await self._pass(request, self.target)
        finally:
            self._open.remove(request)

    async def _pass(self, request: web.Request, target: str) -> web.StreamResponse:
        assert self._client is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_THE_HOP}
        body = await request.read()
        url = URL(f"{target}{request.raw_path}", encoded=True)  # a turn's name stays encoded as it is
        try:
            async with self._client.request(request.method, url, headers=headers, data=body) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _OF_THE_HOP}
                if request.method == "POST" and self.loses > 0:
                    self.loses -= 1
                    _abort(request)
                if self.buffers:
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())
                response = web.StreamResponse(status=answer.status, headers=kept)
                await response.prepare(request)
                await self._stream(request, answer, response)
                return response
        except aiohttp.ClientConnectionError:
            return web.Response(status=502, text="<h1>Bad Gateway</h1>", content_type="text/html")

    async def _stream(self, request: web.Request, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        passed = 0
        with suppress(ConnectionError):
            async for chunk in answer.content.iter_any():
                passed += len(chunk)
                is_stream = answer.content_type == "text/event-stream"
                if is_stream and self.cut_after is not None and passed > self.cut_after:
                    first = chunk.find(b"\n\n", max(chunk.find(b"data:"), 0)) + 2
                    await response.write(chunk[: max(len(chunk) // 2, first)])
                    _abort(request)
                    return
                await response.write(chunk)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if self.sockets is Sockets.REFUSE:
            return web.Response(status=403, text="<h1>Forbidden by policy</h1>", content_type="text/html")
        if self.target is None:
            return web.Response(status=502)
        asked = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if part.strip()]
        near = web.WebSocketResponse(protocols=asked[:1])
        await near.prepare(request)
        if self.sockets is Sockets.DIE:
            _abort(request)
        elif self.sockets is Sockets.SWALLOW:
            async for _ in near:
                pass
        else:
            await self._pass_frames(request, near, asked, self.target)
        return near

    async def _pass_frames(
        self, request: web.Request, near: web.WebSocketResponse, protocols: list[str], target: str
    ) -> None:
        assert self._client is not None
        async with self._client.ws_connect(f"{target}{request.raw_path}", protocols=protocols) as far:

            async def outwards() -> None:
                async for message in near:
                    await far.send_str(message.data)
                await far.close()

            sending = asyncio.create_task(outwards())
            async for message in far:
                if message.type is WSMsgType.TEXT and not near.closed:
                    await near.send_str(message.data)
                if self.sockets is Sockets.DIE_YOUNG:
                    _abort(request)
                    break
            sending.cancel()
            if self.sockets is not Sockets.DIE_YOUNG:
                await near.close(code=far.close_code or 1011)


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


@asynccontextmanager
async def open_hostile_proxy(target: str | None) -> AsyncIterator[HostileProxy]:
    """The proxy on a free port of the loopback address."""
    proxy = HostileProxy(target)
    application = web.Application(client_max_size=8 * 1024 * 1024)
    application.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    proxy.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        proxy._client = client
        try:
            yield proxy
        finally:
            await runner.cleanup()
