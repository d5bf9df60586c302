"""What a relayed delta costs, and how late it comes."""

from __future__ import annotations

from typing import Any

from bench.client import Meter, all_done, connections, direct_streams, wait_for
from bench.plan import Client, Machine, Plan, Usage, ask_all, median, milliseconds, percentile, say, streaming, watch
from bench.targets import BenchError, Scene, Server

_STARTS_PER_S = 40
"""Turns are begun at this rate, so that the steady phase begins without a queue and the streams are out of step."""
_DIRECT_STARTS_PER_S = 400
_SETTLE_S = 0.5
_HELD_MS = 50.0
_RATE_HELD = 0.97
_FINEST_STEP = 100


async def cpu_per_delta(scene: Scene, plan: Plan) -> dict[str, Any]:
    """CPU of the server per delta, this service and the usual way by turns."""
    ours: list[Usage] = []
    usual: list[Usage] = []
    for number in range(plan.relay_pairs):
        ours.append(await _steady(scene, scene.ours, plan))
        usual.append(await _steady(scene, scene.usual, plan))
        say(
            f"  pair {number + 1}: {ours[-1].microseconds('server'):.0f} µs a delta, "
            f"usual {usual[-1].microseconds('server'):.0f} µs"
        )
    with_database = [use.microseconds("server") + use.microseconds("postgres") for use in ours]
    theirs = [use.microseconds("server") for use in usual]
    return {
        "streams": plan.streams,
        "rate": plan.rate,
        "ours_us": median([use.microseconds("server") for use in ours]),
        "ours_postgres_us": median([use.microseconds("postgres") for use in ours]),
        "usual_us": median(theirs),
        "ratio": median([t / o.microseconds("server") for t, o in zip(theirs, ours, strict=True)]),
        "ratio_with_postgres": median([t / o for t, o in zip(theirs, with_database, strict=True)]),
        "ours_lag": _lags(ours),
        "usual_lag": _lags(usual),
        "ours_cpu_percent": ours[-1].shares(),
        "usual_cpu_percent": usual[-1].shares(),
        "ours_held": median([_held(use, plan.streams, plan.rate) for use in ours]),
        "usual_held": median([_held(use, plan.streams, plan.rate) for use in usual]),
    }


async def added_latency(scene: Scene, plan: Plan) -> dict[str, Any]:
    """How late deltas come at growing numbers of streams, until they are too late."""
    levels: list[dict[str, Any]] = []
    for streams in plan.levels:
        levels.append(await _level_twice(scene, plan, streams))
        if not levels[-1]["passed"]:
            break
    held, highest = _held_streams(levels), levels[-1]["streams"]
    if highest - held > _FINEST_STEP and held and not levels[-1]["passed"]:
        levels.append(await _level_twice(scene, plan, (held + highest) // 2))
        held = _held_streams(levels)
    direct = [await _direct(scene, plan, streams) for streams in plan.direct_levels if streams <= highest]
    return {"levels": levels, "direct": direct, "held_streams": held, "highest_tried": highest}


def _held_streams(levels: list[dict[str, Any]]) -> int:
    return max((level["streams"] for level in levels if level["passed"]), default=0)


async def _steady(scene: Scene, server: Server, plan: Plan) -> Usage:
    """One steady phase. The turns go on to their end, which shows that nothing was lost."""
    meter = Meter()
    pieces = round(plan.rate * (plan.streams / _STARTS_PER_S + _SETTLE_S + plan.relay_s + plan.relay_margin_s))
    await scene.provider.play(streaming(pieces, 1 / plan.rate))
    async with connections(server.port, plan.streams, meter) as sockets:
        turns = await ask_all(sockets, _STARTS_PER_S)
        await watch(_SETTLE_S, meter, {})
        usage = await watch(plan.relay_s, meter, _processes(scene, server))
        if any(turn.ended.done() for turn in turns):
            raise BenchError(f"{server.name}: a turn ended during the steady phase; is the machine very busy?")
        await all_done(turns, pieces=pieces)
    return usage


async def _level_twice(scene: Scene, plan: Plan, streams: int) -> dict[str, Any]:
    """One level; once more where it was not held, as somebody else on the machine may have been the reason."""
    level = await _level(scene, plan, streams)
    return level if level["passed"] else await _level(scene, plan, streams)


async def _level(scene: Scene, plan: Plan, streams: int) -> dict[str, Any]:
    meter = Meter()
    pieces = round(plan.rate * (streams / _STARTS_PER_S + _SETTLE_S + plan.level_s) * 2)
    await scene.provider.play(streaming(pieces, 1 / plan.rate))
    async with connections(scene.ours.port, streams, meter) as sockets:
        turns = await ask_all(sockets, _STARTS_PER_S)
        await watch(_SETTLE_S, meter, {})
        usage = await watch(plan.level_s, meter, _processes(scene, scene.ours))
        for socket in sockets:
            socket.cancel()
        failed = [
            turn for turn in turns if (await wait_for(turn.ended, "a cancelled turn's end"))["type"] != "cancelled"
        ]
    lags, held = milliseconds(usage.lags_s), _held(usage, streams, plan.rate)
    say(f"  {streams} streams: p50 {lags['p50_ms']:.1f} ms, p99 {lags['p99_ms']:.1f} ms, {held:.0%} of the rate")
    return {
        "streams": streams,
        **lags,
        "held": held,
        "failed_turns": len(failed),
        "passed": lags["p99_ms"] < _HELD_MS and held > _RATE_HELD and not failed,
        "server_us": usage.microseconds("server"),
        "postgres_us": usage.microseconds("postgres"),
        "cpu_percent": usage.shares(),
    }


async def _direct(scene: Scene, plan: Plan, streams: int) -> dict[str, Any]:
    meter = Meter()
    pieces = round(plan.rate * (streams / _DIRECT_STARTS_PER_S + _SETTLE_S + plan.level_s + 1))
    await scene.provider.play(streaming(pieces, 1 / plan.rate))
    async with direct_streams(scene.provider.port, streams, meter, _DIRECT_STARTS_PER_S):
        await watch(_SETTLE_S, meter, {})
        usage = await watch(plan.level_s, meter, {"provider": scene.provider, "client": Client()})
    return {"streams": streams, **milliseconds(usage.lags_s), "held": _held(usage, streams, plan.rate)}


def _processes(scene: Scene, server: Server) -> dict[str, Any]:
    return {
        "server": server,
        "postgres": scene.postgres,
        "provider": scene.provider,
        "client": Client(),
        "machine": Machine(),
    }


def _held(usage: Usage, streams: int, rate: float) -> float:
    """Share of the offered pieces that came."""
    return usage.pieces / (streams * rate * usage.wall_s)


def _lags(uses: list[Usage]) -> dict[str, float]:
    """Percentiles of each phase, and the median of the phases."""
    return {
        "p50_ms": median([percentile(use.lags_s, 0.50) for use in uses]) * 1000,
        "p99_ms": median([percentile(use.lags_s, 0.99) for use in uses]) * 1000,
    }
