"""The ledger: what providers really charge for ends up in it, is summed up, and is corrected by adding to it."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from app.application.services.ledger_service import adjust_call
from app.cli import cli
from app.core.settings import Settings
from app.domain.ledger import Said, Tokens, Tolerance, model_key, purpose_for_core
from app.infrastructure.persistence.session import Database
from tests.conftest import Rows
from tests.support.chat import TurnSeen, connect, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.foreign_providers import (
    ForeignProviders,
    anthropic_answer,
    google_answer,
)
from tests.support.foreign_providers import Script as ForeignScript
from tests.support.ledger import MODEL, Usages, call, session_with
from tests.support.provider import Figures, Provider, Script
from tests.support.service import Service

Start = Callable[..., Service]


@pytest.fixture
def usages(settings: Settings, tmp_path: Path) -> Usages:
    return Usages(settings, tmp_path)


@pytest.fixture
def foreign() -> Iterator[ForeignProviders]:
    with ForeignProviders() as running:
        yield running


async def asked(service: Service) -> TurnSeen:
    async with connect(service.url) as client:
        return await client.ask("hello", **new_pair())


def ledger(rows: Rows, session_id: int) -> list[dict[str, Any]]:
    return rows("SELECT * FROM provider_calls WHERE session_id = %s ORDER BY id", session_id)


def figures(row: dict[str, Any]) -> tuple[int, int, int, int, str]:
    names = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens", "source")
    return tuple(row[name] for name in names)  # type: ignore[return-value]


# --- three providers' quirks, from the wire to the row ---


async def test_complaint_19_google_s_growing_counts_are_one_row_with_thinking_in(
    start: Start, foreign: ForeignProviders, rows: Rows
) -> None:
    foreign.script = ForeignScript(google_answer(["a", "b", "c"], thinking=["hm ", "well"], prompt=120, cached=100))
    service = start(llm={"model": "google_genai:gemini-scripted", "base_url": foreign.url})
    (row,) = ledger(rows, (await asked(service)).session_id)
    assert figures(row) == (120, 3 * 4 + 2 * 10, 100, 20, "provider")
    assert (row["provider_ref"], row["purpose"], row["adjusts"]) == ("g-1", "chat", None)


async def test_complaint_20_anthropic_s_cache_beside_the_input_is_in_the_prompt_once(
    start: Start, foreign: ForeignProviders, rows: Rows
) -> None:
    said = {"input_tokens": 25, "cache_read_input_tokens": 1000, "cache_creation_input_tokens": 300, "output_tokens": 1}
    foreign.script = ForeignScript(anthropic_answer(["a", "b"], start_usage=said, end_usage={"output_tokens": 90}))
    service = start(llm={"model": "anthropic:claude-scripted", "base_url": foreign.url})
    seen = await asked(service)
    (row,) = ledger(rows, seen.session_id)
    assert figures(row) == (1325, 90, 1000, 0, "provider")
    assert row["provider_ref"] == "msg_1"
    assert seen.end["usage"]["total_tokens"] == 1325 + 90


async def test_complaint_18_a_provider_without_figures_is_counted_and_its_calls_have_its_ids(
    service: Service, provider: Provider, rows: Rows
) -> None:
    broken = Script(ending="close", ending_at=0, usage=None)
    provider.next(Script(usage=Figures(prompt_tokens=50, completion_tokens=9, cached_tokens=30)), broken)
    provider.default = Script(usage=None)
    first, second = await asked(service), await asked(service)
    (row,) = ledger(rows, first.session_id)
    assert figures(row) == (50, 9, 30, 0, "provider")
    assert row["provider_ref"] == provider.requests[0].answer_id
    tried, answered = ledger(rows, second.session_id)
    assert [row["outcome"] for row in (tried, answered)] == ["llm_unavailable", "completed"]
    assert tried["source"] == answered["source"] == "counted"
    assert answered["provider_ref"] == provider.requests[2].answer_id
    total = sum(row["prompt_tokens"] + row["completion_tokens"] for row in (tried, answered))
    assert second.end["usage"]["total_tokens"] == total


async def test_complaint_14_a_turn_that_is_sent_again_has_no_second_row(
    service: Service, provider: Provider, rows: Rows
) -> None:
    pair = new_pair()
    for _ in range(3):
        async with connect(service.url) as client:
            seen = await client.ask("hello", "t1", **pair)
    assert len(ledger(rows, seen.session_id)) == len(provider.requests) == 1


@pytest.mark.parametrize("leaves", ["cancel", "drop"])
async def test_complaint_15_16_17_a_turn_that_is_left_has_one_row_with_what_it_used(
    service: Service, provider: Provider, rows: Rows, core: FakeCore, leaves: str
) -> None:
    pieces = tuple(f"word{number} " for number in range(12))
    provider.default = Script(pieces=pieces, piece_delay_s=0.03, usage=None)
    async with connect(service.url) as client:
        seen = await client.start("hello", text="word2", **new_pair())
        if leaves == "cancel":
            for _ in range(3):
                await client.send(type="cancel", turn_id="t1")
            await client.turn(seen=seen)
        else:
            client.drop()
    await asyncio.to_thread(wait_until, lambda: ledger(rows, seen.session_id))
    (row,) = ledger(rows, seen.session_id)
    assert row["source"] == "counted"
    assert row["prompt_tokens"] > 0
    assert row["completion_tokens"] >= (3 if leaves == "cancel" else len(pieces))
    assert row["provider_ref"] == provider.requests[0].answer_id
    await core.reaches(2)
    usage = [event.body for event in core.events(seen.session_id) if event.type == "usage"]
    assert [event["completion_tokens"] for event in usage] == [row["completion_tokens"]]


# --- the report ---


async def fill() -> list[int]:
    """Two sessions of exam 7, one of exam 8."""
    guard = call(40, 2, ref="g", purpose="guard", model="openai:small")
    first = await session_with(
        [call(100, 10, 64, ref="a", reasoning=4)],
        [call(200, 20, ref="b", source="counted", tokenizer="o200k_base", approximate=True), guard],
        pair={"exam_id": 7, "participant_id": 71},
    )
    second = await session_with(
        [call(0, 0, source="counted", outcome="llm_unavailable"), call(300, 30, ref="c")],
        pair={"exam_id": 7, "participant_id": 72},
    )
    other = await session_with([call(1000, 1000, ref="d")], pair={"exam_id": 8, "participant_id": 71})
    return [first, second, other]


async def test_the_report_sums_up_by_each_key_with_corrections_apart(
    database: Database, usages: Usages, rows: Rows
) -> None:
    first, second, _ = await fill()
    (corrected,) = rows("SELECT id FROM provider_calls WHERE provider_ref = 'b'")
    await adjust_call(corrected["id"], Said(prompt=190, completion=25), "the bill says so", held=False)

    (whole,) = await usages.lines("report", "--exam", "7")
    assert whole == {
        "all": "all",
        "calls": 5,
        "from_provider": 3,
        "counted": 2,
        "approximate": 1,
        "prompt_tokens": 640,
        "cached_tokens": 64,
        "completion_tokens": 62,
        "reasoning_tokens": 4,
        "total_tokens": 702,
        "corrections": 1,
        "correction_prompt_tokens": -10,
        "correction_cached_tokens": 0,
        "correction_completion_tokens": 5,
        "correction_reasoning_tokens": 0,
        "correction_total_tokens": -5,
        "net_total_tokens": 697,
    }
    today = rows.one("SELECT (now() AT TIME ZONE 'UTC')::date::text AS day")["day"]
    expected = {
        "participant": {"71": 367, "72": 330},
        "model": {MODEL: 655, "openai:small": 42},
        "purpose": {"chat": 655, "guard": 42},
        "session": {str(first): 367, str(second): 330},
        "day": {today: 697},
    }
    for by, sums in expected.items():
        lines = await usages.lines("report", "--exam", "7", "--by", by)
        assert {line[by]: line["net_total_tokens"] for line in lines} == sums, by
    assert (await usages.lines("report"))[0]["net_total_tokens"] == 2697
    assert await usages.lines("report", "--exam", "9") == []


async def test_the_report_is_a_table_for_people_and_csv_for_programs(database: Database, usages: Usages) -> None:
    await fill()
    head, *lines = (await usages.run("report", "--exam", "7", "--by", "day")).splitlines()
    assert head.startswith("day (UTC)")
    assert len(lines) == 1
    head, *lines, whole = (await usages.run("report", "--by", "participant")).splitlines()
    assert head.split()[:3] == ["participant", "calls", "provider"]
    assert whole.split()[0] == "all"
    assert whole.split()[-1] == "2,702"
    assert await usages.run("report", "--exam", "9") == "no calls\n"
    table = list(csv.DictReader(io.StringIO(await usages.run("report", "--by", "model", "--csv"))))
    assert [(row["model"], row["calls"], row["net_total_tokens"]) for row in table] == [
        (MODEL, "5", "2660"),
        ("openai:small", "1", "42"),
    ]


async def test_a_correction_counts_in_the_time_of_its_call_and_days_are_utc(
    database: Database, usages: Usages, rows: Rows
) -> None:
    await session_with([call(100, 10, ref="a")], [call(200, 20, ref="b")])
    rows("UPDATE provider_calls SET created_at = '2026-11-26T23:59:59.999Z' WHERE provider_ref = 'a'")
    rows("UPDATE provider_calls SET created_at = '2026-11-27T00:00:00Z' WHERE provider_ref = 'b'")
    early = rows.one("SELECT id FROM provider_calls WHERE provider_ref = 'a'")["id"]
    await adjust_call(early, Said(completion=0), "never came", held=False)

    async def nets(*arguments: str) -> dict[str, int]:
        lines = await usages.lines("report", "--by", "day", *arguments)
        return {line["day"]: line["net_total_tokens"] for line in lines}

    assert await nets() == {"2026-11-26": 100, "2026-11-27": 220}
    assert await nets("--until", "2026-11-27") == {"2026-11-26": 100}
    assert await nets("--since", "2026-11-27") == {"2026-11-27": 220}
    assert await nets("--since", "2026-11-27T09:00+09:00") == {"2026-11-27": 220}
    assert await nets("--since", "2026-11-27T09:00") == {}


# --- corrections by hand ---


async def test_a_correction_is_a_row_the_session_s_total_and_an_event_in_order(
    service: Service, provider: Provider, core: FakeCore, rows: Rows, usages: Usages
) -> None:
    provider.default = Script(usage=Figures(prompt_tokens=100, completion_tokens=30, cached_tokens=64))
    seen = await asked(service)
    session = str(seen.session_id)
    arguments = ("adjust", "--session", session, "--turn", "1", "--reason", "the bill says so")
    said = await usages.run(*arguments, "--completion-tokens", "25", "--prompt-tokens", "50")
    assert "-50 prompt, -5 completion, -14 cached" in said  # no more is cached than sent
    assert "nothing was written" in await usages.run(*arguments, "--completion-tokens", "25")
    await usages.run("adjust", "--call", "1", "--completion-tokens", "40", "--reason", "한글 and so on")

    original, *corrections = ledger(rows, seen.session_id)
    assert figures(original)[:3] == (100, 30, 64)
    assert [figures(row)[:3] for row in corrections] == [(-50, -5, -14), (0, 15, 0)]
    for row in corrections:
        assert (row["adjusts"], row["turn"], row["purpose"]) == (original["id"], 1, "chat")
        assert (row["model"], row["outcome"], row["provider_ref"]) == (original["model"], "adjusted", None)
    await core.reaches(4)
    events = core.events(seen.session_id)
    assert [event.seq for event in events] == [1, 2, 3, 4]
    usage, _, first, second = [event.body for event in events]
    assert first["type"] == second["type"] == "usage_adjusted"
    assert set(first) == {*usage, "reason"}
    told = ("turn", "turn_id", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reason")
    assert [first[name] for name in told] == [1, "t1", -50, -5, -55, -14, "the bill says so"]
    assert (first["model"], first["source"], first["purpose"]) == (usage["model"], "provider", "chat")
    assert (second["total_tokens"], second["reason"]) == (15, "한글 and so on")
    total = rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"]
    assert total == 90 == sum(event["total_tokens"] for event in (usage, first, second))
    # What the candidate was told of the turn is repeated as it was.
    async with connect(service.url) as client:
        await client.send(type="resume", session_id=session, turn_id="t1", after_seq=0)
        assert (await client.turn()).end == seen.end


async def test_a_guard_s_correction_leaves_the_chat_s_total(database: Database, usages: Usages, rows: Rows) -> None:
    session_id = await session_with([call(10, 1, ref="a"), call(40, 2, ref="g", purpose="guard")])
    before = rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"]
    arguments = ("adjust", "--session", str(session_id), "--turn", "1", "--purpose", "guard", "--reason", "r")
    await usages.run(*arguments, "--prompt-tokens", "45")
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == before
    event = rows.one("SELECT payload FROM callbacks WHERE type = 'usage_adjusted'")["payload"]
    assert (event["purpose"], event["total_tokens"]) == ("evaluation", 5)


async def test_corrections_at_once_make_one_row(database: Database, rows: Rows) -> None:
    await session_with([call(100, 10, ref="a")])
    id_ = rows.one("SELECT id FROM provider_calls")["id"]
    written = await asyncio.gather(*(adjust_call(id_, Said(completion=12), "again", held=False) for _ in range(8)))
    assert sorted(difference.completion for _, difference in written) == [0] * 7 + [2]
    assert len(rows("SELECT * FROM provider_calls WHERE adjusts = %s", id_)) == 1
    assert len(rows("SELECT * FROM callbacks WHERE type = 'usage_adjusted'")) == 1
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 112


async def test_a_correction_of_thinking_alone_is_not_told(database: Database, rows: Rows) -> None:
    await session_with([call(100, 10, ref="a")])
    await adjust_call(rows.one("SELECT id FROM provider_calls")["id"], Said(reasoning=3), "thought", held=False)
    assert [row["reasoning_tokens"] for row in rows("SELECT * FROM provider_calls ORDER BY id")] == [0, 3]
    assert rows("SELECT * FROM callbacks WHERE type = 'usage_adjusted'") == []


async def test_without_a_receiver_a_correction_is_held(database: Database, usages: Usages, rows: Rows) -> None:
    await session_with([call(100, 10, ref="a")])
    usages.settings = usages.settings.model_copy(
        update={"callbacks": usages.settings.callbacks.model_copy(update={"url": None})}
    )
    id_ = rows.one("SELECT id FROM provider_calls")["id"]
    await usages.run("adjust", "--call", str(id_), "--prompt-tokens", "99", "--reason", "r")
    assert rows.one("SELECT status FROM callbacks WHERE type = 'usage_adjusted'")["status"] == "held"


async def test_calls_are_listed_with_what_they_used_by_now(database: Database, usages: Usages, rows: Rows) -> None:
    session_id = await session_with([call(100, 10, 64, ref="a"), call(5, 1)])
    ids = [row["id"] for row in rows("SELECT id FROM provider_calls ORDER BY id")]
    await adjust_call(ids[0], Said(completion=12), "r", held=False)
    first, second = await usages.lines("calls", str(session_id))
    assert (first["call"], first["provider_ref"], first["corrections"]) == (ids[0], "a", 1)
    assert (first["completion_tokens"], first["cached_tokens"], first["total_tokens"]) == (12, 64, 112)
    assert (second["provider_ref"], second["corrections"]) == (None, 0)
    assert "100 + 12 tokens (provider)  1 corrections" in await usages.run("calls", str(session_id))
    assert "There is no session 99." in await usages.run("calls", "99", code=1)


async def test_what_cannot_be_corrected_is_told_with_the_way_out(
    database: Database, usages: Usages, rows: Rows
) -> None:
    session_id = await session_with([call(100, 10, ref="a"), call(5, 1)])
    ids = [row["id"] for row in rows("SELECT id FROM provider_calls ORDER BY id")]
    await adjust_call(ids[0], Said(completion=12), "r", held=False)
    correction = rows.one("SELECT id FROM provider_calls WHERE adjusts IS NOT NULL")["id"]
    place = ("adjust", "--prompt-tokens", "1", "--reason", "r")
    for wrong, problem in (
        (("--call", "987654"), "There is no call 987654"),
        (("--call", str(correction)), f"There is no call {correction}"),
        (("--session", str(session_id), "--turn", "1"), f"--call: {ids[0]}, {ids[1]}"),
        (("--session", str(session_id), "--turn", "2"), f"turnstone usage calls {session_id}"),
        (("--session", str(session_id)), "There is no chat call"),
    ):
        assert problem in await usages.run(*place, *wrong, code=1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "--by", "moon"),
        ("report", "--since", "yesterday"),
        ("report", "--csv", "--json"),
        ("adjust", "--reason", "r", "--call", "1"),
        ("adjust", "--reason", "r", "--prompt-tokens", "1"),
        ("adjust", "--reason", "r", "--prompt-tokens", "-1", "--call", "1"),
        ("adjust", "--reason", "r", "--prompt-tokens", "1000000001", "--call", "1"),
        ("adjust", "--reason", " ", "--prompt-tokens", "1", "--call", "1"),
        ("adjust", "--reason", "x" * 501, "--prompt-tokens", "1", "--call", "1"),
        ("adjust", "--reason", "\udc80", "--prompt-tokens", "1", "--call", "1"),
        ("adjust", "--reason", "r", "--prompt-tokens", "1", "--call", "1", "--session", "1"),
        ("adjust", "--reason", "r", "--prompt-tokens", "1", "--call", "1", "--turn", "1"),
        ("adjust", "--prompt-tokens", "1", "--call", "1"),
        ("reconcile",),
        ("reconcile", "--provider-export", "/"),
        ("reconcile", "--provider-export", "x", "--tolerance", "lots"),
        ("reconcile", "--provider-export", "x", "--tolerance", "-1"),
        ("reconcile", "--provider-export", "x", "--tolerance", "101%"),
        ("reconcile", "--provider-export", "x", "--tolerance", "nan%"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: Sequence[str]) -> None:
    assert CliRunner().invoke(cli, ["usage", *arguments]).exit_code == 2


# --- the arithmetic ---

SOME = st.integers(0, 10**9)
MAYBE = st.none() | SOME


@st.composite
def tokens(draw: st.DrawFn) -> Tokens:
    prompt, completion = draw(SOME), draw(SOME)
    return Tokens(prompt, completion, draw(st.integers(0, prompt)), draw(st.integers(0, completion)))


@given(tokens(), st.builds(Said, MAYBE, MAYBE, MAYBE, MAYBE))
def test_a_correction_leads_where_it_should_and_a_second_one_nowhere(ours: Tokens, said: Said) -> None:
    wanted = said.over(ours)
    assert 0 <= wanted.cached <= wanted.prompt and 0 <= wanted.reasoning <= wanted.completion
    assert ours + (wanted - ours) == wanted
    assert not said.over(wanted) - wanted
    assert said.prompt in (None, wanted.prompt) and said.completion in (None, wanted.completion)


@pytest.mark.parametrize(
    ("tolerance", "ours", "theirs", "equal"),
    [
        (Tolerance(), 100, 100, True),
        (Tolerance(), 100, 101, False),
        (Tolerance(tokens=5), 100, 105, True),
        (Tolerance(tokens=5), 100, 94, False),
        (Tolerance(share=0.01), 1000, 1010, True),
        (Tolerance(share=0.01), 1000, 1011, False),
        (Tolerance(tokens=5, share=0.01), 0, 5, True),
    ],
)
def test_tolerance(tolerance: Tolerance, ours: int, theirs: int, equal: bool) -> None:
    assert tolerance.allows(ours, theirs) is equal
    assert tolerance.equal(Tokens(ours), Said(theirs)) is equal


def test_names_of_models_meet() -> None:
    for name in ("openai:gpt-4.1-mini", "gpt-4.1-mini-2025-04-14", "gpt-4.1-mini"):
        assert model_key(name) == "gpt-4.1-mini"
    assert model_key("anthropic:claude-sonnet-4-5") == model_key("claude-sonnet-4-5-20250929")
    assert model_key("google_genai:gemini-2.5-flash") == model_key("models/gemini-2.5-flash")
    assert model_key("openai:ft:gpt-4.1:us::x1") == model_key("ft:gpt-4.1:us::x1") == "ft:gpt-4.1:us::x1"
    assert model_key("local") == "local"


def test_core_tells_two_purposes_apart() -> None:
    assert [purpose_for_core(name) for name in ("chat", "guard", "judge")] == ["chat", "evaluation", "evaluation"]
