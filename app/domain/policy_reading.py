"""A score policy's YAML, read strictly: every problem is told, with its place. docs/evaluation.md explains the keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from app.domain.documents import NAME, content_hash
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
from app.domain.sampling import Doubt
from app.domain.strict_yaml import Section, is_out_of_order, read_yaml

_Terms = TypeVar("_Terms", bound=PolicyTerms)


def read_policy(text: str, kind: type[_Terms]) -> _Terms:
    """Read a policy, as one of the classes that hold its terms.

    Raises:
        DocumentError: with every problem and where it is.
    """
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
    policy = kind(
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
    if weights and not math.isnan(whole) and abs(whole - 1) > CLOSE:
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
