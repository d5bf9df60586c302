"""A candidate with bad luck: asks, loses the connection, comes back elsewhere, stops, repeats; and keeps a log."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import time
import urllib.parse
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import websockets

from torture.scene import Scene, pick

PIECE_S = 0.015
_TERMINAL = {"done", "cancelled", "error"}
_AGAIN = {"internal", "overloaded", "turn_in_progress"}
"""Refusals after which the same frame is sent again."""
_PATIENCE_S = 45.0
_UNIQUE = itertools.count(1)

SCRIPTS = {
    # What the provider does with a message, and how often. Pieces hold a number each, so that a missing one is seen.
    "plain": 6.0,
    "slow": 3.0,
    "empty": 0.3,
    "no_usage": 1.0,
    "status_500": 0.4,
    "status_400": 0.3,
    "cut": 0.6,
}
ACTIONS = {"ask": 4.0, "drop": 4.0, "cancel": 2.0, "cancel_elsewhere": 1.5, "repeat": 2.0, "stall": 0.5, "rest": 1.0}


@dataclass
class View:
    """What a candidate holds of a turn, put together from all its connections.

    ``lengths`` are those of the frames. ``cut_unknown``: it was told to cut back to a delta within a frame that had
    joined several, so that what it holds is longer than what is stored.
    """

    text: str = ""
    last_seq: int = 0
    lengths: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    cut_unknown: bool = False

    def begin_again(self) -> None:
        """The turn is shown from its first delta on."""
        self.text, self.last_seq, self.lengths = "", 0, []

    def take(self, frame: dict[str, Any]) -> None:
        """Add a delta; one that does not follow on is a fault."""
        first, last = frame.get("first_seq", frame["seq"]), frame["seq"]
        if first != self.last_seq + 1:
            self.faults.append(f"delta {first}-{last} after {self.last_seq}")
            return
        if not frame["content"]:
            self.faults.append("an empty delta")
        self.text += frame["content"]
        self.last_seq = last
        self.lengths.append(len(frame["content"]))

    def end(self, frame: dict[str, Any]) -> int:
        """The turn ended: cut back what was not safe; returns how many deltas that are."""
        lost = max(0, self.last_seq - frame.get("last_seq", self.last_seq))
        if lost and len(self.lengths) == self.last_seq:
            self.lengths = self.lengths[: self.last_seq - lost]
            self.text = self.text[: sum(self.lengths)]
        elif lost:
            self.cut_unknown = True
        return lost


@dataclass
class TurnLog:
    """One turn as its candidate saw it. Times are ``time.monotonic()``.

    Attributes:
        started: session and number, as ``started`` said.
        ends: the terminal frames of all its readings; one per reading.
        refusals: codes of errors that were no end of the turn.
        lost_deltas: shown, and gone by the end.
        cancelled_at, told_cancelled_at: when it asked, and when it was told.
        unanswered: no end came in time.
    """

    turn_id: str
    message: str
    view: View = field(default_factory=View)
    started: set[tuple[str, int]] = field(default_factory=set)
    ends: list[dict[str, Any]] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    lost_deltas: int = 0
    cancelled_at: float | None = None
    told_cancelled_at: float | None = None
    unanswered: bool = False


class Candidate:
    """One of many; everything it does follows from its seed and from what happens to it."""

    def __init__(self, scene: Scene, seed: int, number: int) -> None:
        self._scene = scene
        self._chance = random.Random(f"{seed}/{number}")
        self._pair = {"exam_id": 1, "participant_id": number + 1}
        self._session: str | None = None
        self.turns: list[TurnLog] = []

    async def run(self, until: float) -> None:
        """Ask one thing after the other."""
        while time.monotonic() < until:
            await self._one_turn()

    async def _one_turn(self) -> None:
        unique = next(_UNIQUE)
        turn = TurnLog(f"t{unique}", f"m{unique} {self._script(pick(self._chance, SCRIPTS), unique)}")
        self.turns.append(turn)
        action = pick(self._chance, ACTIONS)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                if action == "rest":
                    await self._rest(turn)
                elif action == "repeat":
                    await asyncio.gather(self._read(turn, turn.view, "ask"), self._read(turn, View(), "ask"))
                else:
                    await self._read(turn, turn.view, action)
        except TimeoutError:
            turn.unanswered = True

    def _script(self, kind: str, unique: int) -> str:
        pieces = [f"{unique}.{n} 글 " for n in range(self._chance.randrange(8, 40))]
        delay = PIECE_S * (4 if kind == "slow" else 1)
        script: dict[str, Any] = {"pieces": [] if kind == "empty" else pieces, "piece_delay_s": delay}
        if kind == "no_usage":
            script["usage"] = None
        if kind.startswith("status_"):
            script["status"] = int(kind.removeprefix("status_"))
        if kind == "cut":
            script |= {"ending": "close", "ending_at": len(pieces) // 2}
        return f"[[script:{json.dumps(script, ensure_ascii=False)}]]"

    # over the socket

    async def _read(self, turn: TurnLog, view: View, action: str) -> None:
        """Ask, and read to the end over as many connections as it takes."""
        resume = False
        while True:
            try:
                async with self._connection() as socket:
                    if resume and self._session is not None:
                        frame = {"type": "resume", "session_id": self._session, "turn_id": turn.turn_id}
                        await self._send(socket, {**frame, "after_seq": view.last_seq})
                    else:
                        await self._send(socket, {"message": turn.message, "turn_id": turn.turn_id, **self._pair})
                    if await self._frames(socket, turn, view, action):
                        return
            except (OSError, websockets.WebSocketException):
                pass
            # A frame that nobody answered may have been taken: the same one again is the same turn.
            resume = bool(turn.started) and self._chance.random() < 0.7
            action = "ask" if action == "drop" and self._chance.random() < 0.3 else action
            await asyncio.sleep(self._chance.uniform(0.0, 0.3))

    async def _frames(self, socket: Any, turn: TurnLog, view: View, action: str) -> bool:
        """Read one connection; returns whether the turn's end came. ``False``: come back."""
        leave_at = self._chance.randrange(1, 20) if action == "drop" else -1
        act_at = self._chance.randrange(0, 12)
        acted, fresh = False, True
        while True:
            if action in {"cancel", "cancel_elsewhere"} and not acted and view.last_seq >= act_at and turn.started:
                acted = True
                await self._cancel(socket, turn, elsewhere=action == "cancel_elsewhere")
            if action == "stall" and not acted and view.last_seq >= act_at:
                acted = True
                await asyncio.sleep(self._chance.uniform(0.2, 1.0))
            frame = json.loads(await socket.recv())
            if frame["type"] == "started":
                self._session = frame["session_id"]
                turn.started.add((frame["session_id"], frame["turn"]))
                if fresh:
                    # The same frame again is answered from the first delta on.
                    view.begin_again()
            elif frame["type"] == "delta":
                fresh = False
                view.take(frame)
                if leave_at > 0 and view.last_seq >= leave_at:
                    socket.transport.abort()
                    return False
            elif frame["type"] in _TERMINAL:
                if frame["type"] == "error" and "usage" not in frame:
                    turn.refusals.append(frame["code"])
                    if frame["code"] in _AGAIN or frame["code"] == "turn_not_found":
                        return False
                    raise AssertionError(f"refused: {frame}")
                if frame["type"] == "cancelled":
                    turn.told_cancelled_at = time.monotonic()
                turn.ends.append(frame)
                turn.lost_deltas = max(turn.lost_deltas, view.end(frame))
                return True

    async def _cancel(self, socket: Any, turn: TurnLog, *, elsewhere: bool) -> None:
        session_id, _ = next(iter(turn.started))
        frame = {"type": "cancel", "turn_id": turn.turn_id, "session_id": session_id}
        turn.cancelled_at = time.monotonic()
        if not elsewhere:
            await self._send(socket, frame)
            return
        with contextlib.suppress(OSError, websockets.WebSocketException):
            async with self._connection() as other:
                await self._send(other, frame)
                await asyncio.sleep(0.05)

    @contextlib.asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        url = self._chance.choice(self._scene.urls or ["http://127.0.0.1:9"]).replace("http", "ws")
        async with websockets.connect(f"{url}/chat", open_timeout=3, close_timeout=1, max_size=None) as socket:
            yield socket

    async def _send(self, socket: Any, frame: dict[str, Any]) -> None:
        await socket.send(json.dumps(frame))

    # over REST

    async def _rest(self, turn: TurnLog) -> None:
        body = {"message": turn.message, "turn_id": turn.turn_id, **self._pair}
        while True:
            url = self._chance.choice(self._scene.urls or ["http://127.0.0.1:9"])
            try:
                async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S) as http:
                    answer = await http.post("/api/chat/message", json=body)
                    said = answer.json()
                    if answer.status_code == 200:
                        turn.started.add((said["session_id"], said["turn"]))
                        turn.view.text = said["ai_message"]
                        turn.ends.append({"type": "done", **said})
                        return
                    turn.refusals.append(said["code"])
                    if said["code"] not in _AGAIN or await self._ended(http, turn):
                        return
            except (httpx.HTTPError, OSError):
                pass
            await asyncio.sleep(self._chance.uniform(0.05, 0.3))

    async def _ended(self, http: httpx.AsyncClient, turn: TurnLog) -> bool:
        """Whether a refusal was the turn's own end: then the same call would say it again and again."""
        if self._session is None:
            return False
        turn_id = urllib.parse.quote(turn.turn_id, safe="")
        events = await http.get(
            f"/api/sessions/{self._session}/turns/{turn_id}/events",
            params={"wait_s": 0},
            headers={"accept": "application/json"},
        )
        return events.status_code == 200 and bool(events.json()["ended"])
