"""A scripted judge over HTTP: an OpenAI-compatible endpoint that marks what it is shown, or fails as told.

::

    with ScriptedJudge() as judge:
        judge.next(JudgeReply(status=503))  # the first call
        judge.marks = lambda seen: {"R1": 5}  # from then on; what is left out is 4
    judge.reply = lambda seen: JudgeReply(status=503) if seen.kind == "panel" else None  # by what is asked

It tells from the answer's schema what it is asked: a turn's judgement, a session's (``panel``), or a code's ``review``.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.support.servers import WAIT_S, AppThread, Journal

_PROMPT = re.compile(r"⟦#(\d+)⟧\n(.*)")
_CODE = re.compile(r"^ *(\d+)\| *(.*\w.*)$", re.MULTILINE)
_FENCED = re.compile(r"⟦([0-9a-f]{16})\n(.*?)\n\1⟧", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeReply:
    """How one call is answered. ``content``: in the place of a judgement; ``body``: in the place of everything.

    ``after``: it is answered once this is set, so that what has to come before does, however long it takes.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    content: str | None = None
    body: str | None = None
    delay_s: float = 0.0
    after: threading.Event | None = None
    action: Literal["answer", "hang", "close"] = "answer"
    usage: Mapping[str, int] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    )
    times: int = 1


@dataclass(slots=True, eq=False)
class JudgeSeen:
    """One call as it came: the model, the sample, the prompt (or prompts, or code) to be judged, and all messages."""

    model: str
    seed: int
    candidate: str
    messages: list[dict[str, str]]
    number: int
    at: float
    answered: bool = False

    @property
    def kind(self) -> Literal["turn", "panel", "review"]:
        system = self.messages[0]["content"]
        return "review" if '"strengths"' in system else "panel" if '"analysis"' in system else "turn"


class ScriptedJudge(AppThread):
    """The judge, on a thread of its own. While ``holding`` is set it answers nothing, and forgets nothing."""

    def __init__(self, *, port: int = 0) -> None:
        super().__init__(self._application, port=port)
        self.calls: Journal[JudgeSeen] = Journal()
        self.default = JudgeReply()
        self.marks: Callable[[JudgeSeen], Mapping[str, int]] = lambda _: {}
        self.intent = "CREATION"
        self.holding = False
        self.reply: Callable[[JudgeSeen], JudgeReply | None] = lambda _: None
        self._queue: deque[JudgeReply] = deque()

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def next(self, *replies: JudgeReply) -> None:
        for reply in replies:
            self._queue.extend([reply] * reply.times)

    def wait_for(self, count: int, timeout: float = WAIT_S) -> list[JudgeSeen]:
        return self.calls.wait(lambda calls: len(calls) >= count, timeout)

    async def reaches(self, count: int, timeout: float = WAIT_S) -> list[JudgeSeen]:
        return await asyncio.to_thread(self.wait_for, count, timeout)

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted-judge", "object": "model"}]})

    async def _complete(self, request: web.Request) -> web.Response:
        asked = await request.json()
        fenced = _FENCED.findall(asked["messages"][-1]["content"])
        seen = JudgeSeen(
            asked["model"], asked.get("seed", 0), fenced[-1][1], asked["messages"], len(self.calls), time.monotonic()
        )
        self.calls.add(seen)
        while self.holding:
            await asyncio.sleep(0.01)
        reply = self.reply(seen) or (self._queue.popleft() if self._queue else self.default)
        if reply.action == "hang":
            await asyncio.sleep(math.inf)
        await asyncio.sleep(reply.delay_s)
        while reply.after is not None and not reply.after.is_set():
            await asyncio.sleep(0.01)
        if reply.action == "close" and request.transport is not None:
            request.transport.close()
        if reply.status != 200:
            return web.json_response({"error": {"message": "no"}}, status=reply.status, headers=list(reply.headers))
        content = reply.content if reply.content is not None else json.dumps(self.judgement(seen), ensure_ascii=False)
        answer: dict[str, Any] = {
            "id": f"judge-{seen.number}",
            "object": "chat.completion",
            "model": seen.model,
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"},
            ],
        }
        if reply.usage is not None:
            answer["usage"] = dict(reply.usage)
        seen.answered = True
        return web.Response(text=reply.body or json.dumps(answer), content_type="application/json")

    def judgement(self, seen: JudgeSeen) -> dict[str, Any]:
        """What it answers when nothing else is said."""
        if seen.kind == "review":
            line, code = _first_code(seen.candidate)
            remark = {"text": "It reads its input at once.", "quote": code, "line": line}
            advice = ["Name what is counted."]
            return {"summary": "It does the work.", "strengths": [remark], "weaknesses": [], "advice": advice}
        if seen.kind == "panel":
            turn, text = _PROMPT.findall(seen.candidate)[0]
            mark = {"turn": int(turn), "quote": text[:40].strip()}
            scores = {"R1": 4, "R2": 4, "R3": 4, "R4": 4, **self.marks(seen)}
            criteria = {
                name: {"reason": f"because of {name}", **mark, "score": score} for name, score in scores.items()
            }
            return {"criteria": criteria, "analysis": "The work was led well."}
        marks = {"R1": 4, "R2": 4, "R3": 4, "R4": 4, **self.marks(seen)}
        quote = seen.candidate[:40].strip()
        return {
            "intent": self.intent,
            "criteria": {
                name: {"reason": f"because of {name}", "quote": quote, "score": score} for name, score in marks.items()
            },
            "advice": "Name the limits.",
        }


def _first_code(shown: str) -> tuple[int, str]:
    line, code = _CODE.findall(shown)[0]
    return int(line), code.strip()
