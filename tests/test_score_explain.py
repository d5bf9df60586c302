"""`turnstone score explain`: every number made again from what is stored, and nothing that was changed goes unseen."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from app.application.submissions.explaining import explain_scores
from app.core.settings import Settings
from tests.conftest import Rows, change
from tests.support.chat import Command, environment
from tests.support.core import FakeCore
from tests.support.judge import ScriptedJudge
from tests.support.service import Service
from tests.support.submissions import PROMPT, RIGHT, judge_settings, put_problem
from tests.test_openapi import checked_client
from tests.test_submission_flow import talked
from tests.test_submissions import ended, taken

Start = Callable[..., Service]


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running:
        yield running


@pytest.fixture
def service(start: Start, judge: ScriptedJudge, rows: Rows) -> Service:
    put_problem(rows)
    return start(judge=judge_settings(judge))


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    with checked_client(service) as opened:
        yield opened


@pytest.fixture
def turnstone(settings: Settings) -> Callable[..., Any]:
    """Runs the command beside the service; returns its exit code and what it printed."""
    env = environment(change(settings, log_level="error"))

    async def run(*arguments: str, **more: str) -> tuple[int, str]:
        code, output = await asyncio.to_thread(lambda: Command(*arguments, env=env | more).ended())
        assert "Traceback" not in output
        return code, output

    return run


TAMPERED = [
    (
        "a judge's mark of a prompt",
        "UPDATE criterion_scores SET score = 1 WHERE id = (SELECT min(id) FROM criterion_scores)",
    ),
    (
        "a judge's answer",
        "UPDATE judge_calls SET parsed = jsonb_set(parsed, '{criteria,R1,score}', '5') WHERE sample = 0",
    ),
    (
        "what became of a prompt",
        """UPDATE evaluation_steps SET outcome = jsonb_set(outcome, '{value,turns,0,score}', '81')
        WHERE node = 'turns'""",
    ),
    (
        "the panel's marks",
        "UPDATE criterion_scores SET score = 1 WHERE run_id = (SELECT id FROM evaluation_runs WHERE cause = 'panel')",
    ),
    ("a verdict", "UPDATE submission_runs SET verdict = 'WA' WHERE case_index = 0 AND repetition = 0"),
    ("a weight", "UPDATE submission_runs SET verdict = 'WA', weight = 9 WHERE case_index = 1 AND repetition = 0"),
    (
        "a processor time",
        "UPDATE submission_runs SET cpu_ms = cpu_ms * 40 WHERE program = 'candidate' AND repetition > 0",
    ),
    (
        "a complexity",
        """UPDATE evaluation_steps SET outcome = jsonb_set(outcome, '{value,functions,0,complexity}', '30')
        WHERE node = 'analysis'""",
    ),
    (
        "the told total",
        "UPDATE callbacks SET payload = jsonb_set(payload, '{final_scores,total_score}', '9') WHERE type ~ 'final'",
    ),
    ("the stored total", "UPDATE scores SET total_score = 99"),
    ("the grade", "UPDATE scores SET grade = 'F'"),
    (
        "the shown component",
        """UPDATE submission_evaluations
        SET result = jsonb_set(result, '{final_scores,components,prompt,score}', '99')""",
    ),
    ("the policy", "UPDATE evaluation_documents SET content = content || E'\\n' WHERE kind = 'policy'"),
]


async def test_every_number_is_made_again_and_what_was_changed_is_found(
    rest: httpx.Client, core: FakeCore, rows: Rows, turnstone: Callable[..., Any], judge: ScriptedJudge
) -> None:
    judge.marks = lambda seen: {"R1": 3 + seen.seed % 2} if seen.kind == "panel" else {"R2": 5}
    session_id = talked(rest, PROMPT, "Now let it take negative numbers too, for example -4 and 10.")
    taken(rest, session_id, code=RIGHT, submission_id="s-1")
    scores = ended(rest, "s-1")["final_scores"]
    code, output = await turnstone("score", "explain", "s-1")
    assert code == 0, output
    assert "all as published" in output and "✗" not in output
    for said in ("turn 1: ", "CREATION", "R2 of 5", "panel's medians", "100 · (1 · ", "median(", "mean complexity of"):
        assert said in output, output
    code, output = await turnstone("score", "explain", "s-1", "--json")
    told = json.loads(output)
    assert code == 0 and told["equal"] and told["policy"]["hash"] == scores["policy"]["hash"]
    by_name = {line["name"]: line for line in told["lines"]}
    assert by_name["total"]["value"] == pytest.approx(scores["total_score"], abs=1e-9)
    assert {"callbacks", "scores", "submission_evaluations", "evaluation_steps"} <= set(by_name["total"]["published"])
    code, output = await turnstone("score", "explain", "s-1", "--revision", "2")
    assert code == 1 and "no scores of revision 2" in output
    await check_costs(rest, rows, turnstone, session_id)


async def check_costs(rest: httpx.Client, rows: Rows, turnstone: Callable[..., Any], session_id: str) -> None:
    """What the exam used is told by kind of work, for each session and in money."""
    exam = str(rest.get(f"/api/sessions/{session_id}").json()["exam_id"])
    models = [row["model"] for row in rows("SELECT DISTINCT model FROM provider_calls")]
    prices = json.dumps({model: {"prompt": 2, "cached": 1, "completion": 8} for model in models})
    code, output = await turnstone("usage", "exam", exam, "--json", TURNSTONE_PRICES__PER_MILLION=prices)
    assert code == 0, output
    parts = {line["part"]: line for line in map(json.loads, output.splitlines())}
    assert set(parts) == {"chat", "prompts", "submissions", "all"}
    ledger = rows("SELECT * FROM provider_calls")
    for name, calls in (
        ("chat", [c for c in ledger if c["purpose"] == "chat"]),
        ("prompts", [c for c in ledger if c["purpose"] == "evaluation" and c["turn"] is not None]),
        ("submissions", [c for c in ledger if c["purpose"] == "evaluation" and c["turn"] is None]),
        ("all", ledger),
    ):
        prompt, cached, completion = (
            sum(call[f"{figure}_tokens"] for call in calls) for figure in ("prompt", "cached", "completion")
        )
        told = parts[name]
        assert calls and (told["sessions"], told["calls"], told["calls_per_session"]) == (1, len(calls), len(calls))
        assert told["total_tokens"] == prompt + completion
        assert told["cost"] == pytest.approx((2 * (prompt - cached) + cached + 8 * completion) / 1e6)
    code, output = await turnstone("usage", "exam", exam)
    assert code == 0 and f"no price of {', '.join(sorted(models))}" in output


KEYS = {
    "criterion_scores": ("id",),
    "judge_calls": ("id",),
    "submission_runs": ("id",),
    "callbacks": ("id",),
    "submission_evaluations": ("id",),
    "scores": ("evaluation_id",),
    "evaluation_steps": ("evaluation_id", "node"),
    "evaluation_documents": ("hash",),
}


@contextmanager
def changed(rows: Rows, statement: str) -> Iterator[None]:
    """Change what is stored, for a while."""
    table = statement.split()[1]
    rows(f"CREATE TABLE as_it_was AS SELECT * FROM {table}")
    assert rows(f"{statement} RETURNING 1"), "it changes something"
    yield
    query = "SELECT column_name AS name FROM information_schema.columns WHERE table_name = 'as_it_was'"
    names = [row["name"] for row in rows(query) if row["name"] not in KEYS[table]]
    values = ", ".join(f"{name} = before.{name}" for name in names)
    same = " AND ".join(f"now.{name} = before.{name}" for name in KEYS[table])
    rows(f"UPDATE {table} AS now SET {values} FROM as_it_was AS before WHERE {same}")
    rows("DROP TABLE as_it_was")


@pytest.mark.slow
def test_each_change_is_found(service: Service, rest: httpx.Client, core: FakeCore, rows: Rows) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    ended(rest, "s-1")
    assert service.call(explain_scores("s-1")).is_true
    for what, statement in TAMPERED:
        with changed(rows, statement):
            assert not service.call(explain_scores("s-1")).is_true, what
    assert service.call(explain_scores("s-1")).is_true, "all is as it was"
