"""What clients send that they should not: each frame gets its answer, the connection lives, nothing is half stored."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import httpx
import pytest
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core.errors import ErrorCode
from tests.conftest import Rows
from tests.support.chat import ChatClient, TurnSeen, connect, new_pair
from tests.support.provider import Provider, Script
from tests.support.service import Service

LIMIT = 4_194_304
SECRET = "what-the-candidate-wrote"
PAIR = {"exam_id": 1, "participant_id": 1}
INVALID, TOO_LARGE, NO_SESSION = "invalid_frame", "message_too_large", "session_not_found"

NOT_JSON = [
    "",
    " ",
    "hello",
    "{",
    "{]",
    '{"type":"ping"',
    "{'type':'ping'}",
    "NaN",
    "\x00",
    '"\\ud800"',
    "\ufeff{}",
    "1e999",
]
NOT_AN_OBJECT = ["null", "true", "7", "-0.5", '"ping"', "[]", '[{"type":"ping"}]', "9" * 5000, "[" * 100_000]
"""Text frames that are no JSON object at all: there is no turn they could belong to."""


def message(**fields: Any) -> dict[str, Any]:
    return {"type": "message", "message": SECRET, "turn_id": "t1", **PAIR} | fields


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in message().items() if name not in names}


NO_ID: list[Any] = [None, True, False, 1.5, 7.0, [], {}, ["t1"], {"id": 1}, "", "x" * 129, 2**63, -(2**63) - 1, 10**30]
"""Values that cannot be a turn_id, so that none can be echoed."""
NO_POSITIVE: list[Any] = [0, -1, 2**63, 10**30, 1.0, 1.5, True, False, "1", "", [], {}, [1], {"id": 1}]
"""Values that cannot be an exam, a participant or a spec."""

NO_TEXT: list[Any] = [None, 7, 1.5, True, [], {}, [SECRET], {"text": SECRET}]
NO_TYPE: list[Any] = [None, 7, True, [], {}, "", "Message", "done", "x" * 10_000]
NO_SEQ: list[Any] = [-1, 2**31, 10**30, 1.0, "1", None, True, [], {}]

BAD_FRAMES: list[tuple[dict[str, Any], str, Any]] = [
    # what is sent, the code it gets, the turn_id that comes back
    *((message(turn_id=value), INVALID, None) for value in NO_ID),
    *((message(exam_id=value), INVALID, "t1") for value in NO_POSITIVE),
    *((message(participant_id=value), INVALID, "t1") for value in NO_POSITIVE),
    *((message(spec_id=value), INVALID, "t1") for value in NO_POSITIVE),
    *((message(message=value), INVALID, "t1") for value in NO_TEXT),
    *((message(message=value), INVALID, "t1") for value in ("", " ", "\n\t\r ", "\u3000", "nul \x00 inside", "\x00")),
    *((message(type=value), INVALID, "t1") for value in NO_TYPE),
    (message(turn_id="nul\x00"), INVALID, "nul\x00"),
    (message(turn_id=7, message=""), INVALID, 7),
    (without("turn_id"), INVALID, None),
    (without("message"), INVALID, "t1"),
    (without("exam_id"), INVALID, "t1"),
    (without("participant_id"), INVALID, "t1"),
    (without("exam_id", "participant_id"), INVALID, "t1"),
    (message(session_id=1), INVALID, "t1"),
    (message(session_id="1"), INVALID, "t1"),
    *((without("exam_id", "participant_id") | {"session_id": value}, INVALID, "t1") for value in NO_POSITIVE[:8]),
    *(
        (without("exam_id", "participant_id") | {"session_id": value}, NO_SESSION, "t1")
        for value in (1, 2**63 - 1, "1", "0", "-1", "", "1.0", " 1", "1 OR 1=1", "\x00", "１", "9" * 40)
    ),
    (message(message="x" * 32_001), TOO_LARGE, "t1"),
    (message(message="🐦" * 32_001), TOO_LARGE, "t1"),
    (message(message="x" * 2_000_000, turn_id=7), TOO_LARGE, 7),
    ({"type": "cancel"}, INVALID, None),
    *(({"type": "cancel", "turn_id": value, "session_id": 1}, INVALID, None) for value in NO_ID),
    ({"type": "cancel", "turn_id": "nul\x00", "session_id": 1}, INVALID, "nul\x00"),
    ({"type": "cancel", "turn_id": 7, "session_id": -1}, INVALID, 7),
    ({"type": "cancel", "turn_id": 7, "session_id": [1]}, INVALID, 7),
    ({"type": "cancel", "turn_id": 7}, "turn_not_found", 7),
    ({"type": "cancel", "turn_id": 7, "session_id": 1}, NO_SESSION, 7),
    ({"type": "resume"}, INVALID, None),
    ({"type": "resume", "turn_id": 7}, INVALID, 7),
    ({"type": "resume", "session_id": 1}, INVALID, None),
    ({"type": "resume", "turn_id": "nul\x00", "session_id": 1}, INVALID, "nul\x00"),
    *(({"type": "resume", "turn_id": 7, "session_id": 1, "after_seq": value}, INVALID, 7) for value in NO_SEQ),
    ({"type": "resume", "turn_id": 7, "session_id": 1, "after_seq": 2**31 - 1}, NO_SESSION, 7),
    ({"type": "auth"}, INVALID, None),
    ({"type": "auth", "token": 7}, INVALID, None),
]


def check_error(frame: dict[str, Any], code: str, turn_id: Any) -> None:
    assert set(frame) == {"type", "turn_id", "code", "message", "retryable"}, frame
    assert (frame["type"], frame["code"], frame["retryable"]) == ("error", code, False), frame
    assert json.dumps(frame["turn_id"]) == json.dumps(turn_id), frame
    said = frame["message"]
    assert said
    assert len(said) < 300
    for leak in (SECRET, "Traceback", "Exception", "Error(", "msgspec", "psycopg", "sqlalchemy", "app/"):
        assert leak not in said, frame


async def nothing_was_stored(client: ChatClient, rows: Rows, provider: Provider) -> None:
    for table in ("prompt_sessions", "prompt_turns", "prompt_messages", "callbacks"):
        assert rows(f"SELECT 1 FROM {table}") == [], table
    assert len(provider.requests) == 0
    assert (await client.ask("hello", **PAIR)).end["type"] == "done"


async def test_a_bad_frame_gets_an_error_with_its_turn_id_and_the_connection_stays_usable(
    service: Service, provider: Provider, rows: Rows
) -> None:
    async with connect(service.url) as client:
        for number, (frame, code, turn_id) in enumerate(BAD_FRAMES):
            await client.send_raw(json.dumps(frame, ensure_ascii=number % 2 == 0))
            check_error(await client.receive(), code, turn_id)
        await nothing_was_stored(client, rows, provider)


async def test_what_is_no_json_object_gets_an_error_without_a_turn_id(
    service: Service, provider: Provider, rows: Rows
) -> None:
    deep = '{"type":"message","turn_id":"t1","message":' + "[" * 50_000 + "]" * 50_000 + "}"
    lone = json.dumps(message(turn_id="\udfff")), '{"\\ud800":1}'
    binary = [b"", b"\x00", b"\xff\xfe", json.dumps(message()).encode(), b"\x00" * 100_000]
    async with connect(service.url) as client:
        bad: list[str | bytes] = [*NOT_JSON, *NOT_AN_OBJECT, '{"a":' * 100_000, deep, *lone, *binary]
        for data in bad:
            await client.send_raw(data)
            check_error(await client.receive(), INVALID, None)
        await nothing_was_stored(client, rows, provider)


async def test_half_a_character_in_the_message_does_not_hide_the_turn(service: Service, rows: Rows) -> None:
    async with connect(service.url) as client:
        for frame, turn_id in (
            ('{"message": "a\\ud800b", "turn_id": "t1", "exam_id": 1, "participant_id": 1}', "t1"),
            ('{"message": "hello", "turn_id": "\\ud800", "exam_id": 1, "participant_id": 1}', None),
        ):
            await client.send_raw(frame)
            error = await client.until("error")
            assert (error["code"], error["turn_id"]) == ("invalid_frame", turn_id)
    assert rows("SELECT id FROM prompt_messages") == []


async def test_a_frame_may_be_odd_and_yet_good(service: Service, provider: Provider, rows: Rows) -> None:
    biggest = 2**63 - 1
    odd = [
        '{"message":"hello","turn_id":"a","exam_id":7,"exam_id":1,"participant_id":1}',  # the last one counts
        '{"message":"hello","turn_id":"b","exam_id":1,"participant_id":1,"more":{"than":["is","known"]}}',
        ' \n{ "type" : "message" , "message" : "hello" , "turn_id" : -0 , "exam_id" : 1 , "participant_id" : 1 }\t',
        json.dumps({"message": "hello", "turn_id": "c", "exam_id": biggest, "participant_id": biggest}),
        json.dumps({"message": "hello", "turn_id": "d", **PAIR, "spec_id": None, "session_id": None}),
        json.dumps({"message": "x" * 32_000, "turn_id": "e", **PAIR}),
        json.dumps({"message": "\u200b\ud83d\ude00\ufeff\U0010ffff", "turn_id": "f", **PAIR}),
    ]
    async with connect(service.url) as client:
        for data in odd:
            await client.send_raw(data)
            assert (await client.turn()).end["type"] == "done"
        await client.connection.send(
            ["", '{"mess', 'age":"in 조', '각","turn_id":"g","exam_id":1,"parti', 'cipant_id":1}']
        )
        assert (await client.turn()).end["type"] == "done"
    stored = rows("SELECT content, exam_id FROM prompt_messages JOIN prompt_sessions s ON s.id = session_id "
                  "WHERE role = 'USER' ORDER BY prompt_messages.id")  # fmt: skip
    assert [row["content"] for row in stored][-2:] == ["\u200b😀\ufeff\U0010ffff", "in 조각"]
    assert [row["exam_id"] for row in stored] == [1, 1, 1, biggest, 1, 1, 1, 1]


async def test_a_frame_above_the_limit_closes_the_connection_with_1009_and_no_turn_ends(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.default = Script(pieces=("some ", "text"), piece_delay_s=0.05)
    async with connect(service.url) as client:
        largest = json.dumps(message()) + " " * LIMIT
        await client.send_raw(largest[:LIMIT])
        seen = TurnSeen([await client.receive()])
        too_large = struct.pack("!BBQ4s", 0x81, 0x80 | 127, LIMIT + 1, b"mask")  # announced, and refused for that
        client.connection.transport.write(too_large)
        with pytest.raises(websockets.ConnectionClosed):  # deltas may come before
            while True:
                await client.receive()
        assert client.connection.close_code == 1009
    async with connect(service.url) as client:
        await client.send(type="resume", turn_id="t1", session_id=seen.session_id)
        assert (await client.turn()).text == "some text"


async def test_limits_are_settings(start: Any) -> None:
    service: Service = start(limits={"message_chars": 10, "frame_bytes": 1024})
    async with connect(service.url) as client:
        assert (await client.ask("x" * 10, **PAIR)).end["type"] == "done"
        await client.send(**message(message="x" * 11))
        error = await client.receive()
        assert error["code"] == TOO_LARGE
        assert "10" in error["message"]
        with pytest.raises(websockets.ConnectionClosed):
            await client.send(type="ping", more="x" * 1024)
            await client.receive()
        assert client.connection.close_code == 1009


async def test_bad_bodies_get_the_same_codes_over_rest(service: Service, provider: Provider, rows: Rows) -> None:
    cases: list[tuple[str, str, int]] = [
        *((json.dumps(message() | {"spec_id": value}), INVALID, 422) for value in NO_POSITIVE),
        *((data, INVALID, 422) for data in ("", "{", "[]", "null", '"hello"', "[" * 100_000)),
        *((json.dumps({"message": value, **PAIR}), INVALID, 422) for value in ["", "\x00", "\ud800", *NO_TEXT]),
        (json.dumps({"message": "hello", "turn_id": "\x00", **PAIR}), INVALID, 422),
        (json.dumps({"message": "hello", "turn_id": True, **PAIR}), INVALID, 422),
        (json.dumps({"message": "hello"}), INVALID, 422),
        (json.dumps({"message": "hello", "session_id": 1, **PAIR}), INVALID, 422),
        (json.dumps({"message": "hello", "session_id": "1"}), NO_SESSION, 404),
        (json.dumps({"message": "hello", "session_id": "\ud800"}), INVALID, 422),
        (json.dumps({"message": "hello", "\ud800": 1, **PAIR}), INVALID, 422),
        (json.dumps({"message": "x" * 2_000_000, **PAIR}), TOO_LARGE, 413),
        (json.dumps({"message": "x" * (LIMIT + 1), **PAIR}), TOO_LARGE, 413),
    ]
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        for data, code, status in cases:
            answer = await rest.post("/api/chat/message", content=data, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["code"]) == (status, code), (data[:100], answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert "Traceback" not in answer.text
    async with connect(service.url) as client:
        await nothing_was_stored(client, rows, provider)


# --- whatever comes ---

texts = st.text(max_size=20)
ids = st.one_of(
    st.integers(-2, 4),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    texts,
    st.sampled_from(["1", "t1", "\x00"]),
)
values = st.recursive(ids, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
frames = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "cancel", "resume", "ping", "auth"]) | values,
        "message": st.sampled_from(["hello", "", "\x00"]) | values,
        "turn_id": ids | values,
        "session_id": ids | values,
        "exam_id": st.integers(1, 2) | ids,
        "participant_id": st.integers(1, 3) | ids,
        "spec_id": st.none() | ids,
        "after_seq": ids,
        "token": texts,
    },
)
anything = st.one_of(
    frames.map(json.dumps),
    frames.map(json.dumps),
    values.map(json.dumps),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.binary(max_size=50),
    frames.map(json.dumps).map(lambda text: text[: len(text) // 2]),
)


def test_whatever_comes_the_connection_lives_and_nothing_fails_inside(
    service: Service, provider: Provider, rows: Rows
) -> None:
    codes = set(ErrorCode) - {ErrorCode.INTERNAL}
    with asyncio.Runner() as runner:
        opened = connect(service.url)
        client = runner.run(opened.__aenter__())
        count = 0

        async def exchange(batch: list[str | bytes]) -> None:
            nonlocal count
            count += 1
            for data in batch:
                await client.send_raw(data)
            await client.send(type="cancel", turn_id=f"marker {count}")
            frame: dict[str, Any] = {}
            while frame.get("turn_id") != f"marker {count}":
                frame = await client.receive()
                assert frame["type"] in {"started", "delta", "done", "cancelled", "error", "pong"}
                assert frame["type"] != "error" or frame["code"] in codes, (batch, frame)

        @given(batch=st.lists(anything, min_size=1, max_size=4))
        @settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
        def fuzz(batch: list[str | bytes]) -> None:
            runner.run(exchange(batch))

        try:
            fuzz()
            done = runner.run(client.ask("hello", "the last one", exam_id=9, participant_id=9))
        finally:
            runner.run(opened.__aexit__(None, None, None))
    assert done.end["type"] == "done"
    assert count >= 200
    # whole turns or nothing
    assert (
        rows("SELECT id FROM prompt_sessions s WHERE NOT EXISTS (SELECT 1 FROM prompt_turns WHERE session_id = s.id)")
        == []
    )
    turns = rows.one("SELECT count(*) AS n FROM prompt_turns")["n"]
    assert rows.one("SELECT count(*) AS n FROM prompt_messages WHERE role = 'USER'")["n"] == turns
    assert len(provider.requests) <= turns


async def test_a_second_connection_is_not_troubled_by_the_bad_frames_of_a_first(
    service: Service, provider: Provider
) -> None:
    provider.default = Script(pieces=tuple(f"word{i} " for i in range(30)), piece_delay_s=0.01)
    async with connect(service.url) as bad, connect(service.url) as good:
        seen = await good.start("hello", **new_pair())

        async def codes() -> set[str]:
            return {(await bad.receive())["code"] for _ in range(400)}

        reading = asyncio.create_task(codes())
        for number in range(200):
            await bad.send_raw("{" * (number + 1))
            await bad.send(type="cancel", turn_id=number, session_id=seen.session_id)
        await good.turn(seen=seen)
        assert await reading == {INVALID, "turn_not_found"}
    assert (seen.end["type"], seen.text) == ("done", provider.default.text)
