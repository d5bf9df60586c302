"""Runs a program on the test cases of a problem, and says of each what came of it.

Right or wrong is what a checker says of the bytes that left the sandbox; nothing that the program says of itself
counts. What is not the program's fault is SE, is tried again, and never becomes a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial

from app.application.submissions.measuring import measure
from app.application.submissions.running import TRIES, batch_size, gather_all, run_all
from app.application.submissions.verdicts import CaseOutcome, CheckerBrokenError, Verdicts, digest_of, open_verdicts
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    Ended,
    Execution,
    Isolation,
    PreparedProgram,
    SourceProgram,
    UnknownLanguageError,
)
from app.domain.grading import CaseResult, Compilation, Fault, GradingOutcome, Performance
from app.domain.problem import Problem
from app.domain.problem_parts import TestCase

Progress = Callable[[int, int], None]
"""Is told how many test cases are done, and of how many."""


def silent(_done: int, _total: int) -> None:
    """Progress that nobody reads."""


async def grade(
    runner: CodeRunner,
    problem: Problem,
    program: SourceProgram,
    *,
    isolation: Isolation,
    measured: bool = True,
    on_progress: Progress = silent,
) -> GradingOutcome:
    """Compile a program, run it on every test case, and measure it beside the reference.

    Args:
        runner: runs it.
        problem: what it is to solve.
        program: in one of the problem's languages.
        isolation: what the runner's self-test has found, for the record.
        measured: whether to compare running times, where any case passed.
        on_progress: is told after each batch.

    Raises:
        RunnerUnavailableError: nothing can be said of the program now; try again later.
    """
    never_run = partial(_never_run, problem, program, isolation)
    async with AsyncExitStack() as stack:
        try:
            verdicts = await stack.enter_async_context(open_verdicts(runner, problem.checker.as_checker()))
        except (CheckerBrokenError, UnknownLanguageError) as error:
            cause = str(error) if isinstance(error, CheckerBrokenError) else "There is no toolchain for the checker."
            return never_run(Compilation("unavailable", cause=cause), CaseVerdict.SE, "checker")
        try:
            prepared = await stack.enter_async_context(runner.prepared(program))
        except UnknownLanguageError:
            cause = f"there is no toolchain for {program.language}"
            return never_run(Compilation("unavailable", cause=cause), CaseVerdict.SE, "runner")
        if isinstance(prepared, CompileFailed):
            return never_run(Compilation("failed", prepared.message, prepared.cause), CaseVerdict.CE)
        run = _Run(runner, prepared, problem, verdicts)
        results = await _run_cases(run, on_progress)
        performance = Performance.missing("was not to be measured")
        if measured:
            count = len(results)
            performance = await measure(
                runner, problem, prepared, results, run.judge_again, on_progress=lambda: on_progress(count, count)
            )
    return GradingOutcome(program.language, Compilation("ok"), tuple(results), performance, isolation)


def _never_run(
    problem: Problem,
    program: SourceProgram,
    isolation: Isolation,
    compilation: Compilation,
    verdict: CaseVerdict,
    fault: Fault | None = None,
) -> GradingOutcome:
    cases = tuple(
        CaseResult(index, case.name, case.group, case.weight, verdict, compilation.cause, fault=fault)
        for index, case in enumerate(problem.cases)
    )
    performance = Performance.missing(compilation.cause)
    return GradingOutcome(program.language, compilation, cases, performance, isolation)


@dataclass(frozen=True, slots=True)
class _Run:
    runner: CodeRunner
    prepared: PreparedProgram
    problem: Problem
    verdicts: Verdicts
    right: dict[int, bytes] = field(default_factory=dict)
    """By the index of a case the hash of an output that was accepted."""

    async def judge_again(self, index: int, execution: Execution) -> CaseOutcome:
        """A further run of a case; a checker is asked only where the program says something else than before."""
        if execution.how is Ended.FINISHED and await digest_of(execution.stdout) == self.right.get(index):
            return CaseOutcome(CaseVerdict.AC, "as before")
        case = self.problem.cases[index]
        for _ in range(TRIES):
            outcome = await self.verdicts.verdict(execution, case.input.encode(), case.output.encode())
            if outcome.verdict is not CaseVerdict.SE:
                break
        return outcome


async def _run_cases(run: _Run, on_progress: Progress) -> list[CaseResult]:
    results: list[CaseResult] = []
    cases = run.problem.cases
    size = batch_size(run.problem.limits.of(run.prepared.language))
    for start in range(0, len(cases), size):
        batch = cases[start : start + size]
        found = await _run_batch(run, batch)
        for place, (execution, outcome) in enumerate(found):
            if outcome.verdict is CaseVerdict.AC:
                run.right[start + place] = await digest_of(execution.stdout)
        results += [
            _result(start + place, case, execution, outcome)
            for place, (case, (execution, outcome)) in enumerate(zip(batch, found, strict=True))
        ]
        on_progress(len(results), len(cases))
    return results


async def _run_batch(run: _Run, cases: Sequence[TestCase]) -> list[tuple[Execution, CaseOutcome]]:
    """Run and judge; what is the system's fault once more, `TRIES` times in all."""
    limits = run.problem.limits.of(run.prepared.language)
    found: dict[int, tuple[Execution, CaseOutcome]] = {}
    waiting = list(range(len(cases)))
    for _ in range(TRIES):
        inputs = [cases[place].input.encode() for place in waiting]
        executions = await run_all(run.runner, run.prepared, inputs, limits)
        # Not before the program's last run: a checker's sandbox and the program's would wait for each other.
        outcomes = await gather_all(
            run.verdicts.verdict(execution, given, cases[place].output.encode())
            for place, given, execution in zip(waiting, inputs, executions, strict=True)
        )
        found |= dict(zip(waiting, zip(executions, outcomes, strict=True), strict=True))
        waiting = [place for place in waiting if found[place][1].verdict is CaseVerdict.SE]
        if not waiting:
            break
    return [found[place] for place in range(len(cases))]


def _result(index: int, case: TestCase, execution: Execution, outcome: CaseOutcome) -> CaseResult:
    return CaseResult(
        index,
        case.name,
        case.group,
        case.weight,
        outcome.verdict,
        outcome.cause,
        cpu_ms=execution.cpu_ms,
        wall_ms=execution.wall_ms,
        memory_kb=execution.memory_kb,
        stdout_bytes=execution.stdout_bytes,
        stderr_bytes=execution.stderr_bytes,
        exit_code=execution.exit_code,
        signal=execution.signal,
        fault=outcome.fault,
    )
