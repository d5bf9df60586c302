"""A provider that fails, seen from outside: what a candidate, Core and the database are told of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx
import psycopg
import pytest

from app.core.settings import Settings
from app.domain.langgraph.nodes import writer
from app.domain.model_client import ChatMessage
from app.infrastructure.llm.tokens import TokenCounter
from tests.conftest import CORE_KEY, SECRET, Rows, change
from tests.support.chat import Command, connect, environment, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.provider import SECRET as PROVIDER_SECRET
from tests.support.provider import Provider, Script
from tests.support.service import Service, running

Start = Callable[..., Service]
PIECES = ("A turnstone ", "turns ", "stones ", "over.")
HALF = "".join(PIECES[:2])
TRUE = Script(pieces=PIECES)
REJECTED, UNAVAILABLE, TIMEOUT = "llm_rejected", "llm_unavailable", "llm_timeout"


class Case(NamedTuple):
    """A fault and what has to come of it. ``used``: what the turn is counted with."""

    name: str
    script: Script
    code: str
    retryable: bool
    requests: int
    text: str = ""
    used: Literal["nothing", "prompt", "prompt and text", "prompt twice"] = "nothing"


def midway(name: str, *, text: str = HALF, code: str = UNAVAILABLE, retryable: bool = True, **script: Any) -> Case:
    return Case(name, Script(pieces=PIECES, **script), code, retryable, 1, text, "prompt and text")


def before_text(name: str, **script: Any) -> Case:
    return Case(name, Script(pieces=PIECES, **script), UNAVAILABLE, True, 2, "", "prompt twice")


def cut(kind: Literal["eof", "close", "reset", "hang"], at: int, **script: Any) -> dict[str, Any]:
    return {"ending": kind, "ending_at": at, **script}


STATUSES = [
    *(Case(f"status {status}", Script(status=status), REJECTED, False, 1) for status in (400, 404, 413, 422)),
    *(Case(f"status {status}", Script(status=status), UNAVAILABLE, False, 1) for status in (401, 403)),
    *(Case(f"status {status}", Script(status=status), UNAVAILABLE, True, 2) for status in (429, 500, 502, 503)),
    Case("soon again", Script(status=429, headers=(("Retry-After", "0.4"),)), UNAVAILABLE, True, 2),
    Case("much later", Script(status=429, headers=(("Retry-After", "7"),)), UNAVAILABLE, True, 1),
    Case("much later too", Script(status=503, headers=(("Retry-After", "3600"),)), UNAVAILABLE, True, 1),
    Case("elsewhere", Script(status=307, headers=(("Location", "http://127.0.0.1:9/"),)), UNAVAILABLE, False, 1),
]
BROKEN = [
    midway("ends early", **cut("eof", 2)),
    midway("closes", **cut("close", 2)),
    midway("closes politely", **cut("close", 2, chunked=False)),
    midway("resets", **cut("reset", 2)),
    midway("invalid JSON", insert=((2, "invalid_json"),)),
    midway("invalid UTF-8", insert=((2, "invalid_utf8"),)),
    midway("no object", insert=((2, "not_an_object"),)),
    midway("wrong types", insert=((2, "wrong_types"),)),
    midway("error event", insert=((2, "error_event"),)),
    midway("named error event", insert=((2, "named_error_event"),)),
    midway(
        "rejects in the middle",
        code=REJECTED,
        retryable=False,
        insert=((2, f'data: {{"error":{{"message":"{PROVIDER_SECRET}","code":400}}}}\n\n'),),
    ),
    before_text("closes at once", **cut("close", 0)),
    before_text("resets at once", **cut("reset", 0)),
    before_text("is empty", role_first=False, **cut("eof", 0)),
    before_text("is broken at once", insert=((0, "invalid_json"),)),
    before_text("errs at once", insert=((0, "error_event"),)),
    before_text("breaks off thinking", reasoning=("hm", "hm"), **cut("close", 0)),
    Case("no headers, closed", Script(**cut("close", -1)), UNAVAILABLE, True, 2),
    Case("no headers, reset", Script(**cut("reset", -1)), UNAVAILABLE, True, 2),
]
SILENT = [
    Case("no headers", Script(**cut("hang", -1)), TIMEOUT, True, 1, "", "prompt"),
    Case("headers only", Script(**cut("hang", 0)), TIMEOUT, True, 1, "", "prompt"),
    midway("in the middle", code=TIMEOUT, **cut("hang", 2)),
]


class World:
    """The service among the provider, Core and the database, and what a case is checked against."""

    def __init__(self, service: Service, provider: Provider, core: FakeCore, rows: Rows) -> None:
        self.service, self.provider, self.core, self.rows = service, provider, core, rows
        self.counter = TokenCounter("openai:scripted")

    async def play(self, case: Case) -> None:
        """Run the case in a session of its own, and a good turn after it."""
        self.provider.named[case.name] = case.script
        message = f"Please fail now. [[script:{case.name}]]"
        async with connect(self.service.url) as client:
            failed = await client.ask(message, "bad", **new_pair())
            session_id = failed.started["session_id"]
            fine = await client.ask("And now answer.", 2, session_id=session_id)
        assert (failed.end["type"], failed.end["code"]) == ("error", case.code), (case, failed.end)
        assert failed.end["retryable"] is case.retryable, (case, failed.end)
        assert failed.text == case.text, case
        assert failed.end["last_seq"] == failed.last_seq, case
        assert failed.end["turn"] == 1, case
        assert (fine.end["type"], fine.end["turn"], fine.text) == ("done", 2, TRUE.text), (case, fine.end)
        asked = [request for request in self.provider.requests if request.last_user_text == message]
        assert len(asked) == case.requests, case
        usage = self._check_usage(case, failed.end["usage"], asked[0].messages)
        self._check_rows(case, int(session_id), usage)
        await self._check_callbacks(case, session_id, failed.end, fine.end)

    def _check_usage(self, case: Case, usage: dict[str, Any], sent: list[dict[str, Any]]) -> dict[str, Any]:
        counted = self.counter.count_messages([ChatMessage(**message) for message in sent]).tokens
        prompt = {"nothing": 0, "prompt twice": 2 * counted}.get(case.used, counted)
        completion = self.counter.count(case.text).tokens if case.used == "prompt and text" else 0
        expected = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        assert usage == {**expected, "source": "counted"}, case
        return expected

    def _check_rows(self, case: Case, session_id: int, usage: dict[str, Any]) -> None:
        turn = self.rows.one("SELECT * FROM prompt_turns WHERE session_id = %s AND turn = 1", session_id)
        assert (turn["status"], turn["error_code"], turn["error_retryable"]) == ("failed", case.code, case.retryable)
        assert (turn["finish_reason"], turn["ended_at"] is None) == (None, False), case
        assert (turn["prompt_tokens"], turn["completion_tokens"]) == (
            usage["prompt_tokens"],
            usage["completion_tokens"],
        ), case
        stored = self.rows("SELECT * FROM prompt_messages WHERE session_id = %s AND turn = 1 ORDER BY id", session_id)
        assert [row["role"] for row in stored] == (["USER", "ASSISTANT"] if case.text else ["USER"]), case
        if case.text:
            assert stored[1]["content"] == case.text, case
            assert stored[1]["meta"]["partial"] is True, case
            assert stored[1]["meta"]["status"] == "failed", case
        calls = self.rows("SELECT * FROM provider_calls WHERE session_id = %s AND turn = 1", session_id)
        assert [call["outcome"] for call in calls] == [case.code] * case.requests, case

    async def _check_callbacks(self, case: Case, session_id: str, error: dict[str, Any], fine: dict[str, Any]) -> None:
        await self.core.reaches(lambda _: len(self.core.events(session_id)) >= 5, 30)
        bodies = [delivery.body for delivery in self.core.events(session_id)]
        kinds = ["usage", "message_response", "error", "usage", "message_response"]
        assert [body["type"] for body in bodies] == kinds, case
        assert [body["callback_seq"] for body in bodies] == [1, 2, 3, 4, 5], case
        usage, response, failure, next_usage, _ = bodies
        for said, told in ((usage, error["usage"]), (next_usage, fine["usage"])):
            assert {name: said[name] for name in told} == told, case
        assert (usage["turn"], usage["turn_id"], usage["purpose"]) == (1, "bad", "chat"), case
        assert (response["ai_message"], response["metadata"]["status"]) == (case.text, "failed"), case
        assert (failure["error_type"], failure["error_message"]) == (case.code, error["message"]), case
        total = self.rows.one("SELECT total_tokens FROM prompt_sessions WHERE id = %s", int(session_id))
        assert total["total_tokens"] == usage["total_tokens"] + next_usage["total_tokens"], case


@pytest.fixture
def outside(
    database_url: str, core: FakeCore, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[], str]:
    """Everything that the service has told anybody, the socket apart: logs, callbacks, and all rows of all tables."""
    caplog.set_level(logging.DEBUG)

    def collect() -> str:
        told = [*capfd.readouterr(), *(record.getMessage() for record in caplog.records if _of_service(record))]
        told += [delivery.raw.decode() for delivery in core.deliveries]
        with psycopg.connect(database_url) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            for (table,) in tables:
                told += [row for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t').fetchall()]
        return "\n".join(told)

    return collect


def _of_service(record: logging.LogRecord) -> bool:
    return record.threadName == "service"


@pytest.mark.parametrize(
    ("cases", "timeout_s"), [(STATUSES, 30), (BROKEN, 30), (SILENT, 4)], ids=["statuses", "broken", "silent"]
)
async def test_every_fault_is_typed_stored_metered_and_reported_and_the_next_turn_works(
    start: Start,
    provider: Provider,
    core: FakeCore,
    rows: Rows,
    outside: Callable[[], str],
    cases: list[Case],
    timeout_s: float,
) -> None:
    provider.default = TRUE
    service = start(llm={"timeout_s": timeout_s})
    world = World(service, provider, core, rows)
    await asyncio.gather(*(world.play(case) for case in cases))
    told = outside()
    assert "llm_" in told
    assert PROVIDER_SECRET not in told


async def test_nothing_of_the_provider_s_words_reaches_the_wire(service: Service, provider: Provider) -> None:
    provider.next(Script(status=400), Script(pieces=("x",), insert=((1, "error_event"),)), Script(status=401))
    async with connect(service.url) as client:
        pair = new_pair()
        for turn in range(3):
            seen = await client.ask("hello", turn, **pair)
            assert seen.end["type"] == "error"
            assert PROVIDER_SECRET not in json.dumps(seen.frames)
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        for status, code in ((400, REJECTED), (403, UNAVAILABLE), (503, UNAVAILABLE)):
            provider.default = Script(status=status)
            answer = await rest.post("/api/chat/message", json={"message": "hello", **new_pair()}, timeout=30)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == code
            assert PROVIDER_SECRET not in answer.text


async def test_where_no_provider_listens_there_is_an_error_and_no_usage(
    start: Start, core: FakeCore, rows: Rows, provider: Provider
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        service = start(llm={"base_url": f"http://127.0.0.1:{taken.getsockname()[1]}/v1"})
        async with connect(service.url) as client:
            seen = await client.ask("hello", **new_pair())
    assert (seen.end["code"], seen.end["retryable"], seen.end["last_seq"]) == (UNAVAILABLE, True, 0)
    assert seen.end["usage"]["total_tokens"] == 0
    deliveries = await core.reaches(lambda _: len(core.events()) >= 2, 30)
    assert [delivery.type for delivery in deliveries] == ["message_response", "error"]
    assert rows("SELECT * FROM provider_calls") == []
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 0
    assert [row["role"] for row in rows("SELECT role FROM prompt_messages")] == ["USER"]
    assert len(provider.requests) == 0


async def test_a_provider_that_comes_back_answers_the_next_turn(service: Service, provider: Provider) -> None:
    async with connect(service.url) as client:
        pair = new_pair()
        assert (await client.ask("one", 1, **pair)).end["type"] == "done"
        provider.stop()
        assert (await client.ask("two", 2, **pair)).end["code"] == UNAVAILABLE
        provider.start()
        assert (await client.ask("three", 3, **pair)).end["type"] == "done"


ODD = {
    "empty": (Script(pieces=()), "stop", ""),
    "only reasoning": (Script(pieces=(), reasoning=("hm", "well")), "stop", ""),
    "only an end": (Script(pieces=(), role_first=False, finish_reason=None, usage=None), "stop", ""),
    "filtered": (Script(pieces=("No.",), finish_reason="content_filter"), "refused", "No."),
    "length": (Script(pieces=PIECES, finish_reason="length"), "length", TRUE.text),
    "without an end mark": (Script(pieces=PIECES, done=False), "stop", TRUE.text),
}


async def test_odd_answers_end_well(service: Service, provider: Provider, core: FakeCore, rows: Rows) -> None:
    async with connect(service.url) as client:
        for number, (name, (script, finish_reason, text)) in enumerate(ODD.items(), 1):
            provider.named[name] = script
            seen = await client.ask(f"hello [[script:{name}]]", **new_pair())
            session_id = seen.started["session_id"]
            assert (seen.end["type"], seen.end["finish_reason"], seen.text) == ("done", finish_reason, text), name
            assert seen.end["usage"]["prompt_tokens"] > 0, name
            stored = rows(
                "SELECT content FROM prompt_messages WHERE session_id = %s AND role = 'ASSISTANT'", session_id
            )
            assert [row["content"] for row in stored] == ([text] if text else []), name
            await core.reaches(2 * number, 30)
            usage, response = [delivery.body for delivery in core.events(session_id)]
            assert usage["total_tokens"] == seen.end["usage"]["total_tokens"], name
            assert (response["ai_message"], response["metadata"]["status"]) == (text, "completed"), name
    assert len(provider.requests) == len(ODD)


# --- the one quick repetition ---


REPAIRED = {
    "503": Script(status=503),
    "429 soon": Script(status=429, headers=(("Retry-After", "0.5"),)),
    "no headers": Script(**cut("close", -1)),
    "no text": Script(**cut("reset", 0)),
    "error event": Script(insert=((0, "error_event"),)),
    "half a character": Script(pieces=("\ud83d",), **cut("close", 1)),
}


async def test_a_fault_before_any_text_is_repaired_by_asking_again(
    service: Service, provider: Provider, rows: Rows
) -> None:
    async with connect(service.url) as client:
        for name, first in REPAIRED.items():
            provider.requests.clear()
            provider.next(first, TRUE)
            seen = await client.ask("hello", **new_pair())
            assert (seen.end["type"], seen.text) == ("done", TRUE.text), name
            one, two = provider.requests
            assert one.messages == two.messages, name
            assert two.started_at - one.started_at >= (0.5 if first.headers else 0.2), name
            calls = rows(
                "SELECT outcome FROM provider_calls WHERE session_id = %s ORDER BY id", seen.started["session_id"]
            )
            assert [call["outcome"] for call in calls] == [UNAVAILABLE, "completed"], name


async def test_what_ends_the_second_try_is_what_is_told(service: Service, provider: Provider) -> None:
    provider.next(Script(status=503), Script(status=400), Script(status=503), Script(pieces=PIECES, **cut("close", 2)))
    async with connect(service.url) as client:
        rejected = await client.ask("hello", **new_pair())
        broken_off = await client.ask("hello", **new_pair())
    assert rejected.end["code"] == REJECTED
    assert (broken_off.end["code"], broken_off.text) == (UNAVAILABLE, HALF)
    assert len(provider.requests) == 4


async def test_a_cancel_between_two_tries_prevents_the_second(
    service: Service, provider: Provider, core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float | None] = []
    its_own = writer._pause_before_next_try

    def long_pause(*failed: Any) -> float:
        pauses.append(its_own(*failed))
        return 60  # so that the cancel comes within it, however long the machine stands still

    monkeypatch.setattr(writer, "_pause_before_next_try", long_pause)
    provider.default = Script(status=503, headers=(("Retry-After", "1"),))
    async with connect(service.url) as client:
        await client.send(type="message", message="hello", turn_id=1, **new_pair())
        await client.until("started")
        await provider.closed_reach(1)
        await asyncio.to_thread(wait_until, lambda: pauses)
        await client.send(type="cancel", turn_id=1)
        seen = await client.turn()
    assert seen.end["type"] == "cancelled"
    assert seen.end["usage"]["total_tokens"] == 0
    assert pauses == [1.0]
    assert len(provider.requests) == 1
    assert [delivery.type for delivery in await core.reaches(2, 30)] == ["usage", "message_response"]


# --- as a process, with its own logs ---


async def test_a_process_logs_codes_and_neither_words_nor_keys(
    settings: Settings, provider: Provider, tmp_path: Path
) -> None:
    key, prompt, answer = "sk-our-own-key-9e2f", "a-prompt-that-stays-private", "an-answer-that-stays-private "
    provider.default = Script(pieces=(answer, answer))
    # longer than a machine stands still: one of the names is silent, and the others are not
    own = {"data_dir": tmp_path, "port": 0, "log_level": "debug", "llm": {"api_key": key, "timeout_s": 4}}
    process = Command("serve", env=environment(change(settings, **own)), cwd=tmp_path)
    names = ("default", "status_401", "status_500", "reset_midway", "error_event", "hang_midway", "broken_invalid_json")
    with running(process):
        process.wait_ready()
        async with connect(process.url) as client:
            pair = new_pair()
            for number, name in enumerate(names):
                await client.ask(f"{prompt} [[script:{name}]]", number, **pair)
        process.wait_for_line("llm_timeout")
        assert process.stop() == 0
    assert [request.authorization for request in provider.requests][:1] == [f"Bearer {key}"]
    for line in ("HTTP 401", "HTTP 500", "llm_unavailable"):
        assert line in process.output
    for private in (key, prompt, answer, PROVIDER_SECRET, CORE_KEY, SECRET, "turnstone turns"):
        assert private not in process.output


def test_cases_have_names_of_their_own() -> None:
    names = [case.name for case in itertools.chain(STATUSES, BROKEN, SILENT)]
    assert len(set(names)) == len(names)
