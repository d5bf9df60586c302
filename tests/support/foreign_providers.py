"""Scripted providers that speak Anthropic's and Google's streaming formats over HTTP, and misbehave as asked.

::

    with ForeignProviders() as providers:
        providers.script = Script(anthropic_answer(["Hel", "lo"]))
        ...  # the code under test calls providers.url
        assert providers.requests[0].ended == "completed"

One server, on a thread with a loop of its own and a free loopback port, answers ``POST /v1/messages`` (Anthropic),
``POST /v1beta/models/{model}:streamGenerateContent`` (Google) and ``POST /v1/chat/completions`` (OpenAI's format, to
stand for the providers nobody has made special arrangements for). A script is the writes of the body: each format has
a function that makes them, and a test may cut, reorder or add to them.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from aiohttp import web

from tests.support.servers import WAIT_S

SECRET = "provider-words-that-quote-the-prompt"
"""Stands in every error the servers send: found anywhere else, the provider's words leaked."""


@dataclass(frozen=True)
class Script:
    """How a request is answered.

    Attributes:
        writes: the parts of the body, each written by itself.
        status: any other than 200 sends the format's error body in place of ``writes``.
        headers: added to the response's.
        hang_before: never answer at all.
        pause_s: seconds before each write.
        then: after the writes finish the response, say nothing more, or drop the connection.
    """

    writes: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hang_before: bool = False
    pause_s: float = 0.0
    then: Literal["finish", "hang", "cut"] = "finish"


@dataclass
class Request:
    """What one client sent, and how its connection ended (``ended_at`` on the clock ``time.monotonic``)."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]
    written: int = 0
    ended: Literal["open", "completed", "client_closed", "cut"] = "open"
    ended_at: float | None = None


class ForeignProviders:
    """The server; a context manager. ``script`` answers every request until it is replaced."""

    def __init__(self) -> None:
        self.script = Script()
        self.requests: list[Request] = []
        self.url = ""
        self._changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="foreign-providers", daemon=True)
        self._runner: web.AppRunner | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def wait_ended(self, index: int = 0, timeout_s: float = WAIT_S) -> Request:
        """Block until the connection of request ``index`` ended and return it (call it off the loop under test)."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self.requests) > index and self.requests[index].ended != "open", timeout_s
            ):
                raise TimeoutError(f"request {index} did not end within {timeout_s} s: {self.requests}")
            return self.requests[index]

    def wait_written(self, count: int, index: int = 0, timeout_s: float = WAIT_S) -> None:
        """Block until ``count`` writes of request ``index`` are out (0: until the request is there)."""
        with self._changed:
            if not self._changed.wait_for(
                lambda: len(self.requests) > index and self.requests[index].written >= count, timeout_s
            ):
                raise TimeoutError(f"not {count} writes within {timeout_s} s: {self.requests}")

    async def _open(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        # Cancelling the handler is how a client that went away shows at once.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if request.content_type == "application/json" else {}
        seen = Request(request.path, dict(request.headers), body)
        with self._changed:
            self.requests.append(seen)
            self._changed.notify_all()
        try:
            response = await self._play(request, seen, self.script)
        except (asyncio.CancelledError, ConnectionError):
            self._end(seen, "client_closed")
            raise
        self._end(seen, "cut" if self.script.then == "cut" else "completed")
        return response

    async def _play(self, request: web.Request, seen: Request, script: Script) -> web.StreamResponse:
        if script.hang_before:
            await asyncio.Event().wait()
        if script.status != 200:
            return web.json_response(
                _error_body(request.path, script.status), status=script.status, headers=script.headers
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **script.headers})
        await response.prepare(request)
        for part in script.writes:
            await asyncio.sleep(script.pause_s)
            await response.write(part)
            with self._changed:
                seen.written += 1
                self._changed.notify_all()
        if script.then == "hang":
            await asyncio.Event().wait()
        if script.then == "cut":
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write_eof()
        return response

    def _end(self, seen: Request, how: Literal["completed", "client_closed", "cut"]) -> None:
        with self._changed:
            seen.ended, seen.ended_at = how, time.monotonic()
            self._changed.notify_all()


def _error_body(path: str, status: int) -> dict[str, Any]:
    if path.startswith("/v1beta/"):
        return {"error": {"code": status, "message": SECRET, "status": "SOME_STATUS"}}
    return {"type": "error", "error": {"type": "some_error", "message": SECRET}, "request_id": "req_1"}


# --- Anthropic ---------------------------------------------------------------------------------------------------

ANTHROPIC_PING = b'event: ping\ndata: {"type": "ping"}\n\n'


def anthropic_event(event: Mapping[str, Any]) -> bytes:
    """One event; its name is its ``type``."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


ANTHROPIC_ERROR = anthropic_event({"type": "error", "error": {"type": "overloaded_error", "message": SECRET}})


def anthropic_answer(
    pieces: Sequence[str],
    *,
    thinking: Sequence[str] = (),
    start_usage: Mapping[str, Any] | None = None,
    end_usage: Mapping[str, Any] | None = None,
    stop_reason: str = "end_turn",
) -> list[bytes]:
    """The writes of a whole answer, one per event: ``message_start``, blocks, ``message_delta``, ``message_stop``.

    ``start_usage`` stands in ``message_start``; ``end_usage``, cumulative, in ``message_delta``. By default the latter
    has only ``output_tokens``, as the provider's older models send it.
    """
    message: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-scripted",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": start_usage or {"input_tokens": 25, "output_tokens": 1},
    }
    events: list[Mapping[str, Any]] = [{"type": "message_start", "message": message}]
    index = 0
    if thinking:
        deltas: list[Mapping[str, Any]] = [{"type": "thinking_delta", "thinking": part} for part in thinking]
        deltas.append({"type": "signature_delta", "signature": "c2lnbmVk"})
        events += _anthropic_block(index, {"type": "thinking", "thinking": "", "signature": ""}, deltas)
        index += 1
    events += _anthropic_block(
        index, {"type": "text", "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
    )
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": end_usage or {"output_tokens": 12}})
    events.append({"type": "message_stop"})
    return [anthropic_event(event) for event in events]


def _anthropic_block(
    index: int, block: Mapping[str, Any], deltas: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": block},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


# --- Google ------------------------------------------------------------------------------------------------------


def google_event(event: Mapping[str, Any]) -> bytes:
    """One event of ``streamGenerateContent?alt=sse``, line ends as Google sends them."""
    return f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode()


GOOGLE_ERROR = google_event({"error": {"code": 503, "message": SECRET, "status": "UNAVAILABLE"}})


def google_answer(
    pieces: Sequence[str],
    *,
    thinking: Sequence[str] = (),
    prompt: int = 25,
    cached: int = 0,
    per_piece: int = 4,
    per_thought: int = 10,
    finish_reason: str = "STOP",
) -> list[bytes]:
    """The writes of a whole answer, one per chunk; every chunk has the cumulative ``usageMetadata``.

    Each thought adds ``per_thought`` to ``thoughtsTokenCount`` and each piece ``per_piece`` to
    ``candidatesTokenCount``; a count is left out while it is 0, as Google does.
    """
    parts: list[dict[str, Any]] = [{"text": part, "thought": True} for part in thinking]
    parts += [{"text": piece} for piece in pieces]
    writes = []
    thoughts = candidates = 0
    for number, part in enumerate(parts, 1):
        thoughts += per_thought if part.get("thought") else 0
        candidates += 0 if part.get("thought") else per_piece
        counts = {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": cached,
            "thoughtsTokenCount": thoughts,
            "candidatesTokenCount": candidates,
            "totalTokenCount": prompt + thoughts + candidates,
        }
        candidate: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        if number == len(parts):
            candidate["finishReason"] = finish_reason
        usage = {name: count for name, count in counts.items() if count}
        said = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-scripted"}
        writes.append(google_event({**said, "responseId": "g-1"}))
    return writes


# --- the format of the many others -------------------------------------------------------------------------------


def openai_answer(
    pieces: Sequence[str], *, finish_reason: str = "stop", usage: Mapping[str, Any] | None = None
) -> list[bytes]:
    """The writes of a whole answer in OpenAI's format; the figures come in a chunk after the finish reason."""
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}]}
        for piece in pieces
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason}]})
    if usage is not None:
        chunks.append({"choices": [], "usage": usage})
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "scripted"}
    return [f"data: {json.dumps({**head, **chunk}, ensure_ascii=False)}\n\n".encode() for chunk in chunks] + [
        b"data: [DONE]\n\n"
    ]
