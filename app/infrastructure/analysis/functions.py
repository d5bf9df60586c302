"""Complexity: cyclomatic by lizard for every language, and cognitive by complexipy for Python."""

from __future__ import annotations

from typing import Any, Final

import lizard

from app.infrastructure.analysis.grammar import Parsed
from app.infrastructure.analysis.sanitising import COMMENTS, without_comments

MODULE: Final = "<module>"
"""Stands for the code outside of functions."""
_ENDINGS: Final = {"python": "py", "javascript": "js", "java": "java", "c": "c", "cpp": "cpp", "go": "go"}
_SHOWN: Final = 500
_LONGEST_NAME: Final = 200


def functions_of(parsed: Parsed) -> dict[str, Any]:
    """Cyclomatic complexity of each function and their mean.

    The code outside of functions counts as one function, `MODULE`, where it is all there is or branches itself; else a
    program that does its work there would be measured by its smallest helper. Comments are not read: lizard would let
    them forgive a function.

    Returns:
        ``functions``: the first ones, with ``name``, ``start`` and ``end`` (lines), ``complexity`` (from 1) and
        ``lines`` (without blank ones); ``count``, ``mean`` (null without any code) and ``highest`` of all.
    """
    if all(leaf.kind in COMMENTS for leaf in parsed.leaves):
        return {"functions": [], "count": 0, "mean": None, "highest": None}
    found, module = _measured(parsed)
    if not found or module["complexity"] > 1:
        found.append(module)
    complexities = [function["complexity"] for function in found]
    return {
        "functions": found[:_SHOWN],
        "count": len(found),
        "mean": sum(complexities) / len(complexities),
        "highest": max(complexities),
    }


def cognitive_of(parsed: Parsed) -> dict[str, Any]:
    """Cognitive complexity of Python's functions and of the code outside of them; null with a reason if unparsable."""
    from complexipy import code_complexity

    try:
        found = code_complexity(_plain(parsed), check_script=True, no_ignore=True)
    except ValueError:
        return {"functions": [], "mean": None, "reason": "complexipy cannot parse it"}
    counted = [each for each in found.functions if each.complexity or each.name != MODULE or len(found.functions) == 1]
    functions = [
        {
            "name": each.name[:_LONGEST_NAME],
            "start": each.line_start,
            "end": each.line_end,
            "complexity": each.complexity,
        }
        for each in counted
    ]
    mean = sum(each.complexity for each in counted) / len(counted) if counted else None
    return {"functions": functions[:_SHOWN], "mean": mean, "reason": None if functions else "there are no functions"}


def _measured(parsed: Parsed) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All functions, and the code outside of them as one. What lizard raises goes on: its own entry hides it."""
    name = f"code.{_ENDINGS[parsed.language]}"
    code = _plain(parsed)
    context = lizard.FileInfoBuilder(name)
    reader = lizard.get_reader_for(name)(context)
    tokens = reader.generate_tokens(code)
    for processor in lizard.get_extensions([]):
        tokens = processor(tokens, reader)
    for _ in reader(tokens, reader):
        pass
    functions = [
        {
            "name": each.name[:_LONGEST_NAME],
            "start": each.start_line,
            "end": each.end_line,
            "complexity": each.cyclomatic_complexity,
            "lines": each.nloc,
        }
        for each in context.fileinfo.function_list
    ]
    outside = context.global_pseudo_function
    lines = code.count("\n") + (not code.endswith("\n"))
    module = {
        "name": MODULE,
        "start": 1,
        "end": lines,
        "complexity": outside.cyclomatic_complexity,
        "lines": max(1, context.fileinfo.nloc - sum(each["lines"] for each in functions)),
    }
    return functions, module


def _plain(parsed: Parsed) -> str:
    """Without comments, an order mark at the beginning, and the line ends of another system."""
    return without_comments(parsed).removeprefix("\ufeff").replace("\r\n", "\n")
