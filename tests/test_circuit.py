"""The circuit: what opens it, what does not, and how it closes again."""

from __future__ import annotations

import pytest

from app.domain.circuit import Circuit, CircuitState


def opened(*pauses_s: float, now: float = 100.0) -> Circuit:
    circuit = Circuit(pauses_s)
    for session_id in range(5):
        circuit.silent(session_id, now, now, new=False)
    assert circuit.state is CircuitState.OPEN
    return circuit


def test_it_opens_when_five_sessions_in_a_row_find_nobody() -> None:
    circuit = Circuit([1])
    for session_id in range(4):
        circuit.silent(session_id, 100.0, 100.0, new=False)
    assert (circuit.state, circuit.wait_s(100.0)) == (CircuitState.CLOSED, 0)
    circuit.silent(4, 100.0, 100.0, new=False)
    assert (circuit.state, circuit.wait_s(100.25), circuit.wait_s(200.0)) == (CircuitState.OPEN, 0.75, 0)


def test_one_session_alone_never_opens_it_and_any_answer_begins_the_count_anew() -> None:
    circuit = Circuit([1])
    for _ in range(100):
        circuit.silent(7, 0.0, 0.0, new=False)
    for session_id in range(20):
        circuit.silent(session_id, 0.0, 0.0, new=False)
        circuit.answered(0.0, new=False)
    for session_id in range(4):
        circuit.silent(session_id, 0.0, 0.0, new=False)
    assert circuit.state is CircuitState.CLOSED


def test_after_the_pause_one_goes_ahead_and_its_answer_closes_it() -> None:
    circuit = opened(1)
    with pytest.raises(ValueError, match="nobody"):
        circuit.go_ahead(100.5)
    circuit.go_ahead(101.0)
    assert circuit.state is CircuitState.HALF_OPEN
    with pytest.raises(ValueError, match="nobody"):
        circuit.go_ahead(102.0)
    circuit.answered(102.0, new=False)
    assert circuit.state is CircuitState.CLOSED


def test_the_pauses_grow_with_each_one_that_went_in_vain_and_begin_anew_after_an_answer() -> None:
    circuit, now, pauses = opened(1, 2, 4, 60), 100.0, []
    for _ in range(6):
        pauses.append(circuit.wait_s(now))
        now += pauses[-1]
        circuit.go_ahead(now)
        circuit.silent(9, now, now, new=False)
    assert pauses == [1, 2, 4, 15, 15, 15]
    circuit.answered(now, new=False)
    for session_id in range(5):
        circuit.silent(session_id, now, now, new=False)
    assert circuit.wait_s(now) == 1


def test_core_says_for_how_long_it_wants_to_be_left_alone_within_reason() -> None:
    circuit = Circuit([1])
    for session_id in range(5):
        circuit.silent(session_id, 0.0, 0.0, new=False, asked_s=30)
    assert circuit.wait_s(0.0) == 30
    circuit.go_ahead(30.0)
    circuit.silent(1, 30.0, 30.0, new=False, asked_s=86_400)
    assert circuit.wait_s(30.0) == 300


def test_one_that_had_nothing_to_send_makes_room_for_the_next() -> None:
    circuit = opened(1)
    circuit.go_ahead(101.0)
    circuit.turned_back()
    circuit.go_ahead(101.0)


def test_what_was_still_under_way_when_it_opened_makes_no_pause_longer_and_may_close_it() -> None:
    circuit = opened(1)
    circuit.silent(77, 100.9, 100.9, new=False)
    assert circuit.wait_s(101.0) == 0
    circuit.answered(100.95, new=False)
    assert circuit.state is CircuitState.CLOSED


def test_without_delays_it_still_pauses() -> None:
    assert opened(now=100.0).wait_s(100.0) == 1
    assert opened(0, now=100.0).wait_s(100.0) == 1


def test_a_try_that_began_before_the_last_answer_says_nothing_new() -> None:
    circuit = Circuit([1])
    circuit.answered(100.0, new=False)
    for session_id in range(50):
        circuit.silent(session_id, 99.0, 114.0, new=False)
    assert circuit.state is CircuitState.CLOSED


def sessions_until_open(circuit: Circuit, now: float) -> int:
    count = 0
    while circuit.state is CircuitState.CLOSED:
        circuit.silent(count, now, now, new=False)
        count += 1
    return count


def test_an_opening_that_was_a_mistake_makes_the_next_one_harder_and_a_true_one_takes_that_back() -> None:
    circuit = Circuit([1])
    needed = []
    for now in range(0, 1000, 100):
        needed.append(sessions_until_open(circuit, now))
        circuit.go_ahead(now + 1)
        circuit.silent(1, now + 1, now + 1, new=False)  # as before: it says nothing of the others
        circuit.answered(now + 10, new=True)
    assert needed == [5, 10, 20, 40, 80, 160, 320, 320, 320, 320]
    sessions_until_open(circuit, 2000)
    circuit.silent(77, 2001, 2001, new=True)
    circuit.answered(2010, new=True)
    assert sessions_until_open(circuit, 3000) == 5


def test_who_had_failed_before_and_is_answered_again_makes_nothing_harder() -> None:
    circuit = opened(1)
    circuit.go_ahead(101.0)
    circuit.answered(101.0, new=False)
    assert sessions_until_open(circuit, 200) == 5


def test_a_new_one_may_go_at_once_but_one_a_second() -> None:
    circuit = opened(15)
    assert [circuit.new_one_may_go(at) for at in (100.0, 100.5, 101.0, 101.9, 102.0)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    circuit.silent(99, 102.0, 102.1, new=True)
    assert circuit.wait_s(110.0) == 5, "it makes the pause no longer"
