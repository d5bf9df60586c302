"""One process in which parsers run: started with nothing of ours in its environment, heard out, ended as a group."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.core.cpus import beside_chats
from app.infrastructure.analysis.errors import AnalyserUnavailableError
from app.infrastructure.analysis.limits import CPU_S, MEMORY_MB

_MOST_SAID: Final = 64 * 1024 * 1024
_READ_AT_ONCE: Final = 1 << 18
_KEPT_OF_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH")
_LATER: Final = "It is tried again later; `turnstone doctor` shows whether the analyser works."
_ENDED_BY_ITSELF: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)


@dataclass(frozen=True, slots=True)
class Broken:
    """The process came to grief in a ``stage``, and would again; ``reason`` in our words."""

    stage: str
    reason: str


async def run_child(
    request: Mapping[str, Any], stages: Sequence[str], timeout: float
) -> tuple[dict[str, Any], Broken | None]:
    """Let a process do these stages.

    Returns:
        The values of those that were done, and where and why it broke, if it did.

    Raises:
        AnalyserUnavailableError: it cannot be started, was ended from outside, or had too little of the processor.
    """
    process = await _started()
    said = bytearray()
    try:
        async with asyncio.timeout(timeout):
            await asyncio.gather(
                _ask(process, json.dumps({**request, "stages": list(stages)}).encode()), _listen(process, said)
            )
            await process.wait()
    except TimeoutError:
        problem = "The analyser did not end in time, with processor time left: the machine is too busy."
        raise AnalyserUnavailableError(problem, _LATER) from None
    finally:
        await _end(process)
    return _heard(bytes(said), process.returncode)


async def _started() -> asyncio.subprocess.Process:
    environment = {name: os.environ[name] for name in _KEPT_OF_ENVIRONMENT if name in os.environ}
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-X", "utf8", "-m", "app.infrastructure.analysis", *map(str, beside_chats())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # it may quote the code
            cwd="/",
            env={**environment, "LANG": "C.UTF-8", "RAYON_NUM_THREADS": "1"},
            start_new_session=True,
        )
    except OSError as error:
        raise AnalyserUnavailableError(f"The analyser cannot be started: {error.strerror}.", _LATER) from None


async def _ask(process: asyncio.subprocess.Process, request: bytes) -> None:
    assert process.stdin is not None
    if process.stdin.is_closing():
        return  # it ended before it was asked, where uvloop takes nothing more; how it ended says why
    with contextlib.suppress(ConnectionError):
        process.stdin.write(request)
        await process.stdin.drain()
    process.stdin.close()


async def _listen(process: asyncio.subprocess.Process, said: bytearray) -> None:
    assert process.stdout is not None
    while part := await process.stdout.read(_READ_AT_ONCE):
        said += part
        if len(said) > _MOST_SAID:
            return  # what was said so far ends in the middle of a stage


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the process and what it started, whatever became of us."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await asyncio.shield(process.wait())


def _heard(said: bytes, returncode: int | None) -> tuple[dict[str, Any], Broken | None]:
    values: dict[str, Any] = {}
    stage, crashed, ended = "", "", False
    for line in said.split(b"\n")[:-1]:
        told = json.loads(line)
        if "begun" in told:
            stage = told["begun"]
        elif "done" in told:
            values[told["done"]] = told["value"]
        crashed = told.get("crashed", crashed)
        ended = ended or "end" in told
    if ended:
        return values, None
    if not stage:
        raise AnalyserUnavailableError("The analyser's process does not start.", _LATER)
    if crashed == "ModuleNotFoundError":
        raise AnalyserUnavailableError("A package of the analyser cannot be loaded.", _LATER)
    return values, Broken(stage, _reason(crashed, returncode))


def _reason(crashed: str, returncode: int | None) -> str:
    """Why it would break again.

    Raises:
        AnalyserUnavailableError: it would not: somebody else ended it.
    """
    ended_by = -returncode if returncode is not None and returncode < 0 else 0
    if ended_by == signal.SIGXCPU:
        return f"it needs more than {CPU_S} s of the processor"
    if crashed == "MemoryError":
        return f"it needs more than {MEMORY_MB} MB of memory"
    if crashed == "RecursionError":
        return "it nests too deeply"
    if crashed:
        return f"a parser raised {crashed}"
    if ended_by in _ENDED_BY_ITSELF:
        return f"a parser crashed ({signal.Signals(ended_by).name})"
    if returncode == 0 or not ended_by:
        return "it ended without a word, or said too much"
    raise AnalyserUnavailableError(f"The analyser was ended from outside ({signal.Signals(ended_by).name}).", _LATER)
