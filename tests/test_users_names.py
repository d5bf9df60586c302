"""The names that the user of this project chose: each is there, does what it says, and lies on the real path."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

from app.application.services.callback_service import CallbackService
from app.application.services.eval_service import EvalService
from app.application.turns.exchange import Started
from app.domain.turn_log import Done, Piece
from app.infrastructure.cache.redis_client import RedisClient
from app.infrastructure.persistence.models import PromptMessage, PromptSession
from app.infrastructure.persistence.models.enums import PromptRoleEnum
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.session_repository import NewMessage, SessionRepository
from app.infrastructure.repositories.state_repository import StateRepository, TurnKey
from app.infrastructure.repositories.turn_repository import StoredText
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.core import FakeCore
from tests.support.provider import DEFAULT_PIECES, Provider, Script
from tests.support.redis_server import RedisServer
from tests.support.service import Service

ROOT = Path(__file__).parents[1]
ANSWER = "".join(DEFAULT_PIECES)

NAMES = [
    # file, what it holds, its arguments by the user's names
    ("app/presentation/api/routes/chat.py", "router", None),
    ("app/application/services/eval_service.py", "EvalService", None),
    ("app/application/services/eval_service.py", "EvalService.process_message", ["message"]),
    ("app/application/services/eval_service.py", "EvalService.process_message_stream", ["message", "turn_id"]),
    ("app/application/services/callback_service.py", "CallbackService", None),
    (
        "app/application/services/callback_service.py",
        "CallbackService.send_usage",
        ["session_id", "turn", "prompt_tokens", "completion_tokens", "total_tokens"],
    ),
    (
        "app/application/services/callback_service.py",
        "CallbackService.send_message_response",
        ["session_id", "turn", "ai_message", "metadata"],
    ),
    (
        "app/application/services/callback_service.py",
        "CallbackService.send_turn_evaluation",
        ["session_id", "turn", "turn_log", "turn_score"],
    ),
    (
        "app/application/services/callback_service.py",
        "CallbackService.send_final_scores",
        ["session_id", "exam_id", "participant_id", "submission_id", "final_scores", "turn_scores"],
    ),
    (
        "app/application/services/callback_service.py",
        "CallbackService.send_error",
        ["session_id", "error_type", "error_message", "metadata"],
    ),
    ("app/domain/langgraph/nodes/writer.py", "writer", ["state"]),
    ("app/domain/langgraph/nodes/guard.py", "guard", ["state"]),
    ("app/infrastructure/persistence/models/enums.py", "PromptRoleEnum.USER", None),
    ("app/infrastructure/persistence/models/enums.py", "PromptRoleEnum.ASSISTANT", None),
    ("app/infrastructure/persistence/models/__init__.py", "PromptSession", None),
    ("app/infrastructure/persistence/models/__init__.py", "PromptMessage", None),
    ("app/infrastructure/persistence/session.py", "get_db_context", []),
    ("app/infrastructure/repositories/session_repository.py", "SessionRepository", None),
    (
        "app/infrastructure/repositories/session_repository.py",
        "SessionRepository.create_session",
        ["exam_id", "participant_id", "spec_id"],
    ),
    (
        "app/infrastructure/repositories/session_repository.py",
        "SessionRepository.get_active_session",
        ["exam_id", "participant_id"],
    ),
    (
        "app/infrastructure/repositories/session_repository.py",
        "SessionRepository.add_message",
        ["session_id", "turn", "role", "content"],
    ),
    (
        "app/infrastructure/repositories/session_repository.py",
        "SessionRepository.save_messages_batch",
        ["session_id", "messages"],
    ),
    ("app/infrastructure/repositories/session_repository.py", "SessionRepository.end_session", ["session_id"]),
    ("app/infrastructure/repositories/state_repository.py", "StateRepository", None),
    ("app/infrastructure/cache/redis_client.py", "RedisClient", None),
]


@pytest.mark.parametrize(("path", "name", "arguments"), NAMES, ids=[f"{path}:{name}" for path, name, _ in NAMES])
def test_name_is_found_where_the_user_put_it(path: str, name: str, arguments: list[str] | None) -> None:
    assert (ROOT / path).is_file()
    module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    if arguments is not None:
        parameters = [parameter for parameter in inspect.signature(found).parameters if parameter != "self"]
        assert parameters[: len(arguments)] == arguments


def test_tables_and_words_are_the_users() -> None:
    assert PromptSession.__tablename__ == "prompt_sessions"
    assert PromptMessage.__tablename__ == "prompt_messages"
    assert [PromptRoleEnum.USER.value, PromptRoleEnum.ASSISTANT.value] == ["USER", "ASSISTANT"]


# ---------------------------------------------------------------- each is called as the user calls it


async def test_repository_stores_a_conversation(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        sessions = SessionRepository(db)
        created = await sessions.create_session(exam_id=3, participant_id=5, spec_id=7)
        active = await sessions.get_active_session(exam_id=3, participant_id=5)
        assert active is not None
        assert active.id == created.id
        await sessions.add_message(session_id=created.id, turn=1, role=PromptRoleEnum.USER, content="why?")
        await sessions.save_messages_batch(
            created.id,
            [NewMessage(1, PromptRoleEnum.ASSISTANT, "because"), NewMessage(2, PromptRoleEnum.USER, "and?")],
        )
    session = rows.one("SELECT * FROM prompt_sessions")
    assert (session["exam_id"], session["participant_id"], session["spec_id"]) == (3, 5, 7)
    assert session["ended_at"] is None
    told = rows("SELECT session_id, turn, role, content FROM prompt_messages ORDER BY id")
    assert [tuple(row.values()) for row in told] == [
        (created.id, 1, "USER", "why?"),
        (created.id, 1, "ASSISTANT", "because"),
        (created.id, 2, "USER", "and?"),
    ]
    async with get_db_context() as db:
        await SessionRepository(db).end_session(session_id=created.id)
        assert await SessionRepository(db).get_active_session(3, 5) is None
    assert rows.one("SELECT ended_at FROM prompt_sessions")["ended_at"] is not None


async def test_callbacks_are_recorded_in_order_with_the_users_fields(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        session = await SessionRepository(db).create_session(3, 5)
        callbacks = CallbackService(db)
        await callbacks.send_usage(
            session_id=session.id, turn=1, prompt_tokens=10, completion_tokens=4, total_tokens=14
        )
        await callbacks.send_message_response(
            session_id=session.id, turn=1, ai_message="because", metadata={"status": "completed"}
        )
        await callbacks.send_turn_evaluation(session.id, 1, {"analysis": "clear"}, 3.5)
        await callbacks.send_final_scores(session.id, 3, 5, "sub-1", {"total": 71.5}, {"1": 3.5})
        await callbacks.send_error(session.id, "llm_timeout", "It fell silent.", {"turn": 2})
    recorded = rows("SELECT callback_seq, type, payload, status FROM callbacks ORDER BY callback_seq")
    assert [(row["callback_seq"], row["type"]) for row in recorded] == [
        (1, "usage"),
        (2, "message_response"),
        (3, "turn_evaluation"),
        (4, "final_scores"),
        (5, "error"),
    ]
    assert {row["status"] for row in recorded} == {"pending"}
    usage, response, evaluation, scores, error = (row["payload"] for row in recorded)
    assert usage.items() >= {"turn": 1, "prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 14}.items()
    assert (response["turn"], response["ai_message"], response["metadata"]) == (1, "because", {"status": "completed"})
    assert (evaluation["turn"], evaluation["turn_log"], evaluation["turn_score"]) == (1, {"analysis": "clear"}, 3.5)
    assert (scores["exam_id"], scores["participant_id"], scores["submission_id"]) == (3, 5, "sub-1")
    assert (scores["final_scores"], scores["turn_scores"]) == ({"total": 71.5}, {"1": 3.5})
    assert (error["error_type"], error["error_message"]) == ("llm_timeout", "It fell silent.")
    assert error["metadata"] == {"turn": 2}


async def test_callback_of_no_session_and_of_an_undone_transaction_is_not_recorded(
    database: Database, rows: Rows
) -> None:
    with pytest.raises(LookupError):
        async with get_db_context() as db:
            session = await SessionRepository(db).create_session(3, 5)
            await CallbackService(db).send_usage(session.id, 1, 1, 1, 2)
            await CallbackService(db).send_usage(session.id + 1, 1, 1, 1, 2)
    assert rows("SELECT id FROM callbacks") == []


def test_recorded_callbacks_reach_core(service: Service, core: FakeCore) -> None:
    """Nothing sends these yet but whoever records them; the way from there is the same for all."""

    async def record() -> str:
        async with get_db_context() as db:
            session = await SessionRepository(db).create_session(3, 5)
            await CallbackService(db).send_turn_evaluation(session.id, 1, {"analysis": "clear"}, 3.5)
            await CallbackService(db).send_final_scores(session.id, 3, 5, "sub-1", {"total": 71.5}, {"1": 3.5})
        service.resources.relay.wake()
        return str(session.id)

    session_id = service.call(record())
    core.wait_for(2)
    evaluation, scores = (delivery.body for delivery in core.events(session_id))
    common = {"session_id": session_id, "exam_id": 3, "participant_id": 5}
    assert evaluation.items() >= {"type": "turn_evaluation", "callback_seq": 1, "turn_score": 3.5, **common}.items()
    assert scores.items() >= {"type": "final_scores", "callback_seq": 2, "submission_id": "sub-1", **common}.items()


async def test_live_turn_is_kept_in_redis() -> None:
    with RedisServer() as server, server.client() as look:
        client, other = RedisClient(server.url, timeout_s=20), RedisClient(server.url, timeout_s=20)
        try:
            state = StateRepository(client)
            key = TurnKey(1, "t1")
            state.open(key).append("first ")
            await state.mirror()
            assert look.xlen("turnstone:turn:1:t1") == 1
            found = await StateRepository(other).read(key)
            assert found is not None and found[0] == StoredText("first ", [6])
        finally:
            await client.close()
            await other.close()


def test_service_answers_by_both_methods(service: Service, rows: Rows) -> None:
    evaluation: EvalService = service.resources.service

    async def stream() -> list[object]:
        events: AsyncIterator[object] = aiter(
            evaluation.process_message_stream("why?", "t1", exam_id=3, participant_id=5)
        )
        return [event async for event in events]

    started, *pieces, done = service.call(stream())
    assert isinstance(started, Started)
    assert (started.turn, started.turn_id) == (1, "t1")
    assert all(isinstance(piece, Piece) for piece in pieces)
    assert "".join(piece.content for piece in pieces) == ANSWER
    assert isinstance(done, Done)
    result = service.call(evaluation.process_message("and?", session_id=started.session_id))
    assert (result.turn, result.ai_message, result.usage.total_tokens) == (2, ANSWER, 31)
    told = rows("SELECT turn, role, content FROM prompt_messages ORDER BY id")
    assert [tuple(row.values()) for row in told] == [
        (1, "USER", "why?"),
        (1, "ASSISTANT", ANSWER),
        (2, "USER", "and?"),
        (2, "ASSISTANT", ANSWER),
    ]


# ---------------------------------------------------------------- and lies on the real path


@contextmanager
def traced() -> Iterator[list[str]]:
    """The names of our functions in the order of their calls, in every thread that is started inside.

    A coroutine is called anew whenever it goes on, so names repeat.
    """
    calls: list[str] = []

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            module = frame.f_globals.get("__name__", "")
            if module.startswith("app."):
                calls.append(f"{module}.{frame.f_code.co_qualname}")

    threading.setprofile(profile)
    try:
        yield calls
    finally:
        threading.setprofile(None)


SESSIONS = "app.infrastructure.repositories.session_repository.SessionRepository"
STATE = "app.infrastructure.repositories.state_repository.StateRepository"
SERVICE = "app.application.services.eval_service.EvalService"
CALLBACKS = "app.application.services.callback_service.CallbackService"
NODES = "app.domain.langgraph.nodes"
CLIENT = "app.infrastructure.llm.openai_client.OpenAIClient"
PATH_OF_A_TURN = [
    f"{SERVICE}.process_message_stream",
    "app.infrastructure.persistence.session.get_db_context",
    f"{SESSIONS}.get_active_session",
    f"{SESSIONS}.create_session",
    f"{SESSIONS}.start_turn",
    f"{STATE}.open",
    f"{CLIENT}.stream",
    f"{SESSIONS}.add_message",
    f"{SESSIONS}.save_messages_batch",
    f"{CALLBACKS}.send_usage",
    f"{CALLBACKS}.send_message_response",
    f"{STATE}.close",
]


def check_order(calls: list[str], path: list[str]) -> None:
    """From the route on, every name of the path was called, one after the other.

    Background jobs use some of these names too, at any time; so a name counts where it is called behind the one before.
    """
    at = 0
    for name in path:
        assert name in calls[at:], f"{name} was not called behind {calls[at]}"
        at = calls.index(name, at)
    # The graph begins while the message is being stored; what it does there depends on the database's pace.
    stream = calls.index(f"{CLIENT}.stream")
    assert calls.index(f"{NODES}.guard.guard") < calls.index(f"{NODES}.writer.writer") < stream


async def test_turn_over_the_socket_takes_the_users_path(
    start: Callable[..., Service], provider: Provider, core: FakeCore
) -> None:
    provider.next(Script(piece_delay_s=0.05))
    with RedisServer() as redis, traced() as calls:
        service = start(redis={"url": redis.url})
        before = len(calls)
        async with connect(service.url) as chat:
            turn = await chat.ask("why?", "t1", **new_pair())
        assert turn.end["type"] == "done"
        await core.reaches(2)
        await asyncio.to_thread(service.stop)
    seen = calls[before:]
    check_order(seen, ["app.presentation.api.routes.chat.chat", *PATH_OF_A_TURN])
    assert "app.infrastructure.cache.redis_client.RedisClient.write" in seen
    assert f"{SERVICE}.process_message" not in seen


async def test_turn_over_rest_takes_the_users_path(start: Callable[..., Service], core: FakeCore) -> None:
    with traced() as calls:
        service = start()
        before = len(calls)
        async with httpx.AsyncClient(base_url=service.url, timeout=20) as http:
            answer = (await http.post("/api/chat/message", json={"message": "why?", **new_pair()})).json()
            assert answer["ai_message"] == ANSWER
            await core.reaches(2)
            after_turn = len(calls)
            await http.post(f"/api/sessions/{answer['session_id']}/end")
        await asyncio.to_thread(service.stop)
    check_order(
        calls[before:after_turn],
        ["app.presentation.api.routes.chat.post_message", f"{SERVICE}.process_message", *PATH_OF_A_TURN],
    )
    assert f"{SESSIONS}.end_session" in calls[after_turn:]
    assert f"{SESSIONS}.end_session" not in calls[before:after_turn]
    assert sys.getprofile() is None
