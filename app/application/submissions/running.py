"""Runs that are waited for together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from app.domain.code_runner import (
    CodeRunner,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
    RunnerUnavailableError,
)

TRIES = 3
"""Of a run that the system itself lets fail."""
_BATCH = 16
"""Test cases that are run before their outputs are looked at: as many outputs are held at once."""
_LONGEST_BATCH_S = 120.0
"""Of those that may take long there are fewer, so that it can be seen that they go on."""
_Value = TypeVar("_Value")


def batch_size(limits: Limits) -> int:
    """How many runs with these limits are made before their outputs are looked at and let go."""
    return max(min(_BATCH, int(_LONGEST_BATCH_S / limits.wall_s)), 1)


async def run_all(
    runner: CodeRunner, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
) -> list[Execution]:
    """All runs, in order.

    Raises:
        RunnerUnavailableError: the runner stopped answering, or said less than it was asked.
    """
    executions = [execution async for execution in runner.run(prepared, inputs, limits)]
    if len(executions) != len(inputs):
        raise RunnerUnavailableError(f"The runner answered {len(executions)} of {len(inputs)} runs.")
    return executions


async def run_until_told(
    runner: CodeRunner, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
) -> list[Execution]:
    """All runs, in order; what the system itself lets fail is run again, `TRIES` times in all.

    Raises:
        RunnerUnavailableError: as `run_all`.
    """
    executions = await run_all(runner, prepared, inputs, limits)
    for _ in range(TRIES - 1):
        failed = [place for place, execution in enumerate(executions) if execution.how is Ended.SE]
        if not failed:
            break
        again = await run_all(runner, prepared, [inputs[place] for place in failed], limits)
        for place, execution in zip(failed, again, strict=True):
            executions[place] = execution
    return executions


async def gather_all(jobs: Iterable[Coroutine[Any, Any, _Value]]) -> list[_Value]:
    """The values, in order; where one job fails, the others are ended before its error is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
