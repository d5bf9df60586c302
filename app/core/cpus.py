"""Which CPUs are for work beside the chats.

Making and ending processes, as sandboxes and analyses do all the time, holds up whatever else would run on the same CPU
for milliseconds, whatever its priority is. So one CPU is kept free of them, where there is more than one.
"""

from __future__ import annotations

import os
import sys
from typing import Final

BESIDE_CHATS: Final[tuple[int, ...]] = tuple(sorted(os.sched_getaffinity(0))[1:]) if sys.platform == "linux" else ()
"""All that this process might use at its start but the first one; empty where there is no other, or no choice."""


ANY: Final[tuple[int, ...]] = tuple(sorted(os.sched_getaffinity(0))) if sys.platform == "linux" else ()
"""All that this process might use at its start."""


def keep_to(cpus: tuple[int, ...]) -> None:
    """Keep this process, and those it starts from now on, to these CPUs; to any where there are none."""
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
