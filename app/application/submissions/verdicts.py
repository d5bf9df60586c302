"""From a run to a verdict: outputs are compared out here, or by the author's program in a sandbox of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import NamedTuple

from app.domain.checking import Checker, CheckerKind, check_output
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
)
from app.domain.grading import Fault

_CHECKER_LIMITS = Limits(cpu_s=10, wall_s=30, memory_mb=512, output_bytes=1024 * 1024, files_mb=64)
_ACCEPTED, _WRONG = 42, 43
_COMPARED_AT_ONCE = 64 * 1024
"""Bytes; more is compared in a thread, for it may take a second."""


async def digest_of(output: bytes) -> bytes:
    """What tells one output from another."""
    if len(output) > _COMPARED_AT_ONCE:
        return await asyncio.to_thread(_sha256, output)
    return _sha256(output)


def _sha256(output: bytes) -> bytes:
    return sha256(output).digest()


class CheckerBrokenError(Exception):
    """The problem's checker program does not compile: its author has to mend it."""


class CaseOutcome(NamedTuple):
    """A verdict and what led to it, without the candidate's text; ``fault`` is whose failure an SE is."""

    verdict: CaseVerdict
    cause: str
    fault: Fault | None = None


class Verdicts:
    """Gives verdicts by one checker. `open_verdicts` makes it."""

    def __init__(self, runner: CodeRunner, checker: Checker, program: PreparedProgram | None) -> None:
        self._runner, self._checker, self._program = runner, checker, program

    async def verdict(self, execution: Execution, given: bytes, expected: bytes) -> CaseOutcome:
        """Judge one run. ``given`` is the case's input, ``expected`` its output.

        Raises:
            RunnerUnavailableError: the checker program cannot be run now.
        """
        if execution.how is not Ended.FINISHED:
            verdict = CaseVerdict(execution.how.value)
            return CaseOutcome(verdict, execution.cause, "runner" if verdict is CaseVerdict.SE else None)
        if self._program is not None:
            return await self._ask(self._program, execution.stdout, given, expected)
        if max(len(execution.stdout), len(expected)) > _COMPARED_AT_ONCE:
            checked = await asyncio.to_thread(check_output, self._checker, execution.stdout, expected)
        else:
            checked = check_output(self._checker, execution.stdout, expected)
        return CaseOutcome(CaseVerdict.AC if checked.accepted else CaseVerdict.WA, checked.cause)

    async def _ask(self, program: PreparedProgram, output: bytes, given: bytes, expected: bytes) -> CaseOutcome:
        case = ProgramInput(
            output,
            {"judge/input": given, "judge/answer": expected, "feedback/judgemessage.txt": b""},
            ("judge/input", "judge/answer", "feedback/", *self._checker.arguments),
        )
        [said] = [run async for run in self._runner.run(program, [case], _CHECKER_LIMITS)]
        if said.exit_code == _ACCEPTED:
            return CaseOutcome(CaseVerdict.AC, "the checker accepts it")
        if said.exit_code == _WRONG:
            return CaseOutcome(CaseVerdict.WA, "the checker refuses it")
        fault: Fault = "runner" if said.how is Ended.SE else "checker"
        return CaseOutcome(CaseVerdict.SE, f"the checker gave no verdict: {said.cause}", fault)


@asynccontextmanager
async def open_verdicts(runner: CodeRunner, checker: Checker) -> AsyncIterator[Verdicts]:
    """Make a checker ready; a program is compiled once.

    Raises:
        CheckerBrokenError: the checker program does not compile.
        UnknownLanguageError: the runner has no toolchain for it.
        RunnerUnavailableError: it cannot be compiled now.
    """
    if checker.kind is not CheckerKind.PROGRAM:
        yield Verdicts(runner, checker, None)
        return
    assert checker.program is not None
    async with runner.prepared(checker.program) as program:
        if isinstance(program, CompileFailed):
            raise CheckerBrokenError(f"The checker does not compile: {program.cause}.")
        yield Verdicts(runner, checker, program)
