"""What is sent to Judge0 and what it says of it. Expected outputs are no part of it: it compares nothing for us."""

from __future__ import annotations

import base64
import binascii
import io
import shlex
import signal
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field

from app.domain.code_runner import Ended, Execution, Limits, ProgramInput, RunnerUnavailableError
from app.infrastructure.runner.judge0.languages import Language
from app.infrastructure.runner.remote import causes

QUEUED, PROCESSING, ACCEPTED, TIME_LIMIT, COMPILATION_ERROR, INTERNAL_ERROR, EXEC_FORMAT = 1, 2, 3, 5, 6, 13, 14
RUNTIME_ERRORS = range(7, 13)
FIELDS = "token,status_id,stdout,stderr,compile_output,message,time,wall_time,memory,exit_code,exit_signal"

_NEAR = 0.9
_MARK_TAIL = 512
_MOST_ARGUMENTS = 512
_TAKEN_OUT = set("$&;<>|`\n")
"""Judge0 removes these from arguments, as they go through a shell."""


class Configuration(BaseModel):
    """What of ``GET /config_info`` bounds us; the defaults are Judge0's own."""

    enable_compiler_options: bool = True
    enable_command_line_arguments: bool = True
    enable_additional_files: bool = True
    max_submission_batch_size: Annotated[int, Field(ge=1)] = 20
    max_cpu_time_limit: float = 15
    max_wall_time_limit: float = 20
    max_memory_limit: int = 512_000
    max_stack_limit: int = 128_000
    max_max_processes_and_or_threads: int = 120
    max_max_file_size: int = 4096


class Submission(BaseModel):
    """One that is done or not: ``time`` and ``wall_time`` in s, ``memory`` in KiB, texts in base 64."""

    token: str
    status_id: int
    stdout: str | None = None
    stderr: str | None = None
    compile_output: str | None = None
    message: str | None = None
    time: float | None = None
    wall_time: float | None = None
    memory: float | None = None
    exit_code: int | None = None
    exit_signal: int | None = None

    @property
    def done(self) -> bool:
        """Whether it waits and runs no more."""
        return self.status_id > PROCESSING


@dataclass(frozen=True, slots=True)
class Program:
    """What is the same for each run: ``fields`` of a submission; ``files`` and ``run`` where it is a project.

    A project's run script takes arguments without Judge0's own ways with them.
    """

    language: Language
    fields: Mapping[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)
    run: str = ""


@dataclass(frozen=True, slots=True)
class Granted:
    """Limits as they are sent, in Judge0's units. ``lowered`` are those of which the service allows less."""

    cpu_s: float
    wall_s: float
    memory_kb: int
    output_kb: int
    lowered: frozenset[Ended]


def grant(limits: Limits, language: Language, configuration: Configuration) -> Granted:
    """What of the limits Judge0 can be asked for."""
    memory_kb = max(2048, (limits.memory_mb + language.more_mb) * 1024)
    # One that is reached at once is a whole unit beyond the limit, so that what fits is never cut.
    output_kb = limits.output_bytes // 1024 + 1
    lowered = set()
    if limits.cpu_s > configuration.max_cpu_time_limit or limits.wall_s > configuration.max_wall_time_limit:
        lowered.add(Ended.TLE)
    if memory_kb > configuration.max_memory_limit:
        lowered.add(Ended.MLE)
    if output_kb > configuration.max_max_file_size:
        lowered.add(Ended.OLE)
    return Granted(
        min(limits.cpu_s, configuration.max_cpu_time_limit),
        min(max(limits.wall_s, 1.0), configuration.max_wall_time_limit),
        min(memory_kb, configuration.max_memory_limit),
        min(output_kb, configuration.max_max_file_size),
        frozenset(lowered),
    )


def write_submission(
    program: Program, given: ProgramInput, limits: Limits, granted: Granted, configuration: Configuration
) -> dict[str, Any]:
    """A row of ``POST /submissions/batch``.

    Raises:
        RunnerUnavailableError: this Judge0 does not take what the run needs.
    """
    processes = limits.processes + program.language.more_processes
    row: dict[str, Any] = {
        **program.fields,
        "stdin": encode(given.stdin),
        "number_of_runs": 1,
        "cpu_time_limit": granted.cpu_s,
        "cpu_extra_time": 0.1,
        "wall_time_limit": granted.wall_s,
        "memory_limit": granted.memory_kb,
        "stack_limit": min(65_536, configuration.max_stack_limit),
        "max_processes_and_or_threads": min(processes, configuration.max_max_processes_and_or_threads),
        "max_file_size": granted.output_kb,
        "enable_per_process_and_thread_time_limit": False,
        "enable_per_process_and_thread_memory_limit": False,
        "redirect_stderr_to_stdout": False,
        "enable_network": False,
    }
    files = {**given.files, **{name: text.encode() for name, text in program.files.items()}}
    if program.run:
        files["run"] = f"{program.run} {shlex.join(given.arguments)}\n".encode()
    elif given.arguments:
        row["command_line_arguments"] = _arguments(given, configuration)
    if files:
        if not configuration.enable_additional_files:
            raise _not_enabled("files besides the program", "ENABLE_ADDITIONAL_FILES")
        row["additional_files"] = encode(_zip(files))
    return row


def read_run(done: Submission, language: Language, limits: Limits, granted: Granted) -> Execution:
    """A run of a program.

    Raises:
        RunnerUnavailableError: Judge0 says something that is not known here, or what it said cannot be decoded.
    """
    stdout, stderr = decode(done.stdout), decode(done.stderr)
    code, sent = _code(done)
    how, cause = _ended(done, limits, granted, code, sent)
    if how is Ended.RE and any(mark in stderr or mark in stdout[-_MARK_TAIL:] for mark in language.memory_marks):
        how, cause = Ended.MLE, causes.memory(limits)
    cut = granted.output_kb * 1024
    for stream, text in (("output", stdout), ("error", stderr)):
        # Some languages end by the signal for a file too large, some say so and go on: its size tells.
        if how is not Ended.SE and (len(text) > limits.output_bytes or len(text) >= cut):
            how, cause = Ended.OLE, causes.output(limits, stream)
    if how in granted.lowered:
        how, cause = Ended.SE, f"it met a limit of Judge0's that is lower than the problem's ({how.value})"
    by_limit = how in {Ended.TLE, Ended.MLE, Ended.OLE}
    return Execution(
        how=how,
        exit_code=None if by_limit else code,
        signal=(sent or int(signal.SIGKILL)) if by_limit else sent,
        cpu_ms=(done.time or 0.0) * 1000,
        wall_ms=(done.wall_time or 0.0) * 1000,
        memory_kb=int(done.memory or 0),
        stdout=stdout[: limits.output_bytes],
        stdout_bytes=len(stdout),
        stderr=stderr[-causes.TAIL_BYTES :],
        stderr_bytes=len(stderr),
        cause=cause,
    )


def encode(data: bytes) -> str:
    """As Judge0 reads it."""
    return base64.b64encode(data).decode()


def decode(text: str | None) -> bytes:
    """As Judge0 writes it: with line breaks.

    Raises:
        RunnerUnavailableError: it is not base 64.
    """
    try:
        return base64.b64decode("".join((text or "").split()), validate=True)
    except (binascii.Error, ValueError):
        raise RunnerUnavailableError(
            "Judge0 answers something that is not understood: a text is not in base 64.",
            "See that TURNSTONE_RUNNER__URL is Judge0's own address.",
        ) from None


def _ended(done: Submission, limits: Limits, granted: Granted, code: int | None, sent: int | None) -> tuple[Ended, str]:
    if done.status_id in RUNTIME_ERRORS:
        # It has no status for memory: the kernel ends the program, whose group is then full.
        if sent == signal.SIGKILL and (done.memory or 0) >= _NEAR * granted.memory_kb:
            return Ended.MLE, causes.memory(limits)
        return Ended.RE, causes.ended(code, sent)
    ways = {
        ACCEPTED: (Ended.FINISHED, "exit code 0"),
        TIME_LIMIT: (
            Ended.TLE,
            causes.cpu(limits) if (done.time or 0.0) >= granted.cpu_s else causes.wall(limits),
        ),
        COMPILATION_ERROR: (Ended.SE, "Judge0 compiled it before, and could not this time"),
        INTERNAL_ERROR: (Ended.SE, "Judge0 could not run it (Internal Error)"),
        EXEC_FORMAT: (Ended.SE, "Judge0 could not run it (Exec Format Error)"),
    }
    if done.status_id not in ways:
        raise RunnerUnavailableError(
            f"Judge0 answers something that is not understood: status {done.status_id}.",
            "docs/runner.md names the version that it should have.",
        )
    return ways[done.status_id]


def _code(done: Submission) -> tuple[int | None, int | None]:
    """Exit code and signal. It starts programs by a shell, which says 128 and the signal's number."""
    if done.exit_signal:
        return None, done.exit_signal
    code = done.exit_code
    if code is not None and 128 < code <= 128 + 64:
        return None, code - 128
    return code, None


def _arguments(given: ProgramInput, configuration: Configuration) -> str:
    text = shlex.join(given.arguments)
    if not configuration.enable_command_line_arguments:
        raise _not_enabled("arguments", "ENABLE_COMMAND_LINE_ARGUMENTS")
    if len(text) > _MOST_ARGUMENTS or _TAKEN_OUT & set(text):
        raise RunnerUnavailableError("Judge0 cannot hand over these arguments.", "Use another backend for them.")
    return text


def _not_enabled(what: str, variable: str) -> RunnerUnavailableError:
    return RunnerUnavailableError(f"This Judge0 takes no {what}.", f"Set {variable}=true in its judge0.conf.")


def _zip(files: Mapping[str, bytes]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            opened.writestr(name, content)
    return archive.getvalue()
