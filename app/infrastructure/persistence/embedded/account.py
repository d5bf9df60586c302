"""Whom root runs PostgreSQL as, which refuses to run as root."""

from __future__ import annotations

import contextlib
import os
import pwd
import subprocess
from pathlib import Path
from typing import NamedTuple

import structlog

from app.core.errors import StartupError
from app.infrastructure.persistence.embedded import ELSEWHERE

log = structlog.get_logger()

_SYSTEM_USER = "turnstone-db"


class Account(NamedTuple):
    """A user of this machine."""

    uid: int
    gid: int


def check_owner(data: Path) -> None:
    """Raise a `StartupError` where the database is another user's, and we are not root."""
    owner = data.stat().st_uid
    if os.geteuid() not in (0, owner):
        raise StartupError(
            f"The database in {data} belongs to another user (uid {owner}).",
            f"Run as that user or as root, or let TURNSTONE_DATA_DIR name another directory, {ELSEWHERE}",
        )


def account_for(data: Path) -> Account:
    """Whom root runs the server as: the database's owner, or else a system user of its own, made when missing."""
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    with contextlib.suppress(KeyError):
        return _system_account()
    with contextlib.suppress(OSError):
        # Whether it worked shows below; it fails where another process has just made the user.
        subprocess.run(  # noqa: S603
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", _SYSTEM_USER],  # noqa: S607
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    try:
        account = _system_account()
    except KeyError:
        raise StartupError(
            f"PostgreSQL does not run as root, and the system user {_SYSTEM_USER} could not be made.",
            f"Run as an ordinary user, or make that user, {ELSEWHERE}",
        ) from None
    log.info("postgres_user_made", user=_SYSTEM_USER)
    return account


def _system_account() -> Account:
    entry = pwd.getpwnam(_SYSTEM_USER)
    return Account(entry.pw_uid, entry.pw_gid)


def let_through(path: Path, account: Account) -> None:
    """Let the server's user pass through ``path`` and every directory above it, which does not let it list them."""
    for directory in (path, *path.parents):
        found = directory.stat()
        if not found.st_mode & 0o001 and found.st_uid != account.uid:
            log.warning("directory_opened_for_postgres", path=str(directory), added="o+x")
            directory.chmod(found.st_mode & 0o7777 | 0o001)
