"""Submissions over HTTP and the WebSocket: taken once, refused with a reason, followed, and shown."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_listening, wait_until
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service
from tests.test_openapi import checked_client
from tests.test_rest import all_pages, problem, say

Start = Callable[..., Service]
CODE = "print(sum(map(int, input().split())))\n"


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    with checked_client(service) as opened:
        yield opened


@pytest.fixture
def waiting(start: Start) -> Iterator[httpx.Client]:
    """A service that takes submissions and evaluates none."""
    with checked_client(start(worker={"embedded": False})) as opened:
        yield opened


def new_session(rest: httpx.Client, **more: Any) -> str:
    response = rest.post("/api/sessions", json={**new_pair(), **more})
    session_id: str = response.json()["id"]
    return session_id


def submit(rest: httpx.Client, session_id: str, **fields: Any) -> httpx.Response:
    body = {"code": CODE, "language": "python", **fields}
    return rest.post(f"/api/sessions/{session_id}/submissions", json=body)


def taken(rest: httpx.Client, session_id: str, **fields: Any) -> dict[str, Any]:
    response = submit(rest, session_id, **fields)
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


def show(rest: httpx.Client, submission_id: str | int) -> dict[str, Any]:
    response = rest.get(f"/api/submissions/{quote(str(submission_id), safe='')}")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def ended(rest: httpx.Client, submission_id: str | int, timeout: float = 60.0) -> dict[str, Any]:
    """The submission, once it is evaluated."""
    found: dict[str, Any] = wait_until(
        lambda: body if (body := show(rest, submission_id))["status"] in {"DONE", "FAILED"} else None, timeout
    )
    return found


# ---------------------------------------------------------------- taken


@pytest.mark.parametrize("submission_id", ["a/b", "a/report", "report", "a/steps", "a/rerun", "한 글/report"])
def test_an_id_that_looks_like_a_path_is_an_id(waiting: httpx.Client, submission_id: str) -> None:
    taken(waiting, new_session(waiting), submission_id=submission_id)
    assert show(waiting, submission_id)["submission_id"] == submission_id


def test_code_is_taken_and_shown_as_it_is_evaluated(waiting: httpx.Client, rows: Rows) -> None:
    session_id = new_session(waiting)
    say(waiting, session_id=session_id)
    body = taken(waiting, session_id, submission_id="sub/1 ✓")
    assert (body["submission_id"], body["session_id"], body["language"]) == ("sub/1 ✓", session_id, "python")
    assert (body["status"], body["last_turn"], body["final_scores"], body["revision"]) == ("QUEUED", 1, None, None)
    assert body["progress"] == {"stage": "queued", "percent": 0, "cases_done": 0, "cases_total": 0}
    assert [(each["revision"], each["status"], each["cause"]) for each in body["evaluations"]] == [
        (1, "waiting", "submission")
    ]
    assert show(waiting, "sub/1 ✓") == body
    assert waiting.get(f"/api/sessions/{session_id}/submissions").json()["items"] == [body]
    assert rows.one("SELECT code, client_id FROM submissions") == {"code": CODE, "client_id": "sub/1 ✓"}


def test_an_id_is_given_where_none_is_brought(waiting: httpx.Client) -> None:
    waiting.put("/api/exams/1", json={"problem_text": "Sort.", "submissions": 2}).raise_for_status()
    session_id = new_session(waiting)
    first, second = (taken(waiting, session_id)["submission_id"] for _ in range(2))
    assert first != second and str(first).startswith("sub_")


def test_the_same_again_is_the_same_submission(waiting: httpx.Client, rows: Rows) -> None:
    session_id = new_session(waiting)
    first = taken(waiting, session_id, submission_id=7)
    assert first["submission_id"] == 7
    assert taken(waiting, session_id, submission_id=7) == first
    assert taken(waiting, session_id, submission_id="7") == first, "compared as text, told as it was first written"
    assert len(rows("SELECT 1 FROM submission_evaluations")) == 1
    other = new_session(waiting)
    for where, changed in ((session_id, {"code": CODE + "#"}), (session_id, {"language": "java"}), (other, {})):
        problem(submit(waiting, where, submission_id=7, **changed), 409, "submission_id_conflict")


def test_racing_calls_make_one_submission(waiting: httpx.Client, rows: Rows) -> None:
    sessions = [new_session(waiting), new_session(waiting)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: submit(waiting, sessions[n % 2], submission_id="race"), range(16)))
    assert Counter(answer.status_code for answer in answers) == {202: 8, 409: 8}
    assert {answer.json().get("code") for answer in answers if answer.status_code == 409} == {"submission_id_conflict"}
    assert len(rows("SELECT 1 FROM submissions")) == len(rows("SELECT 1 FROM submission_evaluations")) == 1


def test_more_than_the_exam_takes_is_refused(waiting: httpx.Client, rows: Rows) -> None:
    waiting.put("/api/exams/1", json={"problem_text": "Sort.", "submissions": 2}).raise_for_status()
    session_id = new_session(waiting)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda n: submit(waiting, session_id, submission_id=n), range(6)))
    assert Counter(answer.status_code for answer in answers) == {202: 2, 409: 4}
    refused = next(answer for answer in answers if answer.status_code == 409)
    assert "2 submissions" in problem(refused, 409, "submissions_exhausted")
    known = next(n for n, answer in enumerate(answers) if answer.status_code == 202)
    assert taken(waiting, session_id, submission_id=known)["submission_id"] == known, "what is known is no new one"
    rows("UPDATE submissions SET status = 'FAILED' WHERE client_id = %s", str(known))
    taken(waiting, session_id, submission_id="instead")


def test_an_ended_session_takes_its_submission(waiting: httpx.Client) -> None:
    session_id = new_session(waiting)
    say(waiting, session_id=session_id)
    waiting.post(f"/api/sessions/{session_id}/end").raise_for_status()
    assert taken(waiting, session_id)["last_turn"] == 1


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"code": "x" * 65_537}, 413, "message_too_large"),
    *(({"code": code}, 422, "invalid_frame") for code in (" \n\t", "a\x00b", "\ud800", 7, None)),
    *(({"language": language}, 422, "invalid_frame") for language in ("cobol", "", "a\x00", None)),
    *(
        ({"submission_id": submission_id}, 422, "invalid_frame")
        for submission_id in ("", "x" * 129, "a\x00b", "\ud800", 2**63, 1.5, True)
    ),
    ({"more": 1}, 422, "invalid_frame"),
]


def test_bad_submissions_are_refused(waiting: httpx.Client, rows: Rows) -> None:
    path = f"/api/sessions/{new_session(waiting)}/submissions"
    for fields, status, code in BAD:
        body = json.dumps({"code": CODE, "language": "python", **fields})
        answer = waiting.post(path, content=body, headers={"content-type": "application/json"})
        said = problem(answer, status, code)
        if fields.get("language") == "cobol":
            assert "python, javascript, java, c, cpp, go" in said
    assert rows("SELECT 1 FROM submissions") == []


def test_the_longest_code_is_taken(start: Start, rows: Rows) -> None:
    with checked_client(start(worker={"embedded": False}, limits={"code_chars": 10})) as rest:
        taken(rest, new_session(rest), code="이것은 코드 열자다")
        assert "limit is 10" in problem(submit(rest, new_session(rest), code="x" * 11), 413, "message_too_large")


def test_what_is_not_there_is_not_found(waiting: httpx.Client) -> None:
    for session_id in ("0", "999", "x"):
        problem(submit(waiting, session_id), 404, "session_not_found")
        problem(waiting.get(f"/api/sessions/{session_id}/submissions"), 404, "session_not_found")
    for submission_id in ("none", "%00", "a%2Fb", "x" * 129):
        problem(waiting.get(f"/api/submissions/{submission_id}"), 404, "submission_not_found")
        problem(
            waiting.post(f"/api/submissions/{submission_id}/release", json={"person": "Kim"}),
            404,
            "submission_not_found",
        )
        problem(
            waiting.post(f"/api/submissions/{submission_id}/rerun", json={"person": "Kim"}), 404, "submission_not_found"
        )


def test_lists_go_on_where_they_ended(waiting: httpx.Client) -> None:
    waiting.put("/api/exams/1", json={"problem_text": "Sort.", "submissions": 5}).raise_for_status()
    session_id = new_session(waiting)
    for number in range(5):
        taken(waiting, session_id, submission_id=number)
    other = waiting.post("/api/sessions", json={"exam_id": 2, "participant_id": 1}).json()["id"]
    taken(waiting, other, submission_id="other")

    def ids(path: str, limit: int, **query: Any) -> list[Any]:
        return [item["submission_id"] for item in all_pages(waiting, path, limit, **query)]

    assert ids(f"/api/sessions/{session_id}/submissions", 2) == [0, 1, 2, 3, 4]
    assert ids("/api/submissions", 4) == [0, 1, 2, 3, 4, "other"]
    assert ids("/api/submissions", 9, exam_id=2, status="QUEUED") == ["other"]
    assert ids("/api/submissions", 9, status="DONE") == []


async def test_a_running_turn_goes_on_and_does_not_count(start: Start, provider: Provider, rows: Rows) -> None:
    service = start(worker={"embedded": False}, llm={"timeout_s": 60})
    pair = new_pair()
    async with connect(service.url) as chat:
        session_id = (await chat.ask("first", "t1", **pair)).session_id
        with await asyncio.to_thread(checked_client, service) as rest:
            provider.next(Script(pieces=["a", "b", "c"]))
            provider.holding = True
            seen = await chat.start("second", "t2", text="a", **pair)
            body = await asyncio.to_thread(taken, rest, str(session_id))
        assert body["last_turn"] == 1
        provider.holding = False
        assert (await chat.turn(seen=seen)).end["type"] == "done"
    assert rows.one("SELECT ended_at FROM prompt_sessions")["ended_at"] is None


# ---------------------------------------------------------------- followed


async def test_whoever_has_addressed_the_session_is_told(start: Start, rows: Rows) -> None:
    service, pair = start(worker={"embedded": False}), new_pair()
    await asyncio.to_thread(wait_listening, rows)
    async with connect(service.url) as talker, connect(service.url) as follower, connect(service.url) as stranger:
        session_id = str((await talker.ask("hello", "t1", **pair)).session_id)
        await follower.send(type="follow", session_id=session_id)
        await follower.send(type="ping")
        assert (await follower.receive())["type"] == "pong", "there is nothing to tell yet"
        with checked_client(service) as rest:
            await asyncio.to_thread(taken, rest, session_id, submission_id=9)
        told = {
            "type": "submission",
            "session_id": session_id,
            "submission_id": 9,
            "status": "QUEUED",
            "stage": "queued",
            "percent": 0,
            "cases_done": 0,
            "cases_total": 0,
        }
        assert await talker.receive() == told
        assert await follower.receive() == told
        rows("NOTIFY turnstone_submissions, 'not json'")
        await stranger.send(type="ping")
        assert (await stranger.receive())["type"] == "pong"
        await stranger.send(type="follow", session_id=int(session_id))
        assert await stranger.receive() == told, "who comes later is told how far it is"


async def test_following_nothing_is_an_error_and_the_connection_stays(service: Service) -> None:
    async with connect(service.url) as chat:
        for frame, code in (
            ({"session_id": "999"}, "session_not_found"),
            ({"session_id": "x"}, "session_not_found"),
            ({}, "invalid_frame"),
            ({"session_id": -1}, "invalid_frame"),
        ):
            await chat.send(type="follow", **frame)
            assert (await chat.receive())["code"] == code
        await chat.send(type="ping")
        assert (await chat.receive())["type"] == "pong"


async def test_progress_is_told_in_order_and_ends_with_the_end(service: Service, core: FakeCore, rows: Rows) -> None:
    await asyncio.to_thread(wait_listening, rows)
    async with connect(service.url) as chat:
        session_id = str((await chat.ask("hello", "t1", **new_pair())).session_id)
        with checked_client(service) as rest:
            await asyncio.to_thread(taken, rest, session_id)
            frames = []
            while not frames or frames[-1]["status"] != "DONE":
                frames.append(await chat.receive())
            assert {frame["type"] for frame in frames} == {"submission"}
            assert [frame["percent"] for frame in frames] == sorted(frame["percent"] for frame in frames)
            assert frames[0]["status"] == "QUEUED" and frames[-1]["stage"] == "done"
            assert not [frame for frame in frames if "score" in str(frame)], "never a score"
            await chat.send(type="message", message="more", turn_id="t2", session_id=session_id)
            assert (await chat.receive())["code"] == "session_ended"
