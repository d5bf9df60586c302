"""Comparing outputs: exact, tokens, floats; also what hostile outputs do to it."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.checking import Checker, CheckerKind, check_output
from app.domain.code_runner import SourceProgram

EXACT, TOKENS = Checker(CheckerKind.EXACT), Checker(CheckerKind.TOKENS)
FLOATS = Checker(CheckerKind.FLOATS, absolute=1e-6, relative=1e-6)
KINDS = [EXACT, TOKENS, FLOATS]

words = st.binary(min_size=1, max_size=6).filter(lambda word: not set(word) & set(b" \t\n\r\v\f"))
gaps = st.text(" \t\n\r\v\f", min_size=1, max_size=4).map(str.encode)


@pytest.mark.parametrize(
    ("checker", "output", "expected", "accepted", "cause"),
    [
        (EXACT, b"a b\n", b"a b", True, "as expected"),
        (EXACT, b"a b\r\n\n", b"a b\n", True, "as expected"),
        (EXACT, b"a  b", b"a b", False, "line 1 differs"),
        (EXACT, b"a\nb\nx", b"a\nb\nc", False, "line 3 differs"),
        (EXACT, b"a", b"a b", False, "the output ends too early"),
        (EXACT, b"a b", b"a", False, "the output goes on too long"),
        (EXACT, b"\na", b"a", False, "line 1 differs"),
        (TOKENS, b"  a\r\n\tb ", b"a b", True, "as expected"),
        (TOKENS, b"a c", b"a b", False, "token 2 differs"),
        (TOKENS, b"a", b"a b", False, "the output ends before token 2"),
        (TOKENS, b"a b c", b"a b", False, "the output goes on after token 2"),
        (TOKENS, b"x", b"", False, "the output goes on after token 0"),
        (TOKENS, b"YES", b"yes", False, "token 1 differs"),
        (Checker(ignore_case=True), b"YES", b"yes", True, "as expected"),
        (TOKENS, b"1.0", b"1", False, "token 1 differs"),
        (TOKENS, b"a\0", b"a", False, "token 1 differs"),
        (FLOATS, b"1.0000005", b"1", True, "as expected"),
        (FLOATS, b"1000000.5", b"1000000", True, "as expected"),
        (FLOATS, b"1.1", b"1", False, "token 1 differs"),
        (FLOATS, b"-0.0", b"0", True, "as expected"),
        (FLOATS, b"1e0 x .5 5.", b"1 x 0.5 5", True, "as expected"),
        (FLOATS, b"nan", b"1", False, "token 1 differs"),
        (FLOATS, b"inf", b"1", False, "token 1 differs"),
        (FLOATS, b"1e9999", b"1", False, "token 1 differs"),
        (FLOATS, b"1_0", b"10", False, "token 1 differs"),
        (FLOATS, "١".encode(), b"1", False, "token 1 differs"),
        (FLOATS, b"0x10", b"16", False, "token 1 differs"),
        (FLOATS, b"nan", b"nan", True, "as expected"),
    ],
)
def test_what_is_right(checker: Checker, output: bytes, expected: bytes, accepted: bool, cause: str) -> None:
    checked = check_output(checker, output, expected)
    assert (checked.accepted, checked.cause) == (accepted, cause)


@given(st.binary(max_size=200))
def test_everything_is_equal_to_itself(text: bytes) -> None:
    assert all(check_output(kind, text, text).accepted for kind in KINDS)


@given(st.lists(words, max_size=12), st.data())
def test_white_space_between_tokens_is_of_no_account(tokens: list[bytes], data: st.DataObject) -> None:
    spaced = b"".join(token + data.draw(gaps) for token in tokens)
    assert check_output(TOKENS, spaced, b" ".join(tokens)).accepted
    assert check_output(FLOATS, spaced, b"\n".join(tokens)).accepted


@given(st.lists(words, max_size=8), st.lists(words, max_size=8))
def test_tokens_are_what_splitting_would_give(ours: list[bytes], wanted: list[bytes]) -> None:
    output, expected = b" ".join(ours), b"\n".join(wanted)
    assert check_output(TOKENS, output, expected).accepted == (ours == wanted)


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_what_is_exactly_right_is_right_by_tokens(output: bytes, expected: bytes) -> None:
    if check_output(EXACT, output, expected).accepted:
        assert check_output(TOKENS, output, expected).accepted
    if check_output(TOKENS, output, expected).accepted:
        assert check_output(FLOATS, output, expected).accepted


numbers = st.floats(-1e12, 1e12)


@given(numbers, numbers)
def test_a_tolerance_is_met_or_not(ours: float, wanted: float) -> None:
    accepted = check_output(FLOATS, repr(ours).encode(), repr(wanted).encode()).accepted
    off = abs(ours - wanted)
    assert accepted == (off <= 1e-6 or off <= 1e-6 * abs(wanted))


@given(st.sampled_from([b"nan", b"NaN", b"inf", b"-inf", b"infinity", b"1e400", b"-1e400"]), numbers)
def test_no_word_is_near_to_a_number(word: bytes, wanted: float) -> None:
    loose = Checker(CheckerKind.FLOATS, absolute=1e300, relative=1e300)
    assert not check_output(loose, word, repr(wanted).encode()).accepted


HOSTILE = [
    b"9" * 4_000_000,
    b"1e" + b"9" * 4_000_000,
    b" " * 4_000_000,
    b"1 " * 2_000_000,
    b"0." + b"0" * 4_000_000 + b"1",
    b"\n" * 4_000_000 + b"1",
    b"\0" * 4_000_000,
    b"-" * 4_000_000,
]


@pytest.mark.parametrize("checker", KINDS, ids=lambda checker: checker.kind)
def test_hostile_outputs_cost_little(checker: Checker) -> None:
    expected = b"1\n2\n3\n"
    for output in HOSTILE:
        took: list[float] = []
        while not took or (took[-1] >= 1.0 and len(took) < 4):  # a busy machine takes its time from whoever runs
            began = time.process_time()
            assert not check_output(checker, output, expected).accepted
            took.append(time.process_time() - began)
        assert took[-1] < 1.0, (output[:10], took)


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_is_a_number_from_0_on(tolerance: float) -> None:
    with pytest.raises(ValueError, match="tolerance"):
        Checker(CheckerKind.FLOATS, absolute=tolerance)


def test_a_program_belongs_to_the_kind_program() -> None:
    program = SourceProgram("python", "")
    with pytest.raises(ValueError, match="program"):
        Checker(CheckerKind.PROGRAM)
    with pytest.raises(ValueError, match="program"):
        Checker(CheckerKind.TOKENS, program=program)
    with pytest.raises(ValueError, match="sandbox"):
        check_output(Checker(CheckerKind.PROGRAM, program=program), b"", b"")
