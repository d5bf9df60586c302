"""What users of comparable systems complain about: each row of that list as a test that it does not happen here.

Rows that need several processes, a restart or a browser stand in the tests of those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from tests.conftest import Rows
from tests.support.chat import ChatClient, TurnSeen, connect, new_pair, wait_until
from tests.support.core import Answer, FakeCore
from tests.support.provider import Figures, Provider, ProviderRequest, Script
from tests.support.service import Service

STEADY = Script(pieces=tuple(f"word{i} " for i in range(2000)), piece_delay_s=0.02)
SHORT = Script(pieces=tuple(f"word{i} " for i in range(15)), piece_delay_s=0.02)


def stored_answer(rows: Rows, session_id: int) -> str:
    query = "SELECT content FROM prompt_messages WHERE session_id = %s AND role = 'ASSISTANT'"
    content: str = rows.one(query, session_id)["content"]
    return content


def misbehaving() -> list[Answer]:
    """Answers that let a later event overtake an earlier one, if anything does."""
    kinds = (Answer(status=500), Answer(action="reset"), Answer(delay_s=0.1, status=503), Answer(action="hang"))
    return [*kinds, Answer(action="close"), Answer(status=429, headers=(("Retry-After", "0.1"),))] * 4


async def talk(urls: Sequence[str], *, turns: int) -> int:
    """So many turns of a new session, each at the next address; returns the session."""
    pair = new_pair()
    for number in range(turns):
        async with connect(urls[number % len(urls)]) as client:
            seen = await client.ask("hello", f"t{number}", **pair)
    return seen.session_id


async def usage_of(core: FakeCore, session_id: int) -> dict[str, Any]:
    """The one usage callback of a session, once everything about its turn has reached Core."""
    await core.reaches(
        lambda events: any(e.type == "message_response" and e.session_id == str(session_id) for e in events)
    )
    [usage] = [event.body for event in core.events(session_id) if event.type == "usage"]
    return usage


async def stopped(client: ChatClient, provider: Provider, text: str) -> tuple[TurnSeen, ProviderRequest]:
    """A turn that is stopped once ``text`` has come, and what the provider saw of it."""
    seen = await client.start("hello", text=text, **new_pair())
    await provider.requests_reach(1)
    await client.send(type="cancel", turn_id="t1")
    await client.turn(seen=seen)
    [request] = await provider.closed_reach(1)
    return seen, request


async def completed(rows: Rows, session_id: int) -> None:
    query = "SELECT status FROM prompt_turns WHERE session_id = %s"
    await asyncio.to_thread(wait_until, lambda: rows.one(query, session_id)["status"] == "completed")


async def test_complaint_01_stop_ends_the_generation_at_the_provider(service: Service, provider: Provider) -> None:
    provider.default = STEADY
    async with connect(service.url) as client:
        seen, request = await stopped(client, provider, "word3")
    assert seen.end["type"] == "cancelled"
    assert request.ended == "client_closed"
    assert request.pieces_sent < len(STEADY.pieces)


async def test_complaint_04_stop_in_the_first_moment_is_not_lost(service: Service, provider: Provider) -> None:
    provider.default = Script(ending="hang", ending_at=0)  # no text comes between the two, however late the second is
    async with connect(service.url) as client:
        await client.send(message="hello", turn_id="t1", **new_pair())
        await client.send(type="cancel", turn_id="t1")
        seen = await client.turn()
    assert (seen.end["type"], seen.text) == ("cancelled", "")
    assert await asyncio.to_thread(wait_until, lambda: provider.active == 0)


async def test_complaint_05_abort_reaches_the_call_inside_the_graph(service: Service, provider: Provider) -> None:
    for sent, text in ((-1, ""), (0, ""), (2, "A turnstone")):  # before the headers, before the text, in the text
        provider.requests.clear()
        provider.default = Script(ending="hang", ending_at=sent)
        async with connect(service.url) as client:
            seen, request = await stopped(client, provider, text)
        assert (seen.end["type"], request.ended) == ("cancelled", "client_closed")
        assert len(provider.requests) == 1


async def test_complaint_06_stop_and_resume_do_not_exclude_each_other(service: Service, provider: Provider) -> None:
    provider.default = STEADY
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word1", **new_pair())
        client.drop()
    where = {"session_id": seen.session_id, "turn_id": "t1"}
    async with connect(service.url) as client:
        await client.send(type="resume", after_seq=seen.last_seq, **where)
        await client.until("delta")
        await client.send(type="cancel", **where)
        ending = await client.until("cancelled")
        await client.send(type="resume", after_seq=0, **where)
        resumed = await client.turn()
    assert resumed.end == ending
    assert resumed.text.startswith(seen.text)


async def test_complaint_07_cancel_keeps_every_token_that_was_shown(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = STEADY
    async with connect(service.url) as client:
        seen, _ = await stopped(client, provider, "word7")
    assert stored_answer(rows, seen.session_id) == seen.text
    assert STEADY.text.startswith(seen.text)


async def test_complaint_08_closing_the_tab_does_not_lose_the_answer(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word1", **new_pair())
    await completed(rows, seen.session_id)
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        items = (await rest.get(f"/api/sessions/{seen.session_id}/messages")).json()["items"]
    assert [item["content"] for item in items] == ["hello", SHORT.text]


async def test_complaint_09_refresh_in_mid_stream_shows_the_first_half_too(
    service: Service, provider: Provider
) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word7", **new_pair())
    async with connect(service.url) as client:
        await client.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=0)
        refreshed = await client.turn()
    assert refreshed.text == SHORT.text


async def test_complaint_12_no_two_deltas_have_one_number_and_no_replay_skips_one(
    service: Service, provider: Provider
) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
        deltas = [frame for frame in seen.frames if frame["type"] == "delta"]
        numbers = [n for frame in deltas for n in range(frame.get("first_seq", frame["seq"]), frame["seq"] + 1)]
        assert numbers == list(range(1, seen.last_seq + 1))
        for number, frame in enumerate(deltas):
            await client.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=frame["seq"])
            rest = await client.turn(after_seq=frame["seq"])
            assert rest.text == "".join(later["content"] for later in deltas[number + 1 :])


async def test_complaint_13_a_reconnect_does_not_double_the_message(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = SHORT
    pair = new_pair()
    for frames in (1, 3):
        async with connect(service.url) as client:
            await client.send(message="hello", turn_id="t1", **pair)
            for _ in range(frames):
                await client.receive()
            client.drop()
    async with connect(service.url) as client:
        seen = await client.ask("hello", **pair)
    assert seen.text == SHORT.text
    assert [row["role"] for row in rows("SELECT role FROM prompt_messages ORDER BY id")] == ["USER", "ASSISTANT"]


async def test_complaint_14_an_answer_that_got_lost_is_not_generated_and_billed_again(
    service: Service, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    provider.default = SHORT
    pair = new_pair()
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word1", **pair)
        client.drop()
    await completed(rows, seen.session_id)
    async with connect(service.url) as client:
        again = await client.ask("hello", **pair)
    assert again.text == SHORT.text
    assert len(provider.requests) == 1
    usage = await usage_of(core, seen.session_id)
    total = rows.one("SELECT total_tokens FROM prompt_sessions WHERE id = %s", seen.session_id)["total_tokens"]
    assert total == usage["total_tokens"] == again.end["usage"]["total_tokens"]


async def test_complaint_15_an_aborted_stream_has_usage(service: Service, provider: Provider, core: FakeCore) -> None:
    provider.default = STEADY
    async with connect(service.url) as client:
        seen, _ = await stopped(client, provider, "word7")
    usage = await usage_of(core, seen.session_id)
    assert {key: usage[key] for key in seen.end["usage"]} == seen.end["usage"]
    assert usage["source"] == "counted"
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] >= len(seen.text.split())


async def test_complaint_16_a_disconnect_does_not_shrink_the_usage(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    provider.default = SHORT
    async with connect(service.url) as client:
        session_id = (await client.start("hello", text="word1", **new_pair())).session_id
        client.drop()
    usage = await usage_of(core, session_id)
    figures = (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"], usage["source"])
    assert figures == (25, len(SHORT.pieces), 25 + len(SHORT.pieces), "provider")


async def test_complaint_17_there_is_one_usage_callback_per_turn_however_it_ends(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    provider.next(SHORT, STEADY, Script(ending="eof"))
    async with connect(service.url) as client:
        session_id = (await client.ask("hello", "done", **new_pair())).session_id
        for turn_id, ending in (("stopped", "cancelled"), ("broken", "error")):
            seen = await client.start("hello", turn_id, text="word0" * (ending == "cancelled"), session_id=session_id)
            for _ in range(3 * (ending == "cancelled")):
                await client.send(type="cancel", turn_id=turn_id)
            await client.turn(seen=seen)
            assert seen.end["type"] == ending
            # and everything a client may do afterwards
            await client.send(type="cancel", turn_id=turn_id)
            await client.send(message="hello", turn_id=turn_id, session_id=session_id)
            await client.send(type="resume", turn_id=turn_id, session_id=session_id)
            await client.send(type="ping")
            await client.until("pong")
        await client.ask("hello", "last", session_id=session_id)
    await core.reaches(lambda events: sum(event.type == "message_response" for event in events) == 4)
    events = core.events(session_id)
    assert [e.body["turn_id"] for e in events if e.type == "usage"] == ["done", "stopped", "broken", "last"]
    assert [event.seq for event in events] == list(range(1, 2 * 4 + 1 + 1))  # and one `error`


async def test_complaint_18_streamed_answers_have_the_providers_usage(service: Service, provider: Provider) -> None:
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
    assert seen.end["usage"]["source"] == "provider"
    assert seen.end["usage"]["total_tokens"] > 0
    assert provider.requests[0].body["stream_options"] == {"include_usage": True}


async def test_complaint_19_growing_figures_are_not_summed_and_thinking_is_in(
    service: Service, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    thinking = ("hm", "well", "so")
    figures = Figures(prompt_tokens=100, completion_tokens=40, reasoning_tokens=30)
    provider.default = Script(reasoning=thinking, usage_in="every", usage=figures)
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
    usage = await usage_of(core, seen.session_id)
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["source"]) == (100, 40, "provider")
    [call] = rows("SELECT * FROM provider_calls")
    assert (call["prompt_tokens"], call["completion_tokens"], call["reasoning_tokens"]) == (100, 40, 30)


async def test_complaint_20_cached_tokens_are_counted_once(
    service: Service, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    provider.default = Script(usage=Figures(prompt_tokens=100, completion_tokens=10, cached_tokens=64))
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
    usage = await usage_of(core, seen.session_id)
    figures = (usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"], usage["total_tokens"])
    assert figures == (100, 64, 10, 110)
    assert seen.end["usage"]["total_tokens"] == 110
    assert rows.one("SELECT total_tokens FROM prompt_sessions WHERE id = %s", seen.session_id)["total_tokens"] == 110


async def test_complaint_26_callbacks_arrive_in_order_while_core_refuses_resets_and_falls_silent(
    start: Callable[..., Service], provider: Provider, core: FakeCore
) -> None:
    service = start(callbacks={"timeout_s": 0.3, "retry_delays_s": (0.02,) * 200})  # Core may stand still for longer
    core.next(*misbehaving())
    sessions = await asyncio.gather(*(talk([service.url], turns=5) for _ in range(6)))
    await core.reaches(6 * 5 * 2, 30)
    for session_id in sessions:
        assert [event.seq for event in core.events(session_id)] == list(range(1, 11))
    assert len(core.deliveries) >= 6 * 5 * 2 + len(misbehaving())
