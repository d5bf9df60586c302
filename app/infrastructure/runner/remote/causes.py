"""How a run ended, in the words that every backend uses."""

from __future__ import annotations

import signal

from app.domain.code_runner import Limits, RunnerUnavailableError

MESSAGE_BYTES = 4096
"""Of a compiler's message."""

TAIL_BYTES = 64 * 1024
"""Of standard error."""


def cpu(limits: Limits) -> str:
    """CPU time was used up."""
    return f"CPU time was used up (limit {limits.cpu_s:g} s)"


def wall(limits: Limits) -> str:
    """It took too long."""
    return f"it took too long (limit {limits.wall_s:g} s, waiting included)"


def memory(limits: Limits) -> str:
    """Memory was used up."""
    return f"memory was used up (limit {limits.memory_mb} MiB)"


def output(limits: Limits, stream: str = "output") -> str:
    """It wrote too much; ``stream`` is ``output`` or ``error``."""
    return f"it wrote more than {limits.output_bytes} bytes to standard {stream}"


def ended(code: int | None, sent: int | None) -> str:
    """It ended by itself, or by a signal."""
    return f"ended by {signal_name(sent)}" if sent is not None else f"exit code {code}"


def signal_name(number: int) -> str:
    """``SIGSEGV`` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def too_busy(name: str) -> RunnerUnavailableError:
    """Compiling took too long, and not by what it did itself: compilers wait for nothing."""
    return RunnerUnavailableError(
        f"{name} is too busy to compile.", "Lower TURNSTONE_RUNNER__CONCURRENCY, or give it more workers."
    )


def message(said: bytes) -> str:
    """A compiler's message, cut to size."""
    return said[:MESSAGE_BYTES].decode("utf-8", "replace").replace("\x00", "\N{REPLACEMENT CHARACTER}")
