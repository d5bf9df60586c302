"""Whether candidates who chat notice that others hand in: streams beside 200 submissions that a worker evaluates."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, LiteralString

import psycopg

from bench.client import Meter, all_done, connections
from bench.plan import Plan, ask_all, milliseconds, say, streaming, watch
from bench.targets import BenchError, Scene, Server, fetch

_STREAMS = 40
_RATE = 25.0
_STARTS_PER_S = 80
_WINDOW_S = 4.0
_SETTLE_S = 1.0
_QUIET_WINDOWS = 4
_SPEC = 900
_FIRST_PARTICIPANT = 5_000_000
_ALL_WITHIN_S = 900.0
_AT_ONCE = 8
_CODE = "def add(a, b):\n    return a + b\n\n\nprint(add(*map(int, input().split())))\n"
_PROBLEM = {
    "title": "Sum",
    "statement": {"en": "Print the sum of the two numbers."},
    "languages": ["python"],
    "cases": [{"name": str(n), "group": "PUBLIC", "input": f"{n} {n}\n", "output": f"{2 * n}\n"} for n in range(1, 6)],
    "references": [{"language": "python", "source": "print(sum(map(int, input().split())))\n"}],
}
_ENDED = "SELECT count(*) FROM submissions WHERE status IN ('DONE', 'FAILED')"
_SCORED = "SELECT count(*) FROM scores WHERE status = 'SCORED' AND correctness_score = 100"
_RUNS = "SELECT count(*) FROM submission_runs"


async def handing_in(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Lags of streams without submissions and while they are evaluated, and how long those take."""
    database_url = scene.postgres.new_database("submissions")  # its own: the scene's service would evaluate too
    async with _processes(scene, database_url) as front:
        await _call(front, "PUT", f"/api/problems/{_SPEC}", _PROBLEM)
        sessions = await _talk(scene, front, plan.submissions)
        quiet = [lag for _ in range(_QUIET_WINDOWS) for lag in await _lags(scene, front)]
        begun = time.monotonic()
        handing = asyncio.create_task(_hand_in(front, sessions))
        busy: list[float] = []
        left = plan.submissions
        while left:
            if time.monotonic() - begun > _ALL_WITHIN_S:
                raise BenchError(f"{left} of {plan.submissions} submissions still wait after {_ALL_WITHIN_S:.0f} s")
            lags = await _lags(scene, front)
            left = plan.submissions - await asyncio.to_thread(_number, database_url, _ENDED)
            if left or not busy:  # in the last window nothing was left for a part of it
                busy += lags
            say(f"  {left} of {plan.submissions} submissions left; p99 {milliseconds(lags)['p99_ms']:.1f} ms")
        await handing
        took_s = time.monotonic() - begun
        scored, runs = [await asyncio.to_thread(_number, database_url, query) for query in (_SCORED, _RUNS)]
    if scored < plan.submissions:
        raise BenchError(f"{plan.submissions - scored} of {plan.submissions} submissions were not scored")
    before, meanwhile = milliseconds(quiet), milliseconds(busy)
    return {
        "submissions": plan.submissions,
        "scored": scored,
        "took_s": took_s,
        "runs_per_s": runs / took_s,
        "quiet": before,
        "busy": meanwhile,
        "slower": meanwhile["p99_ms"] / before["p99_ms"],
    }


@asynccontextmanager
async def _processes(scene: Scene, database_url: str) -> AsyncIterator[Server]:
    """One process that serves, which is given, a worker that evaluates, and a judge that it asks."""
    judge = await asyncio.to_thread(scene.start_judge)
    more = {
        "TURNSTONE_DATABASE__URL": database_url,
        "TURNSTONE_WORKER__EMBEDDED": "false",
        "TURNSTONE_JUDGE__MODEL": "openai:bench",
        "TURNSTONE_JUDGE__BASE_URL": f"{judge.url}/v1",
        "TURNSTONE_JUDGE__API_KEY": "unused",
    }
    front = await asyncio.to_thread(scene.start_another, "front", more)
    worker = Server("worker", ["app.cli", "worker"], scene.scratch, {**scene.environment, **more})
    try:
        yield front
    finally:
        for process in (worker, front, judge):
            await asyncio.to_thread(process.stop)


async def _talk(scene: Scene, front: Server, count: int) -> list[str]:
    """Sessions of one turn each, with words of its own so that no judgement serves two."""
    await scene.provider.play({"pieces": ["Use ", "a loop."]})
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> str:
        pair = {"exam_id": 77, "participant_id": _FIRST_PARTICIPANT + number, "spec_id": _SPEC}
        async with gate:
            said = await _call(front, "POST", "/api/chat/message", {"message": f"Add two, case {number}.", **pair})
        return str(said["session_id"])

    return await asyncio.gather(*map(one, range(count)))


async def _hand_in(front: Server, sessions: list[str]) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(session_id: str) -> None:
        async with gate:
            path = f"/api/sessions/{session_id}/submissions"
            await _call(front, "POST", path, {"code": f"{_CODE}case = {session_id}\n", "language": "python"})

    await asyncio.gather(*map(one, sessions))


async def _lags(scene: Scene, front: Server) -> list[float]:
    """Seconds by which pieces came late, in one window."""
    meter = Meter()
    pieces = round(_RATE * (_STREAMS / _STARTS_PER_S + _SETTLE_S + _WINDOW_S) * 1.3)
    await scene.provider.play(streaming(pieces, 1 / _RATE))
    async with connections(front.port, _STREAMS, meter) as sockets:
        turns = await ask_all(sockets, _STARTS_PER_S)
        await watch(_SETTLE_S, meter, {})
        usage = await watch(_WINDOW_S, meter, {})
        await all_done(turns, pieces=pieces)
    return list(usage.lags_s)


async def _call(server: Server, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await asyncio.to_thread(fetch, f"{server.url}{path}", method, json.dumps(body).encode())
    found: dict[str, Any] = json.loads(answer)
    return found


def _number(database_url: str, query: LiteralString) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None, "it counts"
    return int(row[0])
