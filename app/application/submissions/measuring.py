"""Measures a program's CPU time beside the reference solution's.

Absolute times say little: the same program takes twice as long on another host, or on this one under load. So the two
take turns on the same test cases (candidate, reference, candidate, reference …), and so does an empty program of each
language, whose start-up is then taken off. What is compared is in :func:`app.domain.grading.compare`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from app.application.submissions.running import gather_all, run_until_told
from app.application.submissions.verdicts import CaseOutcome
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    SourceProgram,
    UnknownLanguageError,
)
from app.domain.grading import LEAST_REPETITIONS, CaseResult, MeasuredRun, Performance, compare
from app.domain.problem import Problem

LONGEST_PASS_S = 20.0
"""Of the candidate's program over all cases that are compared, once; those heavy for the reference come first."""
_STARTUPS = 2
"""Runs of an empty program in each repetition."""

EMPTY_PROGRAMS: Mapping[str, str] = {
    "python": "pass\n",
    "javascript": ";\n",
    "java": "class Main { public static void main(String[] arguments) { } }\n",
    "c": "int main(void) { return 0; }\n",
    "cpp": "int main() { return 0; }\n",
    "go": "package main\n\nfunc main() {}\n",
}
"""The least there is to start in each language."""


JudgeAgain = Callable[[int, Execution], Coroutine[Any, Any, CaseOutcome]]
"""Says of a further run of a test case that was passed, by its index, what came of it this time."""


class _CannotBeMeasuredError(Exception):
    """Something that is needed beside the candidate's program does not run."""


class _AnsweredOtherwiseError(Exception):
    """The candidate's program does not do what it did when it was graded, so its time is that of another program."""


@dataclass(frozen=True, slots=True)
class _Side:
    """A program that takes turns, and the empty one of its language."""

    program: PreparedProgram
    empty: PreparedProgram
    limits: Limits


async def measure(
    runner: CodeRunner,
    problem: Problem,
    prepared: PreparedProgram,
    results: Sequence[CaseResult],
    judge_again: JudgeAgain,
    *,
    repetitions: int = LEAST_REPETITIONS,
) -> Performance:
    """Compare a program with the reference on the test cases that it passed.

    Every run of the candidate's program is judged again: one that knows the time might answer rightly first, and be
    quick afterwards. A run that meets a limit of time counts as no less than that limit.

    Args:
        runner: as for grading.
        problem: has the reference.
        prepared: the candidate's program.
        results: what came of its cases. Those runs are no part of the comparison: they were the first, and checkers
            ran in between.
        judge_again: judges a further run.
        repetitions: of every case on either side, 3 or more.

    Raises:
        RunnerUnavailableError: the runner stopped answering.
    """
    passed = [case for case in results if case.verdict is CaseVerdict.AC]
    if not passed:
        return Performance.missing("no test case passed")
    reference = problem.reference_for(prepared.language)
    try:
        async with AsyncExitStack() as stack:
            empty = {
                language: await _prepare(runner, stack, SourceProgram(language, EMPTY_PROGRAMS[language]))
                for language in {prepared.language, reference.language}
            }
            beside = await _prepare(runner, stack, reference.as_source())
            sides = {
                "candidate": _Side(prepared, empty[prepared.language], problem.limits.of(prepared.language)),
                "reference": _Side(beside, empty[reference.language], problem.limits.of(reference.language)),
            }
            inputs = {case.index: problem.cases[case.index].input.encode() for case in passed}
            chosen = await _worth_comparing(runner, sides["reference"], passed, inputs)
            inputs = {index: inputs[index] for index in chosen}
            runs, startups = await _take_turns(runner, sides, inputs, judge_again, repetitions)
    except _CannotBeMeasuredError as error:
        return Performance.missing(str(error), fault="runner")
    except _AnsweredOtherwiseError as error:
        return Performance.missing(str(error))
    kept = _finished_everywhere(runs)
    if not kept or not all(startups.values()):
        return Performance.missing("no test case could be run again on both sides", fault="runner")
    return compare(
        kept,
        reference_language=reference.language,
        candidate_startup_ms=startups["candidate"],
        reference_startup_ms=startups["reference"],
    )


async def _worth_comparing(
    runner: CodeRunner, reference: _Side, passed: Sequence[CaseResult], inputs: Mapping[int, bytes]
) -> list[int]:
    """The cases that fit into the time there is; where not all do, the reference says which are heavy.

    The candidate's own times must not: it could spend them where nothing is to be done.
    """
    if sum(case.wall_ms or 0.0 for case in passed) / 1000 <= LONGEST_PASS_S:
        return [case.index for case in passed]
    executions = await run_until_told(runner, reference.program, list(inputs.values()), reference.limits)
    weights = dict(zip(inputs, (execution.cpu_ms for execution in executions), strict=True))
    return heaviest(passed, weights)


def heaviest(passed: Sequence[CaseResult], weights: Mapping[int, float]) -> list[int]:
    """The cases that fit into the time there is, those of the greatest weight first; in the problem's order."""
    chosen: list[int] = []
    spent = 0.0
    for case in sorted(passed, key=lambda case: weights[case.index], reverse=True):
        spent += (case.wall_ms or 0.0) / 1000
        if chosen and spent > LONGEST_PASS_S:
            break
        chosen.append(case.index)
    return sorted(chosen)


async def _prepare(runner: CodeRunner, stack: AsyncExitStack, program: SourceProgram) -> PreparedProgram:
    try:
        prepared = await stack.enter_async_context(runner.prepared(program))
    except UnknownLanguageError:
        raise _CannotBeMeasuredError(f"there is no toolchain for the reference's {program.language}") from None
    if isinstance(prepared, CompileFailed):
        raise _CannotBeMeasuredError(f"the reference does not compile: {prepared.cause}")
    return prepared


_Runs = list[tuple[MeasuredRun, Execution]]


async def _take_turns(
    runner: CodeRunner,
    sides: Mapping[str, _Side],
    inputs: Mapping[int, bytes],
    judge_again: JudgeAgain,
    repetitions: int,
) -> tuple[_Runs, dict[str, list[float]]]:
    runs: _Runs = []
    startups: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(1, repetitions + 1):
        for name, side in sides.items():
            executions = await run_until_told(runner, side.program, list(inputs.values()), side.limits)
            if name == "candidate":
                executions = await _judged(side, list(inputs), executions, judge_again)
            runs += [
                (_measured(name, repetition, index, execution), execution)
                for index, execution in zip(inputs, executions, strict=True)
            ]
        for name, side in sides.items():
            begun = await run_until_told(runner, side.empty, [b""] * _STARTUPS, side.limits)
            startups[name] += [execution.cpu_ms for execution in begun if execution.how is Ended.FINISHED]
    return runs, startups


async def _judged(
    side: _Side, indices: Sequence[int], executions: Sequence[Execution], judge_again: JudgeAgain
) -> list[Execution]:
    """The runs as they count: right ones as they are, those that ran out of time as no quicker than that."""
    outcomes = await gather_all(map(judge_again, indices, executions))
    counted = []
    for index, execution, outcome in zip(indices, executions, outcomes, strict=True):
        if outcome.verdict is CaseVerdict.TLE:
            used_ms = max(execution.cpu_ms, 1000 * side.limits.cpu_s)
            counted.append(replace(execution, how=Ended.FINISHED, cpu_ms=used_ms))
        elif outcome.verdict is CaseVerdict.SE:
            counted.append(replace(execution, how=Ended.SE))
        elif outcome.verdict is CaseVerdict.AC:
            counted.append(execution)
        else:
            raise _AnsweredOtherwiseError(
                f"test case {index} was passed, and was {outcome.verdict.value} when it was run again: {outcome.cause}"
            )
    return counted


def _measured(name: str, repetition: int, index: int, execution: Execution) -> MeasuredRun:
    side = "candidate" if name == "candidate" else "reference"
    return MeasuredRun(side, repetition, index, execution.cpu_ms, execution.wall_ms, execution.memory_kb)  # type: ignore[arg-type]  # one of the two


def _finished_everywhere(runs: _Runs) -> list[MeasuredRun]:
    """Runs of those cases that ended well each time and on both sides: the others cannot be compared."""
    broken = {run.index for run, execution in runs if execution.how is not Ended.FINISHED}
    return [run for run, _ in runs if run.index not in broken]
