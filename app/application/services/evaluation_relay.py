"""Makes judgements: claims runs that are due, asks the judge, writes down what came of it.

No transaction is open while a judge is asked. What it answers is kept at once; so a process that dies loses no more
than the one call that was under way, and whoever takes the run over goes on from there. A run ends once: its owner
writes the end, with all that follows from it, while it holds its lease.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from app.application.evaluation.judging import Judges, judge_subject, when_database_is_there
from app.application.evaluation.outcome import REJECTS, UNAVAILABLE, kept_scores, readings, review_reasons, turn_log
from app.application.evaluation.record import RunNotOursError, end_run
from app.application.evaluation.subject import Subject, read_outline, read_subject
from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.logging import place_of
from app.domain.documents import DocumentError
from app.domain.judging import TurnJudgement
from app.domain.judging.tasks import Trials
from app.domain.scoring import Unscored
from app.domain.waiting import DAY_S, HOUR_S, Wait
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.evaluation_runs import ClaimedRun, EvaluationRuns

log = structlog.get_logger()

_LOOK_AROUND_S = 1.0
"""How often to look for due runs without having been woken: for those of other processes, and after an outage."""
_LOOK_AGAIN_S = 0.2
"""The shortest pause after a look that found nothing: every turn that ends wakes us, also where none is judged."""
_TIDY_EVERY_S = 5.0
_STOP_WITHIN_S = 5.0
_FIRST_RETRY_S = 1.0
_LONGEST_RETRY_S = 300.0
_JITTER = 1.2


@dataclass(frozen=True, slots=True)
class Desk:
    """What runs are judged with.

    Attributes:
        judges: the judges of this process.
        counter: counts tokens where a judge does not say.
        concurrency: runs judged at once.
        trials: when a judge is tried before it is believed.
        held: callbacks wait, because no receiver is set.
        on_told: called after each commit that may have recorded callbacks.
    """

    judges: Judges
    counter: TokenCounter
    concurrency: int
    trials: Trials
    held: bool
    on_told: Callable[[], None]


class EvaluationRelay:
    """The judging loop of one process.

    Args:
        desk: what runs are judged with.
        worker: gives the id under which runs are claimed now (it changes when this process has lost its lease).
        batch: only runs of this batch.
        pause_s: from one run's start to the next one's, in a process that serves chats too: judging can wait, and
            candidates who read cannot.
    """

    def __init__(
        self, desk: Desk, worker: Callable[[], int], *, batch: str | None = None, pause_s: float = 0.0
    ) -> None:
        self._desk = desk
        self._worker = worker
        self._batch = batch
        self._pause_s = pause_s
        self._woken = asyncio.Event()
        self._runs: dict[asyncio.Task[None], ClaimedRun] = {}

    def wake(self) -> None:
        """Something was committed: look now."""
        self._woken.set()

    async def run(self) -> None:
        """Judge until cancelled. Calls under way get a moment; what they would have brought is asked for again."""
        try:
            await self._loop()
        finally:
            if self._runs:
                await asyncio.wait(self._runs, timeout=_STOP_WITHIN_S)
            tasks = list(self._runs)
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
                elif self._pause_s:
                    await asyncio.sleep(self._pause_s)
                    self.wake()
            except DATABASE_DOWN as error:
                log.warning("evaluation_relay_waits_for_database", error=fault(error))
                tidy_at = 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AROUND_S):
                    await self._woken.wait()

    async def _tidy(self) -> None:
        """Release claims that nobody here knows of, left by a commit whose answer was lost, or by a bug."""
        worker = self._worker()
        async with get_db_context() as db:
            ours = {run.id for run in self._runs.values() if run.worker == worker}
            forgotten = await EvaluationRuns(db).release_forgotten(worker, ours)
        if forgotten:
            log.info("judgements_released", runs=forgotten)

    async def _claim_and_start(self) -> bool:
        """Start what is due as far as there is room; ``False`` where nothing was."""
        room = self._desk.concurrency - len(self._runs)
        if room <= 0:
            return True  # a run that ends wakes us
        if self._pause_s:
            room = 1
        circuits = self._desk.judges.circuits
        ahead: list[tuple[str, int]] = []
        async with get_db_context() as db:
            runs = EvaluationRuns(db)
            worker, batch = self._worker(), self._batch
            claimed = await runs.claim(worker, room=room, batch=batch, without=circuits.closed_to())
            for model in circuits.to_try()[: room - len(claimed)]:
                first = await runs.claim(worker, room=1, batch=batch, only=model)
                ahead += [(model, run.id) for run in first]
                claimed += first
        for model, run_id in ahead:  # only now that the claim is committed: nobody would come back from one that is not
            circuits.go_ahead(model, run_id)
        for run in claimed:
            task = asyncio.create_task(self._judge(run), name=f"judgement {run.id}")
            self._runs[task] = run
            task.add_done_callback(self._run_ended)
        return bool(claimed)

    def _run_ended(self, task: asyncio.Task[None]) -> None:
        self._desk.judges.circuits.ended(self._runs.pop(task).id)
        self.wake()

    async def _judge(self, run: ClaimedRun) -> None:
        begun = time.monotonic()
        try:
            await self._judge_and_write_down(run)
        except DATABASE_DOWN as error:
            log.warning("judgement_waits_for_database", run=run.id, error=fault(error))
            await self._put_off(run)
        except Exception as error:  # noqa: BLE001  # the boundary: a bug neither loses the run nor makes it wait for ever
            _log_failure(run, error)
            now = run.claimed_at + time.monotonic() - begun
            wait = Wait.further(run.wait, *_why_and_how_long(error), now)
            if not (wait.is_over(now) and await self._given_up(run, wait.reason)):
                await self._put_off(run, wait, error.retry_after_s if isinstance(error, ModelError) else None)

    async def _judge_and_write_down(self, run: ClaimedRun) -> None:
        async with get_db_context() as db:
            subject = await read_subject(db, run.id)
        await self._write_down(run, subject, await self._ask(subject, run))

    async def _given_up(self, run: ClaimedRun, reason: str) -> bool:
        """End a run as unscored that has waited for long enough; ``False`` where that cannot be written either."""
        try:
            async with get_db_context() as db:
                subject = await read_outline(db, run.id)
            await self._write_down(run, subject, TurnJudgement(None, {}, Unscored(reason), 0, "", ()))
        except Exception as error:  # noqa: BLE001  # the boundary, as above
            _log_failure(run, error)
            return False
        return True

    async def _ask(self, subject: Subject, run: ClaimedRun) -> TurnJudgement:
        """Judge, and tell the judge's circuit what was found."""
        if subject.task is not None and subject.trials is None:  # recorded before runs said so
            subject = replace(subject, task=replace(subject.task, trials=self._desk.trials))
        circuits, model, new = self._desk.judges.circuits, subject.model or "", not run.tries
        begun = circuits.begin()
        try:
            judgement = await judge_subject(subject, run, self._desk.judges, self._desk.counter)
        except ModelError as error:
            circuits.failed(model, run.id, begun, error, new=new)
            raise
        if not all(call.answer.kept for call in judgement.calls):
            circuits.answered(model, new=new)
        return judgement

    async def _write_down(self, run: ClaimedRun, subject: Subject, judgement: TurnJudgement) -> None:
        async def end() -> None:
            await end_run(
                run,
                subject.turn_id,
                turn_log(subject, judgement),
                scores=kept_scores(judgement),
                readings=readings(judgement),
                reviews=review_reasons(subject, judgement),
                held=self._desk.held,
            )

        try:
            await when_database_is_there(end)
        except RunNotOursError:
            log.info("judgement_by_another", run=run.id)
        else:
            self._desk.on_told()

    async def _put_off(self, run: ClaimedRun, wait: Wait | None = None, asked_s: float | None = None) -> None:
        """Try again later, ever later; a judge may say when, within reason."""
        delay_s = min(_FIRST_RETRY_S * 2.0 ** min(run.tries, 30), _LONGEST_RETRY_S)
        if asked_s is not None:
            delay_s = min(max(delay_s, asked_s), _LONGEST_RETRY_S)
        delay_s *= random.uniform(1.0, _JITTER)  # noqa: S311  # no secret

        async def postpone() -> None:
            async with get_db_context() as db:
                await EvaluationRuns(db).postpone(run, delay_s, wait)

        await when_database_is_there(postpone)


def _log_failure(run: ClaimedRun, error: Exception) -> None:
    if isinstance(error, ModelError | StartupError | DocumentError):
        log.warning("judge_cannot_be_asked", run=run.id, reason=_said(error), tries=run.tries + 1)
    else:
        log.error("judgement_failed", run=run.id, error=fault(error), at=place_of(error), tries=run.tries + 1)


def _said(error: ModelError | StartupError | DocumentError) -> str:
    return f"{error} {error.detail}".strip() if isinstance(error, ModelError) else str(error)


def _why_and_how_long(error: Exception) -> tuple[str, float]:
    """What a run waits for, and for how many seconds. Then the turn is unscored, and people are asked.

    A judge that refuses the request itself mostly does so for ever; for an hour it may be a setting somebody mends.
    """
    if isinstance(error, ModelError) and error.code is ErrorCode.LLM_REJECTED:
        return REJECTS, HOUR_S
    if isinstance(error, DocumentError):
        return "what it is judged by cannot be used", DAY_S
    if isinstance(error, ModelError | StartupError):
        return UNAVAILABLE, DAY_S
    return "internal error", DAY_S
