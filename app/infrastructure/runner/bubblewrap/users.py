"""Users for sandboxes, of whom no two sandboxes on this machine have the same at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

FIRST_UID, USERS = 60_800, 380
"""A range that no distribution gives out."""


@contextmanager
def a_user() -> Iterator[int]:
    """One that nobody else has.

    The kernel counts a user's processes wherever they are, so two services on one machine keep out of each other's way:
    a name of an abstract socket is a lock that goes away with its holder.

    Raises:
        OSError: all are taken.
    """
    start = random.randrange(USERS)  # noqa: S311  # not a secret: spreads those who cannot see each other's locks
    for number in range(USERS):
        uid = FIRST_UID + (start + number) % USERS
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as lock:
            try:
                lock.bind(f"\0turnstone-user-{uid}")
            except OSError:
                continue
            yield uid
            return
    raise OSError(f"all {USERS} users for sandboxes are taken")
