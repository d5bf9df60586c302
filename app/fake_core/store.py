"""What Core has taken, in a file that outlives it: JSON Lines, on the disk before an event is answered for."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from app.core.errors import StartupError
from app.fake_core.ledger import Item


class Store:
    """An open file, this process's alone. Close it after use.

    Args:
        path: is made where it is missing.

    Raises:
        StartupError: it cannot be used, and what to do about it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("ab+", buffering=0)
        except OSError as error:
            raise StartupError(f"{path} cannot be written: {error.strerror}.", "Choose another file.") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise StartupError(f"{path} is in use by another Core.", "End it, or choose another file.") from None
        self._written = self._synced = 0
        self._syncing = asyncio.Lock()

    def items(self) -> Iterator[Item]:
        """What the file holds. A last line that a crash has left half written is cut off: it was never answered for.

        Raises:
            StartupError: the file was written by something else.
        """
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            if (item := _parse(line)) is None:
                raise StartupError(
                    f"Line {number} of {self._path} is not what a Core has stored.", "Choose another file."
                )
            yield item

    def append(self, item: Item) -> None:
        """Add an event; it is safe once `settle` has returned.

        Raises:
            OSError: there is no room for it, and the file is as it was.
        """
        line = json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        before = os.fstat(self._file.fileno()).st_size
        if self._file.write(line) < len(line):
            self._file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._written += 1

    async def settle(self) -> None:
        """Wait until everything that was added so far is on the disk. Whoever waits together, shares one fsync."""
        wanted = self._written
        async with self._syncing:
            if self._synced < wanted:
                covered = self._written
                await asyncio.to_thread(os.fsync, self._file.fileno())
                self._synced = covered

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse(line: bytes) -> Item | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    fits = (
        isinstance(value, dict)
        and isinstance(value.get("body"), dict)
        and isinstance(value.get("headers"), dict)
        and "webhook-id" in value["headers"]
    )
    return value if fits else None
