"""How much is measured, and the small tools the measurements share."""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import psutil

from bench.client import Connection, Meter, Turn, wait_for


@dataclass(frozen=True)
class Plan:
    """Lengths and counts; the full run takes up to five minutes, the quick one up to a minute.

    ``relay_margin_s``: streams go on for this long after their steady phase; a busy machine begins them later than
    planned.
    """

    streams: int = 40
    rate: float = 50.0
    relay_pairs: int = 3
    relay_s: float = 4.0
    relay_margin_s: float = 1.5
    single_turns: int = 150
    arrival_pairs: int = 2
    arrival_s: float = 4.0
    levels: Sequence[int] = (100, 200, 400, 500)
    direct_levels: Sequence[int] = (100, 400)
    level_s: float = 3.0
    turn_rounds: int = 2
    turns_s: float = 5.0
    callback_pairs: int = 3
    told_turns: int = 40
    backlog_events: int = 3000
    dead_events: int = 40_000
    idle_sockets: int = 500
    running_turns: int = 200
    memory_of_usual: bool = True
    cancel_rounds: int = 4
    soak_s: float = 600.0
    submissions: int = 200


QUICK = Plan(
    relay_pairs=2,
    relay_s=1.0,
    relay_margin_s=0.8,
    single_turns=25,
    arrival_pairs=1,
    arrival_s=1.0,
    levels=(100,),
    direct_levels=(),
    level_s=1.0,
    turns_s=1.5,
    callback_pairs=1,
    told_turns=20,
    backlog_events=1000,
    idle_sockets=200,
    running_turns=40,
    memory_of_usual=False,
    turn_rounds=1,
    cancel_rounds=1,
    soak_s=40.0,
    submissions=20,
)


def say(line: str) -> None:
    """Progress, for whoever waits."""
    print(line, file=sys.stderr, flush=True)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0 to 1) of the values lie; the nearest one that exists."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def milliseconds(values_s: Sequence[float]) -> dict[str, float]:
    """Percentiles of some seconds, in milliseconds."""
    return {
        "p50_ms": percentile(values_s, 0.50) * 1000,
        "p95_ms": percentile(values_s, 0.95) * 1000,
        "p99_ms": percentile(values_s, 0.99) * 1000,
        "max_ms": max(values_s) * 1000,
        "samples": len(values_s),
    }


median = statistics.median


class HasCpu(Protocol):
    """Something whose CPU time can be read."""

    def cpu_s(self) -> float: ...


class Client:
    """This process, as one of those that use CPU."""

    def __init__(self) -> None:
        self._process = psutil.Process()

    def cpu_s(self) -> float:
        times = self._process.cpu_times()
        return float(times.user + times.system)


class Machine:
    """The whole machine, with what a host took away from it: shows what others used meanwhile."""

    def cpu_s(self) -> float:
        times = psutil.cpu_times()
        return float(times.user + times.nice + times.system + getattr(times, "steal", 0.0))


@dataclass
class Usage:
    """What was used in a window: seconds of wall clock, seconds of CPU by name, pieces that came."""

    wall_s: float
    cpu_s: Mapping[str, float]
    pieces: int
    lags_s: Sequence[float]

    def microseconds(self, name: str) -> float:
        """CPU of one process per piece, in microseconds."""
        return self.cpu_s[name] / max(self.pieces, 1) * 1e6

    def shares(self) -> dict[str, float]:
        """CPU of each process in percent of one core; ``others`` is what none of them used."""
        shares = {name: seconds / self.wall_s * 100 for name, seconds in self.cpu_s.items()}
        if "machine" in shares:
            whole = shares.pop("machine")
            shares["others"] = max(whole - sum(shares.values()), 0.0)
        return shares


async def watch(seconds: float, meter: Meter, processes: Mapping[str, HasCpu]) -> Usage:
    """Look at a steady phase of so many seconds."""
    meter.lags_s = type(meter.lags_s)("d")
    meter.recording = True
    at, pieces = time.perf_counter(), meter.pieces
    before = {name: process.cpu_s() for name, process in processes.items()}
    await asyncio.sleep(seconds)
    after = {name: process.cpu_s() for name, process in processes.items()}
    wall, pieces = time.perf_counter() - at, meter.pieces - pieces
    meter.recording = False
    return Usage(wall, {name: after[name] - before[name] for name in before}, pieces, meter.lags_s)


async def ask_all(connections: Sequence[Connection], per_s: float) -> list[Turn]:
    """A turn on each connection, about ``per_s`` begun a second; returns when every one has its first piece.

    The moments are uneven (but the same in each run), so that the streams' pieces do not come in step.
    """
    uneven = random.Random(1)
    turns = []
    begun = time.perf_counter()
    for number, connection in enumerate(connections):
        await asyncio.sleep(max(0.0, begun + (number + uneven.random()) / per_s - time.perf_counter()))
        turns.append(connection.ask())
    for turn in turns:
        await wait_for(turn.first, "the first piece of a turn")
    return turns


def streaming(pieces: int, delay_s: float) -> dict[str, Any]:
    """A script of short stamped pieces, one every ``delay_s``."""
    return {"pieces": [f"word{index} " for index in range(pieces)], "piece_delay_s": delay_s, "stamp": True}
