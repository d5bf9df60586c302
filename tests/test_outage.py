"""The database goes away and comes back, and other faults: what is whole stays whole, and nothing private is logged."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
from sqlalchemy import make_url

from app.core.settings import Settings
from app.infrastructure.persistence import session
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import migrate
from tests.conftest import SECRET as SIGNING_SECRET
from tests.conftest import Rows, change
from tests.support.chat import ChatClient, Command, connect, environment, new_pair, wait_until
from tests.support.core import Answer, FakeCore
from tests.support.locks import locked, waiting
from tests.support.provider import SECRET as PROVIDER_SECRET
from tests.support.provider import Provider, Script
from tests.support.service import Service, running

WAIT_S = 30.0
_names = count(1)


class Server:
    """A database server that can be taken away as a crash does it, and brought back."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._handle = EmbeddedPostgres.open(data_dir)
        self.url = self._handle.url

    def take_away(self) -> None:
        """Stop it at once, as ``pg_ctl stop -m immediate``; returns when it is gone."""
        postmaster = psutil.Process(int((self.data_dir / "postgres/data/postmaster.pid").read_text().split()[0]))
        postmaster.send_signal(signal.SIGQUIT)
        postmaster.wait(WAIT_S)  # it is the last of them to go

    def bring_back(self) -> None:
        """Start it, unless it runs."""
        EmbeddedPostgres.open(self.data_dir).close()

    def close(self) -> None:
        self._handle.close()


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Server]:
    """A server of this module's own."""
    opened = Server(scratch / "outage")
    yield opened
    opened.close()


@pytest.fixture
def database_url(server: Server) -> str:
    """A migrated database on it."""
    server.bring_back()
    name = f"outage_{next(_names)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = make_url(server.url).set(database=name)
    migrate(url.set(drivername="postgresql+psycopg"))
    return url.render_as_string(hide_password=False)


def get(url: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ready(service: Service) -> bool:
    return get(f"{service.url}/readyz")[0] == 200


@pytest.fixture
def quick(start: Callable[..., Service]) -> Callable[..., Service]:
    """Starts services that do not wait long for the database: where it is away, they are told so at once."""
    return lambda **sections: start(database={"timeout_s": 4}, **sections)


async def test_nothing_is_asked_of_the_provider_while_messages_cannot_be_stored(
    quick: Callable[..., Service], server: Server, provider: Provider, rows: Rows
) -> None:
    service = quick()
    pair = new_pair()
    async with connect(service.url) as chat:
        await asyncio.to_thread(server.take_away)
        try:
            await chat.send(type="message", message="Hello", turn_id="t1", **pair)
            error = await chat.until("error")
            assert (error["code"], error["retryable"], error["turn_id"]) == ("internal", True, "t1")
            status, body = await asyncio.to_thread(get, f"{service.url}/readyz")
            assert (status, body["checks"]["database"]) == (503, False)
            assert (await asyncio.to_thread(get, f"{service.url}/healthz"))[0] == 200
            assert (await asyncio.to_thread(get, f"{service.url}/api/sessions"))[0] == 500
        finally:
            await asyncio.to_thread(server.bring_back)
        await asyncio.to_thread(wait_until, lambda: ready(service))
        assert len(provider.requests) == 0
        assert (await chat.ask("Hello", "t1", **pair)).end["type"] == "done"
    assert len(provider.requests) == 1
    assert rows.one("SELECT status, turn FROM prompt_turns") == {"status": "completed", "turn": 1}


async def test_a_restart_of_the_database_in_mid_turn_costs_nothing(
    quick: Callable[..., Service], server: Server, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    script = Script(pieces=[f"word{i} " for i in range(400)], piece_delay_s=0.01)
    provider.next(script)
    service = quick(lease_s=2)
    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        owner = rows.one("SELECT owner FROM prompt_turns")["owner"]
        await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks"))
        await asyncio.to_thread(server.take_away)
        await asyncio.to_thread(server.bring_back)
        done = await chat.until("done", WAIT_S)
    await core.reaches(2, WAIT_S)
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == script.text
    assert rows.one("SELECT fenced_at FROM workers WHERE id = %s", owner)["fenced_at"] is None
    (usage, response) = (event.body for event in core.events())
    assert {name: usage[name] for name in done["usage"]} == done["usage"]
    assert response["ai_message"] == script.text


async def test_a_database_that_takes_no_writes_for_a_while_costs_nothing(
    quick: Callable[..., Service], server: Server, provider: Provider, core: FakeCore, database_url: str, rows: Rows
) -> None:
    """As in a failover: connections are cut, and the new ones may only read."""
    name = make_url(database_url).database
    provider.next(Script(pieces=[f"word{i} " for i in range(100)], piece_delay_s=0.01))
    service = quick(lease_s=1, flush_interval_s=0.1)

    def read_only(setting: str) -> None:
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {setting}")
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])

    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        owner = rows.one("SELECT owner FROM prompt_turns")["owner"]
        await asyncio.to_thread(read_only, "on")
        try:
            await provider.closed_reach(1)
            await asyncio.sleep(2.5)  # longer than a lease; turns cannot begin either
            await chat.send(type="message", message="Hello", turn_id="t2", **new_pair())
            error = await chat.until("error")
            assert (error["code"], error["retryable"], error["turn_id"]) == ("internal", True, "t2")
        finally:
            await asyncio.to_thread(read_only, "off")
        assert (await chat.until("done", WAIT_S))["turn_id"] == "t1"
        assert (await chat.ask("Hello", "t3", **new_pair())).end["type"] == "done"
    await core.reaches(4, WAIT_S)
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT' AND turn = 1 ORDER BY id LIMIT 1")[
        "content"
    ].endswith("word99 ")
    assert rows.one("SELECT fenced_at FROM workers WHERE id = %s", owner)["fenced_at"] is None


async def test_a_background_job_goes_on_after_an_error_that_nobody_foresaw(
    quick: Callable[..., Service], server: Server, provider: Provider, database_url: str, rows: Rows
) -> None:
    service = quick(lease_s=1, flush_interval_s=0.05, llm={"timeout_s": 60})
    rows("ALTER TABLE turn_chunks RENAME TO elsewhere")
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        await asyncio.sleep(0.3)
        rows("ALTER TABLE elsewhere RENAME TO turn_chunks")
        await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks"), WAIT_S)
        await chat.send(type="cancel", turn_id="t1")
        await chat.until("cancelled")


@pytest.mark.slow
async def test_an_answer_that_ended_during_an_outage_is_stored_when_it_is_over_although_others_watch(
    settings: Settings, server: Server, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    """The outage is longer than a lease, and a second process waits for one to run out."""
    provider.next(Script(pieces=[f"word{i} " for i in range(200)], piece_delay_s=0.02))
    # A shorter lease would be lost by a process that stands still for a moment, with an outage or without.
    env = environment(change(settings, lease_s=5, database={"timeout_s": 4}), TURNSTONE_PORT="0")
    with running(Command("serve", env=env)) as process, running(Command("worker", env=env)) as other:
        await asyncio.to_thread(process.wait_ready)
        await asyncio.to_thread(other.wait_for_line, "working")
        async with connect(process.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            await chat.until("delta")
            await asyncio.to_thread(server.take_away)
            try:
                await provider.closed_reach(1)
                await asyncio.to_thread(process.wait_for_line, "turn_waits_for_database")
                waits = process.output.count("lease_waits_for_database")
                await asyncio.to_thread(
                    wait_until, lambda: process.output.count("lease_waits_for_database") > waits + 4, WAIT_S
                )
                with pytest.raises(TimeoutError):
                    while True:
                        assert (await chat.receive(0.1))["type"] == "delta"
            finally:
                await asyncio.to_thread(server.bring_back)
            assert (await chat.until("done", WAIT_S))["finish_reason"] == "stop"
        await core.reaches(2, WAIT_S)
        assert await asyncio.to_thread(process.stop) == 0
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"].endswith("word199 ")
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "completed"
    assert "lease_taken" not in other.output


@pytest.mark.slow
async def test_a_process_that_must_end_during_an_outage_says_so_and_another_ends_its_turn(
    quick: Callable[..., Service],
    server: Server,
    provider: Provider,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.application.turns.runner._LAST_SETTLE_S", 0.5)
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    service = quick(shutdown_grace_s=0, llm={"timeout_s": 60})
    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks"))
        await asyncio.to_thread(server.take_away)
        try:
            await asyncio.to_thread(service.stop)
            error = await chat.until("error")
            assert (error["code"], error["retryable"], error["last_seq"]) == ("internal", True, 1)
        finally:
            await asyncio.to_thread(server.bring_back)
    heir = quick(lease_s=1)
    await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM prompt_turns WHERE status = 'interrupted'"), WAIT_S)
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == "so far"
    assert ready(heir)


async def test_an_exhausted_pool_refuses_further_messages_and_recovers(
    start: Callable[..., Service], database_url: str, provider: Provider
) -> None:
    service = start(database={"pool_size": 2}, worker={"embedded": False})
    pool = next(database.pool for loop, database in session._bound if loop is service.loop)
    pairs = [new_pair() for _ in range(3)]
    async with connect(service.url) as chat:
        for number, pair in enumerate(pairs):
            assert (await chat.ask("Hello", f"first{number}", **pair)).end["type"] == "done"
        async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE"):
            # two wait for their sessions' rows, each with a connection
            await chat.send(type="message", message="Waits", turn_id="held", **pairs[0])
            async with connect(service.url) as second, connect(service.url) as third:
                await second.send(type="message", message="Waits", turn_id="held", **pairs[1])
                await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 2)
                with pytest.MonkeyPatch.context() as patch:
                    # Only now: whoever waits for no longer is refused by a machine that stands still, too.
                    patch.setattr(pool, "_timeout", 0.5)
                    await third.send(type="message", message="Too much", turn_id="t", **pairs[2])
                    error = await third.until("error")
                    assert (error["code"], error["retryable"]) == ("overloaded", True)
                    assert not await asyncio.to_thread(ready, service)
        await asyncio.to_thread(wait_until, lambda: ready(service))
        assert (await chat.turn()).end["type"] == "done"
        assert (await chat.ask("Again", "again", **pairs[2])).end["type"] == "done"


@pytest.mark.parametrize("cut", [1, 2])
async def test_a_turn_whose_conversation_cannot_be_read_after_it_was_started_ends_at_once(
    start: Callable[..., Service],
    database_url: str,
    provider: Provider,
    core: FakeCore,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    cut: int,
) -> None:
    """Its start waits for the end of the turn before, so it reads the conversation anew; ``cut`` times in vain."""
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 1000)  # no sweep finds the turn and ends it
    service = start()
    async with connect(service.url) as chat:
        first = await chat.ask("Hello", "t1", **new_pair())
        rows("UPDATE prompt_turns SET status = 'running'")
        async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE") as ending:
            await ending.execute("UPDATE prompt_turns SET status = 'completed'")
            await chat.send(type="message", message="And now?", turn_id="t2", session_id=first.session_id)
            await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 1)
            reading = asyncio.create_task(_hold_messages(database_url, cut))
            await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 2)
            await ending.commit()
        await reading
        second = await chat.turn()
    assert second.started["turn"] == 2
    if cut == 1:
        assert second.end["type"] == "done"
        assert [message["content"] for message in provider.requests[1].messages][1:] == [
            "Hello",
            first.text,
            "And now?",
        ]
    else:
        assert (second.end["code"], second.end["retryable"], second.text) == ("internal", True, "")
        assert len(provider.requests) == 1
        assert rows.one("SELECT status FROM prompt_turns WHERE turn = 2")["status"] == "failed"
    events = await core.reaches(4)
    told = [event.type for event in core.events(first.session_id)]
    assert told == [
        "usage",
        "message_response",
        *(["usage", "message_response"] if cut == 1 else ["message_response", "error"]),
    ], events


@asynccontextmanager
async def a_start_that_takes_long(chat: ChatClient, url: str, rows: Rows) -> AsyncIterator[int]:
    """A turn that is stored and does not run yet, for its conversation cannot be read; gives its key.

    It goes on at the end of the block.
    """
    first = await chat.ask("Hello", "t1", **new_pair())
    rows("UPDATE prompt_turns SET status = 'running'")
    async with locked(url, "SELECT 1 FROM prompt_sessions FOR UPDATE") as ending:
        await ending.execute("UPDATE prompt_turns SET status = 'completed'")
        await chat.send(type="message", message="And now?", turn_id="t2", session_id=first.session_id)
        await asyncio.to_thread(wait_until, lambda: waiting(url) == 1)
        async with await psycopg.AsyncConnection.connect(url) as holding:
            taking = asyncio.create_task(holding.execute("LOCK TABLE prompt_messages"))
            await asyncio.to_thread(wait_until, lambda: waiting(url) == 2)
            await ending.commit()
            await taking
            await asyncio.to_thread(wait_until, lambda: _reader(url))
            yield int(rows.one("SELECT id FROM prompt_turns WHERE turn = 2")["id"])
            await holding.rollback()


async def test_a_start_that_takes_long_is_not_lost(
    start: Callable[..., Service], database_url: str, provider: Provider, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 1000)
    service = start()
    runner = service.resources.runner
    async with connect(service.url) as chat:
        async with a_start_that_takes_long(chat, database_url, rows) as turn_pk:
            owner = rows.one("SELECT owner FROM prompt_turns WHERE id = %s", turn_pk)["owner"]
            for _ in range(3):
                assert await asyncio.to_thread(service.call, runner.find_lost(owner)) == set()
        assert (await chat.turn()).end["type"] == "done"


async def test_a_lease_that_is_lost_while_a_turn_is_stored_asks_no_provider(
    start: Callable[..., Service], database_url: str, provider: Provider, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 0.5)
    service = start(lease_s=1)
    async with connect(service.url) as chat:
        async with a_start_that_takes_long(chat, database_url, rows):
            rows("UPDATE workers SET fenced_at = now()")
            await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM workers WHERE fenced_at IS NULL"))
            await asyncio.sleep(0.5)  # it takes the lease, and then hears that it has lost one
        assert (await chat.turn()).end["code"] == "interrupted"
    assert len(provider.requests) == 1


async def test_a_process_that_was_fenced_and_does_not_know_yet_does_not_say_that_the_session_is_busy(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    service = start(lease_s=4)
    async with connect(service.url) as chat:
        first = await chat.ask("Hello", "t1", **new_pair())
        rows("UPDATE workers SET fenced_at = now()")
        second = await chat.ask("And now?", "t2", session_id=first.session_id)
        assert second.end["type"] == "done" or second.end["code"] == "overloaded"


async def test_what_a_later_program_wrote_of_an_exam_does_not_leave_a_turn_without_an_end(
    start: Callable[..., Service], provider: Provider, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 1000)
    service = start()
    pair = new_pair()
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:
        put = await http.put(
            f"/api/exams/{pair['exam_id']}", json={"problem_text": "Sort.", "guard": {"code": "allow"}}
        )
        assert put.status_code == 200
    rows("UPDATE exams SET settings = jsonb_set(settings, '{guard,actions,JAILBREAK}', '\"shout\"')")
    async with connect(service.url) as chat:
        for turn_id in ("t1", "t2"):
            turn = await chat.ask("Hello", turn_id, **pair)
            assert (turn.end["code"], turn.end["retryable"]) == ("internal", True)
    assert [row["status"] for row in rows("SELECT status FROM prompt_turns")] == ["failed"] * 2
    assert len(provider.requests) == 0


async def _hold_messages(url: str, cut: int) -> None:
    """Take the messages away from whoever reads them next, and cut it off, so many times."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("LOCK TABLE prompt_messages")
        for _ in range(cut):
            pid = await asyncio.to_thread(wait_until, lambda: _reader(url))
            await connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        await connection.rollback()


def _reader(url: str) -> int | None:
    with psycopg.connect(url) as connection:
        query = "SELECT pid FROM pg_locks WHERE relation = 'prompt_messages'::regclass AND NOT granted"
        found = connection.execute(query).fetchone()
    return found and int(found[0])


async def test_a_database_that_hangs_is_not_ready(start: Callable[..., Service], database_url: str) -> None:
    service = start(database={"timeout_s": 1})
    await asyncio.to_thread(wait_until, lambda: ready(service))
    async with locked(database_url, "LOCK TABLE alembic_version"):
        assert not await asyncio.to_thread(ready, service)
    await asyncio.to_thread(wait_until, lambda: ready(service))


@pytest.mark.slow
async def test_no_log_line_holds_what_was_said_or_a_key_whatever_fails(
    settings: Settings, server: Server, provider: Provider, core: FakeCore
) -> None:
    words = {
        name: f"{name}-{secrets.token_hex(8)}" for name in ("prompt", "answer", "model-key", "core-key", "problem")
    }
    settings = change(settings, log_level="info", database={"timeout_s": 4})
    env = environment(
        settings,
        TURNSTONE_PORT="0",
        TURNSTONE_LLM__API_KEY=words["model-key"],
        TURNSTONE_AUTH__API_KEY=words["core-key"],
        TURNSTONE_AUTH__MODE="token",
    )
    header = {"Authorization": f"Bearer {words['core-key']}"}
    provider.default = Script(pieces=(words["answer"], " ", words["answer"]))
    with running(Command("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        async with connect(process.url, additional_headers=header) as chat:
            pair = new_pair()
            assert (await chat.ask(words["prompt"], "fine", **pair)).end["type"] == "done"
            provider.next(*[Script(status=500)] * 3)
            assert (await chat.ask(words["prompt"], "broken", **pair)).end["code"] == "llm_unavailable"
            provider.next(Script(status=400))
            assert (await chat.ask(words["prompt"], "rejected", **pair)).end["code"] == "llm_rejected"
            core.next(Answer(status=500, body=words["prompt"]))
            assert (await chat.ask(words["prompt"], "untold", **pair)).end["type"] == "done"
            await asyncio.to_thread(process.wait_for_line, "callback_not_delivered")
            await chat.send_raw(json.dumps({"type": "message", "message": words["prompt"]}))
            await chat.until("error")

            # the database goes away in the middle of a turn, and is asked for several things meanwhile
            provider.next(Script(pieces=[words["answer"]] * 400, piece_delay_s=0.01))
            await chat.send(type="message", message=words["prompt"], turn_id="cut", **pair)
            await chat.until("delta")
            await asyncio.to_thread(server.take_away)
            try:
                async with connect(process.url, additional_headers=header) as other:
                    await other.send(type="message", message=words["prompt"], turn_id="t", **new_pair())
                    await other.until("error")
                status = await asyncio.to_thread(_put_exam, process.url, words["core-key"], words["problem"])
                assert status == 500
                await asyncio.to_thread(process.wait_for_line, "turn_waits_for_database")
            finally:
                await asyncio.to_thread(server.bring_back)
            await chat.until("done", WAIT_S)
        assert await asyncio.to_thread(process.stop) == 0
    assert "callback_not_delivered" in process.output
    for name, word in words.items():
        assert word not in process.output, name
    assert SIGNING_SECRET not in process.output
    assert PROVIDER_SECRET not in process.output
    assert "Traceback" not in process.output


def _put_exam(url: str, key: str, problem: str) -> int:
    request = urllib.request.Request(
        f"{url}/api/exams/1",
        data=json.dumps({"problem_text": problem}).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
        method="PUT",
    )
    try:
        with urllib.request.urlopen(request, timeout=WAIT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
