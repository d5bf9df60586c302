"""A judge's client against real endpoints: a scripted one over HTTP, and the small local model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from pydantic import SecretStr

from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.settings import JudgeSettings, load_settings
from app.domain.judging import JudgeClient, UnreadableAnswerError, build_request, judge_turn, read_answer
from app.domain.scoring import Unscored
from app.infrastructure.llm.gbnf import grammar
from app.infrastructure.llm.judge_client import open_judge
from tests.support.judging import answer, task

TASK = task("Sort the names.")
REQUEST = build_request(TASK, model="openai:judge", sample=3)
USAGE = {"prompt_tokens": 900, "completion_tokens": 80, "prompt_tokens_details": {"cached_tokens": 512}}


class Endpoint:
    """An OpenAI-compatible endpoint; ``reply`` makes what it answers, ``seen`` keeps what it was sent."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.running = self.most = 0
        self.reply: Callable[[], web.Response] = lambda: said(answer("Sort the names."))
        self.delay_s = 0.0

    async def handle(self, request: web.Request) -> web.Response:
        self.seen.append(await request.json())
        self.keys.append(request.headers.get("authorization"))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            return self.reply()
        finally:
            self.running -= 1


def said(content: Any, **message: Any) -> web.Response:
    return web.json_response({"choices": [{"message": {"content": content, **message}}], "usage": USAGE})


@pytest_asyncio.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    served = Endpoint()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", served.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    yield served
    await runner.cleanup()


@pytest_asyncio.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def opened(stack: AsyncExitStack, model: str = "openai:judge", **judge: Any) -> JudgeClient:
    return await open_judge(load_settings(judge=JudgeSettings(**judge)), model, stack)


async def test_one_call_asks_by_schema_and_brings_text_and_usage(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    judge = await opened(stack, base_url=endpoint.url, api_key=SecretStr("secret"))
    got = await judge.complete(REQUEST)
    assert read_answer(got.raw, TASK).marks[0].score == 3
    assert got.usage is not None
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.cached_tokens) == (900, 80, 512)
    assert got.latency_ms >= 0
    (body,) = endpoint.seen
    assert endpoint.keys == ["Bearer secret"]
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("judge", 0, 3, 1200)
    assert body["response_format"]["json_schema"]["strict"] is True
    assert body["response_format"]["json_schema"]["schema"] == REQUEST.schema
    assert "stream" not in body


@pytest.mark.parametrize(
    ("status", "code", "is_retryable"),
    [
        (400, ErrorCode.LLM_REJECTED, False),
        (401, ErrorCode.LLM_UNAVAILABLE, False),
        (302, ErrorCode.LLM_UNAVAILABLE, False),
        (429, ErrorCode.LLM_UNAVAILABLE, True),
        (503, ErrorCode.LLM_UNAVAILABLE, True),
    ],
)
async def test_a_status_becomes_a_typed_error_without_the_providers_words(
    endpoint: Endpoint, stack: AsyncExitStack, status: int, code: ErrorCode, is_retryable: bool
) -> None:
    endpoint.reply = lambda: web.Response(status=status, text="PRIVATE", headers={"retry-after": "7"})
    with pytest.raises(ModelError) as raised:
        await (await opened(stack, base_url=endpoint.url)).complete(REQUEST)
    assert (raised.value.code, raised.value.retryable) == (code, is_retryable)
    assert "PRIVATE" not in f"{raised.value} {raised.value.detail}"
    if is_retryable:
        assert raised.value.retry_after_s == 7


@pytest.mark.parametrize(
    "reply",
    [
        lambda: web.Response(text="no JSON"),
        lambda: web.json_response([]),
        lambda: web.json_response({"choices": []}),
        lambda: said(["text"]),
        lambda: web.Response(text="[" * 100_000),
        lambda: web.Response(text=" " * 1_100_000),
    ],
)
async def test_what_is_no_completion_is_an_error_to_be_tried_again(
    endpoint: Endpoint, stack: AsyncExitStack, reply: Callable[[], web.Response]
) -> None:
    endpoint.reply = reply
    with pytest.raises(ModelError) as raised:
        await (await opened(stack, base_url=endpoint.url)).complete(REQUEST)
    assert (raised.value.code, raised.value.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)


async def test_a_refusal_is_an_unreadable_answer_and_no_error(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    endpoint.reply = lambda: said(None, refusal="I will not.")
    judged = await judge_turn(await opened(stack, base_url=endpoint.url), TASK)
    assert isinstance(judged.verdict, Unscored)
    assert judged.calls[0].answer.raw == "I will not."


async def test_a_slow_judge_is_a_timeout_and_an_absent_one_unavailable(
    endpoint: Endpoint, stack: AsyncExitStack
) -> None:
    endpoint.delay_s = 5
    with pytest.raises(ModelError) as slow:
        await (await opened(stack, base_url=endpoint.url, timeout_s=0.2)).complete(REQUEST)
    assert slow.value.code is ErrorCode.LLM_TIMEOUT
    with pytest.raises(ModelError) as absent:
        await (await opened(stack, base_url="http://127.0.0.1:9/v1")).complete(REQUEST)
    assert absent.value.code is ErrorCode.LLM_UNAVAILABLE


async def test_only_so_many_calls_go_on_at_once(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    endpoint.delay_s = 0.05
    judge = await opened(stack, base_url=endpoint.url, concurrency=2)
    await asyncio.gather(*(judge.complete(REQUEST) for _ in range(6)))
    assert (len(endpoint.seen), endpoint.most) == (6, 2)


@pytest.mark.parametrize("model", ["judge", "openai:", ":x", "openai:without-a-key", "nobody:x"])
async def test_a_model_that_cannot_be_used_is_told_with_a_remedy(stack: AsyncExitStack, model: str) -> None:
    with pytest.raises(StartupError) as raised:
        await opened(stack, model)
    assert raised.value.remedy


async def test_other_providers_are_asked_through_langchain(endpoint: Endpoint, stack: AsyncExitStack) -> None:
    def message(_: Any = None) -> web.Response:
        text = answer("Sort the names.")
        usage = {"input_tokens": 700, "output_tokens": 60}
        content = [{"type": "text", "text": text}]
        body = {"id": "m", "type": "message", "role": "assistant", "model": "x", "content": content, "usage": usage}
        return web.json_response({**body, "stop_reason": "end_turn", "stop_sequence": None})

    served = web.Application()

    async def handle(request: web.Request) -> web.Response:
        endpoint.seen.append(await request.json())
        return endpoint.reply()

    served.router.add_post("/v1/messages", handle)
    runner = web.AppRunner(served)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.reply = message
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    judge = await opened(stack, "anthropic:claude-sonnet-4-5", base_url=url, api_key=SecretStr("key"))
    got = await judge.complete(REQUEST)
    assert json.loads(got.raw)["intent"] == "CREATION"
    assert got.usage is not None
    assert got.usage.total_tokens == 760
    endpoint.reply = lambda: web.Response(status=503, text="PRIVATE")
    with pytest.raises(ModelError) as raised:
        await judge.complete(REQUEST)
    assert raised.value.code is ErrorCode.LLM_UNAVAILABLE
    assert "PRIVATE" not in f"{raised.value} {raised.value.detail}"


@pytest.mark.slow
@pytest.mark.model
async def test_the_local_model_holds_to_the_schema(tmp_path: Path, stack: AsyncExitStack) -> None:
    settings = load_settings(data_dir=tmp_path, judge=JudgeSettings(timeout_s=110))
    judge = await open_judge(settings, "local", stack)
    got = await judge.complete(build_request(TASK, model=judge.model, sample=0))
    said = json.loads(got.raw)  # what it says is worth nothing, its form holds
    assert set(said) == {"intent", "criteria", "advice"}
    assert all(1 <= mark["score"] <= 5 for mark in said["criteria"].values())
    assert len(said["criteria"]) == 4
    assert got.usage is not None
    with suppress(UnreadableAnswerError):  # it quotes what nobody wrote
        read_answer(got.raw, TASK)


def test_a_grammar_is_made_of_what_our_schemas_are_made_of_and_of_nothing_else() -> None:
    closed = {"type": "object", "properties": {'a"b': {"enum": [1, "x"]}, "c": {"type": "string"}}}
    root, text = grammar(closed, longest_text=9).splitlines()
    assert root == r'root ::= "{" "\"a\\\"b\": " ("1" | "\"x\"") ", " "\"c\": " text "}"'
    assert text.endswith('{1,9} "\\""')
    whole, few = {"type": "integer"}, '("0" | [1-9] [0-9]{0,3})'
    listed, _ = grammar({"type": "array", "items": whole}, longest_text=9).splitlines()
    assert listed == f'root ::= "[" ({few} (", " {few}){{0,2}})? "]"'
    with pytest.raises(ValueError, match="number"):
        grammar({"type": "number"}, longest_text=9)
