"""What a sandbox costs: a small Python program in it, and the same program without, in turns."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from typing import NamedTuple

from app.domain.code_runner import CodeRunner, Limits, PreparedProgram, SourceProgram

_SOURCE = "a, b = map(int, input().split())\nprint(a + b)\n"
_TURNS, _BATCH = 40, 60


class Overhead(NamedTuple):
    """Medians in milliseconds, and cases in a second of one batch, with as many at once as there are slots."""

    sandbox_ms: float
    plain_ms: float
    cases_per_s: float
    load: float


async def measure(runner: CodeRunner) -> Overhead:
    """Measure it. On a busy machine both medians are of the waiting."""
    async with runner.prepared(SourceProgram("python", _SOURCE)) as program:
        assert isinstance(program, PreparedProgram)
        sandbox, plain = [], []
        for _ in range(_TURNS):
            began = time.perf_counter()
            [_] = [run async for run in runner.run(program, [b"1 2"], Limits())]
            sandbox.append((time.perf_counter() - began) * 1000)
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-B", "-c", _SOURCE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
            )
            await process.communicate(b"1 2")
            plain.append((time.perf_counter() - began) * 1000)
        began = time.perf_counter()
        count = len([run async for run in runner.run(program, [b"1 2"] * _BATCH, Limits())])
        rate = count / (time.perf_counter() - began)
    return Overhead(statistics.median(sandbox), statistics.median(plain), rate, os.getloadavg()[0])
