"""A short run of the torture harness, and that it would see what it looks for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from torture.__main__ import report
from torture.candidate import View
from torture.check import Finding

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_breaks_no_promise() -> None:
    command = [sys.executable, "-m", "torture", "--seconds", "15", "--candidates", "5", "--seed", "3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [line.split(maxsplit=2) for line in run.stdout.splitlines()]
    assert {verdict for verdict, *_ in lines} == {"held"}
    tested = {promise: int(count) for _, count, promise in lines}
    assert len(tested) == 13
    assert sum(count > 0 for count in tested.values()) >= 11, tested


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
