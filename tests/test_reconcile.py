"""Our ledger, the provider's bill and Core's books: every kind of difference is named, and what can be is corrected."""

from __future__ import annotations

import asyncio
import csv
import gc
import io
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from app.application.services.reconciliation import Exports, differences
from app.core.settings import Settings
from app.domain.ledger import DifferenceKind, Scope, Tolerance
from app.infrastructure.persistence.session import Database
from tests.conftest import Rows, change
from tests.support.chat import Command, connect, environment, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.ledger import MODEL, Usages, call, session_with
from tests.support.provider import Figures, Provider, Script
from tests.support.service import Service, running

Export = list[dict[str, Any]]


@pytest.fixture
def usages(settings: Settings, tmp_path: Path) -> Usages:
    return Usages(settings, tmp_path)


def bill(rows: Rows) -> Export:
    """What a provider exports whose figures are ours."""
    query = "SELECT * FROM provider_calls WHERE adjusts IS NULL AND provider_ref IS NOT NULL ORDER BY id"
    names = ("prompt_tokens", "completion_tokens", "cached_tokens")
    return [
        {"id": row["provider_ref"], "model": "gpt-scripted-2026-01-01", **{name: row[name] for name in names}}
        for row in rows(query)
    ]


def kept(rows: Rows, *, deliver: bool = True) -> Export:
    """What Core exports that has taken everything."""
    if deliver:
        rows("UPDATE callbacks SET status = 'delivered'")
    names = ("turn", "purpose", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
    return [
        {"webhook_id": row["event_id"], "session_id": str(row["session_id"]), "type": row["type"]}
        | {name: row["payload"][name] for name in names}
        for row in rows("SELECT * FROM callbacks WHERE type IN ('usage', 'usage_adjusted') ORDER BY id")
    ]


def kinds(found: Export) -> list[str]:
    return [difference["kind"] for difference in found]


# --- nothing ---


async def test_books_that_agree_have_no_difference(
    service: Service, provider: Provider, core: FakeCore, rows: Rows, usages: Usages
) -> None:
    """From the provider's own records and Core's own books, as they came over the wire."""
    provider.default = Script(usage=Figures(prompt_tokens=100, completion_tokens=20, cached_tokens=64))
    async with connect(service.url) as client:
        pair = new_pair()
        for number in range(3):
            await client.ask("hello", number, **pair)
    await core.reaches(6)
    charged = [
        {"id": request.answer_id, "model": "scripted", "input_tokens": 100, "output_tokens": 20}
        for request in provider.requests
    ]
    booked = [{**event.body, "webhook-id": event.id} for event in core.events()]
    arguments = (
        *("--provider-export", usages.json_lines("bill", charged)),
        *("--core-export", usages.json_lines("core", booked)),
    )
    assert await usages.run("reconcile", *arguments) == "no difference\n"
    assert await usages.reconcile(*arguments) == (
        [],
        {"kind": "summary", "differences": 0, "proposed": 0, "applied": 0, "by_kind": {}},
    )
    # Our own commands' output is an export too.
    listed = await asyncio.to_thread(Command("callbacks", "list", "--json", env=environment(usages.settings)).ended)
    calls = "".join([await usages.run("calls", "1", "--json")])
    arguments = ("--provider-export", usages.file("ours", calls), "--core-export", usages.file("listed", listed[1]))
    assert await usages.run("reconcile", *arguments) == "no difference\n"


# --- the provider ---


async def provider_books() -> None:
    await session_with(
        [call(100, 10, 64, ref="same")],
        [call(200, 20, ref="differs")],
        [call(300, 30, ref="estimated", source="counted", tokenizer="o200k_base")],
        [call(400, 40, ref="missing")],
        [call(0, 0, ref="refused", source="counted", outcome="llm_unavailable"), call(500, 50, ref="doubled")],
        [call(600, 60, source="counted")],
        [call(70, 7, ref="guarded", purpose="guard", model="openai:small")],
    )


async def test_every_difference_to_the_provider_is_named(database: Database, usages: Usages, rows: Rows) -> None:
    await provider_books()
    charged = [row for row in bill(rows) if row["id"] not in ("missing", "refused")]
    by_id = {row["id"]: row for row in charged}
    by_id["differs"] |= {"prompt_tokens": 210, "cached_tokens": 5}
    by_id["estimated"] |= {"completion_tokens": 29}
    by_id["guarded"] |= {"completion_tokens": 8}
    charged.append(dict(by_id["doubled"]))
    charged.append({"id": "theirs", "model": "m", "prompt_tokens": 1, "completion_tokens": 2})
    found, summary = await usages.reconcile("--provider-export", usages.json_lines("bill", charged))
    assert [(one["kind"], one.get("provider_ref"), one["line"]) for one in found] == [
        ("provider_figures_differ", "differs", 2),
        ("estimate_differs", "estimated", 3),
        ("missing_at_provider", "missing", None),
        ("doubled_at_provider", "doubled", 4),
        ("provider_figures_differ", "guarded", 5),
        ("no_provider_id", None, None),
        ("unknown_to_us", "theirs", 7),
    ]
    differs, estimated, missing, _, guarded, nameless, theirs = found
    assert differs["proposal"] == {
        "prompt_tokens": 10,
        "completion_tokens": 0,
        "cached_tokens": 5,
        "reasoning_tokens": 0,
    }
    assert (estimated["ours"]["completion_tokens"], estimated["theirs"]["completion_tokens"]) == (30, 29)
    assert (estimated["session_id"], estimated["turn"], estimated["model"]) == ("1", 3, MODEL)
    assert (guarded["purpose"], guarded["proposal"]["completion_tokens"]) == ("guard", 1)
    assert [one["proposal"] for one in (missing, nameless, theirs)] == [None] * 3
    assert summary["by_kind"]["provider_figures_differ"] == 2
    assert (summary["proposed"], summary["applied"]) == (3, 0)
    printed = await usages.run("reconcile", "--provider-export", usages.json_lines("bill", charged), code=1)
    assert "provider_figures_differ: session_id 1, turn 2, purpose chat" in printed
    assert "ours 200 + 20; theirs 210 (5 cached) + 20; proposed: +10 prompt, +5 cached\n" in printed
    assert printed.splitlines()[-2].startswith("7 differences: 1 doubled_at_provider, 1 estimate_differs, ")
    assert printed.splitlines()[-1] == "3 corrections proposed; --apply writes them"
    assert rows("SELECT * FROM provider_calls WHERE adjusts IS NOT NULL") == []


async def test_calls_that_share_an_id_are_compared_as_one(database: Database, usages: Usages, rows: Rows) -> None:
    await session_with([call(100, 10, ref="one")], [call(200, 20, ref="one")], [call(7, 3, ref="two")])
    charged = bill(rows)
    assert (await usages.reconcile("--provider-export", usages.json_lines("bill", charged)))[0] == []
    charged[0]["prompt_tokens"] += 1
    found, _ = await usages.reconcile("--provider-export", usages.json_lines("bill", charged))
    assert [(one["kind"], one["proposal"]) for one in found] == [("provider_figures_differ", None)]
    assert (found[0]["ours"]["prompt_tokens"], found[0]["theirs"]["prompt_tokens"]) == (300, 301)
    found, _ = await usages.reconcile("--provider-export", usages.json_lines("bill", charged[1:]))
    assert [(one["kind"], one["detail"]) for one in found] == [
        ("missing_at_provider", "2 calls of ours have this id, 1 rows of the export")
    ]


async def test_the_tolerance_is_of_tokens_or_a_share(database: Database, usages: Usages, rows: Rows) -> None:
    await session_with([call(1000, 10, ref="a")], [call(1000, 10, ref="b")])
    charged = bill(rows)
    charged[0]["prompt_tokens"] = 1010
    charged[1]["completion_tokens"] = 13
    file = usages.json_lines("bill", charged)

    async def differ(tolerance: str) -> list[str]:
        found, _ = await usages.reconcile("--provider-export", file, "--tolerance", tolerance)
        return [one["provider_ref"] for one in found]

    assert await differ("0") == ["a", "b"]
    assert await differ("3") == ["a"]
    assert await differ("10") == []
    assert await differ("1%") == ["b"]
    assert await differ("30%") == []


async def test_exam_and_time_say_which_calls_are_meant(database: Database, usages: Usages, rows: Rows) -> None:
    await session_with([call(100, 10, ref="a")], [call(200, 20, ref="b")], pair={"exam_id": 7, "participant_id": 1})
    await session_with([call(300, 30, ref="c")], pair={"exam_id": 8, "participant_id": 1})
    rows("UPDATE provider_calls SET created_at = '2026-11-26T12:00Z' WHERE provider_ref = 'a'")
    rows("UPDATE provider_calls SET created_at = '2026-11-27T12:00Z' WHERE provider_ref = 'b'")
    everything = bill(rows)
    nothing = usages.file("nothing", "id,input_tokens,output_tokens\n")

    async def missing(*arguments: str) -> list[str]:
        found, _ = await usages.reconcile("--provider-export", nothing, *arguments)
        return [one["provider_ref"] for one in found]

    assert await missing() == ["a", "b", "c"]
    assert await missing("--exam", "7") == ["a", "b"]
    assert await missing("--exam", "7", "--since", "2026-11-27") == ["b"]
    assert await missing("--until", "2026-11-27T12:00") == ["a"]
    # What belongs to calls of ours that are not meant is not unknown.
    whole = usages.json_lines("bill", everything)
    assert (await usages.reconcile("--provider-export", whole, "--exam", "8"))[0] == []


async def test_sums_of_models_and_days_are_compared_where_calls_have_no_ids(
    database: Database, usages: Usages, rows: Rows
) -> None:
    await session_with(
        [call(100, 10, 64, ref="a"), call(200, 20)],
        [call(300, 30, model="openai:gpt-other")],
        [call(5, 5, model="openai:gpt-new")],
    )
    rows("UPDATE provider_calls SET created_at = '2026-11-26T23:59Z' WHERE prompt_tokens = 100")
    rows("UPDATE provider_calls SET created_at = '2026-11-27T00:01Z' WHERE prompt_tokens <> 100")
    head = "date,model,input_tokens,output_tokens,input_cached_tokens\n"
    good = "2026-11-26,gpt-scripted,100,10,64\n2026-11-27,gpt-scripted-2026-01-01,150,15,0\n"
    good += "2026-11-27,gpt-scripted,50,5,0\n2026-11-27,gpt-other,300,30,0\n2026-11-27,gpt-new,5,5,0\n"
    file = usages.file("days", head + good)
    assert await usages.run("reconcile", "--provider-export", file) == "no difference\n"
    bad = good.replace("100,10,64", "100,10,60").replace("gpt-other,300", "gpt-other,301").replace("gpt-new", "gpt-old")
    file = usages.file("days", head + bad)
    found, _ = await usages.reconcile("--provider-export", file)
    assert [(one["kind"], one["day"], one["model"], one["line"]) for one in found] == [
        ("provider_sum_differs", "2026-11-26", "gpt-scripted", 2),
        ("provider_sum_differs", "2026-11-27", "gpt-new", None),
        ("provider_sum_differs", "2026-11-27", "gpt-old", 6),
        ("provider_sum_differs", "2026-11-27", "gpt-other", 5),
    ]
    assert all(one["proposal"] is None for one in found)
    found, _ = await usages.reconcile("--provider-export", file, "--until", "2026-11-27")
    assert [one["day"] for one in found] == ["2026-11-26"]
    refused = await usages.run("reconcile", "--provider-export", file, "--exam", "1", code=1)
    assert "Leave out --exam" in refused


# --- Core ---


async def test_every_difference_to_core_is_named(database: Database, usages: Usages, rows: Rows) -> None:
    session_id = await session_with(*([call(100 + number, 10, 5, ref=f"r{number}")] for number in range(1, 9)))
    other = await session_with([call(1, 1, ref="r9")])
    booked = kept(rows)
    ids = [row["webhook_id"] for row in booked]
    rows("UPDATE callbacks SET status = 'pending' WHERE event_id = %s", ids[1])
    rows("UPDATE callbacks SET status = 'held' WHERE event_id = %s", ids[2])
    rows("UPDATE callbacks SET status = 'failed' WHERE event_id = %s", ids[3])
    rows("UPDATE callbacks SET status = 'pending' WHERE event_id = %s", ids[7])  # Core has it, we have not heard
    booked[4]["prompt_tokens"] += 50
    booked[5]["purpose"] = "evaluation"
    export = [booked[4], booked[5], booked[6], booked[6], booked[7], booked[8]]
    export.append({**booked[8], "webhook_id": "evt_made_up"})
    found, summary = await usages.reconcile("--core-export", usages.json_lines("core", export))
    assert [(one["kind"], one.get("event_id"), one["line"]) for one in found] == [
        ("core_figures_differ", ids[4], 1),
        ("core_figures_differ", ids[5], 2),
        ("doubled_at_core", ids[6], 4),
        *sorted(
            [
                ("missing_at_core", ids[0], None),
                ("not_delivered_yet", ids[1], None),
                ("not_delivered_yet", ids[2], None),
                ("delivery_failed", ids[3], None),
            ],
            key=lambda one: one[1],
        ),
        ("unknown_event", "evt_made_up", 7),
        ("core_sum_differs", None, 1),
        ("core_sum_differs", None, 6),
    ]
    details = {one.get("event_id"): one["detail"] for one in found}
    assert details[ids[5]] == "its session, turn, purpose or total is another one"
    assert details[ids[6]] == "line 3 has this event already"
    assert f"turnstone callbacks replay {ids[3]}" in details[ids[3]]
    assert (details[ids[1]], details[ids[2]]) == ("it is pending", "it is held")
    mine, others = [one for one in found if one["kind"] == "core_sum_differs"]
    assert (mine["session_id"], others["session_id"]) == (str(session_id), str(other))
    # Core lacks the first, has 50 more in the fifth and the seventh twice; what is under way is no difference here.
    assert mine["theirs"]["prompt_tokens"] - mine["ours"]["prompt_tokens"] == -101 + 50 + 107
    assert others["theirs"]["prompt_tokens"] - others["ours"]["prompt_tokens"] == 1
    assert summary["proposed"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("session_id", 999),
        ("turn", 2),
        ("purpose", "evaluation"),
        ("prompt_tokens", 99),
        ("completion_tokens", 9),
        ("cached_tokens", 4),
        ("total_tokens", 109),
    ],
)
async def test_core_has_to_have_an_event_as_it_was(
    database: Database, usages: Usages, rows: Rows, name: str, value: int | str
) -> None:
    await session_with([call(100, 10, 5, ref="a")])
    (booked,) = kept(rows)
    found, _ = await usages.reconcile("--core-export", usages.json_lines("core", [{**booked, name: value}]))
    assert kinds(found)[0] == "core_figures_differ"


async def test_without_ids_core_s_sums_of_sessions_are_compared(database: Database, usages: Usages, rows: Rows) -> None:
    first = await session_with([call(100, 10, ref="a")], [call(200, 20, ref="b")])
    second = await session_with([call(300, 30, ref="c")])
    kept(rows)
    head = "session_id,prompt_tokens,completion_tokens\n"
    good = f"{first},100,10\n{first},200,20\n{second},300,30\n"
    assert await usages.run("reconcile", "--core-export", usages.file("core", head + good)) == "no difference\n"
    file = usages.file("core", head + good.replace("200,20", "200,21") + "77,1,1\n")
    found, _ = await usages.reconcile("--core-export", file)
    assert [(one["kind"], one["session_id"]) for one in found] == [
        ("core_sum_differs", str(first)),
        ("core_sum_differs", "77"),
    ]


async def test_books_of_ours_that_do_not_agree_are_named(database: Database, usages: Usages, rows: Rows) -> None:
    session_id = await session_with([call(100, 10, ref="a"), call(40, 2, ref="g", purpose="guard")])
    rows("UPDATE prompt_sessions SET total_tokens = 110")  # what the chat used
    file = usages.json_lines("bill", bill(rows))
    assert (await usages.reconcile("--provider-export", file))[0] == []
    rows("UPDATE prompt_sessions SET total_tokens = 111")
    found, _ = await usages.reconcile("--provider-export", file)
    assert [(one["kind"], one["session_id"]) for one in found] == [("own_books_differ", str(session_id))]
    assert found[0]["detail"] == "ledger 152 (chat 110), told Core 152, the session's total 111"


def test_every_kind_is_documented_and_tested() -> None:
    page = (Path(__file__).parents[1] / "docs/usage.md").read_text(encoding="utf-8")
    test = Path(__file__).read_text(encoding="utf-8")
    for kind in DifferenceKind:
        assert f"| `{kind.value}` |" in page, kind
        assert f'"{kind.value}"' in test, kind


# --- corrections ---


async def wrong_books(rows: Rows, usages: Usages, count: int = 3) -> str:
    """A provider's export in which each of ``count`` calls has 5 more completion tokens than ours."""
    await session_with(*([call(100, 10, ref=f"r{number}", source="counted")] for number in range(count)))
    return usages.json_lines("bill", [{**row, "completion_tokens": 15} for row in bill(rows)])


async def test_applying_corrects_ledger_total_and_core_once(
    core: FakeCore, database: Database, usages: Usages, rows: Rows
) -> None:
    file = await wrong_books(rows, usages)
    found, summary = await usages.reconcile("--provider-export", file, "--apply")
    assert kinds(found) == ["estimate_differs"] * 3
    assert [one["applied"] for one in found] == [True] * 3
    assert (summary["proposed"], summary["applied"]) == (3, 3)
    assert await usages.run("reconcile", "--provider-export", file, "--apply") == "no difference\n"
    (line,) = await usages.lines("report")
    assert (line["total_tokens"], line["corrections"], line["net_total_tokens"]) == (330, 3, 345)
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 345
    with running(Command("worker", env=environment(usages.settings))):
        events = await core.reaches(9, 60)
    adjusted = [event.body for event in events if event.type == "usage_adjusted"]
    assert [(event["turn"], event["total_tokens"], event["source"]) for event in adjusted] == [
        (number, 5, "provider") for number in (1, 2, 3)
    ]
    assert {event["reason"] for event in adjusted} == {"the provider's export has other figures"}
    assert [event.seq for event in core.events(1)] == list(range(1, 10))
    booked = [{**event.body, "webhook_id": event.id} for event in core.events()]
    arguments = ("--provider-export", file, "--core-export", usages.json_lines("core", booked))
    assert await usages.run("reconcile", *arguments) == "no difference\n"


async def test_applying_twice_at_once_corrects_once(database: Database, usages: Usages, rows: Rows) -> None:
    file = await wrong_books(rows, usages, 20)
    both = [
        Command("usage", "reconcile", "--provider-export", file, "--apply", env=environment(usages.settings))
        for _ in range(2)
    ]
    for command in both:
        _, output = await asyncio.to_thread(command.ended)
        assert "Traceback" not in output
    assert len(rows("SELECT * FROM provider_calls WHERE adjusts IS NOT NULL")) == 20
    assert len(rows("SELECT * FROM callbacks WHERE type = 'usage_adjusted'")) == 20
    assert rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"] == 20 * 115


async def test_an_estimate_of_a_call_without_id_is_settled_by_hand(
    database: Database, usages: Usages, rows: Rows
) -> None:
    await session_with([call(100, 10, source="counted")])
    nothing = usages.file("nothing", "id,input_tokens,output_tokens\n")
    found, _ = await usages.reconcile("--provider-export", nothing)
    assert kinds(found) == ["no_provider_id"]
    await usages.run("adjust", "--call", str(found[0]["call"]), "--completion-tokens", "12", "--reason", "their log")
    assert (await usages.reconcile("--provider-export", nothing))[0] == []


async def test_applying_needs_two_connections(database: Database, usages: Usages, rows: Rows) -> None:
    file = await wrong_books(rows, usages)
    usages.settings = change(usages.settings, database={"pool_size": 1})
    assert "TURNSTONE_DATABASE__POOL_SIZE" in await usages.run(
        "reconcile", "--provider-export", file, "--apply", code=1
    )


async def test_who_stops_in_the_middle_leaves_the_database_as_it_was(
    database: Database, usages: Usages, rows: Rows
) -> None:
    file = await wrong_books(rows, usages, 5)
    for _ in range(12):  # more often than there are connections
        async with aclosing(differences(Exports(provider=Path(file)), Scope(), Tolerance())) as compared:
            first = await anext(compared)
        assert first.kind is DifferenceKind.ESTIMATE_DIFFERS
    gc.collect()
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state <> 'idle'"
        " AND backend_type = 'client backend'"
    )
    async with asyncio.timeout(30):  # what was collected is ended by the loop, a step at a time
        while rows.one(query)["count"] > 1 or database.pool.checkedout():  # the query itself is one
            await asyncio.sleep(0.02)


# --- files ---


async def test_a_bad_file_is_told_with_its_line_and_leaves_nothing(
    database: Database, usages: Usages, rows: Rows
) -> None:
    await session_with([call(100, 10, ref="a")])
    good = "".join(f"r{number},1,1\n" for number in range(12_000))  # more than one batch
    file = usages.file("bill", f"id,input_tokens,output_tokens\n{good}b,many,1\n")
    told = await usages.run("reconcile", "--provider-export", file, "--apply", code=1)
    assert f"{file}, line 12002: input_tokens is no number" in told
    assert "docs/usage.md" in told
    assert rows("SELECT * FROM provider_calls WHERE adjusts IS NOT NULL") == []
    strange = [{"id": "a", "model": "m\x00\ud800", "prompt_tokens": 100, "completion_tokens": 10}]
    assert (await usages.reconcile("--provider-export", usages.json_lines("bill", strange)))[0] == []


def csv_of(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


async def test_csv_does_as_well(database: Database, usages: Usages, rows: Rows) -> None:
    await session_with([call(100, 10, 5, ref="a")], [call(7, 7, ref="b")])
    arguments = (
        *("--provider-export", usages.file("bill", csv_of(bill(rows)))),
        *("--core-export", usages.file("core", csv_of(kept(rows)))),
    )
    assert await usages.run("reconcile", *arguments) == "no difference\n"


async def test_a_big_export_streams_and_keeps_no_feed_waiting(
    database: Database, usages: Usages, rows: Rows, database_url: str
) -> None:
    """While an export is loaded and compared, no transaction that writes stays open for long."""
    count = 60_000
    await session_with([call(100, 10, ref="r0")])
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO provider_calls (session_id, turn, purpose, model, prompt_tokens, completion_tokens,"
            " cached_tokens, reasoning_tokens, source, outcome, provider_ref)"
            " SELECT 1, 1, 'judge', 'm', 100, 10, 0, 0, 'provider', 'completed', 'r' || n"
            f" FROM generate_series(1, {count - 1}) AS n"
        )
        connection.execute(
            "UPDATE callbacks SET payload = payload || jsonb_build_object('total_tokens', %s::int)"
            " WHERE type = 'usage'",
            (110 * count,),
        )
    lines = "".join(f"r{number},m,100,10\n" for number in range(count))
    file = usages.file("bill", "id,model,input_tokens,output_tokens\n" + lines)
    # How long a transaction takes says more of the machine. So: many write while it is loaded, none to compare it.
    next_one = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS number"
    comparing = (
        "SELECT backend_xid::text AS writes FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(database_url) as holder:
        holder.execute("LOCK TABLE prompt_sessions")  # which is read to compare, and not to load
        before = rows.one(next_one)["number"]
        command = Command("usage", "reconcile", "--provider-export", file, env=environment(usages.settings))
        await asyncio.to_thread(wait_until, lambda: command.process.poll() is not None or rows(comparing), 60)
        assert rows.one(comparing)["writes"] is None
        assert rows.one(next_one)["number"] - before >= count / 10_000
    ended, output = await asyncio.to_thread(command.ended)
    assert (ended, output) == (0, "no difference\n")
