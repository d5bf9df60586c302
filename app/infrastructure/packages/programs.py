"""A package's programs: solutions that are right, and its checker. Each has to be, or to become, one file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from app.domain.problem import MOST_REFERENCES
from app.domain.problem_parts import LONGEST_SOURCE
from app.infrastructure.packages.files import PackageFiles
from app.infrastructure.packages.findings import Findings
from app.infrastructure.packages.metadata import FILE, Metadata

_ENDINGS = {
    ".py": "python",
    ".py3": "python",
    ".java": "java",
    ".js": "javascript",
    ".go": "go",
    ".c": "c",
    ".cc": "cpp",
    ".cpp": "cpp",
    ".cxx": "cpp",
    ".c++": "cpp",
    ".C": "cpp",
}
_HEADERS = {".h", ".hh", ".hpp"}
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"[^\n]*$', re.MULTILINE)
_PYTHON_2 = re.compile(r"#!.*python2")
_ACCEPTED = "submissions/accepted"
_FLAGS = {
    "float_tolerance": ("absolute", "relative"),
    "float_absolute_tolerance": ("absolute",),
    "float_relative_tolerance": ("relative",),
}

ProgramJson = dict[str, str]


def read_references(files: PackageFiles, metadata: Metadata, findings: Findings) -> list[ProgramJson]:
    """The accepted submissions in languages that are supported: one of each language first, then the others."""
    programs = []
    for name, paths in _programs_in(files, _ACCEPTED).items():
        program = _one_file(files, paths, metadata, findings)
        if isinstance(program, str):
            findings.warn(name, f"is not imported: {program}")
        elif metadata.languages and program["language"] not in metadata.languages:
            findings.warn(name, f"is not imported: {program['language']} is none of the problem's languages")
        else:
            programs.append(program)
    if not programs:
        findings.fault(_ACCEPTED, "has no solution of one file in a language that is supported")
    firsts = list({program["language"]: program for program in reversed(programs)}.values())[::-1]
    others = [program for program in programs if program not in firsts]
    if len(programs) > MOST_REFERENCES:
        findings.warn(
            _ACCEPTED, f"{len(programs) - MOST_REFERENCES} solutions are left out: {MOST_REFERENCES} are kept"
        )
    return [*firsts, *others][:MOST_REFERENCES]


def read_checker(files: PackageFiles, metadata: Metadata, flags: tuple[str, ...], findings: Findings) -> dict[str, Any]:
    """The checker in a problem's form. ``flags`` are its arguments."""
    if not metadata.custom:
        return _default_checker(flags, findings)
    if metadata.newer:
        programs = {"output_validator": files.under("output_validator")}
    else:
        programs = _programs_in(files, "output_validators")
    if len(programs) != 1:
        findings.fault("output_validators", f"must be one program, and is {len(programs)}")
        return {}
    [(name, paths)] = programs.items()
    program = _one_file(files, paths, metadata, findings)
    if isinstance(program, str):
        findings.fault(name, program)
        return {}
    return {"kind": "program", "program": program, "arguments": list(flags)}


def _default_checker(flags: tuple[str, ...], findings: Findings) -> dict[str, Any]:
    tolerances: dict[str, float] = {}
    words = iter(flags)
    plain = set()
    for word in words:
        if word not in _FLAGS:
            plain.add(word)
            continue
        try:
            tolerance = float(next(words, ""))
        except ValueError:
            findings.fault(FILE, f"{word} must be followed by a number")
            continue
        tolerances |= dict.fromkeys(_FLAGS[word], tolerance)
    for word in sorted(plain - {"case_sensitive", "space_change_sensitive"}):
        findings.fault(FILE, f"the checker's argument {word[:40]} is not known")
    case_sensitive = "case_sensitive" in plain
    if any(tolerances.values()):
        if "space_change_sensitive" in plain:
            findings.warn(FILE, "space_change_sensitive is not imported: with tolerances, space does not matter")
        return {"kind": "floats", "case_sensitive": case_sensitive, **tolerances}
    if "space_change_sensitive" in plain:
        if not case_sensitive:
            findings.warn(FILE, "with space_change_sensitive, outputs are compared exactly: case matters as well")
        return {"kind": "exact"}
    return {"kind": "tokens", "case_sensitive": case_sensitive}


def _programs_in(files: PackageFiles, folder: str) -> dict[str, list[str]]:
    """Paths of each program of a kind: of one file, or of a folder."""
    programs: dict[str, list[str]] = {}
    for path in files.under(folder):
        name = path.removeprefix(f"{folder}/").partition("/")[0]
        programs.setdefault(f"{folder}/{name}", []).append(path)
    return programs


def _one_file(files: PackageFiles, paths: Iterable[str], metadata: Metadata, findings: Findings) -> ProgramJson | str:
    """A program, or why it cannot be taken."""
    paths = list(paths)
    names = {PurePosixPath(path).name for path in paths}
    if names & {"build", "run"}:
        return "programs with a build or run script are not supported"
    sources = [path for path in paths if PurePosixPath(path).suffix in _ENDINGS]
    if len(sources) != 1:
        return "must be one file in Python, JavaScript, Java, C, C++ or Go (of C and C++ with headers beside it)"
    [source] = sources
    language = _ENDINGS[PurePosixPath(source).suffix]
    text = findings.text(files, source)
    if _PYTHON_2.match(text):
        return "Python 2 is not supported"
    if language in ("c", "cpp"):
        headers = {PurePosixPath(path).name: path for path in paths if PurePosixPath(path).suffix in _HEADERS}
        text = _with_headers(files, text, headers, findings)
        if (missing := _INCLUDE.search(text)) is not None:
            return f"includes {missing[1][:64]}, which is not beside it"
    if not 0 < len(text) <= LONGEST_SOURCE:
        return f"must have 1 to {LONGEST_SOURCE} characters"
    return {"language": language, "source": metadata.filled_in(text)}


def _with_headers(files: PackageFiles, text: str, headers: dict[str, str], findings: Findings) -> str:
    """The source with headers of its folder in their places, each once."""
    seen: set[str] = set()

    def include(found: re.Match[str]) -> str:
        name = PurePosixPath(found[1]).name
        if name not in headers:
            return found[0]
        if name in seen:
            return ""
        seen.add(name)
        return _INCLUDE.sub(include, findings.text(files, headers[name]))

    return _INCLUDE.sub(include, text)
