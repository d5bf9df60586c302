"""The live-turn store, in memory and on a real Redis: one contract for both, and what Redis may do to it."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import psycopg
import pytest
import uvloop
from redis import Redis

from app.core.errors import StartupError
from app.core.settings import Settings
from app.domain.conversation import Usage
from app.domain.turn_log import Cancelled
from app.infrastructure.cache.redis_client import RedisClient, StreamEntry
from app.infrastructure.repositories.state_repository import StateRepository, TurnKey
from app.infrastructure.repositories.turn_repository import StoredText
from tests.conftest import Rows
from tests.support.chat import TurnSeen, connect, new_pair
from tests.support.provider import Provider, Script
from tests.support.redis_server import RedisServer
from tests.support.service import Service, ServiceProcess, running

KEY = TurnKey(1, "t1")
WAIT_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running_server:
        yield running_server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Redis]:
    """A look inside; Redis is there and empty at the beginning."""
    if not server.answers():
        server.kill()
        server.start()
    with server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
async def clients(server: RedisServer, redis: Redis) -> AsyncIterator[Callable[..., RedisClient]]:
    """Opens clients as the service does, but patient: a busy machine is no outage. They are closed at the end."""
    opened: list[RedisClient] = []

    def open_client(timeout_s: float = WAIT_S) -> RedisClient:
        opened.append(RedisClient(server.url, timeout_s=timeout_s))
        return opened[-1]

    yield open_client
    for client in opened:
        await client.close()


@pytest.fixture
def mirrored(clients: Callable[[], RedisClient]) -> StateRepository:
    return StateRepository(clients())


@pytest.fixture
def other(clients: Callable[[], RedisClient]) -> StateRepository:
    """The store of another process."""
    return StateRepository(clients())


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> StateRepository:
    if request.param == "memory":
        return StateRepository()
    mirrored: StateRepository = request.getfixturevalue("mirrored")
    return mirrored


async def mirror_until_heard(state: StateRepository) -> None:
    """Mirror until Redis has been there for it, and everything is copied."""
    async with asyncio.timeout(WAIT_S):
        while True:
            await state.mirror()
            client: Any = state._redis
            if not client.resting:
                return
            await asyncio.sleep(0.05)


async def text_of(state: StateRepository, key: TurnKey) -> StoredText | None:
    """The whole text that a store knows of a turn."""
    found = await state.read(key)
    return found and found[0]


# ---------------------------------------------------------------- the contract of both


async def test_running_turn_is_found_and_read(store: StateRepository) -> None:
    assert store.get(KEY) is None
    log = store.open(KEY)
    assert store.get(KEY) is log
    assert len(store) == 1
    assert await text_of(store, KEY) == StoredText("", [])
    for content in ("Hel", "lo ", "한국", "🐦"):
        log.append(content)
        await store.mirror()
    assert await text_of(store, KEY) == StoredText("Hello 한국🐦", [3, 3, 2, 1])


async def test_what_came_since_is_read_from_a_place_on(store: StateRepository) -> None:
    log = store.open(KEY)
    log.append("한")
    await store.mirror()
    first = await store.read(KEY)
    assert first is not None and first[0] == StoredText("한", [1])
    again = await store.read(KEY, first[1])
    assert again == (StoredText("", [], 2), first[1])
    for content in ("국", "어 🐦"):
        log.append(content)
        await store.mirror()
    since = await store.read(KEY, first[1])
    assert since is not None and since[0] == StoredText("국어 🐦", [1, 3], 2)
    assert await store.read(KEY, since[1]) == (StoredText("", [], 4), since[1])


async def test_unknown_turn_is_not_there(store: StateRepository) -> None:
    store.open(KEY)
    for key in (TurnKey(2, "t1"), TurnKey(1, "t2"), TurnKey(1, ""), TurnKey(1, "t1:")):
        assert store.get(key) is None
        assert await text_of(store, key) is None


async def test_turns_do_not_mix(store: StateRepository) -> None:
    keys = [TurnKey(session, turn) for session in (1, 11) for turn in ("1", "1:1", "한국어", "a b\n*")]
    for number, key in enumerate(keys):
        store.open(key).append(f"text {number}")
    await store.mirror()
    for number, key in enumerate(keys):
        assert await text_of(store, key) == StoredText(f"text {number}", [6])
    assert len(store) == len(keys)


async def test_ended_turn_is_gone(store: StateRepository) -> None:
    log = store.open(KEY)
    log.append("a")
    await store.mirror()
    log.end(Cancelled(Usage()))
    store.close(KEY)
    store.close(KEY)
    await store.mirror()
    assert store.get(KEY) is None
    assert await text_of(store, KEY) is None
    assert len(store) == 0


async def test_mirroring_again_changes_nothing(store: StateRepository) -> None:
    log = store.open(KEY)
    log.append("a")
    for _ in range(3):
        await store.mirror()
    assert await text_of(store, KEY) == StoredText("a", [1])


# ---------------------------------------------------------------- Redis


async def test_other_process_reads_along(mirrored: StateRepository, other: StateRepository) -> None:
    log = mirrored.open(KEY)
    assert await text_of(other, KEY) is None
    text = ""
    for content in ("one ", "두 ", "three", " 🐦🐦"):
        log.append(content)
        text += content
        log.append("!")
        text += "!"
        await mirrored.mirror()
        stored = await text_of(other, KEY)
        assert stored is not None
        assert stored.content == text
    assert await text_of(other, KEY) == StoredText(text, [4, 1, 2, 1, 5, 1, 3, 1])
    assert other.get(KEY) is None, "it runs elsewhere"


async def test_streams_expire_and_go_with_their_turn(mirrored: StateRepository, redis: Redis) -> None:
    keys = [TurnKey(1, f"t{number}") for number in range(5)]
    for key in keys:
        mirrored.open(key).append("text")
    await mirrored.mirror()
    names = redis.keys("*")
    assert len(names) == 5
    assert all(0 < redis.ttl(name) <= 3600 for name in names), "also where nobody is left to remove them"
    for key in keys:
        mirrored.close(key)
    await mirrored.mirror()
    assert redis.keys("*") == []


async def test_streams_go_when_the_process_stops(mirrored: StateRepository, redis: Redis) -> None:
    mirroring = asyncio.create_task(mirrored.run())
    mirrored.open(KEY).append("text")
    async with asyncio.timeout(WAIT_S):
        while not redis.keys("*"):
            await asyncio.sleep(0.01)
    mirrored.close(KEY)
    mirroring.cancel()
    await asyncio.gather(mirroring, return_exceptions=True)
    assert redis.keys("*") == []


async def test_what_an_earlier_turn_of_that_name_left_is_never_read(
    mirrored: StateRepository, other: StateRepository, clients: Callable[[], RedisClient]
) -> None:
    """Another database behind the same Redis counts its sessions from 1, too."""
    dead = StateRepository(clients())
    dead.open(KEY).append("somebody else's answer")
    await dead.mirror()
    log = mirrored.open(KEY)
    await mirrored.mirror()
    assert await text_of(other, KEY) is None
    log.append("mine")
    await mirrored.mirror()
    assert await text_of(other, KEY) == StoredText("mine", [4])


async def test_stream_with_a_gap_is_not_used(mirrored: StateRepository, other: StateRepository, redis: Redis) -> None:
    for lost in range(3):
        key = TurnKey(1, f"lost {lost}")
        log = mirrored.open(key)
        for content in ("a", "b", "c"):
            log.append(content)
            await mirrored.mirror()
        name = f"turnstone:turn:1:lost {lost}"
        entries: Any = redis.xrange(name)
        redis.xdel(name, entries[lost][0])
        stored = await text_of(other, key)
        # what lacks only its end is a shorter text, and whole as far as it goes
        assert stored == (StoredText("ab", [1, 1]) if lost == 2 else None)
        assert await text_of(mirrored, key) == StoredText("abc", [1, 1, 1]), "whoever runs it has it all"


async def test_a_stream_that_is_begun_anew_is_read_from_its_beginning(
    mirrored: StateRepository, other: StateRepository, redis: Redis
) -> None:
    log = mirrored.open(KEY)
    log.append("a")
    await mirrored.mirror()
    found = await other.read(KEY)
    assert found is not None
    redis.delete("turnstone:turn:1:t1")
    assert await other.read(KEY, found[1]) is None
    mirrored._mirrored.clear()  # as after a fault
    log.append("b")
    await mirrored.mirror()
    whole = await other.read(KEY, found[1])
    assert whole is not None and whole[0] == StoredText("ab", [1, 1])
    log.append("c")
    await mirrored.mirror()
    rest = await other.read(KEY, whole[1])
    assert rest is not None and rest[0] == StoredText("c", [1], 3)


async def test_outage_is_no_news_to_the_turn_and_is_made_up_for(
    mirrored: StateRepository, other: StateRepository, server: RedisServer, redis: Redis
) -> None:
    log = mirrored.open(KEY)
    gone = mirrored.open(TurnKey(1, "ended meanwhile"))
    log.append("before ")
    gone.append("x")
    await mirrored.mirror()
    server.kill()
    log.append("during ")
    await mirrored.mirror()
    assert await text_of(other, KEY) is None
    assert await text_of(mirrored, KEY) == StoredText("before during ", [7, 7])
    mirrored.close(TurnKey(1, "ended meanwhile"))
    await mirrored.mirror()
    server.start()
    log.append("after")
    await mirror_until_heard(mirrored)
    await mirror_until_heard(mirrored)
    async with asyncio.timeout(WAIT_S):
        while (stored := await text_of(other, KEY)) is None:
            await asyncio.sleep(0.05)
    assert stored == StoredText("before during after", [7, 7, 5])
    assert await text_of(other, TurnKey(1, "ended meanwhile")) is None


async def test_restart_that_nobody_noticed_leaves_no_false_text(
    mirrored: StateRepository, other: StateRepository, server: RedisServer, redis: Redis
) -> None:
    log = mirrored.open(KEY)
    log.append("before ")
    await mirrored.mirror()
    server.kill()
    server.start()
    for content in ("a", "b", "c"):
        log.append(content)
        await mirrored.mirror()
        stored = await text_of(other, KEY)
        assert stored is None or "before abc".startswith(stored.content)
    await mirror_until_heard(mirrored)
    async with asyncio.timeout(WAIT_S):
        while await text_of(other, KEY) != StoredText("before abc", [7, 1, 1, 1]):
            await mirrored.mirror()
            await asyncio.sleep(0.05)


async def test_redis_that_hangs_costs_one_short_wait(
    clients: Callable[..., RedisClient], server: RedisServer, redis: Redis
) -> None:
    mirrored = StateRepository(clients(0.3))
    log = mirrored.open(KEY)
    log.append("a")
    await mirrored.mirror()
    server.freeze()
    try:
        log.append("b")
        begun = time.monotonic()
        await mirrored.mirror()
        assert await text_of(mirrored, TurnKey(1, "elsewhere")) is None
        assert time.monotonic() - begun < WAIT_S, "one timeout of 0.3 s, and a rest"
        assert await text_of(mirrored, KEY) == StoredText("ab", [1, 1])
    finally:
        server.thaw()


async def test_client_says_what_it_could_do(clients: Callable[[], RedisClient], server: RedisServer) -> None:
    client = clients()
    assert await client.ping()
    entry = StreamEntry("stream", 60, {"a": 1})
    assert await client.write([entry, entry])
    entries = await client.entries("stream")
    assert entries is not None and [fields for _, fields in entries] == [{b"a": b"1"}] * 2
    assert await client.entries("stream", since=entries[1][0]) == entries[1:]
    assert await client.write([StreamEntry("stream", 60, {"b": "2"}, begins=True)])
    entries = await client.entries("stream")
    assert entries is not None and [fields for _, fields in entries] == [{b"b": b"2"}]
    assert await client.write([], remove=["stream", "unknown"])
    assert await client.entries("stream") == []
    server.kill()
    assert not await client.ping()
    assert not await client.write([entry])
    assert client.resting
    assert await client.entries("stream") is None


@pytest.mark.parametrize("url", ["redis://:secret@localhost:port", "redis://user:secret@localhost:99999999999/0"])
async def test_address_that_cannot_be_read_is_said_without_its_password(url: str) -> None:
    with pytest.raises(StartupError) as caught:
        RedisClient(url)
    assert "TURNSTONE_REDIS__URL" in caught.value.problem
    assert "secret" not in str(caught.value)


# ---------------------------------------------------------------- the service on Redis

WORDS = tuple(f"word{number} " for number in range(90))


def process_settings(settings: Settings, server: RedisServer) -> dict[str, str]:
    """The environment of a second process of the service."""
    assert settings.database.url is not None
    assert settings.llm.base_url is not None
    return {
        "TURNSTONE_PORT": "0",
        "TURNSTONE_DATA_DIR": str(settings.data_dir / "second"),
        "TURNSTONE_DATABASE__URL": settings.database.url,
        "TURNSTONE_LLM__MODEL": settings.llm.model,
        "TURNSTONE_LLM__BASE_URL": settings.llm.base_url,
        "TURNSTONE_LLM__API_KEY": "sk-scripted",
        "TURNSTONE_REDIS__URL": server.url,
        "TURNSTONE_WORKER__EMBEDDED": "false",
    }


@pytest.mark.slow
async def test_turn_goes_on_over_an_outage_of_redis_for_readers_at_both_processes(
    start: Callable[..., Service],
    settings: Settings,
    database_url: str,
    provider: Provider,
    server: RedisServer,
    redis: Redis,
    rows: Rows,
) -> None:
    provider.next(Script(pieces=WORDS, piece_delay_s=0.04))
    first = start(redis={"url": server.url, "timeout_s": 0.3}, flush_interval_s=3.0)
    with running(ServiceProcess("serve", env=process_settings(settings, server))) as second:
        await asyncio.to_thread(second.wait_ready)
        async with connect(first.url) as chat, connect(second.url) as elsewhere:
            with psycopg.connect(database_url) as holder:
                # Nothing is flushed, so that the other process can have the first text from Redis alone.
                await asyncio.to_thread(holder.execute, "LOCK TABLE turn_chunks IN EXCLUSIVE MODE")
                await chat.send(message="go on", turn_id="t1", **new_pair())
                seen = TurnSeen([await chat.until("started")])
                session_id = seen.started["session_id"]
                seen.frames.append(await chat.until("delta"))
                await elsewhere.send(type="resume", session_id=session_id, turn_id="t1", after_seq=0)
                seen_elsewhere = TurnSeen([await elsewhere.receive()])
                assert seen_elsewhere.frames[0]["type"] == "delta"
                assert redis.keys("*") == [f"turnstone:turn:{session_id}:t1"]
            server.kill()
            while seen.last_seq < 45:
                seen.frames.append(await chat.receive())
            server.start()
            await chat.turn(seen=seen)
            await elsewhere.turn(seen=seen_elsewhere)
        assert seen.end["type"] == seen_elsewhere.end["type"] == "done"
        assert seen.text == seen_elsewhere.text == "".join(WORDS)
        answer = rows.one("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")["content"]
        assert answer == "".join(WORDS)
        async with asyncio.timeout(WAIT_S), connect(second.url) as chat:
            again = await chat.ask("and again", session_id=session_id, turn_id="t2")
            assert again.end["type"] == "done"
            while redis.keys("*"):
                await asyncio.sleep(0.05)


async def test_service_starts_and_answers_while_redis_is_away(start: Callable[..., Service]) -> None:
    service = start(redis={"url": "redis://127.0.0.1:1/0"})
    async with connect(service.url) as chat:
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"


def test_connections_that_were_reset_while_idle_are_an_absence_on_the_service_s_loop(
    server: RedisServer, redis: Redis
) -> None:
    """As a firewall does it that forgets them."""
    through: list[asyncio.StreamWriter] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        through.append(writer)
        far, to_far = await asyncio.open_connection("127.0.0.1", server.port)

        async def back() -> None:
            while part := await far.read(65_536):
                writer.write(part)

        answering = asyncio.create_task(back())
        with suppress(ConnectionError):
            while part := await reader.read(65_536):
                to_far.write(part)
        answering.cancel()
        to_far.close()

    async def main() -> None:
        proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        client = RedisClient(f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0", timeout_s=WAIT_S)
        for _ in range(5):
            assert await client.ping()
            assert await client.entries("nothing") == []
            for writer in through:
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            through.clear()
            await asyncio.sleep(0.05)
            await client.entries("nothing")  # says so, or has connected anew: nothing is raised
            client._resting_until = 0.0
        await client.close()
        proxy.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
