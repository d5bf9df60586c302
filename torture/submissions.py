"""Submissions under torture: the worker is killed at every node, and every part is away for a while, one after another.

A gate in the database (`tests.support.submissions.Gate`) keeps each evaluation of a round from writing down another
node, which is done by then; so one kill -9 hits all ten. Candidates' programs really run in sandboxes.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg

from app.domain.submission import Node
from tests.conftest import Rows
from tests.support.chat import Command
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, ScriptedJudge
from tests.support.provider import Provider
from tests.support.redis_server import RedisServer
from tests.support.submissions import ONE_CASE, gate, hand_in, put_problem
from torture.check import Finding
from torture.scene import Postgres, keep_log, say

_AWAY_S = 10.0
_PATIENCE_S = 1_800.0
_JUDGED_AS = {"prompt_score": 80.0, "correctness_score": 100.0, "status": "SCORED"}
"""What the scripted judge and the right program come to."""


class SubmissionScene:
    """What runs: a serving process, a worker, PostgreSQL, Redis, a judge, a provider and Core."""

    def __init__(self, stack: contextlib.ExitStack, log_dir: Path) -> None:
        scratch = Path(tempfile.mkdtemp(prefix="turnstone-torture-"))
        scratch.chmod(0o755)  # the database may run as a user of its own
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        self._log_dir = log_dir
        self.postgres = Postgres(scratch / "database")
        stack.callback(self.postgres.close)
        self.redis = stack.enter_context(RedisServer())
        self.core = stack.enter_context(FakeCore())
        self.judge = stack.enter_context(ScriptedJudge())
        provider = stack.enter_context(Provider())
        put_problem(Rows(self.postgres.url), **ONE_CASE)
        self._env = {
            "TURNSTONE_PORT": "0",
            "TURNSTONE_DATA_DIR": str(scratch / "data"),
            "TURNSTONE_DATABASE__URL": self.postgres.url,
            "TURNSTONE_DATABASE__POOL_SIZE": "30",
            "TURNSTONE_DATABASE__TIMEOUT_S": "2",
            "TURNSTONE_REDIS__URL": self.redis.url,
            "TURNSTONE_LLM__MODEL": "openai:scripted",
            "TURNSTONE_LLM__BASE_URL": provider.base_url,
            "TURNSTONE_LLM__API_KEY": "unused",
            "TURNSTONE_JUDGE__MODEL": "openai:scripted-judge",
            "TURNSTONE_JUDGE__BASE_URL": self.judge.base_url,
            "TURNSTONE_JUDGE__API_KEY": "unused",
            "TURNSTONE_SUBMISSIONS__CONCURRENCY": str(len(Node)),
            "TURNSTONE_CALLBACKS__URL": self.core.callback_url,
            "TURNSTONE_CALLBACKS__RETRY_DELAYS_S": str([0.2] * 1000),
            "TURNSTONE_LEASE_S": "1",
        }
        stack.callback(self.end)
        self.serving = Command("serve", env={**self._env, "TURNSTONE_WORKER__EMBEDDED": "false"})
        self.serving.wait_ready()
        self.worker = self._start_worker()
        self.handed_in = 0

    def _start_worker(self) -> Command:
        worker = Command("worker", env=self._env)
        worker.wait_for_line("working")
        return worker

    def kill_worker(self) -> None:
        """Kill -9, and another one in its place."""
        self.worker.kill()
        keep_log(self.worker, self._log_dir, "worker")
        self.worker = self._start_worker()

    def end(self) -> None:
        """Keep what the processes said, and end them."""
        for name in ("serving", "worker"):
            if (process := getattr(self, name, None)) is not None:
                keep_log(process, self._log_dir, name)
                with contextlib.suppress(Exception):
                    process.kill()

    def hand_in(self, count: int) -> None:
        """So many sessions with a turn and a submission each; what fails is tried again, as clients do."""
        with httpx.Client(base_url=self.serving.url, timeout=30) as http:
            for _ in range(count):
                self.handed_in += 1
                deadline = time.monotonic() + _PATIENCE_S
                while time.monotonic() < deadline:
                    with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                        hand_in(http, self.handed_in, exam_id=1, participant_id=self.handed_in)
                        break
                    time.sleep(0.3)

    def children(self, part: str) -> list[psutil.Process]:
        """The worker's own child processes with this in their command."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.worker.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if any(part in word for word in child.cmdline()):
                        found.append(child)
        return found

    def table(self, statement: str) -> list[dict[str, Any]]:
        """Rows by their columns' names."""
        with psycopg.connect(self.postgres.url, row_factory=psycopg.rows.dict_row) as connection:
            return connection.execute(statement).fetchall()  # type: ignore[arg-type]  # our own constants


def run_submissions(options: argparse.Namespace, log_dir: Path) -> list[Finding]:
    """Kill, take away, and look at what has come of it."""
    say(f"starting serve, worker, PostgreSQL, Redis, a judge and Core; logs go to {log_dir}")
    with contextlib.ExitStack() as stack:
        scene = SubmissionScene(stack, log_dir)
        begun = time.monotonic()
        stopped = [_kill_round(scene, number) for number in range(options.rounds)]
        _settle(scene)
        say(f"{options.rounds} kills with {sum(map(len, stopped))} nodes done and not kept: {_elapsed(begun)}")
        if options.submissions:
            begun = time.monotonic()
            _outages(scene, options.submissions)
            _settle(scene)
            say(f"{options.submissions} submissions while the parts were away in turn: {_elapsed(begun)}")
        return [_killed(stopped, options.rounds), *check_submissions(scene)]


def _elapsed(begun: float) -> str:
    return f"{time.monotonic() - begun:.0f} s"


def _kill_round(scene: SubmissionScene, number: int) -> list[Node]:
    """Ten evaluations, each stopped at another node; then the worker dies. Returns the nodes that were hit."""
    [(last,)] = scene.postgres.rows("SELECT coalesce(max(id), 0) FROM submission_evaluations")
    with gate(scene.postgres.url) as barrier:
        for place, node in enumerate(Node, start=1):
            barrier.stop(last + place, node)
        scene.hand_in(len(Node))
        deadline = time.monotonic() + _PATIENCE_S
        while barrier.waiting < len(Node) and time.monotonic() < deadline:
            time.sleep(0.05)
        kept = {(row[0], row[1]) for row in scene.postgres.rows("SELECT evaluation_id, node FROM evaluation_steps")}
        hit = [node for place, node in enumerate(Node, start=1) if (last + place, node.value) not in kept]
        if barrier.waiting < len(Node):
            hit = hit[: barrier.waiting]
        scene.kill_worker()
        barrier.open()
    if number % 5 == 4:
        say(f"  {number + 1} rounds")
    return hit


def _outages(scene: SubmissionScene, submissions: int) -> None:
    parts = {
        "judge": _judge_away,
        "runner": lambda scene: _killing(scene, "bubblewrap.warden"),
        "analyser": lambda scene: _killing(scene, "app.infrastructure.analysis"),
        "database": _database_away,
        "Redis": _redis_away,
    }
    for place, (name, away) in enumerate(parts.items()):
        count = submissions // len(parts) + (place < submissions % len(parts))
        handing_in = threading.Thread(target=scene.hand_in, args=(count,))
        handing_in.start()
        time.sleep(1.0)
        with away(scene):
            time.sleep(_AWAY_S)
        handing_in.join()
        tried = scene.postgres.rows("SELECT count(*) FROM submission_evaluations WHERE tries > 0")[0][0]
        say(f"  the {name} was away; {tried} evaluations were put off so far")


@contextlib.contextmanager
def _judge_away(scene: SubmissionScene) -> Iterator[None]:
    scene.judge.reply = lambda _: JudgeReply(status=503)
    try:
        yield
    finally:
        scene.judge.reply = lambda _: None


@contextlib.contextmanager
def _killing(scene: SubmissionScene, part: str) -> Iterator[None]:
    """Whatever of that kind the worker starts is killed."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.05):
            for process in scene.children(part):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield
    finally:
        over.set()
        killing.join()


@contextlib.contextmanager
def _database_away(scene: SubmissionScene) -> Iterator[None]:
    for _ in range(3):
        scene.postgres.restart()
        time.sleep(2.0)
    yield


@contextlib.contextmanager
def _redis_away(scene: SubmissionScene) -> Iterator[None]:
    scene.redis.kill()
    try:
        yield
    finally:
        scene.redis.start()


def _settle(scene: SubmissionScene) -> None:
    """Wait until every evaluation has ended and Core was told all."""
    deadline = time.monotonic() + _PATIENCE_S
    waiting = "SELECT count(*) FROM submission_evaluations WHERE status = 'waiting'"
    pending = "SELECT count(*) FROM callbacks WHERE status = 'pending'"
    while time.monotonic() < deadline:
        if scene.postgres.rows(waiting) == [(0,)] and scene.postgres.rows(pending) == [(0,)]:
            return
        time.sleep(0.5)
    say("not settled in time")


def _killed(stopped: list[list[Node]], rounds: int) -> Finding:
    found = Finding("at each kill every node was under way in some evaluation")
    counted = Counter(node for hit in stopped for node in hit)
    for node in Node:
        found.hold(counted[node] == rounds, f"{node.value}: {counted[node]} of {rounds}")
    return found


def check_submissions(scene: SubmissionScene) -> list[Finding]:
    """What has to be true in the end."""
    evaluations = scene.table("SELECT * FROM submission_evaluations ORDER BY id")
    return [
        _none_lost(scene, evaluations),
        _no_wrong_zero(scene, evaluations),
        _told_once(scene, evaluations),
        _made_once(scene, evaluations),
        _paid_once(scene),
    ]


def _none_lost(scene: SubmissionScene, evaluations: list[dict[str, Any]]) -> Finding:
    found = Finding("every submission was evaluated")
    for row in scene.table("SELECT client_id, status FROM submissions"):
        found.hold(row["status"] == "DONE", f"submission {row['client_id']}: {row['status']}")
    found.hold(len(evaluations) == scene.handed_in, f"{len(evaluations)} of {scene.handed_in}")
    return found


def _no_wrong_zero(scene: SubmissionScene, evaluations: list[dict[str, Any]]) -> Finding:
    found = Finding("no score is another one than the work's own")
    scores = {row["evaluation_id"]: row for row in scene.table("SELECT * FROM scores")}
    for each in evaluations:
        row = scores.get(each["id"], {})
        told = {name: row.get(name) for name in _JUDGED_AS}
        is_right = told == _JUDGED_AS and bool(row["performance_score"]) and bool(row["total_score"])
        found.hold(is_right, f"evaluation {each['id']}: {told}, performance {row.get('performance_score')}")
    return found


def _told_once(scene: SubmissionScene, evaluations: list[dict[str, Any]]) -> Finding:
    found = Finding("Core was told the scores of each evaluation exactly once")
    bodies = [event.body for event in scene.core.events()]
    told = Counter((body["submission_id"], body["revision"]) for body in bodies if body["type"] == "final_scores")
    for row in scene.table("SELECT client_id FROM submissions"):
        count = told[int(row["client_id"]), 1]
        found.hold(count == 1, f"submission {row['client_id']}: {count} times")
    found.hold(sum(told.values()) == len(evaluations), f"{sum(told.values())} events of {len(evaluations)}")
    return found


def _made_once(scene: SubmissionScene, evaluations: list[dict[str, Any]]) -> Finding:
    found = Finding("each node was kept once, and no judge's answer twice in a run")
    nodes = Counter(row["evaluation_id"] for row in scene.table("SELECT evaluation_id FROM evaluation_steps"))
    for each in evaluations:
        found.hold(nodes[each["id"]] == len(Node) - 1, f"evaluation {each['id']}: {nodes[each['id']]} nodes")
    answers = scene.table("SELECT run_id, sample, input_hash FROM judge_calls WHERE raw_answer <> ''")
    for (run, sample, _), count in Counter(tuple(row.values()) for row in answers).items():
        found.hold(count == 1, f"run {run}, sample {sample}: {count} answers to the same")
    runs = scene.table(
        "SELECT evaluation_id, cause, count(*) AS n FROM evaluation_runs GROUP BY 1, 2, turn, session_id"
    )
    for row in runs:
        found.hold(row["n"] == 1, f"evaluation {row['evaluation_id']}: {row['n']} runs of its {row['cause']}")
    return found


def _paid_once(scene: SubmissionScene) -> Finding:
    found = Finding("each run's tokens are in the ledger and were told once")
    bodies = [event.body for event in scene.core.events()]
    told = sum(b["total_tokens"] for b in bodies if b["type"] == "usage" and b["purpose"] == "evaluation")
    tokens = "coalesce(sum(prompt_tokens + completion_tokens), 0) AS n"
    [ledger] = scene.table(f"SELECT {tokens} FROM provider_calls WHERE purpose = 'evaluation'")
    [kept] = scene.table(f"SELECT {tokens} FROM judge_calls WHERE NOT cached")
    found.hold(told == ledger["n"] == kept["n"], f"told {told}, ledger {ledger['n']}, kept {kept['n']}")
    return found
