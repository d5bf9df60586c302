"""A scripted provider: speaks the OpenAI chat-completions format over HTTP and misbehaves as asked.

In a test it runs on a thread of its own::

    with Provider() as provider:
        provider.next(Script(status=503), Script(pieces=("Hel", "lo")))  # one per request, in order
        ...  # the code under test calls provider.base_url
        provider.wait_closed(2)
        assert provider.requests[1].ended == "completed"

As a process (``python -m tests.support.provider --port 0``) it prints its address and serves until it is
stopped. Black-box clients choose the script in the last user message, ``[[script:NAME]]`` (``SCRIPTS``) or
``[[script:{"pieces": ["a", "b"], "piece_delay_s": 0.02}]]``; they read the log with ``GET /requests``,
empty it with ``DELETE /requests`` and set the default script with ``PUT /script``.

The body of a response is compiled once per script into the bytes of each write, and the writes are timed by
``loop.call_at``: a delta costs little more than its system call.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import uvloop
from aiohttp import web

from app.fake_core.receiver import reset_connection
from tests.support.servers import WAIT_S, AppThread, Journal

SECRET = "sk-provider-secret-7f3a9b-never-show-this"
"""Stands in every error body and error event; found anywhere else it shows that a provider's words leaked."""

DEFAULT_PIECES = ("A turnstone ", "turns stones ", "over: ", "작은 ", "새 🐦", ".")


def _odd_delta(delta: bytes) -> bytes:
    return b'data: {"id":"x","choices":[{"index":0,"delta":%s,"finish_reason":null}]}\n\n' % delta


_ERROR = b'data: {"error":{"message":"upstream broke: %s","type":"server_error","code":500}}\n\n' % SECRET.encode()

RAW_EVENTS: dict[str, bytes] = {
    "garbage_line": b"<html>this is no event stream</html>\n\n",
    "invalid_json": b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"cut\n\n',
    "invalid_utf8": _odd_delta(b'{"content":"\xff\xfe\xc3"}'),
    "no_choices": b'data: {"id":"x","object":"chat.completion.chunk"}\n\n',
    "null_choices": b'data: {"id":"x","object":"chat.completion.chunk","choices":null}\n\n',
    "empty_choices": b'data: {"id":"x","object":"chat.completion.chunk","choices":[]}\n\n',
    "not_an_object": b"data: [1,2,3]\n\n",
    "wrong_types": _odd_delta(b'{"content":{"text":[1]}}'),
    "error_event": _ERROR,
    "named_error_event": b"event: error\n" + _ERROR,
    "ping": b": ping\n\n",
    "empty_line": b"\n",
    "role_only": _odd_delta(b'{"role":"assistant"}'),
    "empty_delta": _odd_delta(b"{}"),
    "empty_content": _odd_delta(b'{"content":""}'),
    "null_content": _odd_delta(b'{"content":null}'),
    "null_delta": _odd_delta(b"null"),
}
"""What ``Script.insert`` can put between the pieces, by name."""

Ending = Literal["finish", "eof", "close", "reset", "hang"]
Ended = Literal["completed", "client_closed", "cut", "stopped"]

_ID = b"chatcmpl-scripted"
"""Stands for the answer's id in what is compiled; each request has an id of its own, of the same length."""
_STAMP = b"@0000000000.000000 "
_STAMP_FORMAT = b"@%017.6f "
_LOOK_AGAIN_S = 0.01
_BEFORE_RESET_S = 0.02  # between two looks at whether the client has read what was sent: a reset throws the rest away


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Token figures as the provider reports them.

    ``completion_tokens`` of ``None`` stands for the number of text and reasoning pieces, ``total_tokens`` of
    ``None`` for the sum. ``cached_tokens`` and ``reasoning_tokens`` of ``None`` leave their details out.
    """

    prompt_tokens: int = 25
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the provider does with one request. All fields can be combined, unless said.

    Attributes:
        pieces: the answer's text, one event each. A lone surrogate is sent as its JSON escape.
        reasoning: ``reasoning_content`` events before the text.
        role_first: begin with OpenAI's ``{"role": "assistant", "content": ""}``.
        finish_reason: of the last choice; ``None`` leaves the finishing event out.
        done: send ``data: [DONE]``.
        usage: the figures, or ``None`` for none at all.
        usage_json: raw JSON in the place of ``usage``'s figures.
        usage_in: ``own``: an event of its own, if the request asks by ``stream_options.include_usage``;
            ``finish``: in the finishing event; ``every``: in every event, ``completion_tokens`` growing. The
            last two come unasked.
        insert: ``(i, what)``: put ``what``, a name in ``RAW_EVENTS`` or else the text itself, before text
            piece ``i``.
        headers_delay_s, first_byte_delay_s: waits before the headers, and between them and the body.
        piece_delay_s: wait before each piece (of reasoning too); a sequence gives one per piece, the last one
            repeats.
        stamp: each text piece begins with ``@SECONDS ``, ``time.perf_counter()`` when it was sent (see
            ``read_stamps``). Not together with ``together`` and ``split_every``.
        status, headers: of the response; a status of 400 or more has an error body that holds ``SECRET``.
        ending: ``finish``: all goes well. ``eof``: the HTTP body ends properly, without finishing event and
            ``[DONE]``. ``close``: the connection is closed (FIN) in the middle of the body. ``reset``: the
            same with RST. ``hang``: nothing more comes, ever.
        ending_at: text pieces sent before an ``ending`` other than ``finish``; -1: not even the headers;
            ``None``: all.
        chunked: use HTTP chunks; otherwise the body ends with the connection, so that ``close`` looks clean.
        crlf, space_after_data, escape_ascii: spelling of the events.
        together: this many events in one write.
        split_every: cut each write every so many bytes, ``split_gap_s`` apart.
    """

    pieces: Sequence[str] = DEFAULT_PIECES
    reasoning: Sequence[str] = ()
    role_first: bool = True
    finish_reason: str | None = "stop"
    done: bool = True
    usage: Figures | None = Figures()
    usage_json: str | None = None
    usage_in: Literal["own", "finish", "every"] = "own"
    insert: Sequence[tuple[int, str]] = ()

    headers_delay_s: float = 0.0
    first_byte_delay_s: float = 0.0
    piece_delay_s: float | Sequence[float] = 0.0
    stamp: bool = False

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()

    ending: Ending = "finish"
    ending_at: int | None = None

    chunked: bool = True
    crlf: bool = False
    space_after_data: bool = True
    escape_ascii: bool = False
    together: int = 1
    split_every: int | None = None
    split_gap_s: float = 0.0

    def __post_init__(self) -> None:
        if self.stamp and (self.together != 1 or self.split_every is not None):
            raise ValueError("a stamped piece is written in one go")
        for name in ("pieces", "reasoning", "headers", "insert"):
            # tuples can be hashed, so a script's bytes are compiled once
            value = tuple(tuple(item) if isinstance(item, list) else item for item in getattr(self, name))
            msgspec.structs.force_setattr(self, name, value)
        if not isinstance(self.piece_delay_s, (int, float)):
            msgspec.structs.force_setattr(self, "piece_delay_s", tuple(self.piece_delay_s))

    @property
    def text(self) -> str:
        """The whole answer."""
        return _join_surrogates("".join(self.pieces))

    def delay_before(self, index: int) -> float:
        """Seconds to wait before piece ``index``."""
        if isinstance(self.piece_delay_s, (int, float)):
            return self.piece_delay_s
        return self.piece_delay_s[min(index, len(self.piece_delay_s) - 1)] if self.piece_delay_s else 0.0


SCRIPTS: dict[str, Script] = {
    "default": Script(),
    "empty": Script(pieces=()),
    "slow": Script(pieces=tuple(f"word{i} " for i in range(100)), piece_delay_s=0.05),
    "long": Script(pieces=tuple(f"word{i} " for i in range(1000))),
    "length": Script(finish_reason="length"),
    "filtered": Script(finish_reason="content_filter"),
    "reasoning": Script(
        reasoning=("Let me think. ", "A bird."), usage=Figures(completion_tokens=20, reasoning_tokens=12)
    ),
    "cached": Script(usage=Figures(prompt_tokens=100, cached_tokens=64)),
    "no_usage": Script(usage=None),
    "no_done": Script(done=False),
    "cumulative_usage": Script(usage_in="every"),
    "emoji_split": Script(pieces=("smile: ", "\ud83d", "\ude00", "!")),
    "every_byte": Script(split_every=1),
    "crlf": Script(crlf=True, space_after_data=False),
    "nul": Script(pieces=("before", "\x00", "after")),
    "huge_piece": Script(pieces=("x" * 1_048_576,)),
    "pings": Script(insert=tuple((i, "ping") for i in range(len(DEFAULT_PIECES)))),
    "odd_deltas": Script(
        insert=(
            (0, "role_only"),
            (1, "empty_content"),
            (2, "null_content"),
            (3, "empty_delta"),
            (4, "empty_choices"),
        )
    ),
    "hang_before_headers": Script(ending="hang", ending_at=-1),
    "hang_before_text": Script(ending="hang", ending_at=0),
    "hang_midway": Script(ending="hang", ending_at=3),
    "close_midway": Script(ending="close", ending_at=3),
    "eof_midway": Script(ending="eof", ending_at=3),
    "clean_fin_midway": Script(ending="close", ending_at=3, chunked=False),
    "reset_midway": Script(ending="reset", ending_at=3),
    **{f"broken_{name}": Script(insert=((3, name),)) for name in RAW_EVENTS if name.startswith(("garbage", "invalid"))},
    "error_event": Script(insert=((3, "error_event"),), ending="eof", ending_at=3),
    "error_event_first": Script(insert=((0, "error_event"),), ending="eof", ending_at=0),
    **{f"status_{status}": Script(status=status) for status in (400, 401, 403, 404, 413, 422, 500, 502, 503)},
    "status_429": Script(status=429, headers=(("Retry-After", "7"),)),
}
"""Scripts a black-box client can name; ``Provider.named`` adds to them."""


def _join_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def read_stamps(text: str) -> Iterator[float]:
    """Send times of the stamped pieces in ``text``, in order (``time.perf_counter()`` of any process)."""
    return (float(match) for match in re.findall(r"@(\d{10}\.\d{6}) ", text))


# --- a script as bytes ---


class Step(NamedTuple):
    """One write, ``delay`` seconds after the one before it; after it ``pieces`` text pieces are out."""

    delay: float
    data: bytes
    pieces: int
    stamp_at: int = -1


class Program(NamedTuple):
    """All writes of a response and what comes after them."""

    steps: tuple[Step, ...]
    ending: Ending
    keep_alive: bool


def _dumps(value: object, *, ascii_only: bool) -> bytes:
    text = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair exists as a JSON escape only
        return json.dumps(value, separators=(",", ":")).encode()


def _usage(script: Script, written: int | None = None) -> dict[str, Any] | None:
    """The usage object; with ``written``, what it is after so many pieces."""
    if script.usage_json is not None:
        parsed: dict[str, Any] = json.loads(script.usage_json)
        return parsed
    figures = script.usage
    if figures is None:
        return None
    count = len(script.pieces) + len(script.reasoning)
    completion = count if figures.completion_tokens is None else figures.completion_tokens
    final = written is None or written >= count
    if not final and written is not None:
        completion = completion * written // max(count, 1)
    total = figures.total_tokens if final and figures.total_tokens is not None else figures.prompt_tokens + completion
    usage: dict[str, Any] = {
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": total,
    }
    if figures.cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": figures.cached_tokens}
    if figures.reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": figures.reasoning_tokens}
    return usage


class _Event(NamedTuple):
    delay: float
    data: bytes
    pieces: int


class _StreamWriter:
    """Writes the events of one script down, in order."""

    def __init__(self, script: Script, model: str, *, include_usage: bool) -> None:
        self._script = script
        self._model = model
        self._include_usage = include_usage
        self._written = 0  # pieces of reasoning and of text
        self._pieces = 0  # pieces of text
        self.events: list[_Event] = []

    def write(self) -> list[_Event]:
        script = self._script
        cut = script.ending != "finish"
        count = len(script.pieces)
        last = count if not cut or script.ending_at is None else min(script.ending_at, count)
        if script.role_first:
            self._chunk({"role": "assistant", "content": ""}, 0.0)
        for text in script.reasoning:
            self._piece({"reasoning_content": text})
        for index in range(last):
            self._insert(index)
            self._pieces += 1
            text = script.pieces[index]
            self._piece({"content": _STAMP.decode() + text if script.stamp else text})
        if cut or last == count:
            self._insert(last)
        if not cut:
            self._finish()
        return self.events

    def _piece(self, delta: dict[str, Any]) -> None:
        self._written += 1
        self._chunk(delta, self._script.delay_before(self._written - 1))

    def _finish(self) -> None:
        script = self._script
        if script.finish_reason is not None:
            self._chunk({}, 0.0, finish_reason=script.finish_reason)
        has_usage = script.usage is not None or script.usage_json is not None
        if script.usage_in == "own" and self._include_usage and has_usage:
            self._add({**self._frame(), "choices": [], "usage": _usage(script)}, 0.0)
        if script.done:
            self._data(b"[DONE]", 0.0)

    def _frame(self) -> dict[str, Any]:
        return {
            "id": _ID.decode(),
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": self._model,
        }

    def _chunk(self, delta: dict[str, Any], delay: float, *, finish_reason: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        frame = {**self._frame(), "choices": [choice]}
        where = self._script.usage_in
        if where == "every":
            frame["usage"] = _usage(self._script, self._written)
        elif where == "finish" and finish_reason is not None:
            frame["usage"] = _usage(self._script)
        elif self._include_usage:
            frame["usage"] = None  # as OpenAI does
        self._add(frame, delay)

    def _add(self, frame: dict[str, Any], delay: float) -> None:
        self._data(_dumps(frame, ascii_only=self._script.escape_ascii), delay)

    def _data(self, data: bytes, delay: float) -> None:
        end = b"\r\n\r\n" if self._script.crlf else b"\n\n"
        self._raw((b"data: " if self._script.space_after_data else b"data:") + data + end, delay)

    def _insert(self, index: int) -> None:
        for at, what in self._script.insert:
            if at == index:
                self._raw(RAW_EVENTS.get(what) or what.encode(), 0.0)

    def _raw(self, data: bytes, delay: float) -> None:
        self.events.append(_Event(delay, data, self._pieces))


def _head(script: Script, content_type: str, length: int | None, *, keep_alive: bool) -> bytes:
    reason = HTTPStatus(script.status).phrase
    lines = [f"HTTP/1.1 {script.status} {reason}", f"Content-Type: {content_type}", "Cache-Control: no-cache"]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    elif script.chunked:
        lines.append("Transfer-Encoding: chunked")
    if not keep_alive:
        lines.append("Connection: close")
    lines += [f"{name}: {value}" for name, value in script.headers]
    return "\r\n".join([*lines, "", ""]).encode()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


@lru_cache(maxsize=128)
def _compile_stream(script: Script, model: str, *, include_usage: bool) -> Program:
    if script.ending != "finish" and script.ending_at == -1:
        return Program((), script.ending, keep_alive=False)
    head = _head(script, "text/event-stream; charset=utf-8", None, keep_alive=script.chunked)
    steps = [Step(script.headers_delay_s, head, 0)]
    events = _StreamWriter(script, model, include_usage=include_usage).write()
    for number, batch in enumerate(_batches(events, script.together)):
        data = b"".join(event.data for event in batch)
        delay = sum(event.delay for event in batch) + (script.first_byte_delay_s if number == 0 else 0.0)
        before = steps[-1].pieces
        size = script.split_every or len(data)
        parts = [data[at : at + size] for at in range(0, len(data), size)]
        for index, part in enumerate(parts):
            written = _framed(part) if script.chunked else part
            whole = index == len(parts) - 1
            steps.append(
                Step(
                    delay if index == 0 else script.split_gap_s,
                    written,
                    batch[-1].pieces if whole else before,
                    written.find(_STAMP) if script.stamp else -1,
                )
            )
    if script.chunked and script.ending in ("finish", "eof"):
        last = steps[-1]
        steps[-1] = last._replace(data=last.data + b"0\r\n\r\n")
    return Program(tuple(steps), script.ending, keep_alive=script.chunked and script.ending in ("finish", "eof"))


def _batches(events: Sequence[_Event], size: int) -> Iterator[Sequence[_Event]]:
    return (events[at : at + size] for at in range(0, len(events), size))


@lru_cache(maxsize=128)
def _compile_whole(script: Script, model: str) -> Program:
    """A response that is one JSON document: the whole answer, or the error of a status of 400 or more."""
    if script.ending != "finish" and script.ending_at == -1:
        return Program((), script.ending, keep_alive=False)
    if script.status >= HTTPStatus.BAD_REQUEST:
        body = _error(script.status)
    else:
        body = _dumps(_completion(script, model), ascii_only=script.escape_ascii)
    head = _head(script, "application/json", len(body), keep_alive=True)
    cut = script.ending != "finish"
    refused = script.status >= HTTPStatus.BAD_REQUEST
    thinking = 0.0 if refused else sum(script.delay_before(index) for index in range(len(script.pieces)))
    steps = (
        Step(script.headers_delay_s, head, 0),
        Step(
            script.first_byte_delay_s + thinking,
            body[: len(body) // 2] if cut else body,
            0 if cut or refused else len(script.pieces),
        ),
    )
    return Program(steps, "close" if script.ending == "eof" else script.ending, keep_alive=not cut)


def _completion(script: Script, model: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "".join(script.pieces)}
    if script.reasoning:
        message["reasoning_content"] = "".join(script.reasoning)
    answer: dict[str, Any] = {
        "id": _ID.decode(),
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": script.finish_reason}],
    }
    usage = _usage(script)
    return answer if usage is None else {**answer, "usage": usage}


def _error(status: int) -> bytes:
    message = f"The request with key {SECRET} failed: {HTTPStatus(status).phrase}"
    return json.dumps({"error": {"message": message, "type": "provider_error", "code": status}}).encode()


# --- playing it ---


@dataclass(slots=True, eq=False)
class ProviderRequest:
    """What came in and what became of it.

    Times are ``time.monotonic()`` seconds, the same clock in every process of a machine.

    Attributes:
        headers: with names in lower case.
        body: the parsed JSON.
        client_port: of the connection that it came on.
        pieces_sent: text pieces written completely.
        first_byte_at, ended_at: ``None`` until then.
        ended: ``completed``: everything was written (an HTTP error too). ``client_closed``: the client closed
            the connection; ``ended_at`` is when that was seen. ``cut``: closed or reset by the script.
            ``stopped``: the provider was stopped.
    """

    number: int
    headers: Mapping[str, str]
    body: dict[str, Any]
    script: Script
    client_port: int
    started_at: float = field(default_factory=time.monotonic)
    first_byte_at: float | None = None
    ended_at: float | None = None
    ended: Ended | None = None
    pieces_sent: int = 0

    @property
    def answer_id(self) -> str:
        """The id that the answer bears (unless its script cuts the events within it)."""
        return f"chatcmpl-{self.number:08}"

    @property
    def authorization(self) -> str | None:
        """The header of this name."""
        return self.headers.get("authorization")

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as it was sent."""
        messages: list[dict[str, Any]] = self.body.get("messages", [])
        return messages

    @property
    def last_user_text(self) -> str:
        """The last user message's text."""
        return _last_user_text(self.body)

    @property
    def text_sent(self) -> str:
        """The answer's text so far (without stamps)."""
        return _join_surrogates("".join(self.script.pieces[: self.pieces_sent]))

    def summary(self) -> dict[str, Any]:
        """The record as JSON, without prompt and headers."""
        return {
            "number": self.number,
            "started_at": self.started_at,
            "first_byte_at": self.first_byte_at,
            "ended_at": self.ended_at,
            "ended": self.ended,
            "pieces_sent": self.pieces_sent,
            "last_user_text": self.last_user_text[:200],
        }


def _last_user_text(body: Mapping[str, Any]) -> str:
    for message in reversed(body.get("messages") or []):
        if message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            return "".join(part.get("text", "") for part in content or [])
    return ""


class _WrittenByHand(web.StreamResponse):
    """Tells aiohttp that the response has been written on the transport already."""

    def __init__(self, *, keep_alive: bool) -> None:
        super().__init__()
        self._keeps = keep_alive

    @property
    def keep_alive(self) -> bool | None:
        return self._keeps

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class _Player:
    """Makes the writes of a program at their times. One loop callback per write, no task, no drift."""

    def __init__(
        self, transport: asyncio.Transport, program: Program, record: ProviderRequest, holds: Callable[[], bool]
    ) -> None:
        self._transport = transport
        self._holds = holds
        self._steps = program.steps
        self._record = record
        self._id = record.answer_id.encode()
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._loop.create_future()
        self._next = 0
        self._due = self._loop.time()
        self._handle: asyncio.Handle | None = None

    async def play(self) -> None:
        self._schedule()
        try:
            await self._finished
        finally:
            if self._handle is not None:
                self._handle.cancel()

    def _schedule(self) -> None:
        if self._next == len(self._steps):
            self._finished.set_result(None)
            return
        delay = self._steps[self._next].delay
        if delay > 0:
            self._due += delay
            self._handle = self._loop.call_at(self._due, self._write)
        else:
            # its own turn of the loop: uvloop joins the writes of one turn
            self._handle = self._loop.call_soon(self._write)

    def _write(self) -> None:
        if self._transport.is_closing():
            return  # the client has left in this tick; the record says so
        if self._record.pieces_sent and self._holds():
            self._due = self._loop.time()
            self._handle = self._loop.call_later(_LOOK_AGAIN_S, self._write)
            return
        _, data, pieces, stamp_at = self._steps[self._next]
        if stamp_at >= 0:
            stamp = _STAMP_FORMAT % time.perf_counter()
            data = data[:stamp_at] + stamp + data[stamp_at + len(stamp) :]
        self._transport.write(data.replace(_ID, self._id))
        record = self._record
        record.pieces_sent = pieces
        if record.first_byte_at is None:
            record.first_byte_at = time.monotonic()
        self._next += 1
        self._schedule()


async def _read_by_the_client(transport: asyncio.Transport) -> None:
    """Wait until nothing that was sent is still to be read, as the kernel lists it."""
    ours, theirs = (transport.get_extra_info(name)[1] for name in ("sockname", "peername"))
    deadline = time.monotonic() + WAIT_S
    unread = True
    while unread and time.monotonic() < deadline:
        await asyncio.sleep(_BEFORE_RESET_S)
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        ends = [row for row in rows if row[1].endswith(f":{theirs:04X}") and row[2].endswith(f":{ours:04X}")]
        unread = any(int(row[4].partition(":")[2], 16) for row in ends)


class UnknownScriptError(Exception):
    """A marker names a script that does not exist or is not one."""


class Provider(AppThread):
    """The scripted provider on a thread of its own.

    A request gets the script its last user message marks, else the next one of ``next``, else ``default``.

    Attributes:
        holding: while it is set, nothing follows the first piece of an answer; so a turn runs as long as a test needs.
    """

    def __init__(self, default: Script | None = None, *, port: int = 0) -> None:
        super().__init__(self._application, port=port, new_loop=uvloop.new_event_loop)
        self.default = default or Script()
        self.named: dict[str, Script] = {}
        self.holding = False
        self.requests: Journal[ProviderRequest] = Journal()
        self._queue: deque[Script] = deque()
        self._numbers = itertools.count(1)

    # what a test uses

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL."""
        return f"{self.url}/v1"

    @property
    def active(self) -> int:
        """Requests that have not ended."""
        return sum(record.ended is None for record in self.requests)

    def next(self, *scripts: Script) -> None:
        """Use these, one per request, before ``default``."""
        self._queue.extend(scripts)

    def reset(self) -> None:
        """Forget the log and the scripts that were set."""
        self._queue.clear()
        self.named.clear()
        self.default = Script()
        self.holding = False
        self.requests.clear()

    def wait_requests(self, count: int = 1, timeout: float = WAIT_S) -> list[ProviderRequest]:
        """Block until ``count`` requests have come; returns all."""
        return self.requests.wait(lambda records: len(records) >= count, timeout)

    def wait_closed(self, count: int = 1, timeout: float = WAIT_S) -> list[ProviderRequest]:
        """Block until ``count`` requests have ended, whichever way; returns those that did."""
        records = self.requests.wait(lambda items: sum(r.ended is not None for r in items) >= count, timeout)
        return [record for record in records if record.ended is not None]

    async def requests_reach(self, count: int = 1, timeout: float = WAIT_S) -> list[ProviderRequest]:
        """``wait_requests`` for a coroutine."""
        return await asyncio.to_thread(self.wait_requests, count, timeout)

    async def closed_reach(self, count: int = 1, timeout: float = WAIT_S) -> list[ProviderRequest]:
        """``wait_closed`` for a coroutine."""
        return await asyncio.to_thread(self.wait_closed, count, timeout)

    # the server

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._completions)
        app.router.add_post("/chat/completions", self._completions)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/requests", self._show_requests)
        app.router.add_delete("/requests", self._forget_requests)
        app.router.add_put("/script", self._set_default)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted", "object": "model"}]})

    async def _show_requests(self, request: web.Request) -> web.Response:
        return web.json_response([record.summary() for record in self.requests])

    async def _forget_requests(self, request: web.Request) -> web.Response:
        self.requests.clear()
        return web.Response(status=204)

    async def _set_default(self, request: web.Request) -> web.Response:
        try:
            self.default = msgspec.json.decode(await request.read(), type=Script)
        except msgspec.MsgspecError as error:
            return web.Response(status=400, text=str(error))
        return web.Response(status=204)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        try:
            script = self._choose(body)
        except UnknownScriptError as error:
            return web.json_response({"error": {"message": str(error), "code": "unknown_script"}}, status=400)
        headers = {name.lower(): value for name, value in request.headers.items()}
        assert request.transport is not None, "it has just come in"
        port = request.transport.get_extra_info("peername")[1]
        record = ProviderRequest(next(self._numbers), headers, body, script, port)
        self.requests.add(record)
        return await self._answer(request, record)

    def _choose(self, body: Mapping[str, Any]) -> Script:
        marked = self._marked(_last_user_text(body))
        if marked is not None:
            return marked
        return self._queue.popleft() if self._queue else self.default

    def _marked(self, text: str) -> Script | None:
        _, marker, rest = text.rpartition("[[script:")
        if not marker:
            return None
        try:
            if rest.startswith("{"):
                value, _ = json.JSONDecoder().raw_decode(rest)
                return msgspec.convert(value, Script)
        except ValueError as error:  # json's and msgspec's errors
            raise UnknownScriptError(f"not a script: {error}") from error
        name = rest.partition("]]")[0]
        script = self.named.get(name) or SCRIPTS.get(name)
        if script is None:
            raise UnknownScriptError(f"no script is called {name!r}")
        return script

    async def _answer(self, request: web.Request, record: ProviderRequest) -> web.StreamResponse:
        transport = request.transport
        ended: Ended = "completed"
        program = self._compile(record)
        try:
            if transport is None:
                raise asyncio.CancelledError
            await _Player(transport, program, record, lambda: self.holding).play()
            if program.ending == "hang":
                await asyncio.get_running_loop().create_future()
            elif program.ending == "reset":
                await _read_by_the_client(transport)
                reset_connection(transport)
            elif program.ending == "close" or not program.keep_alive:
                transport.close()
            if program.ending in ("close", "reset"):
                ended = "cut"
        except asyncio.CancelledError:
            # aiohttp cancels the handler when the connection is lost
            ended = "stopped" if self.stopping else "client_closed"
            raise
        finally:
            record.ended_at = time.monotonic()
            record.ended = ended
            self.requests.changed()
        return _WrittenByHand(keep_alive=program.keep_alive)

    def _compile(self, record: ProviderRequest) -> Program:
        body, script = record.body, record.script
        model = str(body.get("model", "scripted"))
        if script.status >= HTTPStatus.BAD_REQUEST or not body.get("stream"):
            return _compile_whole(script, model)
        options = body.get("stream_options") or {}
        return _compile_stream(script, model, include_usage=bool(options.get("include_usage")))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="{}", help="the default script as JSON")
    options = parser.parse_args(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with Provider(msgspec.json.decode(options.script, type=Script), port=options.port) as provider:
        print(provider.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
