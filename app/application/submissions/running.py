"""Runs of one prepared program, taken together."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.code_runner import CodeRunner, Execution, Limits, PreparedProgram, ProgramInput, RunnerUnavailableError


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
