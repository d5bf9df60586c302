"""Reads a problem from a package of the common format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from app.domain.problem import Fault, Problem, ProblemError
from app.domain.problem_parts import Language
from app.infrastructure.packages.files import WHAT, PackageFiles, open_package
from app.infrastructure.packages.findings import Findings
from app.infrastructure.packages.metadata import DEFAULT_TIME_S, FILE, Metadata, read_metadata
from app.infrastructure.packages.programs import read_checker, read_references
from app.infrastructure.packages.statements import read_statements, title_of
from app.infrastructure.packages.test_data import read_cases

_MEMORY_MB = (16, 8192)
_TIME_S = (0.1, 60.0)
_NOT_IMPORTED = ("attachments", "graders", "static_validator")


@dataclass(frozen=True, slots=True)
class ImportedProblem:
    """A problem, and what of its package came otherwise than it was meant."""

    problem: Problem
    warnings: tuple[str, ...]


def read_package(path: Path, *, time_limit_s: float | None = None) -> ImportedProblem:
    """Read a package from a folder or a ZIP archive; blocks.

    Args:
        path: of it.
        time_limit_s: CPU seconds of one run, above what the package says.

    Raises:
        ProblemError: with everything that is wrong or not supported, and in which file.
    """
    with open_package(path) as files:
        findings = Findings()
        value = _problem_of(files, findings, time_limit_s)
        findings.finish()
    try:
        problem = Problem.parse(value)
    except ProblemError as error:
        raise ProblemError(WHAT, tuple(_in_package(fault, value) for fault in error.faults)) from None
    return ImportedProblem(problem, tuple(findings.warnings))


def _problem_of(files: PackageFiles, findings: Findings, time_limit_s: float | None) -> dict[str, Any]:
    metadata = read_metadata(files, findings)
    if files.under("include"):
        findings.fault("include", "code that is added to every solution is not supported")
    for folder in _NOT_IMPORTED:
        if files.under(folder):
            findings.warn(folder, "is not imported")
    statements, name = read_statements(files, metadata, findings)
    cases, flags = read_cases(files, metadata, findings)
    references = read_references(files, metadata, findings)
    languages = metadata.languages or get_args(Language)
    return {
        "title": title_of(metadata.names, name, files.name)[:200],
        "statement": statements,
        "languages": list(languages),
        "limits": _limits(metadata, findings, time_limit_s),
        "cases": cases,
        "checker": read_checker(files, metadata, (*metadata.flags, *flags), findings),
        "references": references,
    }


def _limits(metadata: Metadata, findings: Findings, time_limit_s: float | None) -> dict[str, Any]:
    time = time_limit_s or metadata.time_s
    if time is None:
        time = DEFAULT_TIME_S
        findings.warn(FILE, f"says no time limit: {time:g} s are taken, or what `--time-limit` says")
    return {
        "cpu_s": _within("limits.time_limit", time, *_TIME_S, findings),
        "memory_mb": round(_within("limits.memory", metadata.memory_mb, *_MEMORY_MB, findings)),
        "output_bytes": round(_within("limits.output", metadata.output_mb, 1, 64, findings)) * 1024 * 1024,
    }


def _within(name: str, value: float, low: float, high: float, findings: Findings) -> float:
    if low <= value <= high:
        return value
    nearest = min(max(value, low), high)
    findings.warn(FILE, f"{name} is {value:g}; {nearest:g} is taken, for {low:g} to {high:g} can be had")
    return float(nearest)


def _in_package(fault: Fault, value: dict[str, Any]) -> Fault:
    """A fault of the problem, in the words of its package where it is one of a case."""
    place, bracket, rest = fault.path.removeprefix("cases[").partition("]")
    if not fault.path.startswith("cases[") or not bracket:
        return fault
    ending = {".input": ".in", ".output": ".ans"}.get(rest, rest)
    return Fault(f"data/{value['cases'][int(place)]['name']}{ending}", fault.what)
