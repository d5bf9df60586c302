"""Judges' prompts: Markdown with places to fill, in one part that is ours and one that holds what candidates wrote.

There are two shapes: one for judges of prompts, and one for reviewers of code, which has the place ``{{code}}``. A
prompt that would show what a candidate wrote outside of a fence cannot be parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from app.domain.documents import DocumentError, DocumentProblem, content_hash, problems_of_text

SYSTEM_LINE, USER_LINE = "=== system ===", "=== user ==="
"""The lines above the two parts. What stands before the first one is a note to authors and goes to no model."""

Shape = Literal["judge", "review"]
FENCE_OPEN, FENCE_CLOSE = "fence_open", "fence_close"


@dataclass(frozen=True, slots=True)
class _Places:
    """The places of a shape: for what is ours, for what candidates wrote, and which of them stand once exactly."""

    ours: tuple[str, ...]
    fenced: tuple[str, ...]
    once: tuple[str, ...]

    @property
    def all(self) -> tuple[str, ...]:
        return (*self.ours, *self.fenced, FENCE_OPEN, FENCE_CLOSE)


_SHAPES: Final[Mapping[Shape, _Places]] = {
    "judge": _Places(
        ("rubric", "problem", "schema", "reminder"),
        ("conversation", "candidate"),
        ("rubric", "schema", "conversation", "candidate", "reminder"),
    ),
    "review": _Places(
        ("problem", "language", "schema", "reminder"),
        ("code",),
        ("schema", "code", "reminder"),
    ),
}
PLACEHOLDERS = _SHAPES["judge"].all
REVIEW_PLACEHOLDERS = _SHAPES["review"].all
_WHAT = "The judge's prompt cannot be used"

_PLACE = re.compile(r"\{\{([^{}\n]*)\}\}")


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A template. ``system`` and ``user`` hold ``{{places}}``, which its ``shape`` has; ``hash`` names it."""

    hash: str
    system: str
    user: str
    shape: Shape = "judge"

    @classmethod
    def parse(cls, text: str, *, shape: Shape | None = None) -> JudgePrompt:
        """Read a template; ``shape``: the one that it has to have.

        Raises:
            DocumentError: with every problem and its line.
        """
        problems = problems_of_text(text)
        if problems:
            raise DocumentError(_WHAT, tuple(problems))
        lines = text.replace("\r\n", "\n").split("\n")
        marks = [place for place, line in enumerate(lines) if line.strip() in (SYSTEM_LINE, USER_LINE)]
        if [lines[place].strip() for place in marks] != [SYSTEM_LINE, USER_LINE]:
            what = f"must have one line {SYSTEM_LINE!r} and after it one line {USER_LINE!r}"
            raise DocumentError(_WHAT, (DocumentProblem("", what),))
        first, second = marks
        found: Shape = "review" if "code" in _PLACE.findall("\n".join(lines[first:])) else "judge"
        if shape not in (None, found):
            what = f"is for the {found}, and here one for the {shape} is needed"
            raise DocumentError(_WHAT, (DocumentProblem("", what),))
        problems = _check(lines, first, second, _SHAPES[found])
        if problems:
            raise DocumentError(_WHAT, tuple(problems))
        system, user = lines[first + 1 : second], lines[second + 1 :]
        return cls(content_hash(text), "\n".join(system).strip(), "\n".join(user).strip(), found)

    def fill(self, values: Mapping[str, str]) -> tuple[str, str]:
        """The system's and the user's message. What is put in is not looked through for places again.

        Raises:
            KeyError: a place's value is not among ``values``.
        """
        system, user = (_PLACE.sub(lambda place: values[place[1]], part) for part in (self.system, self.user))
        return system, user


def _check(lines: list[str], first: int, second: int, places: _Places) -> list[DocumentProblem]:
    """Problems of a template's lines, of which the ``first`` and the ``second`` mark its parts."""
    found: list[DocumentProblem] = []
    seen: list[str] = []
    fenced = False
    for number, line in enumerate(lines[first + 1 :], start=first + 2):
        in_system = number <= second
        if "{{" in _PLACE.sub("", line):
            found.append(DocumentProblem("", "has a {{ that begins no place", number))
        for name in _PLACE.findall(line):
            if name not in places.all:
                found.append(DocumentProblem(name[:40], f"is no place; there are {', '.join(places.all)}", number))
            elif name in places.once and name in seen:
                found.append(DocumentProblem(name, "must stand once only", number))
            elif name not in places.ours and in_system:
                found.append(DocumentProblem(name, "belongs below the line of the user's part", number))
            elif name in (FENCE_OPEN, FENCE_CLOSE):
                if fenced == (name == FENCE_OPEN):
                    what = "stands in a fence already" if fenced else "closes no fence"
                    found.append(DocumentProblem(name, what, number))
                fenced = name == FENCE_OPEN
            elif (name in places.fenced) != fenced:
                what = "must stand between {{fence_open}} and {{fence_close}}"
                found.append(DocumentProblem(name, "must not stand in a fence" if fenced else what, number))
            seen.append(name)
    found += [DocumentProblem(name, "is missing") for name in places.once if name not in seen]
    if "reminder" in seen and seen[-1] != "reminder":
        found.append(DocumentProblem("reminder", "must be the last place of all, so that it has the last word"))
    if fenced:
        found.append(DocumentProblem(FENCE_OPEN, "is not closed"))
    return found
