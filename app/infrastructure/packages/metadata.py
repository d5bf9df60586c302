"""What ``problem.yaml`` says, in its older form (``legacy``) and in the newer ones (``2023-07`` and ``2025-09``)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.infrastructure.packages.files import PackageFiles
from app.infrastructure.packages.findings import Findings

FILE = "problem.yaml"
_OLDER = ("legacy", "legacy-icpc")
_NEWER = ("2023-07-draft", "2023-07", "2025-09-draft", "2025-09", "draft")
_READ = {
    *("problem_format_version", "type", "name", "limits", "validation", "validator_flags", "languages", "constants"),
}
_SAYS_NOTHING_OF_GRADING = {
    *("uuid", "version", "author", "credits", "source", "source_url", "license", "rights_owner", "keywords"),
    *("embargo_until", "allow_file_writing"),
}
_LIMITS = {"memory", "output", "time_limit"}
_LIMITS_OF_AUTHORS = {"time_multiplier", "time_multipliers", "time_safety_margin", "time_resolution"}
_UNSUPPORTED_TYPES = {"interactive", "multi-pass", "submit-answer"}
DEFAULT_TIME_S = 2.0
_DEFAULT_MEMORY_MB = 2048
_DEFAULT_OUTPUT_MB = 8
_LANGUAGES = {
    "python3": "python",
    "python": "python",
    "pypy3": "python",
    "java": "java",
    "c": "c",
    "cpp": "cpp",
    "javascript": "javascript",
    "nodejs": "javascript",
    "go": "go",
}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a package says of itself.

    Attributes:
        newer: whether it is of one of the newer forms, whose folders and files have other names.
        names: by language; ``""`` where it does not say of which.
        scoring: whether cases have points.
        custom: whether it brings a checker of its own.
        flags: arguments of the checker.
        time_s: CPU seconds of one run; ``None`` where the package leaves them to whoever imports it.
        languages: in which it may be solved; empty: in any.
        constants: what stands for ``{{name}}`` in statements and programs.
    """

    newer: bool
    names: Mapping[str, str]
    scoring: bool
    custom: bool
    flags: tuple[str, ...]
    time_s: float | None
    memory_mb: int
    output_mb: int
    languages: tuple[str, ...]
    constants: Mapping[str, str]

    def filled_in(self, text: str) -> str:
        """The text with the constants that it names."""
        return re.sub(r"\{\{(\w+)\}\}", lambda found: self.constants.get(found[1], found[0]), text)


def read_metadata(files: PackageFiles, findings: Findings) -> Metadata:
    """Read it; what is not as it should be, or not supported, is noted."""
    if FILE not in files:
        findings.fault(FILE, "is missing: this is no problem package")
        findings.finish()
    found = findings.mapping(files, FILE)
    version = str(found.get("problem_format_version", "legacy"))
    if version not in (*_OLDER, *_NEWER):
        findings.fault(
            FILE, f"problem_format_version {version[:40]} is not known; there is {', '.join(_OLDER + _NEWER)}"
        )
    for key in found.keys() - _READ - _SAYS_NOTHING_OF_GRADING:
        findings.warn(FILE, f"{key[:64]} is not imported")
    scoring = _read_type(found, findings)
    newer = version in _NEWER
    custom = newer and bool(files.under("output_validator"))
    if not newer:
        custom = _read_validation(found, findings)
    limits = found.get("limits") or {}
    if not isinstance(limits, dict):
        findings.fault(FILE, "limits must be a mapping")
        limits = {}
    for key in limits.keys() - _LIMITS - _LIMITS_OF_AUTHORS:
        findings.warn(FILE, f"limits.{str(key)[:64]} is not imported: the service's own counts")
    return Metadata(
        newer=newer,
        names=_names(found.get("name")),
        scoring=scoring,
        custom=custom,
        flags=tuple(str(found.get("validator_flags") or "").split()),
        time_s=_time(limits, files, findings),
        memory_mb=round(_number(limits, "memory", findings) or _DEFAULT_MEMORY_MB),
        output_mb=round(_number(limits, "output", findings) or _DEFAULT_OUTPUT_MB),
        languages=_languages(found.get("languages", "all"), findings),
        constants={str(key): str(value) for key, value in _mapping(found.get("constants")).items()},
    )


def _mapping(value: object) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else {}


def _read_type(found: Mapping[str, Any], findings: Findings) -> bool:
    given = found.get("type", "pass-fail")
    types = {str(one) for one in (given if isinstance(given, list) else str(given).split())}
    for kind in sorted(types & _UNSUPPORTED_TYPES):
        findings.fault(FILE, f"{kind} problems are not supported: a program is given its input, and answers once")
    if unknown := types - _UNSUPPORTED_TYPES - {"pass-fail", "scoring"}:
        findings.fault(FILE, f"type {', '.join(sorted(unknown))[:64]} is not known")
    return "scoring" in types


def _read_validation(found: Mapping[str, Any], findings: Findings) -> bool:
    words = str(found.get("validation", "default")).split()
    if not words or words[0] not in ("default", "custom"):
        findings.fault(FILE, "validation must begin with default or custom")
    for word in words[1:]:
        if word == "interactive":
            findings.fault(
                FILE, "interactive problems are not supported: a program is given its input, and answers once"
            )
        elif word == "score":
            findings.fault(FILE, "checkers that give points are not supported: a case passes or does not")
        else:
            findings.fault(FILE, f"validation {word[:40]} is not known")
    return words[:1] == ["custom"]


def _names(given: object) -> Mapping[str, str]:
    if isinstance(given, dict):
        return {str(language): str(name).strip() for language, name in given.items()}
    return {} if given is None else {"": str(given).strip()}


def _number(limits: Mapping[Any, Any], key: str, findings: Findings) -> float | None:
    value = limits.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        findings.fault(FILE, f"limits.{key} must be a number above 0")
        return None
    return float(value)


def _time(limits: Mapping[Any, Any], files: PackageFiles, findings: Findings) -> float | None:
    """The time limit: of problem.yaml, or of the files that judging systems put beside it."""
    if (given := _number(limits, "time_limit", findings)) is not None:
        return given
    for path, pattern in ((".timelimit", r"\s*([0-9.]+)\s*"), ("domjudge-problem.ini", r"timelimit\s*=\s*'?([0-9.]+)")):
        if path in files and (found := re.search(pattern, findings.text(files, path))) is not None:
            try:
                return float(found[1])
            except ValueError:
                findings.warn(path, "holds no time limit")
    return None


def _languages(given: object, findings: Findings) -> tuple[str, ...]:
    if given in ("all", ["all"]):
        return ()
    codes = given if isinstance(given, list) else str(given).split()
    known = [_LANGUAGES[str(code)] for code in codes if str(code) in _LANGUAGES]
    if others := sorted(str(code)[:20] for code in codes if str(code) not in _LANGUAGES):
        findings.warn(FILE, f"languages that are not supported: {', '.join(others[:10])}")
    if not known:
        findings.fault(FILE, "none of its languages is supported")
    return tuple(dict.fromkeys(known))
