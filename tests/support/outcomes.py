"""What the nodes of a submission's evaluation bring, as they store it, in a few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.domain.scoring import CaseGroup, Criterion, Intent, Score, ScorePolicy, Unscored
from app.domain.submission import Node, Outcome

GROUPS = {"S": CaseGroup.SAMPLE, "P": CaseGroup.PUBLIC, "X": CaseGroup.PRIVATE}
INTENTS = {intent.value[0]: intent for intent in Intent}
FROZEN: dict[str, Any] = {
    "last_turn": 3,
    "turns": [1, 2, 3],
    "code_hash": "c" * 64,
    "language": "python",
    "exam_version": 1,
    "problem_version": 1,
    "rubric": "a" * 64,
    "judge_prompt": "b" * 64,
    "panel_prompt": "d" * 64,
    "review_prompt": "e" * 64,
    "judge_model": "scripted",
    "samples": 3,
    "spoken": "en",
    "hold_scores": False,
}


def steps(
    policy: ScorePolicy,
    turns: Iterable[str] = ("C 4 4 4",),
    marks: str | None = "4 4 4 4",
    cases: str | None = "S:AC P:AC X:AC",
    ratio: float | None = 1.0,
    complexity: float | None = 3.0,
) -> dict[Node, Outcome]:
    """Every node's outcome; ``None``: the part is missing."""
    entries = [_turn(policy, number, said) for number, said in enumerate(turns, start=1)]
    gaps = [entry for entry in entries if entry["score"] is None and not entry["left_out"]]
    return {
        Node.FREEZE: Outcome("ok", {**FROZEN, "policy": policy.hash}),
        Node.TURNS: Outcome.missing("a gap", {"turns": entries}) if gaps else Outcome("ok", {"turns": entries}),
        Node.TESTS: Outcome.missing("the runner is away") if cases is None else Outcome("ok", tests(cases, ratio)),
        Node.ANALYSIS: Outcome.missing("the analyser is away")
        if complexity is None
        else Outcome("ok", {"mean_complexity": complexity, "tools": {"lizard": "1.17"}}),
        Node.PANEL: Outcome.missing("the judge is away") if marks is None else Outcome("ok", panel(marks)),
    }


def panel(marks: str) -> dict[str, Any]:
    """Medians as three judges of one mind give them."""
    by_name = dict(zip(Criterion, map(float, marks.split()), strict=True))
    return {"judges": [], "marks": {name.value: mark for name, mark in by_name.items()}, "spread": 0, "reason": None}


def tests(cases: str, ratio: float | None) -> dict[str, Any]:
    """Cases such as ``S:AC P:WA*3``: group, verdict, weight."""
    reason = None if ratio is not None else "the reference is away"
    return {
        "compile": {"status": "ok", "message": ""},
        "cases": [_case(index, said) for index, said in enumerate(cases.split())],
        "performance": {"ratio": ratio, "reason": reason, "reference_language": "python"},
        "isolation": {"backend": "bubblewrap", "level": "cgroup2"},
    }


def _case(index: int, said: str) -> dict[str, Any]:
    group, _, rest = said.partition(":")
    verdict, _, weight = rest.partition("*")
    return {
        "index": index,
        "name": f"case-{index}",
        "group": GROUPS[group].value,
        "weight": float(weight or 1),
        "verdict": verdict,
        "cause": "" if verdict == "AC" else "as it came",
        "cpu_ms": 12.4,
        "wall_ms": 20.0,
        "memory_kb": 9000,
        "stdout_bytes": 2,
        "stderr_bytes": 0,
    }


def _turn(policy: ScorePolicy, number: int, said: str) -> dict[str, Any]:
    """``C 3 4 5`` (an intent's marks), ``refused``, ``pasted``, ``missing`` or ``=72`` (set by a person)."""
    entry: dict[str, Any] = {"turn": number, "intent": None, "score": None, "left_out": False, "reason": None}
    entry |= {"marks": {}, "override": None, "labels": [], "withheld": []}
    if said.startswith("="):
        return entry | {"score": float(said[1:]), "override": float(said[1:])}
    if said == "missing":
        return entry | {"reason": "judge unavailable"}
    if said in {"refused", "pasted"}:
        verdict = policy.refused() if said == "refused" else policy.pasted_problem()
    else:
        letter, *values = said.split()
        intent = INTENTS[letter]
        marks: Mapping[Criterion, float] = dict(zip(policy.criteria_for(intent), map(float, values), strict=True))
        verdict = policy.turn(intent, marks)
        entry |= {"intent": intent.value, "marks": {name.value: mark for name, mark in marks.items()}}
    if isinstance(verdict, Unscored):
        return entry | {"reason": verdict.reason, "left_out": verdict.left_out}
    assert isinstance(verdict, Score)
    return entry | {"score": verdict.value}
