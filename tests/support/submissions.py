"""Submissions for tests: a problem that is known, a conversation, code, and what has to be true of an evaluation."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from app.domain.problem import Problem
from tests.conftest import Rows
from tests.support.judge import ScriptedJudge
from tests.support.problems import SUM

SPEC = 71
PROMPT = "Write a function that adds the two numbers of a line; they have at most 1000 digits each."
RIGHT = "def add(a, b):\n    return a + b\n\n\nprint(add(*map(int, input().split())))\n"
WRONG = "print(7)\n"
SLEEPING = "import time\n\ntime.sleep(3)\nprint(sum(map(int, input().split())))\n"


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
    return {"model": "openai:scripted-judge", "base_url": judge.base_url, "api_key": "sk-judge", "timeout_s": 5, **more}


def steps(rows: Rows, evaluation_id: int = 1) -> dict[str, dict[str, Any]]:
    """The outcomes of an evaluation's nodes."""
    found = rows("SELECT node, outcome FROM evaluation_steps WHERE evaluation_id = %s", evaluation_id)
    return {row["node"]: row["outcome"] for row in found}


def everything_once(rows: Rows, events: list[dict[str, Any]], revisions: int) -> None:
    """Each evaluation ended once: its steps, its runs of judges, its scores and Core's events, and the tokens add up."""
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
