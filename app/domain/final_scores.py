"""A submission's scores from what its evaluation found: a pure function of the evidence and a pinned policy.

The evidence is what the nodes of the evaluation have stored (docs/submissions.md has their form). A part that is
missing leaves what is made of it without a score, and the submission to people; it is never a zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.domain.scoring import CaseGroup, CasesPassed, Criterion, Score, ScorePolicy, Unscored, Verdict

Outcome = Mapping[str, Any]
"""What came of one node: ``status`` (``ok``, ``missing``, ``skipped``), ``reason``, ``value`` and more."""
Component = Literal["prompt", "correctness", "performance", "total"]
COMPONENTS: Final[tuple[Component, ...]] = ("prompt", "correctness", "performance", "total")
"""What a person may set a score for."""


@dataclass(frozen=True, slots=True)
class TurnFound:
    """One prompt: its number, its score, and what was said of it."""

    turn: int
    verdict: Verdict
    intent: str | None = None
    is_overridden: bool = False


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

    turns: Sequence[TurnFound]
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


def evidence_of(steps: Mapping[str, Outcome]) -> Evidence:
    """Read the outcomes of an evaluation's nodes, by the nodes' names."""
    return Evidence(
        turns=_turns(steps.get("turns")),
        marks=_marks(steps.get("panel")),
        cases=_cases(steps.get("tests")),
        ratio=_ratio(steps.get("tests")),
        complexity=_complexity(steps.get("analysis")),
    )


def final_scores(
    policy: ScorePolicy, evidence: Evidence, overrides: Mapping[Component, float] | None = None
) -> FinalScores:
    """Make the scores. What a person has set (0 to 100) counts in the machine's place, in the total too."""
    set_by_people = overrides or {}
    machine: dict[Component, Verdict] = {}

    def counted(component: Component, verdict: Verdict) -> Verdict:
        if component not in set_by_people:
            return verdict
        machine[component] = verdict
        return Score(set_by_people[component])

    turns = [found.verdict for found in evidence.turns]
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


def _missing(outcome: Outcome | None, part: str) -> Unscored | None:
    """Why there is nothing to read in an outcome; ``None`` where there is."""
    if outcome is None:
        return Unscored(f"{part} was not done")
    if outcome["status"] != "ok":
        return Unscored(outcome.get("reason") or f"{part} is missing")
    return None


def _turns(outcome: Outcome | None) -> list[TurnFound]:
    if (missing := _missing(outcome, "the judgement of the prompts")) is not None:
        return [TurnFound(0, missing)]
    assert outcome is not None
    return [_turn(entry) for entry in outcome["value"]["turns"]]


def _turn(entry: Mapping[str, Any]) -> TurnFound:
    if entry.get("override") is not None:
        return TurnFound(entry["turn"], Score(entry["override"]), entry.get("intent"), is_overridden=True)
    if entry.get("score") is not None:
        return TurnFound(entry["turn"], Score(entry["score"]), entry.get("intent"))
    reason = entry.get("reason") or "not judged"
    return TurnFound(entry["turn"], Unscored(reason, left_out=bool(entry.get("left_out"))), entry.get("intent"))


def _marks(outcome: Outcome | None) -> dict[Criterion, float | Unscored]:
    if (missing := _missing(outcome, "the judgement of the session")) is not None:
        return dict.fromkeys(Criterion, missing)
    assert outcome is not None
    marks = outcome["value"]["marks"]
    return {
        criterion: Unscored("no judge could mark it") if marks.get(criterion) is None else float(marks[criterion])
        for criterion in Criterion
    }


def _cases(outcome: Outcome | None) -> dict[CaseGroup, CasesPassed | Unscored]:
    """The weights of each group. A case that failed by our own fault leaves its group without a figure."""
    if (missing := _missing(outcome, "the run of the tests")) is not None:
        return {CaseGroup.PUBLIC: missing, CaseGroup.PRIVATE: missing}
    assert outcome is not None
    found: dict[CaseGroup, CasesPassed | Unscored] = {}
    for case in outcome["value"]["cases"]:
        group = CaseGroup(case["group"])
        before = found.get(group, CasesPassed(0, 0))
        if isinstance(before, Unscored):
            continue
        if case["verdict"] == "SE":
            found[group] = Unscored(
                f"case {case['index']} could not be run: {case.get('cause') or 'no reason is known'}"
            )
            continue
        weight = float(case["weight"])
        passed = weight if case["verdict"] == "AC" else 0.0
        found[group] = CasesPassed(before.passed + passed, before.total + weight)
    return found


def _ratio(outcome: Outcome | None) -> float | Unscored:
    if (missing := _missing(outcome, "the measurement")) is not None:
        return missing
    assert outcome is not None
    measured = outcome["value"].get("performance") or {}
    ratio = measured.get("ratio")
    return Unscored(measured.get("reason") or "not measured") if ratio is None else float(ratio)


def _complexity(outcome: Outcome | None) -> float | Unscored:
    if (missing := _missing(outcome, "the static analysis")) is not None:
        return missing
    assert outcome is not None
    complexity = outcome["value"].get("mean_complexity")
    if complexity is None:
        return Unscored(outcome["value"].get("complexity_reason") or "the code cannot be parsed")
    return float(complexity)
