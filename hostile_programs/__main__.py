"""``python -m hostile_programs``: run every program many times and show a table.

Exit code 1 where anything got out or was left, or where too many programs outlived their limit by more than 250 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import get_args

import structlog
import uvloop

from app.domain.code_runner import CaseVerdict, RunnerUnavailableError
from app.infrastructure.runner.bubblewrap.runner import Level
from hostile_programs.backends import Backend, open_bubblewrap
from hostile_programs.compiling import COMPILING
from hostile_programs.exhausting import EXHAUSTING
from hostile_programs.forging import FORGED, Forged
from hostile_programs.overhead import Overhead, measure
from hostile_programs.program import Hostile
from hostile_programs.reaching import REACHING
from hostile_programs.trial import Trial, attempt, forge, surroundings

PROGRAMS: Sequence[Hostile] = (*REACHING, *EXHAUSTING, *COMPILING)

_AT_ONCE = 3
_END_WITHIN_MS = 250.0
_IN_TIME = 0.95
"""Of the programs that meet a limit so many are gone within that time; a busy machine makes some of them late."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 nothing got out, 1 something did or outlived its limit, 2 nothing could be tried."""
    parser = argparse.ArgumentParser(prog="python -m hostile_programs", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how often each program is run (20)")
    parser.add_argument("--levels", nargs="*", default=["best", "rlimits"], choices=["best", *get_args(Level)])
    parser.add_argument("--only", default="", metavar="TEXT", help="programs whose name has this in it")
    parser.add_argument("--overhead", action="store_true", help="measure what a sandbox costs instead")
    options = parser.parse_args(arguments)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    os.environ["TURNSTONE_CANARY"] = "CANARY-in-the-environment"  # nothing of it may be seen inside
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # as the service has it
        return runner.run(_run(options.levels, options.runs, options.only, overhead=options.overhead))


async def _run(levels: Iterable[str], runs: int, only: str, *, overhead: bool) -> int:
    tried = failed = 0
    for name in levels:
        level: Level | None = None if name == "best" else name  # type: ignore[assignment]  # argparse knows the choices
        try:
            async with open_bubblewrap(level, _AT_ONCE) as backend:
                tried += 1
                if overhead:
                    print(f"{backend.isolation.level}: {_overhead(await measure(backend.runner))}")
                    continue
                failed += await _try_backend(backend, runs, only)
        except RunnerUnavailableError as error:
            print(f"{name}: {error}")
    return 2 if not tried else 1 if failed else 0


async def _try_backend(backend: Backend, runs: int, only: str) -> int:
    known = await backend.runner.languages()
    programs = [one for one in PROGRAMS if one.language in known and only in one.name]
    forged = [one for one in FORGED if one.language in known and only in one.name]
    where = f"{backend.isolation.backend}, {backend.isolation.level}, uid {os.geteuid()}"
    print(f"{where}: {len(programs)} programs and {len(forged)} forgeries, {runs} times")
    began = time.monotonic()
    trials: list[Trial] = []
    passed: list[str] = []
    left: list[str] = []
    at_once = asyncio.Semaphore(_AT_ONCE)
    with surroundings(os.getpid()) as around:

        async def one(program: Hostile) -> None:
            async with at_once:
                trial = await attempt(backend.runner, program, around)
            trials.append(trial)
            if trial.problems:
                print(f"  {trial.name}: {'; '.join(trial.problems)}", flush=True)

        async def other(forgery: Forged) -> None:
            async with at_once:
                verdicts = await forge(backend.runner, forgery)
            if CaseVerdict.AC in verdicts:
                passed.append(forgery.name)
                print(f"  forged: {forgery.name}: {verdicts}", flush=True)

        for number in range(1, runs + 1):
            await asyncio.gather(*map(one, programs), *map(other, forged))
            left += backend.leftovers()
            print(f"  round {number} of {runs}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    in_time = _show(trials)
    wrong = sum(bool(trial.problems) for trial in trials)
    print(
        f"  {len(trials)} runs, {wrong} with a problem; {len(forged) * runs} forgeries, {len(passed)} passed; "
        f"{len(left)} left behind {left[:5] or ''}"
    )
    if not in_time:
        print(f"  LATE: less than {_IN_TIME:.0%} were gone {_END_WITHIN_MS:.0f} ms after their limit")
    return wrong + len(passed) + len(left) + (not in_time)


def _overhead(found: Overhead) -> str:
    cost = found.sandbox_ms - found.plain_ms
    return (
        f"a case {found.sandbox_ms:.0f} ms, the program alone {found.plain_ms:.0f} ms (medians): {cost:.0f} ms more; "
        f"{found.cases_per_s:.0f} cases/s with {_AT_ONCE} at once; load {found.load:.0f}"
    )


def _show(trials: Sequence[Trial]) -> bool:
    """Print the table; whether enough programs ended soon after their limit."""
    print(f"  {'program':42} {'runs':>5} {'ends':20} {'latest end':>11}  problems")
    for name in dict.fromkeys(trial.name for trial in trials):
        mine = [trial for trial in trials if trial.name == name]
        ends = "/".join(sorted({trial.ended for trial in mine}))
        late = [trial.late_ms for trial in mine if trial.late_ms is not None]
        worst = f"{max(late):.0f} ms" if late else ""
        print(f"  {name:42} {len(mine):5} {ends:20} {worst:>11}  {sum(bool(trial.problems) for trial in mine)}")
    late = [trial.late_ms for trial in trials if trial.late_ms is not None]
    if not late:
        return True
    late.sort()
    share = sum(one <= _END_WITHIN_MS for one in late) / len(late)
    print(
        f"  from limit to end: median {statistics.median(late):.0f} ms, p99 {late[int(len(late) * 0.99)]:.0f} ms, "
        f"latest {late[-1]:.0f} ms, {share:.1%} within {_END_WITHIN_MS:.0f} ms"
    )
    return share >= _IN_TIME


if __name__ == "__main__":
    sys.exit(main())
