"""Many idle sockets, turns all the time and readers that read nothing, for minutes: does memory stay where it is?"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from typing import Any

from bench.client import Connection, Meter, all_done, connections
from bench.plan import Plan, say, streaming
from bench.targets import BenchError, Scene

_IDLE = 2_000
_TALKING = 300
_STALLED_SHARE = 0.05
_WARM_UP_SHARE = 0.25
"""Of the time; what grows until then is counted as the process's size."""
_LOOK_EVERY_S = 5.0
_PIECES, _DELAY_S = 80, 0.1


async def soak(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Resident memory over time, and its slope after the warm-up."""
    await scene.provider.play(streaming(_PIECES, _DELAY_S))
    meter, chance = Meter(), random.Random(1)
    until = time.monotonic() + plan.soak_s
    looks: list[tuple[float, int]] = []
    async with connections(scene.ours.port, _IDLE, Meter()), connections(scene.ours.port, _TALKING, meter) as talking:
        bare, begun = scene.ours.rss(), time.monotonic()
        stalled = max(1, int(_TALKING * _STALLED_SHARE))
        jobs = [asyncio.create_task(_talk(socket, until, chance)) for socket in talking[stalled:]]
        jobs += [asyncio.create_task(_stall(socket, until)) for socket in talking[:stalled]]
        while time.monotonic() < until:
            await asyncio.sleep(_LOOK_EVERY_S)
            looks.append((time.monotonic() - begun, scene.ours.rss()))
            say(f"  {looks[-1][0]:4.0f} s  {looks[-1][1] / 1e6:.1f} MB")
        turns = sum(await asyncio.gather(*jobs))
    warm = [look for look in looks if look[0] >= plan.soak_s * _WARM_UP_SHARE]
    if len(warm) < 3:
        raise BenchError("too short to see a slope")
    slope = statistics.linear_regression([at for at, _ in warm], [size for _, size in warm]).slope
    figures = {
        "seconds": plan.soak_s,
        "turns": turns,
        "idle_mb": bare / 1e6,
        "warm_mb": warm[0][1] / 1e6,
        "end_mb": warm[-1][1] / 1e6,
        "slope_mb_per_h": slope * 3600 / 1e6,
        "slope_bytes_per_turn": slope * (warm[-1][0] - warm[0][0]) / max(turns * (1 - _WARM_UP_SHARE), 1),
    }
    say(
        f"  {turns} turns; {figures['warm_mb']:.1f} MB after the warm-up, {figures['end_mb']:.1f} MB at the end, "
        f"{figures['slope_bytes_per_turn']:.0f} bytes a turn"
    )
    return figures


async def _talk(socket: Connection, until: float, chance: random.Random) -> int:
    """Turn after turn; returns how many."""
    turns = 0
    await asyncio.sleep(chance.uniform(0, _PIECES * _DELAY_S))
    while time.monotonic() < until:
        if turns % 10 == 9:
            socket.new_session()
        await all_done([socket.ask()], pieces=_PIECES)
        turns += 1
    return turns


async def _stall(socket: Connection, until: float) -> int:
    """Ask, read nothing for a while, read again."""
    turns = 0
    while time.monotonic() < until:
        turn = socket.ask()
        socket.read(False)
        await asyncio.sleep(_PIECES * _DELAY_S * 1.5)
        socket.read(True)
        await all_done([turn], pieces=_PIECES)
        turns += 1
    return turns
