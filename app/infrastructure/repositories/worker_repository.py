"""Leases of processes: who is alive, and who has been fenced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import func, insert, select, update

from app.infrastructure.persistence.models import (
    CallbackLane,
    EvaluationRun,
    RunStatusEnum,
    SubmissionEvaluation,
    Worker,
)
from app.infrastructure.persistence.session import Transaction

_sweep = """
    DELETE FROM workers WHERE fenced_at < now() - interval '1 day'
      AND NOT EXISTS (SELECT 1 FROM prompt_turns WHERE owner = workers.id AND status = 'running')
    """
# Nobody can fence a lease that has no row (deleted by hand, or left out of a dump), and so free what it had claimed.
_free = """
    UPDATE callback_lanes SET claimed_by = NULL
    WHERE claimed_by IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workers WHERE id = claimed_by)
    """
# A program that is older than submissions fences without freeing them.
_free_evaluations = """
    UPDATE submission_evaluations SET owner = NULL
    WHERE owner IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workers WHERE id = owner AND fenced_at IS NULL)
    """


class Beats(NamedTuple):
    """How often a lease was renewed, and after how many seconds without that it is dead."""

    id: int
    beats: int
    lease_s: float


class WorkerRepository:
    """Reads and writes leases within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def register(self, name: str, lease_s: float) -> int:
        """Take a lease of this length in seconds; returns its fencing token, which is larger than all earlier ones."""
        values = {"name": name, "lease_s": lease_s}
        return (await self._db.scalars(insert(Worker).returning(Worker.id), [values])).one()

    async def beat(self, worker_id: int) -> bool:
        """Renew a lease; ``False`` when it is gone for good."""
        statement = (
            update(Worker)
            .where(Worker.id == worker_id, Worker.fenced_at.is_(None))
            .values(beats=Worker.beats + 1)
            .returning(Worker.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._db.scalars(statement)).first() is not None

    async def others(self, worker_id: int) -> Sequence[Beats]:
        """Every lease that is not fenced, but the caller's own."""
        columns = select(Worker.id, Worker.beats, Worker.lease_s)
        statement = columns.where(Worker.fenced_at.is_(None), Worker.id != worker_id)
        return [Beats(row.id, row.beats, row.lease_s) for row in await self._db.execute(statement)]

    async def fence(self, worker_id: int, *, seen_beats: int | None = None) -> bool:
        """End a lease and free the lanes, the judgements and the evaluations it had claimed.

        With ``seen_beats`` only if it has not been renewed since: ``False`` when it has, or was fenced already. Waits
        for a flush or a renewal of the owner that is under way.
        """
        condition = [Worker.id == worker_id, Worker.fenced_at.is_(None)]
        if seen_beats is not None:
            condition.append(Worker.beats == seen_beats)
        statement = (
            update(Worker)
            .where(*condition)
            .values(fenced_at=func.now())
            .returning(Worker.id)
            .execution_options(synchronize_session=False)
        )
        if (await self._db.scalars(statement)).first() is None:
            return False
        await self._db.execute(
            update(CallbackLane)
            .where(CallbackLane.claimed_by == worker_id)
            .values(claimed_by=None)
            .execution_options(synchronize_session=False)
        )
        await self._db.execute(
            update(SubmissionEvaluation)
            .where(SubmissionEvaluation.owner == worker_id)
            .values(owner=None)
            .execution_options(synchronize_session=False)
        )
        await self._db.execute(
            update(EvaluationRun)
            .where(EvaluationRun.owner == worker_id, EvaluationRun.status == RunStatusEnum.WAITING)
            .values(owner=None)
            .execution_options(synchronize_session=False)
        )
        return True

    async def sweep(self) -> None:
        """Remove leases that ended more than a day ago and own nothing any more; free what is claimed under none."""
        await self._db.run(_sweep, {})
        await self._db.run(_free, {})
        await self._db.run(_free_evaluations, {})
