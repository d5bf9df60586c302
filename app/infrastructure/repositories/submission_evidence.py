"""What the scores of a submission rest on, and where they were written: for those who make them again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import aliased

from app.domain.grading import MeasuredRun
from app.domain.scoring import Criterion, Intent
from app.domain.submission import Node
from app.infrastructure.persistence.models import (
    Callback,
    CriterionScore,
    EvaluationRun,
    EvaluationStep,
    JudgeCall,
    ScoreOverride,
    SubmissionRun,
)
from app.infrastructure.persistence.session import Transaction

Marks = Mapping[int, Mapping[Criterion, int]]
"""By sample and criterion."""


class SubmissionEvidence:
    """Reads evidence within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def runs_of_judges(self, run_ids: Collection[int]) -> dict[int, EvaluationRun]:
        """Runs by key."""
        statement = select(EvaluationRun).where(EvaluationRun.id.in_(run_ids))
        return {run.id: run for run in await self._db.scalars(statement)}

    async def marks(self, run_ids: Collection[int]) -> dict[int, Marks]:
        """The marks that were kept, by run."""
        found: dict[int, dict[int, dict[Criterion, int]]] = defaultdict(lambda: defaultdict(dict))
        for row in await self._db.scalars(select(CriterionScore).where(CriterionScore.run_id.in_(run_ids))):
            found[row.run_id][row.sample][Criterion(row.criterion)] = row.score
        return {run_id: dict(of_run) for run_id, of_run in found.items()}

    async def answers(self, run_ids: Collection[int]) -> tuple[dict[int, Marks], dict[int, dict[int, Intent]]]:
        """The marks as they were read in judges' answers, and the intents, by run; of each sample the last one."""
        statement = (
            select(JudgeCall)
            .where(JudgeCall.run_id.in_(run_ids), JudgeCall.parsed.is_not(None))
            .order_by(JudgeCall.run_id, JudgeCall.sample, JudgeCall.attempt)
        )
        marks: dict[int, dict[int, Mapping[Criterion, int]]] = defaultdict(dict)
        intents: dict[int, dict[int, Intent]] = defaultdict(dict)
        for call in await self._db.scalars(statement):
            parsed = call.parsed or {}
            said = parsed.get("criteria") or parsed.get("marks") or {}
            marks[call.run_id][call.sample] = {Criterion(name): mark["score"] for name, mark in said.items()}
            if parsed.get("intent"):
                intents[call.run_id][call.sample] = Intent(parsed["intent"])
        return dict(marks), dict(intents)

    async def case_runs(self, evaluation_id: int) -> list[SubmissionRun]:
        """Runs of test cases of the evaluation, or of the one whose step it has taken over."""
        own, its = aliased(EvaluationStep), aliased(EvaluationStep)
        of_this_step = (
            select(its.evaluation_id)
            .join(own, (own.node == its.node) & (own.started_at == its.started_at) & (own.worker == its.worker))
            .where(own.evaluation_id == evaluation_id, own.node == Node.TESTS.value)
        )
        statement = (
            select(SubmissionRun)
            .where(SubmissionRun.evaluation_id.in_(of_this_step))
            .order_by(SubmissionRun.repetition, SubmissionRun.case_index)
        )
        return list(await self._db.scalars(statement))

    async def turn_overrides(self, session_id: int) -> dict[int, list[float]]:
        """Every score that people have set, by turn, oldest first."""
        statement = (
            select(ScoreOverride)
            .where(ScoreOverride.session_id == session_id, ScoreOverride.turn.is_not(None))
            .order_by(ScoreOverride.id)
        )
        found: dict[int, list[float]] = defaultdict(list)
        for override in await self._db.scalars(statement):
            if override.turn is not None:
                found[override.turn].append(override.score)
        return found

    async def component_overrides(self, ids: Collection[int]) -> dict[str, ScoreOverride]:
        """Rows that an aggregation has used, by component."""
        statement = select(ScoreOverride).where(ScoreOverride.id.in_(ids))
        return {override.component or "": override for override in await self._db.scalars(statement)}

    async def told(self, session_id: int, submission_id: str | int, revision: int) -> Mapping[str, Any] | None:
        """What Core was told of a revision."""
        statement = select(Callback.payload).where(
            Callback.session_id == session_id,
            Callback.type == "final_scores",
            Callback.payload["submission_id"].astext == str(submission_id),
            Callback.payload["revision"].as_integer() == revision,
        )
        found: Mapping[str, Any] | None = (await self._db.scalars(statement)).first()
        return found


def measured(runs: Collection[SubmissionRun]) -> list[MeasuredRun]:
    """Those that count for running time."""
    return [
        MeasuredRun(
            "candidate" if run.program == "candidate" else "reference",
            run.repetition,
            run.case_index,
            run.cpu_ms or 0.0,
            run.wall_ms or 0.0,
            run.memory_kb or 0,
        )
        for run in runs
        if run.repetition > 0
    ]
