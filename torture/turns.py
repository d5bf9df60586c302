"""The turns under torture: candidates ask while processes, database, Redis and Core fail."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from pathlib import Path

from torture.candidate import Candidate
from torture.chaos import Chaos
from torture.check import Finding, check
from torture.scene import Scene, open_scene, say

_SETTLE_S = 90.0


def run_turns(options: argparse.Namespace, log_dir: Path) -> list[Finding]:
    """Torture for ``options.seconds``, and look at what is left."""
    say(f"starting {options.processes} processes, PostgreSQL, Redis, a provider and Core; logs go to {log_dir}")
    with open_scene(options.processes, log_dir) as scene:
        return asyncio.run(_run(scene, options))


async def _run(scene: Scene, options: argparse.Namespace) -> list[Finding]:
    until = time.monotonic() + options.seconds
    candidates = [Candidate(scene, options.seed, number) for number in range(options.candidates)]
    chaos = Chaos(scene, options.seed, say)
    await asyncio.gather(chaos.run(until), *(candidate.run(until) for candidate in candidates))
    say(f"{sum(chaos.done.values())} faults ({', '.join(f'{n} {name}' for name, n in chaos.done.most_common())})")
    scene.core.reset_answers()
    await asyncio.to_thread(_settle, scene)
    kinds = Counter(end["type"] for candidate in candidates for turn in candidate.turns for end in turn.ends)
    say(f"{sum(len(c.turns) for c in candidates)} turns asked for; ends told: {dict(kinds)}")
    return check(scene, candidates)


def _settle(scene: Scene) -> None:
    """Wait until nothing runs any more and Core has been told all."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        running = scene.rows("SELECT count(*) FROM prompt_turns WHERE status = 'running'")
        waiting = scene.rows("SELECT count(*) FROM callbacks WHERE status = 'pending'")
        if running == [(0,)] and waiting == [(0,)]:
            return
        time.sleep(0.2)
    say(f"not settled after {_SETTLE_S:.0f} s")
