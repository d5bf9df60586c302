"""How soon Core is told, how fast what waits goes out, and whether 40,000 events of dead sessions slow either down."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import psycopg

from app.application.services.callback_service import CallbackService
from app.infrastructure.persistence.session import Database, bind, get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from bench.client import Meter, all_done, connections
from bench.plan import Plan, median, milliseconds, say, streaming
from bench.receiver import DEAD_FROM
from bench.targets import BenchError, Scene, fetch

_BACKLOG_SESSIONS = 200
_BACKLOG_EXAM = 2_000_000
_DEAD_EXAM = 3_000_000
_PER_DEAD_SESSION = 2
_DEAD_FOR_S = 3600
_PAUSE_S = 0.02
_ARRIVED_S = 60.0

# As they stand after some tries: each waits for its next one, and these fall due over an hour.
_MAKE_DEAD = """
    WITH sessions AS (
        INSERT INTO prompt_sessions (id, exam_id, participant_id, callback_seq) OVERRIDING SYSTEM VALUE
        SELECT %(first)s + n, %(exam)s, n, %(each)s FROM generate_series(1, %(sessions)s) AS n RETURNING id
    ), events AS (
        INSERT INTO callbacks (event_id, session_id, callback_seq, type, payload, status, attempts, next_try_at)
        SELECT 'dead_' || sessions.id || '_' || seq, sessions.id, seq, 'error',
               '{"error_type": "internal", "error_message": "dead", "metadata": {}}', 'pending', 6, now()
        FROM sessions, generate_series(1, %(each)s) AS seq
    )
    INSERT INTO callback_lanes (session_id, due_at, failing)
    SELECT id, now() + random() * make_interval(secs => %(seconds)s), true FROM sessions
    """
_REMOVE_DEAD = "DELETE FROM prompt_sessions WHERE id >= %(first)s"
_TIDY = "VACUUM (ANALYZE) callbacks, callback_lanes, prompt_sessions"


async def telling(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Pairs of the same measurements, without anything waiting and with; the ratios are medians of pairs."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    async with _database(scene.database_url):
        await scene.provider.play(streaming(1, 0.0))
        await _look(scene, plan, turns=5)  # so that what is made once is there
        await asyncio.to_thread(_change, scene, _REMOVE_DEAD)
        for _ in range(plan.callback_pairs):
            quiet = await _look(scene, plan)
            await asyncio.to_thread(_change, scene, _MAKE_DEAD, plan.dead_events)
            try:
                waiting = await _look(scene, plan)
            finally:
                await asyncio.to_thread(_change, scene, _REMOVE_DEAD)
            pairs.append((quiet, waiting))
            say(f"  {_line('nothing waiting', quiet)}; {_line(f'{plan.dead_events} waiting', waiting)}")
    ratios = {
        "told": median([w["told"]["p50_ms"] / q["told"]["p50_ms"] for q, w in pairs]),
        "deliveries": median([q["deliveries_per_s"] / w["deliveries_per_s"] for q, w in pairs]),
        "turn_end": median([w["turn_end"]["p50_ms"] / q["turn_end"]["p50_ms"] for q, w in pairs]),
    }
    quiet, waiting = ([pair[side] for pair in pairs] for side in (0, 1))
    return {
        "dead_events": plan.dead_events,
        "quiet": _best(quiet),
        "waiting": _best(waiting),
        "slower": ratios,
        "pairs": pairs,
    }


async def _look(scene: Scene, plan: Plan, turns: int | None = None) -> dict[str, Any]:
    """One turn after the other, then a backlog."""
    told_s, end_s = await _turns(scene, turns or plan.told_turns)
    refused = await _refused(scene)
    rate = await _drain(scene, plan)
    return {
        "told": milliseconds(told_s),
        "turn_end": milliseconds(end_s),
        "deliveries_per_s": rate,
        "dead_tries": await _refused(scene) - refused,
    }


async def _turns(scene: Scene, count: int) -> tuple[list[float], list[float]]:
    """Ask when all is quiet.

    Returns:
        Seconds from each turn's last frame to the arrival of the later one of its two callbacks, and from its text to
        its last frame, which is sent when the turn's own transaction is committed.
    """
    ended: dict[str, float] = {}
    ends_s: list[float] = []
    before = await _taken(scene)
    async with connections(scene.ours.port, 1, Meter()) as [socket]:
        for _ in range(count):
            turn = socket.ask()
            await all_done([turn], pieces=1)
            ended[turn.turn_id] = time.time() - (time.perf_counter() - turn.ended_at)
            ends_s.append(turn.ended_at - turn.first_at)
            await asyncio.sleep(_PAUSE_S)
    arrived: dict[str, list[float]] = {turn_id: [] for turn_id in ended}
    for item in await _arrivals(scene, before, count * 2):
        arrived[item["body"]["turn_id"]].append(_at(item))
    if any(len(times) != 2 for times in arrived.values()):
        raise BenchError("a turn has other than two callbacks")
    # Core writes down whole milliseconds, so that a turn's callbacks can be there before its last frame.
    return [max(max(times) - ended[turn_id], 0.0005) for turn_id, times in arrived.items()], ends_s


async def _drain(scene: Scene, plan: Plan) -> float:
    """Record a backlog in one transaction; returns the deliveries a second from the first to the last one."""
    each = plan.backlog_events // _BACKLOG_SESSIONS
    async with get_db_context() as db:
        repository = SessionRepository(db)  # which returns those of an earlier round
        numbers = range(1, _BACKLOG_SESSIONS + 1)
        sessions = [(await repository.create_session(_BACKLOG_EXAM, number)).id for number in numbers]
    before = await _taken(scene)
    async with get_db_context() as db, CallbackService(db).together() as callbacks:
        for session_id in sessions:
            for _ in range(each):
                await callbacks.send_usage(session_id, None, 1000, 100, 1100, model="openai:scripted")
    times = [_at(item) for item in await _arrivals(scene, before, each * len(sessions))]
    return len(times) / (max(times) - min(times))


async def _arrivals(scene: Scene, before: int, count: int) -> list[dict[str, Any]]:
    """What Core has taken after number ``before``, once it is as much as expected."""
    deadline = time.monotonic() + _ARRIVED_S
    while (taken := await _taken(scene) - before) < count:
        if time.monotonic() > deadline:
            raise BenchError(f"{taken} of {count} callbacks arrived within {_ARRIVED_S:.0f} s")
        await asyncio.sleep(0.1)
    found = json.loads(await asyncio.to_thread(fetch, f"{scene.receiver.url}/events?after={before}&limit={count}"))
    items: list[dict[str, Any]] = found["items"]
    return items


async def _taken(scene: Scene) -> int:
    return int((await _status(scene))["taken"])


async def _refused(scene: Scene) -> int:
    return int((await _status(scene))["faults"].get("dead", 0))


async def _status(scene: Scene) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await asyncio.to_thread(fetch, scene.receiver.url))
    return found


def _at(item: dict[str, Any]) -> float:
    return datetime.fromisoformat(item["received_at"]).timestamp()


@asynccontextmanager
async def _database(url: str) -> AsyncIterator[None]:
    database = Database(url, pool_size=2)
    bind(database)
    try:
        yield
    finally:
        await database.close()


def _change(scene: Scene, statement: str, events: int = 0) -> None:
    values = {"first": DEAD_FROM, "exam": _DEAD_EXAM, "each": _PER_DEAD_SESSION, "seconds": _DEAD_FOR_S}
    values["sessions"] = events // _PER_DEAD_SESSION
    with psycopg.connect(scene.database_url, autocommit=True) as connection:
        connection.execute(statement, values)  # type: ignore[arg-type]  # our own constants
        # Both sides of a pair begin alike: with figures of the tables, and with no checkpoint still under way.
        connection.execute(_TIDY)
        connection.execute("CHECKPOINT")


def _best(looks: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure the best one of several looks: that shared the machine with the fewest others."""
    return {
        "told": min((look["told"] for look in looks), key=lambda told: told["p50_ms"]),
        "turn_end": min((look["turn_end"] for look in looks), key=lambda end: end["p50_ms"]),
        "deliveries_per_s": max(look["deliveries_per_s"] for look in looks),
    }


def _line(what: str, look: dict[str, Any]) -> str:
    return (
        f"{what}: both callbacks after {look['told']['p50_ms']:.1f} ms, {look['deliveries_per_s']:.0f} deliveries/s, "
        f"the turn's end {look['turn_end']['p50_ms']:.1f} ms"
    )
