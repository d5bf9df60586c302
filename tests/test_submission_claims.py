"""Evaluations under the worker's lease: claimed once, kept once, and by nobody who was fenced."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from app.domain.submission import DONE, Node, Outcome, Progress
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.evaluation_repository import RunBasis
from app.infrastructure.repositories.evaluation_runs import EvaluationRuns
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import (
    ClaimedEvaluation,
    EvaluationNotOursError,
    SubmissionClaims,
)
from app.infrastructure.repositories.submission_repository import NewSubmission, SubmissionRepository
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import Rows

BASIS = RunBasis(None, None, None, {"model": "openai:judge"})
NOW = datetime.now(UTC)


async def worker() -> int:
    async with get_db_context() as db:
        return await WorkerRepository(db).register("test", 6)


async def fence(worker_id: int) -> None:
    async with get_db_context() as db:
        assert await WorkerRepository(db).fence(worker_id)


async def new_submission(client_id: str = "s-1") -> None:
    async with get_db_context() as db:
        session = await SessionRepository(db).create_session(1, abs(hash(client_id)) % 10**9 + 1)
        new = NewSubmission(
            session_id=session.id,
            client_id=client_id,
            client_id_is_int=client_id.isdigit(),
            language="python",
            code="print()",
            code_hash="0" * 64,
            last_turn=0,
        )
        assert await SubmissionRepository(db).create(new) is not None


async def claim(worker_id: int, room: int = 9) -> list[ClaimedEvaluation]:
    async with get_db_context() as db:
        return await SubmissionClaims(db).claim(worker_id, room=room)


async def keep(evaluation: ClaimedEvaluation, node: Node, value: object = None) -> bool:
    async with get_db_context() as db:
        return await SubmissionClaims(db).keep_step(evaluation, node, Outcome("ok", value), NOW)


async def test_an_evaluation_is_claimed_once_and_freed_by_the_fence(database: Database) -> None:
    await new_submission("7")
    first, second = await worker(), await worker()
    [ours] = await claim(first)
    assert (ours.client_id, ours.revision, ours.tries, ours.is_first) == (7, 1, 0, True)
    assert await claim(second) == []
    await fence(first)
    assert [taken.id for taken in await claim(second)] == [ours.id]
    assert await claim(first) == [], "who is fenced claims nothing"


async def test_candidates_come_before_re_runs(database: Database) -> None:
    await new_submission("s-1")
    [first] = await claim(me := await worker())
    async with get_db_context() as db:
        await SubmissionRepository(db).add_evaluation(first.submission_id, cause="rerun", asked_by="Kim", basis={})
    await new_submission("s-2")
    assert [taken.client_id for taken in await claim(me, room=1)] == ["s-2"]
    [rerun] = await claim(me)
    assert (rerun.revision, rerun.is_first, rerun.basis) == (2, False, {})


async def test_what_was_put_off_is_due_later(database: Database, rows: Rows) -> None:
    await new_submission()
    [ours] = await claim(me := await worker())
    async with get_db_context() as db:
        await SubmissionClaims(db).postpone(ours, 60)
    assert await claim(me) == []
    async with get_db_context() as db:
        await SubmissionRepository(db).hasten(ours.session_id)
    [again] = await claim(me)
    assert again.tries == 1
    async with get_db_context() as db:
        assert await SubmissionClaims(db).release_forgotten(me, {again.id}) == 0
        assert await SubmissionClaims(db).release_forgotten(me, set()) == 1
    assert rows("SELECT 1 FROM submission_evaluations WHERE owner IS NOT NULL") == []


async def test_a_step_is_kept_once_and_by_its_owner_alone(database: Database, rows: Rows) -> None:
    await new_submission()
    first, second = await worker(), await worker()
    [ours] = await claim(first)
    assert await keep(ours, Node.FREEZE, {"a": "x\x00\ud800y"})
    assert not await keep(ours, Node.FREEZE, {"a": "other"})
    await fence(first)
    assert not await keep(ours, Node.TESTS), "who was fenced keeps nothing"
    [theirs] = await claim(second)
    assert not await keep(theirs, Node.FREEZE, {"a": "third"})
    assert await keep(theirs, Node.TESTS)
    async with get_db_context() as db:
        found = await SubmissionClaims(db).steps(ours.id)
    assert found[Node.FREEZE].value == {"a": "x\ufffd?y"} and set(found) == {Node.FREEZE, Node.TESTS}


async def test_an_evaluation_ends_once_and_by_its_owner_alone(database: Database, rows: Rows) -> None:
    await new_submission()
    first, second = await worker(), await worker()
    [ours] = await claim(first)
    await fence(first)
    [theirs] = await claim(second)
    with pytest.raises(EvaluationNotOursError):
        async with get_db_context() as db:
            await SubmissionClaims(db).end(ours, {"final_scores": {}})
    async with get_db_context() as db:
        await SubmissionClaims(db).end(theirs, {"final_scores": {}})
    with pytest.raises(EvaluationNotOursError):
        async with get_db_context() as db:
            await SubmissionClaims(db).end(theirs, {"final_scores": {}})
    assert rows.one("SELECT status, published, owner FROM submission_evaluations") == {
        "status": "done",
        "published": True,
        "owner": None,
    }
    assert not await keep(theirs, Node.TELL), "nothing is kept after the end"


async def test_a_judge_s_run_goes_along_with_the_evaluation(database: Database) -> None:
    await new_submission()
    first, second = await worker(), await worker()
    [ours] = await claim(first)
    async with get_db_context() as db:
        run = await SubmissionClaims(db).open_run(ours, "panel", BASIS)
    await fence(first)
    [theirs] = await claim(second)
    with pytest.raises(EvaluationNotOursError):
        async with get_db_context() as db:
            await SubmissionClaims(db).open_run(ours, "panel", BASIS)
    async with get_db_context() as db:
        taken = await SubmissionClaims(db).open_run(theirs, "panel", BASIS)
        assert taken.id == run.id
        assert not await EvaluationRuns(db).end(run, {}, [])
        assert await EvaluationRuns(db).end(taken, {}, [])
        assert await EvaluationRuns(db).claim(second, room=9) == [], "no run of a submission is a turn's"


async def test_progress_is_written_by_the_owner_and_ends_with_the_submission(database: Database, rows: Rows) -> None:
    await new_submission()
    [ours] = await claim(me := await worker())
    async with get_db_context() as db:
        claims = SubmissionClaims(db)
        assert await claims.begin(ours) and not await claims.begin(ours)
        await claims.note_progress(ours, Progress.of_cases(1, 2))
    shown = rows.one("SELECT status, progress FROM submissions")
    assert (shown["status"], shown["progress"]["cases_done"], shown["progress"]["percent"]) == ("RUNNING", 1, 34)
    async with get_db_context() as db:
        assert await SubmissionClaims(db).end_submission(ours, "DONE", DONE)
        assert not await SubmissionClaims(db).end_submission(ours, "FAILED", DONE), "done is done"
        await SubmissionClaims(db).note_progress(ours, Progress.of_cases(2, 2))
    assert rows.one("SELECT progress FROM submissions")["progress"] == DONE.to_json()
    await fence(me)
