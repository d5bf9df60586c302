"""``python -m bench``: measure, show a table, and say whether the goals are met."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog
import uvloop

from app.core.errors import StartupError
from bench.callbacks import telling
from bench.client import calm_collector
from bench.elsewhere import cancelling_elsewhere
from bench.first_token import first_token
from bench.judging import judging
from bench.memory import memory
from bench.plan import QUICK, Plan, say
from bench.relay import added_latency, cpu_per_delta
from bench.report import markdown, missed
from bench.soak import soak
from bench.submissions import handing_in
from bench.targets import BenchError, Scene, open_scene
from bench.turns import cancelling, throughput

Measure = Callable[[Scene, Plan], Awaitable[dict[str, Any]]]

PARTS: Mapping[str, Measure] = {
    "memory": memory,  # first, as the others leave memory behind
    "relay": cpu_per_delta,
    "first-token": first_token,
    "latency": added_latency,
    "turns": throughput,
    "callbacks": telling,
    "cancel": cancelling,
    "judging": judging,
    "elsewhere": cancelling_elsewhere,
    "submissions": handing_in,
    "soak": soak,
}
ON_DEMAND = {"submissions", "soak"}
"""Parts that take up to ten minutes, so only where they are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = _parser().parse_args(arguments)
    plan = QUICK if options.quick else Plan()
    plan = dataclasses.replace(plan, streams=options.streams, rate=options.rate)
    machine = _machine()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # standard output is the table's
    )
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            results = runner.run(
                _run(plan, [name for name in PARTS if name in (options.only or PARTS.keys() - ON_DEMAND)])
            )
    except (BenchError, StartupError) as error:
        say(f"the benchmark failed: {error}")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        say("stopped")
        return 130
    print(markdown(results, machine))
    short = missed(results)
    if options.json is not None:
        report = {"machine": machine, "plan": dataclasses.asdict(plan), "results": results, "missed": short}
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for line in short:
        say(f"missed: {line}")
    return 1 if short and options.strict else 0


async def _run(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    begun = time.monotonic()
    say("starting PostgreSQL, the provider, the receiver, this service and the usual way")
    results: dict[str, Any] = {}
    with open_scene() as scene:
        calm_collector()
        for name in names:
            say(f"{name} ({time.monotonic() - begun:.0f} s)")
            try:
                results[name] = await PARTS[name](scene, plan)
            except BenchError as error:
                raise BenchError(f"{name}: {error}") from error
        say(f"stopping ({time.monotonic() - begun:.0f} s)")
    say(f"done ({time.monotonic() - begun:.0f} s)")
    return results


def _machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        model = names[0] if names else model
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": os.getloadavg()[0],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure this service beside the usual way (bench/usual.py) in one run, by turns. Starts all it "
        "needs on loopback and stops it again. Progress goes to standard error, a Markdown table to standard output.",
    )
    parser.add_argument("--quick", action="store_true", help="a minute in the place of five; rougher")
    parser.add_argument("--streams", type=_positive(int), default=40, help="streams of the CPU comparison (40)")
    parser.add_argument("--rate", type=_positive(float), default=50.0, help="pieces a second of each stream (50)")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"one of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to this file")
    parser.add_argument("--assert", dest="strict", action="store_true", help="exit code 1 when a must is missed")
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError("must be above 0")
        return value

    parse.__name__ = kind.__name__  # what argparse calls it in its message
    return parse


if __name__ == "__main__":
    sys.exit(main())
