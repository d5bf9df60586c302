"""The steps of an analysis, in order. Each gives JSON and needs none of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from app.infrastructure.analysis.grammar import Parsed


class Subject:
    """What is analysed: ``language``, ``code``, ``earlier`` (or null) and ``patterns``, as the request has them."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        self.patterns: list[dict[str, Any]] = request["patterns"]

    @cached_property
    def parsed(self) -> Parsed:
        """The code."""
        return Parsed(self._request["language"], self._request["code"])

    @cached_property
    def earlier(self) -> Parsed | None:
        """The earlier version."""
        earlier = self._request["earlier"]
        return None if earlier is None else Parsed(self._request["language"], earlier)


def _structure(subject: Subject) -> dict[str, Any]:
    from app.infrastructure.analysis.structure import duplication_of, lines_of, syntax_of

    parsed = subject.parsed
    return {"syntax": syntax_of(parsed), "lines": lines_of(parsed), "duplication": duplication_of(parsed)}


def _sanitised(subject: Subject) -> dict[str, Any]:
    from app.infrastructure.analysis.sanitising import sanitise

    return sanitise(subject.parsed)


def _functions(subject: Subject) -> dict[str, Any]:
    from app.infrastructure.analysis.functions import functions_of

    return functions_of(subject.parsed)


def _difference(subject: Subject) -> dict[str, Any] | None:
    from app.infrastructure.analysis.difference import difference_of

    return None if subject.earlier is None else difference_of(subject.earlier, subject.parsed)


def _patterns(subject: Subject) -> list[dict[str, Any]]:
    from app.infrastructure.analysis.matching import matches_of

    parsed = subject.parsed
    return matches_of(parsed.language, parsed.code, subject.patterns)


def _lint(subject: Subject) -> dict[str, Any]:
    from app.infrastructure.analysis.lint import lint_of

    return lint_of(subject.parsed)


def _cognitive(subject: Subject) -> dict[str, Any] | None:
    from app.infrastructure.analysis.functions import cognitive_of

    return cognitive_of(subject.parsed) if subject.parsed.language == "python" else None


def _refused(subject: Subject) -> dict[str, str]:
    from app.infrastructure.analysis.matching import refused

    return refused(subject.patterns)


STAGES: dict[str, Callable[[Subject], Any]] = {
    "structure": _structure,
    "sanitised": _sanitised,
    "functions": _functions,
    "difference": _difference,
    "patterns": _patterns,
    "lint": _lint,
    "cognitive": _cognitive,
    "refused": _refused,
}
