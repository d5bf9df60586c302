"""Runs a program on the test cases of a problem, and says of each what came of it.

Right or wrong is what a checker says of the bytes that left the sandbox; nothing that the program says of itself
counts. What is not the program's fault is SE, is tried again, and never becomes a wrong answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from app.application.submissions.checkers import Check, CheckerUnusableError, Judged, open_check
from app.application.submissions.measuring import measure
from app.application.submissions.running import run_all
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    Ended,
    Execution,
    Isolation,
    Limits,
    PreparedProgram,
    SourceProgram,
    UnknownLanguageError,
)
from app.domain.grading import CaseResult, Compilation, Fault, GradingOutcome, Performance
from app.domain.problem import Problem, TestCase

Progress = Callable[[int, int], None]
"""Is told how many test cases are done, and of how many."""

TRIES = 3
"""Of a run that the system itself lets fail."""
_BATCH = 16
"""Test cases that are run before their outputs are checked: as many outputs are held at once."""


def silent(_done: int, _total: int) -> None:
    """Progress that nobody reads."""


async def grade(
    runner: CodeRunner,
    problem: Problem,
    program: SourceProgram,
    *,
    measured: bool = True,
    on_progress: Progress = silent,
) -> GradingOutcome:
    """Compile a program, run it on every test case, and measure it beside the reference.

    Args:
        runner: runs it.
        problem: what it is to solve.
        program: in one of the problem's languages.
        measured: whether to compare running times, where any case passed.
        on_progress: is told after each batch.

    Raises:
        RunnerUnavailableError: nothing can be said of the program now; try again later.
    """
    isolation = await runner.self_test()
    try:
        async with open_check(runner, problem.checker) as check, runner.prepared(program) as prepared:
            if isinstance(prepared, CompileFailed):
                failed = Compilation("failed", prepared.message, prepared.cause)
                return _never_run(problem, program, failed, CaseVerdict.CE, isolation)
            limits = problem.limits.of(program.language)
            results = await _run_cases(runner, prepared, problem.cases, limits, check, on_progress)
            performance = Performance.missing("was not to be measured")
            if measured:
                performance = await measure(runner, problem, prepared, results)
    except UnknownLanguageError:
        cause = f"there is no toolchain for {program.language}"
        unavailable = Compilation("unavailable", cause=cause)
        return _never_run(problem, program, unavailable, CaseVerdict.SE, isolation, "runner")
    except CheckerUnusableError as error:
        unavailable = Compilation("unavailable", cause=error.cause)
        return _never_run(problem, program, unavailable, CaseVerdict.SE, isolation, "checker")
    return GradingOutcome(program.language, Compilation("ok"), tuple(results), performance, isolation)


def _never_run(
    problem: Problem,
    program: SourceProgram,
    compilation: Compilation,
    verdict: CaseVerdict,
    isolation: Isolation,
    fault: Fault | None = None,
) -> GradingOutcome:
    cases = tuple(
        CaseResult(index, case.name, case.group, case.weight, verdict, compilation.cause, fault=fault)
        for index, case in enumerate(problem.cases)
    )
    performance = Performance.missing(compilation.cause)
    return GradingOutcome(program.language, compilation, cases, performance, isolation)


async def _run_cases(
    runner: CodeRunner,
    prepared: PreparedProgram,
    cases: Sequence[TestCase],
    limits: Limits,
    check: Check,
    on_progress: Progress,
) -> list[CaseResult]:
    results: list[CaseResult] = []
    for batch in _batches(enumerate(cases)):
        found = await _run_batch(runner, prepared, [case for _, case in batch], limits, check)
        results += [
            _result(index, case, execution, judged)
            for (index, case), (execution, judged) in zip(batch, found, strict=True)
        ]
        on_progress(len(results), len(cases))
    return results


def _batches(cases: Iterable[tuple[int, TestCase]]) -> Iterator[list[tuple[int, TestCase]]]:
    """Lists of a few cases each. A checker runs between them, never while the program holds its sandbox."""
    found = list(cases)
    for start in range(0, len(found), _BATCH):
        yield found[start : start + _BATCH]


async def _run_batch(
    runner: CodeRunner, prepared: PreparedProgram, cases: Sequence[TestCase], limits: Limits, check: Check
) -> list[tuple[Execution, Judged]]:
    """Run and check; what is the system's fault once more, `TRIES` times in all."""
    found: dict[int, tuple[Execution, Judged]] = {}
    waiting = list(range(len(cases)))
    for _ in range(TRIES):
        inputs = [cases[place].input.encode() for place in waiting]
        executions = await run_all(runner, prepared, inputs, limits)
        finished = [
            (place, execution)
            for place, execution in zip(waiting, executions, strict=True)
            if execution.how is Ended.FINISHED
        ]
        judged = await check([(cases[place], execution.stdout) for place, execution in finished])
        by_checker = dict(zip((place for place, _ in finished), judged, strict=True))
        for place, execution in zip(waiting, executions, strict=True):
            found[place] = (execution, by_checker.get(place) or _by_ending(execution))
        waiting = [place for place in waiting if found[place][1].verdict is CaseVerdict.SE]
        if not waiting:
            break
    return [found[place] for place in range(len(cases))]


def _by_ending(execution: Execution) -> Judged:
    verdict = CaseVerdict(execution.how.value)
    return Judged(verdict, execution.cause, "runner" if verdict is CaseVerdict.SE else None)


def _result(index: int, case: TestCase, execution: Execution, judged: Judged) -> CaseResult:
    return CaseResult(
        index,
        case.name,
        case.group,
        case.weight,
        judged.verdict,
        judged.cause,
        cpu_ms=execution.cpu_ms,
        wall_ms=execution.wall_ms,
        memory_kb=execution.memory_kb,
        stdout_bytes=execution.stdout_bytes,
        stderr_bytes=execution.stderr_bytes,
        exit_code=execution.exit_code,
        signal=execution.signal,
        fault=judged.fault,
    )
