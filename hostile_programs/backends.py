"""The backends that can be tried on this machine."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from app.domain.code_runner import CodeRunner, Isolation
from app.infrastructure.runner.bubblewrap.accounts import tree_of
from app.infrastructure.runner.bubblewrap.cgroups import own_cgroups
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner, Level
from app.infrastructure.runner.bubblewrap.users import FIRST_UID, USERS
from hostile_programs.trial import Leftovers


class Backend(NamedTuple):
    """One that is ready."""

    runner: CodeRunner
    isolation: Isolation
    leftovers: Leftovers
    pid: int


@asynccontextmanager
async def open_bubblewrap(level: Level | None = None, concurrency: int = 2) -> AsyncIterator[Backend]:
    """Bubblewrap on this machine.

    Raises:
        RunnerUnavailableError: it does not work here, or limits cannot be held in this way.
    """
    runner = BubblewrapRunner(concurrency, level=level)
    try:
        isolation = await runner.self_test()
        pid = runner.warden_pid or 0
        yield Backend(runner, isolation, lambda: _left_by(pid), pid)
    finally:
        await runner.close()


def _left_by(warden: int) -> list[str]:
    """Processes and groups below a warden whose runs have all ended, and files of its users."""
    left = [f"process {pid} is left" for pid in tree_of(warden) if pid != warden and not _is_zombie(pid)]
    own = own_cgroups()
    for place in {*own.v1.values(), *filter(None, (own.v2,))}:
        left += [f"group {group} is left" for group in place.glob(f"turnstone.*.{warden}-*/*/")]
    if os.geteuid() == 0:
        for folder in map(Path, ("/tmp", "/var/tmp", "/dev/shm")):  # noqa: S108  # where a program would leave something
            left += [
                f"file {path} is left" for path in folder.iterdir() if FIRST_UID <= _owner(path) < FIRST_UID + USERS
            ]
    return left


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except OSError:
        return 0


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (OSError, IndexError):
        return True
