"""What the process in which parsers run may use. Imports next to nothing of ours: this is the first thing done."""

from __future__ import annotations

import os
import resource
import sys
from typing import Final

from app.core.cpus import keep_to

CPU_S: Final = 20
"""Processor seconds. Ordinary code takes a quarter of one, a megabyte of it about five."""
MEMORY_MB: Final = 1_024
"""Address space. Of it, ordinary code makes 40 MB resident, a megabyte of it 200."""
LOWER_PRIORITY: Final = 10
"""Added to the niceness, so that chats come first."""
_OPEN_FILES: Final = 64


def confine(cpus: tuple[int, ...]) -> None:
    """Bind this process and those it starts: processor, memory, no files written, no core, low priority, these CPUs.

    What it inherited beside the standard descriptors is closed: uvloop lets a process inherit both ends of what it
    speaks through, and a program it starts could hold them.
    """
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    limits = [
        # At the first the kernel says why it ends the process, at the second it does not.
        (resource.RLIMIT_CPU, CPU_S, CPU_S + 2),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES, _OPEN_FILES),
    ]
    if sys.platform != "darwin":  # which knows this limit and refuses to set it
        limits.append((resource.RLIMIT_AS, MEMORY_MB * 1024 * 1024, MEMORY_MB * 1024 * 1024))
    for what, most, surely in limits:
        _, hard = resource.getrlimit(what)
        highest = surely if hard == resource.RLIM_INFINITY else min(surely, hard)
        resource.setrlimit(what, (min(most, highest), highest))
    os.nice(LOWER_PRIORITY)
    keep_to(cpus)
