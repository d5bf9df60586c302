"""From marks to grades: every formula with numbers worked out by hand, what holds for all numbers, and old mistakes."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain import scoring
from app.domain.documents import shipped, shipped_names
from app.domain.scoring import (
    CaseGroup,
    CasesPassed,
    Criterion,
    Intent,
    Score,
    ScorePolicy,
    Unscored,
    Verdict,
)

R1, R2, R3, R4 = Criterion
V2 = ScorePolicy.parse(shipped("policy", "v2"))
COMPAT = ScorePolicy.parse(shipped("policy", "compat-2026"))
BOTH = pytest.mark.parametrize("policy", [V2, COMPAT], ids=lambda policy: policy.name)
DOWN = Unscored("the judge is down")


def value(verdict: Verdict) -> float:
    assert isinstance(verdict, Score), verdict
    return verdict.value


def reason(verdict: Verdict) -> str:
    assert isinstance(verdict, Unscored), verdict
    return verdict.reason


def scores(*values: float) -> list[Verdict]:
    return [Score(v) for v in values]


# ---------------------------------------------------------------- each formula, worked out by hand

TURNS = [
    (Intent.CREATION, {R1: 3, R2: 4, R3: 5}, 80.0),  # 12 / 3 = 4
    (Intent.SETTING, {R2: 2, R3: 5}, 70.0),  # 7 / 2 = 3.5
    (Intent.REFINEMENT, {R1: 1, R2: 2, R3: 3, R4: 5}, 55.0),  # 11 / 4 = 2.75
    (Intent.DEBUGGING, {R1: 2, R2: 5, R4: 3}, 75.0),  # (2 + 2·5 + 3) / 4 = 3.75
    (Intent.EXPLORATION, {R1: 4, R2: 5}, 90.0),  # 9 / 2 = 4.5
    (Intent.FOLLOW_UP, {R4: 2.5}, 50.0),  # a median between 2 and 3
]


@BOTH
@pytest.mark.parametrize(("intent", "marks", "expected"), TURNS)
def test_a_turns_score(policy: ScorePolicy, intent: Intent, marks: dict[Criterion, float], expected: float) -> None:
    assert policy.criteria_for(intent) == tuple(marks)
    assert value(policy.turn(intent, marks)) == expected
    others = dict.fromkeys(Criterion, 1.0) | marks
    assert value(policy.turn(intent, others)) == expected, "what does not count changes nothing"


@BOTH
def test_a_mark_is_twenty_points(policy: ScorePolicy) -> None:
    assert [value(policy.points(mark)) for mark in (1, 2, 3, 4, 5)] == [20, 40, 60, 80, 100]


def test_a_refused_prompt_and_a_pasted_problem() -> None:
    assert COMPAT.refused() == Score(0)
    assert V2.refused() == Unscored("refused by the guard", left_out=True)
    assert COMPAT.pasted_problem() == V2.pasted_problem() == Score(30)


@BOTH
def test_the_prompts_score(policy: ScorePolicy) -> None:
    # the turns' mean is 70; 0.6·80 + 0.4·70 = 76; 0.8·76 + 0.2·100 = 80.8
    assert value(policy.prompt(Score(80), scores(60, 70, 80), Score(100))) == pytest.approx(80.8, abs=1e-12)


def test_a_refused_prompt_counts_nothing_in_one_policy_and_is_in_no_mean_of_the_other() -> None:
    # compat-2026: mean of 60, 0, 80 is 46.667; 0.6·80 + 0.4·46.667 = 66.667; 0.8·66.667 + 0.2·100 = 73.333
    turns = [Score(60), COMPAT.refused(), Score(80)]
    assert value(COMPAT.prompt(Score(80), turns, Score(100))) == pytest.approx(220 / 3, abs=1e-12)
    # v2: mean of 60, 80 is 70, as above
    turns = [Score(60), V2.refused(), Score(80)]
    assert value(V2.prompt(Score(80), turns, Score(100))) == pytest.approx(80.8, abs=1e-12)


@BOTH
def test_correctness_is_the_weighed_share_of_cases_passed(policy: ScorePolicy) -> None:
    cases = {
        CaseGroup.SAMPLE: CasesPassed(2, 2),
        CaseGroup.PUBLIC: CasesPassed(3, 4),
        CaseGroup.PRIVATE: CasesPassed(4, 10),
    }
    assert value(policy.correctness(cases)) == 56.25  # 9 of 16
    heavier = replace(policy, case_weights={**policy.case_weights, CaseGroup.PRIVATE: 3.0})
    assert value(heavier.correctness(cases)) == pytest.approx(1700 / 36, abs=1e-12)  # (2 + 3 + 12) of (2 + 4 + 30)
    assert value(policy.correctness({CaseGroup.PUBLIC: CasesPassed(1.5, 2)})) == 75, "one heavy case, one light"


@BOTH
@pytest.mark.parametrize(
    ("complexity", "expected"),
    [(1, 50.0), (5, 50.0), (5.01, 46.0), (8, 46.0), (8.01, 42.0), (400, 42.0)],
)
def test_performance_falls_with_complexity(policy: ScorePolicy, complexity: float, expected: float) -> None:
    assert value(policy.performance(Score(50), complexity, Score(10))) == pytest.approx(expected, abs=1e-12)


@BOTH
def test_the_total_and_its_grade(policy: ScorePolicy) -> None:
    # 0.4·80.8 + 0.4·75 + 0.2·46 = 32.32 + 30 + 9.2
    total = policy.total(Score(80.8), Score(75), Score(46))
    assert value(total) == pytest.approx(71.52, abs=1e-12)
    grades = {100: "A", 90: "A", 89.99: "B", 80: "B", 79.99: "C", 70: "C", 69.99: "D", 60: "D", 59.99: "F", 0: "F"}
    assert {total: policy.grade(Score(total)) for total in grades} == grades


@BOTH
def test_a_total_that_is_ninety_on_paper_is_an_a(policy: ScorePolicy) -> None:
    # 0.4·87.3 + 0.4·91.5 + 0.2·92.4 = 34.92 + 36.6 + 18.48; in binary fractions it may be a hair less
    total = policy.total(Score(87.3), Score(91.5), Score(92.4))
    assert isinstance(total, Score)
    assert policy.grade(total) == "A"
    assert policy.grade(Score(90 - 1e-12)) == "A"


@BOTH
def test_near_a_grades_edge(policy: ScorePolicy) -> None:
    near = {89: True, 91: True, 88.9: False, 91.1: False, 60.5: True, 50: False, 0: False, 0.5: False, 100: False}
    assert {score: policy.near_grade_edge(Score(score)) for score in near} == near


# ---------------------------------------------------------------- what holds for all numbers

marks = st.integers(2, 10).map(lambda half: half / 2)
intents = st.sampled_from(Intent)
all_marks = st.fixed_dictionaries(dict.fromkeys(Criterion, marks))
values = st.floats(0, 100).map(lambda v: round(v, 6))
policies = st.sampled_from([V2, COMPAT])


@given(policies, intents, all_marks)
def test_a_turns_score_is_within_the_marks_it_is_made_of(
    policy: ScorePolicy, intent: Intent, given_marks: dict[Criterion, float]
) -> None:
    counted = [given_marks[criterion] for criterion in policy.criteria_for(intent)]
    score = value(policy.turn(intent, given_marks))
    assert 20 * min(counted) <= score + 0.005 and score - 0.005 <= 20 * max(counted)
    assert 20 <= score <= 100


@given(policies, intents, all_marks, st.sampled_from(Criterion))
def test_a_better_mark_never_lowers_a_score_and_raises_it_where_it_counts(
    policy: ScorePolicy, intent: Intent, given_marks: dict[Criterion, float], better: Criterion
) -> None:
    given_marks[better] = min(given_marks[better], 4.5)
    before = value(policy.turn(intent, given_marks))
    after = value(policy.turn(intent, {**given_marks, better: given_marks[better] + 0.5}))
    assert after > before if better in policy.criteria_for(intent) else after == before


@given(policies, values, st.lists(values, min_size=1, max_size=12), values, st.data())
def test_the_order_of_turns_does_not_matter_and_each_better_part_raises_the_prompts_score(
    policy: ScorePolicy, holistic: float, turns: list[float], r4: float, data: st.DataObject
) -> None:
    before = value(policy.prompt(Score(holistic), scores(*turns), Score(r4)))
    assert 0 <= before <= 100
    shuffled = data.draw(st.permutations(turns))
    assert value(policy.prompt(Score(holistic), scores(*shuffled), Score(r4))) == before
    place = data.draw(st.integers(0, len(turns) - 1))
    higher = [*turns[:place], min(turns[place] + 1, 100.0), *turns[place + 1 :]]
    assert value(policy.prompt(Score(holistic), scores(*higher), Score(r4))) >= before
    assert value(policy.prompt(Score(min(holistic + 1, 100)), scores(*turns), Score(r4))) >= before
    assert value(policy.prompt(Score(holistic), scores(*turns), Score(min(r4 + 1, 100)))) >= before


@given(policies, intents, all_marks, st.data())
def test_the_order_of_criteria_does_not_matter(
    policy: ScorePolicy, intent: Intent, given_marks: dict[Criterion, float], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(list(Criterion)))
    assert policy.turn(intent, {c: given_marks[c] for c in order}) == policy.turn(intent, given_marks)


@given(policies, values)
def test_equal_parts_make_the_same_whole(policy: ScorePolicy, every: float) -> None:
    same = Score(every)
    assert policy.prompt(same, [same] * 7, same) == same
    total = policy.total(same, same, same)
    assert total == (same if policy is V2 else Score(round(every, 2)))


@given(policies, values, values, values)
def test_a_total_is_within_its_parts_and_has_a_grade(
    policy: ScorePolicy, prompt: float, correctness: float, performance: float
) -> None:
    parts = (prompt, correctness, performance)
    total = policy.total(*scores(*parts))
    assert min(parts) - 0.005 <= value(total) <= max(parts) + 0.005
    assert isinstance(total, Score)
    assert policy.grade(total) in "ABCDF"
    best = policy.total(Score(100), Score(correctness), Score(performance))
    assert value(best) >= value(total)


@given(st.lists(st.tuples(intents, all_marks), min_size=1, max_size=20), marks, marks, values, values)
def test_v2_rounds_nothing_on_the_way(
    turns: list[tuple[Intent, dict[Criterion, float]]], holistic: float, r4: float, correct: float, performance: float
) -> None:
    """The same in exact fractions: what differs is the last bits of binary ones."""
    exact_turns = []
    for intent, given_marks in turns:
        parts = {Intent.DEBUGGING: {R1: 1, R2: 2, R4: 1}}.get(intent, dict.fromkeys(V2.criteria_for(intent), 1))
        whole = sum(part * Fraction(given_marks[criterion]) for criterion, part in parts.items())
        exact_turns.append(20 * whole / sum(parts.values()))
    mean = sum(exact_turns, Fraction()) / len(exact_turns)
    conversation = Fraction(6, 10) * 20 * Fraction(holistic) + Fraction(4, 10) * mean
    prompt = Fraction(8, 10) * conversation + Fraction(2, 10) * 20 * Fraction(r4)
    exact = Fraction(4, 10) * (prompt + Fraction(correct)) + Fraction(2, 10) * Fraction(performance)

    ours = V2.prompt(V2.points(holistic), [V2.turn(*turn) for turn in turns], V2.points(r4))
    assert abs(Fraction(value(V2.total(ours, Score(correct), Score(performance)))) - exact) < Fraction(1, 10**11)


@given(policies, intents, all_marks, st.data())
def test_a_mark_that_is_missing_makes_no_score_at_all(
    policy: ScorePolicy, intent: Intent, given_marks: dict[Criterion, float], data: st.DataObject
) -> None:
    missing = data.draw(st.sampled_from(policy.criteria_for(intent)))
    absent = {criterion: mark for criterion, mark in given_marks.items() if criterion is not missing}
    assert reason(policy.turn(intent, absent)) == f"{missing}: not judged"
    unscored: dict[Criterion, float | Unscored] = {**given_marks, missing: Unscored("no evidence")}
    assert reason(policy.turn(intent, unscored)) == f"{missing}: no evidence"


@given(policies, st.lists(values, min_size=1, max_size=9), values, values, st.data())
def test_whatever_is_missing_is_told_by_the_total(
    policy: ScorePolicy, turns: list[float], first: float, second: float, data: st.DataObject
) -> None:
    of_turns: list[Verdict] = scores(*turns)
    parts: dict[str, Verdict] = {"holistic": Score(first), "session_r4": Score(second)}
    rest: dict[str, Verdict] = {"correctness": Score(first), "performance": Score(second)}
    missing = data.draw(st.sampled_from(["turn", *parts, *rest]))
    if missing == "turn":
        of_turns[data.draw(st.integers(0, len(turns) - 1))] = DOWN
    elif missing in parts:
        parts[missing] = DOWN
    else:
        rest[missing] = DOWN
    prompt = policy.prompt(parts["holistic"], of_turns, parts["session_r4"])
    told = reason(policy.total(prompt, rest["correctness"], rest["performance"]))
    assert missing in told and told.endswith(DOWN.reason)


def test_weights_of_what_is_shipped_sum_to_one() -> None:
    assert shipped_names("policy") == ("compat-2026", "v2")
    for policy in (V2, COMPAT):
        for weights in (policy.conversation_weights, policy.prompt_weights, policy.total_weights):
            assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
        for of_intent in policy.criteria.values():
            assert math.fsum(of_intent.values()) == pytest.approx(1, abs=1e-12)


def test_v2_is_compat_2026_but_for_rounding_and_refusals() -> None:
    same = replace(COMPAT, name=V2.name, hash=V2.hash, rounding={}, refused_points=None)
    assert same == V2
    assert COMPAT.hash != V2.hash


# ---------------------------------------------------------------- mistakes others made


def test_scores_are_not_rounded_before_they_are_averaged_but_in_compat_2026() -> None:
    """86.67 and 46.67 for 86 2/3 and 46 2/3: two roundings up, and the mean is too high."""
    marked = [{R1: 4, R2: 4, R3: 5}, {R1: 2, R2: 2, R3: 3}]
    results = {}
    for policy in (V2, COMPAT):
        turns = [policy.turn(Intent.CREATION, of_turn) for of_turn in marked]
        prompt = policy.prompt(Score(50), turns, Score(50))
        results[policy.name] = (value(turns[0]), value(prompt), value(policy.total(prompt, Score(50), Score(50))))
    assert results["compat-2026"] == (86.67, pytest.approx(55.3344, abs=1e-9), 52.13)
    assert results["v2"] == pytest.approx((86 + 2 / 3, 55 + 1 / 3, 52 + 2 / 15), abs=1e-12)


def test_no_total_is_rounded_over_a_grades_edge_but_in_compat_2026() -> None:
    parts = scores(89.99, 90, 90)  # 0.4·89.99 + 0.4·90 + 0.2·90 = 89.996
    totals = [policy.total(*parts) for policy in (V2, COMPAT)]
    assert [value(total) for total in totals] == [pytest.approx(89.996, abs=1e-12), 90.0]
    assert [p.grade(t) for p, t in zip((V2, COMPAT), totals, strict=True) if isinstance(t, Score)] == ["B", "A"]


@BOTH
def test_a_missing_criterion_does_not_count_three(policy: ScorePolicy) -> None:
    assert reason(policy.turn(Intent.CREATION, {R1: 5, R3: 5})) == "R2: not judged"
    assert reason(policy.turn(Intent.DEBUGGING, {})) == "R1: not judged; R2: not judged; R4: not judged"


@BOTH
def test_a_dead_judge_runner_or_analyser_is_not_zero_points(policy: ScorePolicy) -> None:
    assert reason(policy.prompt(DOWN, scores(60), Score(60))) == "conversation: holistic: the judge is down"
    dead = Unscored("the runner is down")
    cases = {CaseGroup.SAMPLE: CasesPassed(2, 2), CaseGroup.PRIVATE: dead}
    correctness = policy.correctness(cases)
    assert reason(correctness) == "PRIVATE: the runner is down"
    assert reason(policy.performance(Score(50), 3, correctness)) == "correctness: PRIVATE: the runner is down"
    assert reason(policy.performance(dead, 3, Score(50))) == "running time: the runner is down"
    analyser = Unscored("the analyser is down")
    assert reason(policy.performance(Score(50), analyser, Score(50))) == "complexity: the analyser is down"
    assert reason(policy.total(Score(50), correctness, Score(50))) == "correctness: PRIVATE: the runner is down"


@BOTH
def test_nothing_to_count_is_not_zero_points_either(policy: ScorePolicy) -> None:
    assert reason(policy.correctness({})) == "there is no test case that counts"
    assert reason(policy.correctness({CaseGroup.SAMPLE: CasesPassed(0, 0)})) == "there is no test case that counts"
    assert "there is no prompt that counts" in reason(policy.prompt(Score(50), [], Score(50)))
    assert "there is no prompt that counts" in reason(V2.prompt(Score(50), [V2.refused()] * 3, Score(50)))


@BOTH
def test_wrong_code_is_not_rewarded_for_being_quick(policy: ScorePolicy) -> None:
    assert value(policy.performance(Score(100), 1, Score(0))) == 0
    assert value(policy.performance(DOWN, DOWN, Score(0))) == 0, "nothing had to be measured"
    assert value(policy.correctness({CaseGroup.PUBLIC: CasesPassed(0, 3)})) == 0, "all failed is known, not missing"


def test_what_does_not_count_may_be_missing() -> None:
    text_only = replace(V2, total_weights={"prompt": 1.0, "correctness": 0.0, "performance": 0.0})
    assert text_only.total(Score(70), DOWN, DOWN) == Score(70)
    hidden = replace(V2, case_weights={**V2.case_weights, CaseGroup.SAMPLE: 0.0})
    cases = {CaseGroup.SAMPLE: DOWN, CaseGroup.PRIVATE: CasesPassed(1, 2)}
    assert hidden.correctness(cases) == Score(50)


def test_there_is_one_map_from_marks_to_scores_and_no_number_of_a_policy_in_the_code() -> None:
    class_of_policy = ast.parse(textwrap.dedent(inspect.getsource(ScorePolicy)))
    numbers = {node.value for node in ast.walk(class_of_policy) if isinstance(node, ast.Constant)}
    assert {number for number in numbers if isinstance(number, int | float)} <= {0, 1}
    assert (scoring.LOWEST_MARK, scoring.HIGHEST_MARK) == (1, 5)
    halved = replace(V2, points_per_mark=10.0)
    for intent, given_marks, expected in TURNS:
        assert value(halved.turn(intent, given_marks)) == expected / 2


@BOTH
def test_one_sample_does_not_decide(policy: ScorePolicy) -> None:
    assert policy.samples == 3
    assert policy.another_sample_at_spread == 2


def test_a_policy_is_named_by_what_it_says() -> None:
    text = shipped("policy", "v2")
    assert ScorePolicy.parse(text).hash == V2.hash
    assert ScorePolicy.parse(text.replace("pasted_problem: 30", "pasted_problem: 31")).hash != V2.hash


# ---------------------------------------------------------------- what is no outcome but a fault of the caller


@pytest.mark.parametrize("mark", [0, 0.99, 5.01, 6, -1, 60, math.nan, math.inf])
def test_there_is_no_such_mark(mark: float) -> None:
    with pytest.raises(ValueError, match="from 1 to 5"):
        V2.turn(Intent.FOLLOW_UP, {R4: mark})


@pytest.mark.parametrize("number", [-0.01, 100.01, math.nan, math.inf])
def test_there_is_no_such_score(number: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 100"):
        Score(number)


@pytest.mark.parametrize(("passed", "total"), [(-1, 3), (4, 3), (0, math.inf), (math.nan, 1), (0, math.nan)])
def test_no_more_cases_pass_than_there_are(passed: float, total: float) -> None:
    with pytest.raises(ValueError, match="passed"):
        CasesPassed(passed, total)


@pytest.mark.parametrize("complexity", [-1, math.nan, math.inf])
def test_there_is_no_such_complexity(complexity: float) -> None:
    with pytest.raises(ValueError, match="complexity"):
        V2.performance(Score(50), complexity, Score(50))
