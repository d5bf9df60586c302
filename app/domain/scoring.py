"""From marks to grades: the formulas. Every number in them is a `ScorePolicy`'s, which is data. Pure.

What could not be judged, run or measured is `Unscored` with a reason, and whatever is made of it is so too: it is never
0, and never something in between. Nothing is rounded but where a policy says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from app.domain.policy_reading import read_policy
from app.domain.policy_terms import (
    CLOSE,
    HIGHEST_MARK,
    HIGHEST_SCORE,
    LOWEST_MARK,
    CaseGroup,
    ComplexityStep,
    Criterion,
    Grade,
    Intent,
    PolicyTerms,
    RoundingStage,
    SpeedScale,
)

__all__ = [
    "HIGHEST_MARK",
    "HIGHEST_SCORE",
    "LOWEST_MARK",
    "CaseGroup",
    "CasesPassed",
    "ComplexityStep",
    "Criterion",
    "Grade",
    "Intent",
    "RoundingStage",
    "Score",
    "ScorePolicy",
    "SpeedScale",
    "Unscored",
    "Verdict",
]


@dataclass(frozen=True, slots=True)
class Score:
    """0 to 100."""

    value: float

    def __post_init__(self) -> None:
        if not 0 <= self.value <= HIGHEST_SCORE:
            raise ValueError("a score is from 0 to 100")


@dataclass(frozen=True, slots=True)
class Unscored:
    """There is no score, and why. ``left_out``: by the policy's word, so that means are taken without it."""

    reason: str
    left_out: bool = False


Verdict = Score | Unscored
Turns = Sequence[Verdict] | Mapping[int, Verdict] | Unscored
"""Of each prompt, in order, or by its number where not every turn has one; or why there is none of any."""


@dataclass(frozen=True, slots=True)
class CasesPassed:
    """The weight of a group's test cases that passed, and of all of them; without weights, their numbers."""

    passed: float
    total: float

    def __post_init__(self) -> None:
        if not 0 <= self.passed <= self.total < math.inf:
            raise ValueError("0 ≤ passed ≤ total")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePolicy(PolicyTerms):
    """How marks become scores: the terms with the formulas that they are the numbers of."""

    @classmethod
    def parse(cls, text: str) -> ScorePolicy:
        """Read a policy's YAML.

        Raises:
            DocumentError: with every problem and where it is.
        """
        return read_policy(text, cls)

    def with_samples(self, samples: int) -> ScorePolicy:
        """The same with so many judgements of each prompt, whatever it says itself."""
        return replace(self, samples=samples, all_samples_where=None)

    def criteria_for(self, intent: Intent) -> tuple[Criterion, ...]:
        """The criteria that count for a prompt of this intent."""
        return tuple(self.criteria[intent])

    def points(self, mark: float | Unscored) -> Verdict:
        """A mark as a score; marks are 1 to 5, a median may lie between two.

        Raises:
            ValueError: there is no such mark.
        """
        if isinstance(mark, Unscored):
            return mark
        if not LOWEST_MARK <= mark <= HIGHEST_MARK:
            raise ValueError("a mark is from 1 to 5")
        return Score(mark * self.points_per_mark)

    def turn(self, intent: Intent, marks: Mapping[Criterion, float | Unscored]) -> Verdict:
        """A prompt's score from its marks. One that counts and is not there leaves the prompt without a score."""
        not_judged = Unscored("not judged")
        weighed = [
            (criterion, weight, self.points(marks.get(criterion, not_judged)))
            for criterion, weight in self.criteria[intent].items()
        ]
        return self._round(RoundingStage.TURN, _mean(weighed))

    def refused(self) -> Verdict:
        """What a prompt counts that the guard refused."""
        if self.refused_points is None:
            return Unscored("refused by the guard", left_out=True)
        return Score(self.refused_points)

    def pasted_problem(self) -> Verdict:
        """What a prompt counts that is the problem's text and asks for nothing."""
        return Score(self.pasted_problem_points)

    def holistic(self, marks: Mapping[Criterion, float | Unscored]) -> Verdict:
        """The score of the conversation as a whole, from the marks that it got as one."""
        missing = Unscored("not judged")
        return _mean(
            (criterion, weight, self.points(marks.get(criterion, missing)))
            for criterion, weight in self.holistic_weights.items()
        )

    def turn_mean(self, turns: Turns) -> Verdict:
        """The mean of the prompts' scores, without those that the policy leaves out."""
        if isinstance(turns, Unscored):
            return turns
        numbered = turns.items() if isinstance(turns, Mapping) else enumerate(turns, start=1)
        counted = [
            (f"turn {number}", 1.0, verdict)
            for number, verdict in numbered
            if not (isinstance(verdict, Unscored) and verdict.left_out)
        ]
        return _mean(counted) if counted else Unscored("there is no prompt that counts")

    def prompt(self, holistic: Verdict, turns: Turns, r4_session: Verdict) -> Verdict:
        """The score of all prompting.

        Args:
            holistic: of the conversation as a whole.
            turns: of each prompt; those that the policy leaves out are left out of their mean.
            r4_session: R4 of the whole session, as a score (`points`).
        """
        mean = self.turn_mean(turns)
        parts = self.conversation_weights
        conversation = _mean([("holistic", parts["holistic"], holistic), ("turns", parts["turns"], mean)])
        weights = self.prompt_weights
        return self._round(
            RoundingStage.PROMPT,
            _mean(
                [
                    ("conversation", weights["conversation"], conversation),
                    ("session_r4", weights["session_r4"], r4_session),
                ]
            ),
        )

    def correctness(self, cases: Mapping[CaseGroup, CasesPassed | Unscored]) -> Verdict:
        """The weighed share of test cases that passed. Groups that are not there, or have no case, do not count."""
        weighed = [(group, self.case_weights[group], found) for group, found in cases.items()]
        missing = [
            f"{group}: {found.reason}" for group, weight, found in weighed if weight and isinstance(found, Unscored)
        ]
        if missing:
            return Unscored(_list(missing))
        known = [(weight, found) for _, weight, found in weighed if isinstance(found, CasesPassed)]
        total = math.fsum(weight * found.total for weight, found in known)
        if not total:
            return Unscored("there is no test case that counts")
        passed = math.fsum(weight * found.passed for weight, found in known)
        return self._round(RoundingStage.CORRECTNESS, Score(min(passed / total, 1.0) * HIGHEST_SCORE))

    def running_time(self, ratio: float) -> Score:
        """A program's processor time as a multiple of the reference's, 0 or more, as a score.

        Between the scale's ends every doubling costs the same.
        """
        if not 0 <= ratio < math.inf:
            raise ValueError("a ratio of times is 0 or more")
        full, none = self.speed.full_until, self.speed.none_from
        if ratio <= full:
            return Score(HIGHEST_SCORE)
        return Score(max(math.log(none / ratio) / math.log(none / full), 0.0) * HIGHEST_SCORE)

    def performance(self, measured: Verdict, mean_complexity: float | Unscored, correctness: Verdict) -> Verdict:
        """The score of running time and complexity.

        Args:
            measured: running time beside the reference solution's, as a score.
            mean_complexity: mean cyclomatic complexity of the submitted functions, 0 or more.
            correctness: where it is 0 this is too: quickly wrong is worth nothing, and nothing need be measured.
        """
        if isinstance(correctness, Unscored):
            return Unscored(f"correctness: {correctness.reason}")
        if correctness.value == 0:
            return Score(0.0)
        if isinstance(measured, Unscored):
            return Unscored(f"running time: {measured.reason}")
        if isinstance(mean_complexity, Unscored):
            return Unscored(f"complexity: {mean_complexity.reason}")
        if not 0 <= mean_complexity < math.inf:
            raise ValueError("a complexity is 0 or more")
        factor = next(step.factor for step in self.complexity if mean_complexity <= step.at_most + CLOSE)
        return self._round(RoundingStage.PERFORMANCE, Score(measured.value * factor))

    def total(self, prompt: Verdict, correctness: Verdict, performance: Verdict) -> Verdict:
        """The exam's score."""
        parts = {"prompt": prompt, "correctness": correctness, "performance": performance}
        weighed = [(name, self.total_weights[name], verdict) for name, verdict in parts.items()]
        return self._round(RoundingStage.TOTAL, _mean(weighed))

    def grade(self, total: Score) -> str:
        """The grade of an exam's score. What is unscored has none."""
        return next(grade.name for grade in self.grades if total.value >= grade.at_least - CLOSE)

    def near_grade_edge(self, score: Score) -> bool:
        """Whether a little more or less would have been another grade, so that a person should look."""
        edges = [grade.at_least for grade in self.grades if grade.at_least > 0]
        return any(abs(score.value - edge) <= self.grade_edge_points + CLOSE for edge in edges)

    def _round(self, stage: RoundingStage, verdict: Verdict) -> Verdict:
        decimals = self.rounding.get(stage)
        if decimals is None or isinstance(verdict, Unscored):
            return verdict
        return Score(round(verdict.value, decimals))


def _mean(weighed: Iterable[tuple[str, float, Verdict]]) -> Verdict:
    """The weighed mean of parts by name; unscored if one is that counts at all."""
    counted = [(name, weight, verdict) for name, weight, verdict in weighed if weight > 0]
    missing = [f"{name}: {verdict.reason}" for name, _, verdict in counted if isinstance(verdict, Unscored)]
    if missing:
        return Unscored(_list(missing))
    scores = [(weight, verdict.value) for _, weight, verdict in counted if isinstance(verdict, Score)]
    mean = math.fsum(weight * value for weight, value in scores) / math.fsum(weight for weight, _ in scores)
    values = [value for _, value in scores]
    # Binary fractions may carry it a hair beyond what it is a mean of.
    return Score(min(max(mean, min(values)), max(values)))


def _list(reasons: Sequence[str], most: int = 5) -> str:
    shown = "; ".join(reasons[:most])
    return f"{shown}; and {len(reasons) - most} more" if len(reasons) > most else shown
