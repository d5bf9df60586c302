"""A receiver of callbacks as a process of its own: the fake Core, for which sessions from `DEAD_FROM` on are dead.

``python -m bench.receiver`` prints its address and serves; ``GET /`` has its counts, ``GET /events`` what came.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

import uvloop

from app.fake_core.answer import Answer
from app.fake_core.chaos import Chaos, Fault
from app.fake_core.ledger import Ledger
from app.fake_core.receiver import Receiver
from app.fake_core.server import CoreServer, serving
from app.server import listen

DEAD_FROM = 1_000_000_000
_KEPT = 20_000
_REFUSED = Fault("dead", Answer(status=500))


class DeadSessions(Chaos):
    """Refuses whatever comes of the sessions that the benchmark has made for it, and takes all else."""

    def decide(self, event: str, session_id: str, number: int, age_s: float) -> Fault | None:
        return _REFUSED if int(session_id) >= DEAD_FROM else None


async def _serve(port: int) -> None:
    core = CoreServer(Receiver(), DeadSessions(), Ledger(keep=_KEPT))
    listener = listen("127.0.0.1", port)
    async with serving(core.application(), listener):
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(options.port))


if __name__ == "__main__":
    main()
