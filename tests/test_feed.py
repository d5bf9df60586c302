"""The feed of all events: their order, the cursor, and that nothing is ever passed over."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx
import psycopg
import pytest

from app.application.services.callback_service import CallbackService
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.callback_repository import CallbackRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from tests.conftest import Rows
from tests.support.chat import new_pair
from tests.support.core import Answer, FakeCore
from tests.support.service import Service

WAIT_S = 30.0


async def new_session() -> int:
    async with get_db_context() as db:
        return (await SessionRepository(db).create_session(**new_pair())).id


async def record(session_id: int, events: int = 1) -> None:
    async with get_db_context() as db:
        for number in range(events):
            await CallbackService(db, held=True).send_error(session_id, "internal", f"event {number}")


class Reader:
    """Core as it catches up: remembers the last cursor and asks for what follows."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.cursor: str | None = None
        self.items: list[dict[str, Any]] = []

    async def read(self, limit: int = 100) -> dict[str, Any]:
        query: dict[str, str | int] = {"limit": limit}
        if self.cursor is not None:
            query["after"] = self.cursor
        answer = await self._client.get("/api/callbacks/events", params=query)
        assert answer.status_code == 200, answer.text
        part: dict[str, Any] = answer.json()
        self.items += part["items"]
        if part["items"]:
            self.cursor = part["items"][-1]["cursor"]
        return part

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.items) < count:
                await self.read()
                await asyncio.sleep(0.01)

    @property
    def seen(self) -> list[tuple[str, int]]:
        return [(item["payload"]["session_id"], item["payload"]["callback_seq"]) for item in self.items]


@pytest.fixture
def client(service: Service) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.url, timeout=WAIT_S)


async def test_the_feed_shows_the_same_events_as_were_posted_whatever_became_of_them(
    client: httpx.AsyncClient, core: FakeCore
) -> None:
    core.next(Answer(status=410))
    answer = await client.post("/api/chat/message", json={"message": "hello", **new_pair()})
    assert answer.status_code == 200
    await core.reaches(1, WAIT_S)
    reader = Reader(client)
    await reader.until(2)
    posted = core.deliveries.items
    assert [(item["id"], item["payload"]) for item in reader.items] == [(post.id, post.body) for post in posted]
    assert all(set(item) == {"cursor", "id", "payload"} for item in reader.items)


async def test_the_cursor_goes_on_where_the_last_part_ended(client: httpx.AsyncClient, database: Database) -> None:
    sessions = [await new_session() for _ in range(3)]
    for session_id in sessions * 2:
        await record(session_id, 2)
    expected = [(str(session_id), seq) for seqs in ((1, 2), (3, 4)) for session_id in sessions for seq in seqs]
    whole, by_parts = Reader(client), Reader(client)
    await whole.until(12)
    assert whole.seen == expected
    nexts = [(await by_parts.read(limit=5))["next"] for _ in range(3)]
    assert by_parts.items == whole.items
    assert nexts[:2] == [whole.items[4]["cursor"], whole.items[9]["cursor"]]
    assert nexts[2] is None, "there is no more just now"
    assert (await by_parts.read())["items"] == []
    await record(sessions[0])
    await by_parts.until(13)
    assert by_parts.seen[12] == (str(sessions[0]), 5)


async def test_an_event_whose_transaction_commits_late_is_not_passed_over(
    client: httpx.AsyncClient, database: Database
) -> None:
    early, late = await new_session(), await new_session()
    reader = Reader(client)
    async with get_db_context() as slow:
        await CallbackService(slow, held=True).send_error(late, "internal", "recorded first, committed last")
        await record(early, 2)
        await reader.read()
        assert reader.items == [], "what is in front of these is not known yet"
    await reader.until(3)
    assert reader.seen == [(str(late), 1), (str(early), 1), (str(early), 2)]


async def test_a_transaction_that_writes_first_and_records_late_takes_nothing_from_the_feed(
    client: httpx.AsyncClient, database: Database, database_url: str
) -> None:
    """It is older than others by its number, and its events' keys are larger than theirs."""
    early, late = await new_session(), await new_session()
    reader = Reader(client)
    with psycopg.connect(database_url) as writer:
        writer.execute("UPDATE prompt_sessions SET spec_id = 1 WHERE id = %s", (late,))
        await record(early)
        await reader.read()
        writer.execute(
            "INSERT INTO callbacks (event_id, session_id, callback_seq, type, status)"
            " VALUES ('evt_late', %s, 1, 'error', 'held')",
            (late,),
        )
        await reader.read()
    await reader.until(2)
    assert sorted(reader.seen) == sorted([(str(early), 1), (str(late), 1)])


async def test_a_sessions_events_are_in_order_also_where_an_older_transaction_waited_for_a_younger_one(
    client: httpx.AsyncClient, database: Database
) -> None:
    session_id = await new_session()
    async with get_db_context() as older:
        await older.run("SELECT pg_current_xact_id()", {})
        await record(session_id, 2)
        await CallbackService(older, held=True).send_error(session_id, "internal", "the third")
    reader = Reader(client)
    await reader.until(3)
    assert [seq for _, seq in reader.seen] == [1, 2, 3]


async def test_a_rolled_back_event_never_appears_and_holds_nothing_up(
    client: httpx.AsyncClient, database: Database
) -> None:
    one, other = await new_session(), await new_session()
    with pytest.raises(RuntimeError, match="rolled back"):
        async with get_db_context() as db:
            await CallbackService(db, held=True).send_error(one, "internal", "never")
            await record(other)
            raise RuntimeError("rolled back")
    reader = Reader(client)
    await reader.until(1)
    assert reader.seen == [(str(other), 1)]


async def test_a_reader_that_follows_many_transactions_at_once_sees_each_event_once_and_sessions_in_order(
    client: httpx.AsyncClient, database: Database
) -> None:
    sessions = [await new_session() for _ in range(6)]
    dice = random.Random(7)

    async def write(session_id: int) -> None:
        for _ in range(15):
            async with get_db_context() as db:
                await CallbackService(db, held=True).send_error(session_id, "internal", "some")
                await asyncio.sleep(dice.random() * 0.02)

    reader = Reader(client)
    writing = [asyncio.create_task(write(session_id)) for session_id in sessions]
    while not all(task.done() for task in writing):
        await reader.read(limit=7)
    await asyncio.gather(*writing)
    await reader.until(6 * 15)
    assert len(reader.items) == len({item["id"] for item in reader.items}) == 6 * 15
    for session_id in sessions:
        assert [seq for session, seq in reader.seen if session == str(session_id)] == list(range(1, 16))


async def test_a_cursor_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    for after in ("", "abc", "1-", "-1", "1-2-3", "9" * 19, "1.5", "٣", "1\n"):
        answer = await client.get("/api/callbacks/events", params={"after": after})
        assert answer.status_code == 422, after
        assert answer.json()["code"] == "invalid_frame"
        assert answer.headers["content-type"] == "application/problem+json"
    assert (await client.get("/api/callbacks/events", params={"after": "9" * 18})).json() == {"items": [], "next": None}


async def test_reading_the_feed_of_many_events_goes_by_an_index(database: Database, rows: Rows) -> None:
    rows("INSERT INTO prompt_sessions (exam_id, participant_id) SELECT 9, g FROM generate_series(1, 2000) AS g")
    rows(
        "INSERT INTO callbacks (event_id, session_id, callback_seq, type, status, recorded_in)"
        " SELECT 'evt_' || id || '_' || n, id, n, 'error', 'delivered', 1 + id %% 400"
        " FROM prompt_sessions, generate_series(1, 10) AS n WHERE exam_id = 9"
    )
    rows("ANALYZE callbacks")
    async with get_db_context() as db:
        found = await CallbackRepository(db).committed_events(after=(390, 0), limit=60)
    assert [callback.recorded_in for callback, _ in found] == [390] * 50 + [391] * 10
    plan = rows(
        "EXPLAIN SELECT * FROM callbacks WHERE (recorded_in, id) > (390, 0)"
        " AND recorded_in < (pg_snapshot_xmin(pg_current_snapshot())::text)::bigint ORDER BY recorded_in, id LIMIT 20"
    )
    assert any("ix_callbacks_recorded_in_id" in row["QUERY PLAN"] for row in plan)
