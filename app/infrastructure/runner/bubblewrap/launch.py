"""The start of one sandbox: from a fork of the warden to bubblewrap, with rights and limits given up on the way."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from app.core.cpus import keep_to
from app.infrastructure.runner.bubblewrap.accounts import Account
from app.infrastructure.runner.bubblewrap.processes import PARENT, SESSION, stat_of
from app.infrastructure.runner.bubblewrap.users import FIRST_UID, USERS

_NICE = 6
_FIRST_NOT_STANDARD = 3
_PR_SET_PDEATHSIG = 1
_INIT = 1
_GATE = "/.gate"

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class BoxLimits:
    """What one run may use; all is held for all of its processes together where accounts can, else for each."""

    cpu_s: float
    wall_s: float
    memory_mb: int
    output_bytes: int
    processes: int
    files_mb: int
    stack_mb: int = 8
    private_mb: int = 0
    """Of address space that can be written to, by process; only held where accounts cannot count memory."""


@dataclass(frozen=True, slots=True)
class Box:
    """How one sandbox is to be.

    Attributes:
        bwrap: bubblewrap's path.
        options: its arguments: namespaces, mounts, environment.
        argv: the program and its arguments.
        files: what is put into the sandbox: a place, a descriptor to read the content from, the mode.
        stdin: a descriptor to read from.
        seccomp: a descriptor of the filter.
        uid: the user it is run as; ``None`` for ours.
        by_process: whether limits are held for each process, because nothing counts them together.
        cpus: the only ones it runs on; any where there are none.
    """

    bwrap: str
    options: Sequence[str]
    argv: Sequence[str]
    files: Sequence[tuple[str, int, int]]
    stdin: int
    seccomp: int
    uid: int | None
    limits: BoxLimits
    by_process: bool
    cpus: tuple[int, ...]


def launch(box: Box, account: Account, out: int, err: int, status: int, gate: int) -> int:
    """Fork, and become bubblewrap there; returns the process id.

    Args:
        box: what to start.
        account: joined before anything else.
        out: where standard output goes.
        err: where standard error goes.
        status: where bubblewrap says the number of the sandbox's first process.
        gate: the file bubblewrap reads last; it waits for its end.
    """
    options = ["--json-status-fd", str(status), "--seccomp", str(box.seccomp), *box.options]
    for path, descriptor, mode in box.files:
        options += ["--perms", f"{mode:04o}", "--file", str(descriptor), path]
    options += ["--file", str(gate), _GATE, "--remount-ro", "/"]
    argv = [box.bwrap, *options, "--", *box.argv]
    passed = [status, gate, box.seccomp, *(descriptor for _, descriptor, _ in box.files)]
    warden = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(box, account, out, err, passed)
        _end_with(warden)
        os.execve(box.bwrap, argv, {})  # noqa: S606  # a shell is what this is to keep away from
    except BaseException as error:  # noqa: BLE001  # nothing may go on in this copy of the process
        os.write(2, f"the sandbox cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _become(box: Box, account: Account, out: int, err: int, passed: Sequence[int]) -> None:
    """Turn this forked process into what starts bubblewrap."""
    limits = box.limits
    for number, descriptor in enumerate((box.stdin, out, err)):
        os.dup2(descriptor, number)
    close_all_but(passed)
    for descriptor in passed:
        os.set_inheritable(descriptor, True)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    account.join()
    os.setsid()
    os.nice(max(0, _NICE - os.nice(0)))
    keep_to(box.cpus)
    most = {
        # A limit of 1 is the one that keeps programs from being dumped into a pipe, too.
        resource.RLIMIT_CORE: 1,
        # Bubblewrap itself is bound by it while it copies the files in; /work's own size is what the program meets.
        resource.RLIMIT_FSIZE: max([limits.files_mb << 20, *(os.fstat(one).st_size for _, one, _ in box.files)]),
        resource.RLIMIT_NOFILE: 256,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_SIGPENDING: 1024,
        resource.RLIMIT_CPU: int(limits.cpu_s) + 2,
        resource.RLIMIT_STACK: limits.stack_mb << 20,
    }
    for what, limit in most.items():
        allowed = resource.getrlimit(what)[1]
        limit = limit if allowed == resource.RLIM_INFINITY else min(limit, allowed)  # noqa: PLW2901
        resource.setrlimit(what, (limit, limit))
    if box.uid is not None:
        if box.by_process:
            _hold(os.getpid(), limits, beside=1)
        os.setgroups([])
        os.setresgid(box.uid, box.uid, box.uid)
        os.setresuid(box.uid, box.uid, box.uid)


def close_all_but(passed: Iterable[int]) -> None:
    """Close every descriptor but the standard ones and these.

    Whoever started this process may have let it inherit some that are not its own, its ends of our pipes among them: a
    program that holds one could speak in the warden's name.
    """
    start = _FIRST_NOT_STANDARD
    for descriptor in sorted({*passed, os.sysconf("SC_OPEN_MAX")}):
        os.closerange(start, descriptor)
        start = max(start, descriptor + 1)


def _end_with(warden: int) -> None:
    """Be killed when the warden is, also before bubblewrap says so itself; a change of the user would undo it."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != warden:
        os._exit(127)


class _Process(NamedTuple):
    place: Path
    parent: int
    session: int

    @property
    def pid(self) -> int:
        return int(self.place.name)


def _processes() -> Iterator[_Process]:
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with suppress(OSError, IndexError):  # it is gone
                fields = stat_of(place)
                yield _Process(place, int(fields[PARENT]), int(fields[SESSION]))


def end_session(monitor: int) -> None:
    """Kill what a killed bubblewrap leaves of a sandbox that it was making; its number must not have been waited for.

    Its inner process is deaf to its parent's death until just before it becomes the program, so once the gate is closed
    it would run the program, and nobody would watch it. Until then it is of the session that `launch` made.
    """
    for process in _processes():
        if process.session == monitor and process.pid != monitor:
            with suppress(OSError):  # it is gone
                os.kill(process.pid, signal.SIGKILL)


def end_orphans(bwrap: Path) -> int:
    """Kill sandboxes that a killed warden has left half made; how many there were.

    Bubblewrap's inner process waits, deaf to its parent's death, until that has given it its place in the namespaces.
    Where it stands at the gate, the warden's end opens that, and it becomes the program.
    """
    ours, ended = bwrap.stat(), 0
    for process in _processes():
        with suppress(OSError):  # it is gone, or somebody else's
            if process.parent == _INIT and _is_sandbox(process.place, ours):
                os.kill(process.pid, signal.SIGKILL)
                ended += 1
    return ended


def _is_sandbox(place: Path, bwrap: os.stat_result) -> bool:
    """Whether it is bubblewrap, has a user that only sandboxes have, or a root with a gate."""
    if os.geteuid() == 0 and FIRST_UID <= place.stat().st_uid < FIRST_UID + USERS:
        return True
    program = (place / "exe").stat()
    return os.path.samestat(program, bwrap) or (place / "root" / _GATE.lstrip("/")).exists()


def limit_process(box: Box, pid: int) -> None:
    """Set limits that hold for each process on a sandbox's first one, where nothing holds them for all together.

    A user's own processes count for the number that user may have, so where the sandbox has no user of its own, the
    number is limited only now, inside the sandbox's user namespace.
    """
    if box.by_process and box.uid is None:
        _hold(pid, box.limits)


def _hold(pid: int, limits: BoxLimits, *, beside: int = 0) -> None:
    processes, private = limits.processes + beside, limits.private_mb << 20
    for what, limit in ((resource.RLIMIT_NPROC, processes), (resource.RLIMIT_DATA, private)):
        resource.prlimit(pid, what, (limit, limit))
