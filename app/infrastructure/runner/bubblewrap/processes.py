"""What the kernel says of processes."""

from __future__ import annotations

from pathlib import Path

PARENT, SESSION, USER_TICKS, STARTED, PAGES = 1, 3, 11, 19, 21
"""Places in what `stat_of` gives; behind `USER_TICKS` come those of the kernel and both of ended children."""


def stat_of(place: Path) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` behind the name.

    The process chose that name itself: it may hold spaces, parentheses, and bytes that are no text.

    Raises:
        OSError: it is gone.
    """
    return (place / "stat").read_bytes().rpartition(b")")[2].split()
