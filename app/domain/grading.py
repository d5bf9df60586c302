"""What came of running a program on a problem's test cases: pure, with the JSON form that is kept of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from app.domain.code_runner import CaseVerdict, Isolation
from app.domain.scoring import CaseGroup, CasesPassed, Unscored

Fault = Literal["runner", "checker"]
"""Whose failure it is where a case could not be graded."""
LEAST_REPETITIONS = 3
_LEAST_SIGNIFICANT_MS = 1.0
"""Of one run: what schedulers and caches do to its CPU time anyway."""
_LEAST_SIGNIFICANT_PART = 0.25
"""Of a start-up: by more than this two runs of the same program seldom differ, on a busy machine too."""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What is said of one test case. ``index`` counts from 0; times are in ms, ``cpu_ms`` by the sandbox's account.

    ``cause`` says what led to the verdict, without any text of the candidate's; ``fault`` whose failure an SE is.
    Figures are ``None`` where the program was never run.
    """

    index: int
    name: str
    group: CaseGroup
    weight: float
    verdict: CaseVerdict
    cause: str
    cpu_ms: float | None = None
    wall_ms: float | None = None
    memory_kb: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    fault: Fault | None = None


@dataclass(frozen=True, slots=True)
class Compilation:
    """Whether a program could be made ready to run. ``message`` is the compiler's, and quotes the source."""

    status: Literal["ok", "failed", "unavailable"]
    message: str = ""
    cause: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run that counts for running time. ``repetition`` counts from 1, ``index`` is the test case's.

    ``verdict`` and ``cause`` are those of this run; one that is TLE has the CPU time of the limit, or more.
    """

    program: Literal["candidate", "reference"]
    repetition: int
    index: int
    cpu_ms: float
    wall_ms: float
    memory_kb: int
    verdict: str = CaseVerdict.AC.value
    cause: str = "measured"


@dataclass(frozen=True, slots=True)
class Performance:
    """A program's CPU time beside the reference's, both measured in turns on the same host at the same time.

    Attributes:
        ratio: the candidate's by the reference's, start-up of the language taken off on both sides; ``None`` where
            nothing could be compared.
        reason: why there is no ratio.
        fault: ours, where it may be found if it is tried again.
        reference_language: of the reference that was run.
        cases: the indices of the test cases that are compared.
        candidate_cpu_ms: for each repetition the sum over those cases.
        reference_cpu_ms: likewise.
        candidate_startup_ms: runs of an empty program of the candidate's language.
        reference_startup_ms: likewise, of the reference's.
        floor_ms: what less than cannot be told from the start-up's own noise, over all cases.
        runs: every run, as it was measured.
    """

    ratio: float | None
    reason: str | None = None
    fault: Fault | None = None
    reference_language: str | None = None
    cases: tuple[int, ...] = ()
    candidate_cpu_ms: tuple[float, ...] = ()
    reference_cpu_ms: tuple[float, ...] = ()
    candidate_startup_ms: tuple[float, ...] = ()
    reference_startup_ms: tuple[float, ...] = ()
    floor_ms: float = 0.0
    runs: tuple[MeasuredRun, ...] = field(default=(), repr=False)

    @classmethod
    def missing(cls, reason: str, *, fault: Fault | None = None, runs: Sequence[MeasuredRun] = ()) -> Performance:
        """No figure, why, whose failure that is, and the runs that there were."""
        return cls(None, reason, fault, runs=tuple(runs))


def compare(
    runs: Sequence[MeasuredRun],
    *,
    reference_language: str,
    candidate_startup_ms: Sequence[float],
    reference_startup_ms: Sequence[float],
) -> Performance:
    """The ratio of running times.

    For each repetition the CPU of all cases is summed up, and of the sums of a side the median is taken. From it goes
    the median start-up of an empty program of its language, once for each case. What is left is no less than a floor:
    for each case a millisecond, a quarter of the longer start-up, or half of what the start-ups differ by, whichever is
    most. Two programs below it are equally quick.

    Args:
        runs: of both sides, with the same cases in each repetition.
        reference_language: for the record.
        candidate_startup_ms: CPU of an empty program of the candidate's language, several times.
        reference_startup_ms: likewise.
    """
    cases = sorted({run.index for run in runs})
    sums = {side: _sums(runs, side) for side in ("candidate", "reference")}
    startups = {"candidate": candidate_startup_ms, "reference": reference_startup_ms}
    part = _LEAST_SIGNIFICANT_PART * max(median(times) for times in startups.values())
    spread = max(max(times) - min(times) for times in startups.values()) / 2
    floor = len(cases) * max(_LEAST_SIGNIFICANT_MS, part, spread)
    net = {side: max(median(sums[side]) - len(cases) * median(startups[side]), floor) for side in sums}
    return Performance(
        net["candidate"] / net["reference"],
        reference_language=reference_language,
        cases=tuple(cases),
        candidate_cpu_ms=sums["candidate"],
        reference_cpu_ms=sums["reference"],
        candidate_startup_ms=tuple(candidate_startup_ms),
        reference_startup_ms=tuple(reference_startup_ms),
        floor_ms=floor,
        runs=tuple(runs),
    )


def _sums(runs: Sequence[MeasuredRun], side: str) -> tuple[float, ...]:
    by_repetition: dict[int, float] = {}
    for run in runs:
        if run.program == side:
            by_repetition[run.repetition] = by_repetition.get(run.repetition, 0.0) + run.cpu_ms
    return tuple(by_repetition[number] for number in sorted(by_repetition))


@dataclass(frozen=True, slots=True)
class GradingOutcome:
    """All that running a program on a problem has shown. ``cases`` has every case of the problem, in its order."""

    language: str
    compilation: Compilation
    cases: tuple[CaseResult, ...]
    performance: Performance
    isolation: Isolation

    @property
    def accepted(self) -> bool:
        """Whether the program is right on every case."""
        return all(case.verdict is CaseVerdict.AC for case in self.cases)

    @property
    def is_whole(self) -> bool:
        """Whether every case has a verdict, and the running time is known where any case passed."""
        if self.missing is not None:
            return False
        return self.performance.ratio is not None or all(case.verdict is not CaseVerdict.AC for case in self.cases)

    def cases_passed(self) -> Mapping[CaseGroup, CasesPassed | Unscored]:
        """For each group that there is the weight of what passed; unscored where a case of it is our own failure."""
        return {group: _passed(list(self._of(group))) for group in CaseGroup if any(self._of(group))}

    @property
    def missing(self) -> str | None:
        """Why correctness cannot be told, where it cannot."""
        failed = [case for case in self.cases if case.verdict is CaseVerdict.SE]
        return _why_missing(failed) if failed else None

    def _of(self, group: CaseGroup) -> Iterator[CaseResult]:
        return (case for case in self.cases if case.group is group)

    def to_json(self) -> dict[str, Any]:
        """The value of the node ``tests``."""
        return {
            "language": self.language,
            "compile": asdict(self.compilation),
            "cases": [asdict(case) for case in self.cases],
            "performance": asdict(self.performance),
            "isolation": {**asdict(self.isolation), "details": dict(self.isolation.details)},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> GradingOutcome:
        """The inverse of `to_json`."""
        measured = stored["performance"]
        sequences = {name: tuple(value) for name, value in measured.items() if isinstance(value, list)}
        sequences["runs"] = tuple(MeasuredRun(**run) for run in measured["runs"])
        return cls(
            stored["language"],
            Compilation(**stored["compile"]),
            tuple(_case(case) for case in stored["cases"]),
            Performance(**{**measured, **sequences}),
            Isolation(**stored["isolation"]),
        )


def _case(stored: Mapping[str, Any]) -> CaseResult:
    enums = {"group": CaseGroup(stored["group"]), "verdict": CaseVerdict(stored["verdict"])}
    return CaseResult(**{**stored, **enums})


def _passed(cases: Sequence[CaseResult]) -> CasesPassed | Unscored:
    failed = [case for case in cases if case.verdict is CaseVerdict.SE]
    if failed:
        return Unscored(_why_missing(failed))
    total = math.fsum(case.weight for case in cases)
    passed = math.fsum(case.weight for case in cases if case.verdict is CaseVerdict.AC)
    return CasesPassed(min(passed, total), total)


def _why_missing(failed: Sequence[CaseResult]) -> str:
    number = len(failed)
    return f"{number} test {'case' if number == 1 else 'cases'} could not be graded: {failed[0].cause}"
