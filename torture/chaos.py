"""What happens to the scene while the candidates work."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

from tests.support.core import Answer
from torture.scene import Scene, pick

FAULTS = {"kill": 8.0, "stop": 1.5, "database": 0.7, "redis": 1.0, "redis_hangs": 0.5, "core": 1.5, "core_hangs": 0.5}


class Chaos:
    """Does one thing after the other, at random instants, until ``until``."""

    def __init__(self, scene: Scene, seed: int, say: Callable[[str], None]) -> None:
        self._scene = scene
        self._chance = random.Random(f"{seed}/chaos")
        self._say = say
        self.done: Counter[str] = Counter()

    async def run(self, until: float) -> None:
        """Work until then; every process is up again at the end."""
        begun = time.monotonic()
        while time.monotonic() < until:
            await asyncio.sleep(self._chance.uniform(0.0, 1.5))
            fault = pick(self._chance, FAULTS)
            self._say(f"  {time.monotonic() - begun:5.1f} s  {fault}")
            await getattr(self, f"_{fault}")()
            self.done[fault] += 1

    async def _kill(self) -> None:
        await self._replace(kill=True)

    async def _stop(self) -> None:
        await self._replace(kill=False)

    async def _replace(self, *, kill: bool) -> None:
        place = self._chance.randrange(len(self._scene.processes))
        await asyncio.to_thread(self._scene.replace, place, kill=kill)

    async def _database(self) -> None:
        await asyncio.to_thread(self._scene.postgres.restart)

    async def _redis(self) -> None:
        await asyncio.to_thread(self._scene.redis.kill)
        await asyncio.sleep(self._chance.uniform(0.0, 1.0))
        await asyncio.to_thread(self._scene.redis.start)

    async def _redis_hangs(self) -> None:
        self._scene.redis.freeze()
        await asyncio.sleep(self._chance.uniform(0.2, 1.0))
        self._scene.redis.thaw()

    async def _core(self) -> None:
        for status in (500, 503, 429):
            self._scene.core.next(Answer(status=status, times=5))
        self._scene.core.next(Answer(action="reset", times=3), Answer(action="close", times=3))

    async def _core_hangs(self) -> None:
        self._scene.core.next(Answer(action="hang", times=3), Answer(delay_s=0.5, times=5))
