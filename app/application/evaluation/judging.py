"""One run is judged: every answer is kept before it is used, and none is asked for twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

import structlog

from app.application.evaluation.circuits import JudgeCircuits
from app.application.evaluation.subject import Subject
from app.core import metrics
from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.settings import PriceSettings
from app.domain.conversation import Usage
from app.domain.documents import DocumentError
from app.domain.judging import JudgeAnswer, JudgeClient, JudgeRequest, TurnJudgement, judge_turn
from app.domain.scoring import Unscored
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.evaluation_runs import ClaimedRun, EvaluationRuns, KeptCall

log = structlog.get_logger()

NO_JUDGE = Unscored("no judge is set")
_EMPTY_ANSWER = "empty answer"
_DATABASE_PAUSE_S = 1.0
Result = TypeVar("Result")


class _Place(NamedTuple):
    """Which sample asks, and how often it has asked the very same before."""

    sample: int
    place: int


class Judges:
    """The judges of one process by their model, each opened when it is first needed.

    ``circuits`` says which of them are asked at all.

    Args:
        open_judge: opens one; raises `StartupError` where it cannot be used.
        prices: what they cost.
    """

    def __init__(
        self,
        open_judge: Callable[[str, AsyncExitStack], Awaitable[JudgeClient]],
        prices: PriceSettings = PriceSettings(),  # noqa: B008  # frozen
    ) -> None:
        self._open = open_judge
        self.prices = prices
        self._clients: dict[str, JudgeClient] = {}
        self._opening = asyncio.Lock()
        self.circuits = JudgeCircuits()
        self._stack = AsyncExitStack()

    async def get(self, model: str) -> JudgeClient:
        """The judge of that model.

        Raises:
            StartupError: it cannot be used. What the system says to that is no outage of the database, for which
                whoever judges takes an `OSError`.
        """
        async with self._opening:
            if model not in self._clients:
                try:
                    self._clients[model] = await self._open(model, self._stack)
                except OSError as error:
                    problem = f"The judge {model} cannot be opened: {type(error).__name__}: {error}."
                    raise StartupError(problem, "Look at its settings and at this machine.") from error
        return self._clients[model]

    async def keeping(self, model: str, run: ClaimedRun, counter: TokenCounter) -> KeepingClient:
        """The judge of that model for a run, whose calls are kept.

        Raises:
            StartupError: as `get`.
        """
        return KeepingClient(await self.get(model), run, counter, self.prices)

    async def close(self) -> None:
        """Close those that were opened."""
        self._clients.clear()
        await self._stack.aclose()


class KeepingClient:
    """A judge whose answers are kept as they come, each in a transaction of its own, and never asked for twice.

    So a run that is interrupted goes on where it was, and one that is made again from what is kept has the same result,
    bit by bit. The n-th time a run asks the very same thing it gets the n-th answer to it.
    """

    def __init__(
        self,
        judge: JudgeClient,
        run: ClaimedRun,
        counter: TokenCounter,
        prices: PriceSettings = PriceSettings(),  # noqa: B008  # frozen
    ) -> None:
        self._judge = judge
        self._run = run
        self._counter = counter
        self._prices = prices
        self._asked: Counter[tuple[int, str]] = Counter()

    @property
    def model(self) -> str:
        """The judge's."""
        return self._judge.model

    async def aclose(self) -> None:
        """Nothing is open here."""

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """An answer that is kept, or else the judge's.

        Raises:
            ModelError: as the judge does; that it failed is kept too.
        """
        sample = int(request.parameters["seed"])
        place = self._asked[sample, request.input_hash]
        self._asked[sample, request.input_hash] += 1
        async with get_db_context() as db:
            known = await EvaluationRuns(db).known_answers(self._run, sample, request.input_hash)
        at = _Place(sample, place)
        if place < len(known.ours):
            return JudgeAnswer(known.ours[place], None, 0, kept=True)
        if place < len(known.others):
            kept = await self._keep(request, at, raw=known.others[place], cached=True)
            metrics.JUDGE_CALLS.labels("cached").inc()
            return JudgeAnswer(known.others[place] if kept is None else kept, None, 0, kept=True)
        return await self._ask(request, at)

    async def _ask(self, request: JudgeRequest, at: _Place) -> JudgeAnswer:
        begun = time.monotonic()
        try:
            answer = await self._judge.complete(request)
        except ModelError as error:
            metrics.JUDGE_CALLS.labels(error.code.value).inc()
            # A judge that fell silent may have worked, and be paid for it; one that refused has not.
            usage = self._counted(request, "") if error.code is ErrorCode.LLM_TIMEOUT else Usage()
            elapsed = round((time.monotonic() - begun) * 1000)
            await self._keep(request, at, error=error.code.value, usage=usage, latency_ms=elapsed)
            raise
        raw = _storable(answer.raw)
        metrics.JUDGE_CALLS.labels("answered").inc()
        metrics.JUDGE_LATENCY.observe(time.monotonic() - begun)
        usage = answer.usage or self._counted(request, raw)
        said_nothing = None if raw else _EMPTY_ANSWER
        kept = await self._keep(request, at, raw=raw, error=said_nothing, usage=usage, latency_ms=answer.latency_ms)
        if kept is not None:
            return JudgeAnswer(kept, None, 0)
        return JudgeAnswer(raw, answer.usage, answer.latency_ms)

    def _cost(self, used: Usage) -> float | None:
        """At today's price; of a call that used nothing it is known without one."""
        if not used.total_tokens:
            return 0.0
        price = self._prices.per_million.get(self.model)
        if price is None:
            return None
        return price.cost(prompt=used.prompt_tokens, cached=used.cached_tokens, completion=used.completion_tokens)

    def _counted(self, request: JudgeRequest, raw: str) -> Usage:
        return Usage(self._counter.count_messages(request.messages).tokens, self._counter.count(raw).tokens)

    async def _keep(
        self,
        request: JudgeRequest,
        at: _Place,
        *,
        raw: str = "",
        error: str | None = None,
        usage: Usage = Usage(),  # noqa: B008  # frozen
        latency_ms: int = 0,
        cached: bool = False,
    ) -> str | None:
        """Keep a call; returns the answer that has its place already, where another worker has asked the same.

        What is recorded is then what is judged by, whoever ends the run.
        """
        call = KeptCall(
            run_id=self._run.id,
            sample=at.sample,
            place=at.place,
            input_hash=request.input_hash,
            model=self.model,
            parameters=dict(request.parameters),
            raw_answer=raw,
            error=error,
            usage=usage,
            cost=self._cost(usage),
            currency=self._prices.currency,
            latency_ms=latency_ms,
            cached=cached,
        )

        async def keep() -> tuple[bool, str | None]:
            async with get_db_context() as db:
                runs = EvaluationRuns(db)
                if await runs.keep_call(call):
                    return True, None
                known = await runs.known_answers(self._run, at.sample, request.input_hash)
                return False, known.ours[at.place] if at.place < len(known.ours) else None

        is_kept, others = await when_database_is_there(keep)
        if not is_kept:
            log.warning("judge_call_not_kept", run=self._run.id)
        return others


async def judge_subject(subject: Subject, run: ClaimedRun, judges: Judges, counter: TokenCounter) -> TurnJudgement:
    """Judge a prompt; one that the guard refused by the policy's word alone, without a judge.

    Raises:
        ModelError: the judge cannot be asked now. What it has answered is kept.
        StartupError: it cannot be opened.
        DocumentError: what it is to judge by cannot be used.
    """
    if subject.task is None:
        raise DocumentError(subject.fault or "There is nothing to judge by")
    if subject.refused:
        return TurnJudgement(None, {}, subject.task.policy.refused(), 0, "", ())
    if subject.model is None:
        return TurnJudgement(None, {}, NO_JUDGE, 0, "", ())
    return await judge_turn(await judges.keeping(subject.model, run, counter), subject.task)


async def when_database_is_there(action: Callable[[], Awaitable[Result]]) -> Result:
    """Do it again until the database takes it: what a judge has said must not be lost to a database that restarts."""
    while True:
        try:
            return await action()
        except DATABASE_DOWN as error:
            log.warning("judgement_waits_for_database", error=fault(error))
            await asyncio.sleep(_DATABASE_PAUSE_S)


def _storable(text: str) -> str:
    """A text as PostgreSQL has room for: no NUL, and no half of a surrogate pair."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
