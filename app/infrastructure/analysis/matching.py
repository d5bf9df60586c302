"""ast-grep: rules of a problem, and rules of ours, looked for in code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ast_grep_py import SgNode, SgRoot

_SHOWN_MATCHES: Final = 20
_LONGEST_TEXT: Final = 200


def matches_of(language: str, code: str, patterns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each pattern of the language whether and where it is found.

    Args:
        language: of the code; patterns for others are left out.
        code: as it was submitted.
        patterns: objects with ``id``, ``language``, ``message``, ``severity`` and ``matcher``.

    Returns:
        ``id``, ``message``, ``severity``, ``count``, and of the first ``matches`` ``line``, ``column`` and ``text``.
        A rule that ast-grep refuses has ``count`` null and a ``reason``: it was accepted with another version.
    """
    root = SgRoot(code, language).root()
    return [_of_pattern(root, pattern) for pattern in patterns if pattern["language"] == language]


def refused(patterns: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Which patterns ast-grep cannot use, and why, by their place in the list (``"0"`` …)."""
    reasons = {}
    for place, pattern in enumerate(patterns):
        _, reason = _found(SgRoot("", pattern["language"]).root(), pattern["matcher"])
        if reason is not None:
            reasons[str(place)] = reason
    return reasons


def _of_pattern(root: SgNode, pattern: Mapping[str, Any]) -> dict[str, Any]:
    found, reason = _found(root, pattern["matcher"])
    told = {key: pattern[key] for key in ("id", "message", "severity")}
    if reason is not None:
        return {**told, "count": None, "matches": [], "reason": reason}
    places = [
        {"line": place.start.line + 1, "column": place.start.column + 1, "text": node.text()[:_LONGEST_TEXT]}
        for node in found[:_SHOWN_MATCHES]
        for place in [node.range()]
    ]
    return {**told, "count": len(found), "matches": places, "reason": None}


def _found(root: SgNode, matcher: Mapping[str, Any]) -> tuple[Sequence[SgNode], str | None]:
    try:
        return root.find_all(dict(matcher)), None  # type: ignore[call-overload]  # its own dictionary types
    except Exception as error:  # noqa: BLE001 - the package raises plain Exception for a rule that it cannot use
        return [], _reason(str(error))


def _reason(told: str) -> str:
    """What ast-grep says, most telling line first, without its stack."""
    lines = [line.strip() for line in told.partition("Stack backtrace")[0].splitlines()]
    causes = [line.partition(": ")[2] for line in lines if line[:1].isdigit() and ": " in line]
    return (" ".join(reversed(causes)) or lines[0])[:_LONGEST_TEXT]
