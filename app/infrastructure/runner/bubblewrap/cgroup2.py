"""Limits by control groups of version 2, the unified hierarchy."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from app.infrastructure.runner.bubblewrap.cgroups import (
    OwnCgroups,
    RunGroup,
    group_name,
    processes_in,
    read_number,
    remove_tree,
    write_value,
)
from app.infrastructure.runner.bubblewrap.processes import PARENT, stat_of

_BESIDE = "turnstone-service"
_WEIGHT = "50"
"""All sandboxes together weigh half of what one ordinary group does."""


class _Run2(RunGroup):
    def __init__(self, group: Path, memory_mb: int, processes: int) -> None:
        weight = group.parent / "cpu.weight"
        self._group = group
        self._highest = 0
        shared = (weight, _WEIGHT) if weight.exists() else None
        super().__init__([group], shared, memory_mb=memory_mb, processes=processes)

    def _limit(self, memory_mb: int, processes: int) -> None:
        write_value(self._group / "memory.max", memory_mb * 1024 * 1024)
        with suppress(OSError):  # no swap, or a kernel that does not count it
            write_value(self._group / "memory.swap.max", 0)
        write_value(self._group / "memory.oom.group", 1)
        write_value(self._group / "pids.max", processes)

    def memory_kb(self) -> int:
        """Kernels before 5.19 keep no peak; there, the highest that was seen."""
        self._highest = max(
            self._highest, read_number(self._group / "memory.peak"), read_number(self._group / "memory.current")
        )
        return self._highest // 1024

    def _oom_kills(self) -> int:
        return read_number(self._group / "memory.events", "oom_kill")

    def _limit_was_met(self) -> bool:
        return any(read_number(self._group / "memory.events", name) > 0 for name in ("max", "oom"))

    def _used(self) -> int:
        return read_number(self._group / "cpu.stat", "usage_usec") * 1000


class Version2:
    """Groups of version 2, in the cgroup this process is in or in one that was delegated."""

    level = "cgroup2"

    def __init__(self, own: OwnCgroups, delegated: Path | None = None) -> None:
        """Make our group.

        A group that has processes cannot hand controllers down. Where all in ours are this service's own (a container,
        a unit with ``Delegate=yes``), they move into a group beside.

        Raises:
            OSError: it may not, or a controller is missing.
        """
        place = delegated or own.v2
        if place is None:
            raise OSError(errno.ENOENT, "not mounted")
        if place.name == _BESIDE:  # an earlier start moved us there
            place = place.parent
        missing = {"memory", "pids"} - set((place / "cgroup.controllers").read_text().split())
        if missing:
            raise OSError(errno.ENOENT, f"the controller {sorted(missing)[0]} is not to be had in {place}")
        self._hand_down(place)
        self._group = place / group_name()
        self._group.mkdir(exist_ok=True)
        try:
            self._enable(self._group)
            with suppress(OSError):
                write_value(self._group / "cpu.weight", _WEIGHT)
            self.open("probe", memory_mb=64, processes=4).close()
        except OSError:
            self.close()
            raise

    def open(self, name: str, *, memory_mb: int, processes: int) -> _Run2:
        """A new group with these limits."""
        return _Run2(self._group / name, memory_mb, processes)

    def close(self) -> None:
        """Remove our group; the group beside stays, for the service is in it."""
        with suppress(OSError):
            remove_tree(self._group)

    def _hand_down(self, place: Path) -> None:
        try:
            self._enable(place)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            ours = {os.getpid(), os.getppid(), 1}
            inside = processes_in(place)
            if any(pid not in ours and parent_of(pid) not in ours for pid in inside):
                raise OSError(errno.EBUSY, f"others' processes are in {place}") from None
            beside = place / _BESIDE
            beside.mkdir(exist_ok=True)
            for pid in inside:
                write_value(beside / "cgroup.procs", pid)
            self._enable(place)

    @staticmethod
    def _enable(group: Path) -> None:
        names = [
            name for name in ("cpu", "memory", "pids") if name in (group / "cgroup.controllers").read_text().split()
        ]
        missing = set(names) - set((group / "cgroup.subtree_control").read_text().split())
        if missing:
            write_value(group / "cgroup.subtree_control", " ".join(f"+{name}" for name in sorted(missing)))


def parent_of(pid: int) -> int:
    """The process a process comes from; 1 where it is gone."""
    try:
        return int(stat_of(Path(f"/proc/{pid}"))[PARENT])
    except (OSError, IndexError):
        return 1
