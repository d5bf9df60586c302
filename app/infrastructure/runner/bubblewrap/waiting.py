"""How long a program could have run while the machine had something else to do."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from app.infrastructure.runner.bubblewrap.accounts import tree_of


class Waiting:
    """The time in which at least one thread of a process, or of those that come from it, waited for a CPU."""

    def __init__(self, pid: int) -> None:
        """``pid`` is the first process, which has just been started."""
        self._pid = pid
        self._seen: dict[str, int] = {}
        self._began = time.monotonic()
        self.total_s = 0.0

    def look(self) -> None:
        """Add what has come since the last look. What ended in between is missed."""
        now, longest = time.monotonic(), 0
        delays = {}
        for pid in tree_of(self._pid):
            with suppress(OSError):  # it is gone
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(OSError, ValueError, IndexError):
                        delay = delays[thread.name] = int((thread / "schedstat").read_text().split()[1])
                        longest = max(longest, delay - self._seen.get(thread.name, 0))
        # The kernel adds a wait when it is over, so one look may find more than has passed since the last.
        self.total_s = min(self.total_s + longest / 1e9, now - self._began)
        self._seen = delays
