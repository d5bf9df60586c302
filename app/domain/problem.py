"""A programming problem: its statement, its test cases, what an answer is checked by, and solutions known to be right.

The models are its JSON form as well, so that what is written to be stored, what is published as a JSON Schema and what
is checked cannot differ.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from app.core.errors import ErrorCode, TurnstoneError
from app.domain.documents import content_hash
from app.domain.problem_parts import (
    CHECKERS,
    LONGEST_SOURCE,
    STORABLE,
    Checker,
    FloatsChecker,
    Language,
    Part,
    ProblemLimits,
    Program,
    TestCase,
    TokensChecker,
    check_storable,
)

MOST_CASES = 500
MOST_REFERENCES = 10
LONGEST_STATEMENT = 100_000
LARGEST_PROBLEM = 16 * 1024 * 1024
"""Bytes of a problem's texts in UTF-8, all together."""
_SHOWN_FAULTS = 20
_DEEPEST_PATTERN = 20
_FAULTS = "problem_faults"

StatementLanguage = Literal["en", "ko"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong (``what``), and at which ``path`` such as ``cases[2].input``."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what


class ProblemError(TurnstoneError):
    """A problem cannot be used. ``faults`` has everything that was found."""

    def __init__(self, what: str, faults: tuple[Fault, ...]) -> None:
        shown = "; ".join(str(fault) for fault in faults[:_SHOWN_FAULTS])
        more = len(faults) - _SHOWN_FAULTS
        super().__init__(ErrorCode.INVALID_FRAME, f"{what}: {shown}" + (f"; and {more} more" if more > 0 else ""))
        self.faults = faults


class Problem(Part):
    """A problem, complete: whoever has it can grade a program."""

    title: Annotated[str, StringConstraints(min_length=1, max_length=200), STORABLE]
    statement: Mapping[StatementLanguage, Annotated[str, StringConstraints(max_length=LONGEST_STATEMENT), STORABLE]] = (
        Field(min_length=1, description="Markdown, by language")
    )
    languages: tuple[Language, ...] = Field(min_length=1, description="in which it may be solved")
    limits: ProblemLimits = Field(default_factory=ProblemLimits)
    cases: tuple[TestCase, ...] = Field(min_length=1, max_length=MOST_CASES, description="in the order of their runs")
    checker: Checker = Field(default_factory=lambda: TokensChecker(kind="tokens"))
    references: tuple[Program, ...] = Field(
        min_length=1,
        max_length=MOST_REFERENCES,
        description="solutions that are right; running times are compared with the one in the candidate's language, "
        "or with the first",
    )
    starter_code: Mapping[Language, Annotated[str, StringConstraints(max_length=LONGEST_SOURCE), STORABLE]] = Field(
        default_factory=dict, description="what candidates start from, by language"
    )
    patterns: tuple[Mapping[str, Any], ...] = Field((), max_length=50, description="ast-grep rules to look for in code")

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read the JSON form, as a value.

        Raises:
            ProblemError: with every fault and where it is.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ProblemError("The problem cannot be used", tuple(_faults_of(error))) from None

    def to_json(self) -> dict[str, Any]:
        """The JSON form, complete with what was left to defaults."""
        return self.model_dump(mode="json")

    @property
    def content_hash(self) -> str:
        """SHA-256 of everything, in hex: equal problems have equal hashes."""
        return content_hash(json.dumps(self.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":")))

    def reference_for(self, language: str) -> Program:
        """The reference that a program in this language is measured by."""
        return next((program for program in self.references if program.language == language), self.references[0])

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        faults = [*self._languages_fit(), *self._cases_fit(), *self._patterns_fit()]
        if faults:
            raise PydanticCustomError(_FAULTS, "{text}", {"text": "; ".join(map(str, faults)), "faults": faults})
        return self

    def _languages_fit(self) -> Iterator[Fault]:
        for language, times in Counter(self.languages).items():
            if times > 1:
                yield Fault("languages", f"{language} is given twice")
        named = {f"references[{place}].language": program.language for place, program in enumerate(self.references)}
        named |= {f"starter_code.{language}": language for language in self.starter_code}
        named |= {f"limits.factors.{language}": language for language in self.limits.factors}
        for path, language in named.items():
            if language not in self.languages:
                yield Fault(path, f"{language} is none of the problem's languages")

    def _cases_fit(self) -> Iterator[Fault]:
        first_places: dict[str, int] = {}
        for place, case in enumerate(self.cases):
            first = first_places.setdefault(case.name, place)
            if first != place:
                yield Fault(f"cases[{place}].name", f"is the name of cases[{first}] too")
        if not any(case.weight for case in self.cases):
            yield Fault("cases", "one of them at least must have a weight above 0")
        if isinstance(self.checker, FloatsChecker) and not (self.checker.absolute or self.checker.relative):
            yield Fault("checker", "must have a tolerance above 0, absolute or relative; or be of kind tokens")
        size = sum(len(text.encode()) for text in self._texts())
        if size > LARGEST_PROBLEM:
            yield Fault("", f"must have {LARGEST_PROBLEM} bytes of text at most, and has {size}")

    def _patterns_fit(self) -> Iterator[Fault]:
        for place, pattern in enumerate(self.patterns):
            try:
                for value in _values_of(pattern):
                    _check_value(value)
            except ValueError as error:
                yield Fault(f"patterns[{place}]", str(error))

    def _texts(self) -> Iterator[str]:
        yield from self.statement.values()
        yield from self.starter_code.values()
        for program in self.references:
            yield program.source
        for case in self.cases:
            yield case.input
            yield case.output
        yield json.dumps(self.patterns, ensure_ascii=False)


def _values_of(value: object, depth: int = 0) -> Iterator[object]:
    """All texts, numbers and keys within a JSON value."""
    if depth > _DEEPEST_PATTERN:
        raise ValueError("is nested too deeply")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _values_of(inner, depth + 1)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _values_of(inner, depth + 1)
    else:
        yield value


def _check_value(value: object) -> None:
    if isinstance(value, str):
        check_storable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must hold no number but finite ones")


def _faults_of(error: ValidationError) -> Iterator[Fault]:
    items = error.errors(include_url=False, include_input=False)
    places = [item["loc"] for item in items]
    for item in items:
        place = item["loc"]
        if item["type"] == _FAULTS:
            yield from item["ctx"]["faults"]
        # A list whose entries are all wrong is not too short as well.
        elif item["type"] != "too_short" or not any(
            other[: len(place)] == place and other != place for other in places
        ):
            yield Fault(_path(place), _in_words(item["type"], item["msg"], item.get("ctx", {})))


def _path(location: tuple[int | str, ...]) -> str:
    if location[:1] == ("checker",):
        location = (location[0], *location[2:])  # without the kind, which a union puts there
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]":
            path += f".{part[:64]}" if path else part[:64]
    return path


_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "dict_type": "must be an object",
    "mapping_type": "must be an object",
    "tuple_type": "must be a list",
    "union_tag_invalid": f"its kind must be one of {', '.join(CHECKERS)}",
    "union_tag_not_found": f"must say its kind: {', '.join(CHECKERS)}",
    "too_short": "must have {min_length} entry at least",
    "too_long": "must have {max_length} entries at most",
}


def _in_words(kind: str, message: str, context: Mapping[str, Any]) -> str:
    if kind in _WORDS:
        return _WORDS[kind].format_map(dict(context))
    message = message.removeprefix("Value error, ").replace("Input should", "must").replace("should", "must")
    return message[:1].lower() + message[1:]
