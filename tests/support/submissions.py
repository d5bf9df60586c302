"""Submissions for tests: a problem that is known, a conversation, code, and what has to be true of an evaluation."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import psycopg

from app.domain.problem import Problem
from app.domain.submission import Node
from tests.conftest import Rows
from tests.support.chat import new_pair
from tests.support.judge import ScriptedJudge
from tests.support.problems import SUM

SPEC = 71
PROMPT = "Write a function that adds the two numbers of a line; they have at most 1000 digits each."
RIGHT = "def add(a, b):\n    return a + b\n\n\nprint(add(*map(int, input().split())))\n"
WRONG = "print(7)\n"
SLEEPING = "import time\n\ntime.sleep(3)\nprint(sum(map(int, input().split())))\n"


ONE_CASE = {"cases": [SUM["cases"][2]]}


def put_problem(rows: Rows, spec_id: int = SPEC, **changes: Any) -> None:
    """Make a problem known, without running its references."""
    problem = Problem.parse({**SUM, **changes})
    rows(
        "INSERT INTO problem_versions (spec_id, version, content, content_hash) VALUES (%s, 1, %s, %s)",
        spec_id,
        json.dumps(problem.to_json()),
        problem.content_hash,
    )


def judge_settings(judge: ScriptedJudge, **more: Any) -> dict[str, Any]:
    known = {"model": "openai:scripted-judge", "base_url": judge.base_url, "api_key": "sk-judge", "timeout_s": 30}
    return {**known, **more}


def hand_in(http: httpx.Client, number: int, code: str = RIGHT, **pair: int) -> None:
    """A session of one turn, with words of its own so that no answer of a judge serves another, and its code."""
    session_id = http.post("/api/sessions", json={**(pair or new_pair()), "spec_id": SPEC}).json()["id"]
    said = {"message": f"{PROMPT} This is case {number}.", "turn_id": "t1", "session_id": session_id}
    http.post("/api/chat/message", json=said).raise_for_status()
    body = {"code": f"{code}number_{number} = {number}\n", "language": "python", "submission_id": number}
    http.post(f"/api/sessions/{session_id}/submissions", json=body).raise_for_status()


def asked_twice(judge: ScriptedJudge) -> list[tuple[str, int, str]]:
    """Calls that were made, and answered, more than once."""
    calls = Counter((call.kind, call.seed, str(call.messages)) for call in judge.calls if call.answered)
    return [call for call, count in calls.items() if count > 1]


def steps(rows: Rows, evaluation_id: int = 1) -> dict[str, dict[str, Any]]:
    """The outcomes of an evaluation's nodes."""
    found = rows("SELECT node, outcome FROM evaluation_steps WHERE evaluation_id = %s", evaluation_id)
    return {row["node"]: row["outcome"] for row in found}


def everything_once(rows: Rows, events: list[dict[str, Any]], revisions: int) -> None:
    """Each evaluation ended once: its steps, its runs of judges, its scores, Core's events; and the tokens add up."""
    evaluations = rows("SELECT * FROM submission_evaluations ORDER BY id")
    assert [row["status"] for row in evaluations] == ["done"] * revisions
    assert rows("SELECT 1 FROM submission_evaluations WHERE owner IS NOT NULL") == []
    told = Counter((str(e["submission_id"]), e["revision"]) for e in events if e["type"] == "final_scores")
    assert len(told) == revisions and set(told.values()) == {1}, told
    assert len(rows("SELECT 1 FROM scores")) == revisions
    nodes = Counter(row["node"] for row in rows("SELECT node FROM evaluation_steps"))
    assert set(nodes.values()) == {revisions} and len(nodes) == 9, nodes
    usages = [e for e in events if e["type"] == "usage" and e["purpose"] == "evaluation"]
    for_sessions = [e for e in usages if e["turn"] is None]
    query = "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) AS n FROM {} WHERE {}"
    ledger = rows.one(query.format("provider_calls", "purpose = 'evaluation'"))["n"]
    kept = rows.one(query.format("judge_calls", "NOT cached"))["n"]
    assert sum(e["total_tokens"] for e in usages) == ledger == kept
    runs = rows("SELECT 1 FROM evaluation_runs WHERE turn IS NULL AND status = 'done'")
    assert len(runs) == len(rows("SELECT 1 FROM evaluation_runs WHERE turn IS NULL"))
    assert len(for_sessions) <= len(runs)


_GATE = 20_261_127
_STOP = f"""
    CREATE TABLE IF NOT EXISTS stop_at (evaluation_id bigint PRIMARY KEY, node text);
    CREATE OR REPLACE FUNCTION stop_here() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (
            SELECT 1 FROM stop_at WHERE evaluation_id = NEW.evaluation_id
              AND node = coalesce(to_jsonb(NEW) ->> 'node', 'tell')
        ) THEN
            PERFORM pg_advisory_xact_lock_shared({_GATE});
        END IF;
        RETURN NEW;
    END $$;
    CREATE OR REPLACE TRIGGER stop_here BEFORE INSERT ON evaluation_steps FOR EACH ROW EXECUTE FUNCTION stop_here();
    CREATE OR REPLACE TRIGGER stop_here BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION stop_here();
"""


class Gate:
    """Keeps evaluations from writing down a node, as long as it is shut: the node is done, and not kept."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def stop(self, evaluation_id: int, node: Node) -> None:
        """Stop this evaluation at this node."""
        self._connection.execute(
            "INSERT INTO stop_at VALUES (%s, %s) ON CONFLICT (evaluation_id) DO UPDATE SET node = EXCLUDED.node",
            (evaluation_id, node.value),
        )

    @property
    def waiting(self) -> int:
        """How many stand at it."""
        query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s"
        row = self._connection.execute(query, (_GATE,)).fetchone()
        return int(row[0]) if row else 0

    def shut(self) -> None:
        self._connection.execute("SELECT pg_advisory_lock(%s)", (_GATE,))

    def open(self) -> None:
        """Let them go, and stop nobody any more."""
        self._connection.execute("DELETE FROM stop_at")
        self._connection.execute("SELECT pg_advisory_unlock(%s)", (_GATE,))


@contextlib.contextmanager
def gate(url: str) -> Iterator[Gate]:
    """A gate in the database of that address; it is shut."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_STOP)
        made = Gate(connection)
        made.shut()
        yield made
