"""The tests' scripted judge as a process: it answers at once, and its marks are at no grade's edge. No model."""

from __future__ import annotations

import signal
import threading

from tests.support.judge import ScriptedJudge

_MARKS = {"R1": 2, "R2": 3, "R3": 3, "R4": 3}


def main() -> None:
    """Serve on a free port of the loopback until told to stop; the first line on standard output is the address."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ScriptedJudge() as judge:
        judge.intent, judge.marks = "EXPLORATION", lambda _: _MARKS
        print(judge.url, flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
