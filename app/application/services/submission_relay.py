"""Evaluates submissions: claims evaluations that are due, makes them step by step, puts off what has to wait.

No transaction is open while a program runs or a judge is asked. What came of a step is kept at once, under the worker's
lease; so a process that dies loses no more than the steps that were under way, and whoever takes the evaluation over
goes on from there. docs/adr/0009 has the reasons.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import structlog

from app.application.evaluation.judging import when_database_is_there
from app.application.services.callback_service import CallbackService
from app.application.submissions.ending import give_up
from app.application.submissions.evaluating import CannotBeEvaluatedError, evaluate
from app.application.submissions.progress import Reporter
from app.application.submissions.work import SubmissionDesk, Work
from app.core.logging import place_of
from app.domain.langgraph.submission_graph import build_evaluation_graph
from app.domain.submission import Node, PutOff
from app.domain.waiting import Wait
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import (
    ClaimedEvaluation,
    EvaluationNotOursError,
    SubmissionClaims,
)

log = structlog.get_logger()

_LOOK_AROUND_S = 1.0
"""How often to look without having been woken: for evaluations of other processes, and after an outage."""
_LOOK_AGAIN_S = 0.2
_TIDY_EVERY_S = 5.0
_STOP_WITHIN_S = 5.0
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 300.0
_JITTER = 1.2


class SubmissionRelay:
    """The evaluating loop of one process.

    Args:
        desk: what submissions are evaluated with.
        worker: gives the id under which evaluations are claimed now (it changes when this process has lost its lease).
    """

    def __init__(self, desk: SubmissionDesk, worker: Callable[[], int]) -> None:
        self._desk = desk
        self._worker = worker
        self._graph = build_evaluation_graph()
        self._woken = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], ClaimedEvaluation] = {}

    def wake(self) -> None:
        """Something was committed: look now."""
        self._woken.set()

    async def run(self) -> None:
        """Evaluate until cancelled. Steps under way get a moment; those that are not done are done again by others."""
        announcing = None if self._desk.runner is None else asyncio.create_task(self._desk.runner.announce())
        try:
            await self._loop()
        finally:
            if announcing is not None:
                announcing.cancel()
                await asyncio.gather(announcing, return_exceptions=True)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_STOP_WITHIN_S)
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _loop(self) -> None:
        tidy_at = 0.0
        while True:
            self._woken.clear()
            try:
                if time.monotonic() >= tidy_at:
                    await self._tidy()
                    tidy_at = time.monotonic() + _TIDY_EVERY_S
                if not await self._claim_and_start():
                    await asyncio.sleep(_LOOK_AGAIN_S)
            except DATABASE_DOWN as error:
                log.warning("submission_relay_waits_for_database", error=fault(error))
                tidy_at = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AROUND_S):
                    await self._woken.wait()

    async def _tidy(self) -> None:
        """Release claims that nobody here knows of, left by a commit whose answer was lost, or by a bug."""
        worker = self._worker()
        async with get_db_context() as db:
            ours = {evaluation.id for evaluation in self._tasks.values() if evaluation.worker == worker}
            forgotten = await SubmissionClaims(db).release_forgotten(worker, ours)
        if forgotten:
            log.info("evaluations_released", evaluations=forgotten)

    async def _claim_and_start(self) -> bool:
        """Start what is due as far as there is room; ``False`` where nothing was."""
        room = self._desk.concurrency - len(self._tasks)
        if room <= 0:
            return True  # one that ends wakes us
        async with get_db_context() as db:
            claimed = await SubmissionClaims(db).claim(self._worker(), room=room)
        for evaluation in claimed:
            task = asyncio.create_task(self._make(evaluation), name=f"evaluation {evaluation.id}")
            self._tasks[task] = evaluation
            task.add_done_callback(self._ended)
        return bool(claimed)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        self.wake()

    async def _make(self, evaluation: ClaimedEvaluation) -> None:
        try:
            await self._make_or_put_off(evaluation)
        except EvaluationNotOursError:
            log.info("evaluation_by_another", evaluation=evaluation.id)
        except DATABASE_DOWN as error:
            log.warning("evaluation_waits_for_database", evaluation=evaluation.id, error=fault(error))
            await self._put_off(evaluation)
        except Exception as error:  # noqa: BLE001  # the boundary: a bug must neither lose the evaluation nor keep it busy
            log.error("evaluation_failed", evaluation=evaluation.id, error=fault(error), at=place_of(error))
            await self._put_off(evaluation)

    async def _make_or_put_off(self, evaluation: ClaimedEvaluation) -> None:
        if evaluation.is_first:
            await self._begin(evaluation)
        work = Work(evaluation, self._desk, Reporter(evaluation))
        try:
            put_off = await evaluate(self._graph, work)
        except CannotBeEvaluatedError as error:
            log.error("submission_given_up", evaluation=evaluation.id, node=error.node.value, reason=error.reason)
            await give_up(evaluation, self._desk)
            return
        if put_off:
            reasons = {each.node.value: each.reason for each in put_off}
            log.info("evaluation_put_off", evaluation=evaluation.id, tries=evaluation.tries + 1, reasons=reasons)
            await self._put_off(evaluation, put_off, work.waits)

    async def _begin(self, evaluation: ClaimedEvaluation) -> None:
        async with get_db_context() as db:
            await SessionRepository(db).lock_session(evaluation.session_id)
            if await SubmissionClaims(db).begin(evaluation) and self._desk.tells_stages:
                callbacks = CallbackService(db, held=self._desk.held)
                await callbacks.send_submission_status(evaluation.session_id, evaluation.client_id, "running")
        if self._desk.tells_stages:
            self._desk.on_told()

    async def _put_off(
        self,
        evaluation: ClaimedEvaluation,
        put_off: Sequence[PutOff] = (),
        waits: Mapping[Node, Wait] | None = None,
    ) -> None:
        """Try again later, ever later; who is away may say when, within reason."""
        delay_s = min(_FIRST_RETRY_S * 2.0 ** min(evaluation.tries, 30), _LONGEST_RETRY_S)
        asked_s = max((each.after_s for each in put_off if each.after_s is not None), default=0.0)
        delay_s = min(max(delay_s, asked_s), _LONGEST_RETRY_S)
        delay_s *= random.uniform(1.0, _JITTER)  # noqa: S311  # no secret

        async def postpone() -> None:
            async with get_db_context() as db:
                await SubmissionClaims(db).postpone(evaluation, delay_s, waits)

        await when_database_is_there(postpone)
