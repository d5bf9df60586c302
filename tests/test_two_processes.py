"""A turn belongs to the service, not to a process: the same on the other one, with Redis and without."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import TERMINAL, Command, connect, environment, new_pair, wait_listening
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.redis_server import RedisServer
from tests.support.service import Service, running
from tests.test_complaints import misbehaving, talk

WAIT_S = 30.0
HANGING = Script(pieces=("so ", "far ", "never"), ending="hang", ending_at=2, piece_delay_s=0.02)


@pytest.fixture(params=["without Redis", "with Redis"])
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer | None]:
    if request.param == "without Redis":
        yield None
    else:
        with RedisServer() as server:
            yield server


@pytest.fixture
def both(start: Callable[..., Service], redis: RedisServer | None) -> tuple[Service, Service]:
    """Two services with pools, leases and live turns of their own, on one database."""
    sections: dict[str, Any] = {"llm": {"timeout_s": 60}}
    if redis is not None:
        sections["redis"] = {"url": redis.url}
    return start(**sections), start(**sections)


async def begin(service: Service, turn_id: str = "t1", **pair: int) -> str:
    """Start a turn and leave; returns its session."""
    async with connect(service.url) as chat:
        await chat.send(message="hello", turn_id=turn_id, **(pair or new_pair()))
        session_id: str = (await chat.until("started"))["session_id"]
    return session_id


async def test_complaint_13_a_socket_cut_after_every_frame_goes_on_at_the_other_process(
    both: tuple[Service, Service], provider: Provider, rows: Rows
) -> None:
    script = Script(pieces=[f"낱말{i} 🐦 " for i in range(20)], piece_delay_s=0.05)
    provider.next(script)
    session_id = await begin(both[0])
    text, last, cuts = "", 0, 0
    texts = {0: ""}
    while True:
        async with connect(both[cuts % 2].url) as chat:
            await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=last)
            frame = await chat.receive(WAIT_S)
        if frame["type"] in TERMINAL:
            break
        assert frame.get("first_seq", frame["seq"]) == last + 1
        text, last, cuts = text + frame["content"], frame["seq"], cuts + 1
        texts[last] = text
    assert (frame["type"], text) == ("done", script.text)
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == text
    for number, (after, before) in enumerate(texts.items()):
        async with connect(both[number % 2].url) as chat:
            await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=after)
            seen = await chat.turn(after_seq=after)
        assert before + seen.text == text
        assert seen.end == frame


async def test_complaint_14_fifty_racing_copies_on_two_processes_are_one_turn(
    settings: Settings, redis: RedisServer | None, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    settings = change(settings, database={"timeout_s": 30})  # fifty wait for each other
    if redis is not None:
        settings = change(settings, redis={"url": redis.url})
    env = environment(settings, TURNSTONE_PORT="0")
    with running(Command("serve", env=env)) as one, running(Command("serve", env=env)) as other:
        for process in (one, other):
            await asyncio.to_thread(process.wait_ready)
        await _race((one.url, other.url), provider, core, rows)


async def _race(urls: tuple[str, str], provider: Provider, core: FakeCore, rows: Rows) -> None:
    provider.default = script = Script(pieces=[f"w{i} " for i in range(20)], piece_delay_s=0.05)
    pair = new_pair()

    async def by_socket(url: str) -> tuple[str, str]:
        async with connect(url) as chat:
            seen = await chat.ask("hello", "t1", **pair)
        return seen.end["type"], seen.text

    async def by_rest(url: str) -> tuple[str, str]:
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http:
            said = (await http.post("/api/chat/message", json={"message": "hello", "turn_id": "t1", **pair})).json()
        return said.get("finish_reason", said), said.get("ai_message")

    copies = [kind(urls[n % 2]) for n in range(25) for kind in (by_socket, by_rest)]
    answers = Counter(await asyncio.gather(*copies))
    assert answers == {("done", script.text): 25, ("stop", script.text): 25}
    await core.reaches(2)
    assert len(provider.requests) == 1
    assert rows.one("SELECT count(*) AS n FROM prompt_turns")["n"] == 1
    assert rows.one("SELECT count(*) AS n FROM prompt_messages")["n"] == 2
    assert Counter(event.type for event in core.events()) == {"usage": 1, "message_response": 1}


async def test_complaint_02_stop_reaches_the_process_that_holds_the_turn(
    both: tuple[Service, Service], provider: Provider, rows: Rows
) -> None:
    waits = []
    for number in range(10):
        provider.next(HANGING)
        session_id = await begin(both[number % 2])
        async with connect(both[1 - number % 2].url) as chat:
            await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
            await chat.until("delta")
            asked = time.monotonic()
            await chat.send(type="cancel", session_id=session_id, turn_id="t1")
            await chat.until("cancelled")
        await provider.closed_reach(number + 1)
        closed = provider.requests[-1].ended_at
        assert closed is not None
        waits.append(closed - asked)
    assert max(waits) < WAIT_S, waits
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"cancelled"}


async def test_stop_elsewhere_is_told_and_need_not_be_found(settings: Settings, provider: Provider, rows: Rows) -> None:
    # It would be found by the flush, which does not come here.
    never = change(settings, llm={"timeout_s": 60}).model_copy(update={"flush_interval_s": 3600.0})
    with Service(never) as one, Service(never) as other:
        await asyncio.to_thread(wait_listening, rows, 2)
        both = one, other
        for number in range(6):
            provider.next(HANGING)
            session_id = await begin(both[number % 2])
            async with httpx.AsyncClient(base_url=both[1 - number % 2].url, timeout=WAIT_S) as http:
                answer = await http.post(f"/api/sessions/{session_id}/turns/t1/cancel")
            assert answer.status_code == 200
            assert answer.json()["status"] == "cancelled"


async def test_complaint_03_stop_works_while_redis_is_away(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    with RedisServer() as redis:
        sections = {"redis": {"url": redis.url}, "llm": {"timeout_s": 60}}
        here, there = start(**sections), start(**sections)
        for hurt in (redis.freeze, redis.kill):
            provider.next(HANGING)
            session_id = await begin(here)
            async with connect(there.url) as chat:
                await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
                await chat.until("delta")
                hurt()
                await chat.send(type="cancel", session_id=session_id, turn_id="t1")
                assert (await chat.until("cancelled", WAIT_S))["turn_id"] == "t1"
            if hurt == redis.freeze:
                redis.thaw()
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"cancelled"}


async def test_complaint_10_after_coming_back_elsewhere_a_running_answer_can_be_stopped(
    both: tuple[Service, Service], provider: Provider
) -> None:
    provider.next(HANGING)
    pair = new_pair()
    await begin(both[0], **pair)
    async with connect(both[1].url) as chat:
        await chat.send(message="hello", turn_id="t1", **pair)  # a page that was loaded anew sends what it had
        assert (await chat.until("started"))["turn"] == 1
        await chat.until("delta")
        await chat.send(type="cancel", turn_id="t1")
        assert (await chat.until("cancelled"))["turn"] == 1
    assert len(provider.requests) == 1


async def test_complaint_11_rejoining_an_ended_turn_ends(both: tuple[Service, Service], provider: Provider) -> None:
    pair = new_pair()
    async with connect(both[0].url) as chat:
        ended = await chat.ask("hello", "t1", **pair)
    for service in both:
        async with connect(service.url) as chat:
            await chat.send(type="resume", session_id=ended.session_id, turn_id="t1", after_seq=ended.last_seq)
            assert (await chat.receive())["type"] == "done"
            again = await chat.ask("hello", "t1", **pair)
            assert (again.text, again.end) == (ended.text, ended.end)
    assert len(provider.requests) == 1


async def test_one_running_turn_per_session_on_all_processes(both: tuple[Service, Service], provider: Provider) -> None:
    provider.next(HANGING)
    pair = new_pair()
    session_id = await begin(both[0], **pair)
    async with connect(both[1].url) as chat:
        await chat.send(message="another", turn_id="t2", **pair)
        assert (await chat.until("error"))["code"] == "turn_in_progress"
        await chat.send(message="other words", turn_id="t1", **pair)
        assert (await chat.until("error"))["code"] == "turn_id_conflict"
        await chat.send(type="cancel", session_id=session_id, turn_id="t1")
        await chat.until("cancelled")
        assert (await chat.ask("another", "t2", **pair)).end["type"] == "done"


async def test_complaint_26_callbacks_arrive_in_order_whichever_process_delivers_them(
    settings: Settings, core: FakeCore, rows: Rows
) -> None:
    settings = change(settings, lease_s=4, callbacks={"timeout_s": 0.3, "retry_delays_s": (0.02,) * 50})
    env = environment(settings, TURNSTONE_PORT="0")
    core.next(*misbehaving())
    with ExitStack() as stack:
        serving = [stack.enter_context(running(Command("serve", env=env))) for _ in range(2)]
        for process in serving:
            await asyncio.to_thread(process.wait_ready)
        urls = [process.url for process in serving]
        talks = [asyncio.create_task(talk(urls[n % 2 :] + urls[: n % 2], turns=6)) for n in range(6)]
        worker = stack.enter_context(running(Command("worker", env=env)))
        await asyncio.to_thread(worker.wait_for_line, "working")
        sessions = await asyncio.gather(*talks)
        core.next(*misbehaving())
        sessions += await asyncio.gather(*(talk(urls, turns=6) for _ in range(4)))
        worker.kill()
        await core.reaches(10 * 6 * 2, 2 * WAIT_S)
        for session_id in sessions:
            assert [event.seq for event in core.events(session_id)] == list(range(1, 13))
    assert {row["event_id"] for row in rows("SELECT event_id FROM callbacks")} == {event.id for event in core.events()}
