"""A judge for the benchmark: it quotes the prompt's first line, and its marks are at no grade's edge. No model."""

from __future__ import annotations

import json
import re
from typing import Any

from aiohttp import web

_FENCED = re.compile(r"⟦([0-9a-f]{16})\n(.*?)\n\1⟧", re.DOTALL)
_MARKS = {"R1": 2, "R2": 3, "R3": 3, "R4": 3}


def _judgement(asked: dict[str, Any]) -> dict[str, Any]:
    candidate = _FENCED.findall(asked["messages"][-1]["content"])[-1][1]
    mark = {"reason": "It can be read.", "quote": candidate.splitlines()[0][:60]}
    criteria = {name: {**mark, "score": score} for name, score in _MARKS.items()}
    return {"intent": "EXPLORATION", "criteria": criteria, "advice": "Name the limits."}


async def _complete(request: web.Request) -> web.Response:
    content = json.dumps(_judgement(await request.json()))
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
    return web.json_response({"object": "chat.completion", "choices": [choice], "usage": usage})


def main() -> None:
    """Serve on a free port of the loopback, and print it."""
    app = web.Application(client_max_size=16 * 1024 * 1024)
    app.router.add_post("/v1/chat/completions", _complete)
    web.run_app(app, host="127.0.0.1", port=0, print=lambda text: print(text, flush=True))


if __name__ == "__main__":
    main()
