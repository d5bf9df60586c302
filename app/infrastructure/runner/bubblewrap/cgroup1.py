"""Limits by control groups of version 1, where each controller has a hierarchy of its own."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path

from app.infrastructure.runner.bubblewrap.cgroups import (
    OwnCgroups,
    RunGroup,
    group_name,
    read_number,
    remove_tree,
    write_value,
)

_AT_ONCE = 4 << 20
"""Memory that a process may ask for at once, a huge page say, and be ended for below its limit. Newer kernels do not
count in ``memory.failcnt`` how often a limit was met."""
_WEIGHT = "1024"
"""All sandboxes together weigh what one ordinary process does."""


class _Run1(RunGroup):
    def __init__(self, groups: dict[str, Path], name: str, memory_mb: int, processes: int) -> None:
        self._cpu = groups["cpuacct"] / name / "cpuacct.usage"
        self._memory, self._pids = groups["memory"] / name, groups["pids"] / name
        directories = dict.fromkeys(group / name for group in groups.values())
        super().__init__(directories, _weight(groups), memory_mb=memory_mb, processes=processes)

    def _limit(self, memory_mb: int, processes: int) -> None:
        limit = memory_mb * 1024 * 1024
        write_value(self._memory / "memory.limit_in_bytes", limit)
        with suppress(OSError):  # kernels may be built without it
            write_value(self._memory / "memory.memsw.limit_in_bytes", limit)
        write_value(self._pids / "pids.max", processes)

    def memory_kb(self) -> int:
        """The highest use."""
        return read_number(self._memory / "memory.max_usage_in_bytes") // 1024

    def _oom_kills(self) -> int:
        return read_number(self._memory / "memory.oom_control", "oom_kill")

    def _limit_was_met(self) -> bool:
        # What went to swap is counted by the second alone, which has the same limit.
        names = ("memory.max_usage_in_bytes", "memory.memsw.max_usage_in_bytes")
        highest = max(read_number(self._memory / name) for name in names)
        return highest + _AT_ONCE >= read_number(self._memory / "memory.limit_in_bytes")

    def _used(self) -> int:
        return read_number(self._cpu)


def _weight(groups: dict[str, Path]) -> tuple[Path, str] | None:
    return (groups["cpu"] / "cpu.shares", _WEIGHT) if "cpu" in groups else None


class Version1:
    """Groups of version 1, each controller in a hierarchy of its own."""

    level = "cgroup1"

    def __init__(self, own: OwnCgroups, delegated: Path | None = None) -> None:
        """Make our group in each.

        Raises:
            OSError: it may not, or a controller is missing.
        """
        del delegated
        for needed in ("cpuacct", "memory", "pids"):
            if needed not in own.v1:
                raise OSError(errno.ENOENT, f"the controller {needed} is not mounted")
        wanted = {name: own.v1[name] / group_name() for name in ("cpuacct", "memory", "pids", "cpu") if name in own.v1}
        self._groups: dict[str, Path] = {}
        try:
            for name, group in wanted.items():
                group.mkdir(exist_ok=True)
                self._groups[name] = group
            if "cpu" in wanted:
                write_value(wanted["cpu"] / "cpu.shares", _WEIGHT)
            self.open("probe", memory_mb=64, processes=4).close()
        except OSError:
            self.close()
            raise

    def open(self, name: str, *, memory_mb: int, processes: int) -> _Run1:
        """A new group with these limits."""
        return _Run1(self._groups, name, memory_mb, processes)

    def close(self) -> None:
        """Remove our group from each hierarchy."""
        for group in dict.fromkeys(self._groups.values()):
            with suppress(OSError):
                remove_tree(group)
