"""What can be told from the tokens alone: lines, syntax, and code that stands there twice."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from typing import Any, Final

from app.infrastructure.analysis.grammar import Leaf, Parsed
from app.infrastructure.analysis.sanitising import COMMENTS, is_literal

_SHOWN_PROBLEMS: Final = 20
_SHOWN_BLOCKS: Final = 20
_WINDOW: Final = 30
"""Tokens in a row that have to be the same to be called duplicated; about four lines."""
_VARIED: Final = 8
"""Different tokens among them: a table of numbers is no duplicated code."""
_MODULUS: Final = (1 << 61) - 1
_BASE: Final = 1_000_003
_MACRO: Final = re.compile(r"^[ \t]*#[ \t]*define\b", re.MULTILINE)


def syntax_of(parsed: Parsed) -> dict[str, Any]:
    """Whether the grammar makes sense of it.

    ``ok`` is null for C and C++ with macros that it cannot make sense of: their meaning is the preprocessor's.
    """
    if not parsed.has_error:
        return {"ok": True, "problems": [], "reason": None}
    problems = [
        {"line": problem.line, "column": problem.column, "missing": problem.missing}
        for problem in parsed.problems(_SHOWN_PROBLEMS)
    ]
    if parsed.language in ("c", "cpp") and _MACRO.search(parsed.code):
        reason = "it defines macros, so only a compiler can tell"
        return {"ok": None, "problems": problems, "reason": reason}
    place = f" in line {problems[0]['line']}" if problems else ""  # the last token's end may be all that is missing
    return {"ok": False, "problems": problems, "reason": f"syntax error{place}"}


def lines_of(parsed: Parsed) -> dict[str, int]:
    """Lines by what stands on them; one with code and a comment is a line of code. A last line end begins no line."""
    total = parsed.code.count("\n") + (not parsed.code.endswith("\n") and bool(parsed.code))
    starts = _line_starts(parsed.code)
    with_code: set[int] = set()
    with_comment: set[int] = set()
    for leaf in parsed.leaves:
        first, last = _line(starts, leaf.start), _line(starts, leaf.end - 1)
        (with_comment if leaf.kind in COMMENTS else with_code).update(range(first, last + 1))
    code = len(with_code)
    comments = len(with_comment - with_code)
    return {"total": total, "code": code, "comments": comments, "blank": max(0, total - code - comments)}


def duplication_of(parsed: Parsed) -> dict[str, Any]:
    """Runs of `_WINDOW` tokens that stand there again: names alike, whatever numbers and texts hold.

    ``share`` is that of all tokens that stand in one, 0 to 1; ``blocks`` say which lines are like which.
    """
    tokens = [leaf for leaf in parsed.leaves if leaf.kind not in COMMENTS]
    words = ["0" if is_literal(leaf) else parsed.code[leaf.start : leaf.end] for leaf in tokens]
    again: list[tuple[int, int]] = []  # a token, and the earlier one from which on the same window stands
    seen: dict[int, int] = {}
    for at, key in enumerate(_window_hashes(words)):
        earlier = seen.setdefault(key, at)
        same = words[earlier : earlier + _WINDOW] == words[at : at + _WINDOW]
        if earlier + _WINDOW <= at and same and len(set(words[at : at + _WINDOW])) >= _VARIED:
            again.append((at, earlier))
    inside: set[int] = set()
    for at, earlier in again:
        inside.update(range(at, at + _WINDOW), range(earlier, earlier + _WINDOW))
    share = len(inside) / len(tokens) if tokens else 0.0
    return {"share": round(share, 4), "tokens": len(tokens), "blocks": _blocks(again, tokens, parsed.code)}


def _window_hashes(words: list[str]) -> list[int]:
    """A number for each run of `_WINDOW` words; runs that are the same have the same one."""
    numbers: dict[str, int] = defaultdict(lambda: len(numbers) + 1)
    ids = [numbers[word] for word in words]
    leaving = pow(_BASE, _WINDOW, _MODULUS)
    hashes, value = [], 0
    for at, number in enumerate(ids):
        value = (value * _BASE + number) % _MODULUS
        if at >= _WINDOW:
            value = (value - ids[at - _WINDOW] * leaving) % _MODULUS
        if at >= _WINDOW - 1:
            hashes.append(value)
    return hashes


def _blocks(again: list[tuple[int, int]], tokens: list[Leaf], code: str) -> list[dict[str, Any]]:
    """Windows that follow one another, put together, as lines."""
    runs: list[list[int]] = []
    for at, earlier in again:
        if runs and runs[-1][0] + runs[-1][2] == at and runs[-1][1] + runs[-1][2] == earlier:
            runs[-1][2] += 1
        else:
            runs.append([at, earlier, 1])
    starts = _line_starts(code)

    def lines(first: int, count: int) -> list[int]:
        last = tokens[first + count + _WINDOW - 2]
        return [_line(starts, tokens[first].start), _line(starts, last.end - 1)]

    return [
        {"lines": lines(at, count), "like": lines(earlier, count), "tokens": count + _WINDOW - 1}
        for at, earlier, count in runs[:_SHOWN_BLOCKS]
    ]


def _line_starts(code: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer("\n", code))]


def _line(starts: list[int], place: int) -> int:
    return bisect_right(starts, place)
