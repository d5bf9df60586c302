"""Alive, ready, and what there is to measure."""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from sqlalchemy import text

from app.application.resources import Resources
from app.core import metrics
from app.core.errors import ErrorCode, TurnstoneError
from app.infrastructure.persistence.migrate import state_from
from app.infrastructure.persistence.session import DATABASE_DOWN, get_db_context
from app.infrastructure.repositories.callback_repository import CallbackRepository
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository
from app.presentation.api.problems import problem
from app.presentation.schemas.bodies import Problem

router = APIRouter(tags=["health"])


class Readiness(BaseModel):
    """Turns can be taken; what was looked at."""

    status: Literal["ready"] = "ready"
    checks: dict[str, bool]


class NotReady(Problem):
    """A problem; ``checks`` says which."""

    checks: dict[str, bool]


_NOT_READY = {
    "description": "Not ready; `checks` says why",
    "content": {"application/problem+json": {"schema": NotReady.model_json_schema()}},
}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: _NOT_READY}, response_model=Readiness)
async def readyz(request: Request) -> Readiness | Response:
    """Whether turns can be taken now: the database is there, its tables serve this version, the model can be asked."""
    resources: Resources = request.app.state.resources
    database, migrations = await _database(resources.settings.database.timeout_s)
    checks = {
        "database": database,
        "migrations": migrations,
        "model": resources.model.ready,
        "accepting": not resources.runner.draining,
    }
    if all(checks.values()):
        return Readiness(checks=checks)
    missing = ", ".join(name for name, passed in checks.items() if not passed)
    return problem(TurnstoneError(ErrorCode.OVERLOADED, f"Not ready: {missing}."), checks=checks)


async def _database(timeout_s: float) -> tuple[bool, bool]:
    """Whether the database answers within ``timeout_s``, and whether its tables serve this version."""
    try:
        async with asyncio.timeout(timeout_s), get_db_context() as db:
            if (await db.execute(text("SELECT to_regclass('schema_reach')"))).scalar() is None:
                return True, False
            [(version, reach)] = await db.execute(
                text("SELECT (SELECT version_num FROM alembic_version), (SELECT oldest_program FROM schema_reach)")
            )
    except DATABASE_DOWN:  # a timeout is an OSError, so one of these
        return False, False
    return True, state_from(version, reach).usable


@router.get("/metrics", response_class=PlainTextResponse)
async def show_metrics(request: Request) -> PlainTextResponse:
    """Everything this process counts, in Prometheus' format."""
    resources: Resources = request.app.state.resources
    metrics.POOL_IN_USE.set(resources.database.pool.checkedout())
    metrics.POOL_SIZE.set(resources.database.pool.size())
    try:
        async with get_db_context() as db:
            count, age, failed = await CallbackRepository(db).waiting()
            to_judge, judgement_age = await EvaluationRepository(db).waiting()
            submissions = await SubmissionRepository(db).counts()
        metrics.CALLBACKS_WAITING.set(count)
        metrics.CALLBACK_AGE.set(age)
        metrics.CALLBACKS_FAILED.set(failed)
        metrics.JUDGEMENTS_WAITING.set(to_judge)
        metrics.JUDGEMENT_AGE.set(judgement_age)
        metrics.SUBMISSIONS_WAITING.set(submissions.waiting)
        metrics.SUBMISSION_AGE.set(submissions.oldest_s)
        metrics.SUBMISSIONS_HELD.set(submissions.held)
    except DATABASE_DOWN:
        pass  # the last known figures stay; readyz tells of the outage
    return PlainTextResponse(generate_latest(), media_type=CONTENT_TYPE_LATEST)
