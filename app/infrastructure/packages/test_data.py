"""A package's test cases, with their groups and weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from app.infrastructure.packages.files import PackageFiles
from app.infrastructure.packages.findings import Findings
from app.infrastructure.packages.metadata import Metadata

_GROUPS = {"sample": "SAMPLE", "secret": "PRIVATE"}
_SETTINGS = ("test_group.yaml", "testdata.yaml")


def read_cases(
    files: PackageFiles, metadata: Metadata, findings: Findings
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The cases in a problem's form, in order, and the arguments that their groups give to the checker."""
    settings = {
        str(PurePosixPath(path).parent): findings.mapping(files, path)
        for path in files.under("data")
        if PurePosixPath(path).name in _SETTINGS
    }
    inputs = [path for folder in _GROUPS for path in files.under(f"data/{folder}") if path.endswith(".in")]
    sizes = Counter(str(PurePosixPath(path).parent) for path in inputs)
    weights = {folder: _weight(folder, sizes[folder], settings, metadata, findings) for folder in sizes}
    cases = []
    for path in inputs:
        case = path.removesuffix(".in")
        if _is_supported(files, case, findings):
            name = case.removeprefix("data/")
            cases.append(
                {
                    "name": name,
                    "group": _GROUPS[name.partition("/")[0]],
                    "weight": weights[str(PurePosixPath(path).parent)],
                    "input": findings.text(files, path),
                    "output": findings.text(files, f"{case}.ans"),
                }
            )
    if not any(case["group"] == "PRIVATE" for case in cases):
        findings.fault("data/secret", "has no test case (a file .in with its .ans)")
    for folder in ("invalid_input", "invalid_output", "valid_output"):
        if files.under(f"data/{folder}"):
            findings.warn(f"data/{folder}", "is not imported: it tests the package, not solutions")
    return cases, _flags(settings, sizes, findings)


def _is_supported(files: PackageFiles, case: str, findings: Findings) -> bool:
    if f"{case}.ans" not in files:
        findings.fault(f"{case}.ans", "is missing")
        return False
    if files.under(f"{case}.files"):
        findings.fault(f"{case}.files", "is not supported: a program gets its input on standard input only")
    if f"{case}.yaml" in files:
        own = findings.mapping(files, f"{case}.yaml")
        for key in ("args", "output_validator_args"):
            if own.get(key):
                findings.fault(f"{case}.yaml", f"{key} of a single case is not supported")
    return True


def _nearest(folder: str, settings: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The settings of a folder; where it has none, of the nearest one around it."""
    while folder not in settings and "/" in folder:
        folder = folder.rpartition("/")[0]
    return settings.get(folder, {})


def _weight(
    folder: str,
    cases: int,
    settings: Mapping[str, Mapping[str, Any]],
    metadata: Metadata,
    findings: Findings,
) -> float:
    """What a case of a folder weighs: in problems with points its share of them, in others 1."""
    if not metadata.scoring:
        return 1.0
    found = _nearest(folder, settings)
    all_or_nothing = "min" in str(found.get("grader_flags", "")).split() or found.get("score_aggregation") in (
        "min",
        "pass-fail",
    )
    if all_or_nothing:
        findings.warn(folder, "its cases count one by one, and not only where all of them pass")
    own = settings.get(folder, {})
    points = _number(own.get("max_score"))
    if points is None and "accept_score" not in found and isinstance(own.get("range"), str):
        points = _number(own["range"].split()[-1])
    if points is not None:
        return points / cases
    return max(_number(found.get("accept_score", 1)) or 0.0, 0.0)


def _number(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _flags(settings: Mapping[str, Mapping[str, Any]], folders: Counter[str], findings: Findings) -> tuple[str, ...]:
    """Arguments of the checker, which all groups have to give alike."""
    given = set()
    for folder in folders:
        found = _nearest(folder, settings)
        flags = found.get("output_validator_args", found.get("output_validator_flags")) or ()
        if isinstance(flags, dict):
            flags = flags.get("flags") or ()
        given.add(tuple(map(str, flags)) if isinstance(flags, list) else tuple(str(flags or "").split()))
        if found.get("grading") == "custom":
            findings.warn(folder, "its own grader is not imported: cases count by their weights")
    if len(given) > 1:
        findings.fault("data", "groups that give the checker different arguments are not supported")
    return next(iter(given), ())
