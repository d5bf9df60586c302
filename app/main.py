"""The service: REST, WebSocket and, unless they run elsewhere, the background jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from app import __version__
from app.bootstrap import Say, open_resources, silent
from app.core.settings import Settings
from app.presentation.api import problems, webhooks
from app.presentation.api.auth import Gate
from app.presentation.api.limits import BodyLimit
from app.presentation.api.routes import (
    callbacks,
    chat,
    evaluations,
    events,
    exams,
    health,
    pages,
    sessions,
    submissions,
    vibecode,
)
from app.presentation.api.routes import problems as exam_problems


def create_app(settings: Settings, *, say: Say = silent) -> FastAPI:
    """The application; everything it needs is opened when it starts and closed, turns settled, when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_resources(settings, say=say) as resources:
            app.state.resources, app.state.places = resources, chat.Places()
            yield

    app = FastAPI(
        title="Turnstone",
        version=__version__,
        summary="The AI worker of AI-assisted coding exams",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page would load its scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a path has one spelling; the others are 404, and say so as a problem
    )
    problems.install(app)
    limits = settings.limits
    app.add_middleware(BodyLimit, limit=limits.frame_bytes, larger={"/api/problems/": limits.problem_bytes})
    app.add_middleware(Gate, settings=settings)
    app.add_middleware(problems.LastResort)  # added last, it stands first
    routers = (chat, events, sessions, submissions, evaluations, exams, exam_problems, callbacks, health, pages)
    for routes in routers:
        app.include_router(routes.router)
    if settings.callbacks.profile == "vibecode":
        app.include_router(vibecode.router)
    webhooks.describe(app)
    app.mount("/static", StaticFiles(directory=pages.STATIC), name="static")
    return app
