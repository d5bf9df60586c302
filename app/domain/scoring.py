"""From marks to grades: the formulas. Every number in them is a `ScorePolicy`'s, which is data. Pure.

What could not be judged, run or measured is `Unscored` with a reason, and whatever is made of it is so too: it is never
0, and never something in between. Nothing is rounded but where a policy says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from app.domain.documents import NAME, content_hash
from app.domain.sampling import Doubt
from app.domain.strict_yaml import Section, is_out_of_order, read_yaml

LOWEST_MARK, HIGHEST_MARK = 1, 5
HIGHEST_SCORE = 100.0
_CLOSE = 1e-9
"""How far a sum of binary fractions may be from what it is on paper: 0.1 + 0.2 is not 0.3, and 90 has to be an A."""


class Intent(StrEnum):
    """What a prompt is for."""

    CREATION = "CREATION"
    SETTING = "SETTING"
    REFINEMENT = "REFINEMENT"
    DEBUGGING = "DEBUGGING"
    EXPLORATION = "EXPLORATION"
    FOLLOW_UP = "FOLLOW_UP"


class Criterion(StrEnum):
    """What a prompt is marked by, 1 to 5: logic, clarity, structure, context."""

    R1 = "R1"
    R2 = "R2"
    R3 = "R3"
    R4 = "R4"


class CaseGroup(StrEnum):
    """Whose eyes a test case is for."""

    SAMPLE = "SAMPLE"
    PUBLIC = "PUBLIC"
    PRIVATE = "PRIVATE"


class RoundingStage(StrEnum):
    """Where a policy may round."""

    TURN = "turn"
    PROMPT = "prompt"
    CORRECTNESS = "correctness"
    PERFORMANCE = "performance"
    TOTAL = "total"


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


@dataclass(frozen=True, slots=True)
class ComplexityStep:
    """Up to a mean cyclomatic complexity of ``at_most`` performance counts ``factor`` times, 0 to 1."""

    at_most: float
    factor: float


@dataclass(frozen=True, slots=True)
class SpeedScale:
    """Up to ``full_until`` times the reference's processor time are worth 100 points, ``none_from`` and more none."""

    full_until: float
    none_from: float


@dataclass(frozen=True, slots=True)
class Grade:
    """A grade, and the total from which on it is given."""

    name: str
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorePolicy:
    """How marks become scores. ``hash`` names it; ``name`` is for people.

    Attributes:
        samples: independent judgements of one prompt.
        another_sample_at_spread: one more where two of them differ by so many marks.
        all_samples_where: a prompt is judged once, and by all ``samples`` where one of these holds; ``None``: always.
        panel_judges: independent judgements of the session as a whole; as many as ``samples`` where it does not say.
        criteria: for each intent the criteria that count, with weights whose sum is 1.
        points_per_mark: the one map from marks to scores.
        refused_points: what a prompt counts that the guard refused; ``None``: it is left out.
        pasted_problem_points: what a prompt counts that is the problem's text and nothing else.
        holistic: of the whole conversation's marks, with weights whose sum is 1.
        conversation_weights: of ``holistic`` and ``turns``.
        prompt_weights: of ``conversation`` and ``session_r4``.
        total_weights: of ``prompt``, ``correctness`` and ``performance``.
        case_weights: of one test case of each group.
        speed: how slow a program may be beside the reference.
        complexity: by rising ``at_most``; the last one is infinite.
        grades: by falling ``at_least``; the last one is 0.
        grade_edge_points: how near to a grade's edge a person should look.
        rounding: decimals for each stage that is rounded.
    """

    name: str
    hash: str
    samples: int
    another_sample_at_spread: int
    criteria: Mapping[Intent, Mapping[Criterion, float]]
    points_per_mark: float
    refused_points: float | None
    pasted_problem_points: float
    holistic_weights: Mapping[Criterion, float]
    conversation_weights: Mapping[str, float]
    prompt_weights: Mapping[str, float]
    total_weights: Mapping[str, float]
    case_weights: Mapping[CaseGroup, float]
    speed: SpeedScale
    complexity: tuple[ComplexityStep, ...]
    grades: tuple[Grade, ...]
    grade_edge_points: float
    rounding: Mapping[RoundingStage, int]
    panel_judges: int
    all_samples_where: frozenset[Doubt] | None = None

    @classmethod
    def parse(cls, text: str) -> ScorePolicy:
        """Read a policy's YAML.

        Raises:
            DocumentError: with every problem and where it is.
        """
        return _parse(text)

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
        factor = next(step.factor for step in self.complexity if mean_complexity <= step.at_most + _CLOSE)
        return self._round(RoundingStage.PERFORMANCE, Score(measured.value * factor))

    def total(self, prompt: Verdict, correctness: Verdict, performance: Verdict) -> Verdict:
        """The exam's score."""
        parts = {"prompt": prompt, "correctness": correctness, "performance": performance}
        weighed = [(name, self.total_weights[name], verdict) for name, verdict in parts.items()]
        return self._round(RoundingStage.TOTAL, _mean(weighed))

    def grade(self, total: Score) -> str:
        """The grade of an exam's score. What is unscored has none."""
        return next(grade.name for grade in self.grades if total.value >= grade.at_least - _CLOSE)

    def near_grade_edge(self, score: Score) -> bool:
        """Whether a little more or less would have been another grade, so that a person should look."""
        edges = [grade.at_least for grade in self.grades if grade.at_least > 0]
        return any(abs(score.value - edge) <= self.grade_edge_points + _CLOSE for edge in edges)

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


def _parse(text: str) -> ScorePolicy:
    top = read_yaml(
        text,
        "The score policy cannot be used",
        (
            *("kind", "name", "samples", "another_sample_at_spread", "criteria", "points_per_mark", "refused"),
            *("pasted_problem", "conversation", "prompt", "total", "correctness", "complexity", "grades"),
            *("grade_edge", "rounding"),
        ),
        ("all_samples_where", "panel_judges", "holistic", "performance"),
    )
    if "kind" in top and not top.is_word("kind", "policy"):
        top.problem("kind", "must be policy")
    samples = top.whole("samples", 1, 9)
    policy = ScorePolicy(
        name=top.text("name", pattern=NAME),
        hash=content_hash(text),
        samples=samples,
        another_sample_at_spread=top.whole("another_sample_at_spread", 1, HIGHEST_MARK - LOWEST_MARK),
        criteria=_criteria(top.section("criteria", list(Intent))),
        points_per_mark=_above_zero(top, "points_per_mark", HIGHEST_SCORE / HIGHEST_MARK),
        refused_points=None if top.is_word("refused", "left_out") else top.number("refused", 0, HIGHEST_SCORE),
        pasted_problem_points=top.number("pasted_problem", 0, HIGHEST_SCORE),
        holistic_weights=_holistic(top),
        conversation_weights=_shares(top.section("conversation", ("holistic", "turns"))),
        prompt_weights=_shares(top.section("prompt", ("conversation", "session_r4"))),
        total_weights=_shares(top.section("total", ("prompt", "correctness", "performance"))),
        case_weights=_case_weights(top.section("correctness", list(CaseGroup))),
        speed=_speed(top),
        complexity=_complexity(top),
        grades=_grades(top),
        grade_edge_points=top.number("grade_edge", 0, 10),
        rounding=_rounding(top.section("rounding", (), list(RoundingStage))),
        all_samples_where=_doubts(top),
        panel_judges=top.whole("panel_judges", 2, 9) if "panel_judges" in top else samples,
    )
    top.finish("The score policy cannot be used")
    return policy


def _doubts(top: Section) -> frozenset[Doubt] | None:
    if "all_samples_where" not in top:
        return None
    return frozenset(map(Doubt, top.words("all_samples_where", list(Doubt))))


def _above_zero(section: Section, key: str, high: float) -> float:
    value = section.number(key, 0, high)
    if value == 0:
        section.problem(key, "must be more than 0")
    return value


def _shares(section: Section) -> Mapping[str, float]:
    weights = {key: section.number(key, 0, 1) for key in section.keys}
    whole = math.fsum(weights.values())
    if weights and not math.isnan(whole) and abs(whole - 1) > _CLOSE:
        section.problem("", f"the weights must sum to 1, and sum to {whole:.10g}")
    return weights


def _holistic(top: Section) -> Mapping[Criterion, float]:
    """Policies older than submissions do not say; in them all criteria count alike."""
    if "holistic" not in top:
        return dict.fromkeys(Criterion, 1 / len(Criterion))
    return _parts(top, "holistic")


def _speed(top: Section) -> SpeedScale:
    if "performance" not in top:
        return SpeedScale(1.5, 10.0)
    section = top.section("performance", ("full_until", "none_from"))
    full, none = section.number("full_until", 1, 1_000), section.number("none_from", 1, 1_000)
    if none <= full:
        section.problem("none_from", "must be more than full_until")
    return SpeedScale(full, none)


def _criteria(section: Section) -> Mapping[Intent, Mapping[Criterion, float]]:
    """For each intent the weights."""
    return {intent: _parts(section, intent) for intent in Intent}


def _parts(section: Section, key: str) -> Mapping[Criterion, float]:
    """Weights, given as parts such as 1, 2 and 1, as shares of 1."""
    inner = section.section(key, (), list(Criterion))
    parts = {criterion: _above_zero(inner, criterion, 100) for criterion in Criterion if criterion in inner}
    whole = math.fsum(parts.values())
    if inner.is_there and not parts:
        section.problem(key, "must name one criterion at least, such as {R1: 1}")
    return {criterion: part / whole for criterion, part in parts.items()} if whole else {}


def _case_weights(section: Section) -> Mapping[CaseGroup, float]:
    weights = {group: section.number(group, 0, 1_000) for group in CaseGroup if group in section}
    if weights and not any(weights.values()):
        section.problem("", "one group at least must count")
    return weights


def _complexity(top: Section) -> tuple[ComplexityStep, ...]:
    entries = top.sections("complexity", ("factor",), ("at_most",))
    steps = []
    for entry in entries:
        last = entry is entries[-1]
        if last == ("at_most" in entry):
            entry.problem("", "must not have at_most: it is for all above" if last else "must have at_most")
        at_most = math.inf if last else entry.number("at_most", 0, 1_000)
        steps.append(ComplexityStep(at_most, entry.number("factor", 0, 1)))
    if is_out_of_order([step.at_most for step in steps]):
        top.problem("complexity", "at_most must rise from entry to entry")
    return tuple(steps)


def _grades(top: Section) -> tuple[Grade, ...]:
    entries = top.sections("grades", ("grade", "at_least"))
    grades = tuple(Grade(entry.text("grade"), entry.number("at_least", 0, HIGHEST_SCORE)) for entry in entries)
    if is_out_of_order([grade.at_least for grade in grades], falling=True):
        top.problem("grades", "at_least must fall from entry to entry")
    names = [grade.name for grade in grades]
    for place, entry in enumerate(entries):
        if names[place] and names[place] in names[:place]:
            entry.problem("grade", f"{names[place]} is given twice")
    if grades and grades[-1].at_least > 0:
        entries[-1].problem("at_least", "must be 0 in the last entry, so that every total has a grade")
    return grades


def _rounding(section: Section) -> Mapping[RoundingStage, int]:
    return {stage: section.whole(stage, 0, 6) for stage in RoundingStage if stage in section}
