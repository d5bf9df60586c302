"""A root warden's own view of the file system, where users without rights can reach what sandboxes need.

Toolchains may lie where only root can go (``/root/.pyenv``). The warden takes a mount namespace of its own and mounts
them in a place that is its own too, so nothing of it is seen outside, and nothing is left when it ends.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_PLACE = Path("/run")
"""Covered in the warden's namespace only. It holds sockets of the machine, and no toolchain."""


def reachable(path: Path) -> bool:
    """Whether a user without rights can get there and read it."""
    try:
        mode = path.stat().st_mode
        can = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() else 0)
        return mode & can == can and all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    except OSError:
        return False


def stage(paths: Iterable[Path]) -> dict[str, str]:
    """Where each of ``paths`` can be reached from; only for root.

    Raises:
        OSError: this root may not mount (a container without ``CAP_SYS_ADMIN``).
    """
    hidden = [path for path in paths if not reachable(path)]
    if not hidden:
        return {}
    _call("unshare", _CLONE_NEWNS)
    _mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
    # Before the cover comes over them, and in the namespace they are mounted in.
    opened = [(path, os.open(path, os.O_PATH)) for path in hidden]
    _mount("tmpfs", _PLACE, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
    places = {}
    for number, (path, descriptor) in enumerate(opened):
        place = _PLACE / f"{number}-{path.name}"
        if path.is_dir():
            place.mkdir()
        else:
            place.touch()
        _mount(f"/proc/self/fd/{descriptor}", place, None, _MS_BIND | _MS_REC)
        os.close(descriptor)
        places[str(path)] = str(place)
    return places


def _mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    _call(
        "mount", source.encode(), str(target).encode(), kind.encode() if kind else None, flags, options.encode() or None
    )


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    converted = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in arguments]
    if getattr(libc, name)(*converted) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
