"""The example receiver in Python as a real process, against a real `turnstone serve` over a bad line."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from standardwebhooks import Webhook

from app.application.services.callback_service import CallbackService
from app.core.settings import Settings
from app.fake_core.receiver import reset_connection
from app.infrastructure.persistence.session import get_db_context
from tests.conftest import CORE_KEY, SECRET, Rows
from tests.support.chat import Command, connect, environment, new_pair
from tests.support.core import FakeCore
from tests.support.servers import AppThread, Journal, port_of_ones_own
from tests.support.service import Service, running

EXAMPLE = Path(__file__).parents[1] / "examples/core-python"
WAIT_S = 60.0
OLD_SECRET = "whsec_" + "b2xkIHNlY3JldCBvZiBhIGtleSByb3RhdGlvbg=="


def load_ledger() -> Any:
    spec = importlib.util.spec_from_file_location("example_ledger", EXAMPLE / "ledger.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Ledger = load_ledger().Ledger
DECK = ("once", "late", "twice", "answer lost", "once", "never", "at the same time")
"""What becomes of one POST after the other, whichever they are."""


class Line(AppThread):
    """What lies between Turnstone and Core: loses answers and events, doubles and delays them."""

    def __init__(self) -> None:
        super().__init__(self._application)
        self.target = ""
        self.happened: Journal[str] = Journal()
        self._deck = itertools.cycle(DECK)
        self._later: set[asyncio.Task[int]] = set()

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=16 * 1024 * 1024)
        app.router.add_post("/callbacks", self._pass)
        return app

    async def _pass(self, request: web.Request) -> web.Response:
        raw, headers = await request.read(), dict(request.headers)
        what = next(self._deck)
        self.happened.add(what)
        if what == "never":
            return web.Response(status=410)
        if what == "late":
            task = asyncio.create_task(self._forward_after(0.5, raw, headers))
            self._later.add(task)
            task.add_done_callback(self._later.discard)
            return web.Response(status=204)
        if what == "twice":
            await self._forward(raw, headers)
        if what == "at the same time":
            statuses = await asyncio.gather(*(self._forward(raw, headers) for _ in range(3)))
        else:
            statuses = [await self._forward(raw, headers)]
        if what == "answer lost" and request.transport is not None:
            reset_connection(request.transport)
        return web.Response(status=max(statuses))

    async def _forward_after(self, delay_s: float, raw: bytes, headers: dict[str, str]) -> int:
        await asyncio.sleep(delay_s)
        return await self._forward(raw, headers)

    async def _forward(self, raw: bytes, headers: dict[str, str]) -> int:
        """The receiver's answer; 502 where there is none."""
        try:
            async with aiohttp.ClientSession() as client, client.post(self.target, data=raw, headers=headers) as answer:
                return answer.status
        except aiohttp.ClientError:
            return 502


def contents(database: Path) -> dict[str, list[tuple[Any, ...]]]:
    """The example's tables that an effect has changed."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        return {
            name: db.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
            for name in ("usage", "answers", "scores", "sessions")
        }


def run_example(*arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "core.py", *arguments],
        cwd=EXAMPLE,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


@contextlib.contextmanager
def receiver(env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """The second command of the example's README, with other settings."""
    block = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    words = shlex.split(block.splitlines()[1])
    assert [words[0].partition("=")[0], *words[1:]] == ["CORE_SECRETS", "python", "core.py", "serve"]
    process = subprocess.Popen(
        [sys.executable, *words[2:]], cwd=EXAMPLE, env={**os.environ, **env}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_S)
        assert process.stdout is not None
        process.stdout.close()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def until(condition: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.05)


def number_of_events(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database)) as db:
        return int(db.execute("SELECT count(*) FROM events").fetchone()[0])


async def talk(url: str, pair: dict[str, Any], turns: int) -> None:
    async with connect(url) as client:
        for number in range(turns):
            await client.ask(f"question {number}", f"t{number}", **pair)


async def test_its_tables_are_ours_whatever_the_line_does(settings: Settings, rows: Rows, tmp_path: Path) -> None:
    database, by_feed = tmp_path / "core.sqlite", tmp_path / "by-feed.sqlite"
    env = {
        "CORE_SECRETS": f"{OLD_SECRET} {SECRET}",
        "CORE_API_KEY": CORE_KEY,
        "CORE_DB": str(database),
        "CORE_FEED_EVERY_S": "0.5",
    }
    with Line() as line, port_of_ones_own() as port:
        env["CORE_PORT"] = str(port)
        variables = environment(settings, TURNSTONE_PORT="0", TURNSTONE_CALLBACKS__URL=f"{line.url}/callbacks")
        with running(Command("serve", env=variables)) as turnstone:
            await asyncio.to_thread(turnstone.wait_ready)
            env["CORE_TURNSTONE_URL"] = turnstone.url
            pairs = [new_pair() for _ in range(4)]
            with receiver(env) as first:
                line.target = await asyncio.to_thread(address, first)
                await asyncio.gather(*(talk(turnstone.url, pair, 4) for pair in pairs))
                first.send_signal(signal.SIGKILL)  # wherever it stands
            await talk(turnstone.url, pairs[0] | {"participant_id": pairs[-1]["participant_id"] + 1000}, 2)
            with receiver(env) as second:
                assert await asyncio.to_thread(address, second) == line.target
                expected = rows.one("SELECT count(*) AS n FROM callbacks")["n"]
                assert expected == 2 * (4 * 4 + 2)
                await until(lambda: number_of_events(database) == expected)
                await until(lambda: rows("SELECT 1 FROM callbacks WHERE status = 'pending'") == [])
                compared = await asyncio.to_thread(run_example, "compare", env=env)
                assert (compared.returncode, compared.stdout) == (
                    0,
                    "0 events missing here, 0 not in the feed, 0 bills differ\n",
                ), compared.stderr
                followed = await asyncio.to_thread(run_example, "follow", "--once", env=env | {"CORE_DB": str(by_feed)})
                assert followed.returncode == 0, followed.stderr
    assert set(line.happened) == set(DECK)
    check_against_ours(database, rows)
    ours, fed = contents(database), contents(by_feed)
    assert ours == fed, "the feed alone brings the same"
    assert {turns for _, turns in turns_in_order(database).items()} == {(1, 2, 3, 4), (1, 2)}


def check_against_ours(database: Path, rows: Rows) -> None:
    with contextlib.closing(sqlite3.connect(database)) as db:
        used = db.execute("SELECT event_id, session_id, turn, total_tokens, cached_tokens FROM usage").fetchall()
        answers = db.execute("SELECT session_id, turn, ai_message FROM answers").fetchall()
        following = db.execute("SELECT session_id, next_seq FROM sessions").fetchall()
    expected = rows("SELECT event_id, session_id, payload FROM callbacks WHERE type = 'usage'")
    assert Counter(used) == Counter(
        (row["event_id"], str(row["session_id"]), *(row["payload"][name] for name in fields))
        for row in expected
        for fields in [("turn", "total_tokens", "cached_tokens")]
    )
    stored = rows("SELECT session_id, turn, content FROM prompt_messages WHERE role = 'ASSISTANT'")
    assert Counter(answers) == Counter((str(row["session_id"]), row["turn"], row["content"]) for row in stored)
    sessions = rows("SELECT id, exam_id, participant_id, total_tokens, callback_seq FROM prompt_sessions")
    assert sorted(following) == sorted((str(row["id"]), row["callback_seq"] + 1) for row in sessions)
    bill = Ledger(str(database)).bill()
    totals = {(row["exam_id"], row["participant_id"]): row["total_tokens"] for row in sessions}
    assert {who: figures[2] for who, figures in bill.items()} == totals


def turns_in_order(database: Path) -> dict[str, tuple[int, ...]]:
    """By session: turns in the order in which their usage took effect."""
    with contextlib.closing(sqlite3.connect(database)) as db:
        found: dict[str, tuple[int, ...]] = {}
        for session_id, turn in db.execute("SELECT session_id, turn FROM usage ORDER BY rowid"):
            found[session_id] = (*found.get(session_id, ()), turn)
    return found


async def test_a_gap_sends_it_to_the_feed_at_once_and_the_feed_is_read_to_its_end(
    service: Service, core: FakeCore, tmp_path: Path
) -> None:
    database, events = tmp_path / "core.sqlite", 230  # more than one part

    async def record() -> None:
        async with get_db_context() as db, CallbackService(db).together() as callbacks:
            for number in range(events):
                await callbacks.send_usage(1, None, number, 0, number)
        service.resources.wake_delivery()

    env = {"CORE_SECRETS": SECRET, "CORE_PORT": "0", "CORE_DB": str(database), "CORE_TURNSTONE_URL": service.url}
    env["CORE_FEED_EVERY_S"] = "3600"
    with receiver(env) as process:
        url = await asyncio.to_thread(address, process)
        await asyncio.to_thread(httpx.post, f"{service.url}/api/sessions", json=new_pair(), timeout=WAIT_S)
        service.call(record())
        await until(lambda: len(core.events()) == events)
        first, *_, last = core.events()
        for delivery in (first, last):
            headers = {name: value for name, value in delivery.headers.items() if name.startswith("webhook-")}
            answer = await asyncio.to_thread(httpx.post, url, content=delivery.raw, headers=headers, timeout=WAIT_S)
            assert answer.status_code == 204
        await until(lambda: number_of_events(database) == events)
    [figures] = Ledger(str(database)).bill().values()
    assert figures[2] == sum(range(events))


def test_without_a_secret_it_does_not_receive() -> None:
    done = run_example("serve", env={"CORE_SECRETS": ""})
    assert done.returncode == 2
    assert "set CORE_SECRETS" in done.stderr


def test_one_signature_that_fits_is_enough_and_none_changes_nothing(tmp_path: Path) -> None:
    database = tmp_path / "core.sqlite"
    env = {"CORE_SECRETS": SECRET, "CORE_PORT": "0", "CORE_DB": str(database)}
    env["CORE_TURNSTONE_URL"] = "http://127.0.0.1:9"  # nobody is there
    raw, now = json.dumps(usage(1)), datetime.now(UTC)
    signatures = {secret: Webhook(secret).sign("evt_1", now, raw) for secret in (SECRET, OLD_SECRET)}
    said = {"webhook-id": "evt_1", "webhook-timestamp": str(int(now.timestamp()))}
    with receiver(env) as process, httpx.Client(timeout=WAIT_S) as http:
        url = address(process)
        for signature in ("", "v1", "v1,x", "v1,€".encode(), signatures[OLD_SECRET], f"v2{signatures[SECRET][2:]}"):
            refused = http.post(url, content=raw, headers=said | {"webhook-signature": signature})
            assert refused.status_code == 401, signature
        assert http.post(url, content=raw).status_code == 401
        assert number_of_events(database) == 0
        both = f"{signatures[OLD_SECRET]} {signatures[SECRET]}"  # while the secret is changed
        for _ in range(2):
            assert http.post(url, content=raw, headers=said | {"webhook-signature": both}).status_code == 204
    assert total_of(Ledger(str(database))) == 10


def test_what_it_asks_for_is_what_it_was_tested_with() -> None:
    for line in (EXAMPLE / "requirements.txt").read_text().split():
        name, _, floor = line.partition(">=")
        assert [int(n) for n in version(name).split(".")] >= [int(n) for n in floor.split(".")]


# ---------------------------------------------------------------- the ledger alone


def usage(seq: int, total: int = 10, **more: Any) -> dict[str, Any]:
    return {
        "type": "usage",
        "session_id": "1",
        "exam_id": 1,
        "participant_id": 2,
        "callback_seq": seq,
        "turn": seq,
        "purpose": "chat",
        "model": "m",
        "prompt_tokens": total,
        "completion_tokens": 0,
        "total_tokens": total,
        "cached_tokens": 0,
        **more,
    }


def total_of(ledger: Any) -> int:
    return int(ledger.bill().get((1, 2), (0, 0, 0))[2])


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    return Ledger(str(tmp_path / "core.sqlite"))


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3, 4))))
def test_any_order_with_repeats_takes_effect_once_and_in_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    ledger = Ledger(str(tmp_path / "core.sqlite"))
    for number, seq in enumerate(order):
        waits = ledger.take(f"evt_{seq}", usage(seq, 10**seq))
        assert waits is (not set(range(1, max(order[: number + 1]) + 1)) <= set(order[: number + 1]))
        ledger.take(f"evt_{order[0]}", usage(order[0], 10 ** order[0]))
    assert total_of(ledger) == 11110
    assert turns_in_order(tmp_path / "core.sqlite") == {"1": (1, 2, 3, 4)}


def test_a_correction_changes_the_bill(ledger: Any) -> None:
    ledger.take("evt_1", usage(1, 10))
    ledger.take("evt_2", usage(2, -3, type="usage_adjusted", reason="late figures"))
    assert total_of(ledger) == 7


def test_a_gap_is_final_only_when_the_feed_has_shown_what_is_behind_it(ledger: Any) -> None:
    assert ledger.take("evt_2", usage(2, 100)) is True
    ledger.give_up_gaps()
    assert total_of(ledger) == 0, "the feed may be a moment behind"
    ledger.take_part_of_feed([{"id": "evt_2", "cursor": "7-2", "payload": usage(2, 100)}])
    ledger.give_up_gaps()
    assert (total_of(ledger), ledger.cursor()) == (100, "7-2")
    ledger.take("evt_1", usage(1, 10))
    assert total_of(ledger) == 110, "late is not lost"


def test_the_feed_fills_a_gap(ledger: Any) -> None:
    ledger.take("evt_2", usage(2, 100))
    ledger.take_part_of_feed([{"id": f"evt_{n}", "cursor": f"7-{n}", "payload": usage(n, 10**n)} for n in (1, 2)])
    assert total_of(ledger) == 110


def test_another_event_with_a_number_that_is_taken_is_not_billed(ledger: Any, caplog: pytest.LogCaptureFixture) -> None:
    ledger.take("evt_1", usage(1))
    ledger.take("evt_other", usage(1))
    assert total_of(ledger) == 10
    assert "evt_other" in caplog.text


def test_the_highest_revision_counts(ledger: Any, tmp_path: Path) -> None:
    base = {"session_id": "1", "exam_id": 1, "participant_id": 2}
    for seq, revision in enumerate((2, 1, 2, 3, 1), 1):
        ledger.take(
            f"evt_{seq}",
            base | {"type": "turn_evaluation", "callback_seq": seq, "turn": 1, "revision": revision, "score": seq},
        )
    ledger.take("evt_6", base | {"type": "of the future", "callback_seq": 6})
    scores = contents(tmp_path / "core.sqlite")["scores"]
    assert [(subject, revision, '"callback_seq": 4' in body) for _, subject, revision, body in scores] == [
        ("turn 1", 3, True),
    ]


def test_a_result_that_is_open_is_no_zero_and_the_highest_revision_counts(ledger: Any) -> None:
    base = {"type": "final_scores", "session_id": "1", "exam_id": 1, "participant_id": 2, "submission_id": 7}
    pending = {"status": "PENDING_REVIEW", "total_score": None, "grade": None}
    scored = {"status": "SCORED", "total_score": 71.5, "grade": "C"}
    known = []
    for seq, (revision, final) in enumerate([(1, pending), (3, scored), (2, pending), (3, pending)], 1):
        event = base | {"callback_seq": seq, "revision": revision, "final_scores": final, "turn_scores": {}}
        ledger.take(f"evt_{seq}", event)
        known.append(ledger.results())
    assert known == [[("7", 1, "PENDING_REVIEW", None, None)], *[[("7", 3, "SCORED", 71.5, "C")]] * 3]


def test_an_effect_that_fails_takes_the_event_with_it(ledger: Any) -> None:
    broken = usage(1)
    del broken["purpose"]
    with pytest.raises(KeyError):
        ledger.take("evt_1", broken)
    assert ledger.ids() == set()
    ledger.take("evt_1", usage(1))
    assert total_of(ledger) == 10


async def test_two_processes_on_one_file_take_each_event_once(tmp_path: Path) -> None:
    path = str(tmp_path / "core.sqlite")
    ledgers = [Ledger(path), Ledger(path)]
    await asyncio.gather(
        *(asyncio.to_thread(ledgers[n % 2].take, f"evt_{seq}", usage(seq)) for seq in range(1, 26) for n in range(2))
    )
    assert total_of(ledgers[0]) == 250
    assert turns_in_order(tmp_path / "core.sqlite") == {"1": tuple(range(1, 26))}
