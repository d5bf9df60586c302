"""One run in one sandbox: start it, watch it, end it, and say what it used.

The program is the first process of the sandbox (``--as-pid-1``): nothing of ours is in there with it, so there is
nothing it could read, write to or speak for. It is started by bubblewrap alone, and what is known of it comes from the
kernel.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import struct
import termios
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field

from app.infrastructure.runner.bubblewrap.accounts import Account
from app.infrastructure.runner.bubblewrap.launch import Box, end_session, launch, limit_process
from app.infrastructure.runner.bubblewrap.streams import Stream
from app.infrastructure.runner.bubblewrap.waiting import Waiting

_SETUP_S = 20.0
"""Longest time for bubblewrap to make a sandbox; it takes 5 ms."""

_LAST_WORDS_S = 1.0
"""For bubblewrap to say why it makes none, and to end by itself."""

_LOOK_AT_LEAST_S, _LOOK_AT_MOST_S = 0.005, 0.04
"""Between two looks at what a run used; short where its limit is near."""

_LONG_S = 0.15
"""Most programs have ended by then. One that has not may be a bomb that leaves its watcher no time on its own CPU."""

_PATIENCE = 5
"""A program that waits for a busy machine gets that time on top, until it has taken so many times its limit more."""

_F_SETPIPE_SZ, _PAGE = 1031, 4096


@dataclass(slots=True)
class Outcome:
    """What became of a run. ``reason`` is the limit that ended it, ``None`` where it ended by itself.

    ``late_ms`` is the time from when it was last seen within its limits to when all of it was gone.
    """

    started: bool = False
    status: int = 0
    reason: str | None = None
    cpu_ns: int = 0
    wall_ns: int = 0
    memory_kb: int = 0
    late_ms: float = 0.0
    left: int = 0
    out: Stream = field(default_factory=lambda: Stream(0))
    err: Stream = field(default_factory=lambda: Stream(0))


async def run_box(box: Box, account: Account, closely: Callable[[], AbstractContextManager[None]]) -> Outcome:
    """Run it to its end. Cancelling kills it first.

    ``closely`` is entered while a run that takes longer is watched. Nothing is left of it when this returns: its
    processes are gone and its files were in its own memory.
    """
    running = _Running(box, account, closely)
    try:
        await running.run()
    finally:
        running.close()
    return running.outcome


class _Running:
    def __init__(self, box: Box, account: Account, closely: Callable[[], AbstractContextManager[None]]) -> None:
        self._box, self._account, self._closely = box, account, closely
        self._stack = ExitStack()
        self._pid = 0
        self._first, self._child = 0, -1  # the sandbox's first process: its number here, a descriptor of it
        self._within = 0.0  # when it was last seen within its limits
        self._open: set[int] = set()
        self._loop = asyncio.get_running_loop()
        most = box.limits.output_bytes
        self.outcome = Outcome(
            out=Stream(most, on_full=lambda: self._end("output")),
            err=Stream(most, tail=True, on_full=lambda: self._end("stderr")),
        )

    async def run(self) -> None:
        out, out_in = self._pipe()
        err, err_in = self._pipe()
        status, status_in = self._pipe()
        # The gate: bubblewrap reads it as the last file it makes. It is full, so that its first read is seen from here,
        # and open, so that bubblewrap waits there until it is closed.
        gate_out, gate = self._pipe()
        fcntl.fcntl(gate, _F_SETPIPE_SZ, _PAGE)
        os.write(gate, bytes(_PAGE))
        self._pid = launch(self._box, self._account, out_in, err_in, status_in, gate_out)
        for descriptor in (out_in, err_in, status_in, gate_out):
            self._close(descriptor)
        ended = self._loop.create_future()
        process = os.pidfd_open(self._pid)
        self._open.add(process)
        self._loop.add_reader(process, _settle, ended)
        for descriptor, stream in ((out, self.outcome.out), (err, self.outcome.err)):
            os.set_blocking(descriptor, False)
            self._loop.add_reader(descriptor, self._on_data, descriptor, stream)
        try:
            if await self._ready(gate, status, ended):
                begun = self._start(gate)
                await self._watch(ended, begun)
                self.outcome.wall_ns = time.monotonic_ns() - begun
            else:
                await asyncio.wait({ended}, timeout=_LAST_WORDS_S)
        finally:
            await self._finish(ended, {out: self.outcome.out, err: self.outcome.err})

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        self._open.update(ends)
        if self._box.uid is not None:  # so that /dev/stdout can be opened by the one it is for
            os.fchown(ends[1], self._box.uid, self._box.uid)
        return ends

    def _close(self, descriptor: int) -> None:
        if descriptor in self._open:
            self._open.remove(descriptor)
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _ready(self, gate: int, status: int, ended: asyncio.Future[None]) -> bool:
        """Wait until bubblewrap stands at the gate; False where it ended before."""
        at_gate = self._loop.create_future()
        self._loop.add_writer(gate, _settle, at_gate)
        try:
            await asyncio.wait({at_gate, ended}, timeout=_SETUP_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._loop.remove_writer(gate)
        if not at_gate.done() or _unread(gate) or not (said := os.read(status, _PAGE)):
            return False  # with nobody to read it, the gate can be written to as well
        child = json.loads(said.split(b"\n")[0])["child-pid"]
        try:
            self._child = os.pidfd_open(child)
        except ProcessLookupError:
            return False
        self._open.add(self._child)
        self._first = child
        limit_process(self._box, child)
        self._account.start(self._pid, child)
        return True

    def _start(self, gate: int) -> int:
        self.outcome.started = True
        begun = time.monotonic_ns()
        self._close(gate)
        return begun

    async def _watch(self, ended: asyncio.Future[None], begun: int) -> None:
        limits, cores = self._box.limits, os.cpu_count() or 1
        waiting = Waiting(self._first)
        is_long = False
        while not ended.done():
            now = time.monotonic()
            passed = now - begun / 1e9
            if passed > _LONG_S and not is_long:
                self._stack.enter_context(self._closely())
                is_long = True
            waiting.look()
            left_wall = limits.wall_s + min(waiting.total_s, _PATIENCE * limits.wall_s) - passed
            left_cpu = limits.cpu_s - self._account.cpu_ns() / 1e9
            if left_cpu <= 0:
                self._end("cpu")
            elif left_wall <= 0:
                self._end("wall" if passed < _PATIENCE * limits.wall_s else "busy")
            elif self._account.out_of_memory(limits.memory_mb << 10):
                self._end("memory")
            elif self._account.too_many_files():
                self._end("files")
            else:
                self._within = now
            self._account.memory_kb()
            pause = min(max(min(left_cpu / cores, left_wall), _LOOK_AT_LEAST_S), _LOOK_AT_MOST_S)
            await asyncio.wait({ended}, timeout=pause)

    def _on_data(self, descriptor: int, stream: Stream) -> None:
        if stream.read(descriptor) is False:
            self._loop.remove_reader(descriptor)

    def _end(self, reason: str) -> None:
        """Kill the sandbox's first process: with it the kernel ends all that are in there."""
        if self.outcome.reason is None:
            self.outcome.reason = reason
            self._account.hurry()
        self._kill()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            if self._child >= 0:
                signal.pidfd_send_signal(self._child, signal.SIGKILL)
            elif self._pid:
                os.kill(self._pid, signal.SIGKILL)

    def _end_half_made(self) -> None:
        """Leave nothing of a sandbox that was not started, while the gate is still shut.

        With bubblewrap gone, but not waited for, nobody comes to its session any more, and its number is nobody else's.
        """
        if not self.outcome.started:
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
            end_session(self._pid)

    async def _finish(self, ended: asyncio.Future[None], streams: dict[int, Stream]) -> None:
        self._kill()
        if not ended.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(ended)
        self._end_half_made()
        _, self.outcome.status, used = os.wait4(self._pid, 0)  # noqa: ASYNC222  # it has ended
        self._pid = 0
        if self.outcome.reason is not None and self._within:
            self.outcome.late_ms = (time.monotonic() - self._within) * 1000
        for descriptor, stream in streams.items():
            while descriptor in self._open and stream.read(descriptor):
                if self.outcome.reason in {"output", "stderr"}:
                    break
            self._close(descriptor)
        self._account.reaped(int((used.ru_utime + used.ru_stime) * 1e9), used.ru_maxrss)
        if self.outcome.started:
            self.outcome.cpu_ns = self._account.cpu_ns()
            self.outcome.memory_kb = self._account.memory_kb()
            self._judge_at_the_end()

    def _judge_at_the_end(self) -> None:
        """A limit that was met just before the end, between two looks, was met."""
        limits, outcome = self._box.limits, self.outcome
        if outcome.reason is None:
            if self._account.out_of_memory(limits.memory_mb << 10):
                outcome.reason = "memory"
            elif self._account.taken_by_the_machine():
                outcome.reason = "busy"
            elif outcome.cpu_ns > limits.cpu_s * 1e9:
                outcome.reason = "cpu"

    def close(self) -> None:
        """Close what is open."""
        self._stack.close()
        if self._pid:
            self._kill()
            with suppress(ChildProcessError):
                self._end_half_made()
                os.waitpid(self._pid, 0)
        for descriptor in tuple(self._open):
            self._close(descriptor)


def _unread(pipe: int) -> int:
    """How many bytes are in a pipe."""
    count: int = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]
    return count


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
