"""What a sandbox's processes used, and their limits: by cgroup v2, by cgroup v1, or else by looking at them one by one.

Each `Account` is of one run. The strongest kind that this process may use is found by `open_accounts`.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from app.infrastructure.runner.bubblewrap.cgroup1 import Version1
from app.infrastructure.runner.bubblewrap.cgroup2 import Version2
from app.infrastructure.runner.bubblewrap.cgroups import own_cgroups, sweep
from app.infrastructure.runner.bubblewrap.processes import PAGES, USER_TICKS, stat_of

WORK = "/work"
"""The one place in a sandbox that a program may write to; it is in memory."""

_MOST_FILES = 50_000
"""There, where no group of processes counts the memory that the kernel has for them. They go with the sandbox, and each
takes microseconds."""

_TICKS_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


class Account(Protocol):
    """The processes of one run, as far as they are counted together."""

    def join(self) -> None:
        """Put the calling process, and all that come from it, under this account."""

    def start(self, monitor: int, child: int) -> None:
        """The program is about to start: what was used until now is not the program's."""

    def cpu_ns(self) -> int:
        """CPU time used since `start`."""

    def memory_kb(self) -> int:
        """The highest use of memory."""

    def out_of_memory(self, limit_kb: int) -> bool:
        """Whether the limit was met."""

    def taken_by_the_machine(self) -> bool:
        """Whether a process was ended because the machine had no memory left, which is not the program's fault."""

    def too_many_files(self) -> bool:
        """Whether there are more files than go in a moment, where their memory is not counted."""

    def hurry(self) -> None:
        """The run is being ended: let its processes have the CPU time they need to go, before all others."""

    def reaped(self, cpu_ns: int, memory_kb: int) -> None:
        """What the kernel said at the end about the processes that were waited for, from their own start on."""

    def close(self) -> int:
        """End what is left and forget the account; how many processes were left."""


class Accounts(Protocol):
    """Makes accounts."""

    level: str

    def open(self, name: str, *, memory_mb: int, processes: int) -> Account:
        """A new one with these limits."""

    def close(self) -> None:
        """Leave nothing behind. No account may be open."""


def open_accounts(delegated: Path | None, level: str | None = None) -> tuple[Accounts, list[str]]:
    """The best accounts to be had, and why not better ones.

    Args:
        delegated: a cgroup (v2) to work in, where an operator made one over; ours by default.
        level: only this one: ``cgroup2``, ``cgroup1`` or ``rlimits``.
    """
    reasons: list[str] = []
    own = own_cgroups()
    sweep(own, delegated)
    for kind in (Version2, Version1):
        if level not in (None, kind.level):
            continue
        try:
            return kind(own, delegated), reasons
        except OSError as error:
            what = f" ({error.filename})" if error.filename else ""
            reasons.append(f"{kind.level}: {error.strerror or error}{what}")
    return OneByOne(), reasons


class OneByOne:
    """No cgroups: limits by process, sums by looking at the processes every few milliseconds."""

    level = "rlimits"

    def open(self, name: str, *, memory_mb: int, processes: int) -> Account:
        """The limits are set on the processes themselves, by whoever starts them."""
        del name, memory_mb, processes
        return _Looked()

    def close(self) -> None:
        """There is nothing."""


class _Looked:
    def __init__(self) -> None:
        self._monitor = self._child = 0
        self._before = self._highest_ns = self._highest_kb = self._files = 0
        # What is forked from here starts with our own size as its highest.
        self._own_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def join(self) -> None:
        """There is nothing to join."""

    def start(self, monitor: int, child: int) -> None:
        self._monitor, self._child = monitor, child
        self._before = sum(_run_ns(pid) for pid in (monitor, child))

    def cpu_ns(self) -> int:
        self._look()
        return self._highest_ns

    def memory_kb(self) -> int:
        return self._highest_kb

    def out_of_memory(self, limit_kb: int) -> bool:
        return self._highest_kb > limit_kb

    def taken_by_the_machine(self) -> bool:
        return False  # nobody says so

    def too_many_files(self) -> bool:
        return self._files > _MOST_FILES

    def hurry(self) -> None:
        for pid in tree_of(self._child):
            with suppress(OSError):  # it is gone, or we are not root
                os.setpriority(os.PRIO_PROCESS, pid, 0)

    def reaped(self, cpu_ns: int, memory_kb: int) -> None:
        """Who was not waited for is missing there, who was gone between two looks is missing here."""
        self._highest_ns = max(self._highest_ns, cpu_ns - self._before)
        if memory_kb > self._own_kb:
            self._highest_kb = max(self._highest_kb, memory_kb)

    def close(self) -> int:
        return 0  # with its first process the whole process namespace is gone

    def _look(self) -> None:
        ns = kb = 0
        for pid in tree_of(self._child):
            with suppress(OSError, IndexError):  # it is gone
                fields = stat_of(Path(f"/proc/{pid}"))
                ns += sum(map(int, fields[USER_TICKS : USER_TICKS + 4])) * _TICKS_NS
                kb += int(fields[PAGES]) * _PAGE_KB
        with suppress(OSError):
            place = os.statvfs(f"/proc/{self._child}/root{WORK}")
            self._files = place.f_files - place.f_ffree
        # The first process's own past, until the program began, is some milliseconds, less than a tick of this clock.
        self._highest_ns, self._highest_kb = max(self._highest_ns, ns), max(self._highest_kb, kb)


def _run_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def tree_of(pid: int) -> Iterator[int]:
    """A process and all that come from it, as far as they are there."""
    yield pid
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return
    for thread in threads:
        with suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield from tree_of(int(child))
