"""Callbacks under torture: Core is away and then misbehaves, the worker is killed, and in the end Core has to know all.

Turns are real ones, over the API. `turnstone serve` records their callbacks, `turnstone worker` delivers them to a
`turnstone fake-core` that stores what it takes on the disk; each is a process of its own. Beside it somebody reads the
feed, and loses now a page and now its place in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from app.core.settings import CallbackSettings
from tests.support.chat import Command
from tests.support.provider import Provider
from torture.check import Finding
from torture.delivery_check import Met, Told, check_delivery, check_met
from torture.feed import FeedReader, until
from torture.scene import Postgres, keep_log, pick, say

CHAOS = {"500": 0.08, "503=0.2": 0.04, "hang": 0.03, "reset": 0.06, "lost-answer": 0.1, "slow=0.1": 0.05}
SECRET = "whsec_dG9ydHVyZS10b3J0dXJlLXRvcnR1cmU="
_ANSWERS = {"plain": 9.0, "broken": 0.5, "refused": 0.5}
_SESSIONS = 40
_KILLS_AN_HOUR = 4
_LONGEST_DELAY_S = 1.0
_TRIES = 300
_AN_HOUR_S = 3600.0
_SETTLE_S = 120.0
_RECORDED_S = 600.0
_ENDED = (200, 422, 502, 503, 504)
"""How a turn may be answered: it is recorded, however the provider behaved."""
_PATIENCE_S = 30.0


def run_callbacks(options: argparse.Namespace, log_dir: Path) -> list[Finding]:
    """Record ``options.events`` and more while all that goes on; returns what was promised and how it went."""
    say(f"starting serve, worker, Core and PostgreSQL, each a process; logs go to {log_dir}")
    with _open(options, log_dir) as scene:
        return asyncio.run(_Run(scene, options).run())


class DeliveryScene:
    """What runs: one serving process, one worker, one Core on a port that stays the same."""

    def __init__(
        self, scratch: Path, log_dir: Path, postgres: Postgres, provider: Provider, options: argparse.Namespace
    ) -> None:
        self._log_dir = log_dir
        self.postgres = postgres
        self.store = scratch / "core.jsonl"
        self._chaos = ",".join(f"{word}:{share}" for word, share in CHAOS.items())
        self._seed = str(options.seed)
        self._core_port = str(_free_port())
        self._env = {
            "TURNSTONE_PORT": "0",
            "TURNSTONE_DATA_DIR": str(scratch / "data"),
            "TURNSTONE_DATABASE__URL": postgres.url,
            "TURNSTONE_LLM__MODEL": "openai:scripted",
            "TURNSTONE_LLM__BASE_URL": provider.base_url,
            "TURNSTONE_LLM__API_KEY": "unused",
            "TURNSTONE_CALLBACKS__URL": f"http://127.0.0.1:{self._core_port}/callbacks",
            "TURNSTONE_CALLBACKS__SIGNING_SECRET": SECRET,
            "TURNSTONE_CALLBACKS__TIMEOUT_S": "0.5",
            "TURNSTONE_CALLBACKS__RETRY_DELAYS_S": json.dumps(scaled_delays(options.hour)),
            "TURNSTONE_WORKER__EMBEDDED": "false",
            "TURNSTONE_LEASE_S": "1",
        }
        self.processes: dict[str, Command] = {}

    def start(self, name: str) -> Command:
        """Start ``serve``, ``worker`` or ``core``, and wait until it is at work."""
        if name == "core":
            arguments = ["--chaos", self._chaos, "--seed", self._seed, "--store", str(self.store)]
            process = Command("fake-core", *arguments, "--port", self._core_port, env=self._env)
            process.wait_for_line("Core listens")
            process.port = int(self._core_port)
        else:
            process = Command(name, env=self._env)
            process.wait_ready() if name == "serve" else process.wait_for_line("working")
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """Kill -9."""
        process = self.processes.pop(name)
        process.kill()
        keep_log(process, self._log_dir, name)

    def core_status(self) -> dict[str, Any]:
        """What Core counts since it was started."""
        with urllib.request.urlopen(self.processes["core"].url, timeout=_PATIENCE_S) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def sending(self) -> bool:
        """Whether a worker has sessions in its hands just now."""
        return self.postgres.rows("SELECT EXISTS (SELECT 1 FROM callback_lanes WHERE claimed_by IS NOT NULL)") == [
            (True,)
        ]

    def count(self) -> int:
        """Recorded callbacks."""
        return int(self.postgres.rows("SELECT count(*) FROM callbacks")[0][0])

    def waiting(self) -> int:
        """Those that have yet to be delivered."""
        return int(self.postgres.rows("SELECT count(*) FROM callbacks WHERE status = 'pending'")[0][0])


def scaled_delays(hour_s: float) -> list[float]:
    """The default delays, as much shorter as ``hour_s`` is than an hour, up to a second.

    There are more of them than anybody needs: what happens when they run out is not what is proved here.
    """
    usual = CallbackSettings().retry_delays_s
    scaled = [min(delay * hour_s / _AN_HOUR_S, _LONGEST_DELAY_S) for delay in usual]
    return scaled + [_LONGEST_DELAY_S] * (_TRIES - len(scaled))


@contextlib.contextmanager
def _open(options: argparse.Namespace, log_dir: Path) -> Iterator[DeliveryScene]:
    with contextlib.ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="turnstone-torture-"))
        scratch.chmod(0o755)  # the database may run as a user of its own
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        postgres = Postgres(scratch / "database")
        stack.callback(postgres.close)
        provider = stack.enter_context(Provider())
        scene = DeliveryScene(scratch, log_dir, postgres, provider, options)
        try:
            for name in ("core", "serve", "worker"):
                scene.start(name)
            yield scene
        finally:
            for name in list(scene.processes):
                scene.kill(name)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class _Run:
    def __init__(self, scene: DeliveryScene, options: argparse.Namespace) -> None:
        self._scene = scene
        self._options = options
        self._met = Met()
        self._enough = asyncio.Event()
        self._killed = asyncio.Event()
        self._feed = FeedReader(scene.processes["serve"].url, random.Random(f"{options.seed}/feed"))
        self._kill_every_s = options.hour / _KILLS_AN_HOUR
        turns_per_s = options.events / 2 / max(options.kills * self._kill_every_s, 1.0)
        self._pause_s = _SESSIONS / turns_per_s

    async def run(self) -> list[Finding]:
        begun = time.monotonic()
        reading = asyncio.create_task(self._feed.run())
        async with asyncio.TaskGroup() as group:
            for number in range(_SESSIONS):
                group.create_task(self._talk(number))
            group.create_task(self._count())
            group.create_task(self._take_core_away())
            group.create_task(self._kill())
        say(f"{self._scene.count()} events recorded after {time.monotonic() - begun:.0f} s; the rest has to arrive")
        if not await until(lambda: not self._scene.waiting(), every_s=0.2, timeout_s=_SETTLE_S):
            say(f"not settled after {_SETTLE_S:.0f} s")
        await self._feed.finish(self._scene.count())
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        self._note_core()
        self._met.read_again = self._feed.read_again
        say(f"all told after {time.monotonic() - begun:.0f} s")
        findings = check_delivery(self._told())
        words = [word.partition("=")[0] for word in CHAOS]
        return findings + check_met(self._met, kills=self._options.kills, faults=words)

    async def _talk(self, number: int) -> None:
        chance = random.Random(f"{self._options.seed}/{number}")
        pair = {"exam_id": 1, "participant_id": number + 1}
        async with httpx.AsyncClient(base_url=self._scene.processes["serve"].url, timeout=_PATIENCE_S) as http:
            turn = 0
            while not self._enough.is_set():
                await asyncio.sleep(chance.uniform(0.1, 1.9) * self._pause_s)
                turn += 1
                message = f"[[script:{json.dumps(_script(pick(chance, _ANSWERS), number, turn))}]]"
                answer = await http.post(
                    "/api/chat/message", json={"message": message, "turn_id": f"{number}.{turn}", **pair}
                )
                if answer.status_code not in _ENDED:
                    raise AssertionError(f"a turn was answered with {answer.status_code}: {answer.text}")

    async def _count(self) -> None:
        await self._recorded(self._options.events)
        await self._killed.wait()  # each kill is to meet events that are on their way
        self._enough.set()

    async def _recorded(self, count: float) -> None:
        if not await until(lambda: self._scene.count() >= count, every_s=0.2, timeout_s=_RECORDED_S):
            raise AssertionError(f"{count:.0f} events were not recorded within {_RECORDED_S:.0f} s")

    async def _take_core_away(self) -> None:
        """Core works for a tenth of the events, is killed, stays away for what stands for an hour, and comes back."""
        await self._recorded(self._options.events / 10)
        self._note_core()
        self._scene.kill("core")
        away_since = time.monotonic()
        say("  Core is away")
        await asyncio.sleep(self._options.hour)
        await asyncio.to_thread(self._scene.start, "core")
        self._met.away_s = time.monotonic() - away_since
        say(f"  Core is back; {self._scene.waiting()} events wait")

    def _note_core(self) -> None:
        status = self._scene.core_status()
        self._met.faults.update(status["faults"])
        self._met.duplicates += status["duplicates"]

    async def _kill(self) -> None:
        chance = random.Random(f"{self._options.seed}/kills")
        for number in range(self._options.kills):
            await asyncio.sleep(chance.uniform(0.2, 1.8) * self._kill_every_s)
            sending = await until(self._scene.sending, every_s=chance.uniform(0.0, 0.02), timeout_s=1.0)
            await asyncio.to_thread(self._scene.kill, "worker")
            self._met.kills += 1
            self._met.while_sending += sending
            say(f"  kill {number + 1}{' while sending' if sending else ''}")
            await asyncio.to_thread(self._scene.start, "worker")
        self._killed.set()

    def _told(self) -> Told:
        rows = self._scene.postgres.rows(
            "SELECT event_id, type, session_id::text, exam_id, participant_id, c.callback_seq, payload"
            " FROM callbacks AS c JOIN prompt_sessions AS s ON s.id = c.session_id ORDER BY session_id, c.callback_seq"
        )
        names = ("type", "session_id", "exam_id", "participant_id", "callback_seq")
        recorded = [(row[0], {**dict(zip(names, row[1:6], strict=True)), **row[6]}) for row in rows]
        stored = [json.loads(line) for line in self._scene.store.read_text(encoding="utf-8").splitlines()]
        return Told(
            recorded,
            dict(self._scene.postgres.rows("SELECT status, count(*) FROM callbacks GROUP BY status")),
            dict(self._scene.postgres.rows("SELECT id::text, total_tokens FROM prompt_sessions")),
            [(item["headers"]["webhook-id"], item["body"]) for item in stored],
            self._feed.table,
        )


def _script(kind: str, session: int, turn: int) -> dict[str, Any]:
    script: dict[str, Any] = {"pieces": [f"{session}.{turn}.{piece} 글 " for piece in range(4)]}
    if kind == "broken":
        script |= {"ending": "close", "ending_at": 2}
    if kind == "refused":
        script["status"] = 400
    return script
