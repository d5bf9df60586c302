"""The scripted provider and the fake Core do what they say; other tests rely on it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest
from standardwebhooks import Webhook

from tests.support.core import Answer, FakeCore
from tests.support.provider import DEFAULT_PIECES, SCRIPTS, SECRET, Figures, Provider, Script, read_stamps

PROMPT_S = 15.0
"""On a machine that stands still now and then; what is not prompt takes half a minute, or for ever."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


def request_body(text: str = "Hello", *, stream: bool = True) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
    return {**body, "stream_options": {"include_usage": True}} if stream else body


async def call(provider: Provider, text: str = "Hello", *, stream: bool = True) -> tuple[int, list[bytes]]:
    """Status and body of one response, the body as the HTTP chunks it was written in."""
    async with (
        aiohttp.ClientSession() as client,
        client.post(
            f"{provider.base_url}/chat/completions",
            json=request_body(text, stream=stream),
            headers={"Authorization": "Bearer k"},
        ) as response,
    ):
        return response.status, [chunk async for chunk, _ in response.content.iter_chunks() if chunk]


def events(data: bytes) -> list[dict[str, Any]]:
    found = re.findall(rb"^data: ?(.+?)\r?$", data, re.MULTILINE)
    return [json.loads(event) for event in found if event != b"[DONE]"]


def text_of(data: bytes) -> str:
    deltas = [choice["delta"] for event in events(data) for choice in event["choices"]]
    joined = "".join(delta.get("content") or "" for delta in deltas)
    return joined.encode("utf-16", "surrogatepass").decode("utf-16")


async def test_the_usual_answer_has_text_finish_usage_and_done(provider: Provider) -> None:
    status, chunks = await call(provider)
    data = b"".join(chunks)

    assert status == 200
    assert text_of(data) == "".join(DEFAULT_PIECES)
    assert events(data)[-2]["choices"][0]["finish_reason"] == "stop"
    assert events(data)[-1]["usage"] == {"prompt_tokens": 25, "completion_tokens": 6, "total_tokens": 31}
    assert data.endswith(b"data: [DONE]\n\n")
    (record,) = provider.wait_closed()
    assert (record.ended, record.pieces_sent, record.text_sent) == ("completed", 6, "".join(DEFAULT_PIECES))
    assert record.authorization == "Bearer k"
    assert record.messages == [{"role": "user", "content": "Hello"}]


async def test_an_answer_that_is_not_streamed(provider: Provider) -> None:
    provider.next(Script(usage=Figures(completion_tokens=9, cached_tokens=8, reasoning_tokens=4)))
    _, chunks = await call(provider, stream=False)
    answer = json.loads(b"".join(chunks))

    assert answer["choices"][0]["message"]["content"] == "".join(DEFAULT_PIECES)
    assert answer["usage"]["total_tokens"] == 34
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 4}


async def test_events_are_split_anywhere_even_inside_a_character(provider: Provider) -> None:
    provider.next(Script(pieces=("새🐦",), split_every=2))
    _, chunks = await call(provider)

    assert {len(chunk) for chunk in chunks[:-1]} <= {1, 2}
    assert "🐦".encode()[:2] in chunks or "🐦".encode()[1:3] in chunks
    assert text_of(b"".join(chunks)) == "새🐦"


async def test_several_events_come_in_one_write(provider: Provider) -> None:
    provider.next(Script(piece_delay_s=0.005, together=1000))
    _, chunks = await call(provider)

    assert len(chunks) == 1


@pytest.mark.parametrize(
    "name", ["emoji_split", "nul", "crlf", "pings", "odd_deltas", "no_done", "huge_piece", "empty"]
)
async def test_odd_but_correct_streams_carry_their_text(provider: Provider, name: str) -> None:
    _, chunks = await call(provider, f"please [[script:{name}]]")
    data = b"".join(chunks)
    as_parsed = data.replace(b'"delta":null', b'"delta":{}')

    assert text_of(as_parsed) == SCRIPTS[name].text
    if name == "emoji_split":
        assert rb"\ud83d" in data
        assert text_of(data) == "smile: 😀!"


async def test_usage_may_grow_in_every_event(provider: Provider) -> None:
    provider.next(Script(usage_in="every"))
    _, chunks = await call(provider)

    counts = [event["usage"]["completion_tokens"] for event in events(b"".join(chunks))]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 6]


@pytest.mark.parametrize(
    ("script", "status"),
    [(Script(status=status), status) for status in (400, 401, 403, 404, 413, 422, 500, 503)]
    + [(SCRIPTS["status_429"], 429)],
)
async def test_an_error_status_has_a_body_with_the_secret(provider: Provider, script: Script, status: int) -> None:
    provider.next(script)
    answered, chunks = await call(provider)

    assert answered == status
    assert SECRET in b"".join(chunks).decode()
    assert provider.wait_closed()[0].pieces_sent == 0


async def test_a_script_is_chosen_by_marker_then_queue_then_default(provider: Provider) -> None:
    provider.default = Script(pieces=("default",))
    provider.next(Script(pieces=("queued",)))
    provider.named["mine"] = Script(pieces=("named",))

    texts = []
    for prompt in ('x [[script:{"pieces": ["by", "json"], "insert": [[1, "ping"]]}]]', "[[script:mine]]", "", ""):
        _, chunks = await call(provider, prompt)
        texts.append(text_of(b"".join(chunks)))

    assert texts == ["byjson", "named", "queued", "default"]
    status, _ = await call(provider, "[[script:nobody]]")
    assert status == 400


@pytest.mark.parametrize("ending_at", [-1, 0, 3])
async def test_a_hanging_request_notices_at_once_that_its_client_has_gone(provider: Provider, ending_at: int) -> None:
    provider.next(Script(ending="hang", ending_at=ending_at))
    asking = asyncio.create_task(call(provider))
    await asyncio.to_thread(
        provider.requests.wait, lambda records: bool(records) and records[0].pieces_sent == max(ending_at, 0)
    )
    await asyncio.sleep(0.1)
    assert (provider.active, asking.done()) == (1, False)

    asking.cancel()
    closed_at = time.monotonic()
    await asyncio.wait([asking])
    (record,) = await provider.closed_reach(1)

    assert record.ended == "client_closed"
    assert record.ended_at is not None
    assert record.ended_at - closed_at < PROMPT_S
    assert record.pieces_sent == max(ending_at, 0)
    assert provider.active == 0


async def test_a_request_asleep_between_pieces_notices_too(provider: Provider) -> None:
    provider.next(Script(piece_delay_s=(0.0, 30.0)))
    asking = asyncio.create_task(call(provider))
    await asyncio.to_thread(provider.requests.wait, lambda records: bool(records) and records[0].pieces_sent == 1)

    asking.cancel()
    closed_at = time.monotonic()
    (record,) = await provider.closed_reach(1)

    assert (record.ended, record.pieces_sent) == ("client_closed", 1)
    assert record.ended_at is not None
    assert record.ended_at - closed_at < PROMPT_S


@pytest.mark.parametrize("name", ["close_midway", "reset_midway"])
async def test_a_connection_ends_half_way(provider: Provider, name: str) -> None:
    # What a reset leaves unread may be lost, the headers too.
    fault = aiohttp.ClientError if name == "reset_midway" else aiohttp.ClientPayloadError
    with pytest.raises(fault):
        await call(provider, f"[[script:{name}]]")
    (record,) = await provider.closed_reach(1)

    assert (record.ended, record.pieces_sent) == ("cut", 3)


@pytest.mark.parametrize("name", ["eof_midway", "clean_fin_midway"])
async def test_a_body_ends_cleanly_but_too_soon(provider: Provider, name: str) -> None:
    _, chunks = await call(provider, f"[[script:{name}]]")
    data = b"".join(chunks)

    assert text_of(data) == "".join(DEFAULT_PIECES[:3])
    assert b"[DONE]" not in data
    assert b'"finish_reason":"stop"' not in data


async def test_a_reset_before_the_headers(provider: Provider) -> None:
    provider.next(Script(ending="reset", ending_at=-1))
    with pytest.raises(aiohttp.ClientOSError):
        await call(provider)


@pytest.mark.parametrize(
    ("name", "sign"),
    [
        ("broken_garbage_line", b"<html>"),
        ("broken_invalid_json", b'"cut\n'),
        ("broken_invalid_utf8", b"\xff\xfe"),
        ("error_event", b'data: {"error"'),
    ],
)
async def test_a_stream_can_be_broken(provider: Provider, name: str, sign: bytes) -> None:
    _, chunks = await call(provider, f"[[script:{name}]]")

    before, found, _ = b"".join(chunks).partition(sign)
    assert found
    assert text_of(before[: before.rfind(b"\n\n")]) == "".join(DEFAULT_PIECES[:3])


async def test_pieces_are_paced_and_say_when_they_were_sent(provider: Provider) -> None:
    provider.next(Script(pieces=("a", "b", "c", "d"), piece_delay_s=0.02, first_byte_delay_s=0.03, stamp=True))
    begun = time.perf_counter()
    _, chunks = await call(provider)
    stamps = list(read_stamps(b"".join(chunks).decode()))

    soonest = [0.05, 0.07, 0.09, 0.11]  # late on a busy machine, never early but for a timer's resolution
    assert len(stamps) == 4
    assert all(stamp - begun > wait - 0.003 for stamp, wait in zip(stamps, soonest, strict=True))
    assert stamps == sorted(stamps)


async def test_one_connection_serves_many_requests(provider: Provider) -> None:
    opened = 0

    async def count(*_: object) -> None:
        nonlocal opened
        opened += 1

    trace = aiohttp.TraceConfig()
    trace.on_connection_create_end.append(count)
    async with aiohttp.ClientSession(trace_configs=[trace]) as client:
        for _ in range(3):
            async with client.post(f"{provider.base_url}/chat/completions", json=request_body()) as response:
                await response.read()

    assert (opened, len(provider.requests)) == (1, 3)


async def test_a_stopped_provider_refuses_and_comes_back_at_the_same_address() -> None:
    with Provider(Script(ending="hang", ending_at=1)) as provider:
        asking = asyncio.create_task(call(provider))
        await provider.requests_reach(1)
        await asyncio.to_thread(provider.stop)
        with pytest.raises(aiohttp.ClientError):
            await asking
        assert provider.requests[0].ended == "stopped"
        with pytest.raises(aiohttp.ClientConnectorError):
            await call(provider)

        provider.start()
        provider.default = Script()
        status, _ = await call(provider)
        assert status == 200


WEBHOOK_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def post(core: FakeCore, event_id: str, session_id: str, *, signed_with: str = WEBHOOK_SECRET) -> int:
    raw = json.dumps({"type": "usage", "session_id": session_id, "callback_seq": 1})
    now = datetime.now(UTC)
    headers = {
        "webhook-id": event_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(signed_with).sign(event_id, now, raw),
    }
    async with aiohttp.ClientSession() as client, client.post(core.callback_url, data=raw, headers=headers) as answer:
        return answer.status


async def test_core_answers_as_told_and_keeps_what_came() -> None:
    with FakeCore(secret=WEBHOOK_SECRET) as core:
        core.next(Answer(status=503, times=2), session_id=7)
        core.next(Answer(action="reset"))
        with pytest.raises(aiohttp.ClientError):
            await post(core, "msg_1", "8")
        statuses = [await post(core, "msg_2", "7") for _ in range(4)]
        assert await post(core, "msg_1", "8") == 200

        assert statuses == [503, 503, 200, 200]
        assert [delivery.id for delivery in await core.reaches(2)][:2] == ["msg_1", "msg_2"]
        assert [delivery.id for delivery in core.events()] == ["msg_2", "msg_1"]
        assert [delivery.status for delivery in core.by_session()["8"]] == [None, 200]
        assert core.unique_ids() == {"msg_1", "msg_2"}
        assert all(delivery.signature for delivery in core.deliveries)


async def test_core_refuses_a_signature_of_another_secret() -> None:
    with FakeCore(secret=WEBHOOK_SECRET) as core:
        assert await post(core, "msg_1", "7", signed_with="whsec_b3RoZXJvdGhlcm90aGVyb3RoZXI=") == 401
        assert core.deliveries[0].signature is False
        with pytest.raises(TimeoutError):
            await core.reaches(1, timeout=0.05)
