"""A prompt's score made again from the marks of single judges. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from app.domain.scoring import Criterion, Intent, Score, ScorePolicy, Verdict

Marks = Mapping[int, Mapping[Criterion, int]]
"""1 to 5, by sample and criterion."""


@dataclass(frozen=True, slots=True)
class TurnEvidence:
    """What is kept of a prompt's judgement.

    Attributes:
        policy: the one it was judged by.
        marks: as they were kept.
        answers: as the judge's answers were read: the same marks, in another place.
        intents: what each sample took the prompt for.
        refused: the guard refused it.
        override: what a person has set.
    """

    policy: ScorePolicy | None = None
    marks: Marks = field(default_factory=dict)
    answers: Marks = field(default_factory=dict)
    intents: Mapping[int, Intent] = field(default_factory=dict)
    refused: bool = False
    override: float | None = None


@dataclass(frozen=True, slots=True)
class ExplainedTurn:
    """A score (``None``: there is none), how it is made, and where the answers of judges say other marks."""

    value: float | None
    arithmetic: str
    misread: str = ""


def explain_turn(entry: Mapping[str, Any], evidence: TurnEvidence) -> ExplainedTurn:
    """A turn's score from its evidence; ``entry`` is what the evaluation took for it."""
    policy = evidence.policy
    if entry.get("override") is not None:
        return ExplainedTurn(evidence.override, "set by a person")
    if policy is None:
        return ExplainedTurn(None, entry.get("reason") or "not judged")
    if evidence.marks:
        return _from_marks(policy, evidence)
    if evidence.refused:
        return ExplainedTurn(_value(policy.refused()), "the guard refused it")
    if entry.get("score") is not None and entry.get("intent") is None:
        return ExplainedTurn(_value(policy.pasted_problem()), "the problem's text and nothing else")
    return ExplainedTurn(None, entry.get("reason") or "not judged")


def _from_marks(policy: ScorePolicy, evidence: TurnEvidence) -> ExplainedTurn:
    counts = Counter(evidence.intents[sample] for sample in evidence.marks if sample in evidence.intents)
    if not counts:
        return ExplainedTurn(None, "no judge's answer is kept")
    order = list(Intent)
    intent = min(counts, key=lambda each: (-counts[each], order.index(each)))
    medians = {c: float(median(marks[c] for marks in evidence.marks.values())) for c in Criterion}
    weights = policy.criteria[intent]
    summed = " + ".join(f"{number(weight)} · {c} {number(medians[c])}" for c, weight in weights.items())
    arithmetic = f"{intent}: ({summed}) · {number(policy.points_per_mark)}; {explain_marks(evidence.marks)}"
    differing = [sample for sample, marks in evidence.marks.items() if evidence.answers.get(sample) != marks]
    misread = f"other marks in sample {', '.join(map(str, differing))}" if differing else ""
    return ExplainedTurn(_value(policy.turn(intent, medians)), arithmetic, misread)


def explain_marks(judges: Marks) -> str:
    """Every judge's mark of each criterion, by sample."""
    return "; ".join(f"{c} of {', '.join(number(judges[sample][c]) for sample in sorted(judges))}" for c in Criterion)


def number(value: float | None, digits: int = 6) -> str:
    """A number for people, without needless zeros; a dash for none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def _value(verdict: Verdict) -> float | None:
    return verdict.value if isinstance(verdict, Score) else None
