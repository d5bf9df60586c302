"""kill -9 while prompts are judged, with real processes: every turn is judged once, told once, paid for once."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import cycle

import psycopg
import pytest

from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import Command, connect, environment, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, ScriptedJudge
from tests.support.provider import Provider
from tests.support.service import running

PROMPT = "Write a function that finds the shortest path in a grid of at most 1000 by 1000 cells."
SAMPLES = 3
TAKEOVER_S = 40.0


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running_judge:
        # A score at a grade's edge, and a second sample that differs: all three are asked for, one after the other.
        running_judge.marks = lambda seen: {"R2": 3} if seen.seed == 1 else {}
        yield running_judge


@pytest.fixture
def env(settings: Settings, judge: ScriptedJudge) -> dict[str, str]:
    """A service with a judge, whose death is noticed after a second."""
    judged_by = {"model": "openai:scripted-judge", "base_url": judge.base_url, "api_key": "sk-judge", "timeout_s": 30}
    return environment(change(settings, lease_s=1, log_level="info", judge=judged_by), TURNSTONE_PORT="0")


async def serve(stack: AsyncExitStack, env: dict[str, str], command: str = "serve") -> Command:
    process = stack.enter_context(running(Command(command, env=env)))
    await asyncio.to_thread(process.wait_ready if command == "serve" else lambda: process.wait_for_line("working"))
    assert isinstance(process, Command)
    return process


async def ask(process: Command, turn_id: str = "t1", **where: int) -> None:
    async with connect(process.url) as chat:
        assert (await chat.ask(PROMPT, turn_id, **where or new_pair())).end["type"] == "done"


async def all_done(rows: Rows, count: int = 1) -> None:
    query = "SELECT count(*) AS n FROM evaluation_runs WHERE status = 'done'"
    await asyncio.to_thread(wait_until, lambda: rows.one(query)["n"] >= count, TAKEOVER_S)


async def everything_once(rows: Rows, core: FakeCore, turns: int) -> None:
    """One run, one evaluation, one event and one usage for each turn, and the same figures everywhere."""
    each = Counter((row["session_id"], row["turn"]) for row in rows("SELECT session_id, turn FROM prompt_turns"))
    assert len(each) == turns
    for table in ("evaluation_runs", "prompt_evaluations"):
        assert Counter((r["session_id"], r["turn"]) for r in rows(f"SELECT session_id, turn FROM {table}")) == each, (
            table
        )
    marks = Counter(row["run_id"] for row in rows("SELECT run_id FROM criterion_scores"))
    assert set(marks.values()) == {SAMPLES * 4}
    recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
    await core.reaches(lambda posts: recorded <= {post.id for post in posts if post.accepted}, TAKEOVER_S)
    bodies = [event.body for event in core.events()]
    of_turn = Counter((int(b["session_id"]), b["turn"]) for b in bodies if b["type"] == "turn_evaluation")
    assert of_turn == each
    assert {b["turn_score"] for b in bodies if b["type"] == "turn_evaluation"} == {80}
    usages = [b for b in bodies if b["type"] == "usage" and b["purpose"] == "evaluation"]
    of_usage = Counter((int(b["session_id"]), b["turn"]) for b in usages)
    assert set(of_usage.values()) <= {1} and set(of_usage) <= set(each)
    ledger = rows.one(
        "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS n FROM provider_calls"
        " WHERE purpose = 'evaluation'"
    )["n"]
    kept = rows.one("SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS n FROM judge_calls")["n"]
    assert sum(b["total_tokens"] for b in usages) == ledger == kept
    assert rows("SELECT 1 FROM evaluation_runs WHERE owner IS NOT NULL") == []


@pytest.mark.slow
@pytest.mark.parametrize("asked", [1, 2, 3])
async def test_killed_while_the_judge_is_asked(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows, asked: int
) -> None:
    judge.next(*[JudgeReply()] * (asked - 1), JudgeReply(action="hang"))
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        await ask(doomed)
        await judge.reaches(asked)
        doomed.kill()
        await serve(stack, env)
        await all_done(rows)
        await everything_once(rows, core, 1)
    # only the call that was under way is made again
    assert [call.seed for call in judge.calls] == [*range(asked), *range(asked - 1, SAMPLES)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "table",
    ["judge_calls", "criterion_scores", "provider_calls", "prompt_evaluations", "callbacks", "callback_lanes"],
)
async def test_killed_at_each_write(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows, database_url: str, table: str
) -> None:
    locked = threading.Event()
    judge.default = JudgeReply(after=locked)
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        await ask(doomed)
        await core.reaches(2)  # the turn's own events are out
        with psycopg.connect(database_url) as holder:
            holder.execute(f"LOCK TABLE {table} IN SHARE MODE")
            locked.set()
            waits = "SELECT 1 FROM pg_locks JOIN pg_class ON pg_class.oid = relation WHERE NOT granted AND relname = %s"
            kept = 0 if table == "judge_calls" else SAMPLES  # a callback's own writes may wait there before

            def waiting() -> bool:
                return bool(rows(waits, table)) and len(rows("SELECT 1 FROM judge_calls")) == kept

            await asyncio.to_thread(wait_until, waiting, TAKEOVER_S)
            doomed.kill()
            holder.rollback()
        judge.default = JudgeReply()
        await serve(stack, env)
        await all_done(rows)
        await everything_once(rows, core, 1)
    assert len(judge.calls) <= SAMPLES + (table == "judge_calls")


async def test_killed_before_it_has_claimed_and_after_it_has_told(
    env: dict[str, str], judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    serving = {**env, "TURNSTONE_WORKER__EMBEDDED": "false"}
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, serving)
        await ask(doomed)
        doomed.kill()
        assert [row["status"] for row in rows("SELECT status FROM evaluation_runs")] == ["waiting"]
        worker = await serve(stack, env, "worker")
        await all_done(rows)
        worker.kill()
        await serve(stack, env)
        await everything_once(rows, core, 1)
    assert len(judge.calls) == SAMPLES


@pytest.mark.slow
async def test_kills_at_any_instant_lose_no_judgement_and_make_none_twice(
    env: dict[str, str], provider: Provider, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    chance = random.Random(20_261_127)
    turns = 24
    faults = [
        JudgeReply(status=503),
        JudgeReply(status=429, headers=(("Retry-After", "0"),)),
        JudgeReply(content='{"intent": "CREA'),
        JudgeReply(action="close"),
    ]
    slow = JudgeReply(delay_s=0.15)
    judge.default = slow
    judge.next(*(fault if chance.random() < 0.4 else slow for fault in [f for f, _ in zip(cycle(faults), range(80))]))
    async with AsyncExitStack() as stack:
        chat_only = await serve(stack, {**env, "TURNSTONE_WORKER__EMBEDDED": "false"})
        # a different prompt each, so that no answer serves another turn
        for number in range(turns):
            async with connect(chat_only.url) as chat:
                await chat.ask(f"{PROMPT} Case {number}.", "t1", **new_pair())
        # only now: their lease is short, and where this machine stands still they may take a turn's owner for dead
        workers = [await serve(stack, env, "worker"), await serve(stack, env, "worker")]
        for kill in range(8):
            await asyncio.sleep(chance.uniform(0.1, 1.2))
            workers[kill % 2].kill()
            workers[kill % 2] = await serve(stack, env, "worker")
        rows("UPDATE evaluation_runs SET due_at = now() WHERE status = 'waiting'")
        await all_done(rows, turns)
        await everything_once(rows, core, turns)
