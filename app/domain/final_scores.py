"""A submission's scores from what its evaluation found: a pure function of the evidence and a pinned policy.

The evidence is what the nodes of the evaluation have stored (docs/submissions.md has their form). A part that is
missing leaves what is made of it without a score, and the submission to people; it is never a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domain.scoring import CaseGroup, CasesPassed, Criterion, Score, ScorePolicy, Unscored, Verdict
from app.domain.submission import Node, Outcome

Component = Literal["prompt", "correctness", "performance", "total"]
COMPONENTS: Final[tuple[Component, ...]] = ("prompt", "correctness", "performance", "total")
"""What a person may set a score for."""
_NOT_TOLD: Final = frozenset({"turns", "last_turn", "spoken", "hold_scores"})
"""What is frozen and says nothing of how the scores came to be."""


@dataclass(frozen=True, slots=True)
class Override:
    """A score (0 to 100) that a person has set in the machine's place, and why."""

    score: float
    reason: str
    person: str


@dataclass(frozen=True, slots=True)
class TurnFound:
    """One prompt: its number, its score, and what was said of it."""

    turn: int
    verdict: Verdict
    intent: str | None = None
    is_overridden: bool = False

    def to_json(self) -> dict[str, Any]:
        """As Core is told it."""
        scored = "overridden" if self.is_overridden else "ok"
        unscored = self.verdict if isinstance(self.verdict, Unscored) else None
        return {
            "score": _number(self.verdict),
            "intent": self.intent,
            "status": scored if unscored is None else "left_out" if unscored.left_out else "missing",
            "reason": None if unscored is None else unscored.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the formulas of a policy are given.

    Attributes:
        turns: every prompt of the conversation, in order.
        marks: the panel's, of the conversation as a whole; 1 to 5.
        cases: the weights that passed, of each group.
        ratio: processor time as a multiple of the reference's.
        complexity: mean cyclomatic complexity of the code's functions.
    """

    turns: Sequence[TurnFound] | Unscored
    marks: Mapping[Criterion, float | Unscored]
    cases: Mapping[CaseGroup, CasesPassed | Unscored]
    ratio: float | Unscored
    complexity: float | Unscored


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalScores:
    """The scores, and what they were made of. ``machine`` has those a person has set another one beside."""

    holistic: Verdict
    turn_mean: Verdict
    session_r4: Verdict
    running_time: Verdict
    prompt: Verdict
    correctness: Verdict
    performance: Verdict
    total: Verdict
    grade: str | None
    machine: Mapping[Component, Verdict]


def final_scores(
    policy: ScorePolicy, evidence: Evidence, overrides: Mapping[Component, Override] | None = None
) -> FinalScores:
    """Make the scores. What a person has set counts in the machine's place, in the total too."""
    set_by_people = overrides or {}
    machine: dict[Component, Verdict] = {}

    def counted(component: Component, verdict: Verdict) -> Verdict:
        if component not in set_by_people:
            return verdict
        machine[component] = verdict
        return Score(set_by_people[component].score)

    found = evidence.turns
    turns = found if isinstance(found, Unscored) else {each.turn: each.verdict for each in found}
    holistic = policy.holistic(evidence.marks)
    session_r4 = policy.points(evidence.marks.get(Criterion.R4, Unscored("not judged")))
    prompt = counted("prompt", policy.prompt(holistic, turns, session_r4))
    correctness = counted("correctness", policy.correctness(evidence.cases))
    time = evidence.ratio if isinstance(evidence.ratio, Unscored) else policy.running_time(evidence.ratio)
    performance = counted("performance", policy.performance(time, evidence.complexity, correctness))
    total = counted("total", policy.total(prompt, correctness, performance))
    return FinalScores(
        holistic=holistic,
        turn_mean=policy.turn_mean(turns),
        session_r4=session_r4,
        running_time=time,
        prompt=prompt,
        correctness=correctness,
        performance=performance,
        total=total,
        grade=policy.grade(total) if isinstance(total, Score) else None,
        machine=machine,
    )


def aggregate(
    policy: ScorePolicy, steps: Mapping[Node, Outcome], overrides: Mapping[Component, Override] | None = None
) -> dict[str, Any]:
    """``final_scores`` and ``turn_scores`` as Core is told them, from the outcomes of an evaluation's nodes.

    No score is rounded but where the policy says so. What has no score is null, and its component says why.
    """
    evidence = evidence_of(steps)
    scores = final_scores(policy, evidence, overrides)
    parts: dict[Component, Verdict] = {
        "prompt": scores.prompt,
        "correctness": scores.correctness,
        "performance": scores.performance,
        "total": scores.total,
    }
    set_by_people = overrides or {}
    final = {
        "status": "SCORED" if isinstance(scores.total, Score) else "PENDING_REVIEW",
        **{f"{name}_score": _number(verdict) for name, verdict in parts.items()},
        "grade": scores.grade,
        "components": {
            name: _component(verdict, set_by_people.get(name), scores.machine.get(name))
            for name, verdict in parts.items()
        },
        "prompt": {
            "holistic": _number(scores.holistic),
            "turn_mean": _number(scores.turn_mean),
            "session_r4": _number(scores.session_r4),
        },
        "policy": {"name": policy.name, "hash": policy.hash},
        "versions": _versions(steps),
        "test_cases": [_case(case) for case in _value(steps, Node.TESTS).get("cases") or ()],
    }
    found = evidence.turns
    turns = {} if isinstance(found, Unscored) else {str(each.turn): each.to_json() for each in found}
    return {"final_scores": final, "turn_scores": turns}


def _component(verdict: Verdict, override: Override | None, machine: Verdict | None) -> dict[str, Any]:
    """A part's status, score and reason; the machine's own, where a person has set another one."""
    if override is None:
        reason = verdict.reason if isinstance(verdict, Unscored) else None
        return {"status": "ok" if reason is None else "missing", "score": _number(verdict), "reason": reason}
    return {
        "status": "overridden",
        "score": override.score,
        "reason": override.reason,
        "person": override.person,
        "machine_score": None if machine is None else _number(machine),
    }


def _versions(steps: Mapping[Node, Outcome]) -> dict[str, Any]:
    """What the scores were made by, as far as it is known."""
    frozen = {name: value for name, value in _value(steps, Node.FREEZE).items() if name not in _NOT_TOLD}
    isolation = _value(steps, Node.TESTS).get("isolation") or {}
    return frozen | {
        "isolation": {name: isolation.get(name) for name in ("backend", "level")} if isolation else None,
        "toolchains": (steps[Node.TESTS].versions.get("toolchains") if Node.TESTS in steps else None) or {},
        "tools": _value(steps, Node.ANALYSIS).get("tools") or {},
    }


def _case(case: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of a test case: never what goes in or should come out."""
    told = ("index", "group", "verdict", "cause", "memory_kb", "stdout_bytes", "stderr_bytes")
    time_ms = case.get("cpu_ms")
    return {name: case.get(name) for name in told} | {"time_ms": None if time_ms is None else round(time_ms)}


def _value(steps: Mapping[Node, Outcome], node: Node) -> Mapping[str, Any]:
    return (steps[node].value if node in steps else None) or {}


def _number(verdict: Verdict) -> float | None:
    return verdict.value if isinstance(verdict, Score) else None


def evidence_of(steps: Mapping[Node, Outcome]) -> Evidence:
    """Read the outcomes of an evaluation's nodes."""
    tests = steps.get(Node.TESTS)
    return Evidence(
        turns=_turns(steps.get(Node.TURNS)),
        marks=_marks(steps.get(Node.PANEL)),
        cases=_cases(tests),
        ratio=_ratio(tests),
        complexity=_complexity(steps.get(Node.ANALYSIS), steps.get(Node.TESTS)),
    )


def _found(outcome: Outcome | None, key: str, part: str) -> Mapping[str, Any] | Unscored:
    """What an outcome holds under ``key``, or why there is nothing to read in it.

    One that is missing may hold a part of what was to be found: some prompts, some test cases.
    """
    if outcome is None:
        return Unscored(f"{part} was not done")
    value: Mapping[str, Any] = outcome.value or {}
    if value.get(key) is not None:
        return value
    return Unscored(outcome.reason or f"{part} is missing")


def _turns(outcome: Outcome | None) -> list[TurnFound] | Unscored:
    found = _found(outcome, "turns", "the judgement of the prompts")
    return found if isinstance(found, Unscored) else [_turn(entry) for entry in found["turns"]]


def _turn(entry: Mapping[str, Any]) -> TurnFound:
    if entry.get("override") is not None:
        return TurnFound(entry["turn"], Score(entry["override"]), entry.get("intent"), is_overridden=True)
    if entry.get("score") is not None:
        return TurnFound(entry["turn"], Score(entry["score"]), entry.get("intent"))
    reason = entry.get("reason") or "not judged"
    return TurnFound(entry["turn"], Unscored(reason, left_out=bool(entry.get("left_out"))), entry.get("intent"))


def _marks(outcome: Outcome | None) -> dict[Criterion, float | Unscored]:
    found = _found(outcome, "marks", "the judgement of the session")
    if isinstance(found, Unscored):
        return dict.fromkeys(Criterion, found)
    marks, unmarked = found["marks"], Unscored(found.get("reason") or "no judge could mark it")
    return {criterion: unmarked if marks.get(criterion) is None else float(marks[criterion]) for criterion in Criterion}


def _cases(outcome: Outcome | None) -> dict[CaseGroup, CasesPassed | Unscored]:
    """The weights of each group. A case that failed by our own fault leaves its group without a figure."""
    value = _found(outcome, "cases", "the run of the tests")
    if isinstance(value, Unscored):
        return dict.fromkeys(CaseGroup, value)
    found: dict[CaseGroup, CasesPassed | Unscored] = {}
    for group in CaseGroup:
        cases = [case for case in value["cases"] if case["group"] == group]
        broken = [case for case in cases if case["verdict"] == "SE"]
        if broken:
            cause = broken[0].get("cause") or "no reason is known"
            found[group] = Unscored(f"case {broken[0]['index']} could not be run: {cause}")
        elif cases:
            passed = math.fsum(case["weight"] for case in cases if case["verdict"] == "AC")
            found[group] = CasesPassed(passed, math.fsum(case["weight"] for case in cases))
    return found


def _ratio(outcome: Outcome | None) -> float | Unscored:
    value = _found(outcome, "performance", "the measurement")
    if isinstance(value, Unscored):
        return value
    measured = value["performance"]
    ratio = measured.get("ratio")
    return Unscored(measured.get("reason") or "not measured") if ratio is None else float(ratio)


def _complexity(outcome: Outcome | None, tests: Outcome | None) -> float | Unscored:
    """The mean complexity. Code that the grammar cannot read, and that passes test cases, is newer than the grammar."""
    value = _found(outcome, "mean_complexity", "the static analysis")
    if not isinstance(value, Unscored):
        return float(value["mean_complexity"])
    stored = (outcome.value if outcome is not None else None) or {}
    if stored.get("measured_complexity") is not None and _passes_any(tests):
        return float(stored["measured_complexity"])
    return Unscored(stored["complexity_reason"]) if stored.get("complexity_reason") else value


def _passes_any(tests: Outcome | None) -> bool:
    cases = ((tests.value if tests is not None else None) or {}).get("cases") or ()
    return any(case["verdict"] == "AC" for case in cases)
