"""The service's side of static analysis: starts the process in which parsers run and makes a result of what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from app.domain.code_patterns import ANALYSED_LANGUAGES, CodePattern, PatternError
from app.domain.documents import DocumentProblem
from app.infrastructure.analysis.child import Broken, run_child
from app.infrastructure.analysis.errors import AnalyserUnavailableError, AnalysisFailedError
from app.infrastructure.analysis.tools import OWN_VERSION, installed

TIMEOUT_S: Final = 60.0
"""For one analysis on the wall; the processor's time has its own limit (`limits.CPU_S`)."""
LONGEST_CODE: Final = 1_500_000
"""Characters."""

_NEEDED: Final = ("structure", "sanitised", "functions")
_FURTHER: Final = ("difference", "patterns", "lint", "cognitive")
"""Without one of these there is a result still, which says in ``gaps`` what it lacks and why."""
_BY_HAND: Final = "Have a person look at this code."


async def analyse(
    language: str,
    code: str,
    earlier_code: str | None = None,
    patterns: Sequence[CodePattern] = (),
    timeout: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Analyse a program of one file. The same arguments and tools give the same result.

    Args:
        language: one of `ANALYSED_LANGUAGES`.
        code: any text at all.
        earlier_code: an earlier version in the same language, to be compared with.
        patterns: a problem's; those for other languages are left out.
        timeout: seconds on the wall for all of it.

    Returns:
        JSON as docs/evaluation.md lists it. What is wrong with the code is in it (``syntax_ok``,
        ``complexity_reason``); what one of the lesser tools could not do is in ``gaps``.

    Raises:
        AnalyserUnavailableError: a tool is missing, or the machine's fault; the same analysis may succeed later.
        AnalysisFailedError: this code breaks the analyser every time.
        ValueError: the language is none that is analysed.
    """
    if language not in ANALYSED_LANGUAGES:
        raise ValueError(f"language must be one of {', '.join(ANALYSED_LANGUAGES)}")
    tools = installed(language)
    if len(code) > LONGEST_CODE:
        problem = f"The code is longer than {LONGEST_CODE} characters."
        raise AnalysisFailedError(problem, _BY_HAND, stage="structure", partial={})
    earlier = earlier_code if earlier_code is not None and len(earlier_code) <= LONGEST_CODE else None
    request = {"language": language, "code": code, "earlier": earlier, "patterns": _told(patterns)}
    values, gaps = await _all_stages(request, timeout)
    if earlier_code is not None and earlier is None:
        gaps.append({"part": "difference", "reason": f"the earlier version has more than {LONGEST_CODE} characters"})
    return _result(language, values, gaps, {**tools, "turnstone": OWN_VERSION})


async def check_patterns(patterns: Sequence[CodePattern], timeout: float = TIMEOUT_S) -> None:
    """Ask ast-grep whether it can use these patterns: to be asked before a problem is accepted.

    Raises:
        PatternError: it cannot; with what it says of each.
        AnalyserUnavailableError: it cannot be asked.
    """
    if not patterns:
        return
    installed()
    request = {"language": "python", "code": "", "earlier": None, "patterns": _told(patterns)}
    values, broken = await run_child(request, ("refused",), timeout)
    if broken is not None:
        raise PatternError([DocumentProblem("patterns", f"break ast-grep: {broken.reason}")])
    refused: dict[str, str] = values["refused"]
    if refused:
        raise PatternError(
            [DocumentProblem(f"patterns[{at}].rule", f"ast-grep says: {told}") for at, told in refused.items()]
        )


async def self_test() -> dict[str, str]:
    """Names and versions of all tools, after a small analysis with each grammar has shown that they work.

    Raises:
        AnalysisError: one is missing, or does not work here.
    """
    found = installed()
    for language in ANALYSED_LANGUAGES:
        gaps = (await analyse(language, ""))["gaps"]
        if gaps:
            problem = f"The analyser's part {gaps[0]['part']} does not work for {language}: {gaps[0]['reason']}."
            raise AnalyserUnavailableError(problem, "Install the packages anew: pip install 'turnstone[judge]'.")
    return found


async def _all_stages(request: Mapping[str, Any], timeout: float) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The stages' values, and which of the further ones broke. After one of these another process goes on."""
    values: dict[str, Any] = {}
    gaps: list[dict[str, str]] = []
    left: tuple[str, ...] = (*_NEEDED, *_FURTHER)
    ends = time.monotonic() + timeout
    while left:
        done, broken = await run_child(request, left, ends - time.monotonic())
        values |= done
        if broken is None:
            break
        if broken.stage in _NEEDED and not _is_unmeasurable(broken, values):
            problem = f"The analyser broke on this code: {broken.reason}."
            raise AnalysisFailedError(problem, _BY_HAND, stage=broken.stage, partial=values)
        gaps.append({"part": broken.stage, "reason": broken.reason})
        left = left[left.index(broken.stage) + 1 :]
    return values, gaps


def _is_unmeasurable(broken: Broken, values: dict[str, Any]) -> bool:
    """Whether it is code with a syntax error that could not be measured, which has no complexity anyway."""
    if broken.stage != "functions" or values["structure"]["syntax"]["ok"] is not False:
        return False
    values["functions"] = {"functions": [], "count": 0, "mean": None, "highest": None}
    return True


def _told(patterns: Sequence[CodePattern]) -> list[dict[str, Any]]:
    return [
        {
            "id": pattern.id,
            "language": pattern.language,
            "message": pattern.message,
            "severity": pattern.severity,
            "matcher": pattern.matcher,
        }
        for pattern in patterns
    ]


def _result(
    language: str, values: Mapping[str, Any], gaps: list[dict[str, str]], tools: Mapping[str, str]
) -> dict[str, Any]:
    syntax, functions, lint = values["structure"]["syntax"], values["functions"], values.get("lint")
    ok, reason = syntax["ok"], syntax["reason"]
    if lint is not None and lint["syntax"] is not None:
        # Ruff knows the newest Python, the grammar what was there when it was made.
        ok = lint["syntax"]
        reason = None if ok else (reason or f"syntax error in line {_first_error(lint)}")
    is_measured = ok is not False and functions["mean"] is not None
    return {
        "language": language,
        "syntax_ok": ok,
        "syntax_problems": [] if ok else syntax["problems"],
        "syntax_reason": reason if ok is not True else None,
        "functions": functions["functions"],
        "function_count": functions["count"],
        "mean_complexity": functions["mean"] if is_measured else None,
        "complexity_reason": None if is_measured else reason or "there is no code",
        "measured_complexity": functions["mean"],
        "highest_complexity": functions["highest"],
        "cognitive": values.get("cognitive"),
        "lines": values["structure"]["lines"],
        "duplication": values["structure"]["duplication"],
        "lint": lint["messages"] if lint is not None else None,
        "lint_count": lint["count"] if lint is not None else None,
        "patterns": values.get("patterns"),
        "difference": values.get("difference"),
        "sanitised": values["sanitised"],
        "gaps": gaps,
        "tools": dict(tools),
    }


def _first_error(lint: Mapping[str, Any]) -> int:
    lines = [message["line"] for message in lint["messages"] if message["rule"] == "invalid-syntax"]
    return min(lines, default=1)
