"""The service's end of the pipe to its warden: starts it, asks it, and knows when it is gone."""

from __future__ import annotations

import asyncio
import itertools
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from app.domain.code_runner import RunnerUnavailableError
from app.infrastructure.runner.bubblewrap.frames import Frame, read_frame, write_frame

log = structlog.get_logger(__name__)

_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); from app.infrastructure.runner.bubblewrap.warden import main; main()"
)
_ROOT = Path(__file__).parents[4]
_OPENING_S = 20.0
_CLOSING_S = 5.0
_ANSWER_WITHIN_S = 60.0
"""Beyond a run's own time, which a busy machine stretches; the warden waits a third of it for a sandbox to be made."""
_STRETCHED = 6


class WardenLink:
    """One running warden."""

    def __init__(self, process: Process) -> None:
        """`start` makes one."""
        self._process = process
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._closing = self._hangs = False
        self._reading: asyncio.Task[None] | None = None
        self.opened: dict[str, Any] = {}

    @classmethod
    async def start(cls, opening: Mapping[str, Any]) -> WardenLink:
        """Start a warden; ``opened`` is what it answered to ``opening``.

        Raises:
            RunnerUnavailableError: it does not start.
        """
        # No variable of ours: its environment, like its memory, is outside every sandbox but nearer than ours.
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-c", _START, str(_ROOT),
                stdin=PIPE, stdout=PIPE, env={}, cwd="/", start_new_session=True, limit=1 << 20,
            )  # fmt: skip
        except OSError as error:
            raise RunnerUnavailableError(
                f"The process that starts sandboxes cannot be started: {error.strerror}.",
                "The machine may have run out of processes, descriptors or memory.",
            ) from None
        link = cls(process)
        try:
            async with asyncio.timeout(_OPENING_S):
                link._send({"do": "open", **opening}, ())
                assert process.stdout is not None
                link.opened = (await read_frame(process.stdout)).header
        except (asyncio.IncompleteReadError, ConnectionError, RunnerUnavailableError, TimeoutError):
            raise RunnerUnavailableError(
                "The process that starts sandboxes does not come up.", "The log's standard error says why."
            ) from None
        finally:
            if not link.opened:
                await link.close()
        link._reading = asyncio.create_task(link._read())
        return link

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self._reading is not None and not self._reading.done() and not self._hangs and not self._is_deaf

    @property
    def _is_deaf(self) -> bool:
        """It has ended, though what it said last may not have been read yet."""
        assert self._process.stdin is not None
        return self._process.stdin.is_closing()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def put(self, handle: str, files: Sequence[tuple[str, int, bytes]]) -> None:
        """Let it keep files (place, mode, content) under a handle, in memory.

        Raises:
            RunnerUnavailableError: the warden is gone.
        """
        self._send(
            {"do": "put", "handle": handle, "files": [(path, mode) for path, mode, _ in files]},
            [content for _, _, content in files],
        )

    def drop(self, handle: str) -> None:
        """Forget them."""
        if self.alive:
            self._send({"do": "drop", "handle": handle}, ())

    async def run(self, header: Mapping[str, Any], parts: Sequence[bytes]) -> Frame:
        """Run one sandbox to its end. Cancelling ends it.

        Raises:
            RunnerUnavailableError: the warden is gone.
        """
        if not self.alive:
            raise _gone()
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"do": "run", "id": number, **header}, parts)
            async with asyncio.timeout(_ANSWER_WITHIN_S + _STRETCHED * header["limits"]["wall_s"]):
                frame: Frame = await answer
        except TimeoutError:
            self._hangs = True
            log.error("runner_warden_hangs", pid=self.pid)
            with suppress(ProcessLookupError):
                self._process.kill()
            raise _gone() from None
        except asyncio.CancelledError:
            if self.alive:
                self._send({"do": "end", "id": number}, ())
            raise
        else:
            return frame
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        """Let it end what runs, clean up and go."""
        self._closing = True
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_CLOSING_S):
                await self._process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    def _send(self, header: Mapping[str, Any], parts: Sequence[bytes]) -> None:
        assert self._process.stdin is not None
        if self._is_deaf:
            raise _gone()
        self._process.stdin.write(write_frame(dict(header), parts))

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while True:
                frame = await read_frame(self._process.stdout)
                waiting = self._waiting.get(frame.header["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            if not self._closing:
                log.warning("runner_warden_gone")
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(_gone())


def _gone() -> RunnerUnavailableError:
    return RunnerUnavailableError("The process that starts sandboxes is gone.", "It is started again by the next run.")
