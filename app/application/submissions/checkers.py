"""Says whether outputs are right: by comparing them here, or by a problem's own program in a sandbox of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from app.application.submissions.running import run_all
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
    UnknownLanguageError,
)
from app.domain.grading import Fault
from app.domain.problem import Checker, ProgramChecker, TestCase

ACCEPTS, REFUSES = 42, 43
"""Exit codes of a checker, as output validators of the common package format have them."""
_LIMITS = Limits(cpu_s=20.0, wall_s=40.0, memory_mb=1024, output_bytes=1024 * 1024, processes=64, files_mb=128)


@dataclass(frozen=True, slots=True)
class Judged:
    """What is said of one run; ``cause`` holds no text of the candidate's, ``fault`` says whose failure an SE is."""

    verdict: CaseVerdict
    cause: str
    fault: Fault | None = None


Check = Callable[[Sequence[tuple[TestCase, bytes]]], Awaitable[list[Judged]]]
"""Takes cases with what a program wrote on them."""


class CheckerUnusableError(Exception):
    """The problem's checker does not run, so nothing can be said of any program."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


@asynccontextmanager
async def open_check(runner: CodeRunner, checker: Checker) -> AsyncIterator[Check]:
    """The problem's checker, ready.

    Raises:
        CheckerUnusableError: it does not compile, or its language is not there.
        RunnerUnavailableError: nothing can be run now.
    """
    if not isinstance(checker, ProgramChecker):

        async def compare_here(outputs: Sequence[tuple[TestCase, bytes]]) -> list[Judged]:
            # In a thread: a large output takes a while, and others are served meanwhile.
            return await asyncio.to_thread(_compare_all, checker, outputs)

        yield compare_here
        return
    async with AsyncExitStack() as stack:
        try:
            prepared = await stack.enter_async_context(runner.prepared(checker.program.as_source()))
        except UnknownLanguageError:
            cause = f"there is no toolchain for the checker's {checker.program.language}"
            raise CheckerUnusableError(cause) from None
        if isinstance(prepared, CompileFailed):
            raise CheckerUnusableError(f"the checker does not compile: {prepared.cause}")

        async def ask_program(outputs: Sequence[tuple[TestCase, bytes]]) -> list[Judged]:
            return await _ask(runner, prepared, checker, outputs)

        yield ask_program


async def _ask(
    runner: CodeRunner, prepared: PreparedProgram, checker: ProgramChecker, outputs: Sequence[tuple[TestCase, bytes]]
) -> list[Judged]:
    inputs = [
        ProgramInput(
            stdin=output,
            files={"input": case.input.encode(), "answer": case.output.encode(), "feedback/.keep": b""},
            arguments=("input", "answer", "feedback/", *checker.arguments),
        )
        for case, output in outputs
    ]
    return [_said(execution) for execution in await run_all(runner, prepared, inputs, _LIMITS)] if inputs else []


def _said(execution: Execution) -> Judged:
    ended_by_itself = execution.how in (Ended.FINISHED, Ended.RE) and execution.signal is None
    if ended_by_itself and execution.exit_code == ACCEPTS:
        return Judged(CaseVerdict.AC, "the problem's checker accepts the output")
    if ended_by_itself and execution.exit_code == REFUSES:
        return Judged(CaseVerdict.WA, "the problem's checker refuses the output")
    if execution.how is Ended.SE:
        return Judged(CaseVerdict.SE, execution.cause, "runner")
    how = f"ended with exit code {execution.exit_code}" if ended_by_itself else execution.cause
    return Judged(CaseVerdict.SE, f"the problem's checker failed: {how}", "checker")
