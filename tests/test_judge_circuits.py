"""A judge that nobody can reach is asked by one run at a time, and by all again once it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.application.evaluation.basis import default_basis
from app.application.evaluation.circuits import JudgeCircuits
from app.application.services.evaluation_service import EvaluationService, RerunOrder
from app.application.turns.settlement import settle
from app.core.errors import ErrorCode, ModelError
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.evaluation_runs import EvaluationRuns
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import Rows
from tests.support.chat import wait_until
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, ScriptedJudge
from tests.support.service import Service
from tests.test_evaluation import FINAL, all_done, ask, judge_settings, running_turn, runs

AWAY = ModelError(ErrorCode.LLM_UNAVAILABLE, "The judge cannot be reached right now.")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def closed_by(clock: Clock, *models: str) -> JudgeCircuits:
    circuits = JudgeCircuits(clock)
    for model in models:
        for run in range(5):
            circuits.failed(model, run, clock.now, AWAY, new=True)
    return circuits


def test_it_closes_for_the_judge_that_several_runs_found_away_and_for_no_other() -> None:
    circuits = closed_by(Clock(), "a")
    assert circuits.closed_to() == ["a"]
    for _ in range(9):
        circuits.failed("b", 1, 100.0, AWAY, new=False)  # one run alone tells nothing of the judge
    assert circuits.closed_to() == ["a"]


def test_one_run_goes_ahead_after_a_pause_and_what_it_finds_counts() -> None:
    clock = Clock()
    circuits = closed_by(clock, "a")
    assert circuits.to_try() == []
    clock.now += 1.1
    assert circuits.to_try() == ["a"]
    circuits.go_ahead("a", 7)
    assert (circuits.to_try(), circuits.closed_to()) == ([], ["a"])
    circuits.failed("a", 7, circuits.begin(), AWAY, new=False)
    clock.now += 1.1
    assert circuits.to_try() == [], "the next pause is longer"
    clock.now += 1.0
    circuits.go_ahead("a", 8)
    circuits.ended(7)
    assert circuits.to_try() == [], "another one is ahead"
    circuits.ended(8)
    assert circuits.to_try() == ["a"]
    circuits.go_ahead("a", 9)
    circuits.answered("a", new=False)
    circuits.ended(9)
    assert circuits.closed_to() == []


def test_a_judge_that_refuses_a_request_is_there() -> None:
    circuits = closed_by(Clock(), "a")
    circuits.failed("a", 1, 100.0, ModelError(ErrorCode.LLM_REJECTED, "No."), new=False)
    assert circuits.closed_to() == []


def test_a_judge_may_say_for_how_long_it_wants_to_be_left_alone() -> None:
    clock = Clock()
    circuits = JudgeCircuits(clock)
    for run in range(5):
        error = ModelError(ErrorCode.LLM_UNAVAILABLE, "Too many requests.", retry_after_s=60)
        circuits.failed("a", run, clock.now, error, new=True)
    clock.now += 59
    assert circuits.to_try() == []
    clock.now += 2
    assert circuits.to_try() == ["a"]


async def test_runs_of_a_judge_that_is_away_are_not_even_claimed(database: Database, rows: Rows) -> None:
    for model in ("openai:away", "openai:there", "openai:away"):
        await settle(await running_turn(), FINAL, held=False, judged_by=await default_basis(model))
    async with get_db_context() as db:
        worker = await WorkerRepository(db).register("one", 6)
    async with get_db_context() as db:
        claimed = await EvaluationRuns(db).claim(worker, room=5, without=["openai:away"])
    models = {run["id"]: run["settings"]["model"] for run in runs(rows)}
    assert [models[run.id] for run in claimed] == ["openai:there"]
    async with get_db_context() as db:
        [ahead] = await EvaluationRuns(db).claim(worker, room=1, only="openai:away")
    assert models[ahead.id] == "openai:away"


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running:
        yield running


async def test_answers_that_are_kept_do_not_say_that_the_judge_is_there(
    start: Callable[..., Service], judge: ScriptedJudge, database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is judged from them alone would send all others to a judge that is away."""
    found_there = []
    answered = JudgeCircuits.answered

    def noting(circuits: JudgeCircuits, model: str, *, new: bool) -> None:
        found_there.append(model)
        answered(circuits, model, new=new)

    monkeypatch.setattr(JudgeCircuits, "answered", noting)
    service = start(judge=judge_settings(judge))
    await ask(service, "Sort n numbers.")
    [first] = await all_done(rows)
    assert len(found_there) == 1
    judge.default = JudgeReply(status=503)
    reruns = EvaluationService(await default_basis(first["settings"]["model"]), held=False)
    async for _ in reruns.record_rerun(RerunOrder(session_id=first["session_id"])):
        pass
    await asyncio.to_thread(wait_until, lambda: {run["status"] for run in runs(rows)} == {"done"})
    assert [run["result"]["score"] for run in runs(rows)] == [first["result"]["score"]] * 2
    assert len(found_there) == 1


@pytest.mark.slow
async def test_many_waiting_turns_leave_a_dead_judge_in_peace_and_are_judged_when_it_is_back(
    start: Callable[..., Service], judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    service = start(judge=judge_settings(judge, concurrency=8))
    judge.default = JudgeReply(status=503)
    await ask(service, "Sort n numbers.")
    await asyncio.to_thread(wait_until, lambda: runs(rows)[0]["tries"] >= 1)
    rows(
        "INSERT INTO prompt_turns"
        " (session_id, turn, client_turn_id, turn_id_is_int, status, finish_reason, owner, model)"
        " SELECT session_id, n, 'more' || n, false, 'completed', 'stop', owner, model"
        " FROM prompt_turns, generate_series(2, 81) AS n"
    )
    rows(
        "INSERT INTO prompt_messages (session_id, turn, role, content)"
        " SELECT session_id, turn, 'USER', 'Sort ' || turn || ' numbers.' FROM prompt_turns WHERE turn > 1"
    )
    calls = len(judge.calls)
    rows(
        "INSERT INTO evaluation_runs"
        " (session_id, turn, revision, status, rubric_hash, prompt_hash, policy_hash, settings)"
        " SELECT run.session_id, t.turn, 1, 'waiting', rubric_hash, prompt_hash, policy_hash, run.settings"
        " FROM evaluation_runs AS run, prompt_turns AS t WHERE t.turn > 1"
    )
    await asyncio.sleep(6)
    assert len(judge.calls) - calls <= 25, "not one for each turn"
    judge.default = JudgeReply()
    found: list[dict[str, Any]] = await all_done(rows, 81, timeout=60)
    assert {run["result"]["status"] for run in found} == {"scored"}
