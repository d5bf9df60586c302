"""The whole exam with the real small model on both sides: it answers the candidate, and it judges.

What it writes and how it marks is worth nothing. What has to hold is the way: every turn, the record, the scores that
need no model, and a result that says what is missing instead of guessing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.service import Service
from tests.support.short_documents import store_short_documents
from tests.support.submissions import RIGHT, SPEC
from tests.test_whole_exam import PROBLEM, done, prompts

Start = Callable[..., Service]
TURNS = 3
"""A judgement takes the small model a quarter of a minute, and three tries where it quotes what nobody wrote."""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(900)
async def test_a_whole_exam_with_the_real_small_model(start: Start, core: FakeCore, rows: Rows) -> None:
    service = start(
        llm={"model": "local", "base_url": None, "api_key": None, "max_output_tokens": 24, "timeout_s": 170},
        judge={"model": "local", "timeout_s": 300},
    )
    async with httpx.AsyncClient(base_url=service.url, timeout=60) as rest:
        (await rest.put(f"/api/problems/{SPEC}", json=PROBLEM)).raise_for_status()
        documents = await asyncio.to_thread(service.call, store_short_documents())
        exam = {"problem_text": "Print the sum of the two numbers.", "language": "en", "samples": 1, **documents}
        (await rest.put("/api/exams/1", json=exam)).raise_for_status()
        session = {**new_pair(), "spec_id": SPEC}
        async with connect(service.url) as chat:
            for number, prompt in enumerate(prompts()[:TURNS], start=1):
                await chat.send(type="message", message=prompt, turn_id=f"t{number}", **session)
                seen = await chat.turn(timeout=180)  # the judge's calls are before it in the model's line
                assert seen.end["type"] == "done" and seen.end["usage"]["source"] == "provider"
        taken = await rest.post(
            f"/api/sessions/{seen.session_id}/submissions",
            json={"code": RIGHT, "language": "python", "submission_id": 4711},
        )
        assert taken.status_code == 202, taken.text
        body = await asyncio.to_thread(wait_until, lambda: done(service.url), 700)
        report = await rest.get("/api/submissions/4711/report", params={"language": "en"})
    scores = body["final_scores"]
    assert body["status"] == "DONE" and scores["correctness_score"] == 100 and scores["performance_score"] > 0
    assert (scores["prompt_score"] is None) == (scores["status"] == "PENDING_REVIEW"), scores
    assert report.status_code == 200 and f"step {TURNS}" in report.text
    recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
    await asyncio.to_thread(core.wait_for, lambda posts: recorded <= {p.id for p in posts if p.accepted}, 60)
    events = [event.body for event in core.events()]
    kinds = Counter(event["type"] for event in events)
    assert kinds["message_response"] == kinds["turn_evaluation"] == TURNS and kinds["final_scores"] == 1
    assert [event["callback_seq"] for event in events] == list(range(1, len(events) + 1)), "in order, without a gap"
    judged = Counter(event["turn_log"]["reason"] for event in events if event["type"] == "turn_evaluation")
    assert set(judged) <= {None, "no evidence"}, "nothing else is ever wrong with an answer"
    [made] = rows("SELECT count(*) AS calls, sum(completion_tokens) AS tokens FROM judge_calls")
    print(f"{scores['status']}, turns {dict(judged)}, {made['calls']} calls of a judge, {made['tokens']} tokens")
