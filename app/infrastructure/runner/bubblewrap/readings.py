"""What the warden reports of a sandbox, as the port says it."""

from __future__ import annotations

import signal
from typing import Any

from app.domain.code_runner import CompileFailed, CompileLimits, Ended, Execution, Limits, RunnerUnavailableError
from app.infrastructure.runner.bubblewrap.frames import Frame
from app.infrastructure.runner.bubblewrap.toolchains import Language

_MESSAGE_BYTES = 4096
_MARK_TAIL = 512
"""Java says on standard output that its memory is used up; what it says comes last."""

_HOW = {
    "cpu": Ended.TLE,
    "wall": Ended.TLE,
    "memory": Ended.MLE,
    "files": Ended.MLE,
    "output": Ended.OLE,
    "stderr": Ended.OLE,
    "busy": Ended.SE,
}


def read_run(frame: Frame, language: Language, limits: Limits) -> Execution:
    """A run of a program.

    Raises:
        RunnerUnavailableError: the sandbox could not be made.
    """
    header, (stdout, stderr) = frame.header, started(frame)
    code, sent = _code(header)
    how, cause = _ended(header, limits, code, sent)
    marks = language.memory_marks
    if how is Ended.RE and any(mark in stderr or mark in stdout[-_MARK_TAIL:] for mark in marks):
        how, cause = (
            Ended.MLE,
            f"memory was used up (limit {limits.memory_mb} MiB), as {language.toolchain.language} says",
        )
    return Execution(
        how=how,
        exit_code=code,
        signal=sent,
        cpu_ms=header["cpu_ns"] / 1e6,
        wall_ms=header["wall_ns"] / 1e6,
        memory_kb=header["memory_kb"],
        stdout=stdout,
        stdout_bytes=header["stdout_bytes"],
        stderr=stderr,
        stderr_bytes=header["stderr_bytes"],
        cause=cause,
        late_ms=header["late_ms"],
    )


def read_compiler(frame: Frame, limits: CompileLimits) -> CompileFailed | None:
    """A run of a compiler; ``None`` where it was content.

    Raises:
        RunnerUnavailableError: the sandbox could not be made.
    """
    header, (_, stderr) = frame.header, started(frame)
    code, sent = _code(header)
    if header["reason"] == "busy":
        raise RunnerUnavailableError("The machine is too busy to compile.", "Lower TURNSTONE_RUNNER__CONCURRENCY.")
    if header["reason"] is None and code == 0:
        return None
    causes = {
        "cpu": f"compiling used up its CPU time ({limits.cpu_s:g} s)",
        "wall": f"compiling took too long ({limits.wall_s:g} s)",
        "memory": f"compiling used up its memory ({limits.memory_mb} MiB)",
        "files": "compiling made too many files",
        "output": f"the compiled program is larger than {limits.output_bytes // 1024} KiB",
        "stderr": "the compiler wrote too many messages",
    }
    ended = f"the compiler was ended by {_name(sent)}" if sent else f"the compiler refused it (exit code {code})"
    message = stderr[:_MESSAGE_BYTES].decode("utf-8", "replace").replace("\x00", "�")
    return CompileFailed(message, causes.get(header["reason"] or "", ended))


def was_made(frame: Frame) -> bool:
    """Whether there was a sandbox, or a limit was met before there was one."""
    header = frame.header
    return "failed" not in header and (header["started"] or header["reason"] is not None)


def started(frame: Frame) -> list[bytes]:
    """Standard output and error of a sandbox that was started.

    Raises:
        RunnerUnavailableError: it was not.
    """
    header, parts = frame
    if "failed" in header:
        raise RunnerUnavailableError(f"A sandbox cannot be made: {header['failed']}.", _FREE)
    if not was_made(frame):
        # Nothing of a candidate's has run, so this is bubblewrap's own message.
        said = parts[1].decode("utf-8", "replace").strip().splitlines()
        reason = said[-1] if said else "no reason was given"
        raise RunnerUnavailableError(
            f"A sandbox cannot be made: {reason}.", _WHY if reason.startswith("bwrap:") else _FREE
        )
    return parts


_FREE = "Something of the machine is used up: processes, memory or open files; see the limits of the service."
_WHY = (
    "Sandboxes need user namespaces for unprivileged users: sysctl user.max_user_namespaces above 0, and where they "
    "exist kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; in a container a "
    "seccomp profile that allows unshare and mount, and an unmasked /proc (docker: --security-opt seccomp=unconfined "
    "--security-opt systempaths=unconfined). See docs/runner.md."
)


def _code(header: dict[str, Any]) -> tuple[int | None, int | None]:
    """Exit code and signal. Bubblewrap, like a shell, says 128 and the signal's number."""
    code = header["code"]
    if header["reason"] is not None:
        return None, int(signal.SIGKILL)
    if code < 0:
        return None, -code
    if 128 < code <= 128 + 64:
        return None, code - 128
    return code, None


def _ended(header: dict[str, Any], limits: Limits, code: int | None, sent: int | None) -> tuple[Ended, str]:
    reason = header["reason"]
    if reason is not None:
        causes = {
            "cpu": f"CPU time was used up (limit {limits.cpu_s:g} s)",
            "wall": f"it took too long (limit {limits.wall_s:g} s, waiting included)",
            "busy": "the machine was too busy to run it",
            "memory": f"memory was used up (limit {limits.memory_mb} MiB)",
            "files": "it made too many files",
            "output": f"it wrote more than {limits.output_bytes} bytes to standard output",
            "stderr": f"it wrote more than {limits.output_bytes} bytes to standard error",
        }
        return _HOW[reason], causes[reason]
    if code == 0:
        return Ended.FINISHED, "exit code 0"
    return Ended.RE, f"ended by {_name(sent)}" if sent is not None else f"exit code {code}"


def _name(number: int | None) -> str:
    try:
        return signal.Signals(number or 0).name
    except ValueError:
        return f"signal {number}"
