"""Alive, ready, and what there is to measure."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy import text
from sqlalchemy.pool import QueuePool

from app.application.resources import Resources
from app.core import metrics
from app.infrastructure.persistence.migrate import wanted_version
from app.infrastructure.persistence.session import DATABASE_DOWN, get_db_context
from app.infrastructure.repositories.callback_repository import CallbackRepository

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"description": "Not ready; the body says what is missing"}})
async def readyz(request: Request) -> JSONResponse:
    """Whether turns can be taken now: the database is there, its schema is this version's, the model can be asked."""
    resources: Resources = request.app.state.resources
    database, migrations = await _database()
    checks = {
        "database": database,
        "migrations": migrations,
        "model": resources.model.ready,
        "accepting": not resources.runner.draining,
    }
    ready = all(checks.values())
    return JSONResponse({"status": "ready" if ready else "not ready", "checks": checks}, 200 if ready else 503)


async def _database() -> tuple[bool, bool]:
    try:
        async with get_db_context() as db:
            if (await db.execute(text("SELECT to_regclass('alembic_version')"))).scalar() is None:
                return True, False
            version = (await db.execute(text("SELECT version_num FROM alembic_version"))).scalar()
    except DATABASE_DOWN:
        return False, False
    return True, version == wanted_version()


@router.get("/metrics")
async def show_metrics(request: Request) -> PlainTextResponse:
    """Everything this process counts, in Prometheus' format."""
    resources: Resources = request.app.state.resources
    pool = resources.database.engine.pool
    if isinstance(pool, QueuePool):
        metrics.POOL_IN_USE.set(pool.checkedout())
        metrics.POOL_SIZE.set(pool.size())
    try:
        async with get_db_context() as db:
            count, age = await CallbackRepository(db).waiting()
        metrics.CALLBACKS_WAITING.set(count)
        metrics.CALLBACK_AGE.set(age)
    except DATABASE_DOWN:
        pass  # the last known figures stay; readyz tells of the outage
    return PlainTextResponse(generate_latest(), media_type=CONTENT_TYPE_LATEST)
