"""Measures a program's CPU time beside the reference solution's.

Absolute times say little: the same program takes twice as long on another host, or on this one under load. So the two
take turns on the same test cases (candidate, reference, candidate, reference …), and so does an empty program of each
language, whose start-up is then taken off. What is compared is in :func:`app.domain.grading.compare`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from app.application.submissions.running import run_until_told
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
"""Of the candidate's program over all cases that are compared, once; heavy cases are taken first."""
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


class _CannotBeMeasuredError(Exception):
    """Something that is needed beside the candidate's program does not run."""


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
    *,
    repetitions: int = LEAST_REPETITIONS,
) -> Performance:
    """Compare a program with the reference on the test cases that it passed.

    Args:
        runner: as for grading.
        problem: has the reference.
        prepared: the candidate's program.
        results: what came of its cases. Those runs are no part of the comparison: they were the first, and checkers
            ran in between.
        repetitions: of every case on either side, 3 or more.

    Raises:
        RunnerUnavailableError: the runner stopped answering.
    """
    cases = worth_comparing(results)
    if not cases:
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
            inputs = {index: problem.cases[index].input.encode() for index in cases}
            runs, startups = await _take_turns(runner, sides, inputs, repetitions)
    except _CannotBeMeasuredError as error:
        return Performance.missing(str(error), fault="runner")
    kept = _finished_everywhere(runs)
    if not kept or not all(startups.values()):
        by_us = not all(startups.values()) or any(_is_our_failure(run, execution) for run, execution in runs)
        why = "no test case could be run again on both sides"
        return Performance.missing(why, fault="runner" if by_us else None)
    return compare(
        kept,
        reference_language=reference.language,
        candidate_startup_ms=startups["candidate"],
        reference_startup_ms=startups["reference"],
    )


def worth_comparing(results: Sequence[CaseResult]) -> list[int]:
    """The passed cases that fit into the time there is, those with the most CPU first; in the problem's order."""
    passed = [case for case in results if case.verdict is CaseVerdict.AC]
    chosen: list[int] = []
    spent = 0.0
    for case in sorted(passed, key=lambda case: case.cpu_ms or 0.0, reverse=True):
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
    runner: CodeRunner, sides: Mapping[str, _Side], inputs: Mapping[int, bytes], repetitions: int
) -> tuple[_Runs, dict[str, list[float]]]:
    runs: _Runs = []
    startups: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(1, repetitions + 1):
        for name, side in sides.items():
            executions = await run_until_told(runner, side.program, list(inputs.values()), side.limits)
            runs += [
                (_measured(name, repetition, index, execution), execution)
                for index, execution in zip(inputs, executions, strict=True)
            ]
        for name, side in sides.items():
            begun = await run_until_told(runner, side.empty, [b""] * _STARTUPS, side.limits)
            startups[name] += [execution.cpu_ms for execution in begun if execution.how is Ended.FINISHED]
    return runs, startups


def _measured(name: str, repetition: int, index: int, execution: Execution) -> MeasuredRun:
    side = "candidate" if name == "candidate" else "reference"
    return MeasuredRun(side, repetition, index, execution.cpu_ms, execution.wall_ms, execution.memory_kb)  # type: ignore[arg-type]  # one of the two


def _is_our_failure(run: MeasuredRun, execution: Execution) -> bool:
    """A program that passed may end otherwise this time, and that is its own matter; the reference may not."""
    return execution.how is Ended.SE or (run.program == "reference" and execution.how is not Ended.FINISHED)


def _finished_everywhere(runs: _Runs) -> list[MeasuredRun]:
    """Runs of those cases that ended well each time and on both sides: the others cannot be compared."""
    broken = {run.index for run, execution in runs if execution.how is not Ended.FINISHED}
    return [run for run, _ in runs if run.index not in broken]
