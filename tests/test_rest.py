"""The REST interface: every call, its results and its problems. Each answer is also held to the OpenAPI document."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any
from urllib.parse import quote

import httpx
import psycopg
import pytest
from sqlalchemy import make_url

from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.core import FakeCore
from tests.support.provider import DEFAULT_PIECES, SCRIPTS, SECRET, Provider, Script
from tests.support.service import Service
from tests.test_openapi import checked_client

ANSWER = "".join(DEFAULT_PIECES)
SLOW = Script(pieces=("one ", "two ", *("more ",) * 2000), piece_delay_s=0.02)


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    with checked_client(service) as opened:
        yield opened


def say(rest: httpx.Client, message: Any = "hello", **fields: Any) -> httpx.Response:
    return rest.post("/api/chat/message", json={"message": message, **fields})


def problem(response: httpx.Response, status: int, code: str, *, retryable: bool = False) -> str:
    """Assert that it is this problem; returns its words."""
    body = response.json()
    assert (response.status_code, body["code"], body["retryable"]) == (status, code, retryable), response.text
    detail: str = body["detail"]
    return detail


def start_session(rest: httpx.Client, **fields: Any) -> dict[str, Any]:
    response = rest.post("/api/sessions", json={**new_pair(), **fields})
    assert response.status_code == 201, response.text
    session: dict[str, Any] = response.json()
    return session


def messages(rest: httpx.Client, session_id: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = rest.get(f"/api/sessions/{session_id}/messages").json()["items"]
    return items


def all_pages(rest: httpx.Client, path: str, limit: int, **query: Any) -> list[dict[str, Any]]:
    """Every item, following ``next``; no part is larger than asked for, and none but an only one is empty."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        part = rest.get(path, params={"limit": limit, **query, **cursor}).json()
        assert len(part["items"]) <= limit
        assert part["items"] or not items
        items += part["items"]
        if part["next"] is None:
            return items
        cursor = {"cursor": part["next"]}


# ---------------------------------------------------------------- a message and its answer


def test_a_message_that_does_not_wait_is_answered_when_it_is_stored(
    rest: httpx.Client, provider: Provider, rows: Rows
) -> None:
    provider.next(SLOW)
    body = {"message": "hello", "turn_id": 7, **new_pair()}
    for prefer in ("respond-async", "wait=5, Respond-Async; x=y"):  # the second is the same turn, attached to
        begun = rest.post("/api/chat/message", json=body, headers={"prefer": prefer})
        assert (begun.status_code, begun.headers["preference-applied"]) == (202, "respond-async")
        session_id = begun.json()["session_id"]
        assert begun.json() == {"session_id": session_id, "turn": 1, "turn_id": 7}
        assert rows.one("SELECT content FROM prompt_messages")["content"] == "hello"
    again = rest.post("/api/chat/message", json={**body, "message": "other"}, headers={"prefer": "respond-async"})
    problem(again, 409, "turn_id_conflict")
    second = rest.post("/api/chat/message", json={**body, "turn_id": 8}, headers={"prefer": "respond-async"})
    problem(second, 409, "turn_in_progress", retryable=True)
    provider.wait_requests(1)
    assert rest.post(f"/api/sessions/{session_id}/turns/7/cancel").json()["status"] == "cancelled"
    assert len(provider.requests) == 1
    assert say(rest, **new_pair()).status_code == 200
    assert rest.post("/api/chat/message", json={"message": "x", **new_pair()}, headers={"prefer": "wait=5"}).is_success


def test_message_is_answered_as_a_whole(rest: httpx.Client, rows: Rows) -> None:
    pair = new_pair()
    response = say(rest, turn_id="t1", spec_id=9, **pair)
    assert response.status_code == 200
    answer = response.json()
    session = rows.one("SELECT * FROM prompt_sessions")
    assert answer == {
        "session_id": str(session["id"]),
        "turn": 1,
        "turn_id": "t1",
        "ai_message": ANSWER,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 25, "completion_tokens": 6, "total_tokens": 31, "source": "provider"},
    }
    assert (session["exam_id"], session["participant_id"], session["spec_id"]) == (*pair.values(), 9)
    again = say(rest, "and now?", turn_id=2, session_id=answer["session_id"]).json()
    assert (again["session_id"], again["turn"], again["turn_id"]) == (answer["session_id"], 2, 2)
    by_number = say(rest, "and then?", session_id=session["id"]).json()
    assert by_number["turn"] == 3
    assert isinstance(by_number["turn_id"], str), "one was made"
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 3 * 31


def test_same_turn_id_and_message_is_the_same_turn(rest: httpx.Client, provider: Provider, core: FakeCore) -> None:
    pair = new_pair()
    first = say(rest, turn_id=7, **pair)
    assert first.status_code == 200
    for turn_id in (7, "7"):
        again = say(rest, turn_id=turn_id, **pair)
        assert again.json() == {**first.json(), "turn_id": turn_id}
    problem(say(rest, "another", turn_id="7", **pair), 409, "turn_id_conflict")
    assert len(provider.requests) == 1
    core.wait_for(2)
    assert [d.type for d in core.events()] == ["usage", "message_response"], "billed once"


def test_same_turn_sent_many_times_at_once_runs_once(rest: httpx.Client, provider: Provider, rows: Rows) -> None:
    provider.default = Script(piece_delay_s=0.05)
    pair = new_pair()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: say(rest, turn_id="t", **pair), range(8)))
    assert [response.status_code for response in answers] == [200] * 8
    assert len({response.text for response in answers}) == 1
    assert len(provider.requests) == 1
    assert rows.one("SELECT count(*) FROM prompt_sessions")["count"] == 1


def test_second_message_of_a_session_waits_its_turn(rest: httpx.Client, provider: Provider) -> None:
    provider.next(SLOW)
    pair = new_pair()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(say, rest, turn_id="first", **pair)
        provider.wait_requests(1)
        problem(say(rest, turn_id="second", **pair), 409, "turn_in_progress", retryable=True)
        session_id = rest.get("/api/sessions", params=pair).json()["items"][0]["id"]
        assert rest.post(f"/api/sessions/{session_id}/turns/first/cancel").json()["status"] == "cancelled"
        assert running.result(30).json()["finish_reason"] == "cancelled"
    assert say(rest, turn_id="second", **pair).status_code == 200


def test_answer_that_is_cancelled_meanwhile_says_what_had_come(rest: httpx.Client, provider: Provider) -> None:
    provider.next(SLOW)
    session = start_session(rest)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(say, rest, turn_id="t1", session_id=session["id"])
        provider.requests.wait(lambda requests: bool(requests) and requests[0].pieces_sent >= 3)
        cancelled = rest.post(f"/api/sessions/{session['id']}/turns/t1/cancel").json()
        answer = running.result(30).json()
    (closed,) = provider.wait_closed(1)
    assert closed.ended == "client_closed"
    assert cancelled["status"] == "cancelled"
    assert answer["finish_reason"] == "cancelled"
    assert answer["usage"] == cancelled["usage"]
    assert answer["usage"]["source"] == "counted"
    assert answer["ai_message"].startswith("one two ")
    assert messages(rest, session["id"])[-1]["content"] == answer["ai_message"]


FAILURES = [
    ("status_400", 422, "llm_rejected", False),
    ("status_401", 503, "llm_unavailable", False),
    ("status_503", 503, "llm_unavailable", True),
    ("status_429", 503, "llm_unavailable", True),
    ("reset_midway", 503, "llm_unavailable", True),
    ("error_event", 503, "llm_unavailable", True),
    ("hang_midway", 504, "llm_timeout", True),
]


def test_failure_of_the_provider_is_a_problem(start: Callable[..., Service], provider: Provider, rows: Rows) -> None:
    # Only silence is for one of little patience: a provider that is slow for once would be silent for it too.
    with checked_client(start()) as rest, checked_client(start(llm={"timeout_s": 0.5})) as hasty:
        pair = new_pair()
        for script, status, code, retryable in FAILURES:
            asked = hasty if code == "llm_timeout" else rest
            provider.default = SCRIPTS[script]
            failed = say(asked, turn_id=script, **pair)
            problem(failed, status, code, retryable=retryable)
            assert SECRET not in failed.text
            provider.default = Script()
            again = say(asked, turn_id=script, **pair)
            problem(again, status, code, retryable=retryable)  # the same turn is not run again
        assert say(rest, turn_id="another", **pair).status_code == 200
    turns = rows("SELECT client_turn_id, status, error_code FROM prompt_turns ORDER BY turn")
    assert [tuple(turn.values()) for turn in turns] == [
        *((script, "failed", code) for script, _, code, _ in FAILURES),
        ("another", "completed", None),
    ]


def test_client_that_goes_away_does_not_stop_its_turn(service: Service, provider: Provider, rest: httpx.Client) -> None:
    provider.next(Script(piece_delay_s=0.1))
    pair = new_pair()
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    body = json.dumps({"message": "hello", "turn_id": "t1", **pair})
    connection.request("POST", "/api/chat/message", body, {"Content-Type": "application/json"})
    provider.wait_requests(1)
    connection.close()
    assert say(rest, turn_id="t1", **pair).json()["ai_message"] == ANSWER
    assert len(provider.requests) == 1


# ---------------------------------------------------------------- sessions


def test_session_is_started_once_found_and_shown(rest: httpx.Client) -> None:
    pair = new_pair()
    created = rest.post("/api/sessions", json={**pair, "spec_id": 4})
    assert created.status_code == 201
    session = created.json()
    assert set(session) == {"id", "exam_id", "participant_id", "spec_id", "started_at", "ended_at", "total_tokens"}
    assert isinstance(session["id"], str)
    assert datetime.fromisoformat(session["started_at"]).tzinfo is not None
    assert (session["ended_at"], session["total_tokens"]) == (None, 0)
    for body in ({**pair, "spec_id": 4}, pair):
        again = rest.post("/api/sessions", json=body)
        assert (again.status_code, again.json()) == (200, session)
    problem(rest.post("/api/sessions", json={**pair, "spec_id": 5}), 422, "invalid_frame")
    problem(say(rest, **pair, spec_id=5), 422, "invalid_frame")
    assert rest.get("/api/sessions", params=pair).json() == {"items": [session], "next": None}
    assert rest.get(f"/api/sessions/{session['id']}").json() == session
    assert rest.get("/api/sessions", params={**pair, "participant_id": 10**9}).json()["items"] == []


def test_only_one_of_many_starts_at_once_is_a_new_session(rest: httpx.Client) -> None:
    pair = new_pair()
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: rest.post("/api/sessions", json=pair), range(16)))
    assert sorted(response.status_code for response in answers) == [200] * 15 + [201]
    assert len({response.json()["id"] for response in answers}) == 1


def test_lists_come_in_parts(rest: httpx.Client, core: FakeCore) -> None:
    pair = new_pair()
    for number in range(4):
        session_id = say(rest, f"message {number}", turn_id=number, **pair).json()["session_id"]
        rest.post(f"/api/sessions/{session_id}/end")
    core.wait_for(8)
    for path, query, count in [
        ("/api/sessions", pair, 4),
        (f"/api/sessions/{session_id}/messages", {}, 2),
        ("/api/callbacks", {}, 8),
    ]:
        whole = rest.get(path, params={**query, "limit": 1000}).json()
        assert whole["next"] is None
        assert len(whole["items"]) == count
        ids = [item["id"] for item in whole["items"]]
        for limit in (1, 3, count):
            assert [item["id"] for item in all_pages(rest, path, limit, **query)] == ids


def test_conversation_is_told_in_order_with_its_turns(rest: httpx.Client) -> None:
    session = start_session(rest)
    for turn_id in ("a/b c%", 7, "셋"):
        assert say(rest, f"question {turn_id}", turn_id=turn_id, session_id=session["id"]).status_code == 200
    told = messages(rest, session["id"])
    assert [(m["turn"], m["turn_id"], m["role"]) for m in told] == [
        (1, "a/b c%", "USER"),
        (1, "a/b c%", "ASSISTANT"),
        (2, 7, "USER"),
        (2, 7, "ASSISTANT"),
        (3, "셋", "USER"),
        (3, "셋", "ASSISTANT"),
    ]
    for message in told:
        assert set(message) == {"id", "turn", "turn_id", "role", "content", "token_count", "created_at", "meta"}
        assert message["token_count"] > 0
    assert [m["content"] for m in told[:2]] == ["question a/b c%", ANSWER]
    assert told[1]["meta"]["status"] == "completed"
    assert told[1]["meta"]["usage"] == {
        "prompt_tokens": 25, "completion_tokens": 6, "total_tokens": 31, "source": "provider"
    }  # fmt: skip
    assert [int(m["id"]) for m in told] == sorted(int(m["id"]) for m in told)


def test_ended_session_takes_no_message(rest: httpx.Client, provider: Provider) -> None:
    pair = new_pair()
    session_id = say(rest, turn_id="t1", **pair).json()["session_id"]
    ended = rest.post(f"/api/sessions/{session_id}/end")
    assert ended.status_code == 200
    assert ended.json()["ended_at"] is not None
    assert rest.post(f"/api/sessions/{session_id}/end").json() == ended.json(), "it ends once"
    problem(say(rest, "more", turn_id="t2", session_id=session_id), 409, "session_ended")
    assert say(rest, turn_id="t1", session_id=session_id).json()["ai_message"] == ANSWER, "what was said stays"
    assert rest.post(f"/api/sessions/{session_id}/turns/t1/cancel").json()["status"] == "completed"
    assert len(provider.requests) == 1
    assert say(rest, turn_id="t1", **pair).json()["session_id"] != session_id, "the pair starts anew"


def test_turn_that_runs_while_its_session_ends_may_finish(rest: httpx.Client, provider: Provider) -> None:
    provider.next(Script(piece_delay_s=0.1))
    session = start_session(rest)
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(say, rest, turn_id="t1", session_id=session["id"])
        provider.wait_requests(1)
        assert rest.post(f"/api/sessions/{session['id']}/end").status_code == 200
        assert running.result(30).json()["ai_message"] == ANSWER


@pytest.mark.parametrize(
    "session_id", ["999999", "0", "-1", "x", "1" * 64, str(2**63), "1.0", "%00", "%ED%95%9C", "１"]
)
def test_unknown_session_is_not_found(rest: httpx.Client, session_id: str) -> None:
    for method, path in [("GET", ""), ("GET", "/messages"), ("POST", "/end"), ("POST", "/turns/t/cancel")]:
        response = rest.request(method, f"/api/sessions/{session_id}{path}")
        problem(response, 404, "session_not_found")
    problem(say(rest, session_id=session_id), 404, "session_not_found")


# ---------------------------------------------------------------- cancel


ODD_TURN_IDS = ["a/b c%", "한국어 🐦", "x?y#z&=+", "%2F", "/", "/cancel", "line\nbreak", "end\n", "t" * 128, "-7"]


def test_cancel_finds_turns_by_any_id(rest: httpx.Client, provider: Provider) -> None:
    session = start_session(rest)
    turns: list[str | int] = [*ODD_TURN_IDS, 7, -(2**63), 2**63 - 1]
    for turn_id in turns:
        assert say(rest, turn_id=turn_id, session_id=session["id"]).status_code == 200, turn_id
    for number, turn_id in enumerate(turns, 1):
        path = f"/api/sessions/{session['id']}/turns/{quote(str(turn_id), safe='')}/cancel"
        turn = rest.post(path)
        assert turn.status_code == 200, (turn_id, turn.text)
        assert (turn.json()["turn"], turn.json()["turn_id"]) == (number, turn_id)
        assert turn.json()["status"] == "completed"
        assert turn.json()["finish_reason"] == "stop"
        assert turn.json()["session_id"] == session["id"]
    for unknown in ("t2", "", "a%2Fb", "t" * 129, "T" * 5000):
        problem(rest.post(f"/api/sessions/{session['id']}/turns/{unknown}/cancel"), 404, "turn_not_found")
    problem(rest.post(f"/api/sessions/{session['id']}/turns/a%00b/cancel"), 422, "invalid_frame")


async def test_cancel_from_elsewhere_stops_a_turn_of_the_socket(
    service: Service, rest: httpx.Client, provider: Provider
) -> None:
    turns: list[str | int] = ["a/b c%", "한국어", 7]
    provider.next(*[SLOW] * len(turns))
    async with connect(service.url) as chat:
        for turn_id in turns:
            await chat.send(message="go on", turn_id=turn_id, **new_pair())
            session_id = (await chat.until("started"))["session_id"]
            await chat.until("delta")
            path = f"/api/sessions/{session_id}/turns/{quote(str(turn_id), safe='')}/cancel"
            turn = (await asyncio.to_thread(rest.post, path)).json()
            assert (turn["turn_id"], turn["status"], turn["finish_reason"]) == (turn_id, "cancelled", None)
            frame = await chat.until("cancelled")
            assert (frame["turn_id"], frame["usage"]) == (turn_id, turn["usage"])
            assert (await asyncio.to_thread(rest.post, path)).json() == turn, "again changes nothing"


# ---------------------------------------------------------------- exams


def test_exam_is_told_and_part_of_the_prompt(rest: httpx.Client, provider: Provider) -> None:
    problem(rest.get("/api/exams/77"), 404, "not_found")
    for text in ("Sort {n} numbers.", "정렬하라. {problem_text} \\n 🐦"):
        put = rest.put("/api/exams/77", json={"problem_text": text})
        assert put.status_code == 200
        assert (put.json()["id"], put.json()["problem_text"]) == (77, text)
        assert rest.get("/api/exams/77").json() == put.json()
        assert say(rest, exam_id=77, participant_id=1).status_code == 200
        assert text in provider.requests[-1].messages[0]["content"]
    for bad in ("a\x00b", "x" * 100_001):
        problem(rest.put("/api/exams/77", json={"problem_text": bad}), 422, "invalid_frame")
    for exam_id in ("0", "-1", "x", str(2**63), "1.5"):
        problem(rest.put(f"/api/exams/{exam_id}", json={"problem_text": "x"}), 422, "invalid_frame")
        problem(rest.get(f"/api/exams/{exam_id}"), 422, "invalid_frame")


# ---------------------------------------------------------------- what is refused


def test_bad_messages_are_refused_before_anything_happens(rest: httpx.Client, provider: Provider, rows: Rows) -> None:
    pair = new_pair()
    bad: list[dict[str, Any]] = [
        {},
        pair,
        {"message": "x"},
        {"message": "x", "exam_id": 1},
        {"message": "x", "participant_id": 1},
        {"message": "x", "session_id": "1", **pair},
        {"message": "", **pair},
        {"message": " \n\t", **pair},
        {"message": None, **pair},
        {"message": 1, **pair},
        {"message": ["x"], **pair},
        {"message": "a\x00b", **pair},
        {"message": "x", "turn_id": "", **pair},
        {"message": "x", "turn_id": "a\x00b", **pair},
        {"message": "x", "turn_id": "t" * 129, **pair},
        {"message": "x", "turn_id": 1.5, **pair},
        {"message": "x", "turn_id": True, **pair},
        {"message": "x", "turn_id": 2**63, **pair},
        {"message": "x", "turn_id": 10**400, **pair},
        {"message": "x", "turn_id": {}, **pair},
        {"message": "x", "exam_id": 0, "participant_id": 1},
        {"message": "x", "exam_id": -1, "participant_id": 1},
        {"message": "x", "exam_id": 2**63, "participant_id": 1},
        {"message": "x", "exam_id": 10**400, "participant_id": 1},
        {"message": "x", "exam_id": "1", "participant_id": 1},
        {"message": "x", "exam_id": True, "participant_id": 1},
        {"message": "x", "exam_id": 1.0, "participant_id": 1},
        {"message": "x", "spec_id": 0, **pair},
        {"message": "x", "colour": "red", **pair},
    ]
    for body in bad:
        problem(rest.post("/api/chat/message", json=body), 422, "invalid_frame")
    assert len(provider.requests) == 0
    assert rows("SELECT id FROM prompt_sessions") == []


def test_bodies_that_are_no_json_are_refused(rest: httpx.Client, rows: Rows) -> None:
    bodies = [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"message"',
        b'{"message": "x"',
        b"{'message': 'x'}",
        b'{"message": "\xff"}',
        b'{"message": "\\ud800", "exam_id": 1, "participant_id": 1}',
        b'{"message": "x", "turn_id": "\\udfff", "exam_id": 1, "participant_id": 1}',
        b'{"\\ud800": 1}',
        b'{"message": NaN}',
        b'{"message": "x", "turn_id": 1' + b"0" * 5000 + b"}",  # more digits than Python converts
        b'{"message": ' + b"[" * 100_000,
    ]
    for body in bodies:
        for content_type in ("application/json", "text/plain", "application/json; charset=utf-16"):
            response = rest.post("/api/chat/message", content=body, headers={"Content-Type": content_type})
            problem(response, 422, "invalid_frame")
    for path in ("/api/sessions", "/api/render"):
        problem(rest.post(path, content=b'{"markdown": "\\ud800"}'), 422, "invalid_frame")
    problem(rest.put("/api/exams/1", content=b'{"problem_text": "\\ud800"}'), 422, "invalid_frame")
    assert rows("SELECT id FROM prompt_sessions") == []


def test_problem_does_not_repeat_what_was_sent(rest: httpx.Client) -> None:
    for body in ({"message": 1, "turn_id": "my-secret-id"}, {"my-secret-field": 1}, {"message": ["my-secret-text"]}):
        detail = problem(rest.post("/api/chat/message", json=body), 422, "invalid_frame")
        assert "my-secret-text" not in detail
        assert "my-secret-id" not in detail


@pytest.mark.parametrize("limits", [{"message_chars": 100, "frame_bytes": 2000}])
def test_what_is_too_large_is_refused(
    start: Callable[..., Service], provider: Provider, limits: dict[str, int]
) -> None:
    service = start(limits=limits)
    pair = new_pair()
    with checked_client(service) as rest:
        assert say(rest, "가" * 100, turn_id=1, **pair).status_code == 200, "characters are counted, not bytes"
        problem(say(rest, "x" * 101, turn_id=2, **pair), 413, "message_too_large")
        for path in ("/api/chat/message", "/api/sessions", "/api/render"):
            problem(rest.post(path, content=b" " * 2001), 413, "message_too_large")
            headers = {"Content-Type": "application/json"}
            for parts in ([b" " * 2001], [b" " * 1000] * 3, [b" "] * 2001):
                problem(rest.post(path, content=iter(parts), headers=headers), 413, "message_too_large")
        problem(rest.put("/api/exams/1", json={"problem_text": "x" * 2000}), 413, "message_too_large")
        big = rest.post("/api/chat/message", content=b" " * 3_000_000)
        problem(big, 413, "message_too_large")
        whole = json.dumps({"message": "x", "turn_id": 3, **pair}).encode()
        whole += b" " * (2000 - len(whole))
        exact = rest.post("/api/chat/message", content=whole, headers={"Content-Type": "application/json"})
        assert exact.status_code == 200, "the limit itself is allowed"
    assert len(provider.requests) == 2


def test_bad_queries_are_refused(rest: httpx.Client) -> None:
    for query in (
        "exam_id=x",
        "exam_id=0",
        f"exam_id={2**63}",
        "exam_id=1.5",
        "exam_id=%00",
        "participant_id=-1",
        "cursor=x",
        "cursor=-1",
        f"cursor={2**63}",
        "limit=0",
        "limit=1001",
        "limit=",
    ):
        problem(rest.get(f"/api/sessions?{query}"), 422, "invalid_frame")
    for query in ("type=%00", "status=odd", "cursor=x", "type=A"):
        problem(rest.get(f"/api/callbacks?{query}"), 422, "invalid_frame")
    problem(rest.get("/api/callbacks?session_id=%00"), 404, "session_not_found")
    problem(rest.post("/api/callbacks/a%00b/replay"), 404, "not_found")


def test_a_filter_without_a_value_is_none(rest: httpx.Client) -> None:
    say(rest, "hello", **new_pair())

    def ids(path: str) -> list[str]:
        return [item["id"] for item in rest.get(path).json()["items"]]

    assert ids("/api/callbacks")
    assert ids("/api/callbacks?status=&type=&session_id=") == ids("/api/callbacks")
    assert rest.get("/api/sessions?exam_id=&participant_id=").json() == rest.get("/api/sessions").json()


def test_a_session_has_one_spelling(rest: httpx.Client) -> None:
    session_id = say(rest, "hello", **new_pair()).json()["session_id"]
    for odd in (f"0{session_id}", f"+{session_id}", f" {session_id}", "9" * 30):
        problem(rest.get(f"/api/sessions/{odd}"), 404, "session_not_found")


# ---------------------------------------------------------------- health, and what goes wrong inside


def test_health_and_readiness(rest: httpx.Client, rows: Rows) -> None:
    assert rest.get("/healthz").json() == {"status": "ok"}
    checks = {"database": True, "migrations": True, "model": True, "accepting": True}
    assert rest.get("/readyz").json() == {"status": "ready", "checks": checks}
    version = rows.one("SELECT version_num FROM alembic_version")["version_num"]
    for spoil, mend in [
        (
            "WITH reach AS (UPDATE schema_reach SET oldest_program = 'a later one')"
            " UPDATE alembic_version SET version_num = 'of another age'",
            "WITH reach AS (UPDATE schema_reach SET oldest_program = '0001')"
            " UPDATE alembic_version SET version_num = %s",
        ),
        ("DELETE FROM alembic_version", "INSERT INTO alembic_version VALUES (%s)"),
    ]:
        rows(spoil)
        response = rest.get("/readyz")
        assert problem(response, 503, "overloaded", retryable=True) == "Not ready: migrations."
        assert response.json()["checks"] == {**checks, "migrations": False}
        assert response.headers["retry-after"] == "1"
        rows(mend, version)
    rows("UPDATE alembic_version SET version_num = '9999'")
    assert rest.get("/readyz").json()["checks"] == checks
    rows("UPDATE alembic_version SET version_num = %s", version)


def test_database_that_is_away_is_a_problem_that_passes(
    rest: httpx.Client, postgres: str, database_url: str, provider: Provider
) -> None:
    name = make_url(database_url).database
    session = start_session(rest)
    with psycopg.connect(postgres, autocommit=True) as server:
        server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            problem(say(rest, session_id=session["id"], turn_id="t1"), 500, "internal", retryable=True)
            problem(rest.get("/api/sessions"), 500, "internal", retryable=True)
            problem(rest.put("/api/exams/1", json={"problem_text": "x"}), 500, "internal", retryable=True)
            problem(rest.post(f"/api/sessions/{session['id']}/turns/t1/cancel"), 500, "internal", retryable=True)
            ready = rest.get("/readyz")
            assert (ready.status_code, ready.json()["checks"]["database"]) == (503, False)
            assert rest.get("/healthz").status_code == 200
            assert rest.get("/metrics").status_code == 200
            assert len(provider.requests) == 0
        finally:
            server.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert say(rest, session_id=session["id"], turn_id="t1").json()["ai_message"] == ANSWER


def test_bug_is_a_problem_and_its_log_quotes_nothing(
    rest: httpx.Client, rows: Rows, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    rows("ALTER TABLE prompt_messages RENAME COLUMN content TO contents")
    rows("ALTER TABLE exams RENAME COLUMN problem_text TO text")
    problem(say(rest, "my very private words", **new_pair()), 500, "internal", retryable=True)
    private = rest.put("/api/exams/1", json={"problem_text": "my very private words"})
    problem(private, 500, "internal", retryable=True)
    shown = capfd.readouterr()
    logged = caplog.text + shown.out + shown.err
    assert "ProgrammingError" in logged
    assert "private words" not in logged
    assert "Traceback" not in logged
