"""What the judging loop does with faults that are not the judge's, and what two workers' calls of a run come to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from app.application.evaluation.basis import default_basis
from app.application.evaluation.circuits import JudgeCircuits
from app.application.evaluation.judging import Judges, KeepingClient
from app.application.services import evaluation_relay
from app.application.services.evaluation_relay import Desk, EvaluationRelay
from app.application.turns.settlement import settle
from app.core.errors import ErrorCode, ModelError, StartupError
from app.domain.conversation import Usage
from app.domain.judging import JudgeClient, JudgeRequest, build_request
from app.domain.judging.tasks import Trials
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.session import Database, PoolExhausted, get_db_context
from app.infrastructure.repositories.evaluation_runs import ClaimedRun, EvaluationRuns, KeptCall
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import Rows
from tests.support.chat import wait_until
from tests.support.judging import ScriptedJudge, answer, task
from tests.test_evaluation import FINAL, PROMPT, running_turn, runs, waited_long

MODEL = "scripted"
AWAY = ModelError(ErrorCode.LLM_UNAVAILABLE, "The judge cannot be reached right now.")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def open_scripted(_model: str, _stack: AsyncExitStack) -> JudgeClient:
    return ScriptedJudge(lambda _: answer(PROMPT))


@asynccontextmanager
async def relay(judges: Judges) -> AsyncIterator[None]:
    """The loop judges meanwhile."""
    async with get_db_context() as db:
        worker = await WorkerRepository(db).register("relay", 6)
    desk = Desk(judges, TokenCounter(MODEL), 4, Trials.SUSPICIOUS, held=False, on_told=lambda: None)
    loop = asyncio.create_task(EvaluationRelay(desk, lambda: worker).run())
    try:
        yield
    finally:
        loop.cancel()
        with suppress(asyncio.CancelledError):
            await loop


async def recorded() -> None:
    """A turn waits to be judged."""
    await settle(await running_turn(), FINAL, held=False, judged_by=await default_basis(MODEL))


async def claimed() -> ClaimedRun:
    await recorded()
    async with get_db_context() as db:
        worker = await WorkerRepository(db).register("one", 6)
    async with get_db_context() as db:
        [run] = await EvaluationRuns(db).claim(worker, room=1)
    return run


async def done(rows: Rows) -> dict[str, Any]:
    await asyncio.to_thread(wait_until, lambda: runs(rows)[0]["status"] == "done", 30)
    return runs(rows)[0]


def with_open_circuit() -> Judges:
    """Judges of which the one was found away, and may be tried again now."""
    clock, judges = Clock(), Judges(open_scripted)
    judges.circuits = JudgeCircuits(clock)
    for run_id in range(1_000, 1_005):
        judges.circuits.failed(MODEL, run_id, clock.now, AWAY, new=True)
    assert judges.circuits.closed_to() == [MODEL]
    clock.now += 60
    return judges


def once(fault: Exception, then: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Fails the first time."""
    faults = [fault]

    async def act(*args: Any, **kwargs: Any) -> Any:
        if faults:
            raise faults.pop()
        return await then(*args, **kwargs)

    return act


async def test_a_run_that_went_ahead_and_could_not_ask_lets_another_go(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        evaluation_relay, "read_subject", once(PoolExhausted("no connection"), evaluation_relay.read_subject)
    )
    judges = with_open_circuit()
    await recorded()
    async with relay(judges):
        assert (await done(rows))["tries"] == 1
    assert judges.circuits.closed_to() == []


async def test_nobody_has_gone_ahead_whose_claim_was_not_committed(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str | None] = []
    claim, context = EvaluationRuns.claim, get_db_context

    async def claiming(self: EvaluationRuns, *args: Any, **kwargs: Any) -> list[ClaimedRun]:
        found = await claim(self, *args, **kwargs)
        if found and not lost:
            lost.append(kwargs.get("only"))
            raise_at_commit.append(ConnectionResetError())
        return found

    raise_at_commit: list[Exception] = []

    @asynccontextmanager
    async def losing() -> AsyncIterator[Any]:
        async with context() as db:
            yield db
            if raise_at_commit:
                raise raise_at_commit.pop()

    monkeypatch.setattr(EvaluationRuns, "claim", claiming)
    monkeypatch.setattr(evaluation_relay, "get_db_context", losing)
    await recorded()
    async with relay(with_open_circuit()):
        await done(rows)
    assert lost == [MODEL], "it was the one that should have gone ahead"


@pytest.mark.parametrize("place", ["read_subject", "turn_log", "end_run"])
async def test_a_bug_wherever_it_is_makes_a_run_wait_for_a_day_and_no_longer(
    database: Database, rows: Rows, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    real = getattr(evaluation_relay, place)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if place == "read_subject" or kwargs.get("scores") or getattr(args[-1], "calls", ()):
            raise ValueError("a bug")
        return real(*args, **kwargs)

    monkeypatch.setattr(evaluation_relay, place, failing)
    await recorded()
    async with relay(Judges(open_scripted)):
        await asyncio.to_thread(wait_until, lambda: runs(rows)[0]["wait"] is not None, 30)
        wait = runs(rows)[0]["wait"]
        assert (wait["reason"], wait["patience_s"]) == ("internal error", 86_400)
        await waited_long(rows)
        run = await done(rows)
    assert (run["result"]["status"], run["result"]["reason"]) == ("unscored", "internal error")
    assert [item["reason"] for item in rows("SELECT reason FROM review_items")] == ["unscored"]


async def test_what_the_system_says_to_opening_a_judge_is_no_outage_of_the_database(
    database: Database, rows: Rows
) -> None:
    async def refuse(_model: str, _stack: AsyncExitStack) -> JudgeClient:
        raise FileNotFoundError(2, "No such file or directory", "llama-server")

    with pytest.raises(StartupError, match="llama-server"):
        await Judges(refuse).get(MODEL)
    await recorded()
    async with relay(Judges(refuse)):
        await asyncio.to_thread(wait_until, lambda: runs(rows)[0]["tries"] >= 1, 30)
    assert runs(rows)[0]["wait"]["reason"] == "judge unavailable"


async def test_calls_of_before_that_had_no_answer_and_no_error_do_not_hold_a_run_up(
    database: Database, rows: Rows
) -> None:
    run = await claimed()
    async with get_db_context() as db:
        call = KeptCall(
            run_id=run.id, sample=0, input_hash="h", model=MODEL, parameters={}, usage=Usage(9, 0, source="counted")
        )
        assert await EvaluationRuns(db).keep_call(call)
    async with get_db_context() as db:
        assert len(await EvaluationRuns(db).to_ledger(run)) == 1
    assert rows.one("SELECT outcome FROM provider_calls WHERE purpose = 'evaluation'")["outcome"] == "empty answer"


REQUEST = build_request(task(PROMPT), model=MODEL, sample=0)


async def test_two_workers_that_asked_the_same_judge_by_what_is_kept(database: Database, rows: Rows) -> None:
    run = await claimed()
    other_has_answered = asyncio.Event()

    class Slow(ScriptedJudge):
        async def complete(self, request: JudgeRequest) -> Any:
            await other_has_answered.wait()
            return await super().complete(request)

    first = KeepingClient(Slow(lambda _: "the late answer"), run, TokenCounter(MODEL))
    second = KeepingClient(ScriptedJudge(lambda _: "the kept answer"), replace(run, worker=0), TokenCounter(MODEL))
    late = asyncio.create_task(first.complete(REQUEST))
    await asyncio.sleep(0)
    assert (await second.complete(REQUEST)).raw == "the kept answer"
    other_has_answered.set()
    assert (await late).raw == "the kept answer"
    assert [call["raw_answer"] for call in rows("SELECT raw_answer FROM judge_calls")] == ["the kept answer"]


async def test_two_workers_that_keep_at_once_keep_one_answer(database: Database, rows: Rows) -> None:
    run = await claimed()
    call = KeptCall(run_id=run.id, sample=0, input_hash="h", model=MODEL, parameters={}, raw_answer="one")
    async with get_db_context() as db:
        assert await EvaluationRuns(db).keep_call(call)
        other = asyncio.create_task(kept(replace(call, raw_answer="two")))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        await asyncio.to_thread(wait_until, lambda: rows(waiting), 30)
    assert not await other
    assert [call["raw_answer"] for call in rows("SELECT raw_answer FROM judge_calls")] == ["one"]


async def kept(call: KeptCall) -> bool:
    async with get_db_context() as db:
        return await EvaluationRuns(db).keep_call(call)


async def test_a_turn_judged_again_gets_its_own_answers_where_another_asked_the_same(
    database: Database, rows: Rows
) -> None:
    one, other = await claimed(), await claimed()
    for run, said in ((one, "to one"), (other, "to the other")):
        await kept(KeptCall(run_id=run.id, sample=0, input_hash="h", model=MODEL, parameters={}, raw_answer=said))
    rows("UPDATE judge_calls SET parsed = '{}'")
    for run, said in ((one, "to one"), (other, "to the other")):
        again = rows.one(
            "INSERT INTO evaluation_runs (session_id, turn, revision, cause, status, settings)"
            " SELECT session_id, turn, 2, 'rerun', 'waiting', settings FROM evaluation_runs WHERE id = %s RETURNING id",
            run.id,
        )
        async with get_db_context() as db:
            known = await EvaluationRuns(db).known_answers(replace(run, id=again["id"]), 0, "h")
        assert (known.ours, known.others) == ((), (said,))
    third = await claimed()
    async with get_db_context() as db:
        known = await EvaluationRuns(db).known_answers(third, 0, "h")
    assert known.others == ("to one",), "the first of all, where the turn has none"
