"""``OpenAIClient`` against the scripted provider: what is said to it, what it says, and its connections."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from app.core.errors import ErrorCode, ModelError
from app.core.http import parse_retry_after
from app.core.settings import LlmSettings
from app.domain.conversation import FinishReason, Usage
from app.domain.model_client import ChatMessage, ModelCall, ModelRequest
from app.infrastructure.llm import http_stream
from app.infrastructure.llm.models import check_remote
from app.infrastructure.llm.openai_client import OpenAIClient
from tests.support.provider import SECRET, Figures, Provider, Script
from tests.support.servers import AppThread

KEY = "sk-our-own-key-5c1d"
WAIT_S = 20.0
REQUEST = ModelRequest(
    [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hello"),
        ChatMessage("assistant", "Hi!"),
        ChatMessage("user", "노래해 줘 🎵"),
    ],
    max_output_tokens=77,
)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., OpenAIClient]]:
    opened: list[OpenAIClient] = []

    def make(base_url: str, *, timeout_s: float = WAIT_S, **options: Any) -> OpenAIClient:
        options = {"model_at_provider": "scripted", "api_key": KEY} | options
        client = OpenAIClient("openai:scripted", base_url=base_url, timeout_s=timeout_s, **options)
        opened.append(client)
        return client

    yield make
    for client in opened:
        await client.aclose()


@pytest.fixture
async def client(connect: Callable[..., OpenAIClient], provider: Provider) -> OpenAIClient:
    return connect(provider.base_url)


async def run(client: OpenAIClient, request: ModelRequest = REQUEST) -> tuple[str, ModelCall, ModelError | None]:
    """One call to its end: the text, what became of the call, and the error if it was one."""
    call, pieces, fault = ModelCall(client.model), list[str](), None
    try:
        async with asyncio.timeout(WAIT_S):
            await client.stream(request, call, pieces.append)
    except ModelError as error:
        fault = error
    assert all(pieces)
    assert sum(map(len, pieces)) == call.text_chars
    return "".join(pieces), call, fault


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.005)


def open_sockets(provider: Provider) -> int:
    """Connections to the provider that nobody, or only the provider, has closed, as the kernel lists them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    established, closed_there = "01", "08"
    return sum(row[2].endswith(f":{provider.port:04X}") and row[3] in {established, closed_there} for row in rows)


# --- what is asked and answered ---


async def test_the_request_is_what_the_endpoint_knows(client: OpenAIClient, provider: Provider) -> None:
    await run(client)
    sent = provider.requests[0]
    assert sent.body == {
        "model": "scripted",
        "messages": [{"role": role, "content": content} for role, content in REQUEST.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 77,
    }
    assert sent.authorization == f"Bearer {KEY}"
    assert sent.headers["accept-encoding"] == "identity"  # a compressor would hold tokens back


async def test_without_a_key_no_header_claims_one(connect: Callable[..., OpenAIClient], provider: Provider) -> None:
    await run(connect(provider.base_url + "/", api_key=None))
    assert provider.requests[0].authorization is None


async def test_text_usage_and_reason_come_through(client: OpenAIClient, provider: Provider) -> None:
    script = Script(usage=Figures(prompt_tokens=100, completion_tokens=30, cached_tokens=64, reasoning_tokens=12))
    provider.next(script)
    text, call, fault = await run(client)
    assert (text, fault) == (script.text, None)
    assert call == ModelCall(
        "openai:scripted",
        reached=True,
        accepted=True,
        usage=Usage(100, 30, 64, 12, "provider"),
        usage_complete=True,
        finish_reason=FinishReason.STOP,
        text_chars=len(script.text),
        provider_ref=provider.requests[0].answer_id,
    )


async def test_a_call_that_is_refused_has_the_id_of_its_request(client: OpenAIClient, provider: Provider) -> None:
    header = (("x-request-id", "req-7"),)
    provider.next(Script(status=429, headers=header), Script(headers=header), Script(status=500))
    refused, answered, nameless = [(await run(client))[1].provider_ref for _ in range(3)]
    assert (refused, answered, nameless) == ("req-7", provider.requests[1].answer_id, None)


@pytest.mark.parametrize(
    "script",
    [
        Script(split_every=1),
        Script(split_every=7, crlf=True, space_after_data=False, escape_ascii=True),
        Script(together=100),
        Script(chunked=False),
        Script(done=False),
        Script(finish_reason=None),
        Script(reasoning=("let me ", "think")),
        Script(insert=tuple((at, name) for at, name in enumerate(("ping", "role_only", "null_content", "no_choices")))),
        Script(pieces=("a\ud83d", "\ude00b"), escape_ascii=True),
        Script(pieces=("x" * 1_048_576, "end")),
        Script(usage_in="every", done=False),
    ],
    ids=range(11),
)
async def test_every_habit_of_a_provider_gives_the_same_answer(
    client: OpenAIClient, provider: Provider, script: Script
) -> None:
    provider.next(script)
    text, call, fault = await run(client)
    assert (text, fault, call.finish_reason) == (script.text, None, FinishReason.STOP)


async def test_the_first_piece_does_not_wait_for_the_second(client: OpenAIClient, provider: Provider) -> None:
    provider.next(Script(pieces=("first", "second"), ending="hang", ending_at=1))
    pieces: list[str] = []
    task = asyncio.create_task(client.stream(REQUEST, ModelCall("m"), pieces.append))
    await until(lambda: pieces == ["first"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- faults ---

STATUSES = [
    *((status, ErrorCode.LLM_REJECTED, False) for status in (400, 404, 413, 422)),
    *((status, ErrorCode.LLM_UNAVAILABLE, False) for status in (401, 403)),
    *((status, ErrorCode.LLM_UNAVAILABLE, True) for status in (429, 500, 502, 503)),
]


@pytest.mark.parametrize(("status", "code", "retryable"), STATUSES)
async def test_a_status_is_typed_and_its_body_is_never_repeated(
    client: OpenAIClient, provider: Provider, status: int, code: ErrorCode, retryable: bool
) -> None:
    provider.next(Script(status=status, headers=(("Retry-After", "7"),)))
    text, call, fault = await run(client)
    assert fault is not None
    assert (text, fault.code, fault.retryable) == ("", code, retryable)
    assert fault.retry_after_s == (7.0 if retryable else None)
    assert (call.reached, call.accepted) == (True, False)
    assert SECRET not in f"{fault!r}{fault.message}{fault.detail}"
    assert len(provider.requests) == 1


MIDWAY = [
    Script(ending="eof", ending_at=3),
    Script(ending="close", ending_at=3),
    Script(ending="close", ending_at=3, chunked=False),
    Script(ending="reset", ending_at=3),
    *(Script(insert=((3, name),)) for name in ("invalid_json", "invalid_utf8", "error_event", "named_error_event")),
    Script(insert=((3, "not_an_object"),)),
    Script(insert=((3, "wrong_types"),)),
]


@pytest.mark.parametrize("script", MIDWAY, ids=range(len(MIDWAY)))
async def test_an_answer_that_breaks_off_leaves_its_text_and_an_error(
    client: OpenAIClient, provider: Provider, script: Script
) -> None:
    provider.next(script)
    text, call, fault = await run(client)
    assert fault is not None
    assert (fault.code, fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert text == "".join(script.pieces[:3])
    assert (call.reached, call.accepted, call.finish_reason) == (True, True, None)
    assert SECRET not in f"{fault!r}{fault.message}{fault.detail}"


async def test_an_error_in_the_stream_with_a_client_s_code_is_a_rejection(
    client: OpenAIClient, provider: Provider
) -> None:
    provider.next(Script(insert=((0, f'data: {{"error":{{"message":"{SECRET}","code":400}}}}\n\n'),)))
    _, call, fault = await run(client)
    assert fault is not None
    assert (fault.code, fault.retryable) == (ErrorCode.LLM_REJECTED, False)
    assert (call.reached, call.accepted) == (True, True)


async def test_a_page_in_the_place_of_a_stream_is_an_error(client: OpenAIClient, provider: Provider) -> None:
    provider.next(Script(pieces=(), insert=((0, "garbage_line"),), finish_reason=None, done=False, role_first=False))
    text, _, fault = await run(client)
    assert fault is not None
    assert (text, fault.code) == ("", ErrorCode.LLM_UNAVAILABLE)


async def test_where_nobody_listens_the_provider_was_not_reached(connect: Callable[..., OpenAIClient]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        _, call, fault = await run(connect(f"http://127.0.0.1:{taken.getsockname()[1]}/v1"))
    assert fault is not None
    assert (fault.code, fault.retryable, fault.retry_after_s) == (ErrorCode.LLM_UNAVAILABLE, True, None)
    assert (call.reached, call.accepted) == (False, False)


async def test_a_name_nobody_knows_is_not_reached_either(connect: Callable[..., OpenAIClient]) -> None:
    _, call, fault = await run(connect("http://no-such-host.invalid/v1"))
    assert fault is not None
    assert (fault.code, fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert not call.reached


async def test_a_connection_that_cannot_be_made_in_time_is_unavailable_and_not_silence(
    connect: Callable[..., OpenAIClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stream, "_CONNECT_S", 0.2)
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one connection that nobody accepts; a further one waits for its handshake
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        _, call, fault = await run(connect(f"http://127.0.0.1:{listener.getsockname()[1]}/v1"))
    assert fault is not None
    assert (fault.code, fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert not call.reached


@pytest.mark.parametrize("answer", [b"", b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\n"])
async def test_a_peer_that_hangs_up_before_the_headers_was_reached_and_accepted_nothing(
    connect: Callable[..., OpenAIClient], answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, call, fault = await run(connect(f"http://127.0.0.1:{port}/v1"))
    assert fault is not None
    assert (fault.code, fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert (call.reached, call.accepted) == (True, False)


# --- silence ---


@pytest.mark.parametrize(("ending_at", "accepted", "text"), [(-1, False, ""), (0, True, ""), (2, True, "ab")])
async def test_silence_ends_the_call_and_the_connection(
    connect: Callable[..., OpenAIClient], provider: Provider, ending_at: int, accepted: bool, text: str
) -> None:
    provider.default = Script(pieces=("a", "b", "c"), ending="hang", ending_at=ending_at)
    for timeout_s in (0.3, 8.0):  # with more patience where the machine stood still
        known = len(provider.requests)
        said, call, fault = await run(connect(provider.base_url, timeout_s=timeout_s))
        assert fault is not None
        assert (fault.code, fault.retryable) == (ErrorCode.LLM_TIMEOUT, True)
        if (said, call.accepted) == (text, accepted) and len(provider.requests) > known:
            break
    assert (said, call.reached, call.accepted) == (text, True, accepted)
    ended = await provider.closed_reach(len(provider.requests))
    assert {request.ended for request in ended} == {"client_closed"}


BARE: dict[str, Any] = {"role_first": False, "finish_reason": None, "usage": None}


@pytest.mark.parametrize(
    "sign_of_life",
    [
        Script(reasoning=("hm",) * 7, pieces=("a",), piece_delay_s=0.2),
        Script(pieces=("a",) * 8, piece_delay_s=0.2),
        Script(pieces=(), insert=((0, ": ping\n\n" * 24),), split_every=24, split_gap_s=0.2, **BARE),
    ],
    ids=["reasoning", "text", "comments"],
)
async def test_any_byte_is_a_sign_of_life(
    connect: Callable[..., OpenAIClient], provider: Provider, sign_of_life: Script
) -> None:
    for pace in (1, 5):  # a slower one where the machine itself was silent for too long
        delays = {"piece_delay_s": pace * sign_of_life.delay_before(0), "split_gap_s": pace * sign_of_life.split_gap_s}
        provider.default = msgspec.structs.replace(sign_of_life, **delays)
        begun = time.monotonic()
        text, _, fault = await run(connect(provider.base_url, timeout_s=1.0 * pace))
        if fault is None:
            break
        assert fault.code is ErrorCode.LLM_TIMEOUT
    assert (text, fault) == (sign_of_life.text, None)
    assert time.monotonic() - begun > 1.2 * pace, "it was not slow enough to show anything"


async def test_a_provider_that_stops_reading_the_request_is_silent_too(
    connect: Callable[..., OpenAIClient],
) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client = connect(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", timeout_s=0.3)
        _, call, fault = await run(client, ModelRequest([ChatMessage("user", "x" * 8_000_000)], 10))
    assert fault is not None
    assert fault.code is ErrorCode.LLM_TIMEOUT
    assert (call.reached, call.accepted) == (True, False)


# --- cancelling ---


@pytest.mark.parametrize(("ending_at", "accepted"), [(-1, False), (0, True), (2, True)])
async def test_complaint_01_cancelling_closes_the_connection_at_the_provider(
    client: OpenAIClient, provider: Provider, ending_at: int, accepted: bool
) -> None:
    provider.next(Script(pieces=("a", "b", "c"), ending="hang", ending_at=ending_at))
    call, pieces = ModelCall("m"), list[str]()
    task = asyncio.create_task(client.stream(REQUEST, call, pieces.append))
    await provider.requests_reach(1)
    await until(lambda: call.accepted is accepted and "".join(pieces) == "abc"[: max(ending_at, 0)])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await provider.closed_reach(1)
    assert provider.requests[0].ended == "client_closed"
    assert (call.reached, call.accepted, call.outcome) == (True, accepted, "cancelled")
    await until(lambda: open_sockets(provider) == 0)


async def test_a_call_cancelled_before_it_left_has_not_reached_the_provider(
    client: OpenAIClient, provider: Provider
) -> None:
    at_once = ModelRequest([ChatMessage("user", "[[script:default]]")], 10)
    provider.default = Script(ending="hang", ending_at=-1)
    await run(client, at_once)  # so that a connection is there
    reached = []
    for ticks in range(6):
        call = ModelCall("m")
        task = asyncio.create_task(client.stream(REQUEST, call, print))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        reached.append(call.reached)
        await run(client, at_once)  # what was sent before has come by now
        hanging = [request for request in provider.requests if request.last_user_text == REQUEST.messages[-1].content]
        assert len(hanging) <= sum(reached), "it was sent, and the call does not know"
    assert reached[0] is False
    assert reached[-1] is True


async def test_200_cancelled_calls_leave_no_connection_and_no_task(client: OpenAIClient, provider: Provider) -> None:
    provider.default = Script(pieces=("a", "b"), ending="hang", ending_at=1)
    tasks_before = len(asyncio.all_tasks())
    for _ in range(4):
        tasks = [asyncio.create_task(client.stream(REQUEST, ModelCall("m"), lambda _: None)) for _ in range(50)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await provider.requests_reach(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: open_sockets(provider) == 0)
    await until(lambda: len(asyncio.all_tasks()) == tasks_before)
    provider.default = Script()
    _, _, fault = await run(client)
    assert fault is None


# --- connections ---


@pytest.fixture
def peers() -> Iterator[AppThread]:
    """A server whose answer says which connection asked."""
    met: list[object] = []  # a port may be another's later

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        if request.protocol not in met:
            met.append(request.protocol)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        number = met.index(request.protocol)
        await response.write(b'data: {"choices":[{"delta":{"content":"%d"},"finish_reason":"stop"}]}\n\n' % number)
        await response.write(b"data: [DONE]\n\n")
        return response

    def build() -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        return app

    with AppThread(build) as running:
        yield running


async def test_the_connection_of_a_whole_answer_is_used_again(
    connect: Callable[..., OpenAIClient], peers: AppThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stream, "_DRAIN_S", WAIT_S)
    client = connect(f"{peers.url}/v1")
    asked_by = set()
    for _ in range(8):
        text, _, _ = await run(client)
        asked_by.add(text)
        await until(lambda: client._http._idle)  # what follows the answer is read, and the connection is free
    assert len(asked_by) == 1


async def test_without_keep_alive_every_call_has_its_own(
    connect: Callable[..., OpenAIClient], peers: AppThread
) -> None:
    client = connect(f"{peers.url}/v1", keep_alive=False)
    assert len({(await run(client))[0] for _ in range(4)}) == 4


async def test_a_provider_that_goes_on_after_its_end_does_not_hold_the_answer_up(
    client: OpenAIClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stream, "_DRAIN_S", 0.2)
    provider.next(Script(pieces=("a",), insert=((1, ": ping\n\ndata: [DONE]\n\n"),), ending="hang"))
    text, call, fault = await run(client)
    assert (text, fault, call.finish_reason) == ("a", None, FinishReason.STOP)
    await provider.closed_reach(1)
    assert provider.requests[0].ended == "client_closed"


async def test_closing_waits_for_nobody_and_leaves_no_task(
    connect: Callable[..., OpenAIClient], provider: Provider
) -> None:
    client = connect(provider.base_url)
    provider.next(Script(pieces=("a",), insert=((1, "data: [DONE]\n\n"),), ending="hang"))
    before = len(asyncio.all_tasks())
    await run(client)
    await client.aclose()
    assert len(asyncio.all_tasks()) == before
    await until(lambda: open_sockets(provider) == 0)


async def test_an_idle_connection_that_the_provider_has_closed_is_not_used(
    client: OpenAIClient, provider: Provider
) -> None:
    await run(client)
    provider.stop()
    provider.start()
    await until(lambda: open_sockets(provider) == 0)
    _, _, fault = await run(client)
    assert fault is None


# --- the key ---


class Elsewhere(AppThread):
    """A server that keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(self._application)
        self.asked: list[str] = []

    def _application(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._note)
        return app

    async def _note(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        return web.Response(text="data: [DONE]\n\n")


@pytest.fixture
def elsewhere() -> Iterator[Elsewhere]:
    with Elsewhere() as running:
        yield running


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_with_conversation_or_key(
    client: OpenAIClient, provider: Provider, elsewhere: Elsewhere, status: int
) -> None:
    provider.next(Script(status=status, headers=(("Location", f"{elsewhere.url}/v1/chat/completions"),)))
    text, call, fault = await run(client)
    assert elsewhere.asked == []
    assert fault is not None
    assert (text, fault.code, fault.retryable) == ("", ErrorCode.LLM_UNAVAILABLE, False)
    assert (call.reached, call.accepted) == (True, False)


async def test_nor_is_one_when_the_endpoint_is_checked_at_start(elsewhere: Elsewhere) -> None:
    async def redirect(_request: web.Request) -> web.Response:
        raise web.HTTPPermanentRedirect(f"{elsewhere.url}/v1/models")

    def build() -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", redirect)
        return app

    with AppThread(build) as server:
        llm = LlmSettings(model="openai:scripted", base_url=f"{server.url}/v1", api_key=KEY)
        warning = await check_remote(llm)
    assert elsewhere.asked == []
    assert warning is not None
    assert "redirects" in warning
    assert KEY not in warning


async def test_key_prompt_and_the_provider_s_words_are_in_no_log_and_no_error(
    connect: Callable[..., OpenAIClient],
    provider: Provider,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    client = connect(provider.base_url, timeout_s=0.3)
    said = []
    scripts = [Script(), Script(status=401), Script(status=500), Script(ending="reset", ending_at=2)]
    for script in [*scripts, Script(ending="hang", ending_at=1), Script(insert=((1, "error_event"),))]:
        provider.next(script)
        _, call, fault = await run(client)
        said.append(f"{call!r} {fault!r} {fault and fault.detail} {client!r}")
    provider.stop()
    _, call, fault = await run(client)
    everything = " ".join([*said, repr(fault), caplog.text, *capfd.readouterr()])
    for secret in (KEY, SECRET, "노래해", "turnstone ", "Be brief"):
        assert secret not in everything


# --- Retry-After ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("999999999", 86_400.0),
        ("inf", 86_400.0),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2999 07:28:00 GMT", 86_400.0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)
async def test_retry_after_is_read_in_both_forms_and_within_reason(
    client: OpenAIClient, provider: Provider, value: str, seconds: float | None
) -> None:
    assert parse_retry_after(value) == seconds
    provider.next(Script(status=503, headers=(("Retry-After", value),)))
    _, _, fault = await run(client)
    assert fault is not None
    assert fault.retry_after_s == seconds


async def test_calls_do_not_disturb_each_other(client: OpenAIClient, provider: Provider) -> None:
    def asking(script: str) -> Awaitable[tuple[str, ModelCall, ModelError | None]]:
        return run(client, ModelRequest([ChatMessage("user", f"[[script:{script}]]")], 10))

    answers = await asyncio.gather(
        *(asking(name) for name in ("default", "status_500", "every_byte", "close_midway", "cached") * 8)
    )
    for text, call, fault in answers[0::5] + answers[2::5] + answers[4::5]:
        assert (text, fault) == (Script().text, None)
        assert call.usage is not None
        assert call.usage.prompt_tokens in {25, 100}
    assert [fault and fault.detail for _, _, fault in answers[1::5]] == ["HTTP 500"] * 8
    assert {text for text, _, _ in answers[3::5]} == {"".join(Script().pieces[:3])}
