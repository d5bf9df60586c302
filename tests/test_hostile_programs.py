"""Each hostile program and each forgery once; ``make hostile`` runs them twenty times, and those that take longer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from app.domain.code_runner import CaseVerdict, Ended, Limits, RunnerUnavailableError
from hostile_programs.__main__ import PROGRAMS
from hostile_programs.backends import Backend, open_bubblewrap
from hostile_programs.forging import FORGED
from hostile_programs.program import ESCAPED, Hostile, python
from hostile_programs.trial import Trial, attempt, forge, surroundings

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def backend() -> AsyncIterator[Backend]:
    os.environ["TURNSTONE_CANARY"] = "CANARY-in-the-environment"
    try:
        async with open_bubblewrap(concurrency=3) as opened:
            yield opened
    except RunnerUnavailableError as error:
        pytest.skip(str(error))
    finally:
        del os.environ["TURNSTONE_CANARY"]


async def all_of(backend: Backend, programs: list[Hostile]) -> list[Trial]:
    at_once = asyncio.Semaphore(3)
    with surroundings(os.getpid()) as around:

        async def one(program: Hostile) -> Trial:
            async with at_once:
                return await attempt(backend.runner, program, around)

        return await asyncio.gather(*map(one, programs))


@pytest.mark.slow
async def test_no_program_gets_out_or_leaves_anything(backend: Backend) -> None:
    known = await backend.runner.languages()
    programs = [program for program in PROGRAMS if program.quick and program.language in known]
    trials = {trial.name: trial for trial in await all_of(backend, programs)}
    for _ in range(2):  # what a machine that stands still brings about as well is tried once more
        again = {name for name, trial in trials.items() if is_late(trial) or ends_otherwise(trial)}
        some = [program for program in programs if program.name in again]
        trials |= {trial.name: trial for trial in await all_of(backend, some)}
    assert {name: trial.problems for name, trial in trials.items() if trial.problems} == {}
    assert backend.leftovers() == []
    late = {name: trial.late_ms for name, trial in trials.items() if is_late(trial)}
    assert late == {}, "time from a limit to the end; on a machine with nothing else to do it is below 250 ms"


def is_late(trial: Trial) -> bool:
    return not trial.problems and trial.late_ms is not None and trial.late_ms > 1000


def ends_otherwise(trial: Trial) -> bool:
    """Its verdict is not the one it should get, and nothing else is wrong."""
    return bool(trial.problems) and all(problem.startswith("ended as ") for problem in trial.problems)


@pytest.mark.slow
async def test_no_forgery_passes(backend: Backend) -> None:
    known = await backend.runner.languages()
    chosen = [forged for forged in FORGED if forged.language in known]
    at_once = asyncio.Semaphore(3)

    async def one(number: int) -> list[CaseVerdict]:
        async with at_once:
            return await forge(backend.runner, chosen[number])

    verdicts = await asyncio.gather(*map(one, range(len(chosen))))
    passed = {chosen[number].name: got for number, got in enumerate(verdicts) if CaseVerdict.AC in got}
    assert passed == {}
    assert {CaseVerdict.WA, CaseVerdict.RE} <= {verdict for got in verdicts for verdict in got}


async def test_there_are_as_many_as_promised() -> None:
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS) >= 45
    assert len({forged.name for forged in FORGED}) == len(FORGED) >= 25


async def test_a_trial_finds_what_is_wrong(backend: Backend) -> None:
    said = Hostile("says so", "python", f"print('{ESCAPED} everything')")
    reads = Hostile("reads", "python", python("print('root:x:0')"))
    ends = Hostile("ends otherwise", "python", "raise SystemExit(1)", frozenset({Ended.FINISHED}), Limits())
    refused = Hostile("does not compile", "python", "(")
    problems = [trial.problems for trial in await all_of(backend, [said, reads, ends, refused])]
    assert all(problems), problems


async def test_a_touched_machine_is_seen() -> None:
    with surroundings(os.getpid()) as around:
        assert around.touched() == []
        around.file.write_text("changed")
        reader, writer = await asyncio.open_connection(*around.listeners[0].getsockname())
        assert len(around.touched()) == 2
        writer.close()
        del reader
