"""Everything a process opens, in one place and in the order in which it depends on each other."""

from __future__ import annotations

import asyncio
import gc
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import structlog

from app.application.evaluation.basis import default_basis
from app.application.evaluation.judging import Judges
from app.application.resources import Resources
from app.application.services.callback_relay import CallbackRelay
from app.application.services.eval_service import EvalService
from app.application.services.evaluation_relay import Desk, EvaluationRelay
from app.application.services.evaluation_service import EvaluationService
from app.application.services.problem_service import ProblemService
from app.application.services.submission_relay import SubmissionRelay
from app.application.services.submission_service import SubmissionService
from app.application.submissions.followers import Followers
from app.application.submissions.work import SubmissionDesk, TriedRunner
from app.application.turns.generation import Generations
from app.application.turns.lease import Lease
from app.application.turns.recovery import Recovery
from app.application.turns.runner import Model, TurnRunner
from app.application.turns.tail import Tails
from app.core import metrics
from app.core.errors import StartupError
from app.core.logging import place_of
from app.core.settings import DatabaseSettings, Settings
from app.domain.guard_classifier import guard_classifier
from app.domain.guard_policy import refusing
from app.domain.judging import JudgeClient
from app.domain.judging.tasks import Trials
from app.domain.langgraph.graph import build_graph
from app.infrastructure.cache.redis_client import RedisClient
from app.infrastructure.llm.judge_client import open_judge
from app.infrastructure.llm.local_model import LocalModel
from app.infrastructure.llm.models import OpenedModel, check_remote, history_budget, open_model
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.bell import CALLBACKS, CANCELS, SUBMISSIONS, Bell
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import migrate, schema_state, wrong_version
from app.infrastructure.persistence.session import DATABASE_DOWN, Database, bind, fault
from app.infrastructure.repositories.state_repository import StateRepository
from app.infrastructure.runner.opening import open_runner

log = structlog.get_logger()

Say = Callable[[str], None]
"""Takes one line of progress for whoever started the process by hand."""

_SWEEP_INTERVAL_S = 10.0
_JOB_PAUSE_S = 1.0
_GIVE_BACK_S = 3.0
_LOOK_AFTER_POSTGRES_S = 1.0
_LONGEST_PAUSE_S = 30.0
_BETWEEN_JUDGEMENTS_S = 0.15
"""In a process that serves chats: a judgement takes 16 ms of its processor, so that a tenth of that goes to judging."""


def silent(_line: str) -> None:
    """Progress that nobody reads."""


def make_data_dir(path: Path) -> None:
    """Make the data directory where it is missing, and see that it can be written; blocks.

    Raises:
        StartupError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"turnstone")
    except OSError as error:
        raise StartupError(
            f"{path.absolute()} cannot be written: {error.strerror}.", "Make it writable, or set TURNSTONE_DATA_DIR."
        ) from None


@asynccontextmanager
async def open_database(settings: Settings, *, say: Say = silent) -> AsyncIterator[Database]:
    """The database of the settings, bound for `get_db_context`; an embedded one is made, started, or shared if it runs.

    Its tables are brought to this program's version, or with ``migrate`` off have to be of it. Those of a later program
    are left as they are and used, where they say that they still serve this one.

    Raises:
        StartupError: it cannot be used.
    """
    async with AsyncExitStack() as stack:
        url = settings.database.url
        if url is None:
            say("starting the embedded PostgreSQL")
            embedded = await asyncio.to_thread(EmbeddedPostgres.open, settings.data_dir)
            stack.push_async_callback(asyncio.to_thread, embedded.close)
            _run(stack, lambda: _keep_running(embedded))
            url = embedded.url
        limits = settings.database
        database = Database(url, pool_size=limits.pool_size, timeout_s=limits.timeout_s, statement_s=limits.statement_s)
        stack.push_async_callback(database.close)
        await _prepare_tables(database, settings.database, say)
        bind(database)
        yield database


async def _keep_running(postgres: EmbeddedPostgres) -> None:
    """Start the embedded server again whenever it has died under us."""
    pause = _LOOK_AFTER_POSTGRES_S
    while True:
        await asyncio.sleep(pause)
        try:
            if await asyncio.to_thread(postgres.revive):
                log.warning("postgres_had_died_and_runs_again")
            pause = _LOOK_AFTER_POSTGRES_S
        except StartupError as error:
            log.error("postgres_has_died", problem=error.problem, remedy=error.remedy)
            pause = min(pause * 2, _LONGEST_PAUSE_S)


async def _prepare_tables(database: Database, settings: DatabaseSettings, say: Say) -> None:
    if settings.migrate:
        found = await asyncio.to_thread(migrate, database.url, timeout_s=settings.timeout_s)
        if found.known and not found.up_to_date:
            say("the database's tables are made")
            log.info("database_migrated", found=found.current, now=found.wanted)
    else:
        found = await asyncio.to_thread(schema_state, database.url, timeout_s=settings.timeout_s)
        if not found.usable:
            raise wrong_version(found)
    if not found.known:
        log.warning("tables_of_a_later_program", found=found.current, ours=found.wanted)


@asynccontextmanager
async def open_resources(settings: Settings, *, say: Say = silent) -> AsyncIterator[Resources]:
    """Open everything the service needs; at the end let running turns finish, then close in reverse.

    Raises:
        StartupError: something cannot be used, and what to do about it.
    """
    if settings.auth.ticket_secret is not None or settings.auth.jwks is not None:
        log.warning("tickets_not_supported_yet", remedy="candidates come in through a backend that has the API key")
    async with AsyncExitStack() as stack:
        model = None
        if settings.llm.model != "local":
            # Before the database: a model's name that is wrong should not leave a new database behind.
            if (warning := await check_remote(settings.llm)) is not None:
                log.warning("model_unreachable", reason=warning)
            model = await open_model(settings, stack)
            say(f"the model is {settings.llm.model}")
        database = await stack.enter_async_context(open_database(settings, say=say))
        redis = None
        if settings.redis.url is not None:
            redis = RedisClient(settings.redis.url, timeout_s=settings.redis.timeout_s)
            stack.push_async_callback(redis.close)
            if not await redis.ping():
                log.warning("redis_unavailable")
        if model is None:
            await asyncio.to_thread(make_data_dir, settings.data_dir)
            say("starting the local model")
            model = await open_model(settings, stack)
        await asyncio.to_thread(model.counter.load)
        await asyncio.to_thread(guard_classifier)
        yield await _start_service(stack, settings, database, StateRepository(redis), model)


@asynccontextmanager
async def open_worker(settings: Settings, *, say: Say = silent) -> AsyncIterator[CallbackRelay]:
    """Open what background jobs need, and run them: delivering callbacks, judging, settling dead processes' turns.

    Yields who delivers.

    Raises:
        StartupError: something cannot be used, and what to do about it.
    """
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings, say=say))
        counter = TokenCounter(settings.llm.model)
        await asyncio.to_thread(counter.load)
        await asyncio.to_thread(guard_classifier)
        bell = Bell(database.dsn)
        relay = CallbackRelay(settings.callbacks, lambda: lease.token)
        recovery = Recovery(
            counter,
            history_budget(settings.llm),
            refusing(settings.guard.refuse),
            held=settings.callbacks.url is None,
            on_settled=relay.wake,
        )
        lease = Lease(settings.lease_s, on_fenced=recovery.settle_orphans, on_lost=lambda _: None)

        def wake() -> None:
            relay.wake()
            judging.wake()
            evaluating.wake()

        desk = open_desk(stack, settings, counter, on_told=wake)
        judging = EvaluationRelay(desk, lambda: lease.token)
        evaluating = SubmissionRelay(await open_submission_desk(stack, settings, desk), lambda: lease.token)

        await _take_lease(stack, lease, recovery)
        _keep(stack, lease)
        _run(
            stack,
            lambda: _sweep_forever(recovery),
            relay.run,
            judging.run,
            evaluating.run,
            lambda: bell.listen_forever({CALLBACKS: lambda _: wake()}),
        )
        yield relay


@asynccontextmanager
async def open_judging(settings: Settings, *, batch: str) -> AsyncIterator[None]:
    """Judge a batch in this process, on the database that is bound; others that judge take part.

    What is not done when the block ends is left to them.
    """

    async def leave_turns_to_others() -> None:
        """They find them by themselves."""

    async with AsyncExitStack() as stack:
        counter = TokenCounter(settings.judge.model or settings.llm.model)
        await asyncio.to_thread(counter.load)
        lease = Lease(settings.lease_s, on_fenced=leave_turns_to_others, on_lost=lambda _: None)
        desk = open_desk(stack, settings, counter, on_told=lambda: None)
        relay = EvaluationRelay(desk, lambda: lease.token, batch=batch)
        await lease.take()
        stack.push_async_callback(_give_back, lease)
        _keep(stack, lease)
        _run(stack, relay.run)
        yield


async def _start_service(
    stack: AsyncExitStack, settings: Settings, database: Database, state: StateRepository, opened: OpenedModel
) -> Resources:
    held = settings.callbacks.url is None
    relay = CallbackRelay(settings.callbacks, lambda: lease.token)
    bell = Bell(database.dsn)

    def wake() -> None:
        relay.wake()
        judging.wake()
        evaluating.wake()

    desk = open_desk(stack, settings, opened.counter, on_told=wake, local=opened.local)
    judging = EvaluationRelay(desk, lambda: lease.token, pause_s=_BETWEEN_JUDGEMENTS_S)
    to_evaluate = await open_submission_desk(stack, settings, desk)
    evaluating = SubmissionRelay(to_evaluate, lambda: lease.token)
    judged_by = to_evaluate.default
    followers = Followers()

    on_settled = wake if settings.worker.embedded else bell.ring
    model = Model(opened.client, opened.counter, opened.max_output_tokens, opened.history_tokens)
    guard = refusing(settings.guard.refuse)
    generations = Generations(build_graph(), model.client, guard)
    runner = TurnRunner(
        model, state, most_turns=settings.limits.turns, held=held, on_settled=on_settled, judged_by=judged_by
    )
    recovery = Recovery(model.counter, model.history_tokens, guard, held=held, on_settled=on_settled)
    lease = Lease(settings.lease_s, on_fenced=recovery.settle_orphans, on_lost=runner.disown)
    tails = Tails(state)

    await _take_lease(stack, lease, recovery)
    _keep(stack, lease)
    _run(
        stack,
        lambda: _sweep_forever(recovery, lambda: runner.find_lost(lease.token)),
        lambda: runner.flush_forever(settings.flush_interval_s, lambda: lease.token),
        state.run,
        *((relay.run, judging.run, evaluating.run) if settings.worker.embedded else (bell.send_forever,)),
        lambda: bell.listen_forever(
            {CANCELS: lambda turn_pk: runner.cancel_by_pk({int(turn_pk)}), SUBMISSIONS: followers.tell}
        ),
    )
    stack.callback(generations.close)
    generations.fill()
    stack.push_async_callback(tails.close)
    stack.push_async_callback(runner.drain, settings.shutdown_grace_s)
    _tune_garbage_collector()
    service = EvalService(runner, generations, state, tails, lambda: lease.token)
    evaluations = EvaluationService(judged_by, held=held)
    tried = to_evaluate.runner
    problems = ProblemService(None if tried is None else tried.runner)
    submissions = SubmissionService(settings.limits.code_chars, held=held, tells_stages=to_evaluate.tells_stages)
    return Resources(
        settings, database, opened, runner, relay, service, evaluations, problems, submissions, followers, on_settled
    )


def open_desk(
    stack: AsyncExitStack,
    settings: Settings,
    counter: TokenCounter,
    *,
    on_told: Callable[[], None],
    local: LocalModel | None = None,
) -> Desk:
    """What prompts are judged with; judges are opened when the first run needs them, and closed by ``stack``."""

    async def judge(model: str, stack: AsyncExitStack) -> JudgeClient:
        return await open_judge(settings, model, stack, local=local)

    judges = Judges(judge, settings.prices)
    stack.push_async_callback(judges.close)
    return Desk(
        judges,
        counter,
        settings.judge.concurrency,
        Trials(settings.judge.trials),
        held=settings.callbacks.url is None,
        on_told=on_told,
    )


async def open_submission_desk(stack: AsyncExitStack, settings: Settings, desk: Desk) -> SubmissionDesk:
    """What submissions are evaluated with: the judges that judge prompts, and what runs and analyses code."""
    runner = await open_runner(settings.runner, stack)
    return SubmissionDesk(
        judges=desk.judges,
        counter=desk.counter,
        trials=desk.trials,
        runner=None if runner is None else TriedRunner(runner),
        default=await default_basis(settings.judge.model, settings.judge.trials),
        concurrency=settings.submissions.concurrency,
        held=desk.held,
        tells_stages=settings.callbacks.profile == "vibecode",
        on_told=desk.on_told,
    )


async def _take_lease(stack: AsyncExitStack, lease: Lease, recovery: Recovery) -> None:
    await lease.take()
    stack.push_async_callback(_give_back, lease)
    await recovery.settle_orphans()


def _keep(stack: AsyncExitStack, lease: Lease) -> None:
    """Renew a lease for longer than the jobs run that are begun after it: at their end they still write under it."""
    _run(stack, lease.renew_forever, lease.watch_forever)


async def _give_back(lease: Lease) -> None:
    try:
        async with asyncio.timeout(_GIVE_BACK_S):
            await lease.give_back()
    except DATABASE_DOWN:
        log.warning("lease_not_given_back")  # it runs out by itself


Job = Callable[[], Coroutine[Any, Any, None]]


def _run(stack: AsyncExitStack, *jobs: Job) -> None:
    """Run background jobs until ``stack`` closes."""
    tasks = [asyncio.create_task(_run_for_good(job)) for job in jobs]

    async def stop() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    stack.push_async_callback(stop)


async def _run_for_good(job: Job) -> None:
    """Run a job that ends only by itself; after an error nobody foresaw it is begun again, for all depend on it."""
    while True:
        try:
            await job()
        except Exception as error:  # noqa: BLE001  # the boundary of a background job
            metrics.JOB_FAILURES.inc()
            log.critical("background_job_failed", error=fault(error), at=place_of(error))
            if (task := asyncio.current_task()) is not None and task.cancelling():
                return  # it was to end: the error came on the way out
            await asyncio.sleep(_JOB_PAUSE_S)
        else:
            return


async def _sweep_forever(
    recovery: Recovery, find_lost: Callable[[], Coroutine[Any, Any, set[int]]] | None = None
) -> None:
    """Now and then, look for turns that everybody has lost sight of."""
    while True:
        await asyncio.sleep(_SWEEP_INTERVAL_S)
        try:
            await recovery.settle_orphans()
            if find_lost is not None:
                await recovery.settle_lost(await find_lost())
        except DATABASE_DOWN as error:
            log.warning("sweep_waits_for_database", error=fault(error))


def _tune_garbage_collector() -> None:
    """What is loaded now stays; collecting less often keeps pauses out of the streams."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
