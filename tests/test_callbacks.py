"""What Core is told: the bodies, their numbers, the transaction they belong to, and the ways to look at them."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import IntegrityError

from app.application.services.callback_service import CallbackService
from app.application.turns.ending import FinalTurn
from app.application.turns.running import TurnRef
from app.application.turns.settlement import NotOursError, settle
from app.core.settings import Settings
from app.domain.conversation import FinishReason, TurnStatus, Usage
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.callback_repository import CallbackFilter, replay_each
from app.infrastructure.repositories.session_repository import NewTurn, SessionRepository
from app.infrastructure.repositories.turn_repository import CallRecord, TurnEnding
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.core import Answer, FakeCore
from tests.support.provider import Figures, Provider, Script
from tests.support.service import Service

WAIT_S = 30.0
HANGING = Script(pieces=("It ", "hangs."), ending="hang")


def common(pair: dict[str, int], session_id: str, seq: int, kind: str) -> dict[str, Any]:
    return {"type": kind, "session_id": session_id, **pair, "callback_seq": seq}


def without_time(body: dict[str, Any]) -> dict[str, Any]:
    """The body but for ``occurred_at``, which is checked: RFC 3339, and now."""
    moment = datetime.fromisoformat(body["occurred_at"])
    assert "T" in body["occurred_at"] and body["occurred_at"].endswith("Z")
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=5)
    return {name: value for name, value in body.items() if name != "occurred_at"}


async def bodies(core: FakeCore, count: int) -> list[dict[str, Any]]:
    await core.reaches(count, WAIT_S)
    return [without_time(delivery.body) for delivery in core.events()]


# the bodies


async def test_a_completed_turn_tells_its_usage_and_its_answer(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    pair = new_pair()
    provider.next(
        Script(
            pieces=("Gut. ", "작은 새 🐦"),
            usage=Figures(prompt_tokens=100, completion_tokens=7, cached_tokens=64),
        )
    )
    async with connect(service.url) as client:
        seen = await client.ask("hello", turn_id=7, **pair)
    session_id = seen.started["session_id"]
    assert await bodies(core, 2) == [
        {
            **common(pair, session_id, 1, "usage"),
            "turn": 1,
            "turn_id": 7,
            "prompt_tokens": 100,
            "completion_tokens": 7,
            "total_tokens": 107,
            "cached_tokens": 64,
            "model": "openai:scripted",
            "source": "provider",
            "purpose": "chat",
        },
        {
            **common(pair, session_id, 2, "message_response"),
            "turn": 1,
            "turn_id": 7,
            "ai_message": "Gut. 작은 새 🐦",
            "metadata": {"status": "completed", "finish_reason": "stop"},
        },
    ]
    assert [delivery.signature for delivery in core.deliveries] == [True, True]


async def test_a_cancelled_turn_tells_what_came_and_what_it_used(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    pair = new_pair()
    provider.next(HANGING)
    async with connect(service.url) as client:
        await client.send(type="message", message="hello", turn_id="t", **pair)
        started = await client.until("started")
        await client.until("delta")
        await client.send(type="cancel", turn_id="t")
        cancelled = await client.until("cancelled")
    usage, answer = await bodies(core, 2)
    assert usage == {
        **common(pair, started["session_id"], 1, "usage"),
        "turn": 1,
        "turn_id": "t",
        "cached_tokens": 0,
        "model": "openai:scripted",
        "purpose": "chat",
        **cancelled["usage"],
    }
    assert usage["source"] == "counted" and usage["completion_tokens"] > 0
    assert answer["metadata"] == {"status": "cancelled", "finish_reason": None}
    assert "It hangs.".startswith(answer["ai_message"]) and answer["ai_message"]


async def test_a_turn_that_the_provider_broke_off_tells_of_the_error_too(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    pair = new_pair()
    provider.next(Script(pieces=("Half ", "an ", "answer"), ending="reset", ending_at=2))
    async with connect(service.url) as client:
        seen = await client.ask("hello", turn_id="t", **pair)
    session_id = seen.started["session_id"]
    usage, answer, error = await bodies(core, 3)
    assert (usage["type"], usage["source"], usage["callback_seq"]) == ("usage", "counted", 1)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 0
    assert answer == {
        **common(pair, session_id, 2, "message_response"),
        "turn": 1,
        "turn_id": "t",
        "ai_message": seen.text,
        "metadata": {"status": "failed", "finish_reason": None, "error_type": "llm_unavailable"},
    }
    assert error == {
        **common(pair, session_id, 3, "error"),
        "error_type": "llm_unavailable",
        "error_message": seen.end["message"],
        "metadata": {"turn": 1, "turn_id": "t", "retryable": True},
    }


async def test_a_turn_that_never_reached_the_provider_has_no_usage(
    service: Service, provider: Provider, core: FakeCore
) -> None:
    provider.stop()
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    answer, error = await bodies(core, 2)
    assert (answer["type"], answer["callback_seq"], answer["ai_message"]) == ("message_response", 1, "")
    assert answer["metadata"]["status"] == "failed"
    assert (error["type"], error["callback_seq"], error["error_type"]) == ("error", 2, "llm_unavailable")


async def test_an_interrupted_turn_is_a_failed_one_to_core(
    start: Callable[..., Service], provider: Provider, core: FakeCore
) -> None:
    service = await asyncio.to_thread(start, shutdown_grace_s=0.1)
    provider.next(HANGING)
    async with connect(service.url) as client:
        await client.send(type="message", message="hello", turn_id="t", **new_pair())
        await client.until("delta")
        await asyncio.to_thread(service.stop)
    await asyncio.to_thread(start)
    usage, answer, error = await bodies(core, 3)
    assert (usage["type"], usage["source"]) == ("usage", "counted")
    assert answer["metadata"] == {"status": "failed", "finish_reason": None, "error_type": "interrupted"}
    assert (error["type"], error["error_type"]) == ("error", "interrupted")
    assert error["metadata"] == {"turn": 1, "turn_id": "t", "retryable": True}


async def test_the_other_types_have_their_fields(database: Database, rows: Rows) -> None:
    pair = new_pair()
    async with get_db_context() as db:
        session_id = (await SessionRepository(db).create_session(**pair)).id
        callbacks = CallbackService(db)
        await callbacks.send_turn_evaluation(session_id, 3, {"intent": "ask"}, 71.5, revision=2)
        await callbacks.send_final_scores(session_id, 1, 2, "s-9", {"total": 80.0}, {"3": 71.5})
        await callbacks.send_usage(session_id, None, 5, 6, 11, purpose="evaluation", model="m", source="counted")
    found = rows("SELECT type, callback_seq, payload FROM callbacks ORDER BY callback_seq")
    assert [(row["type"], row["callback_seq"]) for row in found] == [
        ("turn_evaluation", 1),
        ("final_scores", 2),
        ("usage", 3),
    ]
    assert found[0]["payload"] == {"turn": 3, "turn_log": {"intent": "ask"}, "turn_score": 71.5, "revision": 2}
    assert found[1]["payload"] == {
        "exam_id": 1,
        "participant_id": 2,
        "submission_id": "s-9",
        "final_scores": {"total": 80.0},
        "turn_scores": {"3": 71.5},
        "previous_revision": None,
        "revision": 1,
    }
    assert (found[2]["payload"]["turn"], found[2]["payload"]["turn_id"]) == (None, None)
    assert (found[2]["payload"]["purpose"], found[2]["payload"]["source"]) == ("evaluation", "counted")


async def test_complaint_17_a_turn_asked_for_again_and_again_is_billed_once(
    service: Service, core: FakeCore, rows: Rows
) -> None:
    pair = new_pair()

    async def ask() -> None:
        async with connect(service.url) as client:
            await client.ask("hello", turn_id="t", **pair)

    await asyncio.gather(ask(), ask(), ask())
    await ask()
    await core.reaches(2, WAIT_S)
    assert [row["type"] for row in rows("SELECT type FROM callbacks ORDER BY id")] == ["usage", "message_response"]
    assert len(core.deliveries) == 2
    usage = core.deliveries[0].body
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == usage["total_tokens"]


# their numbers and their transaction


async def test_numbers_have_no_gap_whatever_runs_at_once_and_is_rolled_back(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        sessions = [(await SessionRepository(db).create_session(**new_pair())).id for _ in range(4)]
    dice = random.Random(26)

    async def transact(session_id: int, *, give_up: bool) -> None:
        try:
            async with get_db_context() as db:
                await CallbackService(db).send_error(session_id, "internal", "one")
                await CallbackService(db).send_error(session_id, "internal", "two")
                if give_up:
                    raise RuntimeError("rolled back")
        except RuntimeError:
            pass

    plan = [(session_id, dice.random() < 0.4) for session_id in sessions for _ in range(20)]
    dice.shuffle(plan)
    await asyncio.gather(*(transact(session_id, give_up=give_up) for session_id, give_up in plan))
    for session_id in sessions:
        kept = 2 * sum(not give_up for planned, give_up in plan if planned == session_id)
        found = rows("SELECT callback_seq FROM callbacks WHERE session_id = %s ORDER BY id", session_id)
        assert [row["callback_seq"] for row in found] == list(range(1, kept + 1))
        lane = rows.one("SELECT wakes FROM callback_lanes WHERE session_id = %s", session_id)
        assert lane["wakes"] == kept


async def test_an_unknown_session_can_be_told_nothing_of(database: Database) -> None:
    with pytest.raises(LookupError):
        async with get_db_context() as db:
            await CallbackService(db).send_error(987_654, "internal", "nobody's")


@pytest.fixture
async def running_turn(database: Database) -> TurnRef:
    """A turn that waits for its ending."""
    async with get_db_context() as db:
        owner = await WorkerRepository(db).register("test", 6)
        session = await SessionRepository(db).create_session(**new_pair())
    new = NewTurn(session.id, "t", turn_id_is_int=False, owner=owner, model="m", message="why?")
    async with get_db_context() as db:
        started = await SessionRepository(db).start_turn(new, token_budget=0)
    assert started is not None
    return TurnRef(started.pk, session.id, started.turn, "t", owner)


USED = Usage(10, 5, source="provider")
FINAL = FinalTurn(
    text="answer",
    row=TurnEnding(TurnStatus.COMPLETED, USED, finish_reason=FinishReason.STOP, lengths=[6]),
    calls=[CallRecord("m", USED, "completed")],
    token_count=5,
)


async def test_a_turn_whose_ending_cannot_be_stored_tells_nothing(running_turn: TurnRef, rows: Rows) -> None:
    rows(
        "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (%s, 1, 'ASSISTANT', 'in the way')",
        running_turn.session_id,
    )
    with pytest.raises(IntegrityError):
        await settle(running_turn, FINAL, held=False)
    assert rows("SELECT * FROM callbacks") == rows("SELECT * FROM callback_lanes") == []
    session = rows.one("SELECT callback_seq, total_tokens FROM prompt_sessions")
    assert session == {"callback_seq": 0, "total_tokens": 0}
    rows("DELETE FROM prompt_messages WHERE role = 'ASSISTANT'")
    await settle(running_turn, FINAL, held=False)
    told = rows("SELECT type, callback_seq, occurred_at FROM callbacks ORDER BY id")
    assert [(row["type"], row["callback_seq"]) for row in told] == [("usage", 1), ("message_response", 2)]
    stored = rows.one("SELECT created_at FROM prompt_messages WHERE role = 'ASSISTANT'")
    assert {row["occurred_at"] for row in told} == {stored["created_at"]}, "one transaction has one time"


async def test_a_turn_that_is_ended_twice_at_once_is_told_once(running_turn: TurnRef, rows: Rows) -> None:
    outcomes = await asyncio.gather(
        *(settle(running_turn, FINAL, held=False) for _ in range(5)), return_exceptions=True
    )
    assert sorted(map(repr, outcomes)) == sorted([repr(None), *[repr(NotOursError())] * 4])
    assert [row["callback_seq"] for row in rows("SELECT callback_seq FROM callbacks ORDER BY id")] == [1, 2]
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 15


# looking at them


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    return problem


async def test_callbacks_can_be_listed_filtered_paged_and_replayed_over_rest(service: Service, core: FakeCore) -> None:
    core.next(Answer(status=410))  # the very first event fails
    pairs = [new_pair(), new_pair()]
    async with httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as client:
        sessions = []
        for pair in pairs:
            answer = await client.post("/api/chat/message", json={"message": "hello", **pair})
            sessions.append(answer.json()["session_id"])
            await core.reaches(2 * len(sessions) - 1, WAIT_S)

        async def listed(**query: Any) -> list[dict[str, Any]]:
            answer = await client.get("/api/callbacks", params=query)
            assert answer.status_code == 200
            items: list[dict[str, Any]] = answer.json()["items"]
            return items

        async with asyncio.timeout(WAIT_S):
            while len(await listed(status="delivered")) < 3:
                await asyncio.sleep(0.02)
        everything = await listed()
        assert [(item["session_id"], item["callback_seq"]) for item in everything] == [
            (session_id, seq) for session_id in sessions for seq in (1, 2)
        ]
        (failed,) = await listed(status="failed")
        assert failed == everything[0]
        assert (failed["attempts"], failed["last_error"], failed["delivered_at"]) == (1, "HTTP 410", None)
        assert failed["payload"] == core.deliveries[0].body
        assert failed["id"] == core.deliveries[0].id
        assert [item["type"] for item in await listed(type="usage")] == ["usage", "usage"]
        assert await listed(type="usage", session_id=sessions[1]) == [everything[2]]
        assert await listed(status="held") == await listed(type="final_scores") == []

        paged: list[dict[str, Any]] = []
        cursor: str | None = "0"
        while cursor is not None:
            part = (await client.get("/api/callbacks", params={"limit": 3, "cursor": cursor})).json()
            paged += part["items"]
            cursor = part["next"]
        assert paged == everything

        replayed = await client.post(f"/api/callbacks/{failed['id']}/replay")
        assert replayed.status_code == 202
        assert (replayed.json()["status"], replayed.json()["attempts"]) == ("pending", 0)
        await core.reaches(4, WAIT_S)
        assert core.deliveries[-1].id == failed["id"]
        assert core.deliveries[-1].body == failed["payload"]

        async with asyncio.timeout(WAIT_S):
            while len(await listed(status="delivered")) < 4:
                await asyncio.sleep(0.02)
        shown = await client.get(f"/api/callbacks/{failed['id']}")
        assert (shown.status_code, shown.json()["id"]) == (200, failed["id"])
        refused, taken = shown.json()["tries"]
        assert (refused["number"], refused["status"], refused["error"], refused["body_start"]) == (
            1, 410, "HTTP 410", "{}"
        )  # fmt: skip
        assert (taken["number"], taken["status"], taken["error"], taken["body_start"]) == (1, 200, None, None)
        assert refused["tried_at"] < taken["tried_at"] and 0 <= refused["duration_ms"] < 10_000
        for path in ("/api/callbacks/evt_none", "/api/callbacks/%00"):
            assert problem_of(await client.get(path))["code"] == "not_found"
        for path in ("/api/callbacks/evt_none/replay", "/api/callbacks/%00/replay"):
            missing = await client.post(path)
            assert (missing.status_code, problem_of(missing)["code"]) == (404, "not_found")
        for query in ({"status": "lost"}, {"limit": 0}, {"limit": "many"}, {"cursor": -1}, {"type": "a b"}):
            wrong = await client.get("/api/callbacks", params=query)
            assert (wrong.status_code, problem_of(wrong)["code"]) == (422, "invalid_frame")
        nobody = await client.get("/api/callbacks", params={"session_id": "nobody's"})
        assert (nobody.status_code, problem_of(nobody)["code"]) == (404, "session_not_found")


async def test_callbacks_are_replayed_by_filter_and_by_time(service: Service, core: FakeCore, rows: Rows) -> None:
    core.always(Answer(status=410))
    pairs = [{"exam_id": 901, "participant_id": 1}, {"exam_id": 902, "participant_id": 1}]
    async with httpx.AsyncClient(base_url=service.url, timeout=WAIT_S) as client:
        sessions = [
            (await client.post("/api/chat/message", json={"message": "hello", **pair})).json()["session_id"]
            for pair in pairs
        ]
        await core.reaches(lambda posts: len(posts) == 4, WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while rows("SELECT 1 FROM callbacks WHERE status <> 'failed'"):
                await asyncio.sleep(0.02)
        core.always(Answer())
        moment = rows("SELECT max(occurred_at) AS at FROM callbacks WHERE session_id = %s", int(sessions[0]))[0]["at"]

        async def replayed(**which: Any) -> int:
            answer = await client.post("/api/callbacks/replay", json=which)
            assert answer.status_code == 202, answer.text
            count: int = answer.json()["replayed"]
            return count

        assert await replayed(type="final_scores") == await replayed(status="delivered") == 0
        assert await replayed(until=moment.isoformat()) == 0
        assert await replayed(session_id=sessions[1], type="usage") == 1
        await core.reaches(1, WAIT_S)
        assert await replayed(exam_id=pairs[0]["exam_id"], since=moment.isoformat()) == 2
        await core.reaches(3, WAIT_S)
        assert await replayed(status="failed") == 1
        await core.reaches(4, WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while rows("SELECT 1 FROM callbacks WHERE status <> 'delivered'"):
                await asyncio.sleep(0.02)
        for which in ({}, {"status": "lost"}, {"kind": "usage"}, {"since": "yesterday"}, {"exam_id": 0}):
            wrong = await client.post("/api/callbacks/replay", json=which)
            assert (wrong.status_code, problem_of(wrong)["code"]) == (422, "invalid_frame")


async def test_a_replay_of_many_goes_on_part_by_part(database: Database, rows: Rows) -> None:
    async with get_db_context() as db:
        session_id = (await SessionRepository(db).create_session(**new_pair())).id
    rows(
        "INSERT INTO callbacks (event_id, session_id, callback_seq, type, status)"
        " SELECT 'evt_' || n, %s, n, 'usage', 'failed' FROM generate_series(1, 1200) AS n",
        session_id,
    )
    parts = [len(part) async for part in replay_each(CallbackFilter(status=CallbackStatusEnum.FAILED))]
    assert parts == [500, 500, 200]
    assert [row["status"] for row in rows("SELECT DISTINCT status FROM callbacks")] == ["pending"]
    assert len(rows("SELECT 1 FROM callback_lanes")) == 1


async def test_without_a_receiver_callbacks_are_held_and_go_out_when_one_is_set(
    start: Callable[..., Service], core: FakeCore, rows: Rows
) -> None:
    deaf = await asyncio.to_thread(start, callbacks={"url": None})
    pair = new_pair()
    async with httpx.AsyncClient(base_url=deaf.url, timeout=WAIT_S) as client:
        await client.post("/api/chat/message", json={"message": "hello", **pair})
        held = (await client.get("/api/callbacks", params={"status": "held"})).json()["items"]
        assert [item["callback_seq"] for item in held] == [1, 2]
        again = await client.post(f"/api/callbacks/{held[0]['id']}/replay")
        assert (again.status_code, again.json()["status"]) == (202, "held")
    await asyncio.to_thread(deaf.stop)
    assert len(core.deliveries) == 0
    hearing = await asyncio.to_thread(start)
    async with httpx.AsyncClient(base_url=hearing.url, timeout=WAIT_S) as client:
        await client.post("/api/chat/message", json={"message": "hello again", **pair})
    await core.reaches(4, WAIT_S)
    assert [delivery.seq for delivery in core.deliveries] == [1, 2, 3, 4]
    assert [delivery.id for delivery in core.deliveries][:2] == [item["id"] for item in held]


RUN_COMMANDS = """
import contextlib, io, json, sys
from app.cli import main
for line in sys.stdin:
    sys.argv = ["turnstone", *json.loads(line)]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


async def test_callbacks_can_be_listed_shown_and_replayed_by_command(
    database: Database, settings: Settings, core: FakeCore, rows: Rows, scratch: Path, start: Callable[..., Service]
) -> None:
    async with get_db_context() as db:
        session = await SessionRepository(db).create_session(**new_pair())
        session_id, exam_id = session.id, session.exam_id
        await CallbackService(db).send_error(session_id, "internal", "first")
        await CallbackService(db).send_usage(session_id, 1, 2, 3, 5)
    rows("UPDATE callbacks SET status = 'failed', attempts = 11, last_error = 'HTTP 500'")
    rows("DELETE FROM callback_lanes")
    first, second = (row["event_id"] for row in rows("SELECT event_id FROM callbacks ORDER BY id"))
    commands = [
        ["callbacks", "list", "--json"],
        ["callbacks", "list", "--status", "failed", "--type", "usage", "--session", str(session_id)],
        ["callbacks", "list", "--status", "held"],
        ["callbacks", "show", first],
        ["callbacks", "show", "evt_none"],
        ["callbacks", "replay", first, second],
        ["callbacks", "replay", "evt_none"],
        ["callbacks", "list", "--status", "nonsense"],
        ["callbacks", "replay", "--status", "pending", "--exam", str(exam_id), "--since", "2026-01-01", "--dry-run"],
        ["callbacks", "replay", "--type", "usage", "--until", "2026-01-01T12:00"],
        ["callbacks", "replay", "--status", "pending", "--session", str(session_id)],
        ["callbacks", "replay"],
        ["callbacks", "replay", first, "--status", "failed"],
    ]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUN_COMMANDS],
        input="\n".join(map(json.dumps, commands)),
        env={
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "TURNSTONE_DATABASE__URL": settings.database.url or "",
            "TURNSTONE_DATA_DIR": str(scratch / "commands"),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    listed, filtered, none, shown, missing, replayed, unknown, misused, dry, before, chosen, unsaid, both = results
    assert listed[0] == filtered[0] == none[0] == shown[0] == replayed[0] == 0
    items = [json.loads(line) for line in listed[1].splitlines()]
    assert [(item["id"], item["type"], item["attempts"]) for item in items] == [
        (first, "error", 11),
        (second, "usage", 11),
    ]
    assert filtered[1].count("\n") == 1
    for part in (second, "failed", "11 tries", f"session {session_id} #2", "usage", "HTTP 500"):
        assert part in filtered[1]
    assert none[1] == ""
    assert json.loads(shown[1]) == {**items[0], "tries": []}
    assert [(result[0], result[1]) for result in (dry, before, chosen)] == [
        (0, "2 callbacks would be sent once more\n"),
        (0, "0 callbacks are on their way again\n"),
        (0, "2 callbacks are on their way again\n"),
    ]
    assert unsaid[0] == both[0] == 2 and "which" in unsaid[2]
    assert shown[1].count("error_message") == 1
    assert replayed[1].splitlines() == [f"{first}  pending", f"{second}  pending"]
    for failed in (missing, unknown):
        assert failed[0] == 1
        assert "There is no callback evt_none." in failed[2] and "Traceback" not in failed[2]
    assert misused[0] == 2
    await asyncio.to_thread(start)
    await core.reaches(2, WAIT_S)
    assert [delivery.id for delivery in core.deliveries] == [first, second]
