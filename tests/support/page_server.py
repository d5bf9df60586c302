"""A server for the chat page whose every frame a test decides.

It serves the page's files under the policy they have to live with, and speaks the protocol over ``/chat``: by
itself as `Chat`, which answers each message with the same pieces, or frame by frame as a test's own script.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

from app.presentation.api.routes.pages import CONTENT_SECURITY_POLICY, STATIC, chat_page_html
from app.presentation.web.markdown import render_markdown

SESSION_ID = "1"

Frame = dict[str, Any]


class Connection:
    """One socket, as a script sees it.

    Attributes:
        number: 1 for the server's first socket, 2 for its second …
        protocols: what the client offered as subprotocols.
    """

    def __init__(self, socket: web.WebSocketResponse, request: web.Request, number: int) -> None:
        self._socket = socket
        self._request = request
        self.number = number
        self.protocols = request.headers.get("Sec-WebSocket-Protocol", "")

    async def send(self, *frames: Frame) -> None:
        """Send frames one after the other; nothing where the socket is gone."""
        for frame in frames:
            if not self._socket.closed and self._request.transport is not None:
                await self._socket.send_json(frame)

    def drop(self) -> None:
        """Cut the connection without a word, as a lost network does."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def close(self, code: int) -> None:
        await self._socket.close(code=code)


Script = Callable[[Connection, Frame], Awaitable[None]]


@dataclass
class ChatTurn:
    """A turn of `Chat`: the deltas so far, and the terminal frame once there is one."""

    turn_id: str | int
    number: int
    message: str
    deltas: list[str] = field(default_factory=list)
    end: Frame | None = None
    task: asyncio.Task[None] | None = None

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    def usage(self) -> Frame:
        completion = len(self.deltas)
        return {
            "prompt_tokens": 10,
            "completion_tokens": completion,
            "total_tokens": 10 + completion,
            "source": "provider",
        }


class Chat:
    """A script that answers every message with the same pieces, one each ``pace_s`` seconds.

    Args:
        pieces: the deltas of every answer.
        pace_s: seconds between two of them.
        drop_after: cut the connection, once, instead of sending the frame after this many.
    """

    def __init__(self, pieces: list[str], *, pace_s: float = 0.0, drop_after: int | None = None) -> None:
        self.pieces = pieces
        self.pace_s = pace_s
        self.drop_after = drop_after
        self.turns: list[ChatTurn] = []
        self._changed = asyncio.Condition()
        self._readers: set[asyncio.Task[None]] = set()

    async def __call__(self, connection: Connection, frame: Frame) -> None:
        match frame["type"]:
            case "ping":
                await connection.send({"type": "pong"})
            case "message":
                begun = self._turn(frame["turn_id"]) or self._begin(frame)
                self._read(connection, begun, 0, started=True)
            case "resume":
                turn = self._turn(frame["turn_id"])
                if turn is not None:
                    self._read(connection, turn, frame["after_seq"], started=False)
                else:
                    await connection.send(error(frame["turn_id"], "turn_not_found"))
            case "cancel":
                turn = self._turn(frame["turn_id"])
                if turn is not None and turn.task is not None:
                    turn.task.cancel()

    async def aclose(self) -> None:
        """End what runs."""
        tasks = [*self._readers, *(turn.task for turn in self.turns if turn.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _turn(self, turn_id: str | int) -> ChatTurn | None:
        return next((turn for turn in self.turns if str(turn.turn_id) == str(turn_id)), None)

    def _begin(self, frame: Frame) -> ChatTurn:
        turn = ChatTurn(frame["turn_id"], len(self.turns) + 1, frame["message"])
        self.turns.append(turn)
        turn.task = asyncio.create_task(self._run(turn))
        return turn

    async def _run(self, turn: ChatTurn) -> None:
        try:
            for piece in self.pieces:
                await asyncio.sleep(self.pace_s)
                async with self._changed:
                    turn.deltas.append(piece)
                    self._changed.notify_all()
            end: Frame = {"type": "done", "finish_reason": "stop"}
        except asyncio.CancelledError:
            end = {"type": "cancelled"}
        async with self._changed:
            turn.end = end | {"turn_id": turn.turn_id, "turn": turn.number, "usage": turn.usage()}
            self._changed.notify_all()

    def _read(self, connection: Connection, turn: ChatTurn, after: int, *, started: bool) -> None:
        task = asyncio.create_task(self._send_turn(connection, turn, after, started=started))
        self._readers.add(task)
        task.add_done_callback(self._readers.discard)

    async def _send_turn(self, connection: Connection, turn: ChatTurn, after: int, *, started: bool) -> None:
        if started:
            frame = {"type": "started", "session_id": SESSION_ID, "turn_id": turn.turn_id, "turn": turn.number}
            await self._send(connection, frame)
        while True:
            async with self._changed:
                while len(turn.deltas) == after and turn.end is None:
                    await self._changed.wait()
            if len(turn.deltas) > after:
                await self._send(connection, delta(turn.turn_id, after + 1, *turn.deltas[after:]))
                after = len(turn.deltas)
            elif turn.end:
                await self._send(connection, turn.end)
                return

    async def _send(self, connection: Connection, frame: Frame) -> None:
        if self.drop_after == 0:
            self.drop_after = None
            connection.drop()
            return
        if self.drop_after is not None:
            self.drop_after -= 1
        await connection.send(frame)


def delta(turn_id: str | int, first: int, *pieces: str) -> Frame:
    """One delta frame with these pieces, the first of which has the number ``first``."""
    frame: Frame = {"type": "delta", "turn_id": turn_id, "content": "".join(pieces)}
    frame["seq"] = first + len(pieces) - 1
    if len(pieces) > 1:
        frame["first_seq"] = first
    return frame


def error(turn_id: str | int | None, code: str, *, retryable: bool = False, **fields: object) -> Frame:
    """One error frame."""
    words = {"turn_id": turn_id, "code": code, "message": f"It failed: {code}.", "retryable": retryable}
    return {"type": "error", **words, **fields}


@dataclass
class PageServer:
    """The server and what it saw.

    Attributes:
        script: called for every frame a client sends.
        received: every frame from clients, in order, pings left out.
        connected_at: the loop's time of every WebSocket handshake.
        page_size: items of a list in one answer.
        render_delay_s: how long a rendering takes; ``render_status`` other than 200 fails it.
        core_events: what Core got; ``None``: no such page. ``core_epoch`` names the run that numbered it.
    """

    script: Script
    url: str = ""
    received: list[Frame] = field(default_factory=list)
    connections: list[Connection] = field(default_factory=list)
    connected_at: list[float] = field(default_factory=list)
    page_size: int = 100
    render_delay_s: float = 0.0
    render_status: int = 200
    core_events: list[Frame] | None = None
    core_epoch: str = "first"

    def frames(self, kind: str) -> list[Frame]:
        """What clients sent of one type."""
        return [frame for frame in self.received if frame["type"] == kind]

    async def _chat(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(protocols=["turnstone.v1"])
        await socket.prepare(request)
        connection = Connection(socket, request, len(self.connections) + 1)
        self.connections.append(connection)
        self.connected_at.append(asyncio.get_running_loop().time())
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                continue
            frame: Frame = message.json()
            if frame["type"] != "ping":
                self.received.append(frame)
            await self.script(connection, frame)
        return socket

    async def _render(self, request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(self.render_delay_s)
        if self.render_status != 200:
            return web.json_response({"code": "internal"}, status=self.render_status)
        return web.json_response({"html": render_markdown(body["markdown"])})

    def _turns(self) -> list[ChatTurn]:
        return self.script.turns if isinstance(self.script, Chat) else []

    def _session(self) -> Frame:
        total = sum(turn.usage()["total_tokens"] for turn in self._turns() if turn.end)
        fields = {"id": SESSION_ID, "exam_id": 1, "participant_id": 1, "spec_id": None}
        return {**fields, "started_at": "2026-01-01T00:00:00Z", "ended_at": None, "total_tokens": total}

    async def _sessions(self, request: web.Request) -> web.Response:
        asked = (request.query["exam_id"], request.query["participant_id"])
        return self._page(request, [self._session()] if self._turns() and asked == ("1", "1") else [])

    async def _one_session(self, _: web.Request) -> web.Response:
        return web.json_response(self._session())

    async def _messages(self, request: web.Request) -> web.Response:
        items: list[Frame] = []
        for turn in self._turns():
            said: list[tuple[str, str, Frame | None]] = [("USER", turn.message, None)]
            if turn.end and turn.deltas:
                status = "cancelled" if turn.end["type"] == "cancelled" else "completed"
                meta = {"model": "m", "status": status, "usage": turn.end["usage"]}
                said.append(("ASSISTANT", turn.text, meta))
            for role, content, meta_or_none in said:
                numbers = {"id": str(len(items) + 1), "turn": turn.number, "turn_id": turn.turn_id}
                rest = {"token_count": len(turn.deltas), "created_at": "2026-01-01T00:00:00Z", "meta": meta_or_none}
                items.append({**numbers, "role": role, "content": content, **rest})
        return self._page(request, items)

    def _page(self, request: web.Request, items: list[Frame]) -> web.Response:
        begin = int(request.query.get("cursor", 0))
        end = begin + self.page_size
        return web.json_response({"items": items[begin:end], "next": str(end) if end < len(items) else None})

    async def _core(self, request: web.Request) -> web.Response:
        if self.core_events is None:
            raise web.HTTPNotFound
        after = int(request.query["after"])
        items = [event for event in self.core_events if event["n"] > after]
        news = {"epoch": self.core_epoch, "items": items, "next": items[-1]["n"] if items else after}
        return web.json_response(news)

    async def _index(self, _: web.Request) -> web.Response:
        address = None if self.core_events is None else "/demo/core/events"
        return web.Response(text=chat_page_html(address), content_type="text/html")

    async def _blank(self, _: web.Request) -> web.Response:
        return web.Response(text="<!doctype html><title>blank</title>", content_type="text/html")

    def application(self) -> web.Application:
        """The routes; every answer carries the page's policy."""
        application = web.Application()
        application.router.add_get("/", self._index)
        application.router.add_get("/blank", self._blank)
        application.router.add_get("/chat", self._chat)
        application.router.add_static("/static", STATIC)
        application.router.add_post("/api/render", self._render)
        application.router.add_get("/api/sessions", self._sessions)
        application.router.add_get("/api/sessions/{id}", self._one_session)
        application.router.add_get("/api/sessions/{id}/messages", self._messages)
        application.router.add_get("/demo/core/events", self._core)
        application.on_response_prepare.append(_add_policy)
        return application


async def _add_policy(_: web.Request, response: web.StreamResponse) -> None:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY


@asynccontextmanager
async def open_page_server(script: Script | None = None) -> AsyncIterator[PageServer]:
    """The server on a free port of the loopback address."""
    server = PageServer(script or Chat(["Hello", ", ", "world."]))
    runner = web.AppRunner(server.application(), shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        if isinstance(server.script, Chat):
            await server.script.aclose()
        await runner.cleanup()
