"""Whether judging slows the chat: time to the first token with every prompt judged, and with none, by turns."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from bench.first_token import arrivals
from bench.plan import Plan, median, milliseconds, say
from bench.targets import BenchError, Scene


async def judging(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Turns arrive all the time at a service that judges none of them and at one that judges them all.

    Judge, judged service and plain service share the machine; the judge's own work is part of what the chat bears.
    """
    judge = await asyncio.to_thread(scene.start_judge)
    judged = await asyncio.to_thread(scene.start_judging, "turnstone-judging", judge.url)
    plain_s: list[float] = []
    judged_s: list[float] = []
    ratios: list[float] = []
    cpu_s = {scene.ours.name: 0.0, judged.name: 0.0}
    try:
        for number in range(2 * plan.arrival_pairs):
            sides = [scene.ours, judged]
            found = {}
            for server in sides if number % 2 else reversed(sides):  # the first one of a pair is worse off
                before = server.cpu_s()
                found[server.name] = await arrivals(scene, server, plan)
                cpu_s[server.name] += server.cpu_s() - before
            plain_s += found[scene.ours.name]
            judged_s += found[judged.name]
            ratios.append(median(found[judged.name]) / median(found[scene.ours.name]))
        turns = await asyncio.to_thread(_judged_turns, scene)
    finally:
        await asyncio.to_thread(judged.stop)
        await asyncio.to_thread(judge.stop)
    if not turns:
        raise BenchError("no prompt was judged")
    figures = {
        "plain": milliseconds(plain_s),
        "judged": milliseconds(judged_s),
        "ratio": median(ratios),
        "judged_turns": turns,
        "cpu_ms_per_judgement": (cpu_s[judged.name] - cpu_s[scene.ours.name]) / turns * 1000,
    }
    say(f"  {figures['ratio']:.2f} × the time to the first token, while {turns} prompts were judged")
    return figures


def _judged_turns(scene: Scene) -> int:
    with psycopg.connect(scene.postgres.url.replace("/postgres?", "/judged?", 1)) as connection:
        row = connection.execute("SELECT count(*) FROM evaluation_runs WHERE status = 'done'").fetchone()
        assert row is not None, "a count is one row"
        return int(row[0])
