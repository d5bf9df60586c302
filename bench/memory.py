"""Memory of an idle connection and of a running turn; to be measured while the processes have done little else."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.client import Meter, all_done, connections
from bench.plan import Plan, ask_all, say, streaming
from bench.targets import Scene, Server

_FIRST_SOCKETS = 100
_WARM_UP_TURNS = 40
_SETTLE_S = 0.8
_STARTS_PER_S = 60


async def memory(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Resident memory per connection and per turn, this service and (in the full run) the usual way."""
    figures: dict[str, Any] = {"sockets": plan.idle_sockets, "turns": plan.running_turns}
    figures["ours"] = ours = await _one(scene, scene.ours, plan)
    say(f"  an idle connection {ours['idle_kb']:.0f} kB, a running turn {ours['turn_kb']:.0f} kB more")
    if plan.memory_of_usual:
        # The usual way cannot cancel, and works on for turns whose connection is gone. So it gets a process of its
        # own, and the other measurements find none of that.
        other = await asyncio.to_thread(scene.start_usual, "usual_memory")
        try:
            figures["usual"] = usual = await _one(scene, other, plan, can_cancel=False)
        finally:
            await asyncio.to_thread(other.stop)
        say(f"  usual: {usual['idle_kb']:.0f} kB and {usual['turn_kb']:.0f} kB")
    return figures


async def _one(scene: Scene, server: Server, plan: Plan, *, can_cancel: bool = True) -> dict[str, float]:
    """Warm the process up, so that what it makes once is there and holes in its heap are filled; then add."""
    meter = Meter()
    await scene.provider.play(streaming(4, 0.002))
    async with connections(server.port, _FIRST_SOCKETS, meter) as first:
        await all_done(await ask_all(first[:_WARM_UP_TURNS], _STARTS_PER_S))
        await scene.provider.play(streaming(400, 0.25))
        await asyncio.sleep(_SETTLE_S)
        bare = server.rss()
        async with connections(server.port, plan.idle_sockets, meter) as sockets:
            await asyncio.sleep(_SETTLE_S)
            idle = server.rss()
            turns = await ask_all(sockets[: plan.running_turns], _STARTS_PER_S)
            await asyncio.sleep(_SETTLE_S)
            running = server.rss()
            if can_cancel:
                for socket in sockets[: plan.running_turns]:
                    socket.cancel()
                await all_done(turns, kind="cancelled")
    return {
        "bare_mb": bare / 1e6,
        "idle_kb": (idle - bare) / plan.idle_sockets / 1000,
        "turn_kb": (running - idle) / plan.running_turns / 1000,
    }
