"""What a score policy says, as values: the words it uses, and its numbers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from app.domain.sampling import Doubt

LOWEST_MARK, HIGHEST_MARK = 1, 5
HIGHEST_SCORE = 100.0
CLOSE = 1e-9
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
class PolicyTerms:
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
