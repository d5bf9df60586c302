"""Programs are run on all test cases in real sandboxes, and what is said of them is true."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from app.application.submissions import grading, measuring, running, verdicts
from app.application.submissions.grading import grade
from app.domain.code_runner import (
    CaseVerdict,
    CodeRunner,
    Ended,
    Execution,
    Isolation,
    Limits,
    PreparedProgram,
    ProgramInput,
    RunnerUnavailableError,
    SourceProgram,
)
from app.domain.documents import shipped
from app.domain.grading import CaseResult, GradingOutcome, MeasuredRun, compare
from app.domain.problem import Problem
from app.domain.scoring import CaseGroup, CasesPassed, Score, ScorePolicy, Unscored
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner
from tests.support.problems import SUM
from tests.support.runner import Failing

pytestmark = pytest.mark.asyncio(loop_scope="module")

ADDS = "print(sum(map(int, input().split())))\n"
ADDS_IN_C = (
    '#include <stdio.h>\nint main(void) { long long a, b; scanf("%lld %lld", &a, &b); printf("%lld\\n", a + b); }\n'
)
ADDS_IN_JS = 'const [a, b] = require("fs").readFileSync(0, "utf8").split(" ").map(Number); console.log(a + b);\n'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runner() -> AsyncIterator[BubblewrapRunner]:
    opened = BubblewrapRunner(2)
    yield opened
    await opened.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def isolation(runner: BubblewrapRunner) -> Isolation:
    try:
        return await runner.self_test()
    except RunnerUnavailableError as error:
        pytest.skip(f"no sandboxes here: {error}")


def problem(**changes: Any) -> Problem:
    return Problem.parse({**SUM, "languages": ["python", "c", "javascript", "go", "cpp"], **changes})


def python(source: str) -> SourceProgram:
    return SourceProgram("python", source)


def said(outcome: GradingOutcome) -> list[str]:
    return [case.verdict.value for case in outcome.cases]


async def quickly(runner: CodeRunner, which: Problem, program: SourceProgram, isolation: Isolation) -> GradingOutcome:
    return await grade(runner, which, program, isolation=isolation, measured=False)


# ---------------------------------------------------------------- mistakes that others made


async def test_mistake_only_the_first_test_case_was_run(runner: CodeRunner, isolation: Isolation) -> None:
    first_only = python("a, b = input().split()\nprint(3 if a == '1' else 0)\n")
    outcome = await quickly(runner, problem(), first_only, isolation)
    assert said(outcome) == ["AC", "WA", "WA"]
    assert not outcome.accepted
    last_only = python("a, b = map(int, input().split())\nprint(a + b if a > 1e9 else 0)\n")
    assert said(await quickly(runner, problem(), last_only, isolation)) == ["WA", "WA", "AC"]


@pytest.mark.parametrize(("language", "source"), [("c", ADDS_IN_C), ("javascript", ADDS_IN_JS), ("python", ADDS)])
async def test_mistake_the_language_was_always_python(
    runner: CodeRunner, isolation: Isolation, language: str, source: str
) -> None:
    outcome = await quickly(runner, problem(), SourceProgram(language, source), isolation)
    assert said(outcome) == ["AC"] * 3, outcome
    assert outcome.language == language
    as_python = await quickly(runner, problem(), python(source), isolation)
    assert as_python.accepted == (language == "python")


async def test_mistake_all_tests_passed_was_read_from_the_candidate_s_own_output(
    runner: CodeRunner, isolation: Isolation
) -> None:
    boasts = python("import sys\nprint('AC\\nall tests passed\\n3/3')\nprint('OK', file=sys.stderr)\nsys.exit(0)\n")
    outcome = await quickly(runner, problem(), boasts, isolation)
    assert said(outcome) == ["WA"] * 3
    assert outcome.cases_passed()[CaseGroup.PRIVATE] == CasesPassed(0, 3)


@pytest.mark.parametrize(
    "source",
    [
        "int main(void) { return undeclared; }\n",
        "int a[1 << 28] = {1};\nint main(void) { return a[0]; }\n",  # refused for what its program would take up
    ],
)
async def test_mistake_compile_errors_were_reported_as_memory_limit(
    runner: CodeRunner, isolation: Isolation, source: str
) -> None:
    outcome = await quickly(runner, problem(), SourceProgram("c", source), isolation)
    assert said(outcome) == ["CE"] * 3
    assert outcome.compilation.status == "failed"
    assert outcome.compilation.cause
    assert outcome.cases_passed()[CaseGroup.SAMPLE] == CasesPassed(0, 1), "the candidate's fault, so a true zero"
    assert outcome.performance.ratio is None


async def test_mistake_a_dead_runner_became_zero_points(runner: CodeRunner, isolation: Isolation) -> None:
    dies = Failing(runner, lives=1)
    with pytest.raises(RunnerUnavailableError):
        await quickly(dies, problem(), python(ADDS), isolation)
    for _ in range(2):  # and the real one is well afterwards
        assert (await quickly(runner, problem(), python(ADDS), isolation)).accepted


# ---------------------------------------------------------------- verdicts

MANY_WAYS = """
import sys
way = input()
if way == "loop":
    while True: pass
if way == "sleep":
    import time; time.sleep(60)
if way == "memory":
    kept = bytearray(1 << 30)
    kept[::4096] = b"x" * len(kept[::4096])
if way == "raise":
    raise ValueError(way)
if way == "flood":
    while True: sys.stdout.write("x" * 65536)
print("right" if way == "right" else "wrong")
"""


async def test_each_way_to_end_has_its_verdict_and_its_cause(runner: CodeRunner, isolation: Isolation) -> None:
    ways = ["right", "wrong", "loop", "memory", "raise", "flood", "right"]
    cases = [{"name": f"{at}-{way}", "input": f"{way}\n", "output": "right\n"} for at, way in enumerate(ways)]
    limits = {"cpu_s": 1.0, "wall_s": 12.0, "memory_mb": 128, "output_bytes": 1_000_000}
    outcome = await quickly(runner, problem(cases=cases, limits=limits), python(MANY_WAYS), isolation)
    assert said(outcome) == ["AC", "WA", "TLE", "MLE", "RE", "OLE", "AC"], outcome.cases
    assert [case.index for case in outcome.cases] == list(range(7))
    raised = outcome.cases[4]
    assert raised.exit_code == 1 and raised.stderr_bytes and "ValueError" not in raised.cause
    # By itself: whatever runs while the machine stands still meets a limit as short as this.
    cases, limits = [{"name": "sleep", "input": "sleep\n", "output": "right\n"}], {**limits, "wall_s": 1.5}
    slept = await quickly(runner, problem(cases=cases, limits=limits), python(MANY_WAYS), isolation)
    assert said(slept) == ["TLE"], slept.cases
    every = [*outcome.cases, *slept.cases]
    assert all(case.cause for case in every)
    assert all(case.wall_ms is not None and case.cpu_ms is not None and case.memory_kb for case in every)


async def test_progress_is_told_batch_by_batch(runner: CodeRunner, isolation: Isolation) -> None:
    cases = [{"name": f"{n}", "input": f"{n} 1\n", "output": f"{n + 1}\n"} for n in range(20)]
    told: list[tuple[int, int]] = []
    outcome = await grade(
        runner,
        problem(cases=cases),
        SourceProgram("c", ADDS_IN_C),
        isolation=isolation,
        measured=False,
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert outcome.accepted
    assert told == [(16, 20), (20, 20)]


# ---------------------------------------------------------------- our failures are not theirs


async def test_a_run_that_the_system_lets_fail_is_tried_again(runner: CodeRunner, isolation: Isolation) -> None:
    failing = Failing(runner, fails={b"10 -4\n": 2})
    outcome = await quickly(failing, problem(), python(ADDS), isolation)
    assert said(outcome) == ["AC"] * 3
    assert [given for _, given in failing.ran].count(b"10 -4\n") == 3
    assert [given for _, given in failing.ran].count(b"1 2\n") == 1, "and no other one"


async def test_what_fails_for_good_is_missing_and_never_a_zero(runner: CodeRunner, isolation: Isolation) -> None:
    outcome = await quickly(Failing(runner, fails={b"10 -4\n": 9}), problem(), python(ADDS), isolation)
    assert said(outcome) == ["AC", "SE", "AC"]
    assert outcome.cases[1].fault == "runner"
    passed = outcome.cases_passed()
    assert passed[CaseGroup.SAMPLE] == CasesPassed(1, 1)
    reason = "1 test case could not be graded: the sandbox could not be made"
    assert passed[CaseGroup.PUBLIC] == Unscored(reason) and outcome.missing == reason
    policy = ScorePolicy.parse(shipped("policy", "v2"))
    assert isinstance(policy.correctness(passed), Unscored)


async def test_a_language_without_a_toolchain_is_our_failure(runner: CodeRunner, isolation: Isolation) -> None:
    without_go = Failing(runner, missing=frozenset({"go"}))
    outcome = await quickly(without_go, problem(), SourceProgram("go", "package main\n"), isolation)
    assert said(outcome) == ["SE"] * 3
    assert outcome.missing == "3 test cases could not be graded: there is no toolchain for go"


# ---------------------------------------------------------------- a problem's own checker

ANY_ORDER = """
import sys
path, answer, feedback, *arguments = sys.argv[1:]
open(feedback + "judgemessage.txt", "w").write("seen")
given = sorted(open(path).read().split())
if arguments != ["--strict"]:
    sys.exit(1)
said = sys.stdin.read().split()
if said == ["break"]:
    raise RuntimeError
if said == ["hang"]:
    while True: pass
sys.exit(42 if sorted(said) == given else 43)
"""


def with_checker(source: str = ANY_ORDER, language: str = "python", **more: Any) -> Problem:
    checker = {"kind": "program", "program": {"language": language, "source": source}, "arguments": ["--strict"]}
    cases = [{"name": f"{n}", "input": f"{n} 2\n", "output": ""} for n in (3, 1)]
    return problem(checker=checker, cases=cases, **more)


async def test_a_checker_program_accepts_and_refuses(runner: CodeRunner, isolation: Isolation) -> None:
    outcome = await quickly(runner, with_checker(), python("print(*sorted(input().split()))"), isolation)
    assert said(outcome) == ["AC", "AC"]
    outcome = await quickly(runner, with_checker(), python("print(2, 3)"), isolation)
    assert said(outcome) == ["AC", "WA"]


async def test_a_checker_that_fails_or_hangs_is_no_wrong_answer(
    runner: CodeRunner, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "_CHECKER_LIMITS", Limits(cpu_s=1, wall_s=20))
    monkeypatch.setattr(grading, "TRIES", 1)
    for word in ("break", "hang"):
        program = python(f"a = input().split()\nprint('{word}' if a[0] == '3' else ' '.join(a))")
        outcome = await quickly(runner, with_checker(), program, isolation)
        assert said(outcome) == ["SE", "AC"], word
        assert outcome.cases[0].fault == "checker"
        assert isinstance(outcome.cases_passed()[CaseGroup.PRIVATE], Unscored)


async def test_a_checker_that_does_not_compile_is_no_wrong_answer(runner: CodeRunner, isolation: Isolation) -> None:
    outcome = await quickly(runner, with_checker("int main(", "c"), python(ADDS), isolation)
    assert said(outcome) == ["SE", "SE"]
    assert {case.fault for case in outcome.cases} == {"checker"}
    without_c = Failing(runner, missing=frozenset({"c"}))
    assert said(await quickly(without_c, with_checker("int main(", "c"), python(ADDS), isolation)) == ["SE", "SE"]


# ---------------------------------------------------------------- correctness


async def test_correctness_weighs_groups_and_cases_as_the_policy_says(runner: CodeRunner, isolation: Isolation) -> None:
    program = python("a, b = map(int, input().split())\nprint(a + b if a != 10 else 0)\n")
    outcome = await quickly(runner, problem(), program, isolation)
    assert outcome.cases_passed() == {
        CaseGroup.SAMPLE: CasesPassed(1, 1),
        CaseGroup.PUBLIC: CasesPassed(0, 2),
        CaseGroup.PRIVATE: CasesPassed(3, 3),
    }
    policy = ScorePolicy.parse(shipped("policy", "v2"))
    weights = policy.case_weights
    expected = 100 * (weights[CaseGroup.SAMPLE] * 1 + weights[CaseGroup.PRIVATE] * 3)
    expected /= weights[CaseGroup.SAMPLE] + 2 * weights[CaseGroup.PUBLIC] + 3 * weights[CaseGroup.PRIVATE]
    correctness = policy.correctness(outcome.cases_passed())
    assert isinstance(correctness, Score) and correctness.value == pytest.approx(expected)


# ---------------------------------------------------------------- running times

COUNTS = "total = 0\nfor n in range(int(input()) * {times}):\n    total ^= n\nprint('done')\n"


def counting(times: int) -> SourceProgram:
    return python(COUNTS.format(times=times))


async def measured(runner: CodeRunner, which: Problem, times: int, isolation: Isolation) -> GradingOutcome:
    """A measurement of ``counting``; noise may spoil one, and not each of several."""
    for _ in range(4):
        outcome = await grade(runner, which, counting(times), isolation=isolation)
        if outcome.performance.ratio == pytest.approx(times, rel=0.25):
            break
    return outcome


async def test_running_time_is_measured_in_turns_beside_the_reference(runner: CodeRunner, isolation: Isolation) -> None:
    cases = [{"name": f"{n}", "input": f"{n}\n", "output": "done\n"} for n in (20_000, 700_000)]
    references = [{"language": "python", "source": COUNTS.format(times=1)}]
    which = problem(cases=cases, references=references)
    watched = Failing(runner)
    same = await grade(watched, which, counting(1), isolation=isolation)
    turns = [stdin for _, stdin in watched.ran[2:]]
    given = [b"700000\n", b"20000\n"]
    assert turns == [*given, *given, *[b""] * 4] * 3, "candidate, reference, candidate, reference …"
    if same.performance.ratio != pytest.approx(1, rel=0.25):
        same = await measured(runner, which, 1, isolation)
    slower = await measured(runner, which, 3, isolation)
    assert same.performance.ratio == pytest.approx(1, rel=0.25)
    assert slower.performance.ratio == pytest.approx(3, rel=0.25)
    figures = slower.performance
    assert figures.reference_language == "python" and figures.cases == (0, 1)
    assert len(figures.candidate_cpu_ms) == len(figures.reference_cpu_ms) == 3
    assert len(figures.runs) == 2 * 2 * 3 and len(figures.candidate_startup_ms) == 6
    assert GradingOutcome.from_json(json.loads(json.dumps(slower.to_json()))) == slower


async def test_cases_are_compared_in_an_order_that_the_program_has_no_part_in() -> None:
    which = problem(
        cases=[{"name": f"{len(n)}{n[0]}", "input": n, "output": n} for n in ("1\n", "22\n", "333\n", "44\n")]
    )
    results = [CaseResult(at, f"{at}", CaseGroup.PRIVATE, 1, CaseVerdict.AC, "", cpu_ms=9.0 * at) for at in range(4)]
    assert measuring.in_order(which, results) == [2, 3, 1, 0]
    results[2] = replace(results[2], verdict=CaseVerdict.TLE)
    assert measuring.in_order(which, results) == [3, 1, 0]


WASTEFUL = """
import time
n = int(input())
begun = time.process_time()
while n < 1000 and time.process_time() < begun + 0.3:
    pass
total = 0
for k in range(n * 3):
    total ^= k
print("done")
"""


async def test_a_program_cannot_choose_what_it_is_compared_by(
    runner: CodeRunner, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It spends its time where nothing is to be done, so that the heavy case would find no room."""
    monkeypatch.setattr(measuring, "LONGEST_PASS_S", 3.0)  # of a limit of 2 s: one case
    cases = [{"name": f"{n}", "input": f"{n}\n", "output": "done\n"} for n in (1, 2, 700_000)]
    which = problem(cases=cases, references=[{"language": "python", "source": COUNTS.format(times=1)}])
    for _ in range(4):  # noise, as above
        outcome = await grade(runner, which, python(WASTEFUL), isolation=isolation)
        assert outcome.performance.cases == (2,), "there was time for no other"
        if (outcome.performance.ratio or 0) > 1.8:
            break
    assert outcome.performance.ratio is not None and outcome.performance.ratio > 1.8


class Later:
    """A runner that waits for a moment when it has run a batch: a clock is then another one than before."""

    def __init__(self, runner: CodeRunner, until: float) -> None:
        self._runner, self._until, self._ran = runner, until, False
        self.name, self.languages, self.self_test = runner.name, runner.languages, runner.self_test
        self.prepared = runner.prepared

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        if self._ran and isinstance(inputs[0], bytes):
            await asyncio.sleep(max(self._until - time.time(), 0) + 0.1)
        self._ran = True
        async for execution in self._runner.run(prepared, inputs, limits):
            yield execution


@pytest.mark.slow
async def test_a_program_that_is_right_only_while_it_is_graded_has_no_running_time(
    runner: CodeRunner, isolation: Isolation
) -> None:
    for patience_s in (5, 20):  # later where the machine stood still, and it was not graded by then
        until = time.time() + patience_s
        source = f"import time\nif time.time() > {until}:\n    raise SystemExit(print(0))\n" + ADDS
        outcome = await grade(Later(runner, until), problem(), python(source), isolation=isolation)
        if outcome.accepted:
            break
    assert outcome.accepted and not outcome.is_whole
    assert (outcome.performance.ratio, outcome.performance.fault) == (None, None)
    assert (outcome.performance.reason or "").startswith("test case 2 was passed, and was WA when it was run again")
    assert {run.verdict for run in outcome.performance.runs} == {"WA"}, "whoever looks can see what it did"


@pytest.mark.slow
async def test_what_breaks_the_checker_once_it_is_measured_leaves_no_heavy_case_out(
    runner: CodeRunner, isolation: Isolation
) -> None:
    which = with_checker(references=[{"language": "python", "source": "print(input())"}])
    for patience_s in (5, 20):  # as above
        until = time.time() + patience_s
        source = f"import time\nprint('break' if time.time() > {until} else input())\n"
        outcome = await grade(Later(runner, until), which, python(source), isolation=isolation)
        if outcome.accepted:
            break
    assert outcome.accepted
    assert (outcome.performance.ratio, outcome.performance.fault) == (None, None)
    assert "the checker gave no verdict" in (outcome.performance.reason or "")


async def test_a_measurement_without_an_end_is_ended_and_the_verdicts_stay(
    runner: CodeRunner, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_LONGEST_S", 0.8)
    slow = "import time\ntime.sleep(0.5)\n" + ADDS
    outcome = await grade(runner, problem(), python(slow), isolation=isolation)
    assert outcome.accepted and not outcome.is_whole
    assert outcome.performance.reason == "measuring it took too long"


async def test_a_slow_reference_leaves_cases_out_and_says_which_are_compared(
    runner: CodeRunner, isolation: Isolation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "LONGEST_REFERENCE_S", 0.01)
    monkeypatch.setattr(running, "_BATCH", 1)
    cases = [{"name": f"{n}", "input": f"{n}\n", "output": "done\n"} for n in (1, 2, 700_000)]
    which = problem(cases=cases, references=[{"language": "python", "source": COUNTS.format(times=1)}])
    outcome = await grade(runner, which, counting(1), isolation=isolation)
    assert outcome.performance.cases == (2,)
    assert len(outcome.performance.runs) == 2 * 3, "as often on both sides"


async def test_a_case_that_our_own_fault_leaves_out_is_waited_for_and_the_others_count(
    runner: CodeRunner, isolation: Isolation
) -> None:
    failing = Failing(runner, fails={b"10 -4\n": 99}, spares=3)
    outcome = await grade(failing, problem(), python(ADDS), isolation=isolation)
    assert outcome.accepted
    assert (outcome.performance.cases, outcome.performance.fault) == ((0, 2), "runner")
    assert outcome.performance.ratio is not None


async def test_another_right_answer_each_time_is_right_each_time(runner: CodeRunner, isolation: Isolation) -> None:
    source = "import random\nfound = input().split()\nrandom.shuffle(found)\nprint(*found)\n"
    which = with_checker(references=[{"language": "python", "source": source}])
    outcome = await grade(runner, which, python(source), isolation=isolation)
    assert outcome.is_whole


class Steady(Failing):
    """A runner on a machine without noise: whatever it runs takes as much CPU as starting up."""

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        async for execution in super().run(prepared, inputs, limits):
            yield replace(execution, cpu_ms=20.0)


async def test_only_passed_cases_are_compared_and_nothing_where_none_passed(
    runner: CodeRunner, isolation: Isolation
) -> None:
    watched = Steady(runner)
    outcome = await grade(watched, problem(), python("print(3)"), isolation=isolation)
    assert outcome.performance.cases == (0,)
    assert outcome.performance.ratio == 1.0, "neither takes more than starting up"
    watched.ran.clear()
    outcome = await grade(watched, problem(), python("print(0)"), isolation=isolation)
    assert (outcome.performance.ratio, outcome.performance.reason) == (None, "no test case passed")
    assert len(watched.ran) == 3, "nothing is run that nobody needs"


async def test_the_reference_of_another_language_is_named_and_its_failure_is_no_zero(
    runner: CodeRunner, isolation: Isolation
) -> None:
    references = [{"language": "c", "source": ADDS_IN_C}]
    outcome = await grade(runner, problem(references=references), python(ADDS), isolation=isolation)
    assert outcome.performance.reference_language == "c"
    assert outcome.performance.ratio is not None
    without_c = Failing(runner, missing=frozenset({"c"}))
    outcome = await grade(without_c, problem(references=references), python(ADDS), isolation=isolation)
    assert outcome.accepted
    assert outcome.performance.reason == "there is no toolchain for the reference's c"
    assert outcome.performance.fault == "runner" and not outcome.is_whole


async def test_a_measured_run_that_the_system_lets_fail_is_run_again(runner: CodeRunner, isolation: Isolation) -> None:
    for given in (b"10 -4\n", b""):  # a test case, and what starting up takes
        failing = Failing(runner, fails={given: 2}, spares=3)
        outcome = await grade(failing, problem(), python(ADDS), isolation=isolation)
        assert outcome.accepted and outcome.is_whole
        assert outcome.performance.cases == (0, 1, 2), "none is left out"
        assert len(outcome.performance.runs) == 3 * 2 * 3
        assert failing.fails == {given: 0}


@pytest.mark.parametrize(
    ("side", "how", "fault"),
    [
        ("python", Ended.SE, "runner"),
        ("c", Ended.SE, "runner"),
        ("c", Ended.TLE, "runner"),  # the reference is right: this machine is too slow now
        ("python", Ended.RE, None),  # a program that fails now and then has nothing to wait for
    ],
)
async def test_a_measurement_that_fails_for_good_says_whose_failure_it_is(
    runner: CodeRunner, isolation: Isolation, side: str, how: Ended, fault: str | None
) -> None:
    given = b"10 -4\n"
    case = {"name": "1", "input": given.decode(), "output": "6\n"}
    which = problem(cases=[case], references=[{"language": "c", "source": ADDS_IN_C}])
    failing = Failing(runner, fails={given: 99}, spares=1, only=side, how=how)
    outcome = await grade(failing, which, python(ADDS), isolation=isolation)
    assert outcome.accepted and not outcome.is_whole
    assert (outcome.performance.ratio, outcome.performance.fault) == (None, fault)


async def test_a_measured_run_that_runs_out_of_time_is_no_quicker_than_the_limit(
    runner: CodeRunner, isolation: Isolation
) -> None:
    """However little CPU it has used: it may have slept."""
    given = b"10 -4\n"
    case = {"name": "1", "input": given.decode(), "output": "6\n"}
    which = problem(cases=[case], references=[{"language": "c", "source": ADDS_IN_C}])
    failing = Failing(runner, fails={given: 99}, spares=1, only="python", how=Ended.TLE)
    outcome = await grade(failing, which, python(ADDS), isolation=isolation)
    assert outcome.is_whole
    assert min(outcome.performance.candidate_cpu_ms) >= 1000 * which.limits.of("python").cpu_s


# ---------------------------------------------------------------- the comparison itself, by hand


def runs(candidate: list[list[float]], reference: list[list[float]]) -> list[MeasuredRun]:
    return [
        MeasuredRun(side, repetition, index, cpu, cpu, 1)  # type: ignore[arg-type]  # one of two words
        for side, passes in (("candidate", candidate), ("reference", reference))
        for repetition, one in enumerate(passes, start=1)
        for index, cpu in enumerate(one)
    ]


async def test_sums_are_compared_by_their_medians_without_start_up() -> None:
    found = compare(
        runs([[60, 60], [50, 50], [400, 400]], [[30, 30], [20, 20], [30, 30]]),
        reference_language="c",
        candidate_startup_ms=[10, 12, 10],
        reference_startup_ms=[5, 5, 7],
    )
    assert found.candidate_cpu_ms == (120, 100, 800)
    assert found.reference_cpu_ms == (60, 40, 60)
    assert found.ratio == (120 - 2 * 10) / (60 - 2 * 5), "one outlier changes nothing"
    assert found.floor_ms == 2 * 10 / 4


async def test_what_start_up_s_noise_hides_is_no_difference() -> None:
    def ratio(candidate: float, reference: float, *, startups: Sequence[float] = (9.0, 10.0, 14.0)) -> float:
        found = compare(
            runs([[candidate]] * 3, [[reference]] * 3),
            reference_language="python",
            candidate_startup_ms=startups,
            reference_startup_ms=startups,
        )
        assert found.floor_ms == (2.5 if startups[0] == 9.0 else 4.0)
        assert found.ratio is not None
        return found.ratio

    assert ratio(10.1, 12.4) == 1.0, "twenty-four times as much, if the noise were believed"
    assert ratio(9.0, 8.0) == 1.0
    assert ratio(50, 10.1) == 40 / 2.5
    assert ratio(10.1, 50) == 2.5 / 40
    assert ratio(10.1, 13.9, startups=(6.0, 10.0, 14.0)) == 1.0, "a machine on which start-ups differ by more"
