"""What a program writes, read as it comes: kept up to a limit, counted beyond."""

from __future__ import annotations

import os
from collections.abc import Callable

_TAIL_BYTES = 64 * 1024
_READ_BYTES = 1 << 18


class Stream:
    """Reads a pipe: the head up to a limit, or the tail, and counts."""

    def __init__(self, most: int, *, tail: bool = False, on_full: Callable[[], None] = lambda: None) -> None:
        self._most, self._tail, self._on_full = most, tail, on_full
        self._kept = bytearray()
        self.count = 0

    def read(self, descriptor: int) -> bool | None:
        """Whether there was something: ``None`` where there is nothing yet, ``False`` at the end."""
        try:
            data = os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return False
        self.count += len(data)
        if self._tail:
            self._kept += data
            del self._kept[: max(0, len(self._kept) - _TAIL_BYTES)]
        else:
            self._kept += data[: max(0, self._most - len(self._kept))]
        if self.count > self._most:
            self._on_full()
        return bool(data)

    @property
    def kept(self) -> bytes:
        """The head, or the tail."""
        return bytes(self._kept)
