"""A database that vanishes without a word: nothing hangs for good, nothing is lost, and all goes on when it is back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator

import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError

from app.infrastructure.persistence.bell import CALLBACKS, Bell
from app.infrastructure.persistence.session import DATABASE_DOWN, Database, bind, get_db_context, unbind
from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service
from tests.support.silent_proxy import SilentProxy

BOUND_S = 20.0
"""Some seconds for a connection and for a statement, and a busy machine; where nobody gives up it lasts for ever."""


@pytest.fixture
def proxy(database_url: str) -> Iterator[SilentProxy]:
    where = make_url(database_url).query
    with SilentProxy(f"{where['host']}/.s.PGSQL.{where['port']}") as running:
        yield running


@pytest.fixture
def far_url(proxy: SilentProxy, database_url: str) -> str:
    """The test's database over TCP."""
    name = make_url(database_url).database
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"


@pytest.fixture
async def far(far_url: str) -> AsyncIterator[Database]:
    database = Database(far_url, pool_size=2, timeout_s=3, statement_s=1)
    yield database
    await database.close()


def ready(service: Service) -> bool:
    try:
        with urllib.request.urlopen(f"{service.url}/readyz", timeout=30) as answer:
            return bool(json.load(answer)["checks"]["database"])
    except urllib.error.HTTPError:
        return False


@pytest.mark.slow
async def test_turns_go_on_in_silence_and_are_stored_after_it(
    start: Callable[..., Service], proxy: SilentProxy, far_url: str, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    script = Script(pieces=[f"word{i} " for i in range(200)], piece_delay_s=0.01)
    provider.next(script)
    service = start(database={"url": far_url, "timeout_s": 2, "statement_s": 3}, lease_s=2)
    async with connect(service.url) as chat, connect(service.url) as other:
        turn = await chat.start("Hello", "t1", text="word20 ", **new_pair())
        proxy.fall_silent()
        for number in range(3):
            begun = time.monotonic()
            await other.send(type="message", message="Hello", turn_id=f"early{number}", **new_pair())
            error = await other.until("error", 30)
            assert (error["code"], error["retryable"]) == ("internal", True)
            assert time.monotonic() - begun < BOUND_S
        assert not await asyncio.to_thread(ready, service)
        await provider.closed_reach(1)
        assert len(provider.requests) == 1
        proxy.speak_again()
        turn = await chat.turn(seen=turn, timeout=30)
        assert (turn.end["type"], turn.text) == ("done", script.text)
        await asyncio.to_thread(wait_until, lambda: ready(service))
        # the pool is whole again: as many at once as it has connections, and more
        asked = [new_pair() for _ in range(15)]
        provider.default = Script(pieces=("yes",))
        for pair in asked:
            await other.send(type="message", message="Hello", turn_id="late", **pair)
        for _ in asked:
            assert (await other.until("done"))["finish_reason"] == "stop"
    await core.reaches(32, 30)
    assert (
        rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT' ORDER BY id LIMIT 1")["content"]
        == script.text
    )
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"completed"}


@pytest.mark.slow
async def test_a_service_stops_in_silence(
    start: Callable[..., Service], proxy: SilentProxy, far_url: str, provider: Provider
) -> None:
    service = start(database={"url": far_url, "timeout_s": 2, "statement_s": 3}, shutdown_grace_s=0)
    async with connect(service.url) as chat:
        assert (await chat.ask("Hello", "t1", **new_pair())).end["type"] == "done"
    proxy.fall_silent()
    begun = time.monotonic()
    await asyncio.to_thread(service.stop)
    assert time.monotonic() - begun < 45


@pytest.mark.slow
async def test_a_statement_in_silence_ends_in_time_and_takes_all_old_connections_with_it(
    far: Database, proxy: SilentProxy
) -> None:
    async with far.transaction() as first, far.transaction() as second:
        pids = {(await db.execute(text("SELECT pg_backend_pid()"))).scalar() for db in (first, second)}
    proxy.fall_silent()
    begun = time.monotonic()
    with pytest.raises(OperationalError):
        async with far.transaction() as db:
            await db.run("SELECT 1 AS one", {})
    assert 1.5 < time.monotonic() - begun < BOUND_S
    begun = time.monotonic()
    with pytest.raises(DATABASE_DOWN):
        async with far.transaction():
            pass
    assert time.monotonic() - begun < BOUND_S
    proxy.speak_again()
    async with far.transaction() as first, far.transaction() as second:
        fresh = {(await db.execute(text("SELECT pg_backend_pid()"))).scalar() for db in (first, second)}
    assert not pids & fresh


async def test_the_server_ends_a_statement_that_waits_too_long_and_the_connection_is_kept(
    far_url: str, database_url: str
) -> None:
    far = Database(far_url, pool_size=2, timeout_s=20, statement_s=1)  # so that it is not us who end it
    async with far.transaction() as db:
        pid = (await db.execute(text("SELECT pg_backend_pid()"))).scalar()
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE exams")
        begun = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            async with far.transaction() as db:
                await db.execute(text("SELECT * FROM exams"))
        assert time.monotonic() - begun < BOUND_S
    assert getattr(caught.value.orig, "sqlstate", None) == "57014"
    async with far.transaction() as db:
        assert (await db.execute(text("SELECT pg_backend_pid()"))).scalar() == pid
    await far.close()


@pytest.mark.slow
async def test_what_a_vanished_process_has_locked_is_free_in_time(
    far: Database, proxy: SilentProxy, database_url: str
) -> None:
    with pytest.raises(OperationalError):
        async with far.transaction() as db:
            await db.execute(text("LOCK TABLE exams"))
            proxy.fall_silent()
            with psycopg.connect(database_url, options="-c lock_timeout=20s") as other:
                await asyncio.to_thread(other.execute, "LOCK TABLE exams")
            await db.execute(text("SELECT 1"))


async def test_commands_may_take_as_long_as_they_need(far_url: str) -> None:
    database = Database(f"{far_url}?connect_timeout=20", pool_size=1, timeout_s=1)
    async with database.transaction() as db:
        await db.execute(text("SELECT pg_sleep(2.5)"))
        assert (await db.execute(text("SHOW statement_timeout"))).scalar() == "0"
    await database.close()


async def test_each_event_loop_uses_the_database_that_was_opened_on_it(database_url: str) -> None:
    """As two services in one process do."""
    name = text("SHOW application_name")
    here, there = (Database(f"{database_url}&application_name={name}") for name in ("here", "there"))

    async def elsewhere() -> str | None:
        bind(there)
        async with get_db_context() as db:
            return (await db.execute(name)).scalar()

    bind(here)
    try:
        assert await asyncio.to_thread(asyncio.run, elsewhere()) == "there"
        async with get_db_context() as db:
            assert (await db.execute(name)).scalar() == "here"
    finally:
        unbind(there)
        await here.close()


def test_who_is_cancelled_at_the_very_end_gives_its_locks_back(database_url: str) -> None:
    async def hold(database: Database, locked: asyncio.Event) -> None:
        async with database.transaction() as db:
            await db.execute(text("LOCK TABLE exams"))
            locked.set()
            await asyncio.sleep(60)

    async def main() -> list[asyncio.Task[None]]:
        database, locked = Database(database_url), asyncio.Event()
        holding = asyncio.create_task(hold(database, locked))
        await locked.wait()
        holding.cancel()  # and nobody waits for it, as with a web server's handlers
        await database.close()
        return [holding]

    kept = asyncio.run(main())
    with psycopg.connect(database_url, options="-c lock_timeout=20s") as other:
        other.execute("LOCK TABLE exams")
    assert kept[0].cancelled()


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux calls them")
async def test_the_kernel_is_told_to_notice_an_end_that_is_gone(far: Database, far_url: str) -> None:
    async with await psycopg.AsyncConnection.connect(far.dsn) as bells, far.transaction() as db:
        for connection in (bells, db._driver):
            with socket.socket(fileno=os.dup(connection.fileno())) as line:
                assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 3
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == 3
                assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000


async def test_an_address_that_says_its_own_limits_keeps_them(far_url: str) -> None:
    database = Database(f"{far_url}?keepalives_idle=60&application_name=mine", timeout_s=7)
    assert dict(database.url.query) == {
        "keepalives_idle": "60",
        "keepalives_interval": "3",
        "keepalives_count": "3",
        "tcp_user_timeout": "10000",
        "connect_timeout": "7",
        "application_name": "mine",
    }
    await database.close()


async def test_a_bell_that_rings_into_silence_rings_again(
    proxy: SilentProxy, far_url: str, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience = "app.infrastructure.persistence.connection.BoundedConnection.patience_s"
    heard: list[str] = []
    bell, ears = Bell(f"{far_url}?connect_timeout=1"), Bell(database_url)
    sending = asyncio.create_task(bell.send_forever())
    listening = asyncio.create_task(ears.listen_forever({CALLBACKS: heard.append}))

    async def rings(count: int) -> None:
        async with asyncio.timeout(20):
            while len(heard) < count:
                await asyncio.sleep(0.02)

    listens = f"SELECT 1 FROM pg_stat_activity WHERE state = 'idle' AND query = 'LISTEN {CALLBACKS}'"
    with psycopg.connect(database_url, autocommit=True) as look:
        query = f"{listens} AND datname = current_database()"
        await asyncio.to_thread(wait_until, lambda: look.execute(query).fetchone())  # type: ignore[arg-type]
    bell.ring()
    await rings(1)
    proxy.fall_silent()
    monkeypatch.setattr(patience, 0.5)  # not before: a database that is slow for once would be rung again
    bell.ring()
    await asyncio.sleep(1)
    assert len(heard) == 1
    proxy.speak_again()
    monkeypatch.setattr(patience, 30.0)
    await rings(2)
    for task in (sending, listening):
        task.cancel()
    await asyncio.gather(sending, listening, return_exceptions=True)
