"""How far the submitted code is from an earlier version of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from app.infrastructure.analysis.functions import functions_of
from app.infrastructure.analysis.grammar import Parsed


def difference_of(earlier: Parsed, parsed: Parsed) -> dict[str, Any]:
    """Lines kept, added and removed, and what became of the functions.

    Lines are compared without the white space around them, blank ones not at all, and wherever they stand: one that
    was moved is kept. ``similarity`` is twice the kept lines by all lines of both, 0 to 1.
    """
    before, after = _lines(earlier.code), _lines(parsed.code)
    kept = (before & after).total()
    both = before.total() + after.total()
    old, new = functions_of(earlier), functions_of(parsed)
    old_names, new_names = ({each["name"] for each in found["functions"]} for found in (old, new))
    return {
        "lines_before": before.total(),
        "lines_after": after.total(),
        "kept": kept,
        "added": after.total() - kept,
        "removed": before.total() - kept,
        "similarity": round(2 * kept / both, 4) if both else 1.0,
        "functions_added": sorted(new_names - old_names),
        "functions_removed": sorted(old_names - new_names),
        "mean_complexity_before": old["mean"],
        "mean_complexity_after": new["mean"],
    }


def _lines(code: str) -> Counter[str]:
    return Counter(line.strip() for line in code.splitlines() if line.strip())
