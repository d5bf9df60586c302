"""Which CPUs are for work beside the chats.

Making and ending processes, as sandboxes and analyses do all the time, holds up whatever else would run on the same CPU
for milliseconds, whatever its priority is. So one CPU is kept free of them, where there is more than one.
"""

from __future__ import annotations

import os
import sys
from typing import Final

ANY: Final[tuple[int, ...]] = tuple(sorted(os.sched_getaffinity(0))) if sys.platform == "linux" else ()
"""All that this process might use at its start; empty where there is no choice."""
_beside_chats = ANY[1:]


def beside_chats() -> tuple[int, ...]:
    """All of them but the first, which is for chats; empty where there is no other, or no choice."""
    return _beside_chats


def leave_none_to_chats() -> None:
    """From now on use them all: no chat runs on this machine."""
    global _beside_chats  # noqa: PLW0603  # as an affinity is, this is the whole process's
    _beside_chats = ANY


def keep_to(cpus: tuple[int, ...]) -> None:
    """Keep this process, and those it starts from now on, to these CPUs; to any where there are none."""
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
