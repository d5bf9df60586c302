"""What a problem is: its JSON form, and everything that is wrong with one, told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from app.domain import problem as limits
from app.domain.problem import Problem, ProblemError
from app.domain.problem_parts import LONGEST_TEXT
from tests.support.problems import SUM


def faults(value: Any) -> list[str]:
    with pytest.raises(ProblemError) as error:
        Problem.parse(value)
    return [str(fault) for fault in error.value.faults]


def test_what_is_left_out_has_a_default_and_the_form_comes_back() -> None:
    problem = Problem.parse(SUM)
    assert problem.checker.model_dump() == {"kind": "tokens", "case_sensitive": True}
    assert (problem.limits.cpu_s, problem.limits.memory_mb) == (2.0, 256)
    stored = json.loads(json.dumps(problem.to_json()))
    assert Problem.parse(stored) == problem
    assert Problem.parse(stored).content_hash == problem.content_hash


def test_everything_counts_for_the_hash_and_nothing_else_does() -> None:
    problem = Problem.parse(SUM)
    assert Problem.parse(dict(reversed(SUM.items()))).content_hash == problem.content_hash
    assert Problem.parse({**SUM, "limits": {"cpu_s": 2}}).content_hash == problem.content_hash, "the default, written"
    seen = {problem.content_hash}
    for change in (
        {"title": "Sums"},
        {"limits": {"cpu_s": 2.5}},
        {"cases": [*SUM["cases"], {"name": "new", "input": "", "output": ""}]},
        {"checker": {"kind": "exact"}},
        {"starter_code": {"python": "a, b = 0, 0\n"}},
        {"patterns": [{"id": "no-loop"}]},
    ):
        seen.add(Problem.parse({**SUM, **change}).content_hash)
    assert len(seen) == 7


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"title": ""}, "title: string must have at least 1 character"),
        ({"statement": {}}, "statement: must have 1 entry at least"),
        ({"statement": {"sv": "Summa."}}, "statement.sv: must be 'en' or 'ko'"),
        ({"languages": ["cobol"]}, "languages[0]: must be 'python', 'javascript', 'java', 'c', 'cpp' or 'go'"),
        ({"languages": ["python", "python", "cpp"]}, "languages: python is given twice"),
        ({"languages": ["cpp"]}, "references[0].language: python is none of the problem's languages"),
        ({"references": []}, "references: must have 1 entry at least"),
        ({"cases": []}, "cases: must have 1 entry at least"),
        ({"cases": [{"name": "a", "input": "1", "output": "\x00"}]}, "cases[0].output: must not hold a NUL character"),
        ({"cases": [{"name": "a\nb", "input": "", "output": ""}]}, "cases[0].name: string must match pattern"),
        (
            {"cases": [{"name": "a", "input": "", "output": "", "weight": True}]},
            "cases[0].weight: must be a valid number",
        ),
        ({"cases": [{"name": "a", "input": "", "output": "", "weight": -1}]}, "cases[0].weight: must be greater"),
        ({"cases": [{"name": "a", "input": "", "output": "", "group": "HIDDEN"}]}, "cases[0].group: must be 'SAMPLE'"),
        ({"cases": [{"name": "a", "input": "", "output": "", "weight": 0}]}, "cases: one of them at least must have"),
        ({"cases": [SUM["cases"][0]] * 2}, "cases[1].name: is the name of cases[0] too"),
        ({"limits": {"cpu_s": 0}}, "limits.cpu_s: must be greater than or equal to 0.1"),
        ({"limits": {"memory_mb": "256"}}, "limits.memory_mb: must be a valid integer"),
        (
            {"limits": {"factors": {"java": {"time": 2}}}},
            "limits.factors.java: java is none of the problem's languages",
        ),
        ({"starter_code": {"go": "package main"}}, "starter_code.go: go is none of the problem's languages"),
        ({"checker": {"kind": "fuzzy"}}, "checker: its kind must be one of exact, tokens, floats, program"),
        ({"checker": {"kind": "floats"}}, "checker: must have a tolerance above 0"),
        ({"checker": {"kind": "program", "program": {"language": "c"}}}, "checker.program.source: is missing"),
        ({"patterns": [{"a": float("nan")}]}, "patterns[0]: must hold no number but finite ones"),
        ({"patterns": [{"a": ["\x00"]}]}, "patterns[0]: must not hold a NUL character"),
        ({"verify": False}, "verify: is not known here"),
    ],
)
def test_a_fault_is_told_with_its_place(change: dict[str, Any], told: str) -> None:
    assert any(fault.startswith(told) for fault in faults({**SUM, **change})), faults({**SUM, **change})


def test_all_faults_are_told_at_once() -> None:
    found = faults({**SUM, "title": 7, "checker": {}, "cases": [{"name": "a", "weight": "x"}], "more": 1})
    assert found == [
        "title: must be a valid string",
        "cases[0].weight: must be a valid number",
        "cases[0].input: is missing",
        "cases[0].output: is missing",
        "checker: must say its kind: exact, tokens, floats, program",
        "more: is not known here",
    ]
    assert faults([]) == ["must be an object"]


def test_many_faults_are_shown_in_part_and_kept_whole() -> None:
    cases = [{"name": f"c{number}"} for number in range(30)]
    with pytest.raises(ProblemError) as error:
        Problem.parse({**SUM, "cases": cases})
    assert len(error.value.faults) == 60
    assert error.value.message.endswith("; and 40 more")


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert faults({**SUM, "cases": [{"name": "a", "input": "x" * (LONGEST_TEXT + 1), "output": ""}]})
    assert faults({**SUM, "cases": [{"name": f"{n}", "input": "", "output": ""} for n in range(limits.MOST_CASES + 1)]})
    assert faults({**SUM, "references": [SUM["references"][0]] * (limits.MOST_REFERENCES + 1)})
    monkeypatch.setattr(limits, "LARGEST_PROBLEM", 1_000)
    korean = [{"name": "a", "input": "가" * 400, "output": ""}]
    assert faults({**SUM, "cases": korean}) == [f"must have 1000 bytes of text at most, and has {_size(korean)}"]


def _size(cases: list[dict[str, str]]) -> int:
    texts = [*SUM["statement"].values(), SUM["references"][0]["source"], cases[0]["input"], "[]"]
    return sum(len(text.encode()) for text in texts)


def test_a_language_s_factor_makes_its_limits_wider() -> None:
    given = {"cpu_s": 2, "wall_s": 5, "memory_mb": 100, "factors": {"python": {"time": 2.5, "memory": 1.5}}}
    of = Problem.parse({**SUM, "languages": ["python", "cpp"], "limits": given}).limits.of
    assert (of("python").cpu_s, of("python").wall_s, of("python").memory_mb) == (5.0, 12.5, 150)
    assert (of("cpp").cpu_s, of("cpp").wall_s, of("cpp").memory_mb) == (2.0, 5.0, 100)
    assert Problem.parse(SUM).limits.of("python").wall_s == 6.0


def test_the_reference_is_in_the_program_s_language_where_there_is_one() -> None:
    more = {"language": "cpp", "source": "int main() {}"}
    languages = ["python", "cpp", "go"]
    problem = Problem.parse({**SUM, "languages": languages, "references": [*SUM["references"], more]})
    assert [problem.reference_for(language).language for language in languages] == ["python", "cpp", "python"]


def test_the_published_schema_is_the_problem_s_and_holds() -> None:
    path = Path(__file__).parents[1] / "docs/schemas/problem.json"
    schema = json.loads(path.read_text(encoding="utf-8"))
    assert schema == {"$schema": "https://json-schema.org/draft/2020-12/schema", **Problem.model_json_schema()}
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    validator.validate(SUM)
    validator.validate(Problem.parse(SUM).to_json())
    longest = {"name": "a", "input": "x" * (LONGEST_TEXT + 1), "output": ""}
    for wrong in ({**SUM, "title": ""}, {**SUM, "cases": [longest]}):
        assert not validator.is_valid(wrong)
    for wrong in ({**SUM, "verify": False}, {**SUM, "references": []}, {**SUM, "checker": {"kind": "fuzzy"}}):
        assert not validator.is_valid(wrong)
