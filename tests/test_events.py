"""A turn's events over plain HTTP: the same as over the socket, from any place on, wherever the turn runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Any

import httpx
import pytest

from app.application.turns.running import RunningTurn
from app.domain.turn_log import TurnLog
from app.presentation.api.routes import events
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.provider import Provider, Script
from tests.support.redis_server import RedisServer
from tests.support.service import Service

WAIT_S = 20.0
SLOW = Script(pieces=[f"낱말{i} " for i in range(40)], piece_delay_s=0.02)
HANGING = Script(pieces=("so far", "never"), ending="hang", ending_at=1)


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as client:
        yield client


async def begin(service: Service, turn_id: str | int = "t1", **pair: Any) -> str:
    """Start a turn and leave it; returns its session."""
    async with connect(service.url) as chat:
        await chat.send(message="hello", turn_id=turn_id, **(pair or new_pair()))
        session_id: str = (await chat.until("started"))["session_id"]
    return session_id


async def stream(http: httpx.AsyncClient, path: str, **headers: str) -> list[tuple[int, dict[str, Any]]]:
    """The events of a stream to its end: id and frame."""
    seen: list[tuple[int, dict[str, Any]]] = []
    event_id = -1
    async with http.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                event_id = int(line[4:])
            elif line.startswith("data: "):
                seen.append((event_id, json.loads(line[6:])))
    return seen


def text_of(frames: list[dict[str, Any]]) -> str:
    return "".join(frame["content"] for frame in frames if frame["type"] == "delta")


async def test_a_running_turn_streams_to_its_end(service: Service, provider: Provider, http: httpx.AsyncClient) -> None:
    provider.next(SLOW)
    session_id = await begin(service)
    seen = await stream(http, f"/api/sessions/{session_id}/turns/t1/events")
    frames = [frame for _, frame in seen]
    assert text_of(frames) == SLOW.text
    assert [frame["seq"] for frame in frames[:-1]] == [event_id for event_id, _ in seen[:-1]]
    assert frames[-1]["type"] == "done"
    assert {frame["turn_id"] for frame in frames} == {"t1"}


async def test_a_stream_goes_on_after_the_last_event_seen(
    service: Service, provider: Provider, http: httpx.AsyncClient
) -> None:
    """Cut after every delta; asked again in the way that browsers do it."""
    provider.next(Script(pieces=[f"w{i} " for i in range(12)], piece_delay_s=0.03))
    session_id = await begin(service)
    path, text, last = f"/api/sessions/{session_id}/turns/t1/events", "", 0
    for _ in range(20):
        async with http.stream("GET", path, headers={"last-event-id": str(last)}) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    frame = json.loads(line[6:])
                    break
        if frame["type"] != "delta":
            break
        assert frame.get("first_seq", frame["seq"]) == last + 1
        text, last = text + frame["content"], frame["seq"]
    assert frame["type"] == "done"
    assert text == "".join(f"w{i} " for i in range(12))


async def test_an_ended_turn_is_replayed_from_any_place_on(
    service: Service, provider: Provider, http: httpx.AsyncClient
) -> None:
    provider.next(SLOW)
    async with connect(service.url) as chat:
        turn = await chat.ask("hello", 7, **new_pair())
    path = f"/api/sessions/{turn.session_id}/turns/7/events"
    deltas = [frame for frame in turn.frames if frame["type"] == "delta"]
    for after in (0, deltas[0]["seq"], deltas[-2]["seq"], turn.last_seq, turn.last_seq + 5):
        seen = await stream(http, f"{path}?after_seq={after}")
        expected = text_of([frame for frame in deltas if frame["seq"] > after])
        assert text_of([frame for _, frame in seen]) == expected
        assert seen[-1][1] == turn.end, "told as over the socket, a number as a number"


async def test_whoever_leaves_a_stream_stops_nothing_and_nobody_keeps_reading(
    service: Service, provider: Provider, http: httpx.AsyncClient, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.next(SLOW)
    runner, logs = service.resources.runner, list[TurnLog]()
    start = runner.start

    def noted(turn: RunningTurn) -> None:
        logs.append(turn.log)  # the turn may end before we look
        start(turn)

    monkeypatch.setattr(runner, "start", noted)
    session_id = await begin(service)
    async with http.stream("GET", f"/api/sessions/{session_id}/turns/t1/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                break
    [log] = logs
    async with asyncio.timeout(WAIT_S):
        while log._readers:
            await asyncio.sleep(0.02)
        while not rows("SELECT 1 FROM prompt_turns WHERE status = 'completed'"):
            await asyncio.sleep(0.02)
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == SLOW.text


async def test_silence_is_broken_by_comments(
    service: Service, provider: Provider, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT_S", 0.05)
    provider.next(HANGING)
    session_id = await begin(service)
    comments = 0
    async with http.stream("GET", f"/api/sessions/{session_id}/turns/t1/events") as response:
        async for line in response.aiter_lines():
            comments += line.startswith(":")
            if comments > 3:
                break
    ended = await http.post(f"/api/sessions/{session_id}/turns/t1/cancel")
    assert ended.json()["status"] == "cancelled"


async def test_a_long_poll_answers_when_there_is_something(
    service: Service, provider: Provider, http: httpx.AsyncClient
) -> None:
    polls = 0
    for _ in range(10):  # until the machine does not stand still for as long as a turn takes
        provider.next(SLOW)
        session_id = await begin(service)
        path, frames, after, polls = f"/api/sessions/{session_id}/turns/t1/events", list[dict[str, Any]](), 0, 0
        while True:
            answer = await http.get(path, params={"after_seq": after}, headers={"accept": "application/json"})
            body = answer.json()
            assert body["items"]
            frames += body["items"]
            after, polls = body["next"], polls + 1
            if body["ended"]:
                break
        assert text_of(frames) == SLOW.text
        assert frames[-1]["type"] == "done"
        if polls > 2:
            break
    assert polls > 2


async def test_a_long_poll_without_news_is_empty(service: Service, provider: Provider, http: httpx.AsyncClient) -> None:
    provider.next(HANGING)
    session_id = await begin(service)
    path = f"/api/sessions/{session_id}/turns/t1/events"
    accept = {"accept": "application/json"}
    first = (await http.get(path, headers=accept)).json()
    assert (text_of(first["items"]), first["next"], first["ended"]) == ("so far", 1, False)
    nothing = (await http.get(path, params={"after_seq": 1, "wait_s": 0.05}, headers=accept)).json()
    assert nothing == {"items": [], "next": 1, "ended": False}
    await http.post(f"/api/sessions/{session_id}/turns/t1/cancel")
    end = (await http.get(path, params={"after_seq": 1}, headers=accept)).json()
    assert ([frame["type"] for frame in end["items"]], end["ended"]) == (["cancelled"], True)


@pytest.mark.parametrize("mirrored", [False, True], ids=["without Redis", "with Redis"])
async def test_a_poll_that_does_not_wait_shows_what_is_known_of_a_turn_of_another_process(
    start: Callable[..., Service], provider: Provider, mirrored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def not_yet(_owner: int) -> None:
        """No flush comes."""

    with RedisServer() if mirrored else nullcontext() as redis:
        sections: dict[str, Any] = {"redis": {"url": redis.url, "timeout_s": 10}} if redis else {}
        here, there = start(**sections), start(flush_interval_s=0.05, **sections)
        if mirrored:  # the text has to come from Redis: the database has none
            monkeypatch.setattr(there.resources.runner, "flush", not_yet)
        provider.next(HANGING)
        session_id = await begin(there)
        path, at_once = f"/api/sessions/{session_id}/turns/t1/events", {"wait_s": 0}
        async with httpx.AsyncClient(base_url=here.url, timeout=WAIT_S) as http:
            accept = {"accept": "application/json"}
            async with asyncio.timeout(WAIT_S):
                while not (await http.get(path, params=at_once, headers=accept)).json()["items"]:
                    await asyncio.sleep(0.05)
            for _ in range(2):
                body = (await http.get(path, params=at_once, headers=accept)).json()
                assert (text_of(body["items"]), body["next"], body["ended"]) == ("so far", 1, False)
            nothing = (await http.get(path, params={"after_seq": 1, **at_once}, headers=accept)).json()
            assert nothing == {"items": [], "next": 1, "ended": False}
            await http.post(f"/api/sessions/{session_id}/turns/t1/cancel")
            body = (await http.get(path, params=at_once, headers=accept)).json()
            assert ([frame["type"] for frame in body["items"]], body["ended"]) == (["delta", "cancelled"], True)


@pytest.mark.parametrize("accept", ["text/event-stream", "application/json"])
async def test_a_turn_of_another_process_is_read_as_well(
    start: Callable[..., Service], provider: Provider, accept: str
) -> None:
    here, there = start(), start()
    provider.next(SLOW)
    session_id = await begin(there)
    path = f"/api/sessions/{session_id}/turns/t1/events"
    async with httpx.AsyncClient(base_url=here.url, timeout=WAIT_S) as http:
        if accept == "text/event-stream":
            frames = [frame for _, frame in await stream(http, path)]
        else:
            frames, after = [], 0
            while not frames or frames[-1]["type"] == "delta":
                body = (await http.get(path, params={"after_seq": after}, headers={"accept": accept})).json()
                frames, after = frames + body["items"], body["next"]
    assert text_of(frames) == SLOW.text
    assert frames[-1]["type"] == "done"


async def test_what_is_not_there_is_a_problem(service: Service, http: httpx.AsyncClient) -> None:
    session_id = await begin(service)
    for path, code in (
        (f"/api/sessions/{session_id}/turns/none/events", "turn_not_found"),
        (f"/api/sessions/{session_id}/turns/{'x' * 129}/events", "turn_not_found"),
        ("/api/sessions/987654/turns/t1/events", "session_not_found"),
        ("/api/sessions/nobody/turns/t1/events", "session_not_found"),
        (f"/api/sessions/{session_id}/turns/t1/events?after_seq=-1", "invalid_frame"),
        (f"/api/sessions/{session_id}/turns/t1/events?wait_s=x", "invalid_frame"),
    ):
        answer = await http.get(path)
        assert (answer.headers["content-type"], answer.json()["code"]) == ("application/problem+json", code)
    bad = await http.get(f"/api/sessions/{session_id}/turns/t1/events", headers={"last-event-id": "x"})
    assert bad.json()["code"] == "invalid_frame"


async def test_a_turn_s_name_may_hold_anything(service: Service, http: httpx.AsyncClient) -> None:
    session_id = await begin(service, "a/b events/é?")
    seen = await stream(http, f"/api/sessions/{session_id}/turns/a%2Fb%20events%2F%C3%A9%3F/events")
    assert seen[-1][1]["turn_id"] == "a/b events/é?"
