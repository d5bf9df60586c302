"""Takes problems in: one is accepted only once its own solutions have passed it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from app.application.submissions.grading import grade
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.code_patterns import read_patterns
from app.domain.code_runner import CaseVerdict, CodeRunner, Isolation, RunnerUnavailableError
from app.domain.grading import CaseResult, GradingOutcome
from app.domain.problem import Problem
from app.infrastructure.analysis.analyser import check_patterns
from app.infrastructure.analysis.errors import AnalyserUnavailableError
from app.infrastructure.persistence.models import ProblemVersion
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.problem_repository import ProblemRepository

MOST_AT_ONCE = 2
"""Problems that are verified at once; a further one is told to come back."""
LONGEST_S = 600.0
"""All runs of a problem's references together."""
_SHOWN_CASES = 10
_SHOWN_COMPILER = 300


class ReferenceFailedError(TurnstoneError):
    """A problem's own solutions do not pass it. ``failures`` are sentences, one for each case or program."""

    def __init__(self, failures: Sequence[str]) -> None:
        shown = "; ".join(failures[:_SHOWN_CASES])
        more = len(failures) - _SHOWN_CASES
        message = f"A reference has to pass every test case: {shown}" + (f"; and {more} more" if more > 0 else "")
        super().__init__(ErrorCode.REFERENCE_FAILED, message)
        self.failures = tuple(failures)


@dataclass(frozen=True, slots=True)
class Verified:
    """What came of a problem's references, all of which passed."""

    outcomes: tuple[GradingOutcome, ...]

    def to_json(self) -> dict[str, Any]:
        """What is kept with the problem's version."""
        isolation = self.outcomes[0].isolation
        return {
            "isolation": {"backend": isolation.backend, "level": isolation.level},
            "references": [_figures(outcome) for outcome in self.outcomes],
        }


def _figures(outcome: GradingOutcome) -> dict[str, Any]:
    return {
        "language": outcome.language,
        "cases": len(outcome.cases),
        "cpu_ms": round(sum(case.cpu_ms or 0.0 for case in outcome.cases), 1),
        "slowest_cpu_ms": round(max(case.cpu_ms or 0.0 for case in outcome.cases), 1),
        "most_memory_kb": max(case.memory_kb or 0 for case in outcome.cases),
    }


async def verify(runner: CodeRunner | None, problem: Problem, isolation: Isolation | None = None) -> Verified:
    """Run every reference on every test case, within the problem's limits.

    Args:
        runner: runs them.
        problem: has them.
        isolation: what the runner's self-test has found; without it, that is done first.

    Raises:
        ReferenceFailedError: one of them did not pass, with what failed.
        TurnstoneError: they could not be run: ``runner_unavailable``, which may be tried again.
    """
    if runner is None:
        raise _unavailable("There is no code runner: set TURNSTONE_RUNNER__BACKEND.")
    try:
        async with asyncio.timeout(LONGEST_S):
            isolation = isolation or await runner.self_test()
            outcomes = [
                await grade(runner, problem, program.as_source(), isolation=isolation, measured=False)
                for program in problem.references
            ]
    except RunnerUnavailableError as error:
        raise _unavailable(f"The references cannot be run now. {error.problem} {error.remedy}".strip()) from None
    except TimeoutError:
        raise ReferenceFailedError([f"all references together take more than {LONGEST_S:g} s"]) from None
    if (broken := _fault_of_runner(outcomes)) is not None:
        raise _unavailable(f"The references cannot be run now: {broken.cause}.")
    failures = [failure for place, outcome in enumerate(outcomes) for failure in _failures(place, outcome)]
    if failures:
        raise ReferenceFailedError(failures)
    return Verified(tuple(outcomes))


def _fault_of_runner(outcomes: Sequence[GradingOutcome]) -> CaseResult | None:
    """A case that was run and that the runner let fail, if there is any."""
    cases = (case for outcome in outcomes for case in outcome.cases)
    return next((case for case in cases if case.fault == "runner" and case.cpu_ms is not None), None)


def _unavailable(message: str) -> TurnstoneError:
    return TurnstoneError(ErrorCode.RUNNER_UNAVAILABLE, message, retry_after_s=30)


def _failures(place: int, outcome: GradingOutcome) -> Iterator[str]:
    who = f"references[{place}] ({outcome.language})"
    compilation = outcome.compilation
    if compilation.status != "ok":
        said = compilation.message.strip()[:_SHOWN_COMPILER]
        yield f"{who}: {compilation.cause}" + (f": {said}" if said else "")
        return
    for case in outcome.cases:
        if case.verdict is not CaseVerdict.AC:
            yield f"{who}, case {case.name}: {_in_words(case)}"


def _in_words(case: CaseResult) -> str:
    used = "" if case.cpu_ms is None else f" ({case.cpu_ms:.0f} ms of CPU, {(case.memory_kb or 0) // 1024} MiB)"
    return f"{case.verdict.value}, {case.cause}{used}"


async def _check_patterns(problem: Problem) -> None:
    """Raise a `TurnstoneError` where rules to look for in code cannot be used."""
    try:
        await check_patterns(read_patterns(problem.patterns))
    except AnalyserUnavailableError as error:
        raise _unavailable(f"Its patterns cannot be tried: {error.problem} {error.remedy}".strip()) from None


class ProblemService:
    """Use cases of problems. ``runner`` is ``None`` where there is none."""

    def __init__(self, runner: CodeRunner | None) -> None:
        self._runner = runner
        self._isolation: Isolation | None = None
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    async def put(self, spec_id: int, problem: Problem) -> tuple[ProblemVersion, bool]:
        """Make this the problem, once its references have passed; what it is already is not run again.

        Returns its version, and whether that is new. No transaction is open while they run.

        Raises:
            ReferenceFailedError: they did not pass; nothing is stored.
            TurnstoneError: a pattern cannot be used; nothing is stored.
            TurnstoneError: they could not be run; nothing is stored.
        """
        content = problem.content_hash
        async with get_db_context() as db:
            problems = ProblemRepository(db)
            if await problems.newest_hash(spec_id) == content:
                kept = await problems.get(spec_id)
                assert kept is not None, "no version is ever removed"
                return kept, False
        await _check_patterns(problem)
        if self._places.locked():
            raise TurnstoneError(
                ErrorCode.OVERLOADED, f"{MOST_AT_ONCE} problems are being verified; send it again.", retry_after_s=10
            )
        async with self._places:
            verified = await verify(self._runner, problem, self._isolation)
        self._isolation = verified.outcomes[0].isolation
        async with get_db_context() as db:
            return await ProblemRepository(db).put(spec_id, problem, verified.to_json())
