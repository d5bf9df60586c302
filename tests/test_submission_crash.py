"""kill -9 while submissions are evaluated, with real processes: none is lost, no step made twice, Core told once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import AsyncExitStack

import httpx
import pytest

from app.core.settings import Settings
from app.domain.submission import Node
from tests.conftest import Rows, change
from tests.support.chat import Command, environment, wait_until
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, JudgeSeen, ScriptedJudge
from tests.support.service import running
from tests.support.submissions import (
    ONE_CASE,
    SLEEPING,
    asked_twice,
    everything_once,
    gate,
    hand_in,
    judge_settings,
    put_problem,
    steps,
)

PATIENCE_S = 90.0


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running_judge:
        yield running_judge


@pytest.fixture
def env(settings: Settings, judge: ScriptedJudge, rows: Rows) -> dict[str, str]:
    """A service with a judge and a problem, whose death is noticed after a second."""
    put_problem(rows, **ONE_CASE)
    changed = change(
        settings,
        lease_s=1,
        log_level="info",
        judge={**judge_settings(judge), "timeout_s": 30, "concurrency": 10},
        submissions={"concurrency": 12},
        database={"pool_size": 30},
    )
    return environment(changed, TURNSTONE_PORT="0")


async def serve(stack: AsyncExitStack, env: dict[str, str], command: str = "serve") -> Command:
    process = stack.enter_context(running(Command(command, env=env)))
    await asyncio.to_thread(process.wait_ready if command == "serve" else lambda: process.wait_for_line("working"))
    assert isinstance(process, Command)
    return process


async def all_ended(rows: Rows, count: int, core: FakeCore) -> None:
    query = "SELECT count(*) AS n FROM submissions WHERE status = 'DONE'"
    await asyncio.to_thread(wait_until, lambda: rows.one(query)["n"] >= count, PATIENCE_S)
    recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
    await core.reaches(lambda posts: recorded <= {post.id for post in posts if post.accepted}, PATIENCE_S)
    everything_once(rows, [event.body for event in core.events()], count)
    scores = rows("SELECT prompt_score, correctness_score, status FROM scores")
    assert {(row["prompt_score"], row["correctness_score"], row["status"]) for row in scores} == {(80, 100, "SCORED")}


@pytest.mark.slow
async def test_killed_at_every_node(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows, database_url: str
) -> None:
    """Each of ten evaluations has done another node, and not yet kept it, when the process dies."""
    async with AsyncExitStack() as stack:
        barrier = stack.enter_context(gate(database_url))
        for number, node in enumerate(Node, start=1):
            barrier.stop(number, node)
        doomed = await serve(stack, env)
        with httpx.Client(base_url=doomed.url, timeout=30) as http:
            for number in range(1, len(Node) + 1):
                await asyncio.to_thread(hand_in, http, number)
        await asyncio.to_thread(wait_until, lambda: barrier.waiting == len(Node), PATIENCE_S)
        with contextlib.suppress(AssertionError):  # what other nodes of theirs have asked is answered in a moment
            await asyncio.to_thread(wait_until, lambda: all(call.answered for call in judge.calls), 5)
        done_before = {number: set(steps(rows, number)) for number in range(1, len(Node) + 1)}
        doomed.kill()
        barrier.open()
        kept = {
            number: rows("SELECT node, ended_at FROM evaluation_steps WHERE evaluation_id = %s", number)
            for number in done_before
        }
        await serve(stack, env)
        await all_ended(rows, len(Node), core)
    for number, node in enumerate(Node, start=1):
        assert node.value not in done_before[number]
        after = rows("SELECT node, ended_at FROM evaluation_steps WHERE evaluation_id = %s", number)
        assert [row for row in kept[number] if row not in after] == [], "what was kept stayed as it was"
    assert asked_twice(judge) == [], "every answer had been kept before"


@pytest.mark.slow
async def test_killed_in_the_middle_of_a_step(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    """A program runs, a reviewer and a panel are asked, when the process dies."""
    hanging: dict[str, JudgeSeen] = {}

    def reply(seen: JudgeSeen) -> JudgeReply | None:
        case = {"review": "number_2 =", "panel": "case 3"}.get(seen.kind)
        if case is not None and case in seen.candidate and seen.kind not in hanging:
            hanging[seen.kind] = seen
            return JudgeReply(action="hang")
        return None

    judge.reply = reply
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        with httpx.Client(base_url=doomed.url, timeout=30) as http:
            await asyncio.to_thread(hand_in, http, 1, SLEEPING.replace("sleep(3)", "sleep(2.5)"))
            await asyncio.to_thread(hand_in, http, 2)
            await asyncio.to_thread(hand_in, http, 3)
        unjudged = "SELECT 1 FROM evaluation_runs WHERE turn IS NOT NULL AND status = 'waiting'"
        await asyncio.to_thread(wait_until, lambda: len(hanging) == 2 and not rows(unjudged), PATIENCE_S)
        doomed.kill()
        judge.reply = lambda _: None
        await serve(stack, env)
        await all_ended(rows, 3, core)
    again = {(kind, seed) for kind, seed, _ in asked_twice(judge)}
    assert again <= {(seen.kind, seen.seed) for seen in hanging.values()} | {("panel", n) for n in (0, 1, 2)}


@pytest.mark.slow
async def test_two_workers_share_the_work_and_one_dies(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    # A lease that none of the three loses by standing still for a moment.
    env = {**env, "TURNSTONE_SUBMISSIONS__CONCURRENCY": "2", "TURNSTONE_LEASE_S": "4"}
    judge.holding = True  # so that the second finds something to do, however late it comes
    async with AsyncExitStack() as stack:
        chat_only = await serve(stack, {**env, "TURNSTONE_WORKER__EMBEDDED": "false"})
        workers = [await serve(stack, env, "worker"), await serve(stack, env, "worker")]
        with httpx.Client(base_url=chat_only.url, timeout=30) as http:
            for number in range(1, 7):
                await asyncio.to_thread(hand_in, http, number)
        both = "SELECT count(DISTINCT owner) AS n FROM submission_evaluations WHERE owner IS NOT NULL"
        await asyncio.to_thread(wait_until, lambda: rows.one(both)["n"] == 2, PATIENCE_S)
        workers[0].kill()
        judge.holding = False
        await all_ended(rows, 6, core)
