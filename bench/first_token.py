"""How much later the first token comes than the provider sent it, from the moment the candidate asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from bench.client import Connection, Meter, Turn, all_done, connections, wait_for
from bench.plan import Plan, median, milliseconds, say, streaming
from bench.targets import Scene, Server

_SESSIONS = 10
_PAUSE_S = 0.015
"""Between two single turns: what the one before left behind (callbacks) shall not be measured with the next."""
_ARRIVALS_PER_S = 20
_ARRIVAL_SOCKETS = 30
_MESSAGE = "How does a hash map work, and when is it the wrong choice?"


class BareCommit:
    """One INSERT and its COMMIT on the same PostgreSQL: the least that storing a message can cost."""

    def __init__(self, scene: Scene) -> None:
        self._connection = psycopg.connect(scene.postgres.new_database("bare"))
        self._connection.execute("CREATE TABLE message (id bigserial PRIMARY KEY, content text NOT NULL)")
        self._connection.commit()

    def run(self) -> float:
        """Commit one row; returns the seconds it took."""
        at = time.perf_counter()
        self._connection.execute("INSERT INTO message (content) VALUES (%s)", (_MESSAGE,))
        self._connection.commit()
        return time.perf_counter() - at

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


async def first_token(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Added time to the first token, one turn at a time and with turns arriving all the time."""
    single = await _single(scene, plan)
    say(
        f"  one at a time: p50 {single['ours']['p50_ms']:.2f} ms, usual {single['usual']['p50_ms']:.2f} ms, "
        f"a bare commit {single['bare_commit']['p50_ms']:.2f} ms"
    )
    arriving = await _arriving(scene, plan)
    say(
        f"  {_ARRIVALS_PER_S} turns a second: p50 {arriving['ours']['p50_ms']:.2f} ms, "
        f"usual {arriving['usual']['p50_ms']:.2f} ms"
    )
    return {"single": single, "arriving": arriving}


async def _single(scene: Scene, plan: Plan) -> dict[str, Any]:
    """This service, the usual way and a bare commit, by turns; which of them is first changes."""
    meter = Meter()
    await scene.provider.play(streaming(4, 0.002))
    ours: list[Turn] = []
    usual: list[Turn] = []
    commits: list[float] = []
    bare = await asyncio.to_thread(BareCommit, scene)
    try:
        async with (
            connections(scene.ours.port, _SESSIONS, meter) as our_sockets,
            connections(scene.usual.port, _SESSIONS, meter) as usual_sockets,
        ):
            for socket in our_sockets + usual_sockets:  # makes the sessions; not measured
                await all_done([socket.ask(_MESSAGE)])
            for number in range(plan.single_turns):
                which = number % _SESSIONS
                order = [(ours, our_sockets[which]), (usual, usual_sockets[which])]
                for turns, socket in order if number % 2 else reversed(order):
                    turns.append(await _one(socket))
                commits.append(bare.run())
                await asyncio.sleep(_PAUSE_S)
    finally:
        bare.close()
    records = {record["last_user_text"].split()[0]: record for record in await scene.provider.requests()}
    our_s, usual_s = _added(ours, records), _added(usual, records)
    return {
        "ours": milliseconds(our_s),
        "usual": milliseconds(usual_s),
        "bare_commit": milliseconds(commits),
        "over_bare_commit_ms": median([o - c for o, c in zip(our_s, commits, strict=True)]) * 1000,
        "ratio_to_usual": median([o / u for o, u in zip(our_s, usual_s, strict=True)]),
    }


async def _one(socket: Connection) -> Turn:
    turn = socket.ask(_MESSAGE)
    await all_done([turn])
    await asyncio.sleep(_PAUSE_S)
    return turn


async def _arriving(scene: Scene, plan: Plan) -> dict[str, Any]:
    """Turns of 0.4 s that arrive at a fixed rate, whatever became of those before."""
    ours: list[float] = []
    usual: list[float] = []
    pairs: list[float] = []
    for _ in range(plan.arrival_pairs):
        of_ours = await arrivals(scene, scene.ours, plan)
        of_usual = await arrivals(scene, scene.usual, plan)
        pairs.append(median(of_ours) / median(of_usual))
        ours += of_ours
        usual += of_usual
    return {"ours": milliseconds(ours), "usual": milliseconds(usual), "ratio_to_usual": median(pairs)}


async def arrivals(scene: Scene, server: Server, plan: Plan) -> list[float]:
    """Added seconds to the first token of turns that arrive at a fixed rate."""
    meter = Meter()
    await scene.provider.play(streaming(20, 0.02))
    turns: list[Turn] = []
    async with connections(server.port, _ARRIVAL_SOCKETS, meter) as sockets:
        for socket in sockets:  # makes the sessions; not measured
            socket.ask(_MESSAGE)
            await wait_for(_turn(socket).first, "the first piece of a turn")
        await all_done([_turn(socket) for socket in sockets])
        begun = time.perf_counter()
        for number in range(int(plan.arrival_s * _ARRIVALS_PER_S)):
            await asyncio.sleep(max(0.0, begun + number / _ARRIVALS_PER_S - time.perf_counter()))
            socket = sockets[number % len(sockets)]
            await wait_for(_turn(socket).ended, "the end of a turn")
            turns.append(socket.ask(_MESSAGE))
        await all_done(turns)
    records = {record["last_user_text"].split()[0]: record for record in await scene.provider.requests()}
    return _added(turns, records)


def _turn(socket: Connection) -> Turn:
    assert socket.turn is not None, "it was asked"
    return socket.turn


def _added(turns: Sequence[Turn], records: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Seconds from asking to the first piece, without those the provider took from the request to sending it."""
    return [turn.first_at - turn.sent_at - (turn.first_stamp - records[turn.label]["started_at"]) for turn in turns]
