"""A submission's scores: worked examples by hand, what holds for all numbers, and what Core is told."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.documents import shipped
from app.domain.final_scores import COMPONENTS, Component, Override, aggregate, evidence_of
from app.domain.scoring import CaseGroup, Criterion, Score, ScorePolicy, Unscored
from app.domain.submission import Node, Outcome
from app.presentation.schemas.scores import FinalScores, TurnScore
from tests.support.outcomes import steps

V2 = ScorePolicy.parse(shipped("policy", "v2"))
COMPAT = ScorePolicy.parse(shipped("policy", "compat-2026"))
# Policies of somebody's own, from v2.
NO_SPEED = replace(V2, total_weights={"prompt": 0.5, "correctness": 0.5, "performance": 0.0})
HIDDEN = replace(V2, case_weights={CaseGroup.SAMPLE: 0.0, CaseGroup.PUBLIC: 1.0, CaseGroup.PRIVATE: 3.0})
TWO_MARKS = replace(V2, holistic_weights={Criterion.R1: 2 / 3, Criterion.R4: 1 / 3})
POLICIES = {"v2": V2, "compat": COMPAT, "no speed": NO_SPEED, "hidden": HIDDEN, "two marks": TWO_MARKS}

HALFWAY = math.sqrt(15)
"""Between 1.5 and 10 on a logarithmic scale: √(1.5 · 10)."""
A_QUARTER = math.sqrt(1.5 * math.sqrt(15))

# Every line is worked out by hand from the formulas of docs/evaluation.md, in the shorthand of tests/support/outcomes:
#   H = 5 · (R1 + R2 + R3 + R4), R = 20 · R4, T = the mean of the turns
#   P = 0.8 · (0.6 H + 0.4 T) + 0.2 R = 0.48 H + 0.32 T + 0.2 R;  total = 0.4 P + 0.4 C + 0.2 F
# Columns: policy · turns · panel's marks · cases · ratio · complexity · set by people → P · C · F · total · grade
# A dash is a missing part; expected values are decimals or fractions, and exact.
TABLE = """
# all good: T 80, H 80, R 80; P 38.4 + 25.6 + 16; total 32 + 40 + 20
v2 | C 3 4 5 | 4 4 4 4 | S:AC P:AC X:AC | 1 | 3 | | 80 | 100 | 100 | 92 | A
compat | C 3 4 5 | 4 4 4 4 | S:AC P:AC X:AC | 1 | 3 | | 80 | 100 | 100 | 92 | A
# T (100 + 20) / 2, H 70, R 40: P 33.6 + 19.2 + 8; total 24.32 + 20 + 20
v2 | C 5 5 5, F 1 | 5 4 3 2 | P:AC P:WA | 1 | 5 | | 60.8 | 50 | 100 | 64.32 | D
# T 20 · 11/3 = 220/3: P 28.8 + 70.4/3 + 12 = 964/15; C 200/3; F 92; total 385.6/15 + 80/3 + 18.4 = 5308/75
v2 | C 3 4 4 | 3 3 3 3 | X:AC X:AC X:WA | 1 | 6 | | 964/15 | 200/3 | 92 | 5308/75 | C
# the turn is 73.33: P 28.8 + 23.4656 + 12; total 25.70624 + 26.6666… + 18.4 = 70.7729…
compat | C 3 4 4 | 3 3 3 3 | X:AC X:AC X:WA | 1 | 6 | | 64.2656 | 200/3 | 92 | 70.77 | C
# a refused prompt is 0: T 160/3; P 38.4 + 51.2/3 + 16 = 1072/15; total 428.8/15 + 60 = 88.5866…
compat | C 4 4 4, refused, R 4 4 4 4 | 4 4 4 4 | P:AC X:AC | 1 | 2 | | 1072/15 | 100 | 100 | 88.59 | B
# a refused prompt is in no mean: T 80
v2 | C 4 4 4, refused, R 4 4 4 4 | 4 4 4 4 | P:AC X:AC | 1 | 2 | | 80 | 100 | 100 | 92 | A
# there is no prompt that counts
v2 | refused, refused | 4 4 4 4 | P:AC | 1 | 2 | | - | 100 | 100 | - | -
v2 | | 4 4 4 4 | P:AC | 1 | 2 | | - | 100 | 100 | - | -
# T 0, H 20, R 20: P 9.6 + 0 + 4; nothing passed: total 5.44
compat | refused | 1 1 1 1 | P:WA | 1 | 2 | | 13.6 | 0 | 0 | 5.44 | F
# T (30 + 100) / 2, H 90, R 100: P 43.2 + 20.8 + 20; C 4/5; F 50; total 33.6 + 32 + 10
v2 | pasted, D 5 5 5 | 4 5 4 5 | S:AC P:AC P:AC X:AC X:TLE | halfway | 5 | | 84 | 80 | 50 | 75.6 | C
compat | pasted, D 5 5 5 | 4 5 4 5 | S:AC P:AC P:AC X:AC X:TLE | halfway | 5 | | 84 | 80 | 50 | 75.6 | C
# T (30 + 0) / 2, H 25, R 20: P 12 + 4.8 + 4; total 8.32
compat | pasted, refused | 1 2 1 1 | P:WA X:WA | 1 | 2 | | 20.8 | 0 | 0 | 8.32 | F
# the refused one is out: T 30: P 12 + 9.6 + 4; total 10.24
v2 | pasted, refused | 1 2 1 1 | P:WA X:WA | 1 | 2 | | 25.6 | 0 | 0 | 10.24 | F
# T (95 + 60) / 2, H 75, R 80: P 36 + 24.8 + 16; F 84; total 30.72 + 40 + 16.8
v2 | =95, E 2 4 | 3 4 4 4 | P:AC | 1 | 9 | | 76.8 | 100 | 84 | 87.52 | B
# a person counts 50 for a refused prompt: T (50 + 60) / 2; P 28.8 + 17.6 + 12; F 0 at ten times; total 23.36 + 20
compat | =50, C 3 3 3 | 3 3 3 3 | P:AC P:WA | 10 | 1 | | 58.4 | 50 | 0 | 43.36 | F
v2 | =50, C 3 3 3 | 3 3 3 3 | P:AC P:WA | 10 | 1 | | 58.4 | 50 | 0 | 43.36 | F
# a person's zero is a zero: T (0 + 80) / 2; P 38.4 + 12.8 + 16 = 67.2; total 26.88 + 60
v2 | =0, F 4 | 4 4 4 4 | P:AC | 1 | 1 | | 67.2 | 100 | 100 | 86.88 | B
# nothing passed: no speed is needed, nor complexity; total 40
v2 | F 5 | 5 5 5 5 | P:WA X:RE | - | - | | 100 | 0 | 0 | 40 | F
# does not compile: every case failed; T 80: total 32
v2 | S 4 4 | 4 4 4 4 | S:CE P:CE X:CE | - | - | | 80 | 0 | 0 | 32 | F
compat | S 4 4 | 4 4 4 4 | S:CE P:CE X:CE | - | - | | 80 | 0 | 0 | 32 | F
# the judges of the session are away
v2 | C 4 4 4 | - | P:AC | 1 | 3 | | - | 100 | 100 | - | -
# one prompt has no judgement; a refused one beside it changes nothing
v2 | C 4 4 4, missing | 4 4 4 4 | P:AC | 1 | 3 | | - | 100 | 100 | - | -
v2 | missing, refused, C 4 4 4 | 4 4 4 4 | P:AC | 1 | 3 | | - | 100 | 100 | - | -
# the runner is away: neither correctness nor performance
compat | C 4 4 4 | 4 4 4 4 | - | - | 3 | | 80 | - | - | - | -
# the analyser is away; the reference could not be measured
v2 | C 4 4 4 | 4 4 4 4 | P:AC | 1 | - | | 80 | 100 | - | - | -
v2 | C 4 4 4 | 4 4 4 4 | P:AC P:WA | - | 3 | | 80 | 50 | - | - | -
# one case could not be run, by our fault: its group has no figure
v2 | C 4 4 4 | 4 4 4 4 | S:AC P:SE X:AC | 1 | 3 | | 80 | - | - | - | -
# no case at all
v2 | C 4 4 4 | 4 4 4 4 | | 1 | 3 | | 80 | - | - | - | -
# people set what the runner could not say; total 32 + 40 + 16; with correctness alone there is still none
v2 | C 4 4 4 | 4 4 4 4 | - | - | 3 | correctness=100 performance=80 | 80 | 100 | 80 | 88 | B
v2 | C 4 4 4 | 4 4 4 4 | - | - | 3 | correctness=100 | 80 | 100 | - | - | -
# a total by a person is a total, whatever is missing
v2 | C 4 4 4 | - | P:AC | 1 | 3 | total=71 | - | 100 | 100 | 71 | C
compat | missing | - | - | - | - | total=89.994 | - | - | - | 89.994 | B
# total 0 + 40 + 20
v2 | C 4 4 4 | 4 4 4 4 | P:AC | 1 | 3 | prompt=0 | 0 | 100 | 100 | 60 | D
# a person's zero for correctness ends performance too: total 32
v2 | C 4 4 4 | 4 4 4 4 | P:AC | 1 | 3 | correctness=0 | 80 | 0 | 0 | 32 | F
# unless the person sets that as well: 32 + 0 + 20
v2 | C 4 4 4 | 4 4 4 4 | P:WA | 1 | 3 | performance=100 | 80 | 0 | 100 | 52 | F
# edges. 35 + 38 + 17; C is 19 of 20
v2 | C 4 4 4 | 4 4 4 4 | P:AC*19 X:WA | 1 | 3 | prompt=87.5 performance=85 | 87.5 | 95 | 85 | 90 | A
# 35.996 + 36 + 18 = 89.996, which one policy rounds
compat | C 4 4 4 | 4 4 4 4 | P:AC*9 P:WA | 1 | 3 | prompt=89.99 performance=90 | 89.99 | 90 | 90 | 90 | A
v2 | C 4 4 4 | 4 4 4 4 | P:AC*9 P:WA | 1 | 3 | prompt=89.99 performance=90 | 89.99 | 90 | 90 | 89.996 | B
# 32 + 32 + 16; and a hundredth less: 31.99 + 32 + 16
v2 | C 4 4 4 | 4 4 4 4 | P:AC*4 P:WA | 1 | 3 | performance=80 | 80 | 80 | 80 | 80 | B
compat | C 4 4 4 | 4 4 4 4 | P:AC*4 P:WA | 1 | 3 | prompt=79.975 performance=80 | 79.975 | 80 | 80 | 79.99 | C
# 30 + 20 + 20; 31.99 + 20 + 8
v2 | C 4 4 4 | 4 4 4 4 | P:AC P:WA | 1 | 3 | prompt=75 | 75 | 50 | 100 | 70 | C
v2 | C 4 4 4 | 4 4 4 4 | P:AC P:WA | 1 | 3 | prompt=79.975 performance=40 | 79.975 | 50 | 40 | 59.99 | F
# complexity: 1.00 up to 5, 0.92 up to 8, 0.84 above; totals 80 + 0.2 F
v2 | F 5 | 5 5 5 5 | P:AC | 1 | 0 | | 100 | 100 | 100 | 100 | A
v2 | F 5 | 5 5 5 5 | P:AC | 1 | 5 | | 100 | 100 | 100 | 100 | A
v2 | F 5 | 5 5 5 5 | P:AC | 1 | 5.01 | | 100 | 100 | 92 | 98.4 | A
compat | F 5 | 5 5 5 5 | P:AC | 1 | 8 | | 100 | 100 | 92 | 98.4 | A
compat | F 5 | 5 5 5 5 | P:AC | 1 | 8.01 | | 100 | 100 | 84 | 96.8 | A
# speed: all up to 1.5 times, none from 10; totals 20 + 40 + 0.2 F
v2 | F 5 | 5 5 5 5 | P:AC | 0.1 | 1 | prompt=50 | 50 | 100 | 100 | 80 | B
v2 | F 5 | 5 5 5 5 | P:AC | 1.5 | 1 | prompt=50 | 50 | 100 | 100 | 80 | B
v2 | F 5 | 5 5 5 5 | P:AC | halfway | 1 | prompt=50 | 50 | 100 | 50 | 70 | C
v2 | F 5 | 5 5 5 5 | P:AC | 10 | 1 | prompt=50 | 50 | 100 | 0 | 60 | D
v2 | F 5 | 5 5 5 5 | P:AC | 250 | 1 | prompt=50 | 50 | 100 | 0 | 60 | D
# a quarter of the way: 75 · 0.84 = 63; total 60 + 12.6
v2 | F 5 | 5 5 5 5 | P:AC | a quarter | 30 | prompt=50 | 50 | 100 | 63 | 72.6 | C
# medians lie between marks: H 72.5, R 90, T 50: P 34.8 + 16 + 18; C 3/8; total 27.52 + 15 + 20
v2 | F 2.5 | 3.5 4 2.5 4.5 | S:AC P:AC*2 X:WA*5 | 1 | 5 | | 68.8 | 37.5 | 100 | 62.52 | D
# turns 80, 55, 90, 70 and 280/3: T 233/3; H 80, R 100: P 38.4 + 74.56/3 + 20 = 6244/75; C 100/6; total 59.968
v2|D 2 5 4, R 1 2 3 5, E 4 5, S 2 5, C 5 5 4|4 4 3 5|P:TLE P:MLE P:RE P:OLE P:WA P:AC|1|1||6244/75|50/3|100|59.968|F
# the last turn is 93.33: T 77.666: P 38.4 + 24.85312 + 20; total 33.301248 + 20/3 + 20 = 59.9679…
compat|D 2 5 4, R 1 2 3 5, E 4 5, S 2 5, C 5 5 4|4 4 3 5|P:TLE P:MLE P:RE P:OLE P:WA P:AC|1|1||83.25312|50/3|100|59.97|F
# a policy without speed: what does not count may be missing; total 40 + 50
no speed | C 4 4 4 | 4 4 4 4 | P:AC | - | - | | 80 | 100 | - | 90 | A
# samples weigh nothing, hidden cases thrice: (1 + 3) / (1 + 6); total 32 + 160/7 + 20
hidden | C 4 4 4 | 4 4 4 4 | S:WA P:AC X:AC X:WA | 1 | 1 | | 80 | 400/7 | 100 | 524/7 | C
hidden | C 4 4 4 | 4 4 4 4 | S:SE P:AC X:AC X:WA | 1 | 1 | | 80 | 400/7 | 100 | 524/7 | C
# H (2 · 60 + 80) / 3 = 200/3, R 80, T 80: P 32 + 25.6 + 16; total 29.44 + 60
two marks | C 4 4 4 | 3 1 1 4 | P:AC | 1 | 1 | | 73.6 | 100 | 100 | 89.44 | B
"""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


EXAMPLES = [cells(line) for line in TABLE.strip().splitlines() if not line.startswith("#")]
RATIOS = {"halfway": HALFWAY, "a quarter": A_QUARTER}


def overrides_of(said: str) -> dict[Component, Override]:
    set_by_people = {}
    for part in said.split():
        name, _, score = part.partition("=")
        [component] = [known for known in COMPONENTS if known == name]
        set_by_people[component] = Override(float(score), "looked at", "kim")
    return set_by_people


def exact(cell: str) -> float | None:
    return None if cell == "-" else float(Fraction(cell))


def test_there_are_fifty_examples_of_both_policies() -> None:
    assert len(EXAMPLES) >= 50
    assert all(len(row) == 12 for row in EXAMPLES)
    assert sum(row[0] == "compat" for row in EXAMPLES) >= 15 <= sum(row[0] == "v2" for row in EXAMPLES)


@pytest.mark.parametrize("row", EXAMPLES, ids=[" ".join(row) for row in EXAMPLES])
def test_an_example_by_hand(row: list[str]) -> None:
    name, turns, marks, cases, ratio, complexity, people, *expected, grade = row
    policy = POLICIES[name]
    came = steps(
        policy,
        turns=[turn.strip() for turn in turns.split(",") if turn.strip()],
        marks=None if marks == "-" else marks,
        cases=None if cases == "-" else cases,
        ratio=None if ratio == "-" else RATIOS.get(ratio) or float(ratio),
        complexity=None if complexity == "-" else float(complexity),
    )
    final = aggregate(policy, came, overrides_of(people))["final_scores"]
    for component, cell in zip(COMPONENTS, expected, strict=True):
        score, wanted = final[f"{component}_score"], exact(cell)
        assert (score is None) == (wanted is None), (component, score, final["components"][component])
        if wanted is not None:
            assert score == pytest.approx(wanted, abs=1e-9), component
        assert final["components"][component]["score"] == score
    assert final["grade"] == (None if grade == "-" else grade)
    assert final["status"] == ("PENDING_REVIEW" if final["total_score"] is None else "SCORED")


# ---------------------------------------------------------------- what holds for all numbers

ratios = st.floats(0, 1_000)
marks = st.lists(st.integers(2, 10).map(lambda half: half / 2), min_size=4, max_size=4)
BOTH = pytest.mark.parametrize("policy", [V2, COMPAT], ids=lambda policy: policy.name)


@given(ratios, ratios)
def test_a_slower_program_never_gets_more(one: float, other: float) -> None:
    slow, fast = max(one, other), min(one, other)
    assert 0 <= V2.running_time(slow).value <= V2.running_time(fast).value <= 100


@given(st.floats(0.01, 100), st.floats(1, 1.001))
def test_a_little_slower_costs_a_little(ratio: float, factor: float) -> None:
    # Between the ends the slope is 100 / ln(20/3) for each e-fold, and nowhere more.
    lost = V2.running_time(ratio).value - V2.running_time(ratio * factor).value
    assert -1e-9 <= lost <= 100 * math.log(factor) / math.log(20 / 3) + 1e-9


def test_every_doubling_costs_the_same() -> None:
    losses = [V2.running_time(ratio).value - V2.running_time(2 * ratio).value for ratio in (1.5, 2.0, 3.3, 5.0)]
    assert losses == pytest.approx([100 * math.log(2) / math.log(20 / 3)] * 4, abs=1e-9)


@pytest.mark.parametrize("ratio", [-0.1, math.inf, math.nan])
def test_a_ratio_that_is_none_is_a_bug(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        V2.running_time(ratio)


@given(marks)
def test_criteria_that_count_alike_may_change_places(values: list[float]) -> None:
    found = {V2.holistic(dict(zip(Criterion, order, strict=True))) for order in permutations(values)}
    assert len(found) == 1
    [score] = found
    assert isinstance(score, Score)
    assert score.value == pytest.approx(5 * sum(values), abs=1e-9)


@given(marks, st.sampled_from(Criterion))
def test_a_mark_that_is_missing_leaves_no_score(values: list[float], missing: Criterion) -> None:
    known = dict(zip(Criterion, values, strict=True)) | {missing: Unscored("the judge is down")}
    assert V2.holistic(known) == Unscored(f"{missing}: the judge is down")


PARTS = (Node.TURNS, Node.TESTS, Node.ANALYSIS, Node.PANEL)


@BOTH
@given(gone=st.sets(st.sampled_from(PARTS), min_size=1), how=st.sampled_from(["missing", "skipped", "not done"]))
def test_a_part_that_is_missing_is_never_a_zero(policy: ScorePolicy, gone: set[Node], how: str) -> None:
    came = steps(policy)
    for node in gone:
        if how == "not done":
            del came[node]
        else:
            came[node] = Outcome.missing("away") if how == "missing" else Outcome.skipped("no need")
    final = aggregate(policy, came)["final_scores"]
    assert (final["status"], final["total_score"], final["grade"]) == ("PENDING_REVIEW", None, None)
    scores = [final[f"{name}_score"] for name in COMPONENTS]
    assert 0 not in scores
    for name, score in zip(COMPONENTS, scores, strict=True):
        part = final["components"][name]
        assert (part["status"] == "missing") == (score is None) == (part["reason"] is not None)


# ---------------------------------------------------------------- what Core is told


def told(came: Mapping[Node, Outcome], **set_by_people: Override) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(aggregate(V2, came, set_by_people)))  # type: ignore[arg-type]
    for model, bodies in ((FinalScores, [result["final_scores"]]), (TurnScore, result["turn_scores"].values())):
        for body in bodies:
            read = model.model_validate_json(json.dumps(body), strict=True)
            assert read.model_dump(mode="json", exclude_unset=True) == body, "a field that no model knows of"
    return result


def test_every_turn_says_where_its_score_is_from() -> None:
    result = told(steps(V2, turns=("C 3 4 4", "refused", "=40", "missing", "pasted")))
    assert result["turn_scores"] == {
        "1": {"score": pytest.approx(220 / 3), "intent": "CREATION", "status": "ok", "reason": None},
        "2": {"score": None, "intent": None, "status": "left_out", "reason": "refused by the guard"},
        "3": {"score": 40, "intent": None, "status": "overridden", "reason": None},
        "4": {"score": None, "intent": None, "status": "missing", "reason": "judge unavailable"},
        "5": {"score": 30, "intent": None, "status": "ok", "reason": None},
    }
    prompt = result["final_scores"]["components"]["prompt"]
    assert prompt == {"status": "missing", "score": None, "reason": "conversation: turns: turn 4: judge unavailable"}


def test_the_machine_s_score_stays_beside_a_person_s() -> None:
    kim = Override(90.5, "The limit is named.", "kim")
    final = told(steps(V2), prompt=kim)["final_scores"]
    assert final["components"]["prompt"] == {
        "status": "overridden",
        "score": 90.5,
        "reason": "The limit is named.",
        "person": "kim",
        "machine_score": 80,
    }
    assert final["prompt"] == {"holistic": 80, "turn_mean": 80, "session_r4": 80}
    assert final["total_score"] == pytest.approx(96.2)
    total = told(steps(V2, marks=None), total=kim)["final_scores"]["components"]["total"]
    assert total["machine_score"] is None, "there was none"


def test_what_it_was_made_by_is_told_and_what_goes_into_a_test_case_is_not() -> None:
    final = told(steps(V2))["final_scores"]
    versions = final["versions"]
    assert versions["policy"] == final["policy"]["hash"] == V2.hash
    assert versions["isolation"] == {"backend": "bubblewrap", "level": "cgroup2"}
    assert versions["tools"] == {"lizard": "1.17"}
    assert {"turns", "last_turn", "spoken"}.isdisjoint(versions)
    assert final["test_cases"][2] == {
        "index": 2,
        "group": "PRIVATE",
        "verdict": "AC",
        "cause": "",
        "time_ms": 12,
        "memory_kb": 9000,
        "stdout_bytes": 2,
        "stderr_bytes": 0,
    }


def test_turns_are_named_by_their_own_numbers() -> None:
    came = steps(V2, turns=("missing", "C 4 4 4"))
    came[Node.TURNS].value["turns"][0]["turn"] = 7
    assert "turn 7: " in aggregate(V2, came)["final_scores"]["components"]["prompt"]["reason"]


# ---------------------------------------------------------------- code that is newer than the grammar


@pytest.mark.parametrize(("cases", "expected"), [("S:AC P:WA", 3.0), ("S:WA P:WA", None), ("S:CE P:CE", None)])
def test_a_syntax_the_analyser_does_not_know_leaves_no_gap_where_the_program_passes(
    cases: str, expected: float | None
) -> None:
    found = steps(V2, cases=cases)
    unread = {"mean_complexity": None, "complexity_reason": "syntax error in line 3", "measured_complexity": 3.0}
    complexity = evidence_of({**found, Node.ANALYSIS: Outcome("ok", unread)}).complexity
    assert complexity == (expected if expected is not None else Unscored("syntax error in line 3"))
