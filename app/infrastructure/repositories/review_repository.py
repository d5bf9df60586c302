"""What people are to look at, and what they said."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased

from app.domain.final_scores import COMPONENTS, Component, Override
from app.infrastructure.persistence.models import (
    EvaluationRun,
    PromptSession,
    ReviewItem,
    ReviewReasonEnum,
    ScoreOverride,
)
from app.infrastructure.persistence.session import Transaction

_OF_THE_PROMPT = (ReviewReasonEnum.REFUSED, ReviewReasonEnum.ATTACK_FLAGGED)
"""Reasons that another judgement finds again in the same prompt."""


class ReviewRepository:
    """Reads and writes reviews within the transaction at hand; who writes locks the session's row before.

    What a judgement gives people to look at is shown when that judgement counts, or an appeal asked for it (`shown`): a
    re-run that nobody has published is none of their business yet.
    """

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def open(
        self,
        session_id: int,
        turn: int | None,
        run_id: int | None,
        reason: ReviewReasonEnum,
        details: dict[str, Any],
        *,
        evaluation_id: int | None = None,
        asked_by: str | None = None,
    ) -> int | None:
        """Ask people to look at a turn, or at a submission's evaluation; ``None`` where it has such an item already."""
        values = {
            "session_id": session_id,
            "turn": turn,
            "run_id": run_id,
            "evaluation_id": evaluation_id,
            "reason": reason,
            "details": details,
            "asked_by": asked_by,
        }
        statement = pg_insert(ReviewItem).values(**values).on_conflict_do_nothing().returning(ReviewItem.id)
        return (await self._db.scalars(statement)).first()

    async def of_evaluation(self, evaluation_id: int, reason: ReviewReasonEnum) -> int | None:
        """The key of a submission's item of that reason."""
        statement = select(ReviewItem.id).where(ReviewItem.evaluation_id == evaluation_id, ReviewItem.reason == reason)
        return (await self._db.scalars(statement)).first()

    async def open_appeal(self, session_id: int, turn: int) -> ReviewItem | None:
        """A turn's appeal of which nobody has said yet what came of it; the first one, where there are several."""
        statement = select(ReviewItem).where(
            ReviewItem.session_id == session_id,
            ReviewItem.turn == turn,
            ReviewItem.reason == ReviewReasonEnum.APPEAL,
            ReviewItem.resolved_at.is_(None),
        )
        return (await self._db.scalars(statement.order_by(ReviewItem.id).limit(1))).first()

    async def get(self, item_id: int) -> tuple[ReviewItem, int] | None:
        """An item, and its exam."""
        statement = (
            select(ReviewItem, PromptSession.exam_id)
            .join(PromptSession, PromptSession.id == ReviewItem.session_id)
            .where(ReviewItem.id == item_id)
        )
        row = (await self._db.execute(statement.execution_options(populate_existing=True))).first()
        return None if row is None else (row[0], row[1])

    async def list_items(
        self,
        *,
        is_open: bool | None = None,
        reason: ReviewReasonEnum | None = None,
        exam_id: int | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[tuple[ReviewItem, int]]:
        """Items with a key above ``after`` that fit all that is set, oldest first, each with its exam."""
        statement = (
            select(ReviewItem, PromptSession.exam_id)
            .join(PromptSession, PromptSession.id == ReviewItem.session_id)
            .where(ReviewItem.id > after, shown())
            .order_by(ReviewItem.id)
            .limit(limit)
        )
        if is_open is not None:
            resolved = ReviewItem.resolved_at
            statement = statement.where(resolved.is_(None) if is_open else resolved.is_not(None))
        if reason is not None:
            statement = statement.where(ReviewItem.reason == reason)
        if exam_id is not None:
            statement = statement.where(PromptSession.exam_id == exam_id)
        return [(row[0], row[1]) for row in await self._db.execute(statement)]

    async def resolve(self, item_id: int, person: str, resolution: str) -> bool:
        """Say what came of an item; ``False`` where somebody has said so before, or there is none."""
        statement = (
            update(ReviewItem)
            .where(ReviewItem.id == item_id, ReviewItem.resolved_at.is_(None))
            .values(resolved_at=func.now(), resolved_by=person, resolution=resolution)
            .returning(ReviewItem.id)
            .execution_options(synchronize_session=False)
        )
        return (await self._db.scalars(statement)).first() is not None

    async def override(
        self, session_id: int, turn: int, score: float, reason: str, person: str, revision: int
    ) -> ScoreOverride:
        """Store a person's score."""
        values = {
            "session_id": session_id,
            "turn": turn,
            "score": score,
            "reason": reason,
            "person": person,
            "revision": revision,
        }
        return (await self._db.scalars(insert(ScoreOverride).returning(ScoreOverride), [values])).one()

    async def latest_override(self, session_id: int, turn: int) -> ScoreOverride | None:
        """The person's score that counts for a turn."""
        statement = (
            select(ScoreOverride)
            .where(ScoreOverride.session_id == session_id, ScoreOverride.turn == turn)
            .order_by(ScoreOverride.id.desc())
            .limit(1)
        )
        return (await self._db.scalars(statement)).first()

    async def override_component(
        self, session_id: int, submission_id: int, component: str, override: Override, revision: int
    ) -> ScoreOverride:
        """Store a person's score of a submission's component."""
        values = {
            "session_id": session_id,
            "submission_id": submission_id,
            "component": component,
            "score": override.score,
            "reason": override.reason,
            "person": override.person,
            "revision": revision,
        }
        return (await self._db.scalars(insert(ScoreOverride).returning(ScoreOverride), [values])).one()

    async def component_overrides(self, submission_id: int) -> dict[Component, ScoreOverride]:
        """The persons' scores that count for a submission, by component."""
        statement = (
            select(ScoreOverride)
            .where(ScoreOverride.submission_id == submission_id, ScoreOverride.component.in_(COMPONENTS))
            .order_by(ScoreOverride.id)
        )
        found = await self._db.scalars(statement.execution_options(populate_existing=True))
        by_name = {override.component: override for override in found}
        return {name: by_name[name] for name in COMPONENTS if name in by_name}


def shown() -> ColumnElement[bool]:
    """Whether an item is people's business: of what the prompt holds, the first that says so is."""
    other = aliased(ReviewItem)
    earlier = and_(other.id < ReviewItem.id, _counts(other))
    said_already = exists().where(
        other.session_id == ReviewItem.session_id,
        other.turn == ReviewItem.turn,
        other.reason == ReviewItem.reason,
        other.details == ReviewItem.details,
        or_(other.resolved_at.is_not(None), earlier),
    )
    news = or_(ReviewItem.reason.not_in(_OF_THE_PROMPT), ~said_already)
    return or_(ReviewItem.resolved_at.is_not(None), and_(_counts(ReviewItem), news))


def _counts(item: type[ReviewItem]) -> ColumnElement[bool]:
    told = exists().where(
        EvaluationRun.id == item.run_id, or_(EvaluationRun.published, EvaluationRun.cause == "appeal")
    )
    return or_(item.run_id.is_(None), item.reason == ReviewReasonEnum.APPEAL, told)
