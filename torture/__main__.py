"""``python -m torture``: torture the service, and say which promises held."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import structlog

from torture.candidate import Candidate
from torture.chaos import Chaos
from torture.check import Finding, check
from torture.scene import Scene, open_scene

_SETTLE_S = 90.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 where everything held."""
    parser = argparse.ArgumentParser(prog="python -m torture", description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="how long (120)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is decided by chance (1)")
    parser.add_argument("--processes", type=int, default=2, help="processes that serve (2)")
    parser.add_argument("--candidates", type=int, default=10, help="candidates at once (10)")
    options = parser.parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log_dir = Path(tempfile.mkdtemp(prefix="turnstone-torture-logs-"))
    say(f"starting {options.processes} processes, PostgreSQL, Redis, a provider and Core; logs go to {log_dir}")
    with open_scene(options.processes, log_dir) as scene:
        findings = asyncio.run(_run(scene, options))
    return report(findings, log_dir)


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


def report(findings: Sequence[Finding], log_dir: Path) -> int:
    """Print a line for each promise; returns the exit code."""
    broken = 0
    for finding in findings:
        verdict = "held" if not finding.broken else f"BROKEN {len(finding.broken)} times"
        print(f"{verdict:>18}  {finding.tested:6d}  {finding.promise}")
        for what in finding.broken[:5]:
            print(f"{'':>26}  {what}")
        broken += len(finding.broken)
    if broken:
        print(f"the processes' logs are in {log_dir}")
    return 1 if broken else 0


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
