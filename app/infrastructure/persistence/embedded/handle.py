"""One hold on the embedded server, which starts with the first and stops with the last."""

from __future__ import annotations

import atexit
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from app.core.errors import StartupError
from app.infrastructure.persistence.embedded import ELSEWHERE
from app.infrastructure.persistence.embedded.cluster import Cluster, within
from app.infrastructure.persistence.embedded.file_lock import FileLock

log = structlog.get_logger()

_TURN_TIMEOUT_S = 150.0  # longer than the longest turn of another process: initdb, start, recovery


class EmbeddedPostgres:
    """One hold on the database server of a data directory; made by :meth:`open`.

    Safe for threads. A forked child holds nothing: closing there does nothing.

    Attributes:
        url: ``postgresql://…`` over a unix socket, as superuser ``postgres``, to the database ``postgres``. The same
            for the life of the data directory, also after the server was started anew.
    """

    def __init__(self, cluster: Cluster, hold: FileLock) -> None:
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
                cluster = Cluster.at(base)
                hold = FileLock(base / "users.lock")
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
                f"Let TURNSTONE_DATA_DIR name a directory this user may write to, {ELSEWHERE}",
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


@contextlib.contextmanager
def _turn(base: Path) -> Iterator[None]:
    """Keep other processes (and threads) from starting or stopping the server meanwhile."""
    with FileLock(base / "turn.lock") as lock:
        if not within(_TURN_TIMEOUT_S, lambda: lock.try_lock(shared=False)):
            raise StartupError(
                f"Another process has been starting or stopping the database in {base} for {_TURN_TIMEOUT_S:.0f} s.",
                "Look for a Turnstone process that hangs, end it and start again.",
            )
        yield
