"""Patterns that a problem looks for in submitted code: ast-grep rules as data, read strictly. Pure.

A rule has the form of an ast-grep rule file, as one object::

    {"id": "uses-sort", "language": "python", "message": "sorts with the library", "rule": {"pattern": "sorted($A)"}}

What only ast-grep itself can tell (a kind of node that a language has not, a pattern it cannot parse) is told by
`app.infrastructure.analysis.analyser.check_patterns`, with the same error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from app.core.errors import ErrorCode, TurnstoneError
from app.domain.documents import DocumentProblem

ANALYSED_LANGUAGES: Final = ("python", "javascript", "java", "c", "cpp", "go")
"""What static analysis knows; the names are those of the code runner."""
MOST_PATTERNS: Final = 100
"""Of one problem, all languages together."""

_ID = "[a-z0-9][a-z0-9._-]{0,63}"
_REQUIRED = ("id", "language", "rule")
_OPTIONAL = ("message", "note", "severity", "constraints", "utils")
_SEVERITIES = ("hint", "info", "warning", "error")
_ATOMIC = ("pattern", "kind", "regex", "nthChild", "range")
_RELATIONAL = ("inside", "has", "precedes", "follows")
_COMPOSITE = ("all", "any", "not", "matches")
_RULE_KEYS = (*_ATOMIC, *_RELATIONAL, *_COMPOSITE)
_RELATION_KEYS = (*_RULE_KEYS, "stopBy", "field")
_DEEPEST = 16
_LONGEST_TEXT = 2_000
_SHOWN_PROBLEMS = 20


class PatternError(TurnstoneError):
    """Patterns cannot be used. ``problems`` has everything found in them; the path is that of the value."""

    def __init__(self, problems: Sequence[DocumentProblem]) -> None:
        shown = "; ".join(str(problem) for problem in problems[:_SHOWN_PROBLEMS])
        more = len(problems) - _SHOWN_PROBLEMS
        super().__init__(
            ErrorCode.INVALID_FRAME,
            f"The patterns cannot be used: {shown}" + (f"; and {more} more" if more > 0 else ""),
        )
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class CodePattern:
    """One rule. ``rule``, ``constraints`` and ``utils`` are ast-grep's objects as they were given."""

    id: str
    language: str
    rule: Mapping[str, Any]
    message: str = ""
    note: str = ""
    severity: str = "info"
    constraints: Mapping[str, Any] | None = None
    utils: Mapping[str, Any] | None = None

    @property
    def matcher(self) -> dict[str, Any]:
        """What ast-grep is given."""
        parts = {"rule": self.rule, "constraints": self.constraints, "utils": self.utils}
        return {name: dict(part) for name, part in parts.items() if part is not None}


def read_patterns(objects: Any) -> tuple[CodePattern, ...]:
    """Read a problem's rule objects.

    Raises:
        PatternError: with every problem and where it is, such as ``patterns[0].rule.all[1]``; places count from 0.
    """
    if not isinstance(objects, Sequence) or isinstance(objects, str | bytes):
        raise PatternError([DocumentProblem("patterns", "must be a list of rules")])
    problems: list[DocumentProblem] = []
    if len(objects) > MOST_PATTERNS:
        problems.append(DocumentProblem("patterns", f"must be {MOST_PATTERNS} at most, and are {len(objects)}"))
    seen: set[tuple[str, str]] = set()
    for place, entry in enumerate(objects[:MOST_PATTERNS]):
        path = f"patterns[{place}]"
        found = list(_problems(entry, path))
        problems += found
        if not found:
            key = (entry["language"], entry["id"])
            if key in seen:
                problems.append(DocumentProblem(f"{path}.id", f"is taken by another {key[0]} pattern"))
            seen.add(key)
    if problems:
        raise PatternError(problems)
    return tuple(CodePattern(**entry) for entry in objects)


def _problems(entry: Any, path: str) -> Iterator[DocumentProblem]:
    if not isinstance(entry, Mapping):
        yield DocumentProblem(path, "must be an object")
        return
    known = (*_REQUIRED, *_OPTIONAL)
    for key in entry:
        if key not in known:
            yield DocumentProblem(f"{path}.{str(key)[:40]}", f"is not known here; there is {', '.join(known)}")
    for key in _REQUIRED:
        if key not in entry:
            yield DocumentProblem(f"{path}.{key}", "is missing")
    for key, (is_right, what) in _VALUES.items():
        if key in entry and not is_right(entry[key]):
            yield DocumentProblem(f"{path}.{key}", what)
    if "rule" in entry:
        yield from _of_rule(entry["rule"], f"{path}.rule", _RULE_KEYS, 0)
    for key in ("constraints", "utils"):
        if key in entry:
            yield from _of_named_rules(entry[key], f"{path}.{key}")


def _of_named_rules(value: Any, path: str) -> Iterator[DocumentProblem]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        yield DocumentProblem(path, "must be an object of rules by name")
        return
    for name, rule in value.items():
        yield from _of_rule(rule, f"{path}.{name[:40]}", _RULE_KEYS, 0)


def _of_rule(rule: Any, path: str, known: Sequence[str], depth: int) -> Iterator[DocumentProblem]:
    """Problems of a rule's form; its words in the language are ast-grep's to judge."""
    if not isinstance(rule, Mapping) or not rule:
        yield DocumentProblem(path, f"must be an object with one of {', '.join(_RULE_KEYS)}")
        return
    if depth > _DEEPEST:
        yield DocumentProblem(path, f"is nested more than {_DEEPEST} deep")
        return
    for key, value in rule.items():
        here = f"{path}.{str(key)[:40]}"
        if key not in known:
            yield DocumentProblem(here, f"is not known here; there is {', '.join(known)}")
        elif key in ("all", "any"):
            if not isinstance(value, list) or not value:
                yield DocumentProblem(here, "must be a list of rules, with one entry at least")
                continue
            for place, entry in enumerate(value):
                yield from _of_rule(entry, f"{here}[{place}]", _RULE_KEYS, depth + 1)
        elif key == "not":
            yield from _of_rule(value, here, _RULE_KEYS, depth + 1)
        elif key in _RELATIONAL:
            yield from _of_rule(value, here, _RELATION_KEYS, depth + 1)
        elif key in ("kind", "regex", "matches", "field") and not (_is_text(value) and value):
            yield DocumentProblem(here, f"must be a text of 1 to {_LONGEST_TEXT} characters")
        elif key == "pattern" and not isinstance(value, Mapping) and not (_is_text(value) and value.strip()):
            yield DocumentProblem(here, f"must be code of 1 to {_LONGEST_TEXT} characters, or an object")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and "\x00" not in value


def _one_of(words: Sequence[str]) -> tuple[Callable[[Any], bool], str]:
    return lambda value: isinstance(value, str) and value in words, f"must be one of {', '.join(words)}"


_TEXT: Final = (_is_text, f"must be a text of at most {_LONGEST_TEXT} characters")
_VALUES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "id": (lambda value: isinstance(value, str) and re.fullmatch(_ID, value) is not None, f"must look like {_ID}"),
    "language": _one_of(ANALYSED_LANGUAGES),
    "severity": _one_of(_SEVERITIES),
    "message": _TEXT,
    "note": _TEXT,
}
