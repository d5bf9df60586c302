"""Who is let in: in mode open this machine's own pages and programs, in mode token whoever bears Core's key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import Rows
from tests.support.chat import WAIT_S, connect, new_pair
from tests.support.provider import Provider
from tests.support.service import Service

KEY = "core-calls-with-this-key"

PROTECTED = [
    ("POST", "/api/chat/message"),
    ("POST", "/api/sessions"),
    ("GET", "/api/sessions"),
    ("GET", "/api/sessions/1"),
    ("GET", "/api/sessions/1/messages"),
    ("POST", "/api/sessions/1/turns/t1/cancel"),
    ("GET", "/api/sessions/1/turns/t1/events"),
    ("POST", "/api/sessions/1/end"),
    ("POST", "/api/sessions/1/submissions"),
    ("GET", "/api/sessions/1/submissions"),
    ("GET", "/api/submissions"),
    ("GET", "/api/submissions/1"),
    ("POST", "/api/submissions/1/rerun"),
    ("POST", "/api/submissions/1/release"),
    ("POST", "/api/submissions/1/override"),
    ("POST", "/api/submissions/1/appeal"),
    ("GET", "/api/submissions/1/report"),
    ("GET", "/api/submissions/1/steps"),
    ("PUT", "/api/exams/1"),
    ("GET", "/api/exams/1"),
    ("GET", "/api/exams/1/versions"),
    ("GET", "/api/sessions/1/evaluations"),
    ("POST", "/api/sessions/1/turns/t1/override"),
    ("POST", "/api/sessions/1/turns/t1/appeal"),
    ("GET", "/api/reviews"),
    ("POST", "/api/reviews/1/resolve"),
    ("PUT", "/api/problems/1"),
    ("GET", "/api/problems/1"),
    ("GET", "/api/problems/1/versions"),
    ("GET", "/api/callbacks"),
    ("GET", "/api/callbacks/events"),
    ("GET", "/api/callbacks/evt_1"),
    ("POST", "/api/callbacks/evt_1/replay"),
    ("POST", "/api/callbacks/replay"),
    ("POST", "/api/render"),
]
PUBLIC = ["/healthz", "/readyz", "/metrics", "/", "/static/page.js", "/static/turnstone.js", "/openapi.json"]


def client(service: Service, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=service.url, timeout=WAIT_S, **options)


def refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code
    assert response.json()["retryable"] is False


@pytest.fixture
def guarded(start: Callable[..., Service]) -> Service:
    """A service in mode token."""
    return start(auth={"mode": "token", "api_key": KEY})


@pytest.fixture
def bearer(guarded: Service) -> Iterator[httpx.Client]:
    with client(guarded, headers={"Authorization": f"Bearer {KEY}"}) as opened:
        yield opened


# ---------------------------------------------------------------- mode open

OURS = [
    {},
    {"Host": "localhost"},
    {"Host": "localhost:1"},
    {"Host": "LOCALHOST:8000"},
    {"Host": "[::1]:8000"},
    {"Host": "[::1]"},
    {"Host": "127.0.0.2:80"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://localhost"},
    {"Origin": "http://LocalHost:5173"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://[::1]:3000"},
]
FOREIGN = [
    {"Host": "exam.example"},
    {"Host": "exam.example:8000"},
    {"Host": "192.168.0.7:8000"},
    {"Host": "0.0.0.0:8000"},
    {"Host": "[::]:8000"},
    {"Host": "[2001:db8::1]"},
    {"Host": "localhost.evil.example"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "evil.example@localhost"},
    {"Host": "localhost@evil.example"},
    {"Host": "localhost."},  # another name to the browser's same-origin rules, and nobody needs it
    {"Host": "[::1"},
    {"Host": "localhost:port"},
    {"Host": "localhost/x"},
    {"Host": "2130706433"},  # 127.0.0.1 as a number
    {"Host": ""},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "http://localhost:80@evil.example"},
    {"Origin": "http://evil.example@localhost"},
    {"Origin": "http://localhost."},
    {"Origin": "http://[::1"},
    {"Origin": "http://[::2]"},
    {"Origin": "http://localhost\\@evil.example"},
    {"Origin": "localhost"},
    {"Origin": "http://localhost, http://evil.example"},
    {"Origin": "file://"},
    {"Origin": "http://xn--lcalhost-x6a"},
]


def test_open_mode_lets_this_machine_in(service: Service) -> None:
    with client(service) as http:
        for headers in OURS:
            response = http.get("/api/sessions", headers=headers)
            assert response.status_code == 200, (headers, response.text)


def test_open_mode_refuses_foreign_hosts_and_origins(service: Service, rows: Rows) -> None:
    with client(service) as http:
        for headers in FOREIGN:
            try:
                refused(http.get("/api/sessions", headers=headers), 403, "forbidden")
                refused(http.post("/api/sessions", headers=headers, json=new_pair()), 403, "forbidden")
            except AssertionError as error:
                raise AssertionError(headers) from error
    assert rows("SELECT id FROM prompt_sessions") == []


def test_open_mode_guards_every_route(service: Service) -> None:
    with client(service) as http:
        for method, path in PROTECTED:
            refused(http.request(method, path, headers={"Origin": "http://evil.example"}), 403, "forbidden")


async def test_open_mode_refuses_foreign_pages_on_the_socket(service: Service, provider: Provider) -> None:
    for path in ("/chat", "/api/chat/ws"):
        for origin in ("http://evil.example", "null", "http://localhost@evil.example", "http://[::1"):
            async with connect(service.url, path, origin=origin) as chat:
                with pytest.raises(ConnectionClosed):
                    await chat.receive()
                assert chat.connection.close_code == 4403
                assert "this machine" in (chat.connection.close_reason or "")
    rebound = service.url.replace("127.0.0.1", "rebound.example")
    async with connect(rebound, host="127.0.0.1", port=service.port) as chat:
        with pytest.raises(ConnectionClosed):
            await chat.receive()
        assert chat.connection.close_code == 4403
    async with connect(service.url, origin="http://localhost:3000") as chat:
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"
    assert len(provider.requests) == 1


def test_open_mode_gives_other_pages_no_right_to_read(service: Service) -> None:
    """A page at another port of this machine may call, but without CORS a browser keeps the answer from it."""
    with client(service) as http:
        headers = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        preflight = http.options("/api/sessions", headers=headers)
        assert preflight.status_code == 405
        answer = http.get("/api/sessions", headers=headers)
        for response in (preflight, answer):
            assert not [name for name in response.headers if name.startswith("access-control-")]


# ---------------------------------------------------------------- mode token


def test_token_mode_guards_every_route_and_what_is_no_route(guarded: Service) -> None:
    with client(guarded) as http:
        for method, path in [*PROTECTED, ("GET", "/api/unknown"), ("GET", "/demo/core/events"), ("GET", "/static")]:
            response = http.request(method, path)
            refused(response, 401, "unauthenticated")
            assert response.headers["www-authenticate"] == "Bearer"


def test_the_list_of_guarded_routes_is_whole(service: Service) -> None:
    with client(service) as http:
        paths = http.get("/openapi.json").json()["paths"]
    documented = {(method.upper(), path) for path, operations in paths.items() for method in operations}
    numbers = dict.fromkeys(("{session_id}", "{exam_id}", "{item_id}", "{spec_id}", "{submission_id}"), "1")
    ids = {**numbers, "{turn_id}": "t1", "{event_id}": "evt_1"}
    for method, path in documented:
        for name, value in ids.items():
            path = path.replace(name, value)  # noqa: PLW2901  # the concrete path
        assert (method, path) in PROTECTED or path in PUBLIC, (method, path)


def test_token_mode_takes_only_the_key(guarded: Service) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY.upper()}"},
        {"Authorization": f"Bearer x {KEY}"},
        {"Authorization": "Bearer \xff\xfe".encode("latin-1")},
        {"X-API-Key": KEY},
        {"Cookie": f"token={KEY}"},
    ]
    with client(guarded) as http:
        for headers in wrong:
            refused(http.get("/api/sessions", headers=headers), 401, "unauthenticated")
        for query in ({"token": KEY}, {"access_token": KEY}, {"authorization": f"Bearer {KEY}"}):
            refused(http.get("/api/sessions", params=query), 401, "unauthenticated")
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert http.get("/api/sessions", headers={"Authorization": f"{scheme} {KEY}"}).status_code == 200


def test_token_mode_does_not_mind_where_the_caller_is(bearer: httpx.Client) -> None:
    for headers in ({"Host": "exam.example"}, {"Origin": "https://exam.example"}):
        assert bearer.get("/api/sessions", headers=headers).status_code == 200


def test_without_a_token_nothing_of_a_request_is_read(guarded: Service) -> None:
    """What is wrong with a body is told to nobody who may not call at all."""
    with client(guarded) as http:
        for content in (b"{", b"[]", b'{"message": 1}', b"\xff"):
            headers = {"Content-Type": "application/json"}
            refused(http.post("/api/chat/message", content=content, headers=headers), 401, "unauthenticated")
        refused(http.get("/api/sessions?exam_id=x"), 401, "unauthenticated")


@pytest.mark.parametrize("mode", ["open", "token"])
def test_health_pages_and_metrics_need_no_token(start: Callable[..., Service], mode: str) -> None:
    """What a load balancer, a scraper and a browser ask for before anybody has a token; none of it holds a secret."""
    service = start(auth={"mode": mode, "api_key": KEY})
    with client(service) as http:
        for path in PUBLIC:
            response = http.get(path)
            assert response.status_code == 200, path
            assert KEY not in response.text
            assert "sk-scripted" not in response.text
            assert "postgresql" not in response.text


def test_message_by_rest_with_the_key(bearer: httpx.Client, rows: Rows) -> None:
    response = bearer.post("/api/chat/message", json={"message": "hello", "turn_id": "t", **new_pair()})
    assert response.status_code == 200, response.text
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"]


async def test_socket_takes_the_key_in_three_ways(guarded: Service) -> None:
    header = {"Authorization": f"Bearer {KEY}"}
    async with connect(guarded.url, additional_headers=header) as chat:
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"
    async with connect(guarded.url, subprotocols=["turnstone.v1", f"bearer.{KEY}"]) as chat:
        assert chat.connection.subprotocol == "turnstone.v1"
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"
    async with connect(guarded.url) as chat:
        await chat.send(type="auth", token=KEY)
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"


async def test_socket_without_the_key_is_closed_with_a_code(guarded: Service, provider: Provider, rows: Rows) -> None:
    first_frames: list[Any] = [
        json.dumps({"type": "auth", "token": "wrong"}),
        json.dumps({"type": "auth", "token": "\ud800"}),
        json.dumps({"type": "auth"}),
        json.dumps({"type": "message", "message": "hello", "turn_id": "t", **new_pair()}),
        "no frame",
        b"\x00",
    ]
    for frame in first_frames:
        async with connect(guarded.url) as chat:
            await chat.send_raw(frame)
            with pytest.raises(ConnectionClosed):
                await chat.receive()
            assert chat.connection.close_code == 4401, frame
    for options in (
        {"subprotocols": ["turnstone.v1", "bearer.wrong"]},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
    ):
        async with connect(guarded.url, **options) as chat:
            with pytest.raises(ConnectionClosed):
                await chat.receive()
            assert chat.connection.close_code == 4401
    async with connect(guarded.url, f"/chat?token={KEY}") as chat:
        await chat.send(message="hello", turn_id="t", **new_pair())
        with pytest.raises(ConnectionClosed):
            await chat.receive()
        assert chat.connection.close_code == 4401
    assert len(provider.requests) == 0
    assert rows("SELECT id FROM prompt_sessions") == []
