"""``python -m torture``: torture the service, and say which promises held."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from torture.check import Finding
from torture.delivery import run_callbacks
from torture.submissions import run_submissions
from torture.turns import run_turns

SCENARIOS: Mapping[str, Callable[[argparse.Namespace, Path], list[Finding]]] = {
    "turns": run_turns,
    "callbacks": run_callbacks,
    "submissions": run_submissions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code: 0 where everything held."""
    options = _parser().parse_args(arguments)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    log_dir = Path(tempfile.mkdtemp(prefix="turnstone-torture-logs-"))
    codes = [report(SCENARIOS[name](options, log_dir), log_dir) for name in SCENARIOS if options.only in (None, name)]
    return max(codes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m torture", description=main.__doc__)
    parser.add_argument("--only", choices=SCENARIOS, help="one of them; all, one after the other, unless told")
    parser.add_argument("--seed", type=int, default=1, help="of all that is decided by chance (1)")
    turns = parser.add_argument_group("turns", "candidates ask while processes, PostgreSQL, Redis and Core fail")
    turns.add_argument("--seconds", type=float, default=120.0, help="how long (120)")
    turns.add_argument("--processes", type=int, default=2, help="processes that serve (2)")
    turns.add_argument("--candidates", type=int, default=10, help="candidates at once (10)")
    callbacks = parser.add_argument_group(
        "callbacks", "Core is away, then misbehaves, while the worker is killed: by push and by the feed it knows all"
    )
    callbacks.add_argument("--events", type=int, default=5000, help="events recorded, at least (5000)")
    callbacks.add_argument("--kills", type=int, default=20, help="kill -9 of the worker (20)")
    callbacks.add_argument(
        "--hour",
        type=float,
        default=12.0,
        help="seconds that stand for the hour without Core, in which four kills fall (12)",
    )
    submissions = parser.add_argument_group(
        "submissions", "the worker is killed at every node of an evaluation; then every part is away for a while"
    )
    submissions.add_argument("--rounds", type=int, default=20, help="kill -9 with an evaluation at every node (20)")
    submissions.add_argument("--submissions", type=int, default=200, help="submissions while parts are away (200)")
    return parser


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


if __name__ == "__main__":
    sys.exit(main())
