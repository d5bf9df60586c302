"""Locks that the kernel drops when their holder is gone, however it died."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """A ``flock`` on its own description of a file: it counts against others in this process as well."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        _open_locks.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it has been neither released nor left."""
        return self.fd >= 0

    def try_lock(self, *, shared: bool) -> bool:
        """Take the lock, or change its kind, without waiting; when that fails, none is held any more."""
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Unlock for everyone who inherited it, too, and close. Idempotent."""
        if self.is_open:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            self.leave()

    def leave(self) -> None:
        """Close here only: who inherited the lock keeps it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_open_locks: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _forget_locks_in_child() -> None:
    """A forked child shares its parent's locks: it must neither keep them alive nor release them."""
    for lock in list(_open_locks):
        lock.leave()


os.register_at_fork(after_in_child=_forget_locks_in_child)
