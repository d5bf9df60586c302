"""Patterns of a problem as data, and the code that a conversation holds: what is read, and what is refused and how."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import ErrorCode
from app.domain.code_blocks import code_blocks, first_version
from app.domain.code_patterns import MOST_PATTERNS, PatternError, read_patterns
from app.domain.model_client import ChatMessage

SORTS: dict[str, Any] = {"id": "sorts", "language": "python", "rule": {"pattern": "sorted($A)"}}


def problems(objects: Any) -> list[str]:
    with pytest.raises(PatternError) as caught:
        read_patterns(objects)
    assert caught.value.code is ErrorCode.INVALID_FRAME
    assert not caught.value.retryable
    return [str(problem) for problem in caught.value.problems]


def test_what_is_read_is_what_ast_grep_is_given() -> None:
    whole = {
        **SORTS,
        "message": "sorts",
        "note": "for graders",
        "severity": "warning",
        "constraints": {"A": {"regex": "^x"}},
        "utils": {"loop": {"any": [{"kind": "for_statement"}, {"kind": "while_statement"}]}},
    }
    [pattern] = read_patterns([whole])
    assert pattern.matcher == {key: whole[key] for key in ("rule", "constraints", "utils")}
    assert (pattern.id, pattern.language, pattern.message, pattern.severity) == ("sorts", "python", "sorts", "warning")
    assert read_patterns([]) == ()
    assert read_patterns([SORTS, {**SORTS, "language": "go"}])[1].matcher == {"rule": SORTS["rule"]}


REFUSED: list[tuple[Any, str]] = [
    ("sorted($A)", "patterns: must be a list of rules"),
    ({"id": "x"}, "patterns: must be a list of rules"),
    (["sorted($A)"], "patterns[0]: must be an object"),
    ([{"id": "x", "language": "go"}], "patterns[0].rule: is missing"),
    ([{**SORTS, "fix": "x"}], "patterns[0].fix: is not known here; there is id, language, rule, message"),
    ([{**SORTS, "id": "Sorts!"}], "patterns[0].id: must look like"),
    ([{**SORTS, "language": "cobol"}], "patterns[0].language: must be one of python, javascript"),
    ([{**SORTS, "language": ["go"]}], "patterns[0].language: must be one of python"),
    ([{**SORTS, "severity": "loud"}], "patterns[0].severity: must be one of hint"),
    ([{**SORTS, "message": 5}], "patterns[0].message: must be a text"),
    ([{**SORTS, "rule": {}}], "patterns[0].rule: must be an object with one of pattern"),
    ([{**SORTS, "rule": {"patern": "x"}}], "patterns[0].rule.patern: is not known here"),
    ([{**SORTS, "rule": {"pattern": ""}}], "patterns[0].rule.pattern: must be code"),
    ([{**SORTS, "rule": {"all": []}}], "patterns[0].rule.all: must be a list of rules"),
    ([{**SORTS, "rule": {"any": [{"kind": "x"}, 5]}}], "patterns[0].rule.any[1]: must be an object"),
    ([{**SORTS, "rule": {"not": {"has": {"kind": 5}}}}], "patterns[0].rule.not.has.kind: must be a text"),
    ([{**SORTS, "rule": {"kind": "x", "stopBy": "end"}}], "patterns[0].rule.stopBy: is not known here"),
    ([{**SORTS, "constraints": []}], "patterns[0].constraints: must be an object of rules by name"),
    ([{**SORTS, "utils": {"a": {"kind": ""}}}], "patterns[0].utils.a.kind: must be a text"),
    ([SORTS, SORTS], "patterns[1].id: is taken by another python pattern"),
    ([{**SORTS, "id": f"p{n}"} for n in range(MOST_PATTERNS + 1)], f"patterns: must be {MOST_PATTERNS} at most"),
]


@pytest.mark.parametrize(("objects", "told"), REFUSED, ids=[told for _, told in REFUSED])
def test_what_cannot_be_used_is_told_with_its_place(objects: Any, told: str) -> None:
    assert any(problem.startswith(told) for problem in problems(objects))


def test_a_rule_that_nests_without_end_is_refused() -> None:
    rule: dict[str, Any] = {"kind": "x"}
    for _ in range(5_000):
        rule = {"not": rule}
    assert "nested more than 16 deep" in problems([{**SORTS, "rule": rule}])[0]


@given(
    st.recursive(st.none() | st.text(max_size=5) | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_any_data_is_read_or_refused(data: Any) -> None:
    try:
        read_patterns([{**SORTS, "rule": data}])
    except PatternError as error:
        assert error.problems


# ---------------------------------------------------------------- code in a conversation


def said(*texts: str) -> list[ChatMessage]:
    return [ChatMessage("user" if at % 2 == 0 else "assistant", text) for at, text in enumerate(texts)]


def test_blocks_are_found_by_language_in_order() -> None:
    messages = said(
        "Mine so far:\n```py\nx = 1\n```\nand in Go\n~~~go\nx := 1\n~~~",
        "Better:\n```python title=a\nx = 2\n```\n```\nno tag\n```",
    )
    assert [(block.message, block.role, block.code) for block in code_blocks(messages, "python")] == [
        (0, "user", "x = 1\n"),
        (1, "assistant", "x = 2\n"),
    ]
    assert first_version(messages, "go") == "x := 1\n"
    assert first_version(messages, "java") == "no tag\n"
    assert first_version(said("no code", "`inline`"), "java") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```c\nint a;\n```", "int a;\n"),
        ("```c\r\nint a;\r\n```\r\n", "int a;\r\n"),
        ("  ```c\nint a;\n  ```", "int a;\n"),
        ("````c\n```\nint a;\n````", "```\nint a;\n"),
        ("```c\nint a;\n~~~\n", "int a;\n~~~\n"),
        ("```c\nint a; // the answer was stopped", "int a; // the answer was stopped"),
        ("```C\nint a;\n``` c\n```", "int a;\n``` c\n"),
        ("```c int a; ```\nprose", None),
        ("```c\n\n```", None),
    ],
)
def test_a_fence_is_read_as_markdown_has_it(text: str, code: str | None) -> None:
    assert first_version(said(text), "c") == code


def test_ten_thousand_open_fences_take_no_time() -> None:
    assert code_blocks(said("```c\n" * 10_000), "c")
