"""What the nodes of an evaluation are given, and what they give back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from app.application.evaluation.judging import Judges
from app.application.submissions.progress import Reporter
from app.domain.code_runner import CodeRunner, Isolation, RunnerUnavailableError
from app.domain.judging.tasks import Trials
from app.domain.langgraph.submission_state import Outcomes
from app.domain.submission import Node, Outcome, PutOff
from app.domain.waiting import Wait
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.submission_claims import ClaimedEvaluation
from app.infrastructure.repositories.turn_repository import JudgedBy

log = structlog.get_logger()

_TRY_AGAIN_S = 600.0
_ANNOUNCE_AFTER_S = 10.0
"""So long after the start the isolation is tried without being asked: starting comes first."""


class TriedRunner:
    """The code runner, and what was found when its isolation was tried: before the first run, and now and then."""

    def __init__(self, runner: CodeRunner, *, announced_after_s: float = _ANNOUNCE_AFTER_S) -> None:
        self.runner = runner
        self._announced_after_s = announced_after_s
        self._isolation: Isolation | None = None
        self._tried_at = 0.0
        self._trying = asyncio.Lock()

    async def isolation(self) -> Isolation:
        """How runs are isolated.

        Raises:
            RunnerUnavailableError: isolation is missing, so nothing is to be run.
        """
        async with self._trying:
            if self._isolation is None or time.monotonic() - self._tried_at > _TRY_AGAIN_S:
                self._isolation = None
                self._isolation = await self.runner.self_test()
                self._tried_at = time.monotonic()
            return self._isolation

    async def announce(self) -> None:
        """Soon after the start, try the isolation and write to the log what holds, or that nothing will be run."""
        await asyncio.sleep(self._announced_after_s)
        try:
            isolation = await self.isolation()
        except RunnerUnavailableError as error:
            log.error("runner_refuses_to_grade", backend=self.runner.name, problem=error.problem, remedy=error.remedy)
        else:
            log.info("runner_ready", backend=isolation.backend, level=isolation.level, **isolation.details)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionDesk:
    """What submissions are evaluated with.

    Attributes:
        judges: the judges of this process.
        counter: counts tokens where a judge does not say.
        trials: when a judge is tried before it is believed.
        runner: runs programs; ``None`` where none is set.
        default: what is judged by where the exam does not say.
        concurrency: evaluations at once.
        held: callbacks wait, because no receiver is set.
        tells_stages: Core is told of a submission's stages too, by a profile that has a place for them.
        on_told: called after each commit that may have recorded callbacks, or judgements to be made.
    """

    judges: Judges
    counter: TokenCounter
    trials: Trials
    runner: TriedRunner | None
    default: JudgedBy
    concurrency: int
    held: bool
    tells_stages: bool
    on_told: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One evaluation that is being made.

    ``goes_on`` is called by a node that has come further, and gives it as long again as it had in the beginning.
    ``waits`` is what nodes have to wait for after this try.
    """

    evaluation: ClaimedEvaluation
    desk: SubmissionDesk
    reporter: Reporter
    goes_on: Callable[[], None] = lambda: None
    begun: float = field(default_factory=time.monotonic)
    waits: dict[Node, Wait] = field(default_factory=dict)

    @property
    def now(self) -> float:
        """Seconds of the epoch, by the database's clock."""
        return self.evaluation.claimed_at + time.monotonic() - self.begun


async def nothing_else(_db: Transaction) -> None:
    """An outcome that nothing follows from but itself."""


@dataclass(frozen=True, slots=True)
class Made:
    """What came of a node, and what is written in the same transaction; that one locks the session's row first."""

    outcome: Outcome
    also: Callable[[Transaction], Awaitable[None]] = nothing_else


Step = Callable[[Work, Outcomes], Awaitable[Made | PutOff]]
