"""Tries from inside what a service elsewhere keeps apart.

Nothing of the machine behind it can be seen from here, so this is less than what is tried of a backend on this machine:
the level is called ``remote``.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol
from urllib.parse import urlsplit

from app.domain.code_runner import (
    CompileFailed,
    CompileLimits,
    Ended,
    Execution,
    Isolation,
    Limits,
    PreparedProgram,
    ProgramInput,
    RunnerUnavailableError,
    SourceProgram,
)

_KEPT_S = 900.0
_FAILED_S = 5.0
_SECRETS = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL")
_MOST_PROCESSES = 16
_PORTS = (5050, 5051, 2358, 5432, 6379)
"""Where the engines and what they store in listen, beside the port of the service's address."""

_LOOKS = """
import json, os, socket, sys, time
asked = json.load(sys.stdin)
found = {}
def reaches(family, kind, address):
    try:
        with socket.socket(family, kind) as one:
            one.settimeout(0.5)
            one.connect(address)
        return True
    except OSError:
        return False
roads = [(socket.AF_INET, ("192.0.2.1", 9)), (socket.AF_INET6, ("2001:db8::1", 9))]
out = [address[0] for family, address in roads if reaches(family, socket.SOCK_DGRAM, address)]
out += [str(port) for port in asked["ports"] if reaches(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", port))]
found["network"] = " ".join(out)
places = [".", "/tmp", "/var/tmp", "/dev/shm", os.environ.get("HOME", ".")]
seen = []
for place in places:
    try:
        seen += [os.path.join(place, name) for name in os.listdir(place) if name.startswith("turnstone-probe-")]
    except OSError:
        pass
found["files of another run"] = " ".join(seen)
if asked["leave"]:
    for place in places:
        try:
            with open(os.path.join(place, "turnstone-probe-" + asked["leave"]), "w") as file:
                file.write("x")
        except OSError:
            pass
    time.sleep(0.5)
names = list(os.environ)
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        names += [part.split("=")[0] for part in open("/proc/%s/environ" % pid).read().split("\\0")]
    except OSError:
        pass
found["names"] = sorted(set(filter(None, names)))
found["processes"] = sum(map(str.isdigit, os.listdir("/proc")))
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines() if ":" in line)
found["capabilities"] = "" if int(status.get("CapEff", "0"), 16) == 0 else "some are held"
found["user"] = os.getuid()
found["seccomp"] = int(status.get("Seccomp", "0"))
print(json.dumps(found))
"""

_LIMITED = """
import os, sys, time
wanted = sys.stdin.read()
if wanted == "cpu":
    while True:
        pass
if wanted == "memory":
    kept = b"x" * (400 * 1024 * 1024)
    print("had it")
if wanted == "processes":
    count = 0
    try:
        while count < 300:
            if os.fork() == 0:
                time.sleep(10)
                os._exit(0)
            count += 1
    except OSError:
        pass
    print(count)
"""
_LOOK = Limits(cpu_s=3, wall_s=10, memory_mb=128, output_bytes=256 * 1024, processes=8)
_SHORT = Limits(cpu_s=0.5, wall_s=5, memory_mb=64, output_bytes=64 * 1024, processes=8)


class Tried(Protocol):
    """What of a backend is tried; `prepare` does not ask whether it has been."""

    @property
    def name(self) -> str:
        """As `CodeRunner.name`."""

    def prepare(
        self, program: SourceProgram, limits: CompileLimits = ...
    ) -> AbstractAsyncContextManager[PreparedProgram | CompileFailed]:
        """As `CodeRunner.prepared`."""

    def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        """As `CodeRunner.run`."""


class KeptIsolation:
    """Knows whether isolation holds: what was found is believed for a quarter of an hour, a failure for 5 s."""

    def __init__(self, try_it: Callable[[], Awaitable[Isolation]]) -> None:
        self._try_it = try_it
        self._trying = asyncio.Lock()
        self._found: tuple[float, Isolation] | None = None
        self._failed: tuple[float, RunnerUnavailableError] | None = None

    async def anew(self) -> Isolation:
        """Try it now.

        Raises:
            RunnerUnavailableError: it does not hold, or the service is away.
        """
        async with self._trying:
            return await self._try()

    async def ensure(self) -> None:
        """Try it where nothing is known.

        Raises:
            RunnerUnavailableError: as `anew`.
        """
        async with self._trying:
            now = time.monotonic()
            if self._found is not None and now - self._found[0] < _KEPT_S:
                return
            if self._failed is not None and now - self._failed[0] < _FAILED_S:
                raise self._failed[1]
            await self._try()

    async def _try(self) -> Isolation:
        self._found = self._failed = None
        try:
            isolation = await self._try_it()
        except RunnerUnavailableError as error:
            self._failed = (time.monotonic(), error)
            raise
        self._found = (time.monotonic(), isolation)
        return isolation


async def try_remote(runner: Tried, url: str, details: Mapping[str, str]) -> Isolation:
    """Look around from inside, leave something and look for it, use up what is limited; with programs in Python.

    Raises:
        RunnerUnavailableError: something is not kept apart, a limit does not hold, or nothing can be run.
    """
    ports = sorted({*_PORTS, port} if (port := urlsplit(url).port) else {*_PORTS})
    look = json.dumps({"ports": ports, "leave": ""}).encode()
    leave = json.dumps({"ports": ports, "leave": secrets.token_hex(8)}).encode()
    async with runner.prepare(SourceProgram("python", _LOOKS)) as looks:
        looked = [*await _runs(runner, looks, [leave, look], _LOOK), *await _runs(runner, looks, [look], _LOOK)]
    found = [_read(runner, run) for run in looked]
    for one in found:
        _judge(runner, one)
    async with runner.prepare(SourceProgram("python", _LIMITED)) as limited:
        loops, grows, forks = await _runs(runner, limited, [b"cpu", b"memory", b"processes"], _SHORT)
    if loops.how is not Ended.TLE:
        raise _refused(runner, "CPU time is not limited")
    if grows.how is Ended.FINISHED or b"had it" in grows.stdout:
        raise _refused(runner, "memory is not limited")
    if forks.stdout.strip().isdigit() and int(forks.stdout) >= 100:
        raise _refused(runner, "the number of processes is not limited")
    seen = {
        "network": "no way out of the sandbox",
        "files": "those of another run are not seen",
        "user": str(found[0]["user"]),
        "seccomp": "in force" if found[0]["seccomp"] else "not in force",
        "limits": "CPU time, memory and processes tried",
    }
    return Isolation(runner.name, "remote", {**details, **seen})


async def _runs(
    runner: Tried, program: PreparedProgram | CompileFailed, inputs: Sequence[bytes], limits: Limits
) -> list[Execution]:
    if isinstance(program, CompileFailed):
        raise _refused(runner, f"the program that tries it is refused ({program.cause})")
    return [run async for run in runner.run(program, inputs, limits)]


def _read(runner: Tried, run: Execution) -> dict[str, object]:
    try:
        found = json.loads(run.stdout) if run.how is Ended.FINISHED else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise RunnerUnavailableError(
            f"The program that tries {runner.name}'s sandbox does not run in it: {run.cause}.",
            "turnstone doctor tries again; docs/runner.md says what has to be in place.",
        )
    return found


def _judge(runner: Tried, found: Mapping[str, object]) -> None:
    for what in ("network", "files of another run", "capabilities"):
        if found.get(what) != "":
            raise _refused(runner, f"{what}: {found.get(what)}")
    names, processes = found.get("names"), found.get("processes")
    held = [name for name in names if _SECRETS.search(str(name).upper())] if isinstance(names, list) else ["unreadable"]
    if held:
        raise _refused(runner, f"secrets' names are in the environment: {' '.join(map(str, held))}")
    if not isinstance(processes, int) or processes > _MOST_PROCESSES:
        raise _refused(runner, f"{processes} processes are seen")


def _refused(runner: Tried, leak: str) -> RunnerUnavailableError:
    return RunnerUnavailableError(
        f"{runner.name} does not keep programs apart, so nothing is graded: {leak}.",
        "See docs/runner.md on how to start it.",
    )
