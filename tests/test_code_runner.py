"""What every backend of the code runner keeps: one suite, once per backend."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from pydantic import SecretStr

from app.application.submissions.verdicts import CheckerBrokenError, open_verdicts
from app.core.settings import RunnerSettings
from app.domain.checking import Checker, CheckerKind
from app.domain.code_runner import (
    LANGUAGES,
    CaseVerdict,
    CodeRunner,
    CompileFailed,
    CompileLimits,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
    RunnerUnavailableError,
    SourceProgram,
    UnknownLanguageError,
)
from app.infrastructure.runner.opening import open_runner
from tests.support.go_judge_server import GoJudgeServer
from tests.support.judge0_server import Judge0Server
from tests.support.labelled_programs import BROKEN, PROGRAMS

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = Limits(cpu_s=1.0, wall_s=6.0, memory_mb=96, output_bytes=256 * 1024)
AMPLE = Limits(cpu_s=5.0, wall_s=30.0, memory_mb=96, output_bytes=256 * 1024)
"""For what ends by itself: a busy machine makes a start take several times the CPU time that it should."""


async def bubblewrap(stack: AsyncExitStack) -> CodeRunner:
    runner = await open_runner(RunnerSettings(backend="bubblewrap", concurrency=2), stack)
    assert runner is not None
    return runner


async def bubblewrap_by_process(stack: AsyncExitStack) -> CodeRunner:
    settings = RunnerSettings(backend="bubblewrap", concurrency=2, isolation="rlimits")
    runner = await open_runner(settings, stack)
    assert runner is not None
    return runner


async def go_judge(stack: AsyncExitStack) -> CodeRunner:
    server = stack.enter_context(GoJudgeServer(key="the-key"))
    runner = await open_runner(
        RunnerSettings(backend="go-judge", url=server.url, api_key=SecretStr("the-key"), concurrency=2), stack
    )
    assert runner is not None
    return runner


async def judge0(stack: AsyncExitStack) -> CodeRunner:
    server = stack.enter_context(Judge0Server(key="the-key"))
    runner = await open_runner(
        RunnerSettings(backend="judge0", url=server.url, api_key=SecretStr("the-key"), concurrency=2), stack
    )
    assert runner is not None
    return runner


# A further backend adds itself here. One that does not run on this machine raises RunnerUnavailableError.
BACKENDS: dict[str, Callable[[AsyncExitStack], Awaitable[CodeRunner]]] = {
    "bubblewrap": bubblewrap,
    "bubblewrap, limits by process": bubblewrap_by_process,
    "go-judge, scripted": go_judge,
    "judge0, scripted": judge0,
}


SCRIPTED = pytest.mark.slow  # programs run for real behind them too, so that takes as long again


@pytest_asyncio.fixture(
    loop_scope="module",
    scope="module",
    params=[pytest.param(name, marks=[SCRIPTED] if "scripted" in name else []) for name in BACKENDS],
)
async def runner(request: pytest.FixtureRequest) -> AsyncIterator[CodeRunner]:
    async with AsyncExitStack() as stack:
        opened = await BACKENDS[request.param](stack)
        try:
            await opened.self_test()
        except RunnerUnavailableError as error:
            pytest.skip(str(error))
        yield opened


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def python(runner: CodeRunner) -> AsyncIterator[PreparedProgram]:
    async with runner.prepared(SourceProgram("python", PROGRAMS["python"])) as program:
        assert isinstance(program, PreparedProgram)
        yield program


async def run_one(
    runner: CodeRunner, program: PreparedProgram, given: bytes | ProgramInput, limits: Limits = LIMITS
) -> Execution:
    [execution] = [execution async for execution in runner.run(program, [given], limits)]
    return execution


async def run_source(
    runner: CodeRunner, language: str, source: str, given: bytes | ProgramInput = b"", limits: Limits = LIMITS
) -> Execution:
    async with runner.prepared(SourceProgram(language, source)) as program:
        assert isinstance(program, PreparedProgram), program
        return await run_one(runner, program, given, limits)


@pytest.mark.parametrize("language", LANGUAGES)
async def test_each_class_of_verdict_is_told_in_each_language(runner: CodeRunner, language: str) -> None:
    if language not in await runner.languages():
        pytest.skip(f"there is no toolchain for {language} on this machine")
    wanted = {
        "sum": CaseVerdict.AC,
        "wrong": CaseVerdict.WA,
        "loop": CaseVerdict.TLE,
        "memory": CaseVerdict.MLE,
        "exit": CaseVerdict.RE,
        "flood": CaseVerdict.OLE,
    }
    inputs = [f"{mode} 20 22".encode() for mode in wanted]
    async with (
        open_verdicts(runner, Checker()) as verdicts,
        runner.prepared(SourceProgram(language, PROGRAMS[language])) as program,
    ):
        assert isinstance(program, PreparedProgram), program
        assert list(wanted)[2] == "loop"
        runs = [run async for run in runner.run(program, [*inputs[:2], *inputs[3:]], AMPLE)]
        runs[2:2] = [run async for run in runner.run(program, inputs[2:3], LIMITS)]
        told = [(await verdicts.verdict(run, given, b"42\n")).verdict for run, given in zip(runs, inputs, strict=True)]
    assert dict(zip(wanted, told, strict=True)) == wanted, [(run.cause, run.stderr[-300:]) for run in runs]
    assert runs[4].exit_code == 3
    async with runner.prepared(SourceProgram(language, BROKEN[language])) as refused:
        assert isinstance(refused, CompileFailed)
        assert "exit code" in refused.cause
        assert refused.message.strip()


async def test_a_checker_that_fails_is_nobody_s_wrong_answer(runner: CodeRunner, python: PreparedProgram) -> None:
    program = SourceProgram("python", "raise SystemExit(7)")
    async with open_verdicts(runner, Checker(CheckerKind.PROGRAM, program=program)) as verdicts:
        outcome = await verdicts.verdict(await run_one(runner, python, b"sum 1 2"), b"sum 1 2", b"3")
    assert outcome == (CaseVerdict.SE, "the checker gave no verdict: exit code 7", "checker")


async def test_a_checker_program_sees_input_output_and_answer(runner: CodeRunner, python: PreparedProgram) -> None:
    source = """
import pathlib, sys
given, answer, feedback = sys.argv[1:]
assert pathlib.Path(given).read_text() == "sum 4 5", "input"
(pathlib.Path(feedback) / "judgemessage.txt").write_text("read")
sys.exit(42 if int(sys.stdin.read()) % 10 == int(pathlib.Path(answer).read_text()) else 43)
"""
    checker = Checker(CheckerKind.PROGRAM, program=SourceProgram("python", source))
    execution = await run_one(runner, python, b"sum 4 5")
    async with open_verdicts(runner, checker) as verdicts:
        assert (await verdicts.verdict(execution, b"sum 4 5", b"9")).verdict is CaseVerdict.AC
        assert (await verdicts.verdict(execution, b"sum 4 5", b"8")).verdict is CaseVerdict.WA


async def test_a_checker_that_does_not_compile_is_its_author_s(runner: CodeRunner) -> None:
    checker = Checker(CheckerKind.PROGRAM, program=SourceProgram("python", BROKEN["python"]))
    with pytest.raises(CheckerBrokenError, match="does not compile"):
        async with open_verdicts(runner, checker):
            pytest.fail("it was opened")


async def test_a_batch_comes_back_in_its_order(runner: CodeRunner, python: PreparedProgram) -> None:
    inputs = [f"sum {n} 1".encode() for n in range(12)]
    answers = [int(run.stdout) async for run in runner.run(python, inputs, LIMITS)]
    assert answers == [n + 1 for n in range(12)]


async def test_a_case_knows_nothing_of_the_one_before(runner: CodeRunner) -> None:
    source = """
import os
places = [os.path.join(place, name) for place in (".", "/tmp", "/dev/shm", os.path.expanduser("~"))
          for name in ("left", "json.py", "sitecustomize.py")]
print(*filter(os.path.exists, places), end="")
for place in places:
    try: open(place, "w").write("print('found')")
    except OSError: pass
if os.fork() == 0:
    os.setsid()
    import time
    time.sleep(30)
"""
    async with runner.prepared(SourceProgram("python", source)) as program:
        assert isinstance(program, PreparedProgram)
        runs = [run async for run in runner.run(program, [b""] * 3, LIMITS)]
    assert [(run.how, run.stdout) for run in runs] == [(Ended.FINISHED, b"")] * 3, runs


async def test_text_of_all_scripts_goes_through(runner: CodeRunner, python: PreparedProgram) -> None:
    text = "echo 안녕하세요 ñandú 𝔘𝔫𝔦 🦆 \u202eright-to-left"
    assert (await run_one(runner, python, text.encode())).stdout.decode() == text.removeprefix("echo ")
    source = "# 한글 주석\nprint('가나다', '🦆', '\\udcff'.encode('utf-8', 'surrogateescape'))"
    assert (await run_source(runner, "python", source)).stdout.decode().startswith("가나다 🦆")


async def test_large_inputs_and_outputs_go_through_whole(runner: CodeRunner) -> None:
    text = b"0123456789abcde\n" * 200_000
    limits = Limits(cpu_s=5, wall_s=20, output_bytes=len(text))
    run = await run_source(
        runner, "python", "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())", text, limits
    )
    assert (run.how, run.stdout_bytes) == (Ended.FINISHED, len(text)), run.cause
    assert run.stdout == text


async def test_what_is_beyond_the_limit_is_cut_and_counted(runner: CodeRunner) -> None:
    limits = Limits(cpu_s=2, wall_s=10, output_bytes=1000)
    run = await run_source(runner, "python", "print('x' * 100000)", b"", limits)
    assert (run.how, len(run.stdout)) == (Ended.OLE, 1000)
    assert run.stdout_bytes > 1000
    assert run.cause == "it wrote more than 1000 bytes to standard output"


async def test_standard_error_is_apart_and_its_tail_is_kept(runner: CodeRunner) -> None:
    source = "import sys\nprint('out')\nfor n in range(20000): print(n, file=sys.stderr)"
    run = await run_source(runner, "python", source)
    assert run.stdout == b"out\n"
    assert run.stderr.endswith(b"\n19999\n")
    assert run.stderr_bytes > len(run.stderr)


@pytest.mark.parametrize(
    ("source", "code", "sent", "cause"),
    [
        ("raise SystemExit(1)", 1, None, "exit code 1"),
        ("raise SystemExit(77)", 77, None, "exit code 77"),
        ("raise ValueError", 1, None, "exit code 1"),
        ("import ctypes\nctypes.string_at(8)", None, 11, "ended by SIGSEGV"),
    ],
)
async def test_how_a_program_ended_is_told(
    runner: CodeRunner, source: str, code: int | None, sent: int | None, cause: str
) -> None:
    run = await run_source(runner, "python", source)
    assert (run.how, run.exit_code, run.signal, run.cause) == (Ended.RE, code, sent, cause)


async def test_waiting_is_limited_and_so_is_cpu_time(runner: CodeRunner) -> None:
    limits = Limits(cpu_s=0.5, wall_s=1.0)
    sleeps = await run_source(runner, "python", "import time\ntime.sleep(30)", b"", limits)
    assert (sleeps.how, sleeps.cause) == (Ended.TLE, "it took too long (limit 1 s, waiting included)")
    assert sleeps.cpu_ms < 500
    used: list[float] = []
    while not used or (used[-1] >= 900 and len(used) < 5):  # whoever looks at the time may stand still, too
        loops = await run_source(runner, "python", "while True: pass", b"", Limits(cpu_s=0.5, wall_s=10))
        assert (loops.how, loops.cause) == (Ended.TLE, "CPU time was used up (limit 0.5 s)")
        used.append(loops.cpu_ms)
    assert 500 <= min(used) < 900, used


async def test_cpu_time_is_of_all_processes(runner: CodeRunner) -> None:
    source = """
import os, time
def work():
    until = time.process_time() + 0.2
    while time.process_time() < until: pass
children = [os.fork() for _ in range(1)]
work()
if children[0] == 0: os._exit(0)
os.wait()
times = os.times()
print(times.children_user + times.children_system, sum(times[:4]))
"""
    run = await run_source(runner, "python", source, b"", AMPLE)
    assert run.how is Ended.FINISHED, run.cause
    of_child, of_both = (float(word) * 1000 for word in run.stdout.split())
    assert of_child >= 180 and of_both >= 380
    # what it knows of itself, and its start and its end; neither process is left out, and none is counted twice
    assert of_both - 50 <= run.cpu_ms < of_both + of_child


async def test_memory_is_measured(runner: CodeRunner) -> None:
    run = await run_source(runner, "python", "import time\nx = b'x' * 50_000_000\ntime.sleep(0.1)")
    assert run.how is Ended.FINISHED, run.cause
    assert 45_000 < run.memory_kb < 90_000


async def test_a_compiler_has_limits_of_its_own(runner: CodeRunner) -> None:
    if "c" not in await runner.languages():
        pytest.skip("there is no toolchain for c on this machine")
    if runner.name == "judge0":
        pytest.skip("Judge0 compiles by limits of its own configuration")
    limits = CompileLimits(cpu_s=10, wall_s=20, memory_mb=256, output_bytes=100_000)
    async with runner.prepared(SourceProgram("c", "char a[1 << 20] = {1}; int main() { return a[5]; }"), limits) as it:
        assert isinstance(it, CompileFailed)
        assert it.cause == "the compiled program is larger than 97 KiB"


@pytest.mark.parametrize("name", ["A" * 300, "가" * 90])
async def test_a_class_whose_file_no_system_can_hold_is_its_author_s(runner: CodeRunner, name: str) -> None:
    if "java" not in await runner.languages():
        pytest.skip("there is no toolchain for java on this machine")
    source = f"public class {name} {{ public static void main(String[] a) {{ }} }}"
    async with runner.prepared(SourceProgram("java", source)) as refused:
        assert isinstance(refused, CompileFailed)


async def test_a_language_without_a_toolchain_is_refused(runner: CodeRunner) -> None:
    with pytest.raises(UnknownLanguageError, match="cobol"):
        async with runner.prepared(SourceProgram("cobol", "")):
            pytest.fail("it was prepared")


async def test_a_run_nobody_waits_for_ends(runner: CodeRunner, python: PreparedProgram) -> None:
    limits = Limits(cpu_s=60, wall_s=60)
    first = asyncio.ensure_future(run_one(runner, python, b"loop", limits))
    second = asyncio.ensure_future(run_one(runner, python, b"loop", limits))
    await asyncio.sleep(0.3)
    for task in (first, second):
        task.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    began = time.monotonic()
    assert (await run_one(runner, python, b"sum 1 1")).stdout == b"2\n"
    assert time.monotonic() - began < 30, "the slots are free again"


async def test_isolation_is_described(runner: CodeRunner) -> None:
    isolation = await runner.self_test()
    assert isolation.backend == runner.name
    assert isolation.level in {"cgroup2", "cgroup1", "rlimits", "remote"}
