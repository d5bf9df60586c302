"""Cancelling a turn from a socket on another process than the one that runs it, with Redis and while it is away."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from bench.client import Meter, all_done, connections
from bench.plan import Plan, ask_all, milliseconds, say, streaming
from bench.targets import BenchError, Scene
from tests.support.redis_server import RedisServer

_STREAMS = 50


async def cancelling_elsewhere(scene: Scene, plan: Plan) -> dict[str, Any]:
    """When does the provider see its connection closed?"""
    figures: dict[str, Any] = {"streams": _STREAMS}
    with RedisServer() as redis:
        ports = [scene.start_ours(name, redis.url).port for name in ("here", "there")]
        for state in ("redis_up", "redis_down"):
            if state == "redis_down":
                redis.kill()
            closed_s = [wait for _ in range(plan.cancel_rounds) for wait in await _round(scene, *ports)]
            figures[state] = milliseconds(closed_s)
            say(f"  {state}: p50 {figures[state]['p50_ms']:.1f} ms, p99 {figures[state]['p99_ms']:.1f}")
    return figures


async def _round(scene: Scene, here: int, there: int) -> list[float]:
    """Seconds from each cancel to its closed connection."""
    await scene.provider.play(streaming(1500, 0.02))
    async with connections(here, _STREAMS, Meter()) as sockets, connections(there, _STREAMS, Meter()) as others:
        turns = await ask_all(sockets, 80)
        sessions = await asyncio.to_thread(_sessions, scene)
        asked_at = {}
        for socket, other, turn in zip(sockets, others, turns, strict=True):
            asked_at[turn.label] = other.cancel_elsewhere(turn, sessions[socket.participant])
            await asyncio.sleep(0.02)
        await all_done(turns, kind="cancelled")
        records = await scene.provider.requests()
    if {record["ended"] for record in records} != {"client_closed"}:
        raise BenchError("a cancelled turn's provider call ended otherwise")
    return [record["ended_at"] - asked_at[record["last_user_text"].split()[0]] for record in records]


def _sessions(scene: Scene) -> dict[int, str]:
    """The active sessions by participant."""
    with psycopg.connect(scene.database_url) as connection:
        rows = connection.execute(
            "SELECT participant_id, id FROM prompt_sessions WHERE exam_id = 1 AND ended_at IS NULL"
        ).fetchall()
        return {participant: str(session) for participant, session in rows}
