"""What go-judge says of a command, as the port says it."""

from __future__ import annotations

import signal
from typing import Annotated

from pydantic import BaseModel, Field

from app.domain.code_runner import CompileFailed, CompileLimits, Ended, Execution, Limits, RunnerUnavailableError
from app.infrastructure.runner.go_judge.commands import Commands
from app.infrastructure.runner.remote import causes

LOST = "\N{REPLACEMENT CHARACTER}"
"""JSON carries text; go-judge puts this for each byte that is none."""

_NEAR = 0.98
_MARK_TAIL = 512
"""Java says on standard output that its memory is used up; what it says comes last."""

_Count = Annotated[int, Field(ge=0)]


class FileError(BaseModel):
    """A file that could not be brought in or out."""

    name: str = ""
    type: str | int = ""


class Result(BaseModel):
    """One command's: times in ns, memory in bytes, files as text by their name."""

    status: str
    exitStatus: int = 0  # noqa: N815  # its name there
    error: str = ""
    time: _Count
    memory: _Count
    runTime: _Count = 0  # noqa: N815
    files: dict[str, str] | None = None
    fileIds: dict[str, str] | None = None  # noqa: N815
    fileError: list[FileError] | None = None  # noqa: N815


def read_run(result: Result, commands: Commands, limits: Limits, exact: bytes | None = None) -> Execution:
    """A run of a program; ``exact`` is its standard output where text could not carry it.

    Raises:
        RunnerUnavailableError: go-judge says something that this version of ours does not know.
    """
    texts = result.files or {}
    stdout, stderr = _bytes(texts.get("stdout", "")) if exact is None else exact, _bytes(texts.get("stderr", ""))
    code, sent = _code(result)
    how, cause = _ended(result, limits, commands.more_mb, code, sent)
    marks = commands.memory_marks
    if how is Ended.RE and any(mark in stderr or mark in stdout[-_MARK_TAIL:] for mark in marks):
        how, cause = Ended.MLE, causes.memory(limits)
    # go-judge reads on beyond the limit, so a flood may end by another one; the first that was met is told.
    for stream, text in (("output", texts.get("stdout", "")), ("error", texts.get("stderr", ""))):
        if how is not Ended.SE and _least(text) > limits.output_bytes:
            how, cause = Ended.OLE, causes.output(limits, stream)
    by_limit = how in {Ended.TLE, Ended.MLE, Ended.OLE}
    return Execution(
        how=how,
        exit_code=None if by_limit else code,
        signal=(sent or int(signal.SIGKILL)) if by_limit else sent,
        cpu_ms=result.time / 1e6,
        wall_ms=result.runTime / 1e6,
        memory_kb=result.memory // 1024,
        stdout=stdout[: limits.output_bytes],
        stdout_bytes=len(stdout),
        stderr=stderr[-causes.TAIL_BYTES :],
        stderr_bytes=len(stderr),
        cause=cause,
    )


def read_compiler(result: Result, makes: str | None, limits: CompileLimits) -> CompileFailed | None:
    """A run of a compiler; ``None`` where it was content.

    Raises:
        RunnerUnavailableError: it could not be run.
    """
    if result.status == "Accepted" and (makes is None or makes in (result.fileIds or {})):
        return None
    errors = {str(error.type) for error in result.fileError or []}
    match result.status:
        case "Nonzero Exit Status":
            cause = f"the compiler refused it (exit code {result.exitStatus})"
        case "Signalled":
            cause = f"the compiler was ended by {causes.signal_name(result.exitStatus)}"
        case "Time Limit Exceeded" if result.time >= limits.cpu_s * 1e9:
            cause = f"compiling used up its CPU time ({limits.cpu_s:g} s)"
        case "Time Limit Exceeded":
            raise causes.too_busy("go-judge")
        case "Memory Limit Exceeded":
            cause = f"compiling used up its memory ({limits.memory_mb} MiB)"
        case "Output Limit Exceeded":
            cause = "the compiler wrote too many messages"
        case "File Error" if "CopyOutSizeExceeded" in errors:
            cause = f"the compiled program is larger than {limits.output_bytes // 1024} KiB"
        case "Accepted":
            raise RunnerUnavailableError("go-judge kept no compiled program.", "See that its version is 1.6 or later.")
        case _:
            raise _broken(result)
    texts = result.files or {}
    return CompileFailed(causes.message(_bytes(texts.get("stderr", "") or texts.get("stdout", ""))), cause)


def _ended(result: Result, limits: Limits, more_mb: int, code: int | None, sent: int | None) -> tuple[Ended, str]:
    used_up = result.time >= limits.cpu_s * 1e9
    all_memory = result.memory >= _NEAR * ((limits.memory_mb + more_mb) << 20)
    ways = {
        "Accepted": (Ended.FINISHED, "exit code 0"),
        "Time Limit Exceeded": (Ended.TLE, causes.cpu(limits) if used_up else causes.wall(limits)),
        "Memory Limit Exceeded": (Ended.MLE, causes.memory(limits)),
        "Output Limit Exceeded": (Ended.OLE, causes.output(limits)),
        "Nonzero Exit Status": (Ended.RE, causes.ended(code, sent)),
        "Signalled": (Ended.RE, causes.ended(code, sent)),
        "Dangerous Syscall": (Ended.RE, "it made a system call that is not allowed"),
        "Internal Error": (Ended.SE, "go-judge could not run it (Internal Error)"),
        "File Error": (Ended.SE, "go-judge could not run it (File Error)"),
    }
    if result.status not in ways:
        raise _broken(result)
    if sent == signal.SIGKILL and all_memory:
        return Ended.MLE, causes.memory(limits)
    return ways[result.status]


def _code(result: Result) -> tuple[int | None, int | None]:
    if result.status == "Accepted":
        return 0, None
    if result.status == "Nonzero Exit Status":
        return result.exitStatus, None
    return None, result.exitStatus if result.status == "Signalled" else None


def _broken(result: Result) -> RunnerUnavailableError:
    known = {"Internal Error", "File Error"}
    what = result.status if result.status in known else "a status that is not known here"
    return RunnerUnavailableError(
        f"go-judge could not run a command: {what}.",
        "Its log says why: it may lack rights to make sandboxes (docker: --privileged), memory, or be too new.",
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _least(text: str) -> int:
    """Bytes that a program wrote at least: what stands for a lost byte has three."""
    return len(_bytes(text)) - 2 * text.count(LOST)
