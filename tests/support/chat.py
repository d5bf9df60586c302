"""A client of the WebSocket protocol for tests: sends frames, keeps what comes, checks promise 1 as it goes."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

WAIT_S = 20.0
TERMINAL = {"done", "cancelled", "error"}

_participants = itertools.count(1)


def new_pair() -> dict[str, int]:
    """Exam and participant that no other test of this run uses."""
    return {"exam_id": 1, "participant_id": next(_participants)}


@dataclass
class TurnSeen:
    """What a client saw of one turn."""

    frames: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(frame["content"] for frame in self.frames if frame["type"] == "delta")

    @property
    def started(self) -> dict[str, Any]:
        return next(frame for frame in self.frames if frame["type"] == "started")

    @property
    def end(self) -> dict[str, Any]:
        assert self.frames and self.frames[-1]["type"] in TERMINAL, f"not ended: {self.frames[-3:]}"
        return self.frames[-1]

    @property
    def last_seq(self) -> int:
        return max((frame["seq"] for frame in self.frames if frame["type"] == "delta"), default=0)

    def check_order(self, after_seq: int = 0) -> None:
        """Deltas follow each other without a gap, none is empty, and there is one ending, at the end."""
        expected = after_seq + 1
        for frame in self.frames:
            if frame["type"] == "delta":
                assert frame.get("first_seq", frame["seq"]) == expected, frame
                assert frame["content"], frame
                frame["content"].encode()  # never half a character
                expected = frame["seq"] + 1
        endings = [frame["type"] for frame in self.frames if frame["type"] in TERMINAL]
        assert len(endings) == 1, endings
        assert self.frames[-1]["type"] in TERMINAL


class ChatClient:
    """One connection. Frames of all turns come in one stream; `turn` collects those of one."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **frame: Any) -> None:
        await self.connection.send(json.dumps(frame))

    async def send_raw(self, data: str | bytes) -> None:
        await self.connection.send(data)

    async def receive(self, timeout: float = WAIT_S) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            data = await self.connection.recv()
        frame: dict[str, Any] = json.loads(data)
        return frame

    async def until(self, kind: str, timeout: float = WAIT_S) -> dict[str, Any]:
        """The next frame of a type; others are dropped."""
        async with asyncio.timeout(timeout):
            while (frame := await self.receive(timeout))["type"] != kind:
                pass
        return frame

    async def turn(self, *, seen: TurnSeen | None = None, after_seq: int = 0, timeout: float = WAIT_S) -> TurnSeen:
        """Read to a turn's end, in order; frames of no turn are dropped."""
        seen = seen or TurnSeen()
        async with asyncio.timeout(timeout):
            while not seen.frames or seen.frames[-1]["type"] not in TERMINAL:
                frame = await self.receive(timeout)
                if frame["type"] != "pong":
                    seen.frames.append(frame)
        seen.check_order(after_seq)
        return seen

    async def ask(self, message: str, turn_id: str | int = "t1", **where: Any) -> TurnSeen:
        """Send a message and read to the turn's end."""
        await self.send(type="message", message=message, turn_id=turn_id, **where)
        return await self.turn()

    async def close(self) -> None:
        await self.connection.close()


@asynccontextmanager
async def connect(url: str, path: str = "/chat", **options: Any) -> AsyncIterator[ChatClient]:
    """A connection to the service at ``http://…``."""
    async with websockets.connect(url.replace("http", "ws", 1) + path, max_size=None, **options) as connection:
        yield ChatClient(connection)
