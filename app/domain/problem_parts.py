"""What a problem consists of: programs, test cases, limits, checkers. Each is its own JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from app.domain import checking
from app.domain.code_runner import Limits, SourceProgram
from app.domain.scoring import CaseGroup

LONGEST_TEXT = 4 * 1024 * 1024
"""Characters of one case's input, and of its output."""
LONGEST_SOURCE = 256 * 1024

Language = Literal["python", "javascript", "java", "c", "cpp", "go"]
CHECKERS = ("exact", "tokens", "floats", "program")


def check_storable(text: str) -> str:
    """The text, where it can be kept.

    Raises:
        ValueError: it cannot, and why.
    """
    if "\x00" in text:
        raise ValueError("must not hold a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not hold half a surrogate pair") from None
    return text


STORABLE = AfterValidator(check_storable)
Source = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST_SOURCE), STORABLE]
Name = Annotated[str, StringConstraints(pattern=r"^[\w][\w .()/+-]{0,127}$")]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]


class Part(BaseModel):
    """Something that never changes, and knows all of its members."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Program(Part):
    """A program of one file."""

    language: Language
    source: Source

    def as_source(self) -> SourceProgram:
        """What the runner takes."""
        return SourceProgram(self.language, self.source)


class TestCase(Part):
    """One input and what is to come of it; both are text, and what a checker makes of ``output`` is up to it."""

    __test__: ClassVar[bool] = False  # no class of tests, whatever a collector may think

    name: Name = Field(description="unique in its problem")
    group: CaseGroup = Field(CaseGroup.PRIVATE, description="`SAMPLE` and `PUBLIC` may be shown to candidates")
    weight: Annotated[Number, Field(ge=0, le=1_000_000)] = Field(1.0, description="within its group")
    input: Annotated[str, StringConstraints(max_length=LONGEST_TEXT), STORABLE]
    output: Annotated[str, StringConstraints(max_length=LONGEST_TEXT), STORABLE]


class Factor(Part):
    """What a language is given more than the others, because its programs start slowly or take more memory."""

    time: Annotated[Number, Field(ge=1, le=20)] = 1.0
    memory: Annotated[Number, Field(ge=1, le=20)] = 1.0


class ProblemLimits(Part):
    """What one run of a program may use."""

    cpu_s: Annotated[Number, Field(ge=0.1, le=60)] = Field(2.0, description="seconds of CPU")
    wall_s: Annotated[Number, Field(ge=0.1, le=180)] | None = Field(
        None, description="seconds from start to end; null: three times `cpu_s`"
    )
    memory_mb: Annotated[Whole, Field(ge=16, le=8192)] = Field(256, description="MiB")
    output_bytes: Annotated[Whole, Field(ge=1, le=64 * 1024 * 1024)] = Field(
        8 * 1024 * 1024, description="bytes of standard output"
    )
    processes: Annotated[Whole, Field(ge=1, le=256)] = Field(32, description="processes and threads at once")
    files_mb: Annotated[Whole, Field(ge=1, le=1024)] = Field(32, description="MiB in files")
    factors: Mapping[Language, Factor] = Field(default_factory=dict, description="more time or memory for a language")

    def of(self, language: str) -> Limits:
        """The limits of a program in a language."""
        factor = {str(name): factor for name, factor in self.factors.items()}.get(language, Factor())
        wall = 3 * self.cpu_s if self.wall_s is None else self.wall_s
        return Limits(
            cpu_s=self.cpu_s * factor.time,
            wall_s=wall * factor.time,
            memory_mb=round(self.memory_mb * factor.memory),
            output_bytes=self.output_bytes,
            processes=self.processes,
            files_mb=self.files_mb,
        )


class ExactChecker(Part):
    """The output has to be the same, byte by byte, but for the kind of line ends and for empty lines at the end."""

    kind: Literal["exact"]

    def as_checker(self) -> checking.Checker:
        """What outputs are compared by."""
        return checking.Checker(checking.CheckerKind.EXACT)


class TokensChecker(Part):
    """The outputs' words have to be the same; how much space stands between them does not matter."""

    kind: Literal["tokens"]
    case_sensitive: bool = Field(True, strict=True)

    def as_checker(self) -> checking.Checker:
        """What outputs are compared by."""
        return checking.Checker(checking.CheckerKind.TOKENS, ignore_case=not self.case_sensitive)


class FloatsChecker(Part):
    """As tokens, but numbers may differ by so much, absolutely or relatively: whichever lets them pass."""

    kind: Literal["floats"]
    absolute: Annotated[Number, Field(ge=0, le=1)] = Field(0.0, description="absolute tolerance")
    relative: Annotated[Number, Field(ge=0, le=1)] = Field(0.0, description="relative tolerance")
    case_sensitive: bool = Field(True, strict=True)

    def as_checker(self) -> checking.Checker:
        """What outputs are compared by."""
        return checking.Checker(
            checking.CheckerKind.FLOATS,
            ignore_case=not self.case_sensitive,
            absolute=self.absolute,
            relative=self.relative,
        )


class ProgramChecker(Part):
    """A program of the problem's decides, in a sandbox of its own.

    It is called as output validators of the common package format are: with the paths of the input, the answer and a
    folder for messages, then the arguments of the problem, and the candidate's output on standard input. Exit code 42
    accepts, 43 refuses, and any other one is a fault of the checker.
    """

    kind: Literal["program"]
    program: Program
    arguments: tuple[Annotated[str, StringConstraints(max_length=1_000), STORABLE], ...] = Field((), max_length=20)

    def as_checker(self) -> checking.Checker:
        """What asks it."""
        kind = checking.CheckerKind.PROGRAM
        return checking.Checker(kind, program=self.program.as_source(), arguments=self.arguments)


Checker = Annotated[ExactChecker | TokensChecker | FloatsChecker | ProgramChecker, Field(discriminator="kind")]
