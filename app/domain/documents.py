"""The documents that judging goes by: rubrics, judges' prompts and score policies. Each is named by its content's hash.

An exam pins hashes, never names, so that what made a score can be read for ever. Those that are shipped lie in
``evaluation/`` beside this module.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

from app.core.errors import ErrorCode, TurnstoneError

DocumentKind = Literal["rubric", "prompt", "policy"]
KINDS: tuple[DocumentKind, ...] = ("rubric", "prompt", "policy")
LONGEST_DOCUMENT = 200_000
"""Characters; a judge reads most of a document with every call."""
NAME = "[a-z0-9][a-z0-9._-]{0,63}"
"""What a document may be called."""

_PLACES: dict[DocumentKind, tuple[str, str]] = {
    "rubric": ("rubrics", ".yaml"),
    "prompt": ("prompts", ".md"),
    "policy": ("policies", ".yaml"),
}
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class DocumentProblem:
    """What is wrong (``what``), at which ``path`` such as ``grades[1].at_least``, and in which ``line`` (1, 2 …)."""

    path: str
    what: str
    line: int | None = None

    def __str__(self) -> str:
        where = f" (line {self.line})" if self.line is not None else ""
        return f"{self.path}: {self.what}{where}" if self.path else f"{self.what}{where}"


class DocumentError(TurnstoneError):
    """A document is not what it has to be, or there is none of that name. ``problems`` has everything found in it."""

    def __init__(self, what: str, problems: tuple[DocumentProblem, ...] = ()) -> None:
        shown = "; ".join(str(problem) for problem in problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        message = f"{what}: {shown}" if shown else what
        super().__init__(ErrorCode.INVALID_FRAME, f"{message}; and {more} more" if more > 0 else message)
        self.problems = problems


def content_hash(text: str) -> str:
    """SHA-256 of the text as UTF-8, in hex: what ``sha256sum`` says of the file."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@cache
def shipped(kind: DocumentKind, name: str) -> str:
    """The text of a document that comes with the program.

    Raises:
        DocumentError: there is none of that kind and name.
    """
    if name not in shipped_names(kind):
        known = ", ".join(shipped_names(kind))
        raise DocumentError(f"There is no shipped {kind} {name[:64]!r}; there is {known}")
    folder, ending = _PLACES[kind]
    data = files("app.domain").joinpath("evaluation", folder, f"{name}{ending}").read_bytes()
    return data.decode("utf-8")


@cache
def shipped_names(kind: DocumentKind) -> tuple[str, ...]:
    """The names of what comes with the program, in order."""
    folder, ending = _PLACES[kind]
    names = [entry.name for entry in files("app.domain").joinpath("evaluation", folder).iterdir()]
    return tuple(sorted(name.removesuffix(ending) for name in names if name.endswith(ending)))


def problems_of_text(text: str) -> list[DocumentProblem]:
    """What no document may be, whatever its kind: empty, endless, or with characters that cannot be seen or stored."""
    if not text.strip():
        return [DocumentProblem("", "is empty")]
    if len(text) > LONGEST_DOCUMENT:
        return [DocumentProblem("", f"has more than {LONGEST_DOCUMENT} characters")]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        strange = sorted({character for character in line.removesuffix("\r") if is_strange(character)})
        if strange:
            shown = ", ".join(f"U+{ord(character):04X}" for character in strange[:5])
            found.append(DocumentProblem("", f"holds characters that cannot be shown: {shown}", number))
    return found


def is_strange(character: str) -> bool:
    """Whether a character is a control character, half a surrogate pair, or an order or byte mark."""
    code = ord(character)
    if code < 0x20:
        return character not in "\t\n"
    return 0x7F <= code <= 0x9F or 0xD800 <= code <= 0xDFFF or code == 0xFEFF or 0x202A <= code <= 0x202E
