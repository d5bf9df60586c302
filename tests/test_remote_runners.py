"""go-judge and Judge0 as their documentation has them: what is sent, how answers are read, and what becomes of faults.

What a runner does wrong must never become a verdict on somebody's program.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.core.errors import StartupError
from app.core.settings import RunnerSettings, Settings
from app.doctor import examine
from app.domain.code_runner import (
    LANGUAGES,
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
)
from app.infrastructure.runner.go_judge import results as go_judge_results
from app.infrastructure.runner.go_judge.commands import COMMANDS, ENVIRONMENT
from app.infrastructure.runner.go_judge.results import Result
from app.infrastructure.runner.go_judge.runner import GoJudgeRunner
from app.infrastructure.runner.judge0 import submissions as judge0_submissions
from app.infrastructure.runner.judge0.languages import LANGUAGES as JUDGE0_LANGUAGES
from app.infrastructure.runner.judge0.languages import Listed, find_languages
from app.infrastructure.runner.judge0.runner import Judge0Runner
from app.infrastructure.runner.judge0.submissions import Configuration, Submission, encode, grant
from app.infrastructure.runner.opening import open_runner
from app.infrastructure.runner.remote.java_names import java_names
from app.infrastructure.runner.remote.service import RemoteService, Request
from tests.support.go_judge_server import GoJudgeServer
from tests.support.judge0_server import Judge0Server
from tests.support.labelled_programs import BROKEN, PROGRAMS
from tests.support.scripted_runner import GOOD_LOOK, Fault, ScriptedRunner, quick_trial

LIMITS = Limits(cpu_s=1.0, wall_s=5.0, memory_mb=64, output_bytes=10_000)
KEY = "not-to-be-shown"
SECRET_SOURCE = "print('the candidate wrote this')"


Backend = tuple[CodeRunner, ScriptedRunner]


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ScriptedRunner]]:
    with GoJudgeServer(key=KEY) as go_judge, Judge0Server(key=KEY) as judge0:
        yield {"go-judge": go_judge, "judge0": judge0}


@asynccontextmanager
async def open_one(
    name: str, url: str, key: str = KEY, patience_s: float = 60.0
) -> AsyncIterator[GoJudgeRunner | Judge0Runner]:
    opened = GoJudgeRunner if name == "go-judge" else Judge0Runner
    runner = opened(url, SecretStr(key), 2, patience_s=patience_s)
    try:
        yield runner
    finally:
        await runner.close()


@pytest.fixture(params=["go-judge", "judge0"])
async def backend(request: pytest.FixtureRequest, servers: dict[str, ScriptedRunner]) -> AsyncIterator[Backend]:
    server = servers[request.param]
    server.reset()
    async with open_one(request.param, server.url) as runner:
        yield runner, server


async def run_source(
    runner: CodeRunner,
    source: str,
    given: bytes | ProgramInput = b"",
    limits: Limits = LIMITS,
    language: str = "python",
) -> Execution:
    async with runner.prepared(SourceProgram(language, source)) as program:
        assert isinstance(program, PreparedProgram), program
        [execution] = [run async for run in runner.run(program, [given], limits)]
        return execution


# isolation, as seen from inside


async def test_isolation_is_told_with_the_version_that_was_tried(backend: Backend) -> None:
    runner, _ = backend
    isolation = await runner.self_test()
    assert (isolation.backend, isolation.level) == (runner.name, "remote")
    assert isolation.details["version"] in {"v1.9.0", "1.13.1"}
    assert isolation.details["seccomp"] == "not in force"


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"network": "192.0.2.1"}, "network: 192.0.2.1"),
        ({"files of another run": "/tmp/turnstone-probe-1"}, "files of another run: /tmp/turnstone-probe-1"),
        ({"capabilities": "some are held"}, "capabilities"),
        ({"names": ["PATH", "POSTGRES_PASSWORD"]}, "secrets' names are in the environment: POSTGRES_PASSWORD"),
        ({"processes": 400}, "400 processes are seen"),
        ({"cpu": b"done"}, "CPU time is not limited"),
        ({"memory": b"had it"}, "memory is not limited"),
        ({"processes_had": b"300"}, "the number of processes is not limited"),
    ],
)
async def test_where_programs_are_not_kept_apart_nothing_is_run(
    backend: Backend, found: dict[str, Any], said: str
) -> None:
    runner, server = backend

    def careless(source: str, stdin: bytes) -> bytes | Execution | None:
        if "turnstone-probe-" in source:
            return json.dumps({**GOOD_LOOK, **{name: found[name] for name in GOOD_LOOK if name in found}}).encode()
        answer = {b"cpu": "cpu", b"memory": "memory", b"processes": "processes_had"}.get(stdin)
        return found[answer] if answer in found else quick_trial(source, stdin)

    server.instead = careless
    with pytest.raises(RunnerUnavailableError, match=f"nothing is graded: {said}") as refused:
        await run_source(runner, SECRET_SOURCE)
    assert "docs/runner.md" in refused.value.remedy
    ran = json.dumps([received.body for received in server.received])
    assert SECRET_SOURCE not in ran
    assert encode(SECRET_SOURCE.encode()) not in ran


async def test_the_look_around_finds_a_machine_that_is_not_kept_apart(backend: Backend) -> None:
    runner, server = backend
    server.instead, server.on_host = (lambda source, stdin: None), True
    try:
        with pytest.raises(RunnerUnavailableError, match="nothing is graded: network: .*" + str(server.port)):
            await runner.self_test()
    finally:
        server.on_host = False


# faults of the service


FAULTS = [
    (Fault("/", action="drop", times=9), "cannot be reached", "TURNSTONE_RUNNER__URL"),
    (Fault("/", status=500, body=b"panic"), r"failed \(500\)", "log"),
    (Fault("/", status=503, times=9, headers={"Retry-After": "0"}), r"busy .*\(503\)", "workers"),
    (Fault("/", status=429, headers={"Retry-After": "3600"}), r"busy .*\(429\)", "CONCURRENCY"),
    (Fault("/", status=404), r"refuses the request \(404\)", "TURNSTONE_RUNNER__URL"),
    (
        Fault("/", status=302, headers={"Location": "http://127.0.0.1:9/"}),
        r"refuses the request \(302\)",
        "docs/runner.md",
    ),
    (Fault("/", body=b'[{"status": "Accep'), "not understood", "docs/runner.md"),
    (Fault("/", body=b"<html>hello</html>"), "not understood", "docs/runner.md"),
    (Fault("/", body=b'{"token": 3, "submissions": "none"}'), "not understood", "docs/runner.md"),
    (Fault("/", body=b"[]"), "not understood", "docs/runner.md"),
    (Fault("/", body=b"[1, 2]"), "not understood", "docs/runner.md"),
]


@pytest.mark.parametrize("path", ["/run", "/submissions/batch"])
@pytest.mark.parametrize(("fault", "said", "remedy"), FAULTS)
async def test_a_fault_is_the_runner_s_and_says_what_to_do(
    servers: dict[str, ScriptedRunner], path: str, fault: Fault, said: str, remedy: str
) -> None:
    name = "go-judge" if path == "/run" else "judge0"
    server = servers[name]
    server.reset()
    async with (
        open_one(name, server.url) as runner,
        runner.prepared(SourceProgram("python", SECRET_SOURCE)) as program,
    ):
        assert isinstance(program, PreparedProgram)
        server.next(replace(fault, path=path))
        with pytest.raises(RunnerUnavailableError, match=said) as failed:
            [run async for run in runner.run(program, [b""], LIMITS)]
        assert remedy in failed.value.remedy
        assert "candidate" not in str(failed.value)
        server.reset()
        [run] = [run async for run in runner.run(program, [b""], LIMITS)]
        assert run.stdout == b"the candidate wrote this\n"


async def test_what_passes_in_a_second_is_not_noticed(backend: Backend) -> None:
    runner, server = backend
    async with runner.prepared(SourceProgram("python", "print(input())")) as program:
        assert isinstance(program, PreparedProgram)
        for fault in (Fault("/", 503), Fault("/", 429, headers={"Retry-After": "0.1"}), Fault("/", action="drop")):
            server.next(fault)
            [run] = [run async for run in runner.run(program, [b"hello"], LIMITS)]
            assert run.stdout == b"hello\n"


@pytest.mark.slow
async def test_a_service_that_is_down_is_said_to_be_until_it_is_back(backend: Backend) -> None:
    runner, server = backend
    await runner.languages()
    server.stop()
    try:
        with pytest.raises(RunnerUnavailableError, match="cannot be reached"):
            await runner.self_test()
    finally:
        server.start()
    assert await runner.self_test()


async def test_a_key_that_is_not_right_is_said_and_never_shown(
    servers: dict[str, ScriptedRunner], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, server in servers.items():
        server.reset()
        async with open_one(name, server.url.replace("//", "//user:hidden-too@"), "wrong-key") as runner:
            with pytest.raises(RunnerUnavailableError, match=r"refuses the key \(401\)") as refused:
                await runner.languages()
        assert "TURNSTONE_RUNNER__API_KEY" in refused.value.remedy
        shown = f"{refused.value} {capsys.readouterr()}"
        assert "wrong-key" not in shown
        assert "hidden-too" not in shown


async def test_a_program_is_not_in_the_log_whatever_happens(
    backend: Backend, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    runner, server = backend
    server.next(Fault("/file", status=500, method="DELETE"))
    await run_source(runner, SECRET_SOURCE, b"\xff the input")
    server.next(Fault("/submissions/batch", status=500, body=SECRET_SOURCE.encode()))
    server.next(Fault("/run", status=500, body=SECRET_SOURCE.encode()))
    with pytest.raises(RunnerUnavailableError) as failed:
        await run_source(runner, SECRET_SOURCE)
    written = capfd.readouterr()
    told = f"{failed.value} {written.out} {written.err} {caplog.text}"
    assert "candidate" not in told
    assert KEY not in told


@pytest.mark.parametrize("name", ["go-judge", "judge0"])
async def test_one_that_never_answers_is_given_up(servers: dict[str, ScriptedRunner], name: str) -> None:
    server = servers[name]
    server.reset()
    async with (
        open_one(name, server.url, patience_s=60) as first,
        first.prepared(SourceProgram("python", "print(1)")) as program,
        open_one(name, server.url, patience_s=0.5) as runner,
    ):
        assert isinstance(program, PreparedProgram)
        if isinstance(server, Judge0Server):
            server.never_done = True
        else:
            server.next(Fault("/run", action="hang"))
        began = time.monotonic()
        try:
            with pytest.raises(RunnerUnavailableError, match=r"did not answer within [\d.]+ s") as failed:
                [run async for run in runner.run(program, [b""], replace(LIMITS, wall_s=1))]
        finally:
            if isinstance(server, Judge0Server):
                server.never_done = False
        assert time.monotonic() - began < 45, "the other one has patience for a minute"
        assert "load" in failed.value.remedy


async def test_what_was_lost_over_there_is_not_held_against_a_program(backend: Backend) -> None:
    runner, server = backend
    if isinstance(server, GoJudgeServer):
        if "c" not in await runner.languages():
            pytest.skip("there is no toolchain for c on this machine")
        async with runner.prepared(SourceProgram("c", PROGRAMS["c"])) as program:
            assert isinstance(program, PreparedProgram)
            server.files.clear()
            with pytest.raises(RunnerUnavailableError, match="not on go-judge any more") as failed:
                [run async for run in runner.run(program, [b"sum 1 2"], LIMITS)]
            assert "-file-timeout" in failed.value.remedy
        return
    assert isinstance(server, Judge0Server)
    async with runner.prepared(SourceProgram("python", "import time\ntime.sleep(0.5)")) as program:
        assert isinstance(program, PreparedProgram)
        server.forget()

        async def forget_what_runs() -> None:
            while all(one["status_id"] < 2 for one in list(server._submissions.values())):
                await asyncio.sleep(0.01)
            server.forget()

        forgetting = asyncio.create_task(forget_what_runs())
        with pytest.raises(RunnerUnavailableError, match="has lost submissions"):
            [run async for run in runner.run(program, [b""], LIMITS)]
        await forgetting


async def test_an_output_that_is_larger_than_anything_asked_for_is_not_read(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["go-judge"]
    server.reset()
    service = RemoteService("go-judge", server.url, {})
    server.next(Fault("/version", body=b"x" * 100_000))
    with pytest.raises(RunnerUnavailableError, match="more than 1000 bytes"):
        await service.fetch_bytes(Request("GET", "/version", most_bytes=1000))
    await service.close()


# what is sent


async def test_nothing_is_left_in_go_judge_s_store(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["go-judge"]
    assert isinstance(server, GoJudgeServer)
    server.reset()
    server.files.clear()
    async with open_one("go-judge", server.url) as runner:
        source = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read()[::-1] + open('given', 'rb').read())"
        run = await run_source(runner, source, ProgramInput(b"\xff\xfe\x00abc", {"given": b"\x80"}))
        assert run.stdout == b"cba\x00\xfe\xff\x80", "bytes that are no text go through whole"
        if "c" in await runner.languages():
            await run_source(runner, PROGRAMS["c"], b"sum 1 2", language="c")
        assert server.files == {}


async def test_limits_are_sent_in_each_engine_s_units(backend: Backend) -> None:
    runner, server = backend
    await run_source(runner, "print(1)", limits=Limits(1.5, 4.0, 96, 10_000, 8))
    if isinstance(server, GoJudgeServer):
        command = [one.body["cmd"][0] for one in server.received if one.path == "/run"][-1]
        assert command["cpuLimit"] == 1_500_000_000
        assert command["clockLimit"] == 4_000_000_000
        assert command["memoryLimit"] == 96 * 1024 * 1024
        assert command["procLimit"] == 8
        assert command["files"][1] == {"name": "stdout", "max": 10_000, "pipe": True}
        return
    row = [one.body["submissions"][0] for one in server.received if one.method == "POST"][-1]
    assert (row["cpu_time_limit"], row["wall_time_limit"], row["memory_limit"]) == (1.5, 4.0, 96 * 1024)
    assert (row["max_file_size"], row["max_processes_and_or_threads"]) == (10, 8)
    assert row["enable_network"] is False
    assert "expected_output" not in row


async def test_a_batch_for_judge0_is_no_larger_than_it_takes(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["judge0"]
    server.reset()
    async with open_one("judge0", server.url) as runner:
        async with runner.prepared(SourceProgram("python", "print(input())")) as program:
            assert isinstance(program, PreparedProgram)
            server.received.clear()
            runs = [run async for run in runner.run(program, [b"%d" % n for n in range(7)], LIMITS)]
        assert [run.stdout for run in runs] == [b"%d\n" % n for n in range(7)]
        assert [len(one.body["submissions"]) for one in server.received if one.method == "POST"] == [5, 2]


async def test_a_limit_that_judge0_lowers_is_no_fault_of_the_program(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["judge0"]
    assert isinstance(server, Judge0Server)
    server.reset()
    usual = dict(server.configuration)
    server.configuration |= {"max_max_file_size": 4, "max_cpu_time_limit": 0.5, "max_memory_limit": 64 * 1024}
    async with open_one("judge0", server.url) as runner:
        try:
            flood = await run_source(runner, "print('x' * 8000)")
            # On a busy machine half a second of CPU time takes a while.
            loop = await run_source(runner, "while True: pass", limits=replace(LIMITS, wall_s=20.0, output_bytes=1000))
            small = await run_source(runner, "print('x' * 8000)", limits=replace(LIMITS, output_bytes=1000))
        finally:
            server.configuration = usual
        assert (flood.how, flood.cause) == (
            Ended.SE,
            "it met a limit of Judge0's that is lower than the problem's (OLE)",
        )
        assert loop.how is Ended.SE
        assert small.how is Ended.OLE


async def test_judge0_says_by_field_what_it_does_not_take(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["judge0"]
    assert isinstance(server, Judge0Server)
    server.reset()
    async with open_one("judge0", server.url) as runner:
        await runner.languages()
        server.next(Fault("/submissions/batch", 201, b'[{"memory_limit": ["must be less than or equal to 512000"]}]'))
        with pytest.raises(RunnerUnavailableError, match="refuses submissions for their memory_limit"):
            await runner.self_test()
        assert await runner.self_test()
        with pytest.raises(RunnerUnavailableError, match="cannot hand over"):
            await run_source(runner, "print(1)", ProgramInput(b"", {}, ("a;b",)))


async def test_a_compiler_that_judge0_could_not_start_is_no_compile_error(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["judge0"]
    server.reset()
    async with open_one("judge0", server.url) as runner:
        if "c" not in await runner.languages():
            pytest.skip("there is no toolchain for c on this machine")
        await runner.self_test()
        done = json.dumps({"submissions": [{"token": "t", "status_id": 6, "compile_output": None}]}).encode()
        server.next(Fault("/submissions/batch", 201, b'[{"token": "t"}]', method="POST"))
        server.next(Fault("/submissions/batch", 200, done, method="GET", times=2))
        with pytest.raises(RunnerUnavailableError, match="could not compile"):
            await run_source(runner, PROGRAMS["c"], language="c")


@pytest.mark.parametrize(("cpu_ms", "is_busy"), [(200.0, True), (5100.0, False)])
async def test_a_look_at_syntax_that_waits_for_a_busy_judge0_is_no_compile_error(
    servers: dict[str, ScriptedRunner], *, cpu_ms: float, is_busy: bool
) -> None:
    server = servers["judge0"]
    server.reset()
    late = Execution(Ended.TLE, None, 9, cpu_ms, 10_000.0, 10_000, b"", 0, b"", 0, "")
    async with open_one("judge0", server.url) as runner:
        await runner.self_test()
        check = JUDGE0_LANGUAGES["python"].check
        server.instead = lambda source, stdin: late if source == check else quick_trial(source, stdin)
        if is_busy:
            with pytest.raises(RunnerUnavailableError, match="too busy to compile"):
                await run_source(runner, SECRET_SOURCE)
            return
        async with runner.prepared(SourceProgram("python", SECRET_SOURCE)) as refused:
            assert isinstance(refused, CompileFailed)
            assert refused.cause == "compiling took too long"


@pytest.mark.parametrize("source", ["", "\n", " # nothing\n"])
async def test_a_program_without_a_text_is_run_too(backend: Backend, source: str) -> None:
    assert (await run_source(backend[0], source)).how is Ended.FINISHED


# recorded answers: the engines' own JSON


def go_judge_result(**fields: Any) -> Result:
    usual = {"status": "Accepted", "exitStatus": 0, "time": 303225231, "memory": 32243712, "runTime": 524177700}
    return Result.model_validate({**usual, "files": {"stdout": "", "stderr": ""}, **fields})


@pytest.mark.parametrize(
    ("fields", "how", "code", "sent", "cause"),
    [
        ({}, Ended.FINISHED, 0, None, "exit code 0"),
        ({"status": "Nonzero Exit Status", "exitStatus": 3}, Ended.RE, 3, None, "exit code 3"),
        ({"status": "Signalled", "exitStatus": 11}, Ended.RE, None, 11, "ended by SIGSEGV"),
        ({"status": "Signalled", "exitStatus": 9}, Ended.RE, None, 9, "ended by SIGKILL"),
        (
            {"status": "Signalled", "exitStatus": 9, "memory": 64 << 20},
            Ended.MLE, None, 9, "memory was used up (limit 64 MiB)",
        ),
        (
            {"status": "Memory Limit Exceeded", "exitStatus": 9, "memory": 67_125_248},
            Ended.MLE, None, 9, "memory was used up (limit 64 MiB)",
        ),
        (
            {"status": "Time Limit Exceeded", "exitStatus": 9, "time": 1_024_000_000},
            Ended.TLE, None, 9, "CPU time was used up (limit 1 s)",
        ),
        (
            {"status": "Time Limit Exceeded", "exitStatus": 9, "time": 1_000_000, "runTime": 5_100_000_000},
            Ended.TLE, None, 9, "it took too long (limit 5 s, waiting included)",
        ),
        (
            {"status": "Output Limit Exceeded", "files": {"stdout": "x" * 10_001, "stderr": ""}},
            Ended.OLE, None, 9, "it wrote more than 10000 bytes to standard output",
        ),
        (
            {"status": "Time Limit Exceeded", "exitStatus": 9, "files": {"stdout": "", "stderr": "x" * 10_001}},
            Ended.OLE, None, 9, "it wrote more than 10000 bytes to standard error",
        ),
        (
            {"status": "Accepted", "files": {"stdout": "\ufffd" * 4000, "stderr": ""}},
            Ended.FINISHED, 0, None, "exit code 0",
        ),
        (
            {"status": "Nonzero Exit Status", "exitStatus": 1, "files": {"stdout": "", "stderr": "MemoryError\n"}},
            Ended.MLE, None, 9, "memory was used up (limit 64 MiB)",
        ),
        ({"status": "Dangerous Syscall"}, Ended.RE, None, None, "it made a system call that is not allowed"),
        ({"status": "Internal Error"}, Ended.SE, None, None, "go-judge could not run it (Internal Error)"),
        ({"status": "File Error", "error": "x"}, Ended.SE, None, None, "go-judge could not run it (File Error)"),
    ],
)  # fmt: skip
def test_each_status_of_go_judge(
    fields: dict[str, Any], how: Ended, code: int | None, sent: int | None, cause: str
) -> None:
    run = go_judge_results.read_run(go_judge_result(**fields), COMMANDS["python"], LIMITS)
    assert (run.how, run.exit_code, run.signal, run.cause) == (how, code, sent, cause)
    assert len(run.stdout) <= LIMITS.output_bytes or run.how is Ended.FINISHED


def test_go_judge_s_figures_are_of_the_port_s_units() -> None:
    run = go_judge_results.read_run(go_judge_result(), COMMANDS["python"], LIMITS)
    assert (round(run.cpu_ms), round(run.wall_ms), run.memory_kb) == (303, 524, 31_488)


@pytest.mark.parametrize("status", ["Wrong Answer", "Judgement Failed", "Quantum Limit Exceeded"])
def test_a_status_of_go_judge_that_is_not_known_is_no_verdict(status: str) -> None:
    with pytest.raises(RunnerUnavailableError, match="not known"):
        go_judge_results.read_run(go_judge_result(status=status), COMMANDS["python"], LIMITS)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"status": "Nonzero Exit Status", "exitStatus": 1}, "the compiler refused it (exit code 1)"),
        ({"status": "Signalled", "exitStatus": 6}, "the compiler was ended by SIGABRT"),
        ({"status": "Time Limit Exceeded", "time": 2_000_000_000}, "compiling used up its CPU time (2 s)"),
        ({"status": "Memory Limit Exceeded"}, "compiling used up its memory (64 MiB)"),
        ({"status": "Output Limit Exceeded"}, "the compiler wrote too many messages"),
        (
            {"status": "File Error", "fileError": [{"name": "main", "type": "CopyOutSizeExceeded"}]},
            "the compiled program is larger than 1 KiB",
        ),
    ],
)
def test_each_end_of_a_compiler_on_go_judge(fields: dict[str, Any], cause: str) -> None:
    said = {"stdout": "", "stderr": "main.c:1: error"}
    limits = CompileLimits(2, 4, 64, 1024)
    failed = go_judge_results.read_compiler(go_judge_result(**{"files": said, **fields}), "main", limits)
    assert failed == CompileFailed("main.c:1: error", cause)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "Internal Error"},
        {"status": "File Error"},
        {"status": "Accepted"},
        {"status": "Maybe"},
        {"status": "Time Limit Exceeded", "time": 19_000_000_000, "runTime": 41_000_000_000},
    ],
)
def test_a_compiler_that_could_not_be_run_is_no_compile_error(fields: dict[str, Any]) -> None:
    with pytest.raises(RunnerUnavailableError):
        go_judge_results.read_compiler(go_judge_result(**fields), "main", CompileLimits())


@pytest.mark.parametrize(
    ("fields", "how", "code", "sent", "cause"),
    [
        ({"status_id": 3, "exit_code": 0}, Ended.FINISHED, 0, None, "exit code 0"),
        ({"status_id": 11, "exit_code": 3}, Ended.RE, 3, None, "exit code 3"),
        ({"status_id": 11, "exit_code": 139}, Ended.RE, None, 11, "ended by SIGSEGV"),
        ({"status_id": 7, "exit_signal": 11}, Ended.RE, None, 11, "ended by SIGSEGV"),
        ({"status_id": 9, "exit_signal": 8}, Ended.RE, None, 8, "ended by SIGFPE"),
        ({"status_id": 10, "exit_signal": 6}, Ended.RE, None, 6, "ended by SIGABRT"),
        ({"status_id": 12, "exit_signal": 9, "memory": 2000}, Ended.RE, None, 9, "ended by SIGKILL"),
        (
            {"status_id": 11, "exit_code": 137, "memory": 65_400},
            Ended.MLE, None, 9, "memory was used up (limit 64 MiB)",
        ),
        ({"status_id": 11, "exit_code": 1, "stderr": encode(b"MemoryError")}, Ended.MLE, None, 9, None),
        ({"status_id": 5, "time": "1.104"}, Ended.TLE, None, 9, "CPU time was used up (limit 1 s)"),
        (
            {"status_id": 5, "time": "0.012", "wall_time": "5.1"},
            Ended.TLE, None, 9, "it took too long (limit 5 s, waiting included)",
        ),
        (
            {"status_id": 8, "exit_signal": 25, "stdout": encode(b"x" * 10_240)},
            Ended.OLE, None, 25, "it wrote more than 10000 bytes to standard output",
        ),
        ({"status_id": 5, "time": "1.1", "stdout": encode(b"x" * 10_240)}, Ended.OLE, None, 9, None),
        ({"status_id": 6}, Ended.SE, None, None, "Judge0 compiled it before, and could not this time"),
        ({"status_id": 13, "message": encode(b"x")}, Ended.SE, None, None, "Judge0 could not run it (Internal Error)"),
        ({"status_id": 14}, Ended.SE, None, None, "Judge0 could not run it (Exec Format Error)"),
    ],
)  # fmt: skip
def test_each_status_of_judge0(
    fields: dict[str, Any], how: Ended, code: int | None, sent: int | None, cause: str | None
) -> None:
    language = JUDGE0_LANGUAGES["python"]
    done = Submission.model_validate({"token": "t", "time": "0.01", "memory": 1000, **fields})
    run = judge0_submissions.read_run(done, language, LIMITS, grant(LIMITS, language, Configuration()))
    assert (run.how, run.exit_code, run.signal) == (how, code, sent)
    assert cause is None or run.cause == cause


@pytest.mark.parametrize("fields", [{"status_id": 4}, {"status_id": 99}, {"status_id": 3, "stdout": "no base 64!"}])
def test_what_judge0_cannot_mean_is_no_verdict(fields: dict[str, Any]) -> None:
    language = JUDGE0_LANGUAGES["python"]
    with pytest.raises(RunnerUnavailableError, match="not understood"):
        judge0_submissions.read_run(
            Submission.model_validate({"token": "t", **fields}),
            language,
            LIMITS,
            grant(LIMITS, language, Configuration()),
        )


def test_the_newest_of_judge0_s_languages_is_taken() -> None:
    rows = [
        "C (GCC 7.4.0)", "C (GCC 13.2.0)", "C (GCC 9.2.0)", "C++ (Clang 7.0.1)", "Python (2.7.17)", "Python (3.13.2)",
        "Java (JDK 17.0.6)", "Java (OpenJDK 13.0.1)", "Python for ML (3.7.7)", "Go (1.23.5)", "TypeScript (3.7.4)",
    ]  # fmt: skip
    found = find_languages([Listed(id=number, name=name) for number, name in enumerate(rows)])
    assert {name: rows[one.id] for name, one in found.items()} == {
        "c": "C (GCC 13.2.0)",
        "cpp": "C++ (Clang 7.0.1)",
        "python": "Python (3.13.2)",
        "java": "Java (JDK 17.0.6)",
        "go": "Go (1.23.5)",
    }


# commands as data, tried on this machine


@pytest.mark.parametrize("language", LANGUAGES)
def test_go_judge_s_commands_compile_and_run(language: str, tmp_path: Path) -> None:
    commands, source = COMMANDS[language], PROGRAMS[language]
    environment = dict(line.split("=", 1) for line in (*ENVIRONMENT, *commands.environment))
    environment |= {"HOME": str(tmp_path), "GOCACHE": str(tmp_path / "cache"), "PATH": os.environ["PATH"]}

    def call(argv: Sequence[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(argv, input=given, cwd=tmp_path, env=environment, capture_output=True, check=False)

    found = call(commands.find)
    if found.returncode == 127:
        pytest.skip(f"there is no toolchain for {language} on this machine")
    *paths, version = found.stdout.decode().splitlines()[: len(commands.programs) + 1]
    assert all(path.startswith("/") for path in paths)
    assert any(sign.isdigit() for sign in version)
    (tmp_path / commands.source(source)).write_text(source)
    assert call(commands.compile(paths, source)).returncode == 0
    ran = call(commands.run(paths, 64, source), b"sum 20 22")
    assert (ran.returncode, ran.stdout) == (0, b"42\n"), ran.stderr
    (tmp_path / commands.source(BROKEN[language])).write_text(BROKEN[language])
    refused = call(commands.compile(paths, BROKEN[language]))
    assert refused.returncode != 0
    assert refused.stderr


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_judge0_s_look_at_syntax(language: str, tmp_path: Path) -> None:
    check, program = JUDGE0_LANGUAGES[language].check, tmp_path / "check"
    command = {"python": "python3", "javascript": "node"}[language]
    if shutil.which(command) is None:
        pytest.skip(f"there is no {command} on this machine")
    assert check is not None
    program.write_text(check)
    ends = [
        subprocess.run([command, program], input=source.encode(), capture_output=True, check=False).returncode
        for source in (PROGRAMS[language], BROKEN[language])
    ]
    assert ends[0] == 0
    assert ends[1] != 0


@pytest.mark.parametrize(
    ("source", "file", "main"),
    [
        ("class A { } public class Solution { public static void main(String[] a) { } }", "Solution.java", "Solution"),
        ("class Helper { } class Start { static public void main(String... a) { } }", "Main.java", "Start"),
        ("package exam.one; public class P { static void main(String[] a) { } }", "P.java", "exam.one.P"),
        ("public class A { static void main(String[] a){} } class Main { static void main(String[] a){} }",
         "A.java", "Main"),
        ('class Main { String s = "class X { static void main("; /* public class Y { */ char c = \'{\'; }',
         "Main.java", "Main"),
        ("class Outer { static class In { static void main(int[] a){} } } class B { static void main(int[] a){} }",
         "Main.java", "B"),
        ("not Java", "Main.java", "Main"),
        (f"public class {'A' * 245} {{ }}", f"{'A' * 245}.java", "A" * 245),
        (f"public class {'A' * 246} {{ }}", "Main.java", "Main"),
        (f"public class {'가' * 90} {{ }}", "Main.java", "Main"),
    ],
)  # fmt: skip
def test_names_in_java(source: str, file: str, main: str) -> None:
    assert java_names(source) == (file, main)


# settings


@pytest.mark.parametrize("name", ["go-judge", "judge0"])
async def test_a_runner_elsewhere_needs_its_address(name: Any) -> None:
    async with AsyncExitStack() as stack:
        with pytest.raises(StartupError) as refused:
            await open_runner(RunnerSettings(backend=name), stack)
        assert "TURNSTONE_RUNNER__URL" in refused.value.remedy
        runner = await open_runner(RunnerSettings(backend=name, url="http://127.0.0.1:9"), stack)
        assert runner is not None
        assert runner.name == name


@pytest.mark.slow
async def test_doctor_says_what_runs_programs_and_what_does_not(servers: dict[str, ScriptedRunner]) -> None:
    server = servers["go-judge"]
    server.reset()
    runner = {"backend": "go-judge", "url": server.url, "api_key": KEY}
    [found] = [one for one in await examine(Settings(runner=runner)) if one.what == "code runner"]
    assert found.ok
    assert found.found.startswith(f"go-judge v1.9.0 at {server.url}, tried from inside; its key and programs go there")
    assert "python 3" in found.found
    [found] = [
        one for one in await examine(Settings(runner={**runner, "api_key": "other"})) if one.what == "code runner"
    ]
    assert (found.ok, KEY in str(found)) == (False, False)
    assert "TURNSTONE_RUNNER__API_KEY" in found.remedy
