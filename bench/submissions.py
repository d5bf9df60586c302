"""Whether candidates who chat notice that others hand in: streams beside 200 submissions that a worker evaluates."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

import psycopg

from bench.client import Meter, all_done, connections
from bench.plan import Plan, ask_all, milliseconds, say, streaming, watch
from bench.targets import BenchError, Scene, Server, fetch
from tests.support.judge import ScriptedJudge

_STREAMS = 40
_RATE = 25.0
_STARTS_PER_S = 80
_WINDOW_S = 4.0
_SETTLE_S = 1.0
_SPEC = 900
_FIRST_PARTICIPANT = 5_000_000
_ALL_WITHIN_S = 900.0
_CODE = "def add(a, b):\n    return a + b\n\n\nprint(add(*map(int, input().split())))\n"
_PROBLEM = {
    "title": "Sum",
    "statement": {"en": "Print the sum of the two numbers."},
    "languages": ["python"],
    "cases": [{"name": str(n), "group": "PUBLIC", "input": f"{n} {n}\n", "output": f"{2 * n}\n"} for n in range(1, 6)],
    "references": [{"language": "python", "source": "print(sum(map(int, input().split())))\n"}],
}


_WAITING = "SELECT count(*) FROM submissions WHERE status IN ('QUEUED', 'RUNNING')"
_SCORED = "SELECT count(*) FROM scores WHERE status = 'SCORED' AND correctness_score = 100"
_RUNS = "SELECT count(*) FROM submission_runs"


async def handing_in(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Lags of streams without submissions, and while they are evaluated; and how long those take."""
    database_url = scene.postgres.new_database("submissions")  # its own: the scene's service would evaluate too
    with ScriptedJudge() as judge, _processes(scene, judge, database_url) as front:
        await asyncio.to_thread(_put, front, f"/api/problems/{_SPEC}", _PROBLEM)
        quiet = [lag for _ in range(3) for lag in await _lags(scene, front)]
        begun = time.monotonic()
        await asyncio.to_thread(_hand_in, front, plan.submissions)
        busy: list[float] = []
        while (
            left := await asyncio.to_thread(_number, database_url, _WAITING)
        ) and time.monotonic() - begun < _ALL_WITHIN_S:
            busy += await _lags(scene, front)
            say(f"  {left} of {plan.submissions} submissions wait; streams' p99 {milliseconds(busy)['p99_ms']:.1f} ms")
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


@contextmanager
def _processes(scene: Scene, judge: ScriptedJudge, database_url: str) -> Iterator[Server]:
    """One process that serves, which is given, and a worker that evaluates."""
    more = {
        "TURNSTONE_DATABASE__URL": database_url,
        "TURNSTONE_WORKER__EMBEDDED": "false",
        "TURNSTONE_JUDGE__MODEL": "openai:scripted-judge",
        "TURNSTONE_JUDGE__BASE_URL": judge.base_url,
        "TURNSTONE_JUDGE__API_KEY": "unused",
    }
    front = scene.start_another("front", more)
    worker = Server("worker", ["app.cli", "worker"], scene.scratch, {**scene.environment, **more})
    try:
        yield front
    finally:
        worker.stop()
        front.stop()


async def _lags(scene: Scene, front: Server) -> list[float]:
    """Seconds by which pieces came late, in one window."""
    meter = Meter()
    pieces = round(_RATE * (_STREAMS / _STARTS_PER_S + _SETTLE_S + _WINDOW_S) * 1.5)
    await scene.provider.play(streaming(pieces, 1 / _RATE))
    async with connections(front.port, _STREAMS, meter) as sockets:
        turns = await ask_all(sockets, _STARTS_PER_S)
        await watch(_SETTLE_S, meter, {})
        usage = await watch(_WINDOW_S, meter, {})
        await all_done(turns, pieces=pieces)
    return list(usage.lags_s)


def _hand_in(front: Server, count: int) -> None:
    """One turn and one submission of each candidate."""
    for number in range(count):
        pair = {"exam_id": 77, "participant_id": _FIRST_PARTICIPANT + number, "spec_id": _SPEC}
        said = json.loads(_post(front, "/api/chat/message", {"message": f"Add two numbers, {number}.", **pair}))
        _post(front, f"/api/sessions/{said['session_id']}/submissions", {"code": _CODE, "language": "python"})


def _post(server: Server, path: str, body: dict[str, Any]) -> bytes:
    return fetch(f"{server.url}{path}", "POST", json.dumps(body).encode())


def _put(server: Server, path: str, body: dict[str, Any]) -> None:
    fetch(f"{server.url}{path}", "PUT", json.dumps(body).encode())


def _number(database_url: str, query: LiteralString) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None, "it counts"
    return int(row[0])
