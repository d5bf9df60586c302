"""Packages of the common format become problems, and what they cannot become is said."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pytest

from app.domain.problem import Problem, ProblemError
from app.domain.problem_parts import LONGEST_TEXT
from app.infrastructure.packages import files as package_files
from app.infrastructure.packages.package import ImportedProblem, read_package
from tests.support.packages import LEGACY, NEWER, changed, write_folder, write_zip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tmp_path / "package"


def imported(root: Path, files: dict[str, str]) -> ImportedProblem:
    return read_package(write_folder(root, files))


def faults(root: Path, files: dict[str, str]) -> str:
    with pytest.raises(ProblemError) as error:
        imported(root, files)
    return error.value.message


def test_a_package_of_the_older_form(package: Path) -> None:
    found = imported(package, dict(LEGACY))
    problem = found.problem
    assert problem.title == "Nearest Pair"
    assert set(problem.statement) == {"en", "ko"}
    assert (problem.limits.cpu_s, problem.limits.memory_mb, problem.limits.output_bytes) == (3.0, 512, 4 * 1024 * 1024)
    assert problem.checker.model_dump() == {
        "kind": "floats",
        "absolute": 1e-6,
        "relative": 1e-6,
        "case_sensitive": False,
    }
    assert [(case.name, case.group, case.weight, case.output) for case in problem.cases] == [
        ("sample/1", "SAMPLE", 1.0, "5.0\n"),
        ("secret/01", "PRIVATE", 1.0, "2.0\n"),
        ("secret/large/02", "PRIVATE", 1.0, "0.0\n"),
    ]
    assert [program.language for program in problem.references] == ["python"]
    told = "\n".join(found.warnings)
    for part in ("pair.hs: is not imported", "problem.sv.md: is not imported", "1 pictures are not imported"):
        assert part in told
    assert "author" not in told and "license" not in told
    assert Problem.parse(json.loads(json.dumps(problem.to_json()))) == problem


def test_latex_becomes_markdown(package: Path) -> None:
    statement = imported(package, dict(LEGACY)).problem.statement["en"]
    assert statement.startswith("You are given $n$ points. Print the *smallest* distance")
    assert "**at most** $10^{-6}$" in statement
    assert "## Input" in statement and "## Output" in statement
    assert "- The number $n$ (50% of the cases have $n \\le 10$)." in statement
    assert "- Then $n$ lines with `x y`." in statement
    assert "```\n2\n0 0\n```" in statement
    assert "comment" not in statement and "pair.png" not in statement and "problemname" not in statement


def test_a_package_of_the_newer_form(package: Path) -> None:
    found = imported(package, dict(NEWER))
    problem = found.problem
    assert problem.title == "Any Order"
    assert problem.statement["en"] == "Print the numbers 1 to $n$ (at most 100) in any order.\n"
    assert problem.languages == ("python", "cpp")
    assert problem.limits.cpu_s == 1.5
    assert {case.name: case.weight for case in problem.cases} == {
        "sample/1": 1.0,
        "secret/large/1": 70.0,
        "secret/small/1": 10.0,
        "secret/small/2": 10.0,
        "secret/small/3": 10.0,
    }
    assert problem.checker.kind == "program"
    assert problem.checker.program.source.count("#define ACCEPT 42") == 1, "the header stands in its place"
    assert '#include "codes.h"' not in problem.checker.program.source
    assert [program.language for program in problem.references] == ["python", "cpp"]
    assert "i <= 100" in problem.references[1].source
    told = "\n".join(found.warnings)
    assert "haskell" in told
    assert "data/secret/large: its cases count one by one" in told


@pytest.mark.parametrize("top", ["", "nearestpair/"])
def test_an_archive_is_read_as_its_folder_is(package: Path, tmp_path: Path, top: str) -> None:
    archive = write_zip(tmp_path / "nearestpair.zip", LEGACY, top=top)
    assert read_package(archive).problem == imported(package, dict(LEGACY)).problem


@pytest.mark.parametrize(
    ("flags", "checker"),
    [
        ("", {"kind": "tokens", "case_sensitive": False}),
        ("case_sensitive", {"kind": "tokens", "case_sensitive": True}),
        ("case_sensitive space_change_sensitive", {"kind": "exact"}),
        (
            "float_relative_tolerance 1e-3",
            {"kind": "floats", "relative": 1e-3, "absolute": 0.0, "case_sensitive": False},
        ),
        (
            "float_absolute_tolerance 0.5 case_sensitive",
            {"kind": "floats", "relative": 0.0, "absolute": 0.5, "case_sensitive": True},
        ),
    ],
)
def test_flags_of_the_default_checker(package: Path, flags: str, checker: dict[str, object]) -> None:
    yaml = LEGACY["problem.yaml"].replace("float_tolerance 1e-6", flags)
    assert imported(package, changed(LEGACY, **{"problem.yaml": yaml})).problem.checker.model_dump() == checker


def test_the_title_is_found_where_it_is(package: Path) -> None:
    unnamed = LEGACY["problem.yaml"].replace("name: Nearest Pair", "")
    files = changed(LEGACY, **{"problem.yaml": unnamed})
    assert imported(package, files).problem.title == "Nearest Pair"
    del files["problem_statement/problem.en.tex"]
    assert imported(package.with_name("pairs"), files).problem.title == "pairs"


def test_a_package_without_a_time_limit_says_so(package: Path) -> None:
    files = changed(LEGACY, **{".timelimit": None})
    found = imported(package, files)
    assert found.problem.limits.cpu_s == 2.0
    assert any("says no time limit" in warning for warning in found.warnings)
    assert read_package(package, time_limit_s=7.5).problem.limits.cpu_s == 7.5


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"problem.yaml": None}, "problem.yaml: is missing"),
        ({"problem.yaml": "name: ["}, "problem.yaml: is not YAML"),
        ({"problem.yaml": "[" * 3000}, "problem.yaml: is not YAML"),
        ({"problem.yaml": "validation: custom interactive"}, "interactive problems are not supported"),
        ({"problem.yaml": "validation: custom score"}, "checkers that give points are not supported"),
        ({"problem.yaml": "problem_format_version: 2031-01"}, "problem_format_version 2031-01 is not known"),
        ({"problem.yaml": "type: multi-pass"}, "multi-pass problems are not supported"),
        ({"problem.yaml": "limits: {memory: much}"}, "limits.memory must be a number above 0"),
        ({"problem.yaml": "validator_flags: float_tolerance much"}, "float_tolerance must be followed by a number"),
        ({"problem.yaml": "validator_flags: --fuzzy"}, "the checker's argument --fuzzy is not known"),
        ({"data/secret/01.ans": None}, "data/secret/01.ans: is missing"),
        ({"data/secret/01.in": "\x00"}, "data/secret/01.in: must not hold a NUL character"),
        ({"submissions/accepted/pair.py": None}, "submissions/accepted: has no solution of one file"),
        ({"include/cpp/main.cpp": "int main() {}"}, "include: code that is added"),
        ({"data/secret/01.files/x": "y"}, "data/secret/01.files: is not supported"),
        ({"data/secret/01.yaml": "args: [a]"}, "args of a single case is not supported"),
        (
            {"data/secret/large/testdata.yaml": "output_validator_flags: float_tolerance 1"},
            "groups that give the checker different arguments",
        ),
        (
            {f"problem_statement/problem.{form}": None for form in ("en.tex", "ko.md")},
            "problem_statement: has no problem.en.md",
        ),
    ],
)
def test_what_cannot_be_imported_is_named(package: Path, changes: dict[str, str | None], told: str) -> None:
    assert told in faults(package, changed(LEGACY, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"output_validator/run": "#!/bin/sh"}, "programs with a build or run script are not supported"),
        ({"output_validator/other.cpp": "int main() {}"}, "must be one file"),
        ({"output_validator/codes.h": None}, "includes codes.h, which is not beside it"),
    ],
)
def test_a_checker_that_cannot_be_imported_is_named(package: Path, changes: dict[str, str | None], told: str) -> None:
    assert told in faults(package, changed(NEWER, **changes))


def test_all_faults_are_told_at_once(package: Path) -> None:
    changes: dict[str, str | None] = {
        "data/secret/01.ans": None,
        "submissions/accepted/pair.py": None,
        "include/c/x.c": "x",
    }
    found = faults(package, changed(LEGACY, **changes))
    assert all(part in found for part in ("data/secret/01.ans", "submissions/accepted", "include"))


def test_a_checker_of_the_older_form_is_a_program_with_its_flags(package: Path) -> None:
    files = changed(
        LEGACY,
        **{
            "problem.yaml": "name: X\nvalidation: custom\nvalidator_flags: --eps 1e-3\n",
            "output_validators/validate.py": "import sys\nsys.exit(42)\n",
        },
    )
    checker = imported(package, files).problem.checker
    assert checker.kind == "program"
    assert (checker.program.language, checker.arguments) == ("python", ("--eps", "1e-3"))


def test_one_reference_of_each_language_comes_first_and_python_2_is_none(package: Path) -> None:
    more = {f"submissions/accepted/a{number:02}.py": f"print({number})\n" for number in range(12)}
    more |= {
        "submissions/accepted/z.cpp": "int main() {}\n",
        "submissions/accepted/old.py": "#!/usr/bin/python2\nprint 1\n",
    }
    found = imported(package, changed(LEGACY, **more))
    languages = [program.language for program in found.problem.references]
    assert languages == ["python", "cpp", *["python"] * 8]
    assert "4 solutions are left out" in "\n".join(found.warnings)
    assert "old.py: is not imported: Python 2" in "\n".join(found.warnings)


# ---------------------------------------------------------------- what nobody should be able to do with an archive


@pytest.mark.parametrize(
    "name", ["../outside.in", "/etc/outside.in", "data/../../outside.in", "C:/x.in", "data\\..\\x"]
)
def test_zip_slips_are_refused(tmp_path: Path, name: str) -> None:
    archive = write_zip(tmp_path / "slip.zip", {**LEGACY, name: "x"})
    with pytest.raises(ProblemError, match="would lead out of the package"):
        read_package(archive)


def test_links_that_lead_out_are_refused_and_others_are_followed(package: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the machine")
    write_folder(package, LEGACY)
    (package / "data/sample/2.in").symlink_to(package / "data/sample/1.in")
    (package / "data/sample/2.ans").symlink_to(Path("1.ans"))
    assert "sample/2" in {case.name for case in read_package(package).problem.cases}
    (package / "data/sample/3.in").symlink_to(tmp_path / "secret")
    with pytest.raises(ProblemError, match=r"data/sample/3\.in: is a link that leads out"):
        read_package(package)


def test_an_archive_with_a_link_and_one_with_a_file_twice_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("data/sample/2.in")
    link.external_attr = 0o120777 << 16
    path = write_zip(tmp_path / "link.zip", LEGACY)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ProblemError, match="is a link"):
        read_package(path)
    path = write_zip(tmp_path / "twice.zip", LEGACY)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("problem.yaml", "name: another")
    with pytest.raises(ProblemError, match="twice"):
        read_package(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = "0" * (package_files.LARGEST_FILE + 1)
    path = write_zip(tmp_path / "bomb.zip", {**LEGACY, "data/secret/01.in": bomb})
    assert path.stat().st_size < 100_000
    with pytest.raises(ProblemError, match="may be read of one file"):
        read_package(path)
    half = bomb[: LONGEST_TEXT // 2]
    cases = {f"data/secret/{n:02}.{kind}": half for n in range(20) for kind in ("in", "ans")}
    many = write_zip(tmp_path / "many.zip", {**LEGACY, **cases})
    with pytest.raises(ProblemError, match="makes the package too large"):
        read_package(many)
    monkeypatch.setattr(package_files, "MOST_FILES", 10)
    with pytest.raises(ProblemError, match="has more than 10 files"):
        read_package(write_zip(tmp_path / "files.zip", LEGACY))


def test_a_broken_archive_and_what_is_none_are_told(tmp_path: Path) -> None:
    whole = write_zip(tmp_path / "whole.zip", LEGACY).read_bytes()
    broken = bytearray(whole)
    at = whole.index(b"Nearest") if b"Nearest" in whole else 60
    broken[at : at + 20] = b"\xff" * 20
    for name, content in (
        ("not.zip", b"no archive"),
        ("cut.zip", whole[: len(whole) // 2]),
        ("broken.zip", bytes(broken)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ProblemError, match=r"archive|packed"):
            read_package(tmp_path / name)


def test_a_folder_that_is_no_package_is_told_without_reading_it(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=r"problem\.yaml: is missing"):
        read_package(tmp_path)
    os.mkfifo(write_folder(tmp_path, LEGACY) / "data/secret/03.in")
    with pytest.raises(ProblemError, match=r"data/secret/03\.in: is not a file"):
        read_package(tmp_path)
