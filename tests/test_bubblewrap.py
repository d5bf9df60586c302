"""What is bubblewrap's own: how it starts, what it refuses, what is left when somebody is killed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.application.submissions.work import TriedRunner
from app.core.settings import RunnerSettings, Settings
from app.domain.code_runner import (
    Ended,
    Limits,
    PreparedProgram,
    RunnerUnavailableError,
    SourceProgram,
)
from app.infrastructure.runner.bubblewrap import box as box_module
from app.infrastructure.runner.bubblewrap import boxes
from app.infrastructure.runner.bubblewrap import link as link_module
from app.infrastructure.runner.bubblewrap import runner as runner_module
from app.infrastructure.runner.bubblewrap.accounts import OneByOne, open_accounts, tree_of
from app.infrastructure.runner.bubblewrap.box import run_box
from app.infrastructure.runner.bubblewrap.cgroup1 import _Run1
from app.infrastructure.runner.bubblewrap.cgroup2 import Version2, _Run2
from app.infrastructure.runner.bubblewrap.cgroups import OwnCgroups, own_cgroups, sweep
from app.infrastructure.runner.bubblewrap.launch import Box, BoxLimits
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner, Level
from app.infrastructure.runner.bubblewrap.seccomp import seccomp_program
from app.infrastructure.runner.bubblewrap.toolchains import main_class
from app.infrastructure.runner.bubblewrap.waiting import Waiting
from app.infrastructure.runner.opening import open_runner
from tests.support.chat import Command, environment, wait_until
from tests.support.service import running

ROOT = Path(__file__).parents[1]
LOOP = "import os\nif os.fork() == 0: os.setsid()\nwhile True: pass"


@pytest.fixture
async def runner() -> AsyncIterator[BubblewrapRunner]:
    opened = BubblewrapRunner(2)
    try:
        await works_here(opened)
        yield opened
    finally:
        await opened.close()


async def works_here(runner: BubblewrapRunner) -> None:
    """Skip where this machine holds nothing apart; a descriptor that is left open is ours, not the machine's fault."""
    try:
        await runner.self_test()
    except RunnerUnavailableError as error:
        assert "descriptors" not in str(error)
        pytest.skip(str(error))


def groups_of(warden: int) -> list[Path]:
    own = own_cgroups()
    return [
        group
        for place in {*own.v1.values(), *filter(None, [own.v2])}
        for group in place.glob(f"turnstone.*.{warden}-*")
    ]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def until_gone(pids: list[int], patience_s: float = 30) -> None:
    async with asyncio.timeout(patience_s):
        while any(map(alive, pids)):
            await asyncio.sleep(0.02)


async def until_no_orphans() -> None:
    """What is killed takes a moment to go; what is left behind stays."""
    async with asyncio.timeout(30):
        while orphans():
            await asyncio.sleep(0.02)


async def test_where_a_leak_is_found_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sandboxes that share the machine's network, so that the self-test has something to find."""
    shared = tuple(option for option in boxes._ISOLATED if option != "--unshare-net")
    monkeypatch.setattr(boxes, "_ISOLATED", shared)
    runner = BubblewrapRunner(1)
    try:
        with pytest.raises(RunnerUnavailableError) as refused:
            await runner.self_test()
        if "user namespaces" in refused.value.remedy:
            pytest.skip(str(refused.value))
        assert "nothing is graded: network: an address of the machine can be reached" in refused.value.problem
        with pytest.raises(RunnerUnavailableError, match="nothing is graded"):
            async with runner.prepared(SourceProgram("python", "print(1)")):
                pytest.fail("it was prepared")
        with capture_logs() as logs:
            await TriedRunner(runner, announced_after_s=0).announce()
        assert [entry["event"] for entry in logs] == ["runner_refuses_to_grade"]
    finally:
        await runner.close()


async def test_a_service_at_home_in_a_place_that_sandboxes_have_too_grades(
    runner: BubblewrapRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/tmp")
    monkeypatch.chdir("/tmp")
    assert (await runner.self_test()).backend == "bubblewrap"


@pytest.mark.parametrize(
    ("option", "what"),
    [("--unshare-pid", "as-pid-1"), ("--clearenv", "environment")],
)
async def test_each_missing_wall_is_noticed(monkeypatch: pytest.MonkeyPatch, option: str, what: str) -> None:
    less = [one for one in boxes._ISOLATED if one != option]
    if option == "--clearenv":
        less += ["--setenv", "SECRET", "x"]
    monkeypatch.setattr(boxes, "_ISOLATED", tuple(less))
    runner = BubblewrapRunner(1)
    try:
        with pytest.raises(RunnerUnavailableError, match=what):
            await runner.self_test()
    finally:
        await runner.close()


async def test_without_bubblewrap_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "/nowhere")
    runner = BubblewrapRunner(1)
    monkeypatch.setattr(runner_module, "find_languages", dict)
    with pytest.raises(RunnerUnavailableError, match=r"turnstone\[runner\]"):
        await runner.self_test()


async def test_when_the_warden_is_killed_its_runs_end_and_the_next_one_starts_it_again(
    runner: BubblewrapRunner,
) -> None:
    async with runner.prepared(SourceProgram("python", LOOP)) as program:
        assert isinstance(program, PreparedProgram)

        async def run() -> None:
            async for _ in runner.run(program, [b""], Limits(cpu_s=60, wall_s=60)):
                pytest.fail("it ended")

        running = asyncio.create_task(run())
        warden = runner.warden_pid
        assert warden is not None
        async with asyncio.timeout(30):
            while len(inside := list(tree_of(warden))) < 4:  # the warden, bubblewrap, the program and its child
                await asyncio.sleep(0.05)
        os.kill(warden, signal.SIGKILL)
        with pytest.raises(RunnerUnavailableError, match="is gone"):
            await running
        await until_gone(inside)
    assert (await runner.self_test()).backend == "bubblewrap"
    assert runner.warden_pid not in {None, warden}
    assert groups_of(warden) == [], "the next warden removed what the killed one had made"


def orphans() -> list[int]:
    """Sandboxes whose warden is gone, and programs in such: what runs under init and is bubblewrap or has its gate."""
    bwrap, found = boxes.find_bwrap().resolve(), []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and alive(int(process.name)):
                parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == 1 and ((process / "exe").resolve() == bwrap or (process / "root" / ".gate").exists()):
                    found.append(int(process.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, "rlimits"])
async def test_a_warden_killed_at_any_moment_is_noticed_and_leaves_no_half_made_sandbox(level: Level | None) -> None:
    """Most of the time sandboxes are being made: a killed one may leave what waits for its parent for ever."""
    runner = BubblewrapRunner(4, level=level)
    try:
        await works_here(runner)
        for number in range(25):
            async with runner.prepared(SourceProgram("python", "print(1)")) as program:
                assert isinstance(program, PreparedProgram)

                async def run(program: PreparedProgram = program) -> None:
                    async for _ in runner.run(program, [b""] * 1000, Limits()):
                        pass

                running = asyncio.create_task(run())
                await asyncio.sleep(0.05 + number * 0.0017)
                warden = runner.warden_pid
                assert warden is not None
                os.kill(warden, signal.SIGKILL)
                with pytest.raises(RunnerUnavailableError, match="is gone"):
                    await asyncio.wait_for(running, 30)
            await runner.self_test()
        await until_no_orphans()
    finally:
        await runner.close()


async def test_a_run_cancelled_while_its_sandbox_is_made_leaves_no_program_behind() -> None:
    runner = BubblewrapRunner(4, level="rlimits")
    try:
        await works_here(runner)
        async with runner.prepared(SourceProgram("python", "import time\ntime.sleep(600)")) as program:
            assert isinstance(program, PreparedProgram)

            async def run() -> None:
                async for _ in runner.run(program, [b""] * 4, Limits(cpu_s=60, wall_s=900)):
                    pytest.fail("it ended")

            for number in range(60):
                running = asyncio.create_task(run())
                await asyncio.sleep(number % 30 * 0.0004)
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            warden = runner.warden_pid
            assert warden is not None
            await until_gone([pid for pid in tree_of(warden) if pid != warden])
            await asyncio.sleep(0.1)
            await until_no_orphans()
    finally:
        await runner.close()


async def test_a_program_that_a_killed_warden_let_through_the_gate_is_ended_by_the_next() -> None:
    """The sandbox stands still while it is made, so that it goes on when nobody is there any more."""
    runner = BubblewrapRunner(1, level="rlimits")
    try:
        await works_here(runner)
        bwrap = boxes.find_bwrap().resolve()

        async def run(program: PreparedProgram) -> None:
            async for _ in runner.run(program, [b""], Limits(cpu_s=60, wall_s=900)):
                pytest.fail("it ended")

        for _ in range(20):
            async with runner.prepared(SourceProgram("python", "import time\ntime.sleep(600)")) as program:
                assert isinstance(program, PreparedProgram)
                warden, inside = runner.warden_pid, [0]
                assert warden is not None
                running = asyncio.create_task(run(program))
                async with asyncio.timeout(30):
                    while len(inside) < 3:  # the warden, bubblewrap, and its inner process
                        await asyncio.sleep(0)
                        inside = list(tree_of(warden))
                os.kill(inner := inside[-1], signal.SIGSTOP)
                await asyncio.sleep(0.05)
                at_gate = (Path(f"/proc/{inner}") / "exe").resolve() == bwrap
                os.kill(warden, signal.SIGKILL)
                with pytest.raises(RunnerUnavailableError, match="is gone"):
                    await running
            await until_gone([warden, inside[1]])
            os.kill(inner, signal.SIGCONT)
            async with asyncio.timeout(30):
                while at_gate and alive(inner) and (Path(f"/proc/{inner}") / "exe").resolve() == bwrap:
                    await asyncio.sleep(0.01)
            ran = at_gate and inner in orphans()
            await runner.self_test()
            await until_gone([inner])
            await until_no_orphans()
            if ran:
                return
        pytest.skip("no sandbox was caught while it was made")
    finally:
        await runner.close()


async def test_a_sandbox_that_is_never_made_is_given_up_with_all_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A script that does not end plays bubblewrap, with an inner process."""
    monkeypatch.setattr(box_module, "_LAST_WORDS_S", 0.1)
    never = tmp_path / "never"
    never.write_text("#!/bin/sh\n/bin/sleep 600 &\necho $! >&2\nwait\n")
    never.chmod(0o755)
    with Path(os.devnull).open("rb") as nothing, (tmp_path / "seccomp").open("wb") as seccomp:
        box = Box(
            bwrap=str(never),
            options=(),
            argv=("x",),
            files=(),
            stdin=nothing.fileno(),
            seccomp=seccomp.fileno(),
            uid=None,
            limits=BoxLimits(10, 10, 64, 10_000, 8, 8),
            by_process=True,
            cpus=(),
        )
        for setup_s in (0.3, 2, 10):  # until the script has come as far as its inner process
            monkeypatch.setattr(box_module, "_SETUP_S", setup_s)
            account = OneByOne().open("run", memory_mb=64, processes=8)
            async with asyncio.timeout(30):
                outcome = await run_box(box, account, contextlib.nullcontext)
            assert not outcome.started
            if outcome.err.kept.endswith(b"\n"):
                break
    await until_gone([int(outcome.err.kept)])


@pytest.mark.slow
async def test_a_warden_that_hangs_is_killed_and_the_next_run_starts_another(
    runner: BubblewrapRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_ANSWER_WITHIN_S", 0.5)
    async with runner.prepared(SourceProgram("python", "print(1)")) as program:
        assert isinstance(program, PreparedProgram)
        warden = runner.warden_pid
        assert warden is not None
        os.kill(warden, signal.SIGSTOP)
        with capture_logs() as logs, pytest.raises(RunnerUnavailableError, match="is gone"):
            async for _ in runner.run(program, [b""], Limits(wall_s=0.5)):
                pytest.fail("it ended")
    assert "runner_warden_hangs" in {entry["event"] for entry in logs}
    monkeypatch.undo()
    assert (await runner.self_test()).backend == "bubblewrap"
    await until_gone([warden])


async def test_a_warden_that_is_gone_is_told_nothing_more(runner: BubblewrapRunner) -> None:
    async with runner.prepared(SourceProgram("python", "print(1)")) as program:
        assert isinstance(program, PreparedProgram)
        link = runner._link  # what follows happens between two steps of the runner
        assert link is not None
        os.kill(link.pid, signal.SIGKILL)
        async with asyncio.timeout(30):  # until this end has heard of it
            while not link._is_deaf:
                await asyncio.sleep(0.01)
        for number in range(2):
            with pytest.raises(RunnerUnavailableError, match="is gone"):
                link.put(f"handle {number}", [("/x", 0o644, b"x")])
        link.drop("handle 0")
        assert not link.alive
        with pytest.raises(RunnerUnavailableError, match="is gone"):
            async for _ in runner.run(program, [b""], Limits()):
                pytest.fail("it ended")


async def test_where_a_descriptor_is_left_open_nothing_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the service's, by whoever started it; and by uvloop, the service's own ends of what it speaks through."""
    with (tmp_path / "secret").open("w") as opened:
        os.set_inheritable(opened.fileno(), True)
        runner = BubblewrapRunner(2)
        try:
            await works_here(runner)
            async with runner.prepared(SourceProgram("python", _DESCRIPTORS)) as program:
                assert isinstance(program, PreparedProgram)
                [execution] = [one async for one in runner.run(program, [b""], Limits())]
            assert execution.stdout == b"[0, 1, 2]\n"
        finally:
            await runner.close()
        monkeypatch.setattr(
            link_module,
            "_START",
            "import sys; sys.path.insert(0, sys.argv[1])\n"
            "from app.infrastructure.runner.bubblewrap import launch, warden\n"
            "launch.close_all_but = warden.close_all_but = lambda _: None; warden.main()",
        )
        leaking = BubblewrapRunner(2)
        try:
            with pytest.raises(RunnerUnavailableError, match="descriptors"):
                await leaking.self_test()
        finally:
            await leaking.close()


_DESCRIPTORS = """
import os
def is_open(one):
    try:
        os.fstat(one)
    except OSError:
        return False
    return True
print([one for one in range(1024) if is_open(one)])
"""

_SERVICE = """
import asyncio, sys, uvloop
from app.domain.code_runner import Limits, SourceProgram
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner, Level
async def main():
    runner = BubblewrapRunner(2)
    async with runner.prepared(SourceProgram("python", sys.argv[1])) as program:
        print(runner.warden_pid, flush=True)
        async for _ in runner.run(program, [b""] * 2, Limits(cpu_s=60, wall_s=60)):
            pass
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""


@pytest.mark.slow
async def test_a_service_killed_with_9_leaves_nothing(runner: BubblewrapRunner) -> None:
    service = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SERVICE,
        LOOP,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert service.stdout is not None
    warden = int(await service.stdout.readline())
    async with asyncio.timeout(60):
        while len(inside := list(tree_of(warden))) < 7:  # the warden and two sandboxes of three processes
            await asyncio.sleep(0.05)
    service.kill()
    await service.wait()
    await until_gone(inside)
    assert groups_of(warden) == []


def test_runs_as_a_user_without_rights_are_held_apart_too() -> None:
    if os.geteuid() != 0:
        pytest.skip("this suite does not run as root, so all others here show it")
    python = "/usr/bin/python3"
    version = (
        subprocess.run([python, "-V"], capture_output=True, text=True, check=False) if Path(python).exists() else None
    )
    if version is None or not version.stdout.startswith("Python 3.11"):
        pytest.skip("there is no Python 3.11 that everybody can reach")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    source = """
import asyncio, uvloop
from app.domain.code_runner import Limits, SourceProgram
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner, Level
async def main():
    runner = BubblewrapRunner(1)
    print((await runner.self_test()).details["user"])
    async with runner.prepared(SourceProgram("python", "import os; print(os.getuid())")) as program:
        async for run in runner.run(program, [b""], Limits()):
            print(run.stdout.decode())
    await runner.close()
asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""
    env = {"PYTHONPATH": f"{ROOT}:{packages}", "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [python, "-c", source], cwd="/", env=env, user=12_345, group=12_345, extra_groups=[], check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if "Permission denied" in done.stderr and "sandbox" not in done.stderr:
        pytest.skip("this folder is for its owner alone")
    assert done.stdout.split("\n")[:2] == ["the service's own", "1000"], done.stderr


async def test_a_program_may_be_larger_than_what_it_may_write(runner: BubblewrapRunner) -> None:
    if "c" not in await runner.languages():
        pytest.skip("there is no toolchain for c on this machine")
    source = """#include <stdio.h>
    int a[2000001] = {1};
    int main() {
        FILE *file = fopen("/work/x", "w");
        long count = 0;
        while (count < 8000 && fwrite(a, 1, 1024, file) == 1024 && !fflush(file)) count++;
        printf("%ld", count);
    }"""
    async with runner.prepared(SourceProgram("c", source)) as program:
        assert isinstance(program, PreparedProgram), program
        [execution] = [one async for one in runner.run(program, [b""], Limits(files_mb=1))]
    assert (execution.how, execution.stdout) == (Ended.FINISHED, b"1024"), "8 MB are put in, 1 MiB may be written"


@pytest.mark.slow
async def test_java_with_hundreds_of_classes_takes_few_descriptors(runner: BubblewrapRunner) -> None:
    if "java" not in await runner.languages():
        pytest.skip("there is no toolchain for java on this machine")
    classes = "\n".join(f"static class C{n} {{ int f() {{ return {n}; }} }}" for n in range(300))
    total = "; ".join(f"sum += new C{n}().f()" for n in range(300))
    source = f"class Main {{ {classes}\npublic static void main(String[] a) {{ int sum = 0; {total}; say(sum); }}\n"
    source += "static void say(int sum) { System.out.print(sum); } }"
    warden = runner.warden_pid
    assert warden is not None
    before = len(list(Path(f"/proc/{warden}/fd").iterdir()))
    async with runner.prepared(SourceProgram("java", source)) as program:
        assert isinstance(program, PreparedProgram), program
        runs = [run async for run in runner.run(program, [b""] * 3, Limits(cpu_s=10, wall_s=30))]
        assert [(run.how, run.stdout) for run in runs] == [(Ended.FINISHED, b"44850")] * 3, runs
        # What a run has opened is closed a little after it was told.
        await asyncio.to_thread(wait_until, lambda: len(list(Path(f"/proc/{warden}/fd").iterdir())) <= before + 2)


async def test_a_program_that_the_warden_cannot_keep_fails_alone(runner: BubblewrapRunner) -> None:
    """It has no descriptors left when the program comes, and some again when that is run."""
    warden = runner.warden_pid
    assert warden is not None
    async with runner.prepared(SourceProgram("python", "print(1)")) as kept:
        assert isinstance(kept, runner_module._Prepared)
        assert [one.stdout async for one in runner.run(kept, [b""], Limits())] == [b"1\n"]  # it has come by now
        _, most = resource.prlimit(warden, resource.RLIMIT_NOFILE)
        resource.prlimit(warden, resource.RLIMIT_NOFILE, (3, most))
        link = runner._link  # what follows happens between two steps of the runner
        assert link is not None
        link.put("lost", [("/program/main.py", 0o444, b"print(2)")])
        with pytest.raises(RunnerUnavailableError, match="Too many open files"):
            [one async for one in runner.run(kept, [b""], Limits())]
        resource.prlimit(warden, resource.RLIMIT_NOFILE, (most, most))
        with pytest.raises(RunnerUnavailableError, match="Too many open files"):
            [one async for one in runner.run(replace(kept, handle="lost"), [b""], Limits())]
        assert [one.stdout async for one in runner.run(kept, [b""], Limits())] == [b"1\n"]
    assert runner.warden_pid == warden


async def test_descriptors_are_many_for_the_warden_and_few_for_a_program() -> None:
    usual, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    runner = BubblewrapRunner(1)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 1000), most))
        await works_here(runner)
        assert runner.warden_pid is not None
        assert resource.prlimit(runner.warden_pid, resource.RLIMIT_NOFILE)[0] == min(most, 65_536)
        source = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
        async with runner.prepared(SourceProgram("python", source)) as program:
            assert isinstance(program, PreparedProgram)
            assert [one.stdout async for one in runner.run(program, [b""], Limits())] == [b"256 256\n"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (usual, most))
        await runner.close()


async def test_overhead_is_small(runner: BubblewrapRunner) -> None:
    """Start to end of a Python program that does nothing; the promise is a median of 60 ms on an idle machine."""
    async with runner.prepared(SourceProgram("python", "pass")) as program:
        assert isinstance(program, PreparedProgram)
        took = []
        for _ in range(10):
            began = time.perf_counter()
            async for run in runner.run(program, [b""], Limits()):
                assert run.how is Ended.FINISHED
            took.append(time.perf_counter() - began)
    assert min(took) < 0.5, took


async def test_what_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        assert await open_runner(RunnerSettings(backend="none"), stack) is None
        opened = await open_runner(RunnerSettings(), stack)
        assert opened is not None
        assert opened.name == "bubblewrap"


async def test_java_s_main_is_found_and_an_archive_is_not_believed() -> None:
    main = b"\x01\x00\x04main\x01\x00\x16([Ljava/lang/String;)V"
    assert main_class({"A.class": b"", "B.class": main, "Main.class": main}, "A.java") == "Main"
    assert main_class({"A.class": main, "B.class": main}, "B.java") == "B"
    assert main_class({"p/A.class": main}, "Main.java") == "p.A"
    assert main_class({"A.class": b""}, "A.java") == "A"


def test_a_stale_group_is_swept_and_a_living_one_stays(tmp_path: Path) -> None:
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    living = tmp_path / f"turnstone.{namespace}.{os.getpid()}-{started}"
    stale = tmp_path / f"turnstone.{namespace}.{os.getpid()}-1"
    elsewhere = tmp_path / f"turnstone.1.{os.getpid()}-1"
    for group in (living, stale, elsewhere):
        (group / "run-1").mkdir(parents=True)
    assert sweep(OwnCgroups({"pids": tmp_path}, None)) == 1
    assert (living.exists(), stale.exists(), elsewhere.exists()) == (True, False, True)


def test_accounts_fall_back_and_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "app.infrastructure.runner.bubblewrap.accounts"
    monkeypatch.setattr(f"{module}.own_cgroups", lambda: OwnCgroups({}, None))
    accounts, reasons = open_accounts(None)
    assert accounts.level == "rlimits"
    assert reasons == ["cgroup2: not mounted", "cgroup1: the controller cpuacct is not mounted"]


@pytest.mark.parametrize(("met", "of_the_machine"), [(0, True), (3, False)])
def test_memory_that_the_machine_has_not_is_not_the_program_s_limit(
    tmp_path: Path, *, met: int, of_the_machine: bool
) -> None:
    """The kernel counts a process that it ended for the whole machine's sake in the group, too."""
    groups = {name: tmp_path / name for name in ("cpuacct", "memory", "pids")}
    for group in groups.values():
        group.mkdir()
    first = _Run1(groups, "run-1", 64, 4)
    (groups["memory"] / "run-1" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    (groups["memory"] / "run-1" / "memory.max_usage_in_bytes").write_text(f"{(63 if met else 20) << 20}\n")
    second = _Run2(tmp_path / "run-2", 64, 4)
    (tmp_path / "run-2" / "memory.events").write_text(f"low 0\nhigh 0\nmax {met}\noom {met}\noom_kill 1\n")
    for run in (first, second):
        assert (run.taken_by_the_machine(), run.out_of_memory(65_536)) == (of_the_machine, not of_the_machine)


def test_memory_that_went_to_swap_is_the_program_s(tmp_path: Path) -> None:
    groups = {name: tmp_path / name for name in ("cpuacct", "memory", "pids")}
    for group in groups.values():
        group.mkdir()
    run, memory = _Run1(groups, "run-1", 64, 4), groups["memory"] / "run-1"
    (memory / "memory.oom_control").write_text("oom_kill 1\n")
    (memory / "memory.max_usage_in_bytes").write_text(f"{40 << 20}\n")
    assert run.taken_by_the_machine()
    (memory / "memory.memsw.max_usage_in_bytes").write_text(f"{64 << 20}\n")
    assert (run.taken_by_the_machine(), run.out_of_memory(65_536)) == (False, True)


def test_a_group_that_cannot_be_limited_is_not_left() -> None:
    accounts, _ = open_accounts(None)
    if accounts.level == "rlimits":
        pytest.skip("this machine makes no groups")
    try:
        with pytest.raises(OSError, match="pids"):
            accounts.open("unlimited", memory_mb=64, processes=-4)
        assert [group for ours in groups_of(os.getpid()) for group in ours.glob("unlimited")] == []
    finally:
        accounts.close()


def test_a_cgroup_of_others_is_not_taken_over(tmp_path: Path) -> None:
    """A directory plays the kernel's part as far as deciding goes."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids")
    (tmp_path / "cgroup.procs").write_text("")
    (tmp_path / "cgroup.subtree_control").mkdir()  # cannot be written to
    with pytest.raises(OSError, match="directory"):
        Version2(OwnCgroups({}, tmp_path))
    (tmp_path / "cgroup.controllers").write_text("cpu")
    with pytest.raises(OSError, match="the controller memory is not to be had"):
        Version2(OwnCgroups({}, tmp_path))


def filtered(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the filter says of a call: the kernel's machine for such programs, in Python."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    at = value = 0
    while True:
        kind, if_true, if_false, operand = code[at]
        at += 1
        if kind == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
        elif kind == 0x06:
            return operand
        else:
            met = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[kind]
            at += if_true if met else if_false


ALLOW, KILL = 0x7FFF0000, 0x80000000
X86, ARM, I386 = 0xC000003E, 0xC00000B7, 0x40000003


def error(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize(
    ("arch", "call", "arguments", "answer"),
    [
        (X86, 0, (), ALLOW), (X86, 1, (), ALLOW), (X86, 59, (), ALLOW), (X86, 57, (), ALLOW),
        (I386, 20, (), KILL), (X86, 0x40000000 | 39, (), KILL), (ARM, 0, (), KILL),
        (X86, 101, (), error(errno.EPERM)), (X86, 272, (), error(errno.EPERM)), (X86, 425, (), error(errno.ENOSYS)),
        (X86, 435, (), error(errno.ENOSYS)), (X86, 162, (), error(0)),
        (X86, 56, (0x01200011,), ALLOW), (X86, 56, (0x10000011,), error(errno.EPERM)),
        (X86, 56, (0x003D0F00,), ALLOW),
        (X86, 41, (1, 1), ALLOW), (X86, 41, (2, 1), error(errno.EAFNOSUPPORT)),
        (X86, 41, (40, 1), error(errno.EAFNOSUPPORT)),
        (X86, 53, (1, 1), ALLOW), (X86, 53, (30, 1), error(errno.EAFNOSUPPORT)),
        (X86, 203, (), error(errno.EPERM)), (X86, 204, (), ALLOW),
        (X86, 16, (0, 0x5412), error(errno.EPERM)), (X86, 16, (0, 0x5413), ALLOW),
        (X86, 135, (0xFFFFFFFF,), ALLOW), (X86, 135, (0,), ALLOW), (X86, 135, (0x0040000,), error(errno.EPERM)),
    ],
)  # fmt: skip
def test_the_filter_lets_through_what_it_should(arch: int, call: int, arguments: tuple[int, ...], answer: int) -> None:
    assert filtered(seccomp_program("x86_64"), arch, call, *arguments) == answer


def test_the_filter_knows_other_machines_or_says_so() -> None:
    program = seccomp_program("aarch64")
    assert filtered(program, ARM, 117) == error(errno.EPERM)
    assert filtered(program, ARM, 63) == ALLOW
    assert filtered(program, ARM, 122) == error(errno.EPERM)
    assert filtered(program, ARM, 199, 30) == error(errno.EAFNOSUPPORT)
    assert filtered(program, X86, 0) == KILL
    assert len(program) // 8 < 4096, "the kernel takes no longer ones"
    with pytest.raises(ValueError, match="no system calls are known for riscv"):
        seccomp_program("riscv64")


async def test_waiting_for_a_busy_machine_is_not_the_program_s_time() -> None:
    """Two that want one core, and one of them with much less of a right to it."""
    core = min(os.sched_getaffinity(0))
    spin = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nos.nice(int(sys.argv[2]))\nwhile True: pass"
    hog = await asyncio.create_subprocess_exec(sys.executable, "-c", spin, str(core), "0")
    poor = await asyncio.create_subprocess_exec(sys.executable, "-c", spin, str(core), "10")
    try:
        await asyncio.sleep(0.5)
        share = 0.0
        for _ in range(10):  # where the whole machine stands still, nobody waits for a CPU
            began = time.monotonic()
            waiting = Waiting(poor.pid)
            waiting.look()
            before = waiting.total_s
            for _ in range(20):
                await asyncio.sleep(0.04)
                waiting.look()
            passed = time.monotonic() - began
            share = (waiting.total_s - before) / passed
            assert waiting.total_s - before <= passed + 0.1
            if share > 0.2:
                break
        assert share > 0.2
    finally:
        for process in (hog, poor):
            process.kill()
            await process.wait()
    waiting.look()  # of what is gone nothing is added, and nothing breaks
    assert waiting.total_s - before <= passed + 0.5


def test_settings_for_isolation_are_checked() -> None:
    with pytest.raises(ValueError, match="isolation"):
        RunnerSettings(isolation="none")  # type: ignore[arg-type]
    assert RunnerSettings().concurrency is None


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
async def test_sandboxes_keep_off_the_first_cpu_and_the_service_does_not(runner: BubblewrapRunner) -> None:
    whole = os.sched_getaffinity(0)
    source = """import os
try:
    os.sched_setaffinity(0, {int(input())})
except PermissionError:
    print(sorted(os.sched_getaffinity(0)))
"""
    async with runner.prepared(SourceProgram("python", source)) as program:
        assert isinstance(program, PreparedProgram)
        [execution] = [one async for one in runner.run(program, [b"%d" % min(whole)], Limits())]
    assert execution.stdout.decode() == f"{sorted(whole)[1:]}\n"
    assert runner.warden_pid is not None
    assert os.sched_getaffinity(runner.warden_pid) == set(sorted(whole)[1:])
    assert os.sched_getaffinity(0) == whole


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one CPU")
@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.slow
async def test_a_worker_leaves_the_first_cpu_to_a_service_or_uses_all(settings: Settings, *, alone: bool) -> None:
    env = environment(settings, TURNSTONE_WORKER__ALONE=str(alone))
    with running(Command("worker", env=env)) as worker:
        await asyncio.to_thread(worker.wait_for_line, "working")
        every = sorted(os.sched_getaffinity(0))
        assert sorted(os.sched_getaffinity(worker.process.pid)) == (every if alone else every[1:])
