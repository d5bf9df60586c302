"""Several runs at once, and their results in the order of what they were given."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from typing import Any, TypeVar

Given = TypeVar("Given")
Result = TypeVar("Result")


async def in_order(
    run: Callable[[Given], Coroutine[Any, Any, Result]], given: Iterable[Given], *, at_once: int
) -> AsyncGenerator[Result, None]:
    """Run each, ``at_once`` of them at a time. Whoever stops listening ends those under way."""
    waiting = deque(given)
    running: deque[asyncio.Task[Result]] = deque()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(asyncio.create_task(run(waiting.popleft())))
            yield await running[0]
            running.popleft()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
