"""Runs hostile programs and looks, from outside, at what became of the machine."""

from __future__ import annotations

import random
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.application.submissions.verdicts import open_verdicts
from app.domain.checking import Checker, CheckerKind
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    CompileLimits,
    Ended,
    Execution,
    Limits,
    SourceProgram,
)
from hostile_programs.forging import Forged
from hostile_programs.program import ESCAPED, Hostile

COMPILE = CompileLimits(cpu_s=3, wall_s=20, memory_mb=512, output_bytes=16 * 1024 * 1024, files_mb=32)
Leftovers = Callable[[], list[str]]
"""Says what a backend has left on the machine: processes, groups, files."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there to be found, for everybody on the machine."""

    secret: str
    file: Path
    stdin: bytes
    listeners: tuple[socket.socket, ...]

    def touched(self) -> list[str]:
        """What somebody got at."""
        found = []
        if self.file.read_text() != self.secret:
            found.append("a file of the machine was changed")
        for listener in self.listeners:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                continue
            found.append(f"{listener.getsockname()} of the machine was reached")
        return found


@contextmanager
def surroundings(pid: int) -> Iterator[Surroundings]:
    """Put them there; ``pid`` is of a process to reach for."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        folder.chmod(0o755)
        secret = f"CANARY-{secrets.token_hex(12)}"
        file, path, nameless = folder / "secret", folder / "socket", f"hostile-{secrets.token_hex(8)}"
        file.write_text(secret)
        file.chmod(0o644)
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listeners = [port]
        for address in (f"\0{nameless}", str(path)):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(address)
            listener.listen()
            listeners.append(listener)
        path.chmod(0o777)
        for listener in listeners:
            listener.setblocking(False)
        lines = [str(port.getsockname()[1]), nameless, str(path), str(file), str(pid)]
        yield Surroundings(secret, file, "\n".join(lines).encode(), tuple(listeners))


@dataclass(slots=True)
class Trial:
    """What became of one program: ``problems`` is empty where all is well; ``late_ms`` is from the limit to its end."""

    name: str
    ended: str = ""
    late_ms: float | None = None
    problems: list[str] = field(default_factory=list)


async def attempt(runner: CodeRunner, hostile: Hostile, around: Surroundings) -> Trial:
    """Run one program and look at what it got at."""
    trial = Trial(hostile.name)
    async with runner.prepared(SourceProgram(hostile.language, hostile.source), COMPILE) as program:
        if isinstance(program, CompileFailed):
            trial.ended = "CE"
            if hostile.ends:
                trial.problems.append(f"does not compile: {program.cause}: {program.message[:300]}")
            if around.secret in program.message or "root:" in program.message:
                trial.problems.append("the compiler shows what is on the machine")
        else:
            [run] = [run async for run in runner.run(program, [around.stdin], hostile.limits)]
            _look_at(trial, run, hostile, around)
    trial.problems += around.touched()
    return trial


def _look_at(trial: Trial, run: Execution, hostile: Hostile, around: Surroundings) -> None:
    trial.ended = run.how.value
    said = (run.stdout + run.stderr).decode("utf-8", "replace")
    if ESCAPED in said:
        trial.problems.append("; ".join(line for line in said.splitlines() if ESCAPED in line)[:300])
    if around.secret in said or "root:x:" in said:
        trial.problems.append("it read what is on the machine")
    if run.how is Ended.SE and "too busy" in run.cause:
        return  # this machine's fault; it says so, and it was ended
    if run.how not in hostile.ends:
        tail = run.stderr[-200:].decode("utf-8", "replace")
        trial.problems.append(
            f"ended as {run.how.value} ({run.cause}), not {'/'.join(sorted(hostile.ends)) or 'CE'}: {tail}"
        )
    if run.how is Ended.TLE:
        trial.late_ms = run.late_ms


_CHECKER = """
import sys
wanted = open(sys.argv[2]).read().split()
sys.exit(42 if sys.stdin.read().split() == wanted else 43)
"""
_CHECKERS = {
    "tokens": Checker(),
    "floats": Checker(CheckerKind.FLOATS, absolute=1e-6, relative=1e-6),
    "program": Checker(CheckerKind.PROGRAM, program=SourceProgram("python", _CHECKER)),
}
_CASES = 3


async def forge(runner: CodeRunner, forged: Forged) -> list[CaseVerdict]:
    """The verdicts it got, one a case; the sums are made up anew each time."""
    pairs = [(random.randrange(10**6, 10**9), random.randrange(10**6, 10**9)) for _ in range(_CASES)]  # noqa: S311  # not a secret
    cases = [(f"{a} {b}\n".encode(), f"{a + b}\n".encode()) for a, b in pairs]
    limits = Limits(cpu_s=2, wall_s=6, memory_mb=128, output_bytes=4 * 1024 * 1024)
    async with (
        open_verdicts(runner, _CHECKERS[forged.checker]) as verdicts,
        runner.prepared(SourceProgram(forged.language, forged.source), COMPILE) as program,
    ):
        if isinstance(program, CompileFailed):
            return [CaseVerdict.CE]
        given = [stdin for stdin, _ in cases]
        runs = [run async for run in runner.run(program, given, limits)]
        return [
            (await verdicts.verdict(run, stdin, expected)).verdict
            for run, (stdin, expected) in zip(runs, cases, strict=True)
        ]
