"""`turnstone fake-core`: its language, what it keeps, and that each misbehaviour is what its word says."""

from __future__ import annotations

import asyncio
import json
import resource
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from app.core.errors import StartupError
from app.fake_core.chaos import PHASES, WORDS, Chaos, ChaosError
from app.fake_core.ledger import Ledger
from app.fake_core.receiver import Receiver
from app.fake_core.server import CoreServer, serving
from app.fake_core.store import Store
from app.server import listen
from tests.conftest import CORE_KEY, SECRET, Rows
from tests.support.chat import Command, connect, new_pair
from tests.support.provider import Provider
from tests.support.servers import port_of_ones_own
from tests.support.service import Service, ServiceProcess, running

WAIT_S = 20.0


def event(session: int = 1, seq: int = 1, kind: str = "usage") -> dict[str, Any]:
    return {"type": kind, "session_id": str(session), "callback_seq": seq}


def headers(event_id: str, data: str, secret: str | None = SECRET) -> dict[str, str]:
    now = datetime.now(UTC)
    signed = {"webhook-signature": Webhook(secret).sign(event_id, now, data)} if secret else {}
    return {"webhook-id": event_id, "webhook-timestamp": str(int(now.timestamp())), **signed}


async def post(http: httpx.AsyncClient, body: dict[str, Any], secret: str | None = SECRET) -> httpx.Response:
    """Make one try, as any sender of Standard Webhooks does."""
    event_id, data = f"evt_{body['session_id']}_{body['callback_seq']}", json.dumps(body)
    return await http.post("/callbacks", content=data, headers=headers(event_id, data, secret))


class At:
    """A fake Core in this process, and somebody who posts to it."""

    def __init__(self, core: CoreServer, http: httpx.AsyncClient, sign_with: str | None) -> None:
        self.core, self.http, self._sign_with = core, http, sign_with

    async def send(self, body: dict[str, Any] | None = None) -> str:
        """Make one try; returns the status, or why there is none."""
        try:
            return str((await post(self.http, body or event(), self._sign_with)).status_code)
        except httpx.TimeoutException:
            return "timeout"
        except httpx.TransportError:
            return "broken"

    @property
    def taken(self) -> list[tuple[str, int]]:
        items = self.core.ledger.events()["items"]
        return [(item["body"]["session_id"], item["body"]["callback_seq"]) for item in items]

    def __getitem__(self, name: str) -> Any:
        return self.core.status()[name]


@asynccontextmanager
async def core_with(
    chaos: str = "",
    store: Store | None = None,
    sign_with: str | None = SECRET,
    **receiver: str,
) -> AsyncIterator[At]:
    core = CoreServer(Receiver(**receiver), Chaos(chaos, 7), Ledger(), store)
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with serving(core.application(), listener), httpx.AsyncClient(base_url=url, timeout=WAIT_S) as http:
        yield At(core, http, sign_with)


# the language


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo:0.1", "`foo` is no word"),
        ("200:0.1", "`200` is no word"),
        ("NNN:0.1", "cannot be read"),
        ("500", "look like `reset:0.05`"),
        ("500:", "look like"),
        ("500:1.1", "between 0 and 1"),
        ("500:0.6,reset:0.5", "above 1"),
        ("500=3:0.1", "take seconds"),
        ("slow=90000:0.1", "a day at most"),
        ("down 20", "cannot be read"),
        ("down 20s then", "cannot be read"),
        ("500:0.1 20s 30s", "cannot be read"),
        ("500:0.1,,reset:0.1", "look like"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, said: str) -> None:
    with pytest.raises(ChaosError, match=said):
        Chaos(text)


def shares(chaos: Chaos, tries: int = 4000, age_s: float = 0.0) -> Counter[str]:
    decided = (chaos.decide(f"{n % 50}/{n}", str(n % 50), 1, age_s) for n in range(tries))
    return Counter(fault.word if fault else "" for fault in decided)


def test_each_word_comes_as_often_as_it_says_and_the_same_seed_decides_the_same() -> None:
    text = "500:0.1, 503=2:.05, hang:0.1,reset:0.1,lost-answer:0.1,lost-event:0.1,slow=3:0.1,forget:0.1"
    found = shares(Chaos(text, 1))
    assert found == shares(Chaos(text, 1))
    assert found != shares(Chaos(text, 2))
    for part in text.split(","):
        word, share = part.strip().partition("=")[0].partition(":")[0], float(part.rpartition(":")[2])
        assert abs(found[word] / 4000 - share) < 0.03, (word, found)
    assert set(WORDS) - set(found) == {"NNN", "dead"}


def test_a_decision_is_of_the_event_and_the_try_and_not_of_the_order() -> None:
    chaos = Chaos("500:0.5", 3)
    keys = [(f"{s}/{n}", str(s), t) for s in range(5) for n in range(5) for t in range(1, 4)]
    forwards = {key: chaos.decide(*key, 0.0) for key in keys}
    assert forwards == {key: chaos.decide(*key, 0.0) for key in reversed(keys)}
    assert (
        len({bool(forwards["1/1", "1", t]) for t in (1, 2, 3)} | {bool(forwards["2/2", "2", t]) for t in (1, 2)}) == 2
    )


def test_dead_is_decided_by_session_beside_the_rest() -> None:
    chaos = Chaos("dead:0.3,hang:1", 5)
    words = {s: {chaos.decide(f"{s}/{n}", str(s), t, 0.0).word for n in range(5) for t in (1, 2)} for s in range(300)}  # type: ignore[union-attr]
    assert all(len(of_one) == 1 for of_one in words.values())
    assert 60 < sum(of_one == {"dead"} for of_one in words.values()) < 120


def test_times_follow_each_other_and_then_all_is_well() -> None:
    chaos = Chaos("down 20s then 500:1 1m then up 5s then 410:1 2s")
    seen = [(age, chaos.down(age), shares(chaos, 1, age)) for age in (0, 19.9, 20, 79.9, 80, 84.9, 85, 86.9, 87, 1e6)]
    assert [down for _, down, _ in seen] == [True, True] + [False] * 8
    assert ["".join(words) for _, _, words in seen[2:]] == ["500", "500", "", "", "410", "410", "", ""]
    assert (chaos.now(0), chaos.now(30), chaos.now(1e6)) == ("down 20s", "500:1 1m", "up")
    assert Chaos("500:1").now(1e9) == "500:1", "without a time it lasts"
    assert set(PHASES) == {"down", "up"}


def test_of_a_submission_the_highest_revision_is_counted() -> None:
    ledger = Ledger()
    for seq, (submission, revision, status) in enumerate(
        [
            ("a", 1, "PENDING_REVIEW"),
            (7, 2, "SCORED"),
            ("a", 3, "SCORED"),
            ("a", 2, "PENDING_REVIEW"),
            ("b", 1, "PENDING_REVIEW"),
        ]
    ):
        told = {"submission_id": submission, "revision": revision, "final_scores": {"status": status}}
        item = {"n": 1, "headers": {"webhook-id": f"e{seq}"}, "body": event(1, seq + 1, "final_scores") | told}
        ledger.add(item)
    assert ledger.counts()["submissions"] == {"SCORED": 2, "PENDING_REVIEW": 1}
    strange = event(1, 9, "final_scores") | {"revision": "x"}
    ledger.add({"n": 1, "headers": {"webhook-id": "strange"}, "body": strange})
    assert ledger.counts()["submissions"] == {"SCORED": 2, "PENDING_REVIEW": 1}


# what becomes of a POST


@pytest.mark.parametrize(
    ("chaos", "outcome", "stored"),
    [
        ("", "200", True),
        ("500:1", "500", False),
        ("400:1", "400", False),
        ("410:1", "410", False),
        ("302:1", "302", False),
        ("hang:1", "timeout", False),
        ("reset:1", "broken", False),
        ("lost-answer:1", "broken", True),
        ("lost-event:1", "200", False),
        ("slow=0.1:1", "200", True),
        ("slow=5:1", "timeout", True),
        ("forget:1", "200", True),
        ("dead:1", "500", False),
        ("down", "broken", False),
        ("up", "200", True),
    ],
)
async def test_each_word_does_what_it_says(chaos: str, outcome: str, stored: bool) -> None:
    async with core_with(chaos) as at:
        sending = asyncio.create_task(at.send())
        if outcome == "timeout":
            async with asyncio.timeout(WAIT_S):
                while not at["posts"]:
                    await asyncio.sleep(0.01)
            done, _ = await asyncio.wait({sending}, timeout=0.5)  # from when Core has the POST
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            said = "answered" if done else "timeout"
        else:
            said = await sending
        assert (said, bool(at.taken)) == (outcome, stored)
        assert at["posts"] == 1
        assert sum(at["faults"].values()) == (chaos not in {"", "up"})


async def test_retry_after_is_what_the_word_says() -> None:
    async with core_with("429=7:0.5,503:0.5") as at:
        answers = [await post(at.http, event(n)) for n in range(20)]
    said = {(answer.status_code, answer.headers["retry-after"]) for answer in answers}
    assert said == {(429, "7"), (503, "1")}


async def test_an_id_is_taken_once_unless_it_was_forgotten() -> None:
    async with core_with() as at:
        assert [await at.send() for _ in range(3)] == ["200"] * 3
        assert (at["taken"], at["duplicates"], at["posts"]) == (1, 2, 3)
    async with core_with("forget:1") as at:
        assert [await at.send() for _ in range(3)] == ["200"] * 3
        assert (at["taken"], at["duplicates"]) == (3, 0)


async def test_order_gaps_and_types_are_counted() -> None:
    async with core_with() as at:
        for session, seq, kind in ((1, 1, "usage"), (1, 3, "error"), (1, 2, "usage"), (2, 4, "usage")):
            await at.send(event(session, seq, kind))
        assert at.taken == [("1", 1), ("1", 3), ("1", 2), ("2", 4)]
        counts = [at[name] for name in ("taken", "out_of_order", "missing", "sessions", "types")]
        assert counts == [4, 1, 3, 2, {"usage": 3, "error": 1}]
        assert (await at.http.get("/")).json() == at.core.status()
        shown = (await at.http.get("/events?after=1&session_id=1&limit=1")).json()
        assert [(item["n"], item["body"]["callback_seq"]) for item in shown["items"]] == [(2, 3)]
        assert shown["next"] == 2
        assert (await at.http.get("/events?after=2&session_id=1")).json()["next"] == 3
        for wrong in ("after=x", "limit=-1"):
            assert (await at.http.get(f"/events?{wrong}")).status_code == 400


async def test_what_is_not_signed_or_no_event_is_refused_and_counted() -> None:
    async with core_with("500:1", sign_with=None, secret=SECRET) as at:
        assert await at.send() == "401", "whatever the chaos"
        assert (at["bad_signatures"], at["taken"]) == (1, 0)
    async with core_with("", secret=SECRET) as at:
        assert await at.send() == "200"
        assert at["bad_signatures"] == 0
    async with core_with("", api_key=CORE_KEY) as at:
        assert await at.send() == "401"
        assert at["bad_keys"] == 1
    async with core_with() as at:
        assert (await at.http.post("/callbacks", json=event())).status_code == 400, "no webhook-id"
        assert (await at.http.post("/callbacks", content=b"[1]", headers={"webhook-id": "x"})).status_code == 400
        assert (at["no_events"], at["taken"]) == (2, 0)


# the file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "core.jsonl"


@contextmanager
def opened(file: Path) -> Iterator[Store]:
    store = Store(file)
    try:
        yield store
    finally:
        store.close()


async def test_a_second_core_goes_on_with_what_the_first_one_has_stored(file: Path) -> None:
    with opened(file) as store:
        async with core_with("lost-answer:1", store) as at:
            await asyncio.gather(*(at.send(event(session, 1)) for session in range(20)))
            with pytest.raises(StartupError, match="in use"):
                Store(file)
    with opened(file) as store:
        async with core_with("", store) as at:
            assert sorted(at.taken) == sorted((str(session), 1) for session in range(20))
            await at.send(event(3, 1))
            await at.send(event(3, 2))
            assert (at["taken"], at["duplicates"]) == (21, 1)
            assert at.taken[-1] == ("3", 2)
    assert len(file.read_text().splitlines()) == 21


async def test_a_line_that_a_crash_cut_is_left_out_and_a_foreign_file_is_refused(file: Path) -> None:
    line = json.dumps({"n": 1, "received_at": "", "headers": {"webhook-id": "a"}, "body": event()})
    file.write_text(f'{line}\n{{"n": 2, "recei')
    with opened(file) as store:
        assert [item["headers"]["webhook-id"] for item in store.items()] == ["a"]
        async with core_with("", store) as at:
            await at.send(event(2))
    assert [json.loads(text)["body"]["session_id"] for text in file.read_text().splitlines()] == ["1", "2"]
    for foreign in ("hello\n", '{"n": 1}\n', "[]\n"):
        file.write_text(foreign)
        with opened(file) as store, pytest.raises(StartupError, match="Line 1 of"):
            list(store.items())


async def test_what_cannot_be_stored_is_not_taken(file: Path) -> None:
    with opened(file) as store:
        async with core_with("", store) as at:
            await at.send(event(1))
            size = file.stat().st_size
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # room for a part of the line
            try:
                assert await at.send(event(2)) == "507"
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert (at["taken"], at["not_stored"], file.stat().st_size) == (1, 1, size)
            assert await at.send(event(2)) == "200"
            assert at.taken == [("1", 1), ("2", 1)]


# the command


def status_of(core: ServiceProcess) -> dict[str, Any]:
    with urllib.request.urlopen(core.url, timeout=WAIT_S) as answer:
        found: dict[str, Any] = json.loads(answer.read())
    return found


def command(*arguments: str, **env: str) -> ServiceProcess:
    return Command("fake-core", *arguments, env=env)


def address_of(core: ServiceProcess) -> ServiceProcess:
    core.port = int(core.wait_for_line("http://127.0.0.1:").split("127.0.0.1:")[1].split("/")[0])
    return core


def test_help_has_every_word_and_a_wrong_one_is_answered_with_them() -> None:
    code, output = command("--help").ended()
    assert code == 0
    wrong, said = command("--chaos", "500:0.1,fire:0.5").ended()
    assert wrong == 2
    assert "`fire` is no word" in said
    for word in (*WORDS, *PHASES):
        assert f" {word}" in output
        assert f" {word}" in said
    assert command("--port", "70000").ended()[0] == 2


def test_what_it_cannot_use_is_said_with_what_to_do(file: Path) -> None:
    file.write_text("hello\n")
    code, said = command("--store", str(file), "--port", "0").ended()
    assert (code, "Choose another file" in said, "Traceback" in said) == (1, True, False)
    code, said = command("--port", "0", TURNSTONE_CALLBACKS__SIGNING_SECRET="no secret").ended()
    assert (code, "SIGNING_SECRET" in said, "no secret" in said) == (1, True, False)
    with running(command("--port", "0")) as core:
        address_of(core)
        code, said = command("--port", str(core.port)).ended()
        assert (code, "--port" in said) == (1, True)


async def test_killed_and_started_again_it_has_all_that_it_had_answered_for(file: Path) -> None:
    env = {"TURNSTONE_CALLBACKS__SIGNING_SECRET": SECRET}
    sent = set()
    with port_of_ones_own() as port:
        arguments = ("--store", str(file), "--port", str(port))
        for seq in range(1, 4):
            with running(command(*arguments, **env)) as core:
                address_of(core)
                async with httpx.AsyncClient(base_url=core.url, timeout=WAIT_S) as http:
                    for session in range(5):
                        assert (await post(http, event(session, seq))).status_code == 200
                        sent.add((str(session), seq))
                core.kill()
        with running(command(*arguments, **env)) as core:
            status = status_of(address_of(core))
            assert (status["taken"], status["out_of_order"], status["missing"]) == (15, 0, 0)
            assert core.stop() == 0
    bodies = [json.loads(line)["body"] for line in file.read_text().splitlines()]
    assert {(body["session_id"], body["callback_seq"]) for body in bodies} == sent


# with the service


async def test_what_core_has_acknowledged_and_lost_comes_back_by_the_feed(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    with running(command("--port", "0", "--secret", SECRET, "--chaos", "lost-event:0.5", "--seed", "1")) as core:
        service = start(callbacks={"url": f"{address_of(core).url}/callbacks"})
        async with connect(service.url) as chat:
            pair = new_pair()
            for turn in range(8):
                await chat.ask("hello", f"t{turn}", **pair)
        async with asyncio.timeout(WAIT_S):
            while rows.one("SELECT count(*) FROM callbacks WHERE status = 'delivered'")["count"] < 16:
                await asyncio.sleep(0.02)
        status = status_of(core)
        assert status["bad_signatures"] == 0
        assert 0 < status["taken"] < 16
        assert status["taken"] + status["faults"]["lost-event"] == 16
        async with httpx.AsyncClient(timeout=WAIT_S) as http:
            pushed = (await http.get(f"{core.url}/events")).json()["items"]
            fed = (await http.get(f"{service.url}/api/callbacks/events")).json()["items"]
    table = {item["headers"]["webhook-id"]: item["body"] for item in pushed}
    table |= {item["id"]: item["payload"] for item in fed if item["id"] not in table}
    recorded = rows("SELECT event_id, callback_seq FROM callbacks")
    assert {(key, body["callback_seq"]) for key, body in table.items()} == {
        (row["event_id"], row["callback_seq"]) for row in recorded
    }
