"""Patience counts from when something first had to wait, and each cause has its own."""

from __future__ import annotations

import json
import math

import pytest

from app.domain.waiting import DAY_S, HOUR_S, Wait


def test_patience_begins_with_the_first_try_that_came_to_nothing() -> None:
    wait = Wait.further(None, "judge unavailable", DAY_S, 1_000)
    assert not wait.is_over(1_000)
    wait = Wait.further(wait, "judge unavailable", DAY_S, 1_000 + DAY_S - 1)
    assert not wait.is_over(1_000 + DAY_S - 1)
    assert wait.is_over(1_000 + DAY_S)


def test_a_cause_with_less_patience_begins_anew_and_is_not_given_up_at_once() -> None:
    wait = Wait.further(None, "judge unavailable", DAY_S, 0)
    wait = Wait.further(wait, "the judge rejects the request", HOUR_S, 3 * HOUR_S)
    assert (wait.reason, wait.since, wait.cause_since) == ("the judge rejects the request", 0, 3 * HOUR_S)
    assert not wait.is_over(4 * HOUR_S - 1)
    assert wait.is_over(4 * HOUR_S)


def test_causes_that_take_turns_are_given_up_after_a_day() -> None:
    wait = None
    for hour in range(24):
        wait = Wait.further(wait, "…", DAY_S if hour % 2 else HOUR_S, hour * HOUR_S)
        assert not wait.is_over(hour * HOUR_S)
    assert wait is not None and wait.is_over(DAY_S)


@pytest.mark.parametrize("patience_s", [2 * DAY_S, math.inf])
def test_a_long_wait_that_had_its_time_makes_nobody_short_with_the_next_cause(patience_s: float) -> None:
    wait = Wait.further(None, "the database is away", patience_s, 0)
    wait = Wait.further(wait, "judge unavailable", DAY_S, 30 * HOUR_S)
    assert not wait.is_over(30 * HOUR_S + DAY_S - 1)
    assert wait.is_over(30 * HOUR_S + DAY_S)


def test_what_cannot_be_done_without_is_waited_for_for_ever() -> None:
    wait = Wait.further(None, "the database is away", math.inf, 0)
    assert not wait.is_over(1e12)


@pytest.mark.parametrize("patience_s", [HOUR_S, math.inf])
def test_it_is_stored_as_json_has_numbers(patience_s: float) -> None:
    wait = Wait("the code runner is unavailable", 1.5, 2.5, patience_s)
    assert Wait.from_json(json.loads(json.dumps(wait.to_json(), allow_nan=False))) == wait
