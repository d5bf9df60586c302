"""Is an output right? Decided from bytes alone, outside every sandbox.

An output is hostile until it is compared: it may be megabytes of one token, or a number of a million digits. So both
sides are read token by token, no list of them is made, and only short tokens are read as numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from app.domain.code_runner import SourceProgram

_TOKEN = re.compile(rb"[^ \t\n\r\v\f]+")
_NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,4})?")
_MOST_NUMBER_BYTES = 64
"""A longer token is no number that a tolerance says anything about; it is compared as text."""


class CheckerKind(StrEnum):
    """How an output is compared with the expected one."""

    EXACT = "exact"  # byte by byte, but for line ends (CR LF, LF) and line breaks at the very end
    TOKENS = "tokens"  # the same words, whatever white space is between them
    FLOATS = "floats"  # like tokens, but numbers may differ by a tolerance
    PROGRAM = "program"  # a program of the problem's author decides


@dataclass(frozen=True, slots=True)
class Checker:
    """How a problem's outputs are compared.

    Attributes:
        kind: which way.
        ignore_case: for tokens and floats: ASCII letters of either case are the same.
        absolute: for floats: how far a number may be off.
        relative: for floats: how far it may be off as a share of the expected one. Either tolerance suffices.
        program: for program: an output validator as the ICPC package format has them. It is called with the paths of
            the input, the answer and a directory for messages, reads the output from standard input, and ends with
            exit code 42 (accepted) or 43 (wrong).
        arguments: what the program is called with besides.
    """

    kind: CheckerKind = CheckerKind.TOKENS
    ignore_case: bool = False
    absolute: float = 0.0
    relative: float = 0.0
    program: SourceProgram | None = None
    arguments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a tolerance is no finite number from 0 on, or a program is missing.
        """
        if not all(math.isfinite(value) and value >= 0 for value in (self.absolute, self.relative)):
            raise ValueError("a tolerance is a finite number from 0 on")
        if (self.kind is CheckerKind.PROGRAM) != (self.program is not None):
            raise ValueError("a checker of the kind program, and no other, has a program")


@dataclass(frozen=True, slots=True)
class Checked:
    """Whether an output is right. ``cause`` says where it is not, without quoting it."""

    accepted: bool
    cause: str


def check_output(checker: Checker, output: bytes, expected: bytes) -> Checked:
    """Compare. Takes time and memory in proportion to the shorter of both.

    Raises:
        ValueError: the checker is a program, which is not run here.
    """
    if checker.kind is CheckerKind.PROGRAM:
        raise ValueError("a checker program is run in a sandbox, not here")
    if output == expected:
        return Checked(True, "as expected")
    if checker.kind is CheckerKind.EXACT:
        return _check_exact(output, expected)
    return _check_tokens(_sameness(checker), output, expected)


def _check_exact(output: bytes, expected: bytes) -> Checked:
    ours, wanted = (text.replace(b"\r\n", b"\n").rstrip(b"\n") for text in (output, expected))
    if ours == wanted:
        return Checked(True, "as expected")
    at = next((index for index, pair in enumerate(zip(ours, wanted, strict=False)) if pair[0] != pair[1]), None)
    if at is None:
        return Checked(False, "the output ends too early" if len(ours) < len(wanted) else "the output goes on too long")
    line = ours.count(b"\n", 0, at) + 1
    return Checked(False, f"line {line} differs")


def _check_tokens(same: Callable[[bytes, bytes], bool], output: bytes, expected: bytes) -> Checked:
    ours = _tokens(output)
    count = 0
    for count, wanted in enumerate(_tokens(expected), 1):
        token = next(ours, None)
        if token is None:
            return Checked(False, f"the output ends before token {count}")
        if token != wanted and not same(token, wanted):
            return Checked(False, f"token {count} differs")
    if next(ours, None) is not None:
        return Checked(False, f"the output goes on after token {count}")
    return Checked(True, "as expected")


def _tokens(text: bytes) -> Iterator[bytes]:
    return (found[0] for found in _TOKEN.finditer(text))


def _sameness(checker: Checker) -> Callable[[bytes, bytes], bool]:
    def same_text(ours: bytes, wanted: bytes) -> bool:
        return ours == wanted or (checker.ignore_case and ours.lower() == wanted.lower())

    def same_number(ours: bytes, wanted: bytes) -> bool:
        a, b = _number(ours), _number(wanted)
        if a is None or b is None:
            return same_text(ours, wanted)
        off = abs(a - b)
        return off <= checker.absolute or off <= checker.relative * abs(b)

    return same_number if checker.kind is CheckerKind.FLOATS else same_text


def _number(token: bytes) -> float | None:
    """A finite number in the usual notation; ``nan`` and ``inf`` are words."""
    if len(token) > _MOST_NUMBER_BYTES or not _NUMBER.fullmatch(token):
        return None
    value = float(token)
    return value if math.isfinite(value) else None
