"""The WebSocket protocol, frame by frame and promise by promise, against the real service."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import websockets

from app.presentation.api.routes import chat
from tests.conftest import Rows
from tests.support.chat import TERMINAL, TurnSeen, connect, connect_many, new_pair
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service

SLOW = Script(pieces=tuple(f"word{i} " for i in range(20)), piece_delay_s=0.02)
HANGS = Script(pieces=("some ", "text ", "and "), piece_delay_s=0.01, ending="hang")


def callbacks(rows: Rows, session_id: int, kind: str) -> list[dict[str, Any]]:
    """Payloads of a session's callbacks of one type, as they are stored."""
    found = rows(
        "SELECT payload FROM callbacks WHERE session_id = %s AND type = %s ORDER BY callback_seq", session_id, kind
    )
    return [row["payload"] for row in found]


def answer(rows: Rows, session_id: int, turn: int = 1) -> str:
    """The stored answer of a turn."""
    query = "SELECT content FROM prompt_messages WHERE session_id = %s AND turn = %s AND role = 'ASSISTANT'"
    content: str = rows.one(query, session_id, turn)["content"]
    return content


# --- the frames ---


@pytest.mark.parametrize("path", ["/chat", "/api/chat/ws"])
async def test_a_turn_is_started_then_deltas_then_done_with_exactly_the_fields_of_the_contract(
    service: Service, provider: Provider, path: str
) -> None:
    provider.default = Script(pieces=("one ", "two ", "three"), piece_delay_s=0.05)
    async with connect(service.url, path) as client:
        for _ in range(10):  # a delta holds several pieces where the machine stood still between them
            seen = await client.ask("hello", turn_id="t1", **new_pair())
            if len(seen.frames) == 5:
                break
        await client.send(type="ping")
        assert await client.receive() == {"type": "pong"}
    session_id = seen.started["session_id"]
    assert isinstance(session_id, str)
    assert int(session_id) > 0
    assert seen.frames == [
        {"type": "started", "session_id": session_id, "turn_id": "t1", "turn": 1},
        {"type": "delta", "turn_id": "t1", "seq": 1, "content": "one "},
        {"type": "delta", "turn_id": "t1", "seq": 2, "content": "two "},
        {"type": "delta", "turn_id": "t1", "seq": 3, "content": "three"},
        {
            "type": "done",
            "turn_id": "t1",
            "turn": 1,
            "finish_reason": "stop",
            "usage": {"prompt_tokens": 25, "completion_tokens": 3, "total_tokens": 28, "source": "provider"},
        },
    ]


async def test_done_says_why_the_answer_ended(service: Service, provider: Provider) -> None:
    provider.next(Script(), Script(finish_reason="length"), Script(finish_reason="content_filter"))
    async with connect(service.url) as client:
        pair = new_pair()
        reasons = [(await client.ask("hello", turn_id=n, **pair)).end["finish_reason"] for n in range(3)]
    assert reasons == ["stop", "length", "refused"]


async def test_usage_that_the_provider_did_not_say_is_counted_and_says_so(service: Service, provider: Provider) -> None:
    provider.default = Script(usage=None)
    async with connect(service.url) as client:
        usage = (await client.ask("hello", **new_pair())).end["usage"]
    assert usage["source"] == "counted"
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_error_of_a_started_turn_says_usage_and_last_seq_and_nothing_of_the_provider(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = Script(pieces=("some ", "text "), piece_delay_s=0.05, ending="close")
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
    end = seen.end
    assert set(end) == {"type", "turn_id", "turn", "code", "message", "retryable", "usage", "last_seq"}
    assert (end["code"], end["retryable"], end["last_seq"]) == ("llm_unavailable", True, seen.last_seq)
    assert set(end["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens", "source"}
    assert answer(rows, seen.session_id) == seen.text == "some text "


async def test_an_error_before_any_text_leaves_no_answer_and_a_failed_turn(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = Script(status=400)
    async with connect(service.url) as client:
        seen = await client.ask("hello", **new_pair())
    assert [frame["type"] for frame in seen.frames] == ["started", "error"]
    assert (seen.end["code"], seen.end["retryable"], seen.end["last_seq"]) == ("llm_rejected", False, 0)
    assert "provider-secret" not in json.dumps(seen.frames)
    assert [row["role"] for row in rows("SELECT role FROM prompt_messages")] == ["USER"]
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "failed"


async def test_a_turn_id_comes_back_with_its_json_type_and_7_and_7_as_text_are_one_turn(
    service: Service, provider: Provider, rows: Rows
) -> None:
    pair = new_pair()
    async with connect(service.url) as client:
        as_number = await client.ask("hello", turn_id=7, **pair)
        as_text = await client.ask("hello", turn_id="7", **pair)
        await client.send(type="message", message="something else", turn_id="7", **pair)
        conflict = await client.until("error")
        ids: list[int | str] = [-(2**63), 2**63 - 1, 0, "0x", "🐦" * 128, "a/b c?d#e%", "\u0001\t\u2028"]
        echoed = [(await client.ask("hello", turn_id=turn_id, **pair)).end["turn_id"] for turn_id in ids]
    assert {json.dumps(frame["turn_id"]) for frame in as_number.frames} == {"7"}
    assert {json.dumps(frame["turn_id"]) for frame in as_text.frames} == {'"7"'}
    assert as_text.text == as_number.text
    assert (as_text.started["turn"], as_text.end["turn"]) == (1, 1)
    assert (conflict["code"], conflict["turn_id"]) == ("turn_id_conflict", "7")
    assert echoed == ids
    assert list(map(type, echoed)) == list(map(type, ids))
    assert len(provider.requests) == 1 + len(ids)


async def test_turns_are_numbered_and_a_session_is_named_by_text_or_number_and_the_type_may_be_left_out(
    service: Service, rows: Rows
) -> None:
    async with connect(service.url) as client:
        first = await client.ask("one", turn_id="a", **new_pair())
        await client.send(message="two", turn_id="b", session_id=str(first.session_id))
        second = await client.turn()
        third = await client.ask("three", turn_id="c", session_id=first.session_id)
    assert [seen.started["turn"] for seen in (first, second, third)] == [1, 2, 3]
    assert [seen.end["turn"] for seen in (first, second, third)] == [1, 2, 3]
    assert {seen.session_id for seen in (first, second, third)} == {first.session_id}
    stored = rows("SELECT turn, role FROM prompt_messages ORDER BY id")
    assert [(row["turn"], row["role"]) for row in stored] == [
        (turn, role) for turn in (1, 2, 3) for role in ("USER", "ASSISTANT")
    ]


async def test_several_sessions_are_answered_at_once_on_one_socket(service: Service, provider: Provider) -> None:
    provider.default = SLOW
    async with connect(service.url) as client:
        for number in range(5):
            await client.send(type="message", message=f"hello {number}", turn_id=number, **new_pair())
        turns = {number: TurnSeen() for number in range(5)}
        while not all(seen.frames and seen.frames[-1]["type"] in TERMINAL for seen in turns.values()):
            frame = await client.receive()
            turns[frame["turn_id"]].frames.append(frame)
        for seen in turns.values():
            seen.check_order()
            assert seen.end["type"] == "done"
            assert seen.text == SLOW.text
        assert len({seen.session_id for seen in turns.values()}) == 5

        # answers without an end: they come at the same time, not one after the other
        provider.default = HANGS
        turns = {number: TurnSeen() for number in range(5, 10)}
        for number in turns:
            await client.send(type="message", message=f"hello {number}", turn_id=number, **new_pair())
        while not all(seen.text == HANGS.text for seen in turns.values()):
            frame = await client.receive()
            assert frame["type"] in {"started", "delta"}, frame
            turns[frame["turn_id"]].frames.append(frame)
        for number in turns:
            await client.send(type="cancel", turn_id=number)
            await client.until("cancelled")


# --- sessions ---


async def test_a_session_that_has_ended_says_so_also_while_its_last_turn_runs(
    service: Service, provider: Provider
) -> None:
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    async with connect(service.url) as client, httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        await client.send(message="hello", turn_id="a", **new_pair())
        session_id = (await client.until("started"))["session_id"]
        await client.until("delta")
        assert (await rest.post(f"/api/sessions/{session_id}/end")).status_code == 200
        await client.send(message="hello", turn_id="b", session_id=session_id)
        refused = await client.until("error")
        assert (refused["code"], refused["turn_id"], refused["retryable"]) == ("session_ended", "b", False)
        await client.send(type="cancel", turn_id="a", session_id=session_id)
        await client.until("cancelled")


async def test_exam_and_participant_find_the_active_session_or_create_one(service: Service, rows: Rows) -> None:
    pair = new_pair()
    async with connect(service.url) as client:
        first = await client.ask("hello", turn_id="a", **pair)
        again = await client.ask("hello", turn_id="b", **pair)
        other = await client.ask("hello", turn_id="a", **new_pair())
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
            assert (await rest.post(f"/api/sessions/{first.session_id}/end")).status_code == 200
        after_end = await client.ask("hello", turn_id="a", **pair)
        await client.send(message="hello", turn_id="c", session_id=first.session_id)
        refused = await client.receive()
        replayed = await client.ask("hello", turn_id="a", session_id=first.session_id)
    assert first.session_id == again.session_id
    assert len({first.session_id, other.session_id, after_end.session_id}) == 3
    assert (refused["type"], refused["code"], refused["turn_id"]) == ("error", "session_ended", "c")
    assert refused["retryable"] is False
    assert replayed.text == first.text
    assert rows.one("SELECT count(*) AS n FROM prompt_sessions")["n"] == 3


async def test_a_spec_id_counts_at_creation_and_another_one_later_is_refused(
    service: Service, provider: Provider, rows: Rows
) -> None:
    pair, without = new_pair(), new_pair()
    async with connect(service.url) as client:
        first = await client.ask("hello", turn_id="a", spec_id=5, **pair)
        await client.ask("hello", turn_id="b", spec_id=5, **pair)
        await client.ask("hello", turn_id="c", **pair)
        await client.ask("hello", turn_id="d", spec_id=5, session_id=first.session_id)
        await client.ask("hello", turn_id="e", **without)
        refused = []
        for where in (pair, {"session_id": first.session_id}):
            await client.send(message="hello", turn_id="x", spec_id=6, **where)
            refused.append(await client.receive())
        await client.send(message="hello", turn_id="x", spec_id=6, **without)
        refused.append(await client.receive())
        await client.send(message="hello", turn_id="a", spec_id=6, **pair)  # a replay is no exception
        refused.append(await client.receive())
    assert [(frame["type"], frame["code"]) for frame in refused] == [("error", "invalid_frame")] * 4
    assert rows.one("SELECT spec_id FROM prompt_sessions WHERE id = %s", first.session_id)["spec_id"] == 5
    assert len(provider.requests) == 5
    assert rows.one("SELECT count(*) AS n FROM prompt_turns")["n"] == 5


async def test_fifty_racing_first_messages_of_one_pair_make_one_session_and_one_running_turn(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    service = start(database={"timeout_s": 20}, llm={"timeout_s": 60})  # fifty wait for one row, on a slow machine, too
    provider.default = HANGS
    pair = new_pair()
    async with connect_many(service.url, 50) as clients:
        await asyncio.gather(*(c.send(message="hello", turn_id=n, **pair) for n, c in enumerate(clients)))
        first = await asyncio.gather(*(client.receive() for client in clients))
        kinds = Counter(frame.get("code", frame["type"]) for frame in first)
        assert kinds == {"started": 1, "turn_in_progress": 49}
        assert [frame["turn_id"] for frame in first] == list(range(50))
        assert {frame["retryable"] for frame in first if frame["type"] == "error"} == {True}
        winner = next(n for n, frame in enumerate(first) if frame["type"] == "started")
        await clients[winner].send(type="cancel", turn_id=winner)
        await clients[winner].until("cancelled")
    assert rows.one("SELECT count(*) AS n FROM prompt_sessions")["n"] == 1
    assert rows.one("SELECT count(*) AS n FROM prompt_turns")["n"] == 1
    assert rows.one("SELECT count(*) AS n FROM prompt_messages WHERE role = 'USER'")["n"] == 1
    assert len(provider.requests) == 1


async def test_a_session_runs_one_turn_at_a_time(service: Service, provider: Provider) -> None:
    provider.next(HANGS)
    async with connect(service.url) as client:
        running = await client.start("hello", "a", text="some", **new_pair())
        await client.send(message="hello", turn_id="b", session_id=running.session_id)
        refused = await client.until("error")
        assert (refused["code"], refused["turn_id"], refused["retryable"]) == ("turn_in_progress", "b", True)
        await client.send(type="cancel", turn_id="a")
        await client.until("cancelled")
        assert (await client.ask("hello", "b", session_id=running.session_id)).end["type"] == "done"


# --- what is committed when ---


async def test_the_message_is_committed_before_the_provider_is_called(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = Script(ending="hang", ending_at=-1)
    async with connect(service.url) as client:
        await client.send(message="was it stored?", turn_id="t1", **new_pair())
        await provider.requests_reach(1)
        stored = rows.one("SELECT role, content FROM prompt_messages")
        assert (stored["role"], stored["content"]) == ("USER", "was it stored?")
        assert (await client.receive())["type"] == "started"
        await client.send(type="cancel", turn_id="t1")
        await client.until("cancelled")


async def test_answer_usage_and_callbacks_are_committed_when_the_terminal_frame_comes(
    service: Service, provider: Provider, rows: Rows
) -> None:
    endings = {
        "done": (SLOW, "completed"),
        "cancelled": (HANGS, "cancelled"),
        "error": (Script(ending="eof"), "failed"),
    }
    for ending, (script, status) in endings.items():
        provider.next(script)
        async with connect(service.url) as client:
            seen = await client.start("hello", text=" ", **new_pair())
            if ending == "cancelled":
                await client.send(type="cancel", turn_id="t1")
            await client.turn(seen=seen)
            session_id = seen.session_id
            session = rows.one("SELECT total_tokens FROM prompt_sessions WHERE id = %s", session_id)
            assert seen.end["type"] == ending
            assert answer(rows, session_id) == seen.text
            assert session["total_tokens"] == seen.end["usage"]["total_tokens"] > 0
            [usage] = callbacks(rows, session_id, "usage")
            assert {key: usage[key] for key in seen.end["usage"]} == seen.end["usage"]
            [response] = callbacks(rows, session_id, "message_response")
            assert (response["ai_message"], response["metadata"]["status"]) == (seen.text, status)
            assert len(callbacks(rows, session_id, "error")) == (ending == "error")


# --- one turn_id, one turn ---


async def test_fifty_racing_copies_of_a_message_over_websocket_and_rest_are_one_turn(
    start: Callable[..., Service], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    service = start(database={"timeout_s": 20})  # as above
    provider.default = SLOW
    async with connect(service.url) as client:
        session_id = (await client.ask("first", turn_id="first", **new_pair())).session_id
    provider.requests.clear()
    body = {"message": "once", "turn_id": "t1", "session_id": session_id}
    limits = httpx.Limits(max_connections=None)
    async with (
        connect_many(service.url, 25) as clients,
        httpx.AsyncClient(base_url=service.url, timeout=30, limits=limits) as rest,
    ):
        asked = [client.ask("once", turn_id="t1", session_id=session_id) for client in clients]
        posted = [rest.post("/api/chat/message", json=body) for _ in range(25)]
        seen, responses = await asyncio.gather(asyncio.gather(*asked), asyncio.gather(*posted))
    assert {one.text for one in seen} == {SLOW.text}
    assert len({json.dumps(one.end) for one in seen}) == 1
    for response in responses:
        assert response.status_code == 200, response.text
        assert (response.json()["ai_message"], response.json()["turn"]) == (SLOW.text, 2)
    assert len(provider.requests) == 1
    turns = rows("SELECT role FROM prompt_messages WHERE session_id = %s AND turn > 1 ORDER BY id", session_id)
    assert [row["role"] for row in turns] == ["USER", "ASSISTANT"]
    await core.reaches(4)
    assert [event.type for event in core.events(session_id)] == ["usage", "message_response"] * 2


async def test_a_turn_that_has_ended_is_replayed_also_while_another_one_runs(
    service: Service, provider: Provider, rows: Rows
) -> None:
    async with connect(service.url) as client:
        first = await client.ask("hello", "a", **new_pair())
        provider.next(HANGS)
        await client.start("again", "b", text="and", session_id=first.session_id)
        # whatever order the two rows lie in
        rows("UPDATE prompt_turns SET model = model WHERE client_turn_id = 'a'")
        async with connect(service.url) as other:
            replay = await other.ask("hello", "a", session_id=first.session_id)
            await other.send(message="changed", turn_id="a", session_id=first.session_id)
            assert (await other.receive())["code"] == "turn_id_conflict"
            await other.send(message="changed", turn_id="b", session_id=first.session_id)
            assert (await other.receive())["code"] == "turn_id_conflict"
        await client.send(type="cancel", turn_id="b")
        await client.until("cancelled")
    assert replay.started == first.started
    assert (replay.text, replay.end) == (first.text, first.end)
    assert len(provider.requests) == 2


async def test_every_ending_is_replayed_as_it_was(service: Service, provider: Provider) -> None:
    for script in (Script(), Script(status=401), Script(pieces=("a", "b"), ending="eof"), HANGS):
        provider.next(script)
        async with connect(service.url) as client:
            pair = new_pair()
            seen = await client.start("hello", text="and" if script is HANGS else "", **pair)
            if script is HANGS:
                await client.send(type="cancel", turn_id="t1")
            await client.turn(seen=seen)
            replay = await client.ask("hello", **pair)
        assert replay.started == seen.started
        assert (replay.text, replay.end) == (seen.text, seen.end)
    assert len(provider.requests) == 4


async def test_the_same_message_sent_again_while_it_is_answered_is_read_from_the_start(
    service: Service, provider: Provider
) -> None:
    provider.default = Script(pieces=SLOW.pieces, piece_delay_s=0.02, ending="hang")  # it ends when it is told to
    async with connect(service.url) as client:
        where = new_pair()
        await client.start("hello", text="word3", **where)
        await client.send(message="hello", turn_id="t1", **where)
        while (frame := await client.receive())["type"] != "started":
            assert frame["type"] == "delta"
        seen = TurnSeen([frame])  # in place of the first reading: nothing comes twice
        while seen.text != SLOW.text:
            seen.frames.append(await client.receive())
        await client.send(type="cancel", turn_id="t1")
        await client.turn(seen=seen)
        await client.send(type="ping")
        assert await client.receive() == {"type": "pong"}
    assert seen.text == SLOW.text
    assert len(provider.requests) == 1


async def test_without_a_turn_id_every_post_is_a_turn_of_its_own(service: Service, provider: Provider) -> None:
    pair = new_pair()
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        bodies = [(await rest.post("/api/chat/message", json={"message": "hi", **pair})).json() for _ in range(2)]
    assert [body["turn"] for body in bodies] == [1, 2]
    assert bodies[0]["turn_id"] != bodies[1]["turn_id"]
    assert len(provider.requests) == 2


# --- stopping ---


async def test_a_draining_service_starts_no_turn_stores_nothing_and_still_replays(
    service: Service, provider: Provider, rows: Rows
) -> None:
    async with connect(service.url) as client:
        pair = new_pair()
        before = await client.ask("hello", "a", **pair)
        service.resources.runner.draining = True
        refused = []
        for where in (pair, new_pair(), {"session_id": before.session_id}):
            await client.send(message="more", turn_id="b", **where)
            refused.append(await client.receive())
        replay = await client.ask("hello", "a", **pair)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
            response = await rest.post("/api/chat/message", json={"message": "more", **pair})
    assert [(frame["code"], frame["retryable"], frame["turn_id"]) for frame in refused] == [
        ("overloaded", True, "b")
    ] * 3
    assert replay.text == before.text
    assert (response.status_code, response.json()["code"]) == (503, "overloaded")
    assert len(provider.requests) == 1
    assert rows.one("SELECT count(*) AS n FROM prompt_sessions")["n"] == 1


async def test_a_service_that_stops_ends_running_turns_as_interrupted_and_closes_with_1012(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    service = start(shutdown_grace_s=0.2)
    provider.default = HANGS
    async with connect(service.url) as client:
        seen = await client.start("hello", text="and", **new_pair())
        stopping = asyncio.create_task(asyncio.to_thread(service.stop))
        await client.turn(seen=seen)
        with pytest.raises(websockets.ConnectionClosed):
            await client.receive()
        await stopping
        assert client.connection.close_code == 1012
    assert (seen.end["code"], seen.end["retryable"], seen.end["last_seq"]) == ("interrupted", True, seen.last_seq)
    assert answer(rows, seen.session_id) == seen.text
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "interrupted"


async def test_a_turn_that_ends_within_the_grace_is_done(start: Callable[..., Service], provider: Provider) -> None:
    service = start(shutdown_grace_s=30)
    provider.default = SLOW
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word0", **new_pair())
        stopping = asyncio.create_task(asyncio.to_thread(service.stop))
        await client.turn(seen=seen)
        await stopping
    assert (seen.end["type"], seen.text) == ("done", SLOW.text)


# --- who may come in (more in test_auth.py) ---


async def test_the_selected_subprotocol_is_never_the_one_that_holds_the_token(start: Callable[..., Service]) -> None:
    service = start(auth={"mode": "token", "api_key": "right-key"})
    offers = {("turnstone.v1", "bearer.right-key"), ("bearer.right-key", "turnstone.v1"), ("bearer.right-key",)}
    for offered in offers:
        async with connect(service.url, subprotocols=list(offered)) as client:
            assert client.connection.subprotocol == ("turnstone.v1" if "turnstone.v1" in offered else None)
            assert (await client.ask("hello", **new_pair())).end["type"] == "done"


async def test_a_socket_that_says_nothing_is_closed_with_4401_after_five_seconds(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat._AUTH_WITHIN_S == 5
    monkeypatch.setattr(chat, "_AUTH_WITHIN_S", 0.2)
    service = start(auth={"mode": "token", "api_key": "right-key"})
    async with connect(service.url, "/chat?token=right-key&bearer=right-key") as client:
        with pytest.raises(websockets.ConnectionClosed):
            await client.receive()
        assert client.connection.close_code == 4401
