"""A client that costs little: it reads WebSocket frames by hand and looks for the pieces' send times in their bytes.

It speaks the frames of Turnstone's ``/chat``, of which ``bench.usual`` understands enough. Every piece of an answer
begins with ``@SECONDS``, the provider's ``time.perf_counter()`` when it sent it; on one machine that is one clock for
all processes. So pieces are counted by their stamps, however many of them a frame joins.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import random
import re
import time
from array import array
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from bench.targets import BenchError

_STAMP = re.compile(rb"@(\d{10}\.\d{6}) ")
_TERMINAL = {"done", "cancelled", "error"}
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_WAIT_S = 60.0
_participants = itertools.count(1)
_labels = itertools.count(1)


class Meter:
    """Counts pieces, and keeps how late each one came while ``recording``."""

    def __init__(self) -> None:
        self.pieces = 0
        self.recording = False
        self.lags_s = array("d")

    def take(self, data: bytes, now: float) -> list[float]:
        """Note the pieces in ``data``, which came at ``now``; returns their stamps."""
        stamps = [float(stamp) for stamp in _STAMP.findall(data)]
        self.pieces += len(stamps)
        if self.recording:
            self.lags_s.extend([now - stamp for stamp in stamps])
        return stamps


class Turn:
    """One turn as the client sees it. Times are ``time.perf_counter()`` seconds.

    Attributes:
        label: stands in the message, so that the provider's record can be found.
        first_at, first_stamp: when the first piece came, and when the provider sent it.
        pieces: how many came.
        first, ended: resolved with the first piece (or the end), and with the terminal frame.
    """

    def __init__(self, label: str) -> None:
        loop = asyncio.get_running_loop()
        self.label = label
        self.turn_id = label
        self.sent_at = time.perf_counter()
        self.first_at = 0.0
        self.first_stamp = 0.0
        self.pieces = 0
        self.ended_at = 0.0
        self.first: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[dict[str, Any]] = loop.create_future()

    def end(self, frame: dict[str, Any]) -> None:
        """Note the terminal frame."""
        self.ended_at = time.perf_counter()
        if not self.first.done():
            self.first.set_result(None)
        if not self.ended.done():
            self.ended.set_result(frame)


class Connection(asyncio.Protocol):
    """One WebSocket, with one turn at a time."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._open = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.participant = next(_participants)
        self.turn: Turn | None = None

    def ask(self, message: str = "How does a hash map work?") -> Turn:
        """Send a message in this connection's session; returns at once."""
        turn = self.turn = Turn(f"b{next(_labels)}")
        self._send(
            {
                "message": f"{turn.label} {message}",
                "turn_id": turn.turn_id,
                "exam_id": 1,
                "participant_id": self.participant,
            }
        )
        return turn

    def cancel(self) -> float:
        """Ask to cancel the turn; returns when."""
        assert self.turn is not None, "cancel what?"
        at = time.perf_counter()
        self._send({"type": "cancel", "turn_id": self.turn.turn_id})
        return at

    def cancel_elsewhere(self, turn: Turn, session_id: str) -> float:
        """Ask to cancel a turn that another connection began; returns when."""
        at = time.perf_counter()
        self._send({"type": "cancel", "turn_id": turn.turn_id, "session_id": session_id})
        return at

    def new_session(self) -> None:
        """From now on ask as another participant."""
        self.participant = next(_participants)

    def read(self, reading: bool) -> None:
        """Read what comes, or leave it in the socket."""
        assert self._transport is not None, "not connected"
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, frame: Mapping[str, Any], opcode: int = _TEXT) -> None:
        self._write(opcode, json.dumps(frame).encode())

    def _write(self, opcode: int, payload: bytes) -> None:
        assert self._transport is not None, "not connected"
        # A client has to mask; with a mask of zeros the payload stays as it is.
        size = len(payload)
        head = bytes((0x80 | opcode, 0x80 | size)) if size < 126 else bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2)
        self._transport.write(head + b"\0\0\0\0" + payload)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        host = "{}:{}".format(*transport.get_extra_info("peername")[:2])
        transport.write(
            f"GET /chat HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dHVybnN0b25lLWJlbmNoIQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self._rest:
            data = self._rest + data
        if not self._open:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            if b" 101 " not in head.split(b"\r\n", 1)[0]:
                self.opened.set_exception(BenchError(f"no WebSocket: {head[:80]!r}"))
                return
            self._open = True
            self.opened.set_result(None)
        self._rest = self._frames(data, now)

    def connection_lost(self, exc: Exception | None) -> None:
        lost = BenchError("the connection was lost")
        if not self.opened.done():
            self.opened.set_exception(lost)
        if self.turn is not None and not self.turn.ended.done():
            self.turn.end({"type": "error", "code": "connection_lost"})

    def _frames(self, data: bytes, now: float) -> bytes:
        """Handle whole frames; returns what is left. A server's frames are unmasked, and these two never split one."""
        at, size = 0, len(data)
        while size - at >= 2:
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[begin : begin + 2]), begin + 2
            elif length == 127:
                length, begin = int.from_bytes(data[begin : begin + 8]), begin + 8
            if begin + length > size:
                break
            self._frame(data[at] & 15, data[begin : begin + length], now)
            at = begin + length
        return data[at:]

    def _frame(self, opcode: int, payload: bytes, now: float) -> None:
        turn = self.turn
        if opcode == _PING:
            self._write(_PONG, payload)
        elif opcode == _TEXT and turn is not None:
            if payload.startswith(b'{"type":"delta"'):
                stamps = self._meter.take(payload, now)
                turn.pieces += len(stamps)
                if not turn.first_at and stamps:
                    turn.first_at, turn.first_stamp = now, stamps[0]
                    turn.first.set_result(None)
            else:
                frame = json.loads(payload)
                if frame["type"] in _TERMINAL:
                    turn.end(frame)


class DirectStream(asyncio.Protocol):
    """The provider's stream without anything between: how late pieces are for the benchmark's own reasons."""

    _BODY = json.dumps(
        {"model": "scripted", "stream": True, "messages": [{"role": "user", "content": "direct"}]}
    ).encode()

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: provider\r\nContent-Length: {len(self._BODY)}\r\n\r\n"
        transport.write(head.encode() + self._BODY)

    def data_received(self, data: bytes) -> None:
        whole, end, self._rest = (self._rest + data).rpartition(b"\n\n")
        self._meter.take(whole + end, time.perf_counter())

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()


@asynccontextmanager
async def connections(port: int, count: int, meter: Meter) -> AsyncIterator[list[Connection]]:
    """Open WebSockets, a session of its own for each; they are dropped at the end."""
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []
    try:
        for _ in range(count):
            _, connection = await loop.create_connection(lambda: Connection(meter), "127.0.0.1", port)
            opened.append(connection)
            await wait_for(connection.opened, "a connection")
        yield opened
    finally:
        for connection in opened:
            connection.close()


@asynccontextmanager
async def direct_streams(port: int, count: int, meter: Meter, per_s: float) -> AsyncIterator[None]:
    """Streams from the provider itself, started at ``per_s``; they are dropped at the end."""
    loop = asyncio.get_running_loop()
    uneven = random.Random(1)  # so that pieces do not come in step
    opened: list[DirectStream] = []
    try:
        for _ in range(count):
            _, stream = await loop.create_connection(lambda: DirectStream(meter), "127.0.0.1", port)
            opened.append(stream)
            await asyncio.sleep(uneven.random() * 2 / per_s)
        yield
    finally:
        for stream in opened:
            stream.close()


async def wait_for(future: asyncio.Future[Any], what: str) -> Any:
    """The future's result.

    Raises:
        BenchError: it did not come in time; the message says ``what`` was waited for.
    """
    try:
        async with asyncio.timeout(_WAIT_S):
            return await asyncio.shield(future)
    except TimeoutError:
        raise BenchError(f"waited {_WAIT_S:.0f} s in vain for {what}") from None


async def all_done(turns: Sequence[Turn], *, kind: str = "done", pieces: int | None = None) -> None:
    """Wait for the turns' ends.

    Raises:
        BenchError: one ended otherwise, or with another number of pieces: then nothing measured of it counts.
    """
    for turn in turns:
        frame = await wait_for(turn.ended, f"the end of a turn with {turn.pieces} of {pieces or 'some'} pieces")
        if frame["type"] != kind or (pieces is not None and turn.pieces != pieces):
            raise BenchError(f"a turn ended with {turn.pieces} pieces, not {pieces}, and {frame}")


def calm_collector() -> None:
    """Keep this process's garbage collector from adding to what it measures."""
    gc.collect()
    gc.freeze()
    gc.disable()
