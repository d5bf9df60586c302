"""``LangChainClient`` against scripted servers in the providers' own formats, through the real SDKs."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from langchain.chat_models import base
from langchain_openai.chat_models.base import BaseChatOpenAI
from langsmith import utils

from app.core.errors import ErrorCode, ModelError, StartupError
from app.domain.conversation import FinishReason, Usage
from app.domain.model_client import ChatMessage, ModelCall, ModelClient, ModelRequest
from app.infrastructure.llm.langchain_client import LangChainClient
from tests.support.foreign_providers import (
    ANTHROPIC_ERROR,
    ANTHROPIC_PING,
    GOOGLE_ERROR,
    SECRET,
    ForeignProviders,
    Script,
    anthropic_answer,
    anthropic_event,
    google_answer,
    google_event,
    openai_answer,
)

PIECES = ("작은 새가 ", "날아요 🐦‍⬛", "\n\n```py\nx = 1\n```", ' – ünï \\ " .')
REQUEST = ModelRequest(
    [
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "Hello"),
        ChatMessage("assistant", "Hi!"),
        ChatMessage("user", "노래해 줘 🎵"),
    ],
    max_output_tokens=77,
)


class Provider(NamedTuple):
    spec: str
    base_path: str
    answer: Callable[[Sequence[str]], list[bytes]]
    cut_at: int  # writes after which text came, but no end
    error_event: bytes


ANTHROPIC = Provider("anthropic:claude-scripted", "", anthropic_answer, 4, ANTHROPIC_ERROR)
GOOGLE = Provider("google_genai:gemini-scripted", "", google_answer, 2, GOOGLE_ERROR)
OTHER = Provider(
    "openai:gpt-scripted", "/v1", openai_answer, 2, b'data: {"error": {"message": "%s"}}\n\n' % SECRET.encode()
)
ALL = pytest.mark.parametrize("provider", [ANTHROPIC, GOOGLE, OTHER], ids=["anthropic", "google", "other"])
WATCHED = pytest.mark.parametrize("provider", [ANTHROPIC, GOOGLE], ids=["anthropic", "google"])


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "OPENAI_API_KEY", "LANGSMITH_TRACING"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def servers() -> Iterator[ForeignProviders]:
    with ForeignProviders() as running:
        yield running


Connect = Callable[..., LangChainClient]


@pytest.fixture
async def connect(servers: ForeignProviders) -> AsyncIterator[Connect]:
    opened: list[LangChainClient] = []

    def make(provider: Provider, timeout_s: float = 30.0) -> LangChainClient:
        url = servers.url + provider.base_path
        opened.append(LangChainClient(provider.spec, api_key="k-secret", base_url=url, timeout_s=timeout_s))
        return opened[-1]

    yield make
    for client in opened:
        await client.aclose()


async def run(client: ModelClient, request: ModelRequest = REQUEST) -> tuple[list[str], ModelCall]:
    call, pieces = ModelCall(client.model), list[str]()
    await client.stream(request, call, pieces.append)
    return pieces, call


async def fail(client: ModelClient) -> tuple[ModelError, list[str], ModelCall]:
    call, pieces = ModelCall(client.model), list[str]()
    with pytest.raises(ModelError) as caught:
        await client.stream(REQUEST, call, pieces.append)
    assert SECRET not in str(caught.value) + caught.value.message + caught.value.detail
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback shows no more"
    return caught.value, pieces, call


@ALL
async def test_text_comes_exactly_as_sent_and_ends(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES))
    pieces, call = await run(connect(provider))
    assert pieces == list(PIECES)
    assert call.text_chars == len("".join(PIECES))
    assert call.finish_reason is FinishReason.STOP
    assert call.reached and call.accepted
    assert call.model == provider.spec


@ALL
async def test_characters_split_over_reads_stay_whole(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    body = b"".join(provider.answer(PIECES))
    servers.script = Script([body[at : at + 7] for at in range(0, len(body), 7)])
    pieces, call = await run(connect(provider))
    assert pieces == list(PIECES)
    assert call.finish_reason is FinishReason.STOP


async def test_anthropic_is_asked_for_the_conversation_and_the_cap(servers: ForeignProviders, connect: Connect) -> None:
    servers.script = Script(anthropic_answer(PIECES))
    await run(connect(ANTHROPIC))
    asked = servers.requests[0]
    assert asked.path == "/v1/messages"
    assert asked.body["model"] == "claude-scripted"
    assert asked.body["max_tokens"] == 77
    assert asked.body["stream"] is True
    assert asked.body["system"] == "Be brief."
    assert [(message["role"], message["content"]) for message in asked.body["messages"]] == [
        ("user", "Hello"),
        ("assistant", "Hi!"),
        ("user", "노래해 줘 🎵"),
    ]


async def test_google_is_asked_for_the_conversation_and_the_cap(servers: ForeignProviders, connect: Connect) -> None:
    servers.script = Script(google_answer(PIECES))
    await run(connect(GOOGLE))
    asked = servers.requests[0]
    assert asked.path == "/v1beta/models/gemini-scripted:streamGenerateContent"
    assert asked.body["generationConfig"]["maxOutputTokens"] == 77
    assert asked.body["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert [(content["role"], content["parts"]) for content in asked.body["contents"]] == [
        ("user", [{"text": "Hello"}]),
        ("model", [{"text": "Hi!"}]),
        ("user", [{"text": "노래해 줘 🎵"}]),
    ]


@ALL
async def test_no_text_holds_half_a_character_or_nul(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    """JSON can say both, and PostgreSQL stores neither."""
    escapes = {b"HIGH": rb"\ud83d", b"LOW": rb"\ude00", b"NUL": rb"\u0000"}
    writes = provider.answer(["aNULb", "cHIGH", "LOWd", "eLOWf", "HIGH"])
    for name, escape in escapes.items():
        writes = [write.replace(name, escape) for write in writes]
    servers.script = Script(writes)
    pieces, call = await run(connect(provider))
    assert "".join(pieces) == "a\N{REPLACEMENT CHARACTER}bc😀de\N{REPLACEMENT CHARACTER}f\N{REPLACEMENT CHARACTER}"
    assert call.text_chars == len("".join(pieces))
    for piece in pieces:
        piece.encode()


@pytest.mark.parametrize(
    ("provider", "ref"),
    [(ANTHROPIC, "msg_1"), (GOOGLE, "g-1"), (OTHER, None)],  # LangChain's package for the last passes no id on
    ids=["anthropic", "google", "other"],
)
async def test_the_call_has_the_provider_s_own_id(
    provider: Provider, ref: str | None, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES), headers={"request-id": "req-7"})
    _, call = await run(connect(provider))
    assert call.provider_ref == ref


async def test_the_id_that_a_package_passes_on_is_the_call_s(
    servers: ForeignProviders, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "_convert_chunk_to_generation_chunk"
    convert: Callable[..., Any] = getattr(BaseChatOpenAI, name)

    def convert_with_id(self: Any, chunk: dict[str, Any], *rest: Any) -> Any:
        converted = convert(self, chunk, *rest)
        if converted is not None:
            converted.message.id = chunk["id"]
        return converted

    monkeypatch.setattr(BaseChatOpenAI, name, convert_with_id)
    servers.script = Script(OTHER.answer(PIECES))
    _, call = await run(connect(OTHER))
    assert call.provider_ref == "c1"


@ALL
async def test_an_id_that_is_none_is_not_made_up(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    writes = provider.answer(PIECES)
    for said in (b'"msg_1"', b'"g-1"', b'"c1"'):
        writes = [write.replace(said, rb'"\u0000"') for write in writes]
    servers.script = Script(writes)
    pieces, call = await run(connect(provider))
    assert (pieces, call.provider_ref) == (list(PIECES), None)


@WATCHED
async def test_a_call_that_is_refused_has_the_id_of_its_request(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(status=429, headers={"x-request-id": "req-7"})
    _, _, call = await fail(connect(provider))
    assert call.provider_ref == "req-7"


# --- usage -------------------------------------------------------------------------------------------------------


async def test_anthropic_usage_counts_cache_and_thinking_once(servers: ForeignProviders, connect: Connect) -> None:
    servers.script = Script(
        anthropic_answer(
            PIECES,
            thinking=["hidden ", "thought"],
            start_usage={
                "input_tokens": 25,
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 300,
                "output_tokens": 1,
            },
            end_usage={"output_tokens": 90, "output_tokens_details": {"thinking_tokens": 70}},
        )
    )
    pieces, call = await run(connect(ANTHROPIC))
    assert pieces == list(PIECES)
    assert call.usage == Usage(1325, 90, cached_tokens=1000, reasoning_tokens=70, source="provider")
    assert call.usage_complete


async def test_anthropic_cumulative_counts_are_not_summed(servers: ForeignProviders, connect: Connect) -> None:
    start = {"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 3}
    writes = anthropic_answer(
        PIECES, start_usage=start, end_usage={"input_tokens": 30, "cache_read_input_tokens": 100, "output_tokens": 40}
    )
    early = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {**start, "output_tokens": 20}}
    servers.script = Script([*writes[:4], anthropic_event(early), *writes[4:]])
    _, call = await run(connect(ANTHROPIC))
    assert call.usage == Usage(130, 40, cached_tokens=100, source="provider")
    assert call.usage_complete


async def test_google_cumulative_counts_are_not_summed(servers: ForeignProviders, connect: Connect) -> None:
    servers.script = Script(google_answer(PIECES, thinking=["hidden ", "thought"], prompt=120, cached=100))
    pieces, call = await run(connect(GOOGLE))
    assert pieces == list(PIECES)
    assert call.usage == Usage(120, 4 * 4 + 2 * 10, cached_tokens=100, reasoning_tokens=20, source="provider")
    assert call.usage_complete


async def test_google_corrects_its_prompt_count_at_the_end(servers: ForeignProviders, connect: Connect) -> None:
    first, last = google_answer(PIECES[:1], prompt=500), google_answer(PIECES[1:2], prompt=480, per_piece=9)
    unfinished = google_answer(PIECES[:2], prompt=500)[0]
    assert first != [unfinished]
    servers.script = Script([unfinished, *last])
    _, call = await run(connect(GOOGLE))
    assert call.usage == Usage(480, 9, source="provider")


async def test_another_provider_counts_by_its_chunks(servers: ForeignProviders, connect: Connect) -> None:
    said = {
        "prompt_tokens": 120,
        "completion_tokens": 50,
        "total_tokens": 170,
        "prompt_tokens_details": {"cached_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 30},
    }
    servers.script = Script(openai_answer(PIECES, usage=said))
    _, call = await run(connect(OTHER))
    assert call.usage == Usage(120, 50, cached_tokens=100, reasoning_tokens=30, source="provider")
    assert call.usage_complete


@pytest.mark.parametrize("count", [-5, 5_000_000_000, 1.5, [], True])
@pytest.mark.parametrize("where", ["prompt", "completion"])
async def test_figures_that_cannot_be_meant_are_no_usage(
    servers: ForeignProviders, connect: Connect, count: object, where: str
) -> None:
    name = {"prompt": "promptTokenCount", "completion": "candidatesTokenCount"}[where]
    figures = {"promptTokenCount": 9, "candidatesTokenCount": 9, name: count}
    writes = google_answer(PIECES)
    last = {"candidates": [{"content": {"parts": [{"text": "."}], "role": "model"}, "finishReason": "STOP"}]}
    servers.script = Script([*writes[:-1], google_event({**last, "usageMetadata": figures})])
    call = ModelCall("google")
    with suppress(ModelError):  # the SDK itself takes offence at some
        await connect(GOOGLE).stream(REQUEST, call, lambda _: None)
    assert not call.usage_complete
    assert call.usage is None or 0 < call.usage.total_tokens < 1_000


async def test_no_figures_are_no_usage(servers: ForeignProviders, connect: Connect) -> None:
    bare = {"candidates": [{"content": {"parts": [{"text": "hi"}], "role": "model"}, "finishReason": "STOP"}]}
    servers.script = Script([google_event(bare)])
    pieces, call = await run(connect(GOOGLE))
    assert pieces == ["hi"]
    assert call.usage is None and not call.usage_complete


# --- endings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "said", "reason"),
    [
        (ANTHROPIC, "end_turn", FinishReason.STOP),
        (ANTHROPIC, "stop_sequence", FinishReason.STOP),
        (ANTHROPIC, "max_tokens", FinishReason.LENGTH),
        (ANTHROPIC, "model_context_window_exceeded", FinishReason.LENGTH),
        (ANTHROPIC, "refusal", FinishReason.REFUSED),
        (GOOGLE, "STOP", FinishReason.STOP),
        (GOOGLE, "MAX_TOKENS", FinishReason.LENGTH),
        (GOOGLE, "SAFETY", FinishReason.REFUSED),
        (GOOGLE, "RECITATION", FinishReason.REFUSED),
        (GOOGLE, "BLOCKLIST", FinishReason.REFUSED),
        (GOOGLE, "PROHIBITED_CONTENT", FinishReason.REFUSED),
        (GOOGLE, "SPII", FinishReason.REFUSED),
        (OTHER, "stop", FinishReason.STOP),
        (OTHER, "length", FinishReason.LENGTH),
        (OTHER, "content_filter", FinishReason.REFUSED),
    ],
)
async def test_finish_reasons(
    provider: Provider, said: str, reason: FinishReason, servers: ForeignProviders, connect: Connect
) -> None:
    key = "stop_reason" if provider is ANTHROPIC else "finish_reason"
    answer: Callable[..., list[bytes]] = provider.answer
    servers.script = Script(answer(PIECES, **{key: said}))
    _, call = await run(connect(provider))
    assert call.finish_reason is reason


async def test_a_prompt_google_blocks_is_refused(servers: ForeignProviders, connect: Connect) -> None:
    blocked = {
        "promptFeedback": {"blockReason": "PROHIBITED_CONTENT"},
        "usageMetadata": {"promptTokenCount": 40, "totalTokenCount": 40},
    }
    servers.script = Script([google_event(blocked)])
    pieces, call = await run(connect(GOOGLE))
    assert pieces == []
    assert call.finish_reason is FinishReason.REFUSED
    assert call.usage == Usage(40, 0, source="provider")
    assert call.usage_complete


# --- failures ----------------------------------------------------------------------------------------------------


@ALL
@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, ErrorCode.LLM_REJECTED, False),
        (404, ErrorCode.LLM_REJECTED, False),
        (413, ErrorCode.LLM_REJECTED, False),
        (422, ErrorCode.LLM_REJECTED, False),
        (401, ErrorCode.LLM_UNAVAILABLE, False),
        (403, ErrorCode.LLM_UNAVAILABLE, False),
        (429, ErrorCode.LLM_UNAVAILABLE, True),
        (500, ErrorCode.LLM_UNAVAILABLE, True),
        (503, ErrorCode.LLM_UNAVAILABLE, True),
        (529, ErrorCode.LLM_UNAVAILABLE, True),
    ],
)
async def test_statuses(
    provider: Provider,
    status: int,
    code: ErrorCode,
    retryable: bool,
    servers: ForeignProviders,
    connect: Connect,
) -> None:
    servers.script = Script(status=status, headers={"Retry-After": "7"})
    error, pieces, call = await fail(connect(provider))
    assert (error.code, error.retryable) == (code, retryable)
    assert error.retry_after_s == (7.0 if retryable else None)
    assert str(status) in error.detail
    assert pieces == [] and call.reached and not call.accepted and call.usage is None
    await asyncio.sleep(0.05)
    assert len(servers.requests) == 1, "one try: the caller decides about more"


@WATCHED
async def test_no_connection_is_unavailable_and_reaches_nobody(provider: Provider) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        client = LangChainClient(provider.spec, api_key="k", base_url=url, timeout_s=30)
        error, _, call = await fail(client)
    assert (error.code, error.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert not call.reached and not call.accepted
    await client.aclose()


@ALL
@pytest.mark.parametrize("how", ["cut", "ended", "error event", "malformed"])
async def test_broken_streams(provider: Provider, how: str, servers: ForeignProviders, connect: Connect) -> None:
    part = provider.answer(PIECES)[: provider.cut_at]
    servers.script = {
        "cut": Script(part, then="cut", pause_s=0.01),
        "ended": Script(part, pause_s=0.01),
        "error event": Script([*part, provider.error_event], pause_s=0.01),
        "malformed": Script([*part, b"event: content_block_delta\ndata: {broken\n\n"], pause_s=0.01),
    }[how]
    error, pieces, call = await fail(connect(provider))
    assert (error.code, error.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert pieces == list(PIECES[:2]), "what came before stays"
    assert call.accepted and call.finish_reason is None and not call.usage_complete
    assert len(servers.requests) == 1


async def meet_silence(
    servers: ForeignProviders, connect: Connect, provider: Provider, script: Script, before: Sequence[str]
) -> ModelCall:
    """A call that ends by silence after these pieces; one more, with more patience, where the machine stood still."""
    servers.script, tries = script, 0
    for timeout_s in (0.4, 8.0):
        tries += 1
        begun, known = time.monotonic(), len(servers.requests)
        error, pieces, call = await fail(connect(provider, timeout_s))
        assert timeout_s <= time.monotonic() - begun < timeout_s + 20
        assert (error.code, error.retryable) == (ErrorCode.LLM_TIMEOUT, True)
        if call.reached and pieces == list(before) and len(servers.requests) > known:
            break
    assert pieces == list(before)
    seen = await asyncio.to_thread(servers.wait_ended, len(servers.requests) - 1)
    assert seen.ended == "client_closed"
    assert len(servers.requests) <= tries, "each asks once"
    return call


@ALL
async def test_no_answer_at_all_is_silence(provider: Provider, servers: ForeignProviders, connect: Connect) -> None:
    call = await meet_silence(servers, connect, provider, Script(hang_before=True), [])
    assert call.reached and not call.accepted


@ALL
async def test_silence_within_an_answer(provider: Provider, servers: ForeignProviders, connect: Connect) -> None:
    script = Script(provider.answer(PIECES)[: provider.cut_at], then="hang")
    call = await meet_silence(servers, connect, provider, script, PIECES[:2])
    assert call.accepted


async def goes_on(servers: ForeignProviders, connect: Connect, provider: Provider, writes: Sequence[bytes]) -> None:
    """The answer comes whole; at a slower pace where the machine itself was silent for too long."""
    for pace in (1, 4):
        servers.script = Script(writes, pause_s=0.2 * pace)
        pieces, call = list[str](), ModelCall(provider.spec)
        try:
            await connect(provider, timeout_s=1.5 * pace).stream(REQUEST, call, pieces.append)
        except ModelError as error:
            assert (error.code, pace) == (ErrorCode.LLM_TIMEOUT, 1)
        else:
            break
    assert pieces == list(PIECES)


@pytest.mark.slow
async def test_heartbeats_and_thinking_are_no_silence(servers: ForeignProviders, connect: Connect) -> None:
    pings = [ANTHROPIC_PING] * 10
    writes = anthropic_answer(PIECES, thinking=list("abcdefghij"))
    await goes_on(servers, connect, ANTHROPIC, [writes[0], *pings, *writes[1:]])


async def test_google_thinking_is_no_silence(servers: ForeignProviders, connect: Connect) -> None:
    await goes_on(servers, connect, GOOGLE, google_answer(PIECES, thinking=list("abcdefghij")))


# --- cancelling --------------------------------------------------------------------------------------------------


async def cancel_and_see(servers: ForeignProviders, running: asyncio.Task[None]) -> None:
    """Cancel, and wait until the server has seen the connection close: long before silence would have closed it."""
    begun = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    seen = await asyncio.to_thread(servers.wait_ended)
    assert seen.ended == "client_closed" and seen.ended_at is not None
    assert seen.ended_at - begun < 15


@ALL
async def test_cancel_before_the_answer_closes_the_connection(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(hang_before=True)
    client, call = connect(provider), ModelCall(provider.spec)
    running = asyncio.create_task(client.stream(REQUEST, call, list[str]().append))
    await asyncio.to_thread(servers.wait_written, 0)
    await cancel_and_see(servers, running)
    assert call.reached and not call.accepted


@ALL
async def test_cancel_within_the_answer_closes_the_connection(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES)[: provider.cut_at], then="hang")
    client, call, pieces = connect(provider), ModelCall(provider.spec), list[str]()
    running = asyncio.create_task(client.stream(REQUEST, call, pieces.append))
    await asyncio.to_thread(servers.wait_written, provider.cut_at)
    while len(pieces) < 2:
        await asyncio.sleep(0.005)
    await cancel_and_see(servers, running)
    assert pieces == list(PIECES[:2]) and call.accepted and call.finish_reason is None


@ALL
async def test_cancel_between_two_pieces_is_never_lost(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES)[: provider.cut_at], then="hang")
    client = connect(provider)
    for _ in range(20):
        pieces = list[str]()
        running = asyncio.create_task(client.stream(REQUEST, ModelCall(provider.spec), pieces.append))
        while not pieces:
            await asyncio.sleep(0)
        running.cancel()
        async with asyncio.timeout(15):  # half of what would end it anyway
            await asyncio.wait([running])
        assert running.cancelled()


async def test_cancel_keeps_what_anthropic_said_at_the_start(servers: ForeignProviders, connect: Connect) -> None:
    writes = anthropic_answer(
        PIECES, start_usage={"input_tokens": 25, "cache_read_input_tokens": 100, "output_tokens": 1}
    )
    servers.script = Script(writes[:1], then="hang")
    client, call = connect(ANTHROPIC), ModelCall(ANTHROPIC.spec)
    running = asyncio.create_task(client.stream(REQUEST, call, list[str]().append))
    while call.usage is None:
        await asyncio.sleep(0.005)
    await cancel_and_see(servers, running)
    assert call.usage == Usage(125, 1, cached_tokens=100, source="provider")
    assert not call.usage_complete


@WATCHED
async def test_a_failing_sink_closes_the_connection_too(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES)[: provider.cut_at], then="hang")

    def emit(_: str) -> None:
        raise LookupError("the turn is gone")

    with pytest.raises(LookupError):
        await connect(provider).stream(REQUEST, ModelCall(provider.spec), emit)
    seen = await asyncio.to_thread(servers.wait_ended)
    assert seen.ended == "client_closed"


@ALL
async def test_calls_at_once_do_not_mix(provider: Provider, servers: ForeignProviders, connect: Connect) -> None:
    servers.script = Script(provider.answer(PIECES), pause_s=0.01)
    client = connect(provider)
    results = await asyncio.gather(*(run(client) for _ in range(12)))
    assert all(pieces == list(PIECES) for pieces, _ in results)
    assert all(call.finish_reason is FinishReason.STOP for _, call in results)
    if provider is not OTHER:
        assert len({(call.usage, call.usage_complete) for _, call in results}) == 1
        assert results[0][1].usage_complete


@WATCHED
async def test_closing_one_client_leaves_another_of_the_same_model(
    provider: Provider, servers: ForeignProviders, connect: Connect
) -> None:
    servers.script = Script(provider.answer(PIECES))
    first, second = connect(provider), connect(provider)
    await run(first)
    await first.aclose()
    assert (await run(second))[0] == list(PIECES)


def _forget_environment() -> None:
    utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # an lru_cache behind overloads


@ALL
async def test_tracing_by_environment_sends_nothing_elsewhere(
    provider: Provider, servers: ForeignProviders, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ForeignProviders() as tracer:
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
        monkeypatch.setenv("LANGSMITH_ENDPOINT", tracer.url)
        monkeypatch.setenv("LANGSMITH_API_KEY", "ls-key")
        _forget_environment()
        try:
            assert utils.tracing_is_enabled(), "the environment asks for it"
            servers.script = Script(provider.answer(PIECES))
            await run(connect(provider))
            await asyncio.sleep(1.0)  # the tracer sends in the background
        finally:
            monkeypatch.undo()
            _forget_environment()
        assert tracer.requests == []


# --- start -------------------------------------------------------------------------------------------------------


def start_error(spec: str, api_key: str | None = "k") -> StartupError:
    with pytest.raises(StartupError) as caught:
        LangChainClient(spec, api_key=api_key, base_url=None, timeout_s=5)
    return caught.value


@pytest.mark.parametrize("spec", ["anthropic", "claude-sonnet-4-5", ":claude", "anthropic:", ""])
def test_a_model_without_provider_is_explained(spec: str) -> None:
    error = start_error(spec)
    assert "TURNSTONE_LLM__MODEL" in error.problem
    assert "provider:model" in error.remedy and "anthropic:" in error.remedy


def test_an_unknown_provider_is_explained() -> None:
    error = start_error("antropic:claude")
    assert "antropic:claude" in error.problem
    assert "anthropic" in error.remedy and "google_genai" in error.remedy


def test_a_provider_whose_package_is_missing_is_explained() -> None:
    error = start_error("bedrock_converse:claude")
    assert "langchain-aws" in error.problem and "langchain-aws" in error.remedy


@pytest.mark.parametrize("module", ["langchain.chat_models", "langchain_anthropic"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    base._get_chat_model_creator.cache_clear()  # LangChain remembers what it once found
    assert "turnstone[providers]" in start_error("anthropic:claude").remedy


@WATCHED
def test_a_missing_key_is_explained(provider: Provider) -> None:
    assert "TURNSTONE_LLM__API_KEY" in start_error(provider.spec, api_key=None).remedy


def test_it_is_a_model_client() -> None:
    client: ModelClient = LangChainClient("anthropic:claude", api_key="k", base_url=None, timeout_s=5)
    assert client.model == "anthropic:claude"
