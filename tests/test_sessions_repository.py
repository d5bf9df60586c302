"""Conversations in PostgreSQL: what the database itself holds them to, and how they are read back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.infrastructure.persistence.models import PromptRoleEnum, PromptSession
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.session_repository import HistoryMessage, NewMessage, SessionRepository
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.service import Service

USER, ASSISTANT = PromptRoleEnum.USER, PromptRoleEnum.ASSISTANT


async def create(exam_id: int = 1, participant_id: int = 1, spec_id: int | None = None) -> PromptSession:
    async with get_db_context() as db:
        return await SessionRepository(db).create_session(exam_id, participant_id, spec_id)


# ---------------------------------------------------------------- one active session


async def test_fifty_connections_create_one_session(database_url: str, rows: Rows) -> None:
    """Every connection has begun its transaction before any creates, so the database alone decides."""
    database = Database(database_url, pool_size=50, timeout_s=30)
    begun = asyncio.Barrier(50)

    async def one() -> int:
        async with database.transaction() as db:
            sessions = SessionRepository(db)
            assert await sessions.get_active_session(5, 6) is None
            await begun.wait()
            return (await sessions.create_session(5, 6, 7)).id

    try:
        ids = await asyncio.gather(*[one() for _ in range(50)])
    finally:
        await database.close()
    assert len(set(ids)) == 1
    session = rows.one("SELECT * FROM prompt_sessions")
    assert (session["exam_id"], session["participant_id"], session["spec_id"]) == (5, 6, 7)
    assert session["ended_at"] is None


async def test_fifty_first_messages_at_once_make_one_session(start: Callable[..., Service], rows: Rows) -> None:
    service = start(database={"timeout_s": 30})  # they wait for each other
    pair = new_pair()

    async def first_message(number: int) -> dict[str, Any]:
        async with connect(service.url) as chat:
            await chat.send(message="hello", turn_id=number, **pair)
            while (frame := await chat.receive())["type"] == "delta":
                pass
            if frame["type"] == "started":
                await chat.until("done")
            return frame

    frames = await asyncio.gather(*[first_message(number) for number in range(50)])
    assert {frame["type"] for frame in frames} <= {"started", "error"}
    assert {frame["code"] for frame in frames if frame["type"] == "error"} <= {"turn_in_progress"}
    started = [frame for frame in frames if frame["type"] == "started"]
    session = rows.one("SELECT id, last_turn FROM prompt_sessions")
    assert {frame["session_id"] for frame in started} == {str(session["id"])}
    turns = [row["turn"] for row in rows("SELECT turn FROM prompt_turns ORDER BY turn")]
    assert turns == list(range(1, session["last_turn"] + 1)) == sorted(frame["turn"] for frame in started)


async def test_ended_session_makes_room_for_another(database: Database, rows: Rows) -> None:
    first = await create()
    assert (await create()).id == first.id
    async with get_db_context() as db:
        ended = await SessionRepository(db).end_session(first.id)
    assert ended is not None
    assert ended.ended_at is not None
    async with get_db_context() as db:
        again = await SessionRepository(db).end_session(first.id)
        assert await SessionRepository(db).get_active_session(1, 1) is None
        assert await SessionRepository(db).end_session(first.id + 1) is None
    assert again is not None
    assert again.ended_at == ended.ended_at
    second = await create()
    assert second.id != first.id
    assert len(rows("SELECT id FROM prompt_sessions WHERE ended_at IS NULL")) == 1


async def test_ensure_says_whether_the_session_is_new(database: Database) -> None:
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        session, is_new = await sessions.ensure_session(1, 1, 3)
        same, is_new_again = await sessions.ensure_session(1, 1, 4)
    assert (is_new, is_new_again) == (True, False)
    assert same.id == session.id
    assert same.spec_id == 3, "it counts at creation"


REFUSED = [
    "INSERT INTO prompt_sessions (exam_id, participant_id) VALUES (1, 1)",
    "UPDATE prompt_sessions SET ended_at = NULL",
    "INSERT INTO prompt_sessions (exam_id, participant_id) VALUES (0, 1)",
    "INSERT INTO prompt_sessions (exam_id, participant_id) VALUES (2, -1)",
    "INSERT INTO prompt_sessions (exam_id, participant_id, spec_id) VALUES (2, 1, 0)",
    "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (1, 1, 'USER', 'again')",
    "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (1, 1, 'SYSTEM', 'x')",
    "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (99, 1, 'USER', 'x')",
    "INSERT INTO prompt_messages (session_id, turn, role) VALUES (1, 2, 'USER')",
    "INSERT INTO prompt_evaluations (session_id, evaluation_type) VALUES (1, 'TURN_EVAL')",
    "INSERT INTO prompt_evaluations (session_id, turn, evaluation_type) VALUES (1, 1, 'HOLISTIC_FLOW')",
    "INSERT INTO prompt_evaluations (session_id, evaluation_type) VALUES (1, 'OTHER')",
]


def test_database_itself_refuses(rows: Rows) -> None:
    rows("INSERT INTO prompt_sessions (exam_id, participant_id, ended_at) VALUES (1, 1, NULL), (1, 1, now())")
    rows("INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (1, 1, 'USER', 'x')")
    for statement in REFUSED:
        with pytest.raises(psycopg.IntegrityError):
            rows(statement)
            pytest.fail(statement)


def test_database_holds_what_the_contract_says(rows: Rows) -> None:
    columns = {
        (row["table_name"], row["column_name"]): row["data_type"]
        for row in rows("SELECT table_name, column_name, data_type FROM information_schema.columns")
    }
    for table, names in {
        "prompt_sessions": "id exam_id participant_id spec_id started_at ended_at total_tokens",
        "prompt_messages": "id session_id turn role content token_count meta created_at",
        "prompt_evaluations": "id session_id turn evaluation_type details created_at",
    }.items():
        for name in names.split():
            assert (table, name) in columns
    assert columns["prompt_messages", "meta"] == columns["prompt_evaluations", "details"] == "jsonb"
    assert columns["prompt_sessions", "started_at"] == "timestamp with time zone"


# ---------------------------------------------------------------- messages


async def test_batch_is_stored_whole_or_not_at_all(database: Database, rows: Rows) -> None:
    session = await create()
    batch = [NewMessage(1, USER, "q1", 2, {"a": [1, "한"]}), NewMessage(1, ASSISTANT, "a1"), NewMessage(2, USER, "q2")]
    async with get_db_context() as db:
        await SessionRepository(db).save_messages_batch(session.id, batch)
        await SessionRepository(db).save_messages_batch(session.id, [])
    stored = rows("SELECT turn, role, content, token_count, meta FROM prompt_messages ORDER BY id")
    assert [tuple(row.values()) for row in stored] == [
        (1, "USER", "q1", 2, {"a": [1, "한"]}),
        (1, "ASSISTANT", "a1", None, {}),
        (2, "USER", "q2", None, {}),
    ]
    refused = [NewMessage(2, ASSISTANT, "a2"), NewMessage(3, USER, "q3"), NewMessage(1, USER, "q1 again")]
    with pytest.raises(IntegrityError):
        async with get_db_context() as db:
            await SessionRepository(db).save_messages_batch(session.id, refused)
    async with get_db_context() as db:  # also where the transaction goes on
        with pytest.raises(IntegrityError):
            async with db.begin_nested():
                await SessionRepository(db).save_messages_batch(session.id, refused)
        await SessionRepository(db).add_message(session.id, 9, USER, "q9")
    turns = [(row["turn"], row["role"]) for row in rows("SELECT turn, role FROM prompt_messages ORDER BY id")]
    assert turns == [(1, "USER"), (1, "ASSISTANT"), (2, "USER"), (9, "USER")]


async def test_message_is_stored_once_for_its_turn_and_role(database: Database, rows: Rows) -> None:
    session = await create()
    async with get_db_context() as db:
        await SessionRepository(db).add_message(
            session.id, 1, USER, "한국어 🐦\n\tend", token_count=3, meta={"k": None}
        )
    for role, allowed in ((USER, False), (ASSISTANT, True)):
        try:
            async with get_db_context() as db:
                await SessionRepository(db).add_message(session.id, 1, role, "again")
        except IntegrityError:
            assert not allowed
        else:
            assert allowed
    first = rows.one("SELECT * FROM prompt_messages WHERE role = 'USER'")
    assert (first["content"], first["token_count"], first["meta"]) == ("한국어 🐦\n\tend", 3, {"k": None})
    assert first["created_at"] is not None


async def test_error_in_a_transaction_undoes_all_of_it(database: Database, rows: Rows) -> None:
    with pytest.raises(LookupError):
        async with get_db_context() as db:
            session = await SessionRepository(db).create_session(1, 1)
            await SessionRepository(db).add_message(session.id, 1, USER, "q")
            raise LookupError
    assert rows("SELECT id FROM prompt_sessions") == []


async def test_lists_are_read_in_parts(database: Database) -> None:
    for participant in (1, 2, 1):
        session = await create(3, participant)
        async with get_db_context() as db:
            await SessionRepository(db).end_session(session.id)
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        everything = await sessions.list_sessions(None, None)
        assert [s.participant_id for s in everything] == [1, 2, 1]
        assert [s.id for s in await sessions.list_sessions(3, 1)] == [everything[0].id, everything[2].id]
        assert [s.id for s in await sessions.list_sessions(3, None, after=everything[0].id, limit=1)] == [
            everything[1].id
        ]
        assert await sessions.list_sessions(4, None) == []
        await sessions.save_messages_batch(session.id, [NewMessage(turn, USER, f"q{turn}") for turn in range(1, 6)])
        messages = await sessions.list_messages(session.id, limit=3)
        assert [message.content for message in messages] == ["q1", "q2", "q3"]
        rest = await sessions.list_messages(session.id, after=messages[-1].id)
        assert [message.content for message in rest] == ["q4", "q5"]
        assert await sessions.list_messages(everything[0].id) == []


# ---------------------------------------------------------------- the history that fits


async def fill(db: AsyncSession, turns: int, *, tokens: int | None = 10, answered: bool = True) -> int:
    """A session whose messages have ``tokens`` each."""
    sessions = SessionRepository(db)
    session = await sessions.create_session(1, 1)
    for turn in range(1, turns + 1):
        await sessions.add_message(session.id, turn, USER, "q" * 100, token_count=tokens)
        if answered:
            await sessions.add_message(session.id, turn, ASSISTANT, "a" * 100, token_count=tokens)
    return session.id


def shown(history: list[HistoryMessage]) -> list[tuple[int, str]]:
    return [(message.turn, message.role.value[0]) for message in history]


async def test_history_is_the_newest_that_fits_and_one_beyond(database: Database) -> None:
    async with get_db_context() as db:
        session_id = await fill(db, 5)
        sessions = SessionRepository(db)
        newest_first = [(turn, role) for turn in range(5, 0, -1) for role in "UA"]
        for budget, count in [(0, 1), (9, 1), (10, 2), (25, 3), (40, 5), (89, 9), (90, 10), (10_000, 10)]:
            history = await sessions.history(session_id, before_turn=6, token_budget=budget)
            assert shown(history) == newest_first[:count], budget
            within = [message.token_count or 0 for message in history[:-1]]
            assert sum(within) <= budget
        before = await sessions.history(session_id, before_turn=3, token_budget=10_000)
        assert shown(before) == [(2, "U"), (2, "A"), (1, "U"), (1, "A")]
        assert await sessions.history(session_id, before_turn=1, token_budget=10_000) == []
        assert await sessions.history(session_id + 1, before_turn=6, token_budget=10_000) == []


async def test_history_weighs_what_nobody_counted_by_its_characters(database: Database) -> None:
    async with get_db_context() as db:
        session_id = await fill(db, 5, tokens=None)
        history = await SessionRepository(db).history(session_id, before_turn=6, token_budget=100)
        assert shown(history) == [(5, "U"), (5, "A"), (4, "U")], "50 each"


async def test_history_knows_what_was_cut_off(database: Database) -> None:
    async with get_db_context() as db:
        session_id = await fill(db, 2, answered=False)
        sessions = SessionRepository(db)
        await sessions.add_message(session_id, 1, ASSISTANT, "whole", meta={"status": "completed"})
        await sessions.add_message(session_id, 2, ASSISTANT, "par", meta={"partial": True})
        history = await sessions.history(session_id, before_turn=3, token_budget=1000)
        assert [(m.turn, m.content, m.partial) for m in history if m.role is ASSISTANT] == [
            (2, "par", True),
            (1, "whole", False),
        ]


async def test_history_reads_no_more_than_it_needs_of_a_long_conversation(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        session_id = await fill(db, 200)
        history = await SessionRepository(db).history(session_id, before_turn=201, token_budget=100)
    assert len(history) == 11
    assert all(later.turn >= earlier.turn for later, earlier in pairwise(history))
