"""Core as it catches up by the feed, and loses now a page and now its place in it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import httpx

_PATIENCE_S = 30.0


async def until(holds: Callable[[], bool], *, every_s: float = 0.05, timeout_s: float) -> bool:
    """Wait for a condition, looked at on another thread; returns whether it holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        if await asyncio.to_thread(holds):
            return True
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(every_s)


class FeedReader:
    """Core as it catches up by the feed alone.

    Now and then it dies: before it has stored a page, or after that and before it has noted how far it is. So it
    remembers ids, as the contract asks.
    """

    def __init__(self, url: str, chance: random.Random) -> None:
        self._url = url
        self._chance = chance
        self._after = "0-0"
        self._ids: set[str] = set()
        self.table: list[tuple[str, dict[str, Any]]] = []
        self.read_again = 0

    async def run(self) -> None:
        """Read until cancelled."""
        async with httpx.AsyncClient(base_url=self._url, timeout=_PATIENCE_S) as http:
            while True:
                limit = self._chance.randrange(1, 150)
                answer = await http.get("/api/callbacks/events", params={"after": self._after, "limit": limit})
                self._take(answer.raise_for_status().json()["items"])
                await asyncio.sleep(self._chance.uniform(0.0, 0.1))

    async def finish(self, count: int) -> None:
        """Wait until there are so many; or for as long as it may take."""
        await until(lambda: len(self.table) >= count, timeout_s=_PATIENCE_S)

    def _take(self, items: list[dict[str, Any]]) -> None:
        fate = self._chance.random()
        if not items or fate < 0.1:
            return
        for item in items:
            if item["id"] in self._ids:
                self.read_again += 1
            else:
                self._ids.add(item["id"])
                self.table.append((item["id"], item["payload"]))
        if fate > 0.2:
            self._after = items[-1]["cursor"]
