"""Measures a program's CPU time beside the reference solution's.

Absolute times say little: the same program takes twice as long on another host, or on this one under load. So the two
take turns on the same test cases (candidate, reference, candidate, reference …), and so does an empty program of each
language, whose start-up is then taken off. What is compared is in :func:`app.domain.grading.compare`.

Nothing that the candidate's program can steer decides what it is compared by, and each of its runs is judged again: a
program that knows the time could be right while it is graded, and do nothing afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from app.application.submissions.running import batch_size, gather_all, run_until_told
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

LONGEST_PASS_S = 120.0
"""CPU that the candidate's program could take for all cases that are compared, once; further cases are left out."""
LONGEST_REFERENCE_S = 20.0
"""CPU of the reference, likewise."""
_LONGEST_S = 3_000.0
"""Of it all, with the time that it waits for others; three passes stay far below it."""
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


async def measure(
    runner: CodeRunner,
    problem: Problem,
    prepared: PreparedProgram,
    results: Sequence[CaseResult],
    judge_again: JudgeAgain,
    *,
    on_progress: Callable[[], None],
    repetitions: int = LEAST_REPETITIONS,
) -> Performance:
    """Compare a program with the reference on the test cases that it passed.

    Args:
        runner: as for grading.
        problem: has the reference.
        prepared: the candidate's program.
        results: what came of its cases. Those runs are no part of the comparison: they were the first, and checkers
            ran in between.
        judge_again: judges a further run.
        on_progress: is called now and then.
        repetitions: of every case on either side, 3 or more.

    Raises:
        RunnerUnavailableError: the runner stopped answering.
    """
    cases = in_order(problem, results)
    if not cases:
        return Performance.missing("no test case passed")
    reference = problem.reference_for(prepared.language)
    turns = None
    try:
        async with asyncio.timeout(_LONGEST_S), AsyncExitStack() as stack:
            empty = {
                language: await _prepare(runner, stack, SourceProgram(language, EMPTY_PROGRAMS[language]))
                for language in {prepared.language, reference.language}
            }
            beside = await _prepare(runner, stack, reference.as_source())
            turns = _Turns(
                runner,
                problem,
                _Side("candidate", prepared, empty[prepared.language], problem.limits.of(prepared.language)),
                _Side("reference", beside, empty[reference.language], problem.limits.of(reference.language)),
                judge_again,
                on_progress,
            )
            await turns.take(cases, repetitions)
    except _CannotBeMeasuredError as error:
        return Performance.missing(str(error), fault="runner")
    except (_AnsweredOtherwiseError, TimeoutError) as error:
        reason = str(error) or "measuring it took too long"
        return Performance.missing(reason, runs=turns.runs if turns is not None else ())
    assert turns is not None, "it ended well"
    kept = turns.comparable()
    if not kept or not all(turns.startups.values()):
        return Performance.missing("no test case could be run again on both sides", fault="runner")
    compared = compare(
        kept,
        reference_language=reference.language,
        candidate_startup_ms=turns.startups["candidate"],
        reference_startup_ms=turns.startups["reference"],
    )
    if turns.broken:
        return replace(compared, reason="test cases could not be run again, by our own fault", fault="runner")
    return compared


def in_order(problem: Problem, results: Sequence[CaseResult]) -> list[int]:
    """The passed cases, those first that are likely to be heavy: with the longest input, and last in the problem.

    How long the candidate's program took for them is no matter: it could waste its time where nothing is to be done, so
    that the heavy cases would find no room.
    """
    passed = [case.index for case in results if case.verdict is CaseVerdict.AC]
    return sorted(passed, key=lambda index: (len(problem.cases[index].input), index), reverse=True)


async def _prepare(runner: CodeRunner, stack: AsyncExitStack, program: SourceProgram) -> PreparedProgram:
    try:
        prepared = await stack.enter_async_context(runner.prepared(program))
    except UnknownLanguageError:
        raise _CannotBeMeasuredError(f"there is no toolchain for the reference's {program.language}") from None
    if isinstance(prepared, CompileFailed):
        raise _CannotBeMeasuredError(f"the reference does not compile: {prepared.cause}")
    return prepared


@dataclass(frozen=True, slots=True)
class _Side:
    """A program that takes turns, and the empty one of its language; ``name`` is the side's."""

    name: str
    program: PreparedProgram
    empty: PreparedProgram
    limits: Limits


@dataclass(slots=True)
class _Turns:
    """The runs of both sides. ``broken`` has the cases of which a run failed by our own fault."""

    runner: CodeRunner
    problem: Problem
    candidate: _Side
    reference: _Side
    judge_again: JudgeAgain
    on_progress: Callable[[], None]
    runs: list[MeasuredRun] = field(default_factory=list)
    broken: set[int] = field(default_factory=set)
    startups: dict[str, list[float]] = field(default_factory=lambda: {"candidate": [], "reference": []})

    async def take(self, cases: Sequence[int], repetitions: int) -> None:
        """Run everything so often; of the cases as many as there is time for, whatever the program does with it."""
        cases = cases[: max(int(LONGEST_PASS_S / self.candidate.limits.cpu_s), 1)]
        size = min(batch_size(side.limits) for side in (self.candidate, self.reference))
        for repetition in range(1, repetitions + 1):
            spent_ms = 0.0
            for done in range(0, len(cases), size):
                if repetition == 1 and spent_ms > 1000 * LONGEST_REFERENCE_S:
                    cases = cases[:done]
                    break
                await self._run(self.candidate, cases[done : done + size], repetition)
                spent_ms += await self._run(self.reference, cases[done : done + size], repetition)
            await self._start_up()

    def comparable(self) -> list[MeasuredRun]:
        """The runs of those cases that were run each time and on both sides: the others cannot be compared."""
        return [run for run in self.runs if run.index not in self.broken]

    async def _run(self, side: _Side, batch: Sequence[int], repetition: int) -> float:
        """Milliseconds of CPU that it took."""
        inputs = [self.problem.cases[index].input.encode() for index in batch]
        executions = await run_until_told(self.runner, side.program, inputs, side.limits)
        if side is self.candidate:
            outcomes = await gather_all(map(self.judge_again, batch, executions))
        else:
            outcomes = [_of_reference(execution) for execution in executions]
        otherwise = None
        for index, execution, outcome in zip(batch, executions, outcomes, strict=True):
            run, keeps_on = _measured(side, repetition, index, execution, outcome)
            self.runs.append(run)
            if outcome.verdict is CaseVerdict.SE and outcome.fault == "runner":
                self.broken.add(index)
            elif not keeps_on and otherwise is None:
                otherwise = f"test case {index} was passed, and was {run.verdict} when it was run again: {run.cause}"
        self.on_progress()
        if otherwise is not None:
            raise _AnsweredOtherwiseError(otherwise)
        return sum(execution.cpu_ms for execution in executions)

    async def _start_up(self) -> None:
        for side in (self.candidate, self.reference):
            begun = await run_until_told(self.runner, side.empty, [b""] * _STARTUPS, side.limits)
            self.startups[side.name] += [execution.cpu_ms for execution in begun if execution.how is Ended.FINISHED]


def _of_reference(execution: Execution) -> CaseOutcome:
    """It is right, as was found before the problem was accepted; where it does not end, this machine fails it."""
    if execution.how is Ended.FINISHED:
        return CaseOutcome(CaseVerdict.AC, "measured")
    return CaseOutcome(CaseVerdict.SE, execution.cause, "runner")


def _measured(
    side: _Side, repetition: int, index: int, execution: Execution, outcome: CaseOutcome
) -> tuple[MeasuredRun, bool]:
    """The run as it counts, and whether it does: a right one as it is, one out of time as no quicker than its limit."""
    cpu_ms, cause, counts = execution.cpu_ms, outcome.cause, False
    if outcome.verdict is CaseVerdict.AC:
        cause, counts = "measured", True
    elif outcome.verdict is CaseVerdict.TLE:
        cpu_ms, counts = max(cpu_ms, 1000 * side.limits.cpu_s), True
    name, verdict = side.name, outcome.verdict.value
    run = MeasuredRun(name, repetition, index, cpu_ms, execution.wall_ms, execution.memory_kb, verdict, cause)  # type: ignore[arg-type]  # one of the two
    return run, counts
