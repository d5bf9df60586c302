"""Which of a Judge0's languages are ours, and what is sent along with each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from app.domain.code_runner import Toolchain

PROJECT = "Multi-file program"

_PYTHON_CHECK = 'import sys\ncompile(sys.stdin.buffer.read(), "main.py", "exec")\n'
_NODE_CHECK = (
    'const source = require("fs").readFileSync(0, "utf8");\n'
    'new (require("vm").Script)(require("module").wrap(source), {filename: "main.js"});\n'
)


class Listed(BaseModel):
    """A row of ``GET /languages``: ``C (GCC 9.2.0)``."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class Language:
    """One of ours.

    Attributes:
        names: the rows that can be it, the better first; the group is the version.
        options: for its compiler.
        check: a program in this language that ends with 0 where its input is well-formed; ``None``: Judge0 compiles.
        comment: begins a line that means nothing.
        more_mb: MiB the language itself needs besides what a program is granted.
        more_processes: threads it starts by itself.
        memory_marks: what it writes on standard error when a program's memory is used up.
    """

    names: tuple[re.Pattern[str], ...]
    options: str = ""
    check: str | None = None
    comment: str = "//"
    more_mb: int = 0
    more_processes: int = 0
    memory_marks: tuple[bytes, ...] = ()


def _names(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


LANGUAGES = {
    "python": Language(
        _names(r"Python \((3[\d.]*)\)"), check=_PYTHON_CHECK, comment="#", memory_marks=(b"MemoryError",)
    ),
    "javascript": Language(
        _names(r"JavaScript \(Node\.js ([\d.]+)\)"),
        check=_NODE_CHECK,
        more_mb=64,
        more_processes=12,
        memory_marks=(b"JavaScript heap out of memory",),
    ),
    "java": Language(
        _names(r"Java \((?:Open)?JDK ([\d.]+)\)"),
        options="-encoding UTF-8",
        more_mb=160,
        more_processes=32,
        memory_marks=(b"OutOfMemoryError",),
    ),
    # Options come before the source there, so the linker has to take a library that nothing has asked for yet.
    "c": Language(
        _names(r"C \(GCC ([\d.]+)\)", r"C \(Clang ([\d.]+)\)"), options="-std=gnu17 -O2 -Wl,--no-as-needed -lm"
    ),
    "cpp": Language(_names(r"C\+\+ \(GCC ([\d.]+)\)", r"C\+\+ \(Clang ([\d.]+)\)"), options="-std=gnu++17 -O2"),
    "go": Language(
        _names(r"Go \(([\d.]+)\)"),
        more_mb=32,
        more_processes=16,
        memory_marks=(b"runtime: out of memory", b"cannot allocate memory"),
    ),
}


@dataclass(frozen=True, slots=True)
class Found:
    """A language of ours and its id there."""

    toolchain: Toolchain
    id: int
    language: Language


def find_languages(listed: Sequence[Listed]) -> dict[str, Found]:
    """The newest version of each that is there."""
    found = {}
    for name, language in LANGUAGES.items():
        for pattern in language.names:
            rows = [(match[1], row.id) for row in listed if (match := pattern.fullmatch(row.name))]
            if rows:
                version, language_id = max(rows, key=lambda row: [int(part) for part in row[0].split(".") if part])
                found[name] = Found(Toolchain(name, version), language_id, language)
                break
    return found
