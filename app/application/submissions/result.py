"""What an evaluation comes to: what Core is told, from the outcomes of its nodes and a pinned policy. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from app.domain.langgraph.submission_state import Outcomes
from app.domain.scoring import CaseGroup, CasesPassed, Criterion, Score, ScorePolicy, Unscored, Verdict
from app.domain.submission import Node

_FULL_UNTIL, _NONE_FROM = 1.5, 10.0


def result_of(came: Outcomes, policy: ScorePolicy) -> dict[str, Any]:
    """``final_scores`` and ``turn_scores``, as Core is told them; what is missing is null, with its reason."""
    turns = [_of_turn(entry) for entry in (came[Node.TURNS].value or {}).get("turns", [])]
    marks = (came[Node.PANEL].value or {}).get("marks", {})
    reason = came[Node.PANEL].reason or "not judged"
    points = {
        criterion: policy.points(Unscored(reason) if marks.get(criterion) is None else marks[criterion])
        for criterion in Criterion
    }
    holistic = _mean(list(points.values()))
    prompt = policy.prompt(holistic, turns, points[Criterion.R4])
    correctness = _correctness(came, policy)
    performance = _performance(came, policy, correctness)
    total = policy.total(prompt, correctness, performance)
    parts = {"prompt": prompt, "correctness": correctness, "performance": performance, "total": total}
    frozen = came[Node.FREEZE].value
    final = {
        "status": "SCORED" if isinstance(total, Score) else "PENDING_REVIEW",
        **{f"{name}_score": _number(part) for name, part in parts.items()},
        "grade": policy.grade(total) if isinstance(total, Score) else None,
        "components": {name: _component(part) for name, part in parts.items()},
        "policy": {"name": policy.name, "hash": policy.hash},
        "versions": {name: value for name, value in frozen.items() if name not in {"turns", "last_turn", "spoken"}},
        "test_cases": [_case(case) for case in (came[Node.TESTS].value or {}).get("cases", [])],
        "prompt": {"holistic": _number(holistic), "session_r4": _number(points[Criterion.R4])},
    }
    return {"final_scores": final, "turn_scores": _turn_scores(came)}


def _of_turn(entry: Mapping[str, Any]) -> Verdict:
    if entry["score"] is not None:
        return Score(entry["score"])
    return Unscored(entry["reason"] or "not judged", left_out=entry["left_out"])


def _turn_scores(came: Outcomes) -> dict[str, Any]:
    return {
        str(entry["turn"]): {
            "score": entry["score"],
            "intent": entry["intent"],
            "status": "left_out" if entry["left_out"] else "unscored" if entry["score"] is None else "scored",
            "reason": entry["reason"],
        }
        for entry in (came[Node.TURNS].value or {}).get("turns", [])
    }


def _correctness(came: Outcomes, policy: ScorePolicy) -> Verdict:
    tests = came[Node.TESTS]
    if tests.status != "ok":
        return Unscored(tests.reason or "the tests were not run")
    passed: dict[CaseGroup, CasesPassed | Unscored] = {}
    for group in CaseGroup:
        cases = [case for case in tests.value["cases"] if case["group"] == group.value]
        if any(case["verdict"] == "SE" for case in cases):
            passed[group] = Unscored("a test case could not be graded")
        elif cases:
            total = math.fsum(case["weight"] for case in cases)
            weight = math.fsum(case["weight"] for case in cases if case["verdict"] == "AC")
            passed[group] = CasesPassed(min(weight, total), total)
    return policy.correctness(passed)


def _performance(came: Outcomes, policy: ScorePolicy, correctness: Verdict) -> Verdict:
    tests, analysis = came[Node.TESTS], came[Node.ANALYSIS]
    if tests.status != "ok":
        return Unscored(tests.reason or "the tests were not run")
    measured = tests.value["performance"]
    ratio = measured["ratio"]
    time: Verdict = Unscored(measured["reason"] or "not measured")
    if ratio is not None:
        share = math.log(_NONE_FROM / ratio) / math.log(_NONE_FROM / _FULL_UNTIL)
        time = Score(100 * min(max(share, 0.0), 1.0))
    complexity: float | Unscored = Unscored(analysis.reason or "the code cannot be parsed")
    if analysis.status == "ok" and analysis.value["mean_complexity"] is not None:
        complexity = analysis.value["mean_complexity"]
    return policy.performance(time, complexity, correctness)


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    told = {name: case[name] for name in ("index", "group", "verdict", "memory_kb", "stdout_bytes", "stderr_bytes")}
    return told | {"time_ms": None if case["cpu_ms"] is None else round(case["cpu_ms"])}


def _component(verdict: Verdict) -> dict[str, Any]:
    is_scored = isinstance(verdict, Score)
    return {
        "status": "scored" if is_scored else "missing",
        "score": _number(verdict),
        "reason": verdict.reason if isinstance(verdict, Unscored) else None,
    }


def _number(verdict: Verdict) -> float | None:
    return verdict.value if isinstance(verdict, Score) else None


def _mean(verdicts: list[Verdict]) -> Verdict:
    for verdict in verdicts:
        if isinstance(verdict, Unscored):
            return verdict
    return Score(math.fsum(v.value for v in verdicts if isinstance(v, Score)) / len(verdicts))
