"""Who owns a turn: tokens that grow, leases that run out, and owners that have lost theirs."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from app.application.turns.ending import INTERRUPTED
from app.application.turns.lease import Lease
from app.core.settings import Settings
from app.domain.conversation import TurnStatus, Usage
from app.infrastructure.persistence.session import DATABASE_DOWN, Database, PoolExhausted, bind, get_db_context
from app.infrastructure.repositories.session_repository import NewTurn, SessionRepository
from app.infrastructure.repositories.turn_repository import Chunk, TurnEnding, TurnRepository, pack_lengths
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import Rows, change
from tests.support.chat import Command, TurnSeen, connect, environment, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.locks import locked, waiting
from tests.support.provider import Provider, Script
from tests.support.service import Service, running

LENGTH_S = 8.0


class Watcher:
    """A process's lease whose clock the test turns."""

    def __init__(self, length_s: float = LENGTH_S) -> None:
        self.settled = 0
        self.lost: list[int] = []
        self.lease = Lease(length_s, on_fenced=self._settle, on_lost=self.lost.append)

    async def _settle(self) -> None:
        self.settled += 1


async def _fenced(token: int) -> bool:
    async with get_db_context() as db:
        return token not in [other.id for other in await WorkerRepository(db).others(0)]


async def test_every_lease_has_a_larger_token_than_all_before(database: Database) -> None:
    tokens = []
    for _ in range(5):
        lease = Watcher().lease
        await lease.take()
        tokens.append(lease.token)
    assert tokens == sorted(set(tokens))


async def test_a_lease_is_fenced_only_after_it_was_seen_standing_still_for_its_whole_length(database: Database) -> None:
    watcher, owner = Watcher(), Watcher()
    await watcher.lease.take()
    await owner.lease.take()
    for now in (100.0, 102.0, 104.0, 106.0, 107.9):
        await watcher.lease.watch(now)
        assert not await _fenced(owner.lease.token)
    await watcher.lease.watch(108.0)
    assert await _fenced(owner.lease.token)
    assert watcher.settled == 1


async def test_a_lease_that_is_renewed_lives(database: Database) -> None:
    watcher, owner = Watcher(), Watcher()
    await watcher.lease.take()
    await owner.lease.take()
    for now in range(100, 140, 2):
        await watcher.lease.watch(float(now))
        if now % 6 == 0:
            await owner.lease.renew()
    assert not await _fenced(owner.lease.token)
    assert watcher.settled == 0


@pytest.mark.parametrize(("watchers", "owners"), [(2.0, 8.0), (8.0, 2.0)])
async def test_of_two_lengths_the_longer_one_counts(database: Database, watchers: float, owners: float) -> None:
    """As when the setting is changed and one process after the other is restarted."""
    watcher, owner = Watcher(watchers), Watcher(owners)
    await watcher.lease.take()
    await owner.lease.take()
    for now in range(100, 108):
        await watcher.lease.watch(float(now))
        assert not await _fenced(owner.lease.token)
    await watcher.lease.watch(108.0)
    assert await _fenced(owner.lease.token)


async def test_a_database_that_hung_fences_nobody(database: Database) -> None:
    """Nothing fails while a database hangs, and nobody can renew: who looks first afterwards sees old beats."""
    watcher, owner = Watcher(), Watcher()
    await watcher.lease.take()
    await owner.lease.take()
    await watcher.lease.watch(100.0)
    await watcher.lease.watch(102.0)
    await watcher.lease.watch(102.0 + 3 * LENGTH_S)
    assert not await _fenced(owner.lease.token)
    await owner.lease.renew()
    for now in (128.0, 130.0, 132.0):
        await watcher.lease.watch(now)
    assert not await _fenced(owner.lease.token)


async def test_a_process_that_was_fenced_takes_a_new_lease_and_is_told_of_the_loss(database: Database) -> None:
    owner = Watcher()
    await owner.lease.take()
    old = owner.lease.token
    async with get_db_context() as db:
        await WorkerRepository(db).fence(old)
    await owner.lease.renew()
    assert owner.lost == [old]
    assert owner.lease.token > old
    await owner.lease.renew()
    assert owner.lost == [old]


async def test_a_loss_is_told_even_where_no_new_lease_can_be_taken(database: Database, rows: Rows) -> None:
    owner = Watcher()
    await owner.lease.take()
    old = owner.lease.token
    async with get_db_context() as db:
        await WorkerRepository(db).fence(old)
    rows(f"ALTER TABLE workers ADD CONSTRAINT nobody_else CHECK (id <= {old})")
    with pytest.raises(IntegrityError):
        await owner.lease.renew()
    assert owner.lost == [old]


async def test_a_lease_given_back_is_dead_at_once(database: Database) -> None:
    owner = Watcher()
    await owner.lease.take()
    await owner.lease.give_back()
    assert await _fenced(owner.lease.token)


async def test_a_lease_renewed_after_it_was_seen_is_not_fenced(database: Database) -> None:
    owner = Watcher()
    await owner.lease.take()
    await owner.lease.renew()
    async with get_db_context() as db:
        assert not await WorkerRepository(db).fence(owner.lease.token, seen_beats=0)
        assert await WorkerRepository(db).fence(owner.lease.token, seen_beats=1)
        assert not await WorkerRepository(db).fence(owner.lease.token, seen_beats=1)


@pytest.mark.slow
async def test_where_nobody_can_renew_nobody_is_fenced(
    database: Database, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They can look all the while: a stall of writes alone. At its end who beats and who fences are at it together."""
    monkeypatch.setattr("app.infrastructure.persistence.session._VITAL", 9)
    three = Database(database_url)  # as three processes have together
    bind(three)
    leases = [Watcher(2.0).lease for _ in range(3)]
    jobs = []
    try:
        for lease in leases:
            await lease.take()
            jobs += [asyncio.create_task(lease.renew_forever()), asyncio.create_task(lease.watch_forever())]
        for _ in range(2):
            before = [_beats(rows, lease.token) for lease in leases]
            async with locked(database_url, "LOCK TABLE workers IN SHARE MODE"):
                await asyncio.sleep(5)
            for lease, beats in zip(leases, before, strict=True):
                await asyncio.to_thread(wait_until, lambda token=lease.token, beats=beats: _beats(rows, token) > beats)
        assert rows("SELECT 1 FROM workers WHERE fenced_at IS NOT NULL") == []
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await three.close()


async def test_what_could_not_be_settled_at_once_is_tried_again(database: Database) -> None:
    """Who is fenced is seen by nobody any more, so whoever fenced it has to see to it."""
    tries = []

    async def settle() -> None:
        tries.append(len(tries))
        if len(tries) == 1:
            raise PoolExhausted

    watcher, owner = Lease(LENGTH_S, on_fenced=settle, on_lost=lambda _: None), Watcher()
    await watcher.take()
    await owner.lease.take()
    for now in (100.0, 102.0, 104.0, 106.0):
        await watcher.watch(now)
    with pytest.raises(PoolExhausted):
        await watcher.watch(108.0)
    await watcher.watch(110.0)
    await watcher.watch(112.0)
    assert tries == [0, 1]


async def test_connections_that_were_cut_are_not_left_to_turns(database: Database, database_url: str) -> None:
    """The lease's are used all the time, and tell of it; the others, where nobody chats, are not."""
    async with get_db_context() as db:
        await db.execute(text("SELECT 1"))
    lease = Watcher().lease
    await lease.take()
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(DATABASE_DOWN):
        await lease.renew()
    async with get_db_context() as db:
        await db.execute(text("SELECT 1"))


async def test_to_settle_what_a_dead_process_leaves_keeps_nobody_from_renewing(database: Database, rows: Rows) -> None:
    settling, never = asyncio.Event(), asyncio.Event()

    async def settle() -> None:
        settling.set()
        await never.wait()

    async with get_db_context() as db:
        await WorkerRepository(db).register("dead", 0.1)
    lease = Lease(1.0, on_fenced=settle, on_lost=lambda _: None)
    await lease.take()
    jobs = [asyncio.create_task(lease.renew_forever()), asyncio.create_task(lease.watch_forever())]
    try:
        await settling.wait()
        before = _beats(rows, lease.token)
        await asyncio.to_thread(wait_until, lambda: _beats(rows, lease.token) >= before + 3)
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


def _beats(rows: Rows, token: int) -> int:
    return int(rows.one("SELECT beats FROM workers WHERE id = %s", token)["beats"])


def _chunks(rows: Rows) -> int:
    return int(rows.one("SELECT count(*) AS n FROM turn_chunks")["n"])


async def test_a_pool_that_is_exhausted_costs_neither_the_lease_nor_text(
    start: Callable[..., Service], provider: Provider, database_url: str, rows: Rows
) -> None:
    """Otherwise others would take a process for dead that has only much to do."""
    service = start(database={"pool_size": 2}, lease_s=2, flush_interval_s=0.05, worker={"embedded": False})
    pairs = [new_pair(), new_pair()]
    async with connect(service.url) as chat, connect(service.url) as one, connect(service.url) as two:
        for other, pair in zip((one, two), pairs, strict=True):
            assert (await other.ask("Hello", "t1", **pair)).end["type"] == "done"
        provider.next(Script(pieces=[f"word{i} " for i in range(2000)], piece_delay_s=0.1))
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("started")
        async with locked(database_url, "SELECT 1 FROM prompt_sessions FOR UPDATE"):
            for other, pair in zip((one, two), pairs, strict=True):
                await other.send(type="message", message="Waits", turn_id="t2", **pair)
            await asyncio.to_thread(wait_until, lambda: waiting(database_url) == 2)
            [owner] = {row["owner"] for row in rows("SELECT owner FROM prompt_turns WHERE status = 'running'")}
            beats, chunks = _beats(rows, owner), _chunks(rows)
            await asyncio.to_thread(wait_until, lambda: _beats(rows, owner) >= beats + 5)
            await asyncio.to_thread(wait_until, lambda: _chunks(rows) >= chunks + 5)
            assert waiting(database_url) == 2
        for other in (one, two):
            assert (await other.turn()).end["type"] == "done"
        await chat.send(type="cancel", turn_id="t1")
        await chat.until("cancelled")
    assert rows("SELECT 1 FROM workers WHERE fenced_at IS NOT NULL AND id = %s", owner) == []


async def test_the_database_refuses_what_a_fenced_owner_writes(
    start: Callable[..., Service], provider: Provider, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 0.2)
    provider.next(Script(pieces=("kept ", "never"), ending="hang", ending_at=1))
    service = start(lease_s=15, flush_interval_s=0.05)
    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        turn = await asyncio.to_thread(
            wait_until, lambda: rows("SELECT t.* FROM prompt_turns t JOIN turn_chunks c ON c.turn_pk = t.id")
        )
        pk, session_id, owner = turn[0]["id"], turn[0]["session_id"], turn[0]["owner"]

        async def write() -> tuple[bool, bool]:
            async with get_db_context() as db:
                await WorkerRepository(db).fence(owner)
            async with get_db_context() as db:
                turns = TurnRepository(db)
                flushed = await turns.flush(owner, [Chunk(pk, 2, "never", [5])])
                ending = TurnEnding(TurnStatus.CANCELLED, Usage())
                return flushed, await turns.settle(pk, session_id, owner, ending)

        assert service.call(write()) == (False, False)
        # The owner does not know yet. Its own ending is refused as well; it tells the one that the turn was given.
        await chat.send(type="cancel", turn_id="t1")
        error = await chat.until("error")
    assert (error["code"], error["last_seq"]) == (INTERRUPTED.code, 1)
    assert rows.one("SELECT status FROM prompt_turns")["status"] == "interrupted"
    assert rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"] == "kept "


async def test_a_process_that_stood_still_finds_its_turn_ended_by_another_and_tells_its_readers(
    settings: Settings, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    settings = change(settings, lease_s=2)
    provider.next(Script(pieces=[f"word{i} " for i in range(2000)], piece_delay_s=0.01))
    env = environment(settings, TURNSTONE_PORT="0")
    with running(Command("serve", env=env)) as stopped, running(Command("worker", env=env)) as other:
        await asyncio.to_thread(stopped.wait_ready)
        await asyncio.to_thread(other.wait_for_line, "working")
        async with connect(stopped.url) as chat:
            await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
            seen = TurnSeen()
            while seen.last_seq < 60:
                seen.frames.append(await chat.receive())
            stopped.process.send_signal(signal.SIGSTOP)
            try:
                await asyncio.to_thread(
                    wait_until, lambda: rows("SELECT 1 FROM prompt_turns WHERE status = 'interrupted'"), 30
                )
                stored = rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"]
                await core.reaches(3)
            finally:
                stopped.process.send_signal(signal.SIGCONT)
            await chat.turn(seen=seen)
        assert seen.end["code"] == INTERRUPTED.code
        assert seen.text.startswith(stored)
        async with connect(stopped.url) as chat:
            await chat.send(type="resume", session_id=seen.started["session_id"], turn_id="t1", after_seq=0)
            replayed = await chat.turn()
        assert (replayed.text, replayed.last_seq, replayed.end) == (stored, seen.end["last_seq"], seen.end)
        await provider.closed_reach(1)
        # it lives on, with a new lease
        provider.next(Script(pieces=("again",)))
        async with connect(stopped.url) as chat:
            assert (await chat.ask("Hello again", "t2", **new_pair())).text == "again"
    answers = rows("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT' ORDER BY id")
    assert [answer["content"] for answer in answers] == [stored, "again"]
    assert rows.one("SELECT count(*) AS n FROM turn_chunks")["n"] == 0
    usages = [event for event in core.events() if event.type == "usage"]
    assert len(usages) == len({(event.session_id, event.body["turn"]) for event in usages})
    assert "lease_lost" in stopped.output


@pytest.mark.parametrize("ending", ["serve", "worker"])
def test_a_process_that_ends_gives_its_lease_back(settings: Settings, rows: Rows, ending: str) -> None:
    with running(Command(ending, env=environment(settings, TURNSTONE_PORT="0"))) as process:
        process.wait_for_line("working" if ending == "worker" else "listening")
        assert process.stop() == 0
    assert rows.one("SELECT fenced_at FROM workers")["fenced_at"] is not None


async def test_leases_that_ended_long_ago_are_removed_unless_they_own_a_turn(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        workers = [await WorkerRepository(db).register(name, 6) for name in ("alive", "fenced", "long gone", "owner")]
    alive, fenced, gone, owner = workers
    rows("UPDATE workers SET fenced_at = now() WHERE id = %s", fenced)
    rows("UPDATE workers SET fenced_at = now() - interval '25 hours' WHERE id IN (%s, %s)", gone, owner)
    rows("INSERT INTO prompt_sessions (id, exam_id, participant_id) VALUES (1, 1, 1)")
    rows(
        "INSERT INTO prompt_turns (session_id, turn, client_turn_id, turn_id_is_int, status, owner, model)"
        " VALUES (1, 1, 't', false, 'running', %s, 'm')",
        owner,
    )
    async with get_db_context() as db:
        await WorkerRepository(db).sweep()
    assert {row["id"] for row in rows("SELECT id FROM workers")} == {alive, fenced, owner}


async def test_a_fenced_owner_starts_no_turn(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        owner = await WorkerRepository(db).register("gone", 6)
        session = await SessionRepository(db).create_session(1, 1)
        await WorkerRepository(db).fence(owner)
    new = NewTurn(session.id, "t", turn_id_is_int=False, owner=owner, model="m", message="why?")
    async with get_db_context() as db:
        assert await SessionRepository(db).start_turn(new, token_budget=0) is None
    assert rows("SELECT id FROM prompt_turns") == rows("SELECT id FROM prompt_messages") == []
    assert rows.one("SELECT last_turn FROM prompt_sessions")["last_turn"] == 0


async def test_a_turn_whose_owner_s_lease_has_no_row_is_ended_and_its_lane_delivered(
    start: Callable[..., Service], provider: Provider, core: FakeCore, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that was deleted by hand, or that a dump was restored without."""
    monkeypatch.setattr("app.bootstrap._SWEEP_INTERVAL_S", 0.2)
    rows("INSERT INTO prompt_sessions (id, exam_id, participant_id, last_turn) VALUES (1, 1, 1, 1), (2, 1, 2, 1)")
    rows(
        "INSERT INTO prompt_turns (id, session_id, turn, client_turn_id, turn_id_is_int, status, owner, model)"
        " VALUES (1, 1, 1, 't1', false, 'running', 987654, 'm'), (2, 2, 1, 't1', false, 'running', 987654, 'm')"
    )
    rows(
        "INSERT INTO prompt_messages (session_id, turn, role, content)"
        " VALUES (1, 1, 'USER', 'why?'), (2, 1, 'USER', 'how?')"
    )
    rows("INSERT INTO turn_chunks VALUES (1, 1, 'so far', %s)", pack_lengths([6]))
    rows("INSERT INTO callback_lanes (session_id, claimed_by) VALUES (2, 987654)")
    service = start()
    async with connect(service.url) as chat:
        await chat.send(type="resume", session_id="1", turn_id="t1", after_seq=0)
        ended = await chat.turn()
        assert (ended.text, ended.end["code"]) == ("so far", INTERRUPTED.code)
        assert (await chat.ask("and now?", "t2", session_id="1")).end["turn"] == 2
    await core.reaches(lambda posts: sum(post.session_id == "2" for post in posts) == 3)
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns WHERE turn = 1")} == {"interrupted"}


@pytest.mark.slow
async def test_an_owner_whose_lease_has_no_row_any_more_writes_nothing_and_takes_a_new_one(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
    service = start(lease_s=1, flush_interval_s=0.05)
    async with connect(service.url) as chat:
        await chat.send(type="message", message="Hello", turn_id="t1", **new_pair())
        await chat.until("delta")
        await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks"))
        rows("DELETE FROM workers")
        assert (await chat.until("error", 30))["code"] == INTERRUPTED.code
        assert (await chat.ask("Hello", "t2", **new_pair())).end["type"] == "done"
    turn = rows.one("SELECT status, owner FROM prompt_turns WHERE client_turn_id = 't1'")
    assert turn["status"] == "interrupted"
    assert rows.one("SELECT id FROM workers WHERE fenced_at IS NULL")["id"] > turn["owner"]
