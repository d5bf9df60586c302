"""The warden: a small process beside the service that starts sandboxes and watches them.

It is apart from the service for three reasons: a fork of a small process takes a millisecond and holds up nobody's
chat; it has neither the service's memory nor its environment, so there is nothing in it to find; and when the service
is gone, however it went, the warden's standard input ends, and it ends all that runs and removes what it made.

It speaks frames on standard input and output (:mod:`.frames`) and knows nothing of languages. ``open`` comes first::

    open  {bwrap, hidden, level, delegated, cpus, any_cpu}   → {level, reasons, root}
    put   {handle, files: [[path, mode]]} + contents         keeps files in memory until
    drop  {handle}
    run   {id, options, argv, handle, files, limits} + stdin and contents → {id, …} + standard output, error's tail
    end   {id}                                               a run nobody waits for any more
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from app.core.cpus import keep_to
from app.infrastructure.runner.bubblewrap.accounts import Accounts, open_accounts
from app.infrastructure.runner.bubblewrap.box import Outcome, run_box
from app.infrastructure.runner.bubblewrap.frames import Frame, read_frame, write_frame
from app.infrastructure.runner.bubblewrap.launch import Box, BoxLimits, close_all_but, end_orphans
from app.infrastructure.runner.bubblewrap.seccomp import seccomp_program
from app.infrastructure.runner.bubblewrap.staging import stage
from app.infrastructure.runner.bubblewrap.users import a_user

_F_ADD_SEALS, _ALL_SEALS = 1033, 0xF
_DESCRIPTORS = 65_536


class _Memory:
    """Bytes that can be read and never changed, as a file without a name."""

    def __init__(self, content: bytes) -> None:
        import fcntl

        self._descriptor = os.memfd_create("turnstone", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(self._descriptor, view) :]
            fcntl.fcntl(self._descriptor, _F_ADD_SEALS, _ALL_SEALS)
        except OSError:
            self.close()
            raise

    def open(self) -> int:
        """A new descriptor that stands at the beginning."""
        return os.open(f"/proc/self/fd/{self._descriptor}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Forget them."""
        os.close(self._descriptor)


class Cpus(NamedTuple):
    """Where the warden and its sandboxes are, and where the warden is while a longer run has to be watched."""

    usual: tuple[int, ...]
    any: tuple[int, ...]


Say = Callable[[dict[str, Any], list[bytes]], None]


class Warden:
    """Runs what it is told to; as root, each run as a user of its own."""

    def __init__(
        self, say: Say, accounts: Accounts, bwrap: str, places: dict[str, str], *, root: bool, cpus: Cpus
    ) -> None:
        self._say = say
        self._accounts, self._bwrap, self._places = accounts, bwrap, places
        self._root = root
        self._cpus = cpus
        self._watched = 0
        self._filter = _Memory(seccomp_program())
        self._kept: dict[str, list[tuple[str, int, _Memory]]] = {}
        self._not_kept: dict[str, OSError] = {}
        self._runs: dict[int, asyncio.Task[None]] = {}
        self._count = 0

    async def serve(self, source: asyncio.StreamReader) -> None:
        """Do what is said until there is nobody any more, then end all that runs."""
        try:
            while True:
                self._do(await read_frame(source))
        except asyncio.IncompleteReadError:
            return
        finally:
            for run in self._runs.values():
                run.cancel()
            await asyncio.gather(*self._runs.values(), return_exceptions=True)

    def _do(self, frame: Frame) -> None:
        header, parts = frame
        match header["do"]:
            case "put":
                self._put(header["handle"], header["files"], parts)
            case "drop":
                self._drop(header["handle"])
            case "run":
                task = asyncio.create_task(self._run(header, parts))
                self._runs[header["id"]] = task
                task.add_done_callback(lambda _: self._runs.pop(header["id"], None))
            case "end":
                if (run := self._runs.get(header["id"])) is not None:
                    run.cancel()

    def _put(self, handle: str, files: list[tuple[str, int]], parts: list[bytes]) -> None:
        """Keep them; where that fails, so do this program's runs, and no others."""
        kept = self._kept[handle] = []
        try:
            for (path, mode), part in zip(files, parts, strict=True):
                kept.append((path, mode, _Memory(part)))
        except OSError as error:
            self._drop(handle)
            self._not_kept[handle] = error

    def _drop(self, handle: str) -> None:
        self._not_kept.pop(handle, None)
        for _, _, memory in self._kept.pop(handle, ()):
            memory.close()

    async def _run(self, header: dict[str, Any], parts: list[bytes]) -> None:
        limits = BoxLimits(**header["limits"])
        self._count += 1
        opened: list[int] = []
        own: list[_Memory] = []
        users = ExitStack()
        try:
            if header["handle"] in self._not_kept:
                raise self._not_kept[header["handle"]]
            uid = users.enter_context(a_user()) if self._root else None
            account = self._accounts.open(
                f"run-{self._count}", memory_mb=limits.memory_mb, processes=limits.processes + 1
            )
            try:
                box = self._box(header, parts, limits, uid, opened, own)
                outcome = await run_box(box, account, self._closely)
            finally:
                left = account.close()
            outcome.left = left
            self._say(_report(header["id"], outcome), [outcome.out.kept, outcome.err.kept])
        except OSError as error:
            self._say({"id": header["id"], "failed": str(error)}, [])
        finally:
            for descriptor in opened:
                os.close(descriptor)
            for memory in own:
                memory.close()
            users.close()

    @contextmanager
    def _closely(self) -> Iterator[None]:
        """Not on the sandboxes' CPUs alone, as long as one is watched that takes longer."""
        self._watched += 1
        keep_to(self._cpus.any)
        try:
            yield
        finally:
            self._watched -= 1
            if not self._watched:
                keep_to(self._cpus.usual)

    def _box(
        self,
        header: dict[str, Any],
        parts: list[bytes],
        limits: BoxLimits,
        uid: int | None,
        opened: list[int],
        own: list[_Memory],
    ) -> Box:
        def descriptor(memory: _Memory) -> int:
            opened.append(memory.open())
            return opened[-1]

        def new(content: bytes) -> _Memory:
            own.append(_Memory(content))
            return own[-1]

        files = [(path, descriptor(memory), mode) for path, mode, memory in self._kept.get(header["handle"], ())]
        stdin, *contents = parts
        files += [(path, descriptor(new(part)), 0o644) for path, part in zip(header["files"], contents, strict=True)]
        return Box(
            bwrap=self._bwrap,
            options=[self._places.get(option, option) for option in header["options"]],
            argv=header["argv"],
            files=files,
            stdin=descriptor(new(stdin)),
            seccomp=descriptor(self._filter),
            uid=uid,
            limits=limits,
            by_process=self._accounts.level == "rlimits",
            cpus=self._cpus.usual,
        )


def _report(number: int, outcome: Outcome) -> dict[str, Any]:
    return {
        "id": number,
        "started": outcome.started,
        "code": os.waitstatus_to_exitcode(outcome.status),
        "reason": outcome.reason,
        "cpu_ns": outcome.cpu_ns,
        "wall_ns": outcome.wall_ns,
        "memory_kb": outcome.memory_kb,
        "late_ms": outcome.late_ms,
        "left": outcome.left,
        "stdout_bytes": outcome.out.count,
        "stderr_bytes": outcome.err.count,
    }


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    # Written without waiting: a service that is slow to read holds up no limit.
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)

    def say(header: dict[str, Any], parts: list[bytes]) -> None:
        transport.write(write_frame(header, parts))

    opening = (await read_frame(reader)).header
    cpus = Cpus(tuple(opening["cpus"]), tuple(opening["any_cpu"]))
    keep_to(cpus.usual)
    root = os.geteuid() == 0
    places: dict[str, str] = {}
    reasons: list[str] = []
    if root:
        try:
            places = stage(map(Path, opening["hidden"]))
        except OSError as error:
            reasons.append(f"toolchains that only root can reach stay out of reach: {error.strerror}")
    delegated = Path(opening["delegated"]) if opening["delegated"] else None
    bwrap = Path(opening["bwrap"])
    end_orphans(bwrap)
    accounts, missing = open_accounts(delegated, opening["level"])
    home = next((place for place in bwrap.parents if str(place) in places), None)
    if home is not None:
        bwrap = Path(places[str(home)]) / bwrap.relative_to(home)
    try:
        warden = Warden(say, accounts, str(bwrap), places, root=root, cpus=cpus)
        say({"level": accounts.level, "reasons": [*missing, *reasons], "root": root}, [])
        await warden.serve(reader)
    finally:
        accounts.close()


def _have_descriptors() -> None:
    """As many as may be had: programs and runs take some each. A sandbox has a limit of its own."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(_DESCRIPTORS, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), most))


def main() -> None:
    """Serve until standard input ends."""
    close_all_but(())  # uvloop lets a process inherit both ends of what it speaks through
    _have_descriptors()
    # A terminal's Ctrl+C goes to the service, which ends what it started.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with suppress(asyncio.IncompleteReadError):
        asyncio.run(_main())


if __name__ == "__main__":
    main()
