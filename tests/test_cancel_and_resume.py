"""Stopping a turn, losing the connection, and coming back: promises 4 and 5 of the protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import httpx
import psutil  # type: ignore[import-untyped]
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.application.services.eval_service import EvalService
from app.application.turns.exchange import Started
from app.application.turns.generation import Generations
from app.application.turns.runner import TurnRunner
from app.application.turns.tail import Tails
from app.domain.guard_policy import GuardRules
from app.domain.langgraph.graph import build_graph
from app.domain.turn_log import Done, Piece
from app.infrastructure.repositories.state_repository import StateRepository
from tests.conftest import Rows
from tests.support.chat import ChatClient, TurnSeen, connect, connect_many, new_pair, wait_until
from tests.support.provider import Provider, Script
from tests.support.service import Service

HANGS = Script(pieces=("some ", "text ", "and "), piece_delay_s=0.01, ending="hang")
STEADY = Script(pieces=tuple(f"word{i} " for i in range(2000)), piece_delay_s=0.02)
NO_TEXT = Script(ending="hang", ending_at=0)
SHORT = Script(pieces=tuple(f"{i} 새🐦 " for i in range(12)), piece_delay_s=0.02)


def answer(rows: Rows, session_id: int) -> str:
    """The stored answer of a session's first turn; empty where there is none."""
    found = rows("SELECT content FROM prompt_messages WHERE session_id = %s AND role = 'ASSISTANT'", session_id)
    return "".join(row["content"] for row in found)


# --- cancel ---

Stop = Callable[[Service, ChatClient, TurnSeen], Awaitable[None]]


async def from_this_socket(_service: Service, client: ChatClient, seen: TurnSeen) -> None:
    await client.send(type="cancel", turn_id=seen.started["turn_id"])


async def from_another_socket(service: Service, _client: ChatClient, seen: TurnSeen) -> None:
    turn_id = seen.started["turn_id"]
    async with connect(service.url) as other:
        await other.send(type="cancel", turn_id=turn_id, session_id=seen.session_id)
        ending = await other.receive()  # the ending and nothing else
        assert (ending["type"], ending["turn_id"]) == ("cancelled", turn_id)


async def by_rest(service: Service, _client: ChatClient, seen: TurnSeen) -> None:
    turn_id = str(seen.started["turn_id"])
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        path = f"/api/sessions/{seen.session_id}/turns/{quote(turn_id, safe='')}/cancel"
        answered = await rest.post(path)
    assert answered.status_code == 200, answered.text
    assert (answered.json()["status"], answered.json()["turn_id"]) == ("cancelled", seen.started["turn_id"])


def open_connections(port: int) -> list[object]:
    """Connections from this port of ours, the service's and the tests', that have not been closed on this side."""
    ours = psutil.Process().net_connections("tcp")
    return [one for one in ours if one.laddr.port == port and one.status == psutil.CONN_ESTABLISHED]


@pytest.mark.parametrize("stop", [from_this_socket, from_another_socket, by_rest])
async def test_cancel_closes_the_connection_to_the_provider_and_only_then_says_cancelled(
    service: Service, provider: Provider, rows: Rows, stop: Stop
) -> None:
    moments = {
        "mid-stream": (STEADY, "word2"),
        "before the first token": (Script(ending="hang", ending_at=0), ""),
        "before the provider's headers": (Script(ending="hang", ending_at=-1), ""),
    }
    for number, (script, text) in enumerate(moments.values(), 1):
        provider.next(script)
        async with connect(service.url) as client:
            seen = await client.start("hello", "a/b ?1", text=text, **new_pair())
            await provider.requests_reach(number)
            [*_, request] = provider.requests
            assert len(open_connections(request.client_port)) == 1
            await stop(service, client, seen)
            await client.turn(seen=seen)
            open_then = open_connections(request.client_port)
        [*_, request] = await provider.closed_reach(number)
        assert seen.end["type"] == "cancelled"
        assert set(seen.end) == {"type", "turn_id", "turn", "usage"}
        assert seen.end["usage"]["source"] == "counted"
        assert request.ended == "client_closed"
        assert open_then == [], "what the provider's own thread says of it may come a moment later"
        assert answer(rows, seen.session_id) == seen.text
        assert bool(seen.text) == bool(text)
        assert (
            rows.one("SELECT status FROM prompt_turns WHERE session_id = %s", seen.session_id)["status"] == "cancelled"
        )


SLOW_FLUSH = """
    CREATE FUNCTION slowly() RETURNS trigger AS $$
    BEGIN
        PERFORM pg_sleep(0.5);
        RETURN NEW;
    END $$ LANGUAGE plpgsql;
    CREATE TRIGGER slowly BEFORE INSERT ON turn_chunks FOR EACH ROW EXECUTE FUNCTION slowly()
    """


async def test_a_flush_that_is_under_way_when_a_turn_ends_leaves_nothing(
    service: Service, provider: Provider, rows: Rows
) -> None:
    rows(SLOW_FLUSH)
    provider.default = Script(pieces=[f"word{number} " for number in range(25)], piece_delay_s=0.02)
    async with connect(service.url) as client:
        for number in range(3):
            assert (await client.ask("hello", number, **new_pair())).end["type"] == "done"
    await asyncio.sleep(1.0)  # a flush that was begun before would have ended by now
    assert rows("SELECT 1 FROM turn_chunks") == []


async def test_a_cancel_right_behind_the_message_is_not_lost(service: Service, provider: Provider, rows: Rows) -> None:
    provider.default = NO_TEXT  # so that none comes between the two, however far apart they arrive
    for number in range(10):
        async with connect(service.url) as client:
            await client.send(type="message", message="hello", turn_id=number, **new_pair())
            await client.send(type="cancel", turn_id=number)
            seen = await client.turn()
        assert [frame["type"] for frame in seen.frames] == ["started", "cancelled"]
    # one that the provider has not read yet may come to its notice after it was given up
    requests = provider.requests.wait(lambda requests: all(request.ended for request in requests))
    assert {request.ended for request in requests} <= {"client_closed"}
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"cancelled"}


async def test_a_cancel_while_the_turn_is_being_started_elsewhere_is_not_lost(
    service: Service, provider: Provider, rows: Rows
) -> None:
    """Somebody who knows the turn from the database, and not from `started`, stops it."""
    provider.default = STEADY
    async with connect(service.url) as first:
        session_id = (await first.start("hello", 0, **new_pair())).session_id
        await first.send(type="cancel", turn_id=0)
        await first.until("cancelled")
        async with connect(service.url) as second:
            for number in range(1, 11):
                await first.send(type="message", message="hello", turn_id=number, session_id=session_id)
                frame = {"type": "error"}
                while frame["type"] == "error":
                    await second.send(type="cancel", turn_id=number, session_id=session_id)
                    frame = await second.receive()
                assert frame["type"] == "cancelled", frame
                await first.turn()
    assert rows.one("SELECT count(*) AS n FROM prompt_turns WHERE status = 'cancelled'")["n"] == 11


async def test_cancelling_an_ended_turn_repeats_its_terminal_frame(service: Service, provider: Provider) -> None:
    for script in (Script(), HANGS, Script(ending="eof")):
        provider.next(script)
        async with connect(service.url) as client, connect(service.url) as other:
            seen = await client.start("hello", text="and" if script is HANGS else "", **new_pair())
            if script is HANGS:
                await client.send(type="cancel", turn_id="t1")
            await client.turn(seen=seen)
            for _ in range(2):
                await client.send(type="cancel", turn_id="t1")  # the connection knows the turn still
                assert await client.receive() == seen.end
                await other.send(type="cancel", turn_id="t1", session_id=seen.session_id)
                assert await other.receive() == seen.end
            async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
                body = (await rest.post(f"/api/sessions/{seen.session_id}/turns/t1/cancel")).json()
            assert body["usage"] == seen.end["usage"]
    assert len(provider.requests) == 3


async def test_a_cancel_without_a_session_stops_only_what_the_connection_knows_and_nothing_by_guess(
    service: Service, provider: Provider
) -> None:
    provider.default = HANGS
    async with connect(service.url) as client, connect(service.url) as stranger:
        one = await client.start("hello", 1, text="and", **new_pair())
        two = await client.start("hello", 1, text="and", **new_pair())
        await stranger.send(type="cancel", turn_id=1)
        assert (await stranger.receive())["code"] == "turn_not_found"
        await client.send(type="cancel", turn_id=1)
        refused = await client.receive()
        assert (refused["code"], refused["turn_id"]) == ("invalid_frame", 1)
        assert provider.active == 2
        for seen in (one, two):
            await client.send(type="cancel", turn_id=1, session_id=seen.session_id)
            await client.until("cancelled")


async def test_unknown_turns_and_sessions_are_said_to_be_unknown(service: Service) -> None:
    async with connect(service.url) as client:
        session_id = (await client.ask("hello", **new_pair())).session_id
        for kind in ("cancel", "resume"):
            for where, code in (
                ({"session_id": session_id, "turn_id": "nope"}, "turn_not_found"),
                ({"session_id": str(session_id), "turn_id": 1}, "turn_not_found"),
                ({"session_id": 987654321, "turn_id": "t1"}, "session_not_found"),
                ({"session_id": "0", "turn_id": "t1"}, "session_not_found"),
                ({"session_id": "not a number", "turn_id": "t1"}, "session_not_found"),
                ({"session_id": "9" * 30, "turn_id": "t1"}, "session_not_found"),
            ):
                await client.send(type=kind, **where)
                error = await client.receive()
                assert (error["type"], error["code"], error["turn_id"]) == ("error", code, where["turn_id"])
                assert set(error) == {"type", "turn_id", "code", "message", "retryable"}
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
            unknown = await rest.post(f"/api/sessions/{session_id}/turns/nope/cancel")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "turn_not_found")


@pytest.mark.slow
async def test_ten_thousand_cancels_stop_a_turn_once_and_leave_the_service_well(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.next(STEADY)
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word1", **new_pair())

        async def flood() -> None:
            for _ in range(10_000):
                await client.send(type="cancel", turn_id="t1")
            await client.send(type="ping")

        flooding = asyncio.create_task(flood())
        await client.turn(seen=seen)
        repeated = 0
        while (frame := await client.receive(60))["type"] != "pong":
            assert frame == seen.end
            repeated += 1
        await flooding
        assert (await client.ask("hello", "t2", session_id=seen.session_id)).end["type"] == "done"
    assert seen.end["type"] == "cancelled"
    assert repeated <= 10_000
    assert (
        rows.one("SELECT count(*) AS n FROM callbacks WHERE payload ->> 'turn_id' = 't1' AND type = 'usage'")["n"] == 1
    )
    assert len(provider.requests) == 2


async def test_cancel_reaches_the_provider_soon_at_50_streams(service: Service, provider: Provider) -> None:
    provider.default = STEADY
    rounds: list[list[float]] = []
    while not rounds or (rounds[-1][48] >= 1.5 and len(rounds) < 6):  # a machine that stands still does not each time
        took = []
        provider.requests.clear()
        async with connect_many(service.url, 50) as clients:
            seen = await asyncio.gather(
                *(c.start(f"number {n}.", "t1", text="word3", **new_pair()) for n, c in enumerate(clients))
            )
            sent = {}
            for number, client in enumerate(clients):
                await client.send(type="cancel", turn_id="t1")
                sent[number] = time.monotonic()
            await asyncio.gather(*(c.turn(seen=s) for c, s in zip(clients, seen, strict=True)))
        for request in await provider.closed_reach(50):
            assert (request.ended, request.ended_at is not None) == ("client_closed", True)
            number = int(request.last_user_text.removeprefix("number ").removesuffix("."))
            took.append((request.ended_at or 0) - sent[number])
        rounds.append(sorted(took))
    # `make bench` holds it to 250 ms; a machine that runs other tests beside this one gets more.
    p50_ms, p98_ms = rounds[-1][25] * 1000, rounds[-1][48] * 1000
    assert p98_ms < 1500, f"p50 {p50_ms:.0f} ms, p98 {p98_ms:.0f} ms"
    print(f"cancel: p50 {p50_ms:.1f} ms, p98 {p98_ms:.1f} ms")


# --- dropped connections and resume ---


async def test_a_dropped_connection_does_not_end_the_turn(service: Service, provider: Provider, rows: Rows) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.start("hello", text="1 ", **new_pair())
        client.drop()
    async with connect(service.url) as client:
        await client.start("hello", text="1 ", **new_pair())
        await client.close()
    async with connect(service.url) as client:
        await client.send(message="hello", turn_id="t1", **new_pair())
        client.drop()  # before it has heard anything
    done = "SELECT count(*) AS n FROM prompt_turns WHERE status = 'completed'"
    await asyncio.to_thread(wait_until, lambda: rows.one(done)["n"] == 3)
    assert {row["content"] for row in rows("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")} == {
        SHORT.text
    }
    assert {request.ended for request in await provider.closed_reach(3)} == {"completed"}
    assert answer(rows, seen.session_id) == SHORT.text


async def _cut_and_resume(url: str, frames: int, *, wait_for_the_end: bool) -> tuple[TurnSeen, int]:
    """Ask, lose the connection after so many frames, come back; returns what was seen in all, and `done`'s count."""
    seen = TurnSeen()
    async with connect(url) as client:
        await client.send(message="hello", turn_id="t1", **new_pair())
        while len(seen.frames) < frames and not (seen.frames and seen.frames[-1]["type"] == "done"):
            seen.frames.append(await client.receive())
        if wait_for_the_end:
            await client.until("done") if not seen.frames or seen.frames[-1]["type"] != "done" else None
        client.drop()
    last_seq, session_id = seen.last_seq, seen.session_id
    if seen.frames[-1]["type"] == "done":
        seen.frames.pop()
    async with connect(url) as client:
        await client.send(type="resume", session_id=session_id, turn_id="t1", after_seq=last_seq)
        rest = await client.turn(after_seq=last_seq)
    assert all(frame["type"] != "started" for frame in rest.frames)
    seen.frames += rest.frames
    return seen, session_id


@pytest.mark.parametrize("ended", [False, True], ids=["a running turn", "an ended turn"])
async def test_an_answer_cut_after_any_of_its_frames_goes_on_without_gap_or_repetition(
    service: Service, provider: Provider, rows: Rows, ended: bool
) -> None:
    provider.default = SHORT
    frames = range(1, len(SHORT.pieces) + 3)
    results = await asyncio.gather(*(_cut_and_resume(service.url, n, wait_for_the_end=ended) for n in frames))
    for seen, session_id in results:
        seen.check_order()
        assert seen.text == SHORT.text == answer(rows, session_id)
        assert seen.end["type"] == "done"
    assert len(provider.requests) == len(frames)


async def test_an_ended_turn_is_resumed_after_every_seq(service: Service, provider: Provider) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.ask("hello", 7, **new_pair())
        assert seen.text == SHORT.text
        held, places = "", {0: ""}  # pieces that came at once are one
        for frame in seen.frames:
            if frame["type"] == "delta":
                held += frame["content"]
                places[frame["seq"]] = held
        places |= dict.fromkeys((seen.last_seq + 1, seen.last_seq + 2), held)
        for turn_id in (7, "7"):
            for after_seq, before in places.items():
                where = {"session_id": str(seen.session_id), "turn_id": turn_id}
                await client.send(type="resume", after_seq=after_seq, **where)
                rest = await client.turn(after_seq=after_seq)
                assert rest.text == SHORT.text.removeprefix(before)
                assert rest.end == seen.end | {"turn_id": turn_id}
        await client.send(type="resume", session_id=seen.session_id, turn_id=7)
        assert (await client.turn()).text == seen.text, "after_seq may be left out"


async def test_two_sockets_resume_a_running_turn_and_each_gets_all_of_it(service: Service, provider: Provider) -> None:
    provider.default = SHORT
    async with connect(service.url) as client, connect_many(service.url, 2) as others:
        seen = await client.start("hello", text="3 ", **new_pair())
        places = (0, seen.frames[1]["seq"])  # a frame holds what came at once
        for after_seq, other in zip(places, others, strict=True):
            await other.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=after_seq)
        await client.turn(seen=seen)
        first, second = [await other.turn(after_seq=n) for n, other in zip(places, others, strict=True)]
    assert first.text == seen.text == SHORT.text
    assert second.text == seen.text.removeprefix(seen.frames[1]["content"])
    assert first.end == second.end == seen.end


async def test_a_resumed_turn_can_be_stopped_and_a_stopped_one_resumed(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = STEADY
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word2", **new_pair())
        client.drop()
    async with connect(service.url) as client, connect(service.url) as other:
        await client.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=0)
        while (frame := await client.receive())["type"] != "delta":
            pass
        await client.send(type="cancel", turn_id="t1")
        resumed = await client.turn(seen=TurnSeen([frame]))
        await other.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=0)
        again = await other.turn()
    assert resumed.end["type"] == again.end["type"] == "cancelled"
    assert resumed.text == again.text == answer(rows, seen.session_id)


async def test_a_resume_in_mid_stream_on_the_same_socket_takes_the_place_of_the_first_reading(
    service: Service, provider: Provider
) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.start("hello", text="3 ", **new_pair())
        await client.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=0)
        frame = await client.receive()
        while frame["type"] != "delta" or frame.get("first_seq", frame["seq"]) != 1:  # it may have ended by now
            frame = await client.receive()
        resumed = await client.turn(seen=TurnSeen([frame]))
        await client.send(type="ping")
        assert await client.receive() == {"type": "pong"}
    assert resumed.text == SHORT.text


@given(cuts=st.lists(st.integers(0, 6), max_size=5))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_however_often_the_connection_is_lost_the_answer_arrives_whole(
    service: Service, provider: Provider, rows: Rows, cuts: list[int]
) -> None:
    provider.default = SHORT

    async def scenario() -> None:
        async with connect(service.url) as client:
            seen = await client.start("hello", **new_pair())
            client.drop()
        for frames in cuts:
            async with connect(service.url) as client:
                resume = {"session_id": seen.session_id, "turn_id": "t1", "after_seq": seen.last_seq}
                await client.send(type="resume", **resume)
                for _ in range(frames):
                    frame = await client.receive()
                    if frame["type"] == "done":
                        break
                    seen.frames.append(frame)
                client.drop()
        async with connect(service.url) as client:
            await client.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=seen.last_seq)
            await client.turn(seen=seen) if seen.frames else None
        assert seen.text == SHORT.text == answer(rows, seen.session_id)

    asyncio.run(scenario())


# --- the same for callers in this process ---


async def test_a_turn_is_read_as_events_by_whoever_takes_his_time_wherever_it_runs(
    service: Service, provider: Provider
) -> None:
    provider.default = Script(pieces=SHORT.pieces, piece_delay_s=0.1)
    started = asyncio.Event()
    runs_here = service.resources.service
    model = service.resources.runner.model
    runner = TurnRunner(model, StateRepository(), most_turns=10, held=False, on_settled=lambda: None)
    generations = Generations(build_graph(), model.client, GuardRules())
    runs_elsewhere = EvalService(runner, generations, StateRepository(), Tails(StateRepository()), lambda: 0)

    async def read(from_service: EvalService, pair: dict[str, int]) -> list[object]:
        events: list[object] = []
        async for event in from_service.process_message_stream("hello", "t1", **pair):
            events.append(event)
            started.set()
            await asyncio.sleep(0.6 if isinstance(event, Started) else 0.05)
        return events

    async def both() -> list[list[object]]:
        pair = new_pair()
        first = asyncio.create_task(read(runs_here, pair))
        await started.wait()
        return [await read(runs_elsewhere, pair), await first]

    for events in await asyncio.to_thread(service.call, both()):
        assert isinstance(events[0], Started)
        assert "".join(event.content for event in events if isinstance(event, Piece)) == SHORT.text
        assert isinstance(events[-1], Done)
    assert len(provider.requests) == 1
