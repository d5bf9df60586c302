"""`turnstone demo` on an empty directory: everything a stranger needs, with the real small model."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.chat import Command, TurnSeen, connect, new_pair, processes_of, wait_until
from tests.support.service import ServiceProcess, running

pytestmark = pytest.mark.model


@pytest.fixture
def data_dir(scratch: Path) -> Iterator[Path]:
    """A directory that does not exist yet."""
    path = scratch / "demo"
    yield path
    for process in processes_of(path):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


def core_events(url: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(get(f"{url}/demo/core/events"))["items"]
    return items


async def ask(url: str) -> TurnSeen:
    async with connect(url) as chat:
        await chat.send(type="message", message="Say hello in one word.", turn_id="t1", **new_pair())
        return await chat.turn(timeout=90)


def open_demo(stack: ExitStack, data_dir: Path) -> ServiceProcess:
    env = {"TURNSTONE_DATA_DIR": str(data_dir), "TURNSTONE_PORT": "0", "TURNSTONE_LLM__MAX_OUTPUT_TOKENS": "12"}
    return stack.enter_context(running(Command("demo", env=env))).wait_ready()


@pytest.mark.slow
def test_the_demo_answers_stops_and_starts_again_also_after_a_kill(data_dir: Path) -> None:
    with ExitStack() as stack:
        demo = open_demo(stack, data_dir)
        for what in ("chat page", "API", "WebSocket", "Core receiver"):
            assert what in demo.output
        assert "<html" in get(f"{demo.url}/")
        assert core_events(demo.url) == []

        turn = asyncio.run(ask(demo.url))
        assert turn.end["type"] == "done", turn.end
        assert turn.text.strip()
        assert turn.end["usage"]["source"] == "provider"
        assert 0 < turn.end["usage"]["completion_tokens"] <= 12

        told = wait_until(lambda: (events := core_events(demo.url))[1:] and events)
        assert [event["body"]["type"] for event in told] == ["usage", "message_response"]
        usage, response = (event["body"] for event in told)
        assert {name: usage[name] for name in turn.end["usage"]} == turn.end["usage"]
        assert response["ai_message"] == turn.text
        assert json.loads(get(f"{demo.url}/demo/core/events?after={told[0]['n']}"))["items"] == told[1:]

        assert demo.stop(signal.SIGINT) == 0, demo.output
        assert "Traceback" not in demo.output
        assert processes_of(data_dir) == []

        demo = open_demo(stack, data_dir)
        session_id = turn.started["session_id"]
        stored = json.loads(get(f"{demo.url}/api/sessions/{session_id}/messages"))["items"]
        assert [message["content"] for message in stored] == ["Say hello in one word.", turn.text]

        demo.kill()
        demo = open_demo(stack, data_dir)
        assert json.loads(get(f"{demo.url}/api/sessions/{session_id}"))["total_tokens"] > 0
        assert demo.stop(signal.SIGINT) == 0
    assert processes_of(data_dir) == []
