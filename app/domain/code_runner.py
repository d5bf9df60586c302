"""The port to what runs programs in a sandbox: what a grader asks for, whatever backend answers.

A backend knows inputs and outputs of a program, nothing of what would be right: expected outputs stay with the caller,
who compares (:mod:`app.domain.checking`). Nothing that a program says of itself decides anything but its output.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

LANGUAGES = ("python", "javascript", "java", "c", "cpp", "go")
"""The names languages go by; which of them a backend can run, it says itself."""


class CaseVerdict(StrEnum):
    """What is said of one test case."""

    AC = "AC"  # accepted
    WA = "WA"  # wrong answer
    TLE = "TLE"  # CPU or wall time was used up
    MLE = "MLE"  # memory was used up
    RE = "RE"  # ended by a signal or with an exit code other than 0
    CE = "CE"  # does not compile
    OLE = "OLE"  # wrote more than it may
    SE = "SE"  # the system's fault: says nothing about the program, so it is no zero


class Ended(StrEnum):
    """How one run of a program ended. Only FINISHED (exit code 0) has an output worth comparing."""

    FINISHED = "FINISHED"
    TLE = "TLE"
    MLE = "MLE"
    RE = "RE"
    OLE = "OLE"
    SE = "SE"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use.

    Attributes:
        cpu_s: seconds of CPU time, of all its processes together.
        wall_s: seconds from start to end. Waiting counts, so it should be more than ``cpu_s``.
        memory_mb: MiB for all its processes together, files in its sandbox included.
        output_bytes: bytes of standard output, and as many of standard error.
        processes: processes and threads at once, the first included. Virtual machines need some of their own (Java
            about 20, Node 12, Go 10): a backend adds those.
        files_mb: MiB it may have in files, and the size of the largest.
    """

    cpu_s: float = 2.0
    wall_s: float = 6.0
    memory_mb: int = 256
    output_bytes: int = 8 * 1024 * 1024
    processes: int = 32
    files_mb: int = 32


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """What compiling may use; units as in `Limits`. ``output_bytes`` is the most that the compiled program may have."""

    cpu_s: float = 20.0
    wall_s: float = 40.0
    memory_mb: int = 1024
    output_bytes: int = 64 * 1024 * 1024
    processes: int = 64
    files_mb: int = 128


COMPILE_LIMITS = CompileLimits()


@dataclass(frozen=True, slots=True)
class SourceProgram:
    """A program as text. ``language`` is one of `LANGUAGES`.

    Java: the class with ``main`` may have any name; if several have one, ``Main`` is run.
    """

    language: str
    source: str


@dataclass(frozen=True, slots=True)
class ProgramInput:
    """What one run is given besides limits.

    Attributes:
        stdin: bytes of standard input.
        files: files in its working directory by relative path (``judge/answer``); it may change its copies.
        arguments: command-line arguments.
    """

    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PreparedProgram:
    """A program that is ready to run, for as long as its context lasts. ``handle`` is the backend's own."""

    language: str
    handle: str


@dataclass(frozen=True, slots=True)
class CompileFailed:
    """The program does not compile.

    Attributes:
        message: what the compiler said, at most a few KiB, with paths of the sandbox only. It quotes the source.
        cause: what led to it, without the candidate's text: ``the compiler refused it (exit code 1)``.
    """

    message: str
    cause: str


@dataclass(frozen=True, slots=True)
class Execution:
    """One run, as seen from outside.

    Attributes:
        how: how it ended; where several limits were met, the first.
        exit_code: of the first process; ``None`` where it was ended by a signal or was never started.
        signal: the number of the signal that ended it, ours included.
        cpu_ms: CPU time of all its processes, user and system.
        wall_ms: from start to end.
        memory_kb: KiB at the highest, all processes together.
        stdout: standard output, up to the limit.
        stdout_bytes: how many bytes it wrote, as far as they were counted.
        stderr: the tail of standard error.
        stderr_bytes: like ``stdout_bytes``.
        cause: what led to ``how`` in words, without text of the program.
        late_ms: where a limit ended it: from when it was last seen within its limits to when all of it was gone; 0
            where the backend does not say.
    """

    how: Ended
    exit_code: int | None
    signal: int | None
    cpu_ms: float
    wall_ms: float
    memory_kb: int
    stdout: bytes
    stdout_bytes: int
    stderr: bytes
    stderr_bytes: int
    cause: str
    late_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Isolation:
    """How a backend keeps programs apart from the machine, as found by trying.

    Attributes:
        backend: its name, such as ``bubblewrap``.
        level: what limits are held by: ``cgroup2``, ``cgroup1``, ``rlimits``, or ``remote`` where another service
            answers for it.
        details: everything else worth keeping with a result, by name, in words.
    """

    backend: str
    level: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What runs a language: ``version`` as it says itself (``3.11.7``)."""

    language: str
    version: str


class RunnerUnavailableError(Exception):
    """Nothing can be run now, and the program is not to blame: the caller tries again later.

    Attributes:
        problem: what is wrong, one sentence.
        remedy: what an operator can do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        """Say what is wrong and what to do."""
        super().__init__(f"{problem} {remedy}".strip())
        self.problem = problem
        self.remedy = remedy


class UnknownLanguageError(ValueError):
    """The backend has no toolchain for this language. Trying again does not help."""


class CodeRunner(Protocol):
    """Runs programs in sandboxes. Safe for any number of calls at once: those beyond its slots wait."""

    @property
    def name(self) -> str:
        """The backend's name, as in `Isolation.backend`."""

    async def languages(self) -> Mapping[str, Toolchain]:
        """What can be run, by language.

        Raises:
            RunnerUnavailableError: the backend does not answer.
        """

    def prepared(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AbstractAsyncContextManager[PreparedProgram | CompileFailed]:
        """Compile once; what was made is removed at the end of the context.

        A language without a compiler is checked for syntax instead.

        Raises:
            UnknownLanguageError: there is no toolchain for it.
            RunnerUnavailableError: the backend does not answer, or isolation is missing.
        """

    def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        """Run once per input, each in a fresh process that knows nothing of the others, and yield in their order.

        ``bytes`` are standard input alone. Closing the iterator ends what still runs.

        Raises:
            RunnerUnavailableError: the backend stopped answering. What was yielded before stays true.
        """

    async def self_test(self) -> Isolation:
        """Try to break out as a candidate would, and say how runs are isolated.

        Raises:
            RunnerUnavailableError: isolation is missing, so nothing is run: says which part, and what to do.
        """
