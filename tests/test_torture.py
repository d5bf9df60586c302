"""A short run of the torture harness, and that it would see what it looks for."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torture.__main__ import report
from torture.candidate import View
from torture.check import Finding
from torture.delivery import scaled_delays
from torture.delivery_check import Met, Told, check_delivery, check_met

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> dict[str, int]:
    """Torture, and see that every promise held; returns how often each was put to the test."""
    command = [sys.executable, "-m", "torture", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [line.split(maxsplit=2) for line in ended.stdout.splitlines()]
    assert {verdict for verdict, *_ in lines} == {"held"}
    return {promise: int(count) for _, count, promise in lines}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_breaks_no_promise() -> None:
    tested = run("--only", "turns", "--seconds", "15", "--candidates", "5", "--seed", "3")
    assert len(tested) == 13
    assert sum(count > 0 for count in tested.values()) >= 11, tested


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_core_knows_all_by_push_and_by_the_feed_after_an_outage_random_faults_and_kills_of_the_worker() -> None:
    tested = run("--only", "callbacks", "--events", "300", "--kills", "3", "--hour", "4", "--seed", "3")
    assert len(tested) == 12
    assert all(count >= 3 for count in tested.values()), tested
    for way in ("push", "feed"):
        assert tested[f"{way}: every recorded event has arrived, with the body that is stored"] >= 300


def test_a_gap_a_repetition_and_an_empty_delta_are_seen() -> None:
    view = View()
    view.take({"seq": 1, "content": "a"})
    view.take({"seq": 3, "first_seq": 2, "content": "bc"})
    assert (view.text, view.last_seq, view.faults) == ("abc", 3, [])
    view.take({"seq": 5, "content": "e"})
    view.take({"seq": 3, "content": "c"})
    view.take({"seq": 4, "content": ""})
    assert len(view.faults) == 3


def test_a_broken_promise_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, broken = Finding("kept", 3), Finding("another")
    broken.hold(True, "")
    broken.hold(False, "t7")
    assert report([kept], tmp_path) == 0
    assert report([kept, broken], tmp_path) == 1
    assert "BROKEN 1 times       2  another" in capsys.readouterr().out


def told(**changed: Any) -> Told:
    """Two sessions of two events each, of which Core knows all, but for what is changed."""
    recorded = []
    for session, seq in (("1", 1), ("1", 2), ("2", 1), ("2", 2)):
        body = {"type": "usage", "session_id": session, "callback_seq": seq, "total_tokens": 5}
        recorded.append((f"e{session}{seq}", body))
    table = [(event_id, {**body, "occurred_at": "now"}) for event_id, body in recorded]
    values: dict[str, Any] = {"states": {"delivered": 4}, "totals": {"1": 10, "2": 10}, "pushed": table, "fed": table}
    return Told(recorded=recorded, **{**values, **{name: change(table) for name, change in changed.items()}})


def test_a_core_that_knows_all_breaks_nothing() -> None:
    findings = check_delivery(told())
    assert [finding.broken for finding in findings] == [[]] * 9
    assert [finding.tested for finding in findings] == [4, 4, 2, 2, 4, 4, 2, 2, 4]


@pytest.mark.parametrize(
    ("what", "change", "broken"),
    [
        ("lost", lambda table: table[:1] + table[2:], {"arrived", "adds up"}),
        ("lost in the middle", lambda table: table[1:], {"arrived", "order", "adds up"}),
        ("swapped", lambda table: [table[1], table[0], *table[2:]], {"order"}),
        ("doubled", lambda table: [*table, table[0]], {"twice", "order", "adds up"}),
        ("invented", lambda table: [*table, ("e9", table[0][1])], {"twice", "order", "adds up"}),
        ("altered", lambda table: [(table[0][0], {**table[0][1], "turn": 3}), *table[1:]], {"arrived"}),
    ],
)
@pytest.mark.parametrize("way", ["pushed", "fed"])
def test_what_core_does_not_know_right_is_seen(
    way: str, what: str, change: Callable[[list[Any]], list[Any]], broken: set[str]
) -> None:
    prefix = {"pushed": "push", "fed": "feed"}[way]
    found = {finding.promise for finding in check_delivery(told(**{way: change})) if finding.broken}
    assert len(found) == len(broken), (what, found)
    for part in broken:
        assert [promise for promise in found if part in promise and promise.startswith(prefix)], (what, part, found)


def test_what_was_given_up_and_what_never_happened_is_seen() -> None:
    [*_, given_up] = check_delivery(told(states=lambda _: {"delivered": 3, "failed": 1}))
    assert given_up.broken == ["failed"]
    met = Met(kills=3, while_sending=1, away_s=2, duplicates=4, read_again=4, faults=Counter({"500": 3, "hang": 1}))
    assert [finding.broken for finding in check_met(met, kills=3, faults=["500", "hang"])] == [[], [], []]
    for lacking, kills in (
        (dataclasses.replace(met, while_sending=0), 3),
        (met, 4),
        (dataclasses.replace(met, faults=Counter({"500": 3})), 3),
        (dataclasses.replace(met, duplicates=0), 3),
        (dataclasses.replace(met, read_again=0), 3),
    ):
        assert sum(bool(finding.broken) for finding in check_met(lacking, kills=kills, faults=["500", "hang"])) == 1


def test_the_delays_are_the_default_ones_made_smaller() -> None:
    delays = scaled_delays(12.0)
    assert delays[:6] == pytest.approx([1 / 300, 2 / 300, 4 / 300, 15 / 300, 60 / 300, 1.0])
    assert set(delays[6:]) == {1.0}
