"""Reading long texts beside the event loop, which serves candidates who read meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, ParamSpec, TypeVar

_Taken = ParamSpec("_Taken")
_Made = TypeVar("_Made")
_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="judging")
"""One, however many prompts are judged at once: several would only take the interpreter from each other and from the
loop, and the loop's own threads would be busy with texts when an address has to be looked up."""


async def aside(work: Callable[_Taken, _Made], *args: _Taken.args, **kwargs: _Taken.kwargs) -> _Made:
    """What pure work on texts gives: a prompt of the longest length takes some 200 ms, its order in the thread's queue.

    Whoever is cancelled does not wait for it; what it would have given is lost.
    """
    return await asyncio.get_running_loop().run_in_executor(_THREAD, partial(work, *args, **kwargs))
