"""Turns stored and callbacks delivered, and how soon a cancelled turn leaves the provider alone."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import psycopg

from bench.client import Connection, Meter, all_done, connections
from bench.plan import Client, HasCpu, Plan, ask_all, milliseconds, say, streaming
from bench.targets import BenchError, Scene, fetch

_SESSIONS = 20
_TURNS_PER_SESSION = 10
_DRAIN_S = 20.0
_CANCELLED = 50


async def throughput(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Short turns, one after the other in each of 20 sessions; a new session after ten of them.

    Of several rounds the best counts: it is the one that shared the machine with the fewest others.
    """
    rounds = [await _round(scene, plan) for _ in range(plan.turn_rounds)]
    best = max(rounds, key=lambda figures: figures["turns_per_s"])
    return {**best, "rounds": rounds}


async def _round(scene: Scene, plan: Plan) -> dict[str, Any]:
    await scene.provider.play(streaming(5, 0.0))
    meter = Meter()
    stored_before, posts_before = await _stored(scene), await _events(scene)
    processes: dict[str, HasCpu] = {
        "server": scene.ours,
        "postgres": scene.postgres,
        "provider": scene.provider,
        "receiver": scene.receiver,
        "client": Client(),
    }
    before = {name: process.cpu_s() for name, process in processes.items()}
    async with connections(scene.ours.port, _SESSIONS, meter) as sockets:
        begun = time.perf_counter()
        ended = await asyncio.gather(*(_talk(socket, begun + plan.turns_s) for socket in sockets))
        turns_s = time.perf_counter() - begun
        delivered_meanwhile = await _events(scene) - posts_before
        cpu = {name: process.cpu_s() - before[name] for name, process in processes.items()}
        stored = await _stored(scene) - stored_before
        if stored != sum(ended):
            raise BenchError(f"{sum(ended)} turns were done, but {stored} are stored")
        delivered = await _drained(scene, posts_before)
        all_s = time.perf_counter() - begun
    figures = {
        "turns": stored,
        "turns_per_s": stored / turns_s,
        "callbacks_per_s": delivered / all_s,
        "callbacks_per_s_meanwhile": delivered_meanwhile / turns_s,
        "callbacks": delivered,
        "drained_after_s": all_s - turns_s,
        "cpu_ms_per_turn": {name: seconds / stored * 1000 for name, seconds in cpu.items()},
    }
    say(
        f"  {figures['turns_per_s']:.0f} turns stored a second, {figures['callbacks_per_s']:.0f} callbacks delivered "
        f"a second; the last one {figures['drained_after_s']:.1f} s after the last turn"
    )
    return figures


async def cancelling(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Cancel each of 50 running streams: when does the provider see its connection closed?"""
    closed_s: list[float] = []
    told_s: list[float] = []
    for _ in range(plan.cancel_rounds):
        meter = Meter()
        await scene.provider.play(streaming(1500, 0.02))
        async with connections(scene.ours.port, _CANCELLED, meter) as sockets:
            turns = await ask_all(sockets, 80)
            asked_at = {}
            for socket, turn in zip(sockets, turns, strict=True):
                asked_at[turn.label] = socket.cancel()
                await asyncio.sleep(0.02)
            await all_done(turns, kind="cancelled")
            told_s += [turn.ended_at - asked_at[turn.label] for turn in turns]
            for record in await scene.provider.requests():
                if record["ended"] != "client_closed":
                    raise BenchError(f"a cancelled turn's provider call ended as {record['ended']}")
                closed_s.append(record["ended_at"] - asked_at[record["last_user_text"].split()[0]])
    figures = {"streams": _CANCELLED, "provider_closed": milliseconds(closed_s), "client_told": milliseconds(told_s)}
    say(f"  provider closed: p50 {milliseconds(closed_s)['p50_ms']:.1f} ms, p99 {milliseconds(closed_s)['p99_ms']:.1f}")
    return figures


async def _talk(socket: Connection, until: float) -> int:
    """Ask again and again; returns how many turns were answered."""
    turns = 0
    while time.perf_counter() < until:
        if turns and turns % _TURNS_PER_SESSION == 0:
            socket.new_session()
        await all_done([socket.ask()], pieces=5)
        turns += 1
    return turns


async def _stored(scene: Scene) -> int:
    """Turns with their answer in the database."""

    def count() -> int:
        with psycopg.connect(scene.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM prompt_messages WHERE role = 'ASSISTANT'").fetchone()
            assert row is not None, "a count is one row"
            return int(row[0])

    return await asyncio.to_thread(count)


async def _events(scene: Scene) -> int:
    """Different events that the receiver has accepted."""
    counts = json.loads(await asyncio.to_thread(fetch, scene.receiver.url))
    return int(counts["taken"])


async def _drained(scene: Scene, before: int) -> int:
    """Wait until every recorded callback was delivered; returns how many since ``before``."""

    def waiting() -> int:
        with psycopg.connect(scene.database_url) as connection:
            row = connection.execute("SELECT count(*) FROM callbacks WHERE status <> 'delivered'").fetchone()
            assert row is not None, "a count is one row"
            return int(row[0])

    deadline = time.perf_counter() + _DRAIN_S
    while await asyncio.to_thread(waiting):
        if time.perf_counter() > deadline:
            raise BenchError(f"callbacks are still waiting after {_DRAIN_S:.0f} s")
        await asyncio.sleep(0.05)
    return await _events(scene) - before
