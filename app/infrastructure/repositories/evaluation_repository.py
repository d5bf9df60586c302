"""Judgements as they are looked at, told of and corrected by people."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, insert, or_, select, tuple_, update
from sqlalchemy.orm import aliased

from app.domain.conversation import FinishReason
from app.domain.exam_settings import DEFAULT_LANGUAGE
from app.infrastructure.persistence.models import (
    EvaluationRun,
    EvaluationTypeEnum,
    ExamVersion,
    JudgeCall,
    PromptEvaluation,
    PromptSession,
    PromptTurn,
    ReviewItem,
    RunStatusEnum,
    ScoreOverride,
)
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.review_repository import shown

_OF_TURNS = EvaluationRun.turn.is_not(None)
_DONE = and_(EvaluationRun.status == RunStatusEnum.DONE, _OF_TURNS)
_WAITING = and_(EvaluationRun.status == RunStatusEnum.WAITING, _OF_TURNS)
_SCORE = EvaluationRun.result["score"]
JUDGED_ENDINGS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.REFUSED)
"""Ends of a turn after which its prompt is judged: it was answered, or the guard stood in its way."""


@dataclass(frozen=True, slots=True)
class RunBasis:
    """What a run is judged by: hashes of documents; ``settings``: ``model``, ``samples``, ``trials``, where set."""

    rubric: str | None
    prompt: str | None
    policy: str | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, run: EvaluationRun) -> RunBasis:
        """A run's."""
        return cls(run.rubric_hash, run.prompt_hash, run.policy_hash, run.settings)


@dataclass(frozen=True, slots=True)
class CallsSummary:
    """A run's calls: how many, how many of them from the cache, how many brought nothing, and what they used.

    ``cost`` is in ``currency``; null where that of a call is not known, or they were paid in several.
    """

    calls: int = 0
    cached: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float | None = None
    currency: str | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How judgements stand: those to be made and the age of the oldest in seconds, and what became of the others."""

    waiting: int
    oldest_s: float
    scored: int
    unscored: int
    to_review: int


class EvaluationRepository:
    """Reads and writes judgements within the transaction at hand; who writes locks the session's row before."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def get_run(self, run_id: int) -> EvaluationRun | None:
        """The run as it stands in the database now."""
        return await self._db.get(EvaluationRun, run_id, populate_existing=True)

    async def turn(self, session_id: int, turn: int) -> PromptTurn | None:
        """A session's turn by its number."""
        statement = select(PromptTurn).where(PromptTurn.session_id == session_id, PromptTurn.turn == turn)
        return (await self._db.scalars(statement)).first()

    async def next_revision(self, session_id: int, turn: int, *, besides: int | None = None) -> int:
        """The number of the turn's next judgement; runs and overrides share them. ``besides``: leave that run out."""
        runs = select(func.max(EvaluationRun.revision)).where(
            EvaluationRun.session_id == session_id,
            EvaluationRun.turn == turn,
            EvaluationRun.id.is_distinct_from(besides),
        )
        overrides = select(func.max(ScoreOverride.revision)).where(
            ScoreOverride.session_id == session_id, ScoreOverride.turn == turn
        )
        highest = func.greatest(func.coalesce(runs.scalar_subquery(), 0), func.coalesce(overrides.scalar_subquery(), 0))
        return int((await self._db.execute(select(highest))).scalar_one()) + 1

    async def add_run(
        self, session_id: int, turn: int, judged_by: RunBasis, *, cause: str, batch: str, asked_by: str | None
    ) -> EvaluationRun:
        """Record a further run of a turn, to be made, and to be published by whoever looks at it then."""
        values = {
            "session_id": session_id,
            "turn": turn,
            "revision": await self.next_revision(session_id, turn),
            "status": RunStatusEnum.WAITING,
            "cause": cause,
            "batch": batch,
            "asked_by": asked_by,
            "published": False,
            "rubric_hash": judged_by.rubric,
            "prompt_hash": judged_by.prompt,
            "policy_hash": judged_by.policy,
            "settings": judged_by.settings,
        }
        return (await self._db.scalars(insert(EvaluationRun).returning(EvaluationRun), [values])).one()

    async def add_first_run(self, session_id: int, turn: int, judged_by: RunBasis) -> None:
        """Record the run that a turn's end would have, for a turn without one; others may have been asked for."""
        values = {
            "session_id": session_id,
            "turn": turn,
            "revision": await self.next_revision(session_id, turn),
            "status": RunStatusEnum.WAITING,
            "rubric_hash": judged_by.rubric,
            "prompt_hash": judged_by.prompt,
            "policy_hash": judged_by.policy,
            "settings": judged_by.settings,
        }
        await self._db.execute(insert(EvaluationRun), [values])

    async def told_run(self, session_id: int, turn: int, *, besides: int | None = None) -> EvaluationRun | None:
        """The run that counts for a turn: of those that have ended and are known, the one with the highest revision.

        ``besides``: leave that run out.
        """
        statement = (
            select(EvaluationRun)
            .where(
                EvaluationRun.session_id == session_id,
                EvaluationRun.turn == turn,
                _DONE,
                EvaluationRun.published,
                EvaluationRun.id.is_distinct_from(besides),
            )
            .order_by(EvaluationRun.revision.desc())
            .limit(1)
        )
        return (await self._db.scalars(statement)).first()

    async def first_run(self, session_id: int, turn: int, *, known: bool = False) -> EvaluationRun | None:
        """The turn's first run, whatever its state; ``known``: of those that Core is told of, or will be by itself."""
        statement = (
            select(EvaluationRun)
            .where(EvaluationRun.session_id == session_id, EvaluationRun.turn == turn)
            .order_by(EvaluationRun.revision)
            .limit(1)
        )
        if known:
            statement = statement.where(EvaluationRun.published)
        return (await self._db.scalars(statement)).first()

    async def publish(self, run: EvaluationRun) -> int:
        """Make a run known; returns the revision it is known by, which is higher than all that were told before."""
        revision = max(run.revision, await self.next_revision(run.session_id, run.judged_turn, besides=run.id))
        statement = update(EvaluationRun).where(EvaluationRun.id == run.id).values(published=True, revision=revision)
        await self._db.execute(statement.execution_options(synchronize_session=False))
        return revision

    async def add_evaluation(self, run_id: int, session_id: int, turn: int, details: dict[str, Any]) -> None:
        """Store the judgement where the contract has it."""
        values = {
            "run_id": run_id,
            "session_id": session_id,
            "turn": turn,
            "evaluation_type": EvaluationTypeEnum.TURN_EVAL,
            "details": details,
        }
        await self._db.execute(insert(PromptEvaluation), [values])

    async def add_holistic(self, run_id: int, session_id: int, details: dict[str, Any]) -> None:
        """Store the judgement of a whole session where the contract has it."""
        values = {
            "run_id": run_id,
            "session_id": session_id,
            "turn": None,
            "evaluation_type": EvaluationTypeEnum.HOLISTIC_FLOW,
            "details": details,
        }
        await self._db.execute(insert(PromptEvaluation), [values])

    async def judgeable_until(self, session_id: int, last_turn: int) -> list[int]:
        """Numbers of a session's turns whose prompts are judged, up to and with ``last_turn``."""
        statement = (
            select(PromptTurn.turn)
            .where(
                PromptTurn.session_id == session_id,
                PromptTurn.turn <= last_turn,
                PromptTurn.finish_reason.in_(JUDGED_ENDINGS),
            )
            .order_by(PromptTurn.turn)
        )
        return list(await self._db.scalars(statement))

    async def judgeable_turns(
        self, exam_id: int | None, session_id: int | None, *, after: tuple[int, int] = (0, 0), limit: int = 200
    ) -> Sequence[PromptTurn]:
        """Turns of an exam, or of a session, whose prompts are judged, behind the place ``after`` (session, turn)."""
        statement = (
            select(PromptTurn)
            .where(tuple_(PromptTurn.session_id, PromptTurn.turn) > after, PromptTurn.finish_reason.in_(JUDGED_ENDINGS))
            .order_by(PromptTurn.session_id, PromptTurn.turn)
            .limit(limit)
        )
        if session_id is not None:
            statement = statement.where(PromptTurn.session_id == session_id)
        if exam_id is not None:
            of_exam = select(PromptSession.id).where(PromptSession.exam_id == exam_id)
            statement = statement.where(PromptTurn.session_id.in_(of_exam))
        return (await self._db.scalars(statement)).all()

    async def languages(self, exam_id: int | None, session_id: int | None) -> set[str]:
        """Languages of the exams' settings under which those of `judgeable_turns` ran."""
        language = func.coalesce(ExamVersion.settings["language"].astext, DEFAULT_LANGUAGE)
        statement = (
            select(language)
            .select_from(PromptTurn)
            .join(PromptSession, PromptSession.id == PromptTurn.session_id)
            .outerjoin(
                ExamVersion,
                and_(ExamVersion.exam_id == PromptSession.exam_id, ExamVersion.version == PromptTurn.exam_version),
            )
            .where(PromptTurn.finish_reason.in_(JUDGED_ENDINGS))
            .distinct()
        )
        if session_id is not None:
            statement = statement.where(PromptSession.id == session_id)
        if exam_id is not None:
            statement = statement.where(PromptSession.exam_id == exam_id)
        return set(await self._db.scalars(statement))

    async def batch(
        self, batch: str, *, after: int = 0, limit: int = 500
    ) -> list[tuple[EvaluationRun, EvaluationRun | None]]:
        """A batch's runs with keys above ``after``, each with the one that counts for its turn without it.

        Of a run that Core was told of, that is the one that counted before.
        """
        told = aliased(EvaluationRun)
        counted = (
            select(told.id)
            .where(
                told.session_id == EvaluationRun.session_id,
                told.turn == EvaluationRun.turn,
                told.status == RunStatusEnum.DONE,
                told.published,
                told.id != EvaluationRun.id,
                or_(~EvaluationRun.published, told.revision < EvaluationRun.revision),
            )
            .order_by(told.revision.desc())
            .limit(1)
            .correlate(EvaluationRun)
            .scalar_subquery()
        )
        other = aliased(EvaluationRun)
        statement = (
            select(EvaluationRun, other)
            .outerjoin(other, other.id == counted)
            .where(EvaluationRun.batch == batch, EvaluationRun.id > after)
            .order_by(EvaluationRun.id)
            .limit(limit)
        )
        return [(row[0], row[1]) for row in await self._db.execute(statement)]

    async def batch_counts(self, batch: str) -> tuple[int, int, int]:
        """How many runs a batch has, how many of them wait, and how many are known already."""
        statement = select(
            func.count(), func.count().filter(_WAITING), func.count().filter(EvaluationRun.published)
        ).where(EvaluationRun.batch == batch)
        every, waiting, published = (await self._db.execute(statement)).one()
        return int(every), int(waiting), int(published)

    async def batches(self, *, limit: int = 20) -> list[tuple[str, datetime, int, int, int]]:
        """The newest batches: name, begin, runs, those that wait, those that are known."""
        statement = (
            select(
                EvaluationRun.batch,
                func.min(EvaluationRun.created_at),
                func.count(),
                func.count().filter(_WAITING),
                func.count().filter(EvaluationRun.published),
            )
            .where(EvaluationRun.batch.is_not(None))
            .group_by(EvaluationRun.batch)
            .order_by(func.min(EvaluationRun.created_at).desc())
            .limit(limit)
        )
        return [(str(row[0]), row[1], row[2], row[3], row[4]) for row in await self._db.execute(statement)]

    async def runs(
        self, session_id: int, turn: int | None = None, *, after: int = 0, limit: int = 100
    ) -> Sequence[EvaluationRun]:
        """A session's runs with keys above ``after``, in the order in which they were asked for."""
        statement = (
            select(EvaluationRun)
            .where(EvaluationRun.session_id == session_id, EvaluationRun.id > after, _OF_TURNS)
            .order_by(EvaluationRun.id)
            .limit(limit)
        )
        if turn is not None:
            statement = statement.where(EvaluationRun.turn == turn)
        return (await self._db.scalars(statement)).all()

    async def calls_of(self, run_ids: Collection[int]) -> dict[int, CallsSummary]:
        """What the runs' calls were, by run; runs without any are left out."""
        paid = ~JudgeCall.cached
        statement = (
            select(
                JudgeCall.run_id,
                func.count(),
                func.count().filter(JudgeCall.cached),
                func.count().filter(JudgeCall.raw_answer == ""),
                func.coalesce(func.sum(JudgeCall.prompt_tokens).filter(paid), 0),
                func.coalesce(func.sum(JudgeCall.completion_tokens).filter(paid), 0),
                func.coalesce(func.sum(JudgeCall.cached_tokens).filter(paid), 0),
                func.sum(JudgeCall.cost),
                func.min(JudgeCall.currency),
                func.bool_and(JudgeCall.cost.is_not(None)) & (func.count(JudgeCall.currency.distinct()) == 1),
            )
            .where(JudgeCall.run_id.in_(run_ids))
            .group_by(JudgeCall.run_id)
        )
        found: dict[int, CallsSummary] = {}
        for run_id, *figures, cost, currency, is_known in await self._db.execute(statement):
            calls, cached, failed, prompt, completion, of_cache = map(int, figures)
            summary = CallsSummary(calls, cached, failed, prompt, completion, of_cache)
            found[run_id] = replace(summary, cost=cost, currency=currency) if is_known else summary
        return found

    async def counts(self) -> Counts:
        """How all judgements stand."""
        statement = select(
            func.count().filter(_WAITING),
            func.coalesce(func.extract("epoch", func.now() - func.min(EvaluationRun.created_at).filter(_WAITING)), 0.0),
            func.count().filter(_DONE, func.jsonb_typeof(_SCORE) == "number"),
            func.count().filter(_DONE, func.jsonb_typeof(_SCORE) != "number"),
        )
        waiting, oldest, scored, unscored = (await self._db.execute(statement)).one()
        is_open = and_(ReviewItem.resolved_at.is_(None), shown())
        to_review = (await self._db.execute(select(func.count(ReviewItem.id)).where(is_open))).scalar_one()
        return Counts(int(waiting), float(oldest), int(scored), int(unscored), int(to_review))

    async def waiting(self) -> tuple[int, float]:
        """How many judgements are to be made, and the age of the oldest in seconds."""
        oldest = func.extract("epoch", func.now() - func.min(EvaluationRun.created_at))
        statement = select(func.count(), func.coalesce(oldest, 0.0)).where(_WAITING)
        count, seconds = (await self._db.execute(statement)).one()
        return int(count), float(seconds)
