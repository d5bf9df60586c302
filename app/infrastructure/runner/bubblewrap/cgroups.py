"""Control groups of both versions: one group of ours, and in it one per run.

A group's name holds who made it, so that what a killed process left behind is found and removed by the next one.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from app.infrastructure.runner.bubblewrap.processes import STARTED, stat_of

_PREFIX = "turnstone."
_ABSENT = {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}
"""A file that this kernel does not have, of a group that is gone, or that cannot be read."""


class OwnCgroups(NamedTuple):
    """Where this process stands: by controller (v1), and in the unified hierarchy (v2)."""

    v1: dict[str, Path]
    v2: Path | None


def own_cgroups(proc: Path = Path("/proc/self")) -> OwnCgroups:
    """Read it from ``proc``; hierarchies that are not mounted, or not as far as here, are left out."""
    paths = {}
    try:
        for line in (proc / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths.update(dict.fromkeys(controllers.split(","), path))
        mounts = (proc / "mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return OwnCgroups({}, None)
    v1: dict[str, Path] = {}
    v2 = None
    for line in mounts:
        fields, _, rest = line.partition(" - ")
        kind, _, options = (*rest.split(), "", "", "")[:3]
        root, point = fields.split()[3:5]
        names = [""] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in names:
            path = paths.get(name, "")
            if not path.startswith(root.rstrip("/")):
                continue
            found = Path(point) / path[len(root.rstrip("/")) :].lstrip("/")
            if kind == "cgroup2":
                v2 = found
            else:
                v1[name] = found
    return OwnCgroups(v1, v2)


def sweep(own: OwnCgroups, delegated: Path | None = None) -> int:
    """Remove groups whose maker is gone, with what still runs in them; how many there were."""
    swept = 0
    for place in {*own.v1.values(), *filter(None, (own.v2, own.v2 and own.v2.parent, delegated))}:
        with suppress(OSError):
            for group in place.glob(f"{_PREFIX}*"):
                namespace, _, pid_and_start = group.name.removeprefix(_PREFIX).partition(".")
                if namespace == _namespace() and not _lives(pid_and_start):
                    remove_tree(group)
                    swept += 1
    return swept


def group_name() -> str:
    """The name of this process's own group."""
    return f"{_PREFIX}{_namespace()}.{os.getpid()}-{_started(os.getpid())}"


def _namespace() -> str:
    return str(Path("/proc/self/ns/pid").stat().st_ino)


def _started(pid: int | str) -> str:
    try:
        return stat_of(Path(f"/proc/{pid}"))[STARTED].decode()
    except (OSError, IndexError):
        return ""


def _lives(pid_and_start: str) -> bool:
    pid, _, started = pid_and_start.partition("-")
    return bool(started) and _started(pid) == started


def write_value(file: Path, value: object) -> None:
    """Write to one of the kernel's files; an error names the file."""
    with file.open("wb", buffering=0) as opened:  # a buffer would be written again at the end, and fail without a name
        try:
            opened.write(str(value).encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from None


def processes_in(group: Path) -> list[int]:
    """The processes of a group itself."""
    try:
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _empty(group: Path) -> int:
    """End what runs in a group; how many there were."""
    left = processes_in(group)
    until = time.monotonic() + 1
    while (running := processes_in(group)) and time.monotonic() < until:
        for pid in running:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return len(left)


def _remove(group: Path) -> None:
    for pause in (0, 0.005, 0.05, 0.2):  # the kernel may hold on to a group for an instant after its last process
        time.sleep(pause)
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            continue
        return


def remove_tree(group: Path) -> None:
    """Remove a group with all below it, and end what runs there."""
    for inner in [path for path in group.iterdir() if path.is_dir()]:
        remove_tree(inner)
    _empty(group)
    _remove(group)


def read_number(file: Path, key: str | None = None) -> int:
    """A file's number, or the one behind ``key``; 0 where there is none.

    Raises:
        OSError: there may be one. Taken for 0 it would say that a limit was not met.
    """
    try:
        text = file.read_text()
    except OSError as error:
        if error.errno not in _ABSENT:
            raise
        return 0
    if key is None:
        return int(text) if text.strip().isdigit() else 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.split()[0] == key), 0)


_MOST = 10_000
"""The largest share in version 2, and ten ordinary processes' in version 1."""


class RunGroup:
    """One run's group, in one directory (v2) or one per controller (v1)."""

    def __init__(
        self, directories: Iterable[Path], weight: tuple[Path, str] | None, *, memory_mb: int, processes: int
    ) -> None:
        """``weight`` is the file with the share of CPU time of all runs together, and what is in it usually.

        Raises:
            OSError: it cannot be made, or not be limited; nothing of it is left.
        """
        self._weight, self._hurried = weight, False
        self.directories = tuple(directories)
        self._before = 0
        try:
            for directory in self.directories:
                directory.mkdir()
            self._limit(memory_mb, processes)
        except OSError:
            self.close()
            raise

    def join(self) -> None:
        """Put the calling process into it."""
        for directory in self.directories:
            descriptor = os.open(directory / "cgroup.procs", os.O_WRONLY)
            os.write(descriptor, b"0")
            os.close(descriptor)

    def start(self, monitor: int, child: int) -> None:
        """What was used until now does not count."""
        del monitor, child
        self._before = self._used()

    def cpu_ns(self) -> int:
        """CPU time since `start`, of all that were in it."""
        return max(0, self._used() - self._before)

    def out_of_memory(self, limit_kb: int) -> bool:
        """Whether the kernel ended a process for its limit."""
        del limit_kb
        return self._oom_kills() > 0 and self._limit_was_met()

    def taken_by_the_machine(self) -> bool:
        """Whether the kernel ended a process because the machine itself had no memory left."""
        return self._oom_kills() > 0 and not self._limit_was_met()

    def too_many_files(self) -> bool:
        """Never: the group counts the kernel's memory for them."""
        return False

    def hurry(self) -> None:
        """Raise the share until `close`; a candidate's program that does not run any more cannot make use of it."""
        if self._weight is not None:
            self._hurried = True
            write_value(self._weight[0], _MOST)

    def reaped(self, cpu_ns: int, memory_kb: int) -> None:
        """The group knows better."""

    def close(self) -> int:
        """End what is left and remove it; how many processes there were."""
        if self._weight is not None and self._hurried:
            write_value(*self._weight)
        left = max(_empty(directory) for directory in self.directories)
        for directory in self.directories:
            _remove(directory)
        return left

    def _limit(self, memory_mb: int, processes: int) -> None:
        raise NotImplementedError

    def _used(self) -> int:
        raise NotImplementedError

    def _oom_kills(self) -> int:
        """Processes of it that the kernel has ended for want of memory, for whichever limit."""
        raise NotImplementedError

    def _limit_was_met(self) -> bool:
        raise NotImplementedError
