"""Tries to break out of a sandbox as a candidate would, before any candidate's program is run.

Where a try succeeds nothing is graded: a result that a program could have written itself is worth less than none.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from app.domain.code_runner import Limits, RunnerUnavailableError
from app.infrastructure.runner.bubblewrap.boxes import box_limits, box_options, environment_names
from app.infrastructure.runner.bubblewrap.compiling import Run
from app.infrastructure.runner.bubblewrap.readings import started
from app.infrastructure.runner.bubblewrap.toolchains import PROGRAM, Language

_ITS_OWN = ("/", "/tmp")  # noqa: S108  # a sandbox has these itself, also where a service is at home there
_MOST_KILL_MS = 5000.0
"""On an idle machine it takes tens; this is of a program that does not die."""
_TRIES = 3
"""Of what a machine that stands still spoils."""

_LOOKS = """
import json, os, socket, sys
asked = json.load(sys.stdin)
found = {}
def reach(family, address):
    try:
        with socket.socket(family) as one:
            one.settimeout(1)
            one.connect(address)
        return "an address of the machine can be reached"
    except OSError:
        return ""
found["network"] = reach(socket.AF_INET, ("127.0.0.1", asked["port"])) or reach(socket.AF_UNIX, asked["socket"])
def readable(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False
found["files"] = " ".join(path for path in asked["paths"] if readable(path))
def written(path):
    try:
        with open(path, "w"):
            return True
    except OSError:
        return False
found["read-only root"] = " ".join(path for path in ("/x", "/program/x", "/usr/x", "/dev/x") if written(path))
found["processes"] = " ".join(pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid())
environments = [name.split("=")[0] for name in open("/proc/1/environ").read().split("\\0") if name]
found["environment"] = " ".join(name for name in environments if name not in asked["names"])
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
found["capabilities"] = "" if all(int(status[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd")) else "some"
found["new privileges"] = "" if int(status["NoNewPrivs"]) == 1 else "can be had"
try:
    os.memfd_create("x")
    found["seccomp"] = "a refused call works"
except PermissionError:
    found["seccomp"] = "" if int(status["Seccomp"]) == 2 else "is not in force"
try:
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    found["CPUs"] = "can be chosen"
except PermissionError:
    found["CPUs"] = ""
found["user"] = "is root" if os.getuid() == 0 else ""
def is_open(descriptor):
    try:
        os.fstat(descriptor)
        return True
    except OSError:
        return False
found["descriptors"] = " ".join(str(one) for one in range(3, 1024) if is_open(one))
print(json.dumps(found))
"""

_STAYS = """
import os
if os.fork() == 0:
    os.setsid()
    os.fork()
while True:
    pass
"""

_GROWS = "x = b'x' * (400 * 1024 * 1024)"

_FORKS = """
import os, time
count = 0
try:
    while count < 500:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError:
    pass
print(count)
"""


async def try_isolation(run: Run, languages: Mapping[str, Language]) -> None:
    """Try everything, with programs in Python.

    Raises:
        RunnerUnavailableError: something is not held apart, or a limit does not hold.
    """
    language = languages.get("python")
    if language is None:
        raise RunnerUnavailableError("Python's library is not where Python is.", "Install Python anew.")
    with _something_to_find() as (asked, listening):
        asked["names"] = sorted(environment_names(language))
        looked = await _try(run, language, _LOOKS, json.dumps(asked).encode())
        del listening
    try:
        found = json.loads(looked["stdout"])
    except ValueError:
        said = looked["stderr"].strip().splitlines()
        raise RunnerUnavailableError(
            f"The program that tries the sandbox does not run in it: {said[-1] if said else looked['code']}.",
            "turnstone doctor tries again; docs/runner.md says what has to be in place.",
        ) from None
    for what, leak in found.items():
        if leak:
            raise _refused(what, leak)
    short = Limits(cpu_s=0.3, wall_s=10, memory_mb=64, processes=8)
    stays, grows, forks = await asyncio.gather(
        _try(run, language, _STAYS, b"", short),
        _try(run, language, _GROWS, b"", Limits(cpu_s=10, wall_s=30, memory_mb=64)),
        _try(run, language, _FORKS, b"", Limits(cpu_s=5, wall_s=20, memory_mb=256, processes=16)),
    )
    for _ in range(_TRIES - 1):
        if stays["left"] or (stays["reason"] != "busy" and stays["late_ms"] <= _MOST_KILL_MS):
            break
        stays = await _try(run, language, _STAYS, b"", short)  # the machine stood still, which is no leak
    if stays["reason"] not in {"cpu", "wall"}:
        raise _refused("CPU time", f"is not held ({stays['reason']})")
    if stays["late_ms"] > _MOST_KILL_MS or stays["left"]:
        raise _refused("ending a program", f"took {stays['late_ms']:.0f} ms and left {stays['left']} processes")
    if grows["reason"] != "memory" and "MemoryError" not in grows["stderr"]:
        raise _refused("memory", "is not held")
    if not forks["stdout"].strip().isdigit() or int(forks["stdout"]) >= 100:
        raise _refused("the number of processes", "is not held")


async def _try(run: Run, language: Language, source: str, stdin: bytes, limits: Limits | None = None) -> dict[str, Any]:
    limits = limits or Limits(cpu_s=5, wall_s=10)
    header = {
        "options": box_options(language.run_view, language, limits.files_mb << 20),
        "argv": list(language.run(limits.memory_mb, "main.py")),
        "handle": "",
        "files": [f"{PROGRAM}/main.py"],
        "limits": box_limits(limits, language),
    }
    frame = await run(header, [stdin, source.encode()])
    stdout, stderr = (part.decode("utf-8", "replace") for part in started(frame))
    return {**frame.header, "stdout": stdout, "stderr": stderr}


@contextmanager
def _something_to_find() -> Iterator[tuple[dict[str, Any], object]]:
    """A port, a socket without a file and a file, each of which is there for everybody on the machine."""
    with (
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as nameless,
        tempfile.NamedTemporaryFile(prefix="turnstone-") as file,
    ):
        name = f"\0turnstone-{secrets.token_hex(8)}"
        nameless.bind(name)
        nameless.listen()
        Path(file.name).chmod(0o644)
        paths = [file.name, "/etc/shadow", "/etc/passwd", "/root", "/home", "/sys", "/run", "/var", str(Path.cwd())]
        with suppress(RuntimeError):  # a user without one
            paths.append(str(Path.home()))
        paths = [path for path in paths if path not in _ITS_OWN]
        yield {"port": port.getsockname()[1], "socket": name, "paths": paths}, (port, nameless)


def _refused(what: str, leak: str) -> RunnerUnavailableError:
    return RunnerUnavailableError(
        f"Programs are not kept apart from this machine, so nothing is graded: {what}: {leak}.",
        f"See docs/runner.md, or set TURNSTONE_RUNNER__BACKEND to another. (uid {os.geteuid()})",
    )
