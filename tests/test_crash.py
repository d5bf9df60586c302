"""kill -9 in the middle of the work, with real processes: what was promised is still so afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import websockets

from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import (
    ChatClient,
    Command,
    TurnSeen,
    connect,
    environment,
    new_pair,
    processes_of,
    wait_until,
)
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service, running

TAKEOVER_S = 30.0
SLOW = Script(pieces=[f"word{i} " for i in range(3000)], piece_delay_s=0.01)
"""Ten milliseconds a word, for half a minute."""


@pytest.fixture
def env(settings: Settings) -> dict[str, str]:
    """A service whose death is noticed after two seconds."""
    return environment(change(settings, lease_s=2, log_level="info"), TURNSTONE_PORT="0")


async def serve(stack: AsyncExitStack, env: dict[str, str]) -> Command:
    process = stack.enter_context(running(Command("serve", env=env)))
    await asyncio.to_thread(process.wait_ready)
    assert isinstance(process, Command)
    return process


async def read_until_seq(chat: ChatClient, seq: int, seen: TurnSeen | None = None) -> TurnSeen:
    seen = seen or TurnSeen()
    while seen.last_seq < seq:
        seen.frames.append(await chat.receive())
    return seen


async def serve_two(stack: AsyncExitStack, env: dict[str, str]) -> tuple[Command, Command]:
    """One to be killed, and one that stands still until then.

    Where both run, a busy machine lets either of them look dead to the other. One that stood still takes a new lease.
    """
    heir = await serve(stack, env)
    heir.process.send_signal(signal.SIGSTOP)
    return await serve(stack, env), heir


@pytest.mark.parametrize("who", ["the restarted process", "another process"])
async def test_complaint_22_a_killed_process_leaves_its_turn_ended_and_what_was_flushed(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows, who: str
) -> None:
    provider.next(SLOW)
    async with AsyncExitStack() as stack:
        doomed, heir = await serve_two(stack, env) if who == "another process" else (await serve(stack, env), None)
        async with connect(doomed.url) as chat:
            await chat.send(type="message", message="What is a turnstone?", turn_id=7, **new_pair())
            seen, behind = TurnSeen(), 100
            for seq in range(150, 1500, 50):  # a machine that stands still does not at each of them
                await read_until_seq(chat, seq, seen)
                chunks = rows("SELECT content FROM turn_chunks ORDER BY first_seq")
                committed = "".join(row["content"] for row in chunks)
                behind = seen.last_seq - committed.count("word")
                if behind < 100:
                    break
            doomed.kill()
            # what was on its way still arrives
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    seen.frames.append(await chat.receive())
        killed_at = time.monotonic()
        if heir is not None:
            heir.process.send_signal(signal.SIGCONT)
        heir = heir or await serve(stack, env)
        async with connect(heir.url) as chat:
            session_id = seen.started["session_id"]
            await chat.send(type="resume", session_id=session_id, turn_id=7, after_seq=seen.last_seq)
            end = (await chat.turn(after_seq=seen.last_seq, timeout=TAKEOVER_S)).end
            assert time.monotonic() - killed_at < TAKEOVER_S
            assert (end["type"], end["code"], end["retryable"]) == ("error", "interrupted", True)
            await chat.send(type="resume", session_id=session_id, turn_id=7, after_seq=0)
            replayed = await chat.turn()
            assert replayed.end == end
            await core.reaches(3)
            # the session goes on
            answer = await chat.ask("And now?", 8, session_id=session_id)
            assert answer.end["turn"] == 2

    assert replayed.last_seq == end["last_seq"] <= seen.last_seq
    assert SLOW.text.startswith(replayed.text)
    assert replayed.text.startswith(committed)
    # 250 ms is the promise; a flush that was under way and a busy machine are added
    assert behind < 100, "more than a second of text was lost"

    messages = rows("SELECT * FROM prompt_messages WHERE session_id = %s AND turn = 1 ORDER BY id", int(session_id))
    assert [(m["role"], m["content"]) for m in messages] == [
        ("USER", "What is a turnstone?"),
        ("ASSISTANT", replayed.text),
    ]
    assert messages[1]["meta"]["partial"] is True
    assert rows("SELECT status FROM prompt_turns ORDER BY turn") == [{"status": "interrupted"}, {"status": "completed"}]
    assert rows("SELECT 1 FROM turn_chunks") == []

    events = [event.body for event in core.events(session_id)][:3]
    assert [(e["type"], e["callback_seq"]) for e in events] == [("usage", 1), ("message_response", 2), ("error", 3)]
    usage, response, error = events
    assert (usage["turn"], usage["turn_id"], usage["source"]) == (1, 7, "counted")
    assert {name: usage[name] for name in end["usage"]} == end["usage"]
    assert usage["prompt_tokens"] > 0
    assert usage["completion_tokens"] >= replayed.text.count("word")
    assert (response["ai_message"], response["metadata"]["status"]) == (replayed.text, "failed")
    assert error["error_type"] == "interrupted"


async def test_a_turn_killed_before_its_first_text_is_interrupted_without_an_answer(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    provider.next(Script(ending="hang", ending_at=0))
    async with AsyncExitStack() as stack:
        doomed, heir = await serve_two(stack, env)
        async with connect(doomed.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            session_id = (await chat.until("started"))["session_id"]
            await provider.requests_reach(1)
            doomed.kill()
            heir.process.send_signal(signal.SIGCONT)
        async with connect(heir.url) as chat:
            await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
            end = (await chat.turn(timeout=TAKEOVER_S)).end
    assert (end["code"], end["last_seq"]) == ("interrupted", 0)
    assert [row["role"] for row in rows("SELECT role FROM prompt_messages")] == ["USER"]
    assert [event.type for event in core.events(session_id)].count("usage") <= 1
    assert rows.one("SELECT count(*) AS n FROM callbacks WHERE type = 'usage'")["n"] == 1


@pytest.mark.slow
async def test_an_orphan_that_cannot_be_stored_holds_up_neither_the_others_nor_the_lease(
    env: dict[str, str],
    start: Callable[..., Service],
    provider: Provider,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 0.2)
    provider.default = Script(ending="hang", ending_at=1)
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        for _ in range(2):
            async with connect(doomed.url) as chat:
                await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
                await chat.until("delta")
        doomed.kill()
    bad, good = (row["session_id"] for row in rows("SELECT session_id FROM prompt_turns ORDER BY id"))
    rows(f"ALTER TABLE provider_calls ADD CONSTRAINT refused CHECK (session_id <> {bad})")
    service = start(lease_s=0.8)

    def status(session_id: int) -> str:
        return str(rows.one("SELECT status FROM prompt_turns WHERE session_id = %s", session_id)["status"])

    await asyncio.to_thread(wait_until, lambda: status(good) == "interrupted", TAKEOVER_S)
    beats = "SELECT beats FROM workers WHERE fenced_at IS NULL"
    before = rows.one(beats)["beats"]
    await asyncio.to_thread(wait_until, lambda: rows.one(beats)["beats"] > before + 2)
    assert status(bad) == "running"
    rows("ALTER TABLE provider_calls DROP CONSTRAINT refused")
    await asyncio.to_thread(wait_until, lambda: status(bad) == "interrupted", TAKEOVER_S)
    assert rows.one("SELECT count(*) AS n FROM callbacks WHERE type = 'usage'")["n"] == 2
    async with connect(service.url) as chat:
        await chat.send(type="resume", session_id=str(bad), turn_id="t1", after_seq=0)
        assert (await chat.turn()).end["code"] == "interrupted"


@pytest.mark.slow
async def test_what_core_was_not_told_before_the_kill_it_is_told_after(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    core.stop()
    env = {**env, "TURNSTONE_CALLBACKS__RETRY_DELAYS_S": json.dumps([0.2] * 300)}  # not given up before the kill
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        async with connect(doomed.url) as chat:
            done = await chat.ask("Hello", "t1", **new_pair())
        doomed.kill()
        core.start()
        await serve(stack, env)
        await core.reaches(2, 30)
    assert done.end["type"] == "done"
    assert [(e.type, e.seq) for e in core.events()] == [("usage", 1), ("message_response", 2)]


@pytest.mark.slow
async def test_an_embedded_database_outlives_its_killed_owner_and_is_adopted(
    env: dict[str, str], provider: Provider, scratch: Path
) -> None:
    data_dir = scratch / "adopted"
    env = {**env, "TURNSTONE_DATA_DIR": str(data_dir)}
    del env["TURNSTONE_DATABASE__URL"]
    provider.next(SLOW)
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        async with connect(doomed.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            session_id = (await read_until_seq(chat, 40)).started["session_id"]
            doomed.kill()
        orphaned = {process.pid for process in processes_of(data_dir)}
        assert orphaned
        heir = await serve(stack, env)
        async with connect(heir.url) as chat:
            await chat.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
            assert (await chat.turn(timeout=TAKEOVER_S)).end["code"] == "interrupted"
        assert orphaned & {process.pid for process in processes_of(data_dir)}, "it is the same server"
        assert await asyncio.to_thread(heir.stop) == 0
    assert processes_of(data_dir) == []


@pytest.mark.slow
@pytest.mark.model
async def test_the_local_model_dies_with_its_killed_owner_and_starts_again(settings: Settings, scratch: Path) -> None:
    data_dir = scratch / "with-model"
    env = environment(change(settings, lease_s=2, data_dir=data_dir), TURNSTONE_PORT="0")
    env["TURNSTONE_LLM__MODEL"] = "local"
    async with AsyncExitStack() as stack:
        doomed = await serve(stack, env)
        async with connect(doomed.url) as chat:
            await chat.send(type="message", message="Tell me a long story.", turn_id="t1", **new_pair())
            seen = await read_until_seq(chat, 10)
            assert processes_of(data_dir), "the model runs"
            doomed.kill()
        await asyncio.to_thread(wait_until, lambda: not processes_of(data_dir))
        heir = await serve(stack, env)
        async with connect(heir.url) as chat:
            await chat.send(type="resume", session_id=seen.started["session_id"], turn_id="t1", after_seq=seen.last_seq)
            assert (await chat.turn(after_seq=seen.last_seq, timeout=TAKEOVER_S)).end["code"] == "interrupted"
            await chat.send(type="message", message="Say hello.", turn_id="t2", session_id=seen.started["session_id"])
            assert (await read_until_seq(chat, 3)).started["turn"] == 2
            await chat.send(type="cancel", turn_id="t2")
            await chat.until("cancelled")
        assert await asyncio.to_thread(heir.stop) == 0
    assert processes_of(data_dir) == []


class Candidate:
    """Sends one message after the other to whichever process is there, and remembers what was promised."""

    def __init__(self, urls: list[str], number: int) -> None:
        self._where_to = (urls[n % len(urls)] for n in count(number))
        self._where = new_pair()
        self._turn_ids = count(1)
        self._number = number
        self.started: dict[tuple[str, int], str] = {}
        self.done: dict[tuple[str, int], str] = {}

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, websockets.WebSocketException):
                async with connect(next(self._where_to), open_timeout=2) as chat:
                    while True:
                        await self._ask(chat)
            await asyncio.sleep(0.02)

    async def _ask(self, chat: ChatClient) -> None:
        turn_id, message = next(self._turn_ids), f"message {self._number}"
        await chat.send(type="message", message=message, turn_id=turn_id, **self._where)
        seen = TurnSeen()
        while not seen.frames or seen.frames[-1]["type"] not in {"done", "error"}:
            frame = await chat.receive()
            seen.frames.append(frame)
            if frame["type"] == "started":
                self.started[frame["session_id"], frame["turn"]] = message
        if seen.end["type"] == "done":
            self.done[seen.started["session_id"], seen.started["turn"]] = seen.text
        else:
            await asyncio.sleep(0.05)  # the session waits for its dead owner's lease to run out


@contextlib.asynccontextmanager
async def candidates(urls: list[str], number: int) -> AsyncIterator[list[Candidate]]:
    people = [Candidate(urls, n) for n in range(number)]
    tasks = [asyncio.create_task(person.run()) for person in people]
    yield people
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result


@pytest.mark.slow
async def test_kills_at_any_instant_lose_and_double_nothing(
    env: dict[str, str], provider: Provider, core: FakeCore, rows: Rows
) -> None:
    chance = random.Random(20_260_101)
    provider.default = Script(pieces=[f"w{i} " for i in range(30)], piece_delay_s=0.01)
    env = {**env, "TURNSTONE_LEASE_S": "1"}
    async with AsyncExitStack() as stack:
        processes = [await serve(stack, env), await serve(stack, env)]
        urls = [process.url for process in processes]
        async with candidates(urls, 6) as people:
            for kill in range(12):
                place = kill % 2
                await asyncio.sleep(chance.uniform(0.0, 0.8))
                processes[place].kill()
                processes[place] = await serve(stack, env)
                urls[place] = processes[place].url
            for process in processes:
                process.kill()
        await serve(stack, env)
        await asyncio.to_thread(
            wait_until, lambda: not rows("SELECT 1 FROM prompt_turns WHERE status = 'running'"), TAKEOVER_S
        )
        recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
        await core.reaches(lambda posts: recorded <= {post.id for post in posts if post.accepted}, TAKEOVER_S)

    started = {turn: text for person in people for turn, text in person.started.items()}
    done = {turn: text for person in people for turn, text in person.done.items()}
    turns: dict[tuple[str, int], dict[str, Any]] = {
        (str(row["session_id"]), row["turn"]): row for row in rows("SELECT * FROM prompt_turns")
    }
    messages = {
        (str(row["session_id"]), row["turn"], row["role"]): row["content"]
        for row in rows("SELECT * FROM prompt_messages")
    }
    assert len(started) > 20
    assert Counter(row["status"] for row in turns.values()).keys() >= {"completed", "interrupted"}
    for (session, turn), text in started.items():
        assert messages[session, turn, "USER"] == text
    for (session, turn), text in done.items():
        assert turns[session, turn]["status"] == "completed"
        assert messages[session, turn, "ASSISTANT"] == text
    events = core.events()
    assert {event.id for event in events} == recorded
    usages = Counter((event.session_id, event.body["turn"]) for event in events if event.type == "usage")
    assert set(usages.values()) == {1}
    assert usages.keys() == turns.keys(), "each turn reached the provider, or died where it may have"
    by_session: dict[str, list[int]] = {}
    for event in sorted(events, key=lambda event: event.seq or 0):
        by_session.setdefault(event.session_id, []).append(event.seq or 0)
    for numbers in by_session.values():
        assert numbers == list(range(1, len(numbers) + 1))
    totals = {str(row["id"]): row["total_tokens"] for row in rows("SELECT id, total_tokens FROM prompt_sessions")}
    for session, total in totals.items():
        told = sum(e.body["total_tokens"] for e in events if e.type == "usage" and e.session_id == session)
        assert told == total
