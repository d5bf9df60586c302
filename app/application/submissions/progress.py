"""How far an evaluation is: written down and told now and then, never more often than anybody could read it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from app.domain.submission import Progress
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.submission_claims import ClaimedEvaluation, SubmissionClaims

log = structlog.get_logger()

_EVERY_S = 0.4


class Reporter:
    """Takes how far an evaluation is, and writes down the newest of it. It never goes back, and never makes one wait.

    Of evaluations that no candidate waits for nothing is told.
    """

    def __init__(self, evaluation: ClaimedEvaluation) -> None:
        self._evaluation = evaluation
        self._now = evaluation.progress
        self._changed = asyncio.Event()

    def note(self, progress: Progress) -> None:
        """It is so far now."""
        progress = self.then(progress)
        if (progress.percent, progress.cases_done) > (self._now.percent, self._now.cases_done):
            self._now = progress
            self._changed.set()

    def then(self, progress: Progress) -> Progress:
        """A later stage, with the test cases that have been run."""
        return progress.after(self._now)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Write and tell until the block ends."""
        if not self._evaluation.is_first:
            yield
            return
        writing = asyncio.create_task(self._write(), name=f"progress {self._evaluation.id}")
        try:
            yield
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            progress = self._now
            try:
                async with get_db_context() as db:
                    await SubmissionClaims(db).note_progress(self._evaluation, progress)
            except DATABASE_DOWN as error:
                log.warning("submission_progress_waits_for_database", error=fault(error))
                self._changed.set()
            await asyncio.sleep(_EVERY_S)
