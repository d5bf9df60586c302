"""A whole exam, from the problem that Core sets to the report that a grader reads, over two real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import Command, connect, environment, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.judge import ScriptedJudge
from tests.support.provider import Provider, Script
from tests.support.service import Service, running
from tests.support.submissions import RIGHT, SPEC, everything_once, judge_settings

Start = Callable[..., Service]
PROBLEM = {
    "title": "Sum",
    "statement": {"en": "Print the sum of the two numbers of a line; they have at most 1000 digits each."},
    "languages": ["python", "c"],
    "cases": [
        {"name": "1", "group": "SAMPLE", "input": "1 2\n", "output": "3\n"},
        {"name": "2", "group": "PUBLIC", "input": "10 -4\n", "output": "6\n", "weight": 2},
        {"name": "3", "group": "PRIVATE", "input": "1000000000000 1\n", "output": "1000000000001\n", "weight": 3},
    ],
    "references": [{"language": "python", "source": "print(sum(map(int, input().split())))\n"}],
}
TURNS = 20
MOST_CALLS = 45


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running_judge:
        yield running_judge


def prompts() -> list[str]:
    """What a candidate asks in twenty turns, no two alike."""
    asked = [
        "Write a Python function that adds the two numbers of a line; they have at most 1000 digits each.",
        "Two numbers may be negative. Show me how the sign is handled, with -4 and 10 as an example.",
        "입력이 한 줄에 두 개가 아니면 어떻게 되나요? 예외 처리를 추가해 주세요.",
        "Why is int() fast enough for 1000 digits? Name its complexity.",
        "이제 함수로 나누고 이름을 읽기 쉽게 바꿔 주세요.",
    ]
    return [f"{asked[number % len(asked)]} (step {number + 1})" for number in range(TURNS)]


async def talk(urls: tuple[str, str], session: dict[str, Any]) -> str:
    """Every turn on the other process than the one before; returns the session's id."""
    session_id = ""
    for number, prompt in enumerate(prompts(), start=1):
        async with connect(urls[number % 2]) as chat:
            seen = await chat.ask(prompt, f"t{number}", **session)
        assert seen.end["type"] == "done" and seen.started["turn"] == number
        session_id = seen.started["session_id"]
    return session_id


async def follow(url: str, session_id: str, frames: list[dict[str, Any]]) -> None:
    """Take down what a candidate is told of the submission, until it is done."""
    async with connect(url) as chat:
        await chat.send(type="follow", session_id=session_id)
        while not frames or frames[-1]["status"] != "DONE":
            frame = await chat.receive(60)
            if frame["type"] == "submission":
                frames.append(frame)


async def test_an_exam_of_twenty_turns_from_its_problem_to_its_report(
    settings: Settings, provider: Provider, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    provider.default = Script(pieces=["Use ", "int(). ", "다음은 ", "예시입니다: ```python\nprint(1)\n```"])
    env = environment(change(settings, judge=judge_settings(judge)), TURNSTONE_PORT="0")
    with running(Command("serve", env=env)) as one, running(Command("serve", env=env)) as other:
        for process in (one, other):
            await asyncio.to_thread(process.wait_ready)
        frames: list[dict[str, Any]] = []
        async with httpx.AsyncClient(base_url=one.url, timeout=60) as rest, asyncio.TaskGroup() as group:
            put = await rest.put(f"/api/problems/{SPEC}", json=PROBLEM)
            assert put.status_code == 201, put.text
            exam = {"problem_text": PROBLEM["statement"]["en"], "language": "en"}  # type: ignore[index]
            (await rest.put("/api/exams/1", json=exam)).raise_for_status()
            session_id = await talk((one.url, other.url), {**new_pair(), "spec_id": SPEC})
            following = group.create_task(follow(other.url, session_id, frames))
            await asyncio.sleep(0.3)
            handed_in = {"code": RIGHT, "language": "python", "submission_id": 4711}
            for _ in range(2):  # Core did not hear of the first one
                taken = await rest.post(f"/api/sessions/{session_id}/submissions", json=handed_in)
                assert taken.status_code == 202, taken.text
            body = await asyncio.to_thread(wait_until, lambda: done(other.url), 90)
            await asyncio.wait_for(following, 30)
            pages = {
                language: await rest.get("/api/submissions/4711/report", params={"language": language})
                for language in ("en", "ko")
            }
        check_scores(body)
        check_frames(frames)
        check_report(pages)
        recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
        await asyncio.to_thread(core.wait_for, lambda posts: recorded <= {p.id for p in posts if p.accepted}, 30)
    events = [event.body for event in core.events()]
    everything_once(rows, events, 1)
    kinds = Counter(event["type"] for event in events)
    assert kinds["message_response"] == kinds["turn_evaluation"] == TURNS and kinds["final_scores"] == 1
    assert [event["callback_seq"] for event in events] == list(range(1, len(events) + 1)), "in order, without a gap"
    made = Counter((call.kind, call.seed >= 100) for call in judge.calls)
    assert TURNS + 4 <= len(judge.calls) <= MOST_CALLS, made
    explained = command("score", "explain", "4711", env=env)
    assert explained.returncode == 0, explained.stdout + explained.stderr
    shown = command("usage", "exam", "1", env=env)
    assert shown.returncode == 0 and "submissions" in shown.stdout, shown.stdout + shown.stderr


def done(url: str) -> dict[str, Any] | None:
    """The submission, once it is evaluated; by way of any process."""
    body: dict[str, Any] = httpx.get(f"{url}/api/submissions/4711", timeout=30).json()
    return body if body["status"] in {"DONE", "FAILED"} else None


def check_scores(body: dict[str, Any]) -> None:
    scores = body["final_scores"]
    assert (body["status"], scores["status"], body["revision"]) == ("DONE", "SCORED", 1)
    assert (scores["prompt_score"], scores["correctness_score"]) == (80, 100)
    expected = 0.4 * scores["prompt_score"] + 0.4 * scores["correctness_score"] + 0.2 * scores["performance_score"]
    assert scores["total_score"] == pytest.approx(expected, abs=1e-9)
    assert list(body["turn_scores"]) == [str(number) for number in range(1, TURNS + 1)]


def check_frames(frames: list[dict[str, Any]]) -> None:
    percents = [frame["percent"] for frame in frames]
    assert percents == sorted(percents) and frames[-1]["percent"] == 100
    done = [(frame["cases_done"], frame["cases_total"]) for frame in frames]
    assert done == sorted(done) and done[-1][0] == done[-1][1] > 0
    assert {frame["submission_id"] for frame in frames} == {4711}
    told = {key for frame in frames for key in frame}
    assert not {key for key in told if "score" in key}, "a candidate is told no score"


def check_report(pages: dict[str, httpx.Response]) -> None:
    for language, page in pages.items():
        assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
        assert f'lang="{language}"' in page.text and "step 20" in page.text
        assert "<script" not in page.text and "1000000000001" not in page.text, "a private case's answer"


def command(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )
