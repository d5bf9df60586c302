"""One evaluation: each node is found done, or done and kept, once; what is away puts it off, a bug loses nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from app.application.evaluation.judging import when_database_is_there
from app.application.submissions.analysing import analyse
from app.application.submissions.checking import check, hold
from app.application.submissions.conversation import gather_turns
from app.application.submissions.ending import aggregate, tell
from app.application.submissions.freezing import freeze
from app.application.submissions.judged import given_up, panel, review
from app.application.submissions.testing import run_tests
from app.application.submissions.work import Made, Step, Work
from app.core import metrics
from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.logging import place_of
from app.domain.code_runner import RunnerUnavailableError
from app.domain.documents import DocumentError
from app.domain.langgraph.submission_graph import EvaluationGraph
from app.domain.langgraph.submission_state import EvaluationContext, Outcomes
from app.domain.submission import CAN_BE_MISSING, Node, Outcome, Progress, PutOff
from app.domain.waiting import DAY_S, HOUR_S, Wait
from app.infrastructure.analysis.errors import AnalyserUnavailableError
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import EvaluationNotOursError, SubmissionClaims

log = structlog.get_logger()

_STEPS: Final[Mapping[Node, Step]] = {
    Node.FREEZE: freeze,
    Node.TURNS: gather_turns,
    Node.TESTS: run_tests,
    Node.ANALYSIS: analyse,
    Node.REVIEW: review,
    Node.PANEL: panel,
    Node.CHECKS: check,
    Node.HOLD: hold,
    Node.AGGREGATE: aggregate,
    Node.TELL: tell,
}
_TIME_BOX_S: Final[Mapping[Node, float]] = {
    Node.TESTS: 3_600.0,
    Node.ANALYSIS: 180.0,
    Node.REVIEW: 900.0,
    Node.PANEL: 1_800.0,
}
"""In which a node has to be done, or to say that it goes on (`Work.goes_on`)."""
_USUAL_BOX_S = 60.0
_MADE_BY: Final[Mapping[Node, tuple[str, ...]]] = {
    Node.TURNS: ("rubric", "judge_prompt", "policy", "judge_model"),
    Node.TESTS: ("problem_version",),
    Node.ANALYSIS: ("problem_version",),
    Node.REVIEW: ("review_prompt", "judge_model"),
    Node.PANEL: ("rubric", "panel_prompt", "policy", "judge_model"),
    Node.CHECKS: ("policy",),
    Node.HOLD: ("exam_version",),
    Node.AGGREGATE: ("policy",),
}
"""What of all that is frozen a node goes by; its outcome says so, also where there is none."""


class CannotBeEvaluatedError(Exception):
    """A node without which there is no result could not be done for as long as anybody can be asked to wait."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(f"{node}: {reason}")
        self.node = node
        self.reason = reason


async def evaluate(graph: EvaluationGraph, work: Work) -> list[PutOff]:
    """Make an evaluation, as far as it can be made now; returns what it had to be put off for, if anything.

    Raises:
        EvaluationNotOursError: somebody else has it by now.
        CannotBeEvaluatedError: it is given up.
    """
    async with get_db_context() as db:
        stored = await SubmissionClaims(db).steps(work.evaluation.id)

    async def run(node: Node, came: Outcomes) -> Outcome | PutOff:
        return stored[node] if node in stored else await _Run(work, node).outcome(came)

    async with work.reporter.reporting():
        ended = await graph.ainvoke(EvaluationContext(run))
    return ended.get("put_off", [])


class _Run:
    """One node of one evaluation."""

    def __init__(self, work: Work, node: Node) -> None:
        self._work = work
        self._node = node
        self._begun = time.monotonic()
        self._started_at = datetime.now(UTC)

    async def outcome(self, came: Outcomes) -> Outcome | PutOff:
        """Do it, and keep what came of it; or why it has to wait."""
        self._work.reporter.note(Progress.at(self._node))
        made = await self._made(came)
        if isinstance(made, PutOff):
            if not self._has_waited_enough(made, came):
                return made
            if self._node not in CAN_BE_MISSING:
                raise CannotBeEvaluatedError(self._node, made.reason)
            made = made.instead or Made(Outcome.missing(made.reason), given_up(self._work, self._node, made.reason))
        elapsed = time.monotonic() - self._begun
        cost = replace(made.outcome.cost, ms=round(elapsed * 1000))
        versions = {**_made_by(self._node, came), **made.outcome.versions}
        made = replace(made, outcome=replace(made.outcome, cost=cost, versions=versions))
        if self._node is Node.TELL:
            return made.outcome  # the evaluation's own row says that it is told
        kept = await when_database_is_there(lambda: self._keep(made))
        metrics.SUBMISSION_STEPS.labels(self._node.value, kept.status).inc()
        metrics.SUBMISSION_STEP_TIME.labels(self._node.value).observe(elapsed)
        return kept

    def _has_waited_enough(self, put_off: PutOff, came: Outcomes) -> bool:
        work = self._work
        before = work.evaluation.waits.get(self._node)
        if before is None and put_off.shared:
            # Who is away, and was waited for by a node that was given up, is not waited for as long again.
            before = next(
                (
                    wait
                    for node, wait in work.evaluation.waits.items()
                    if wait.reason == put_off.reason and node in came and came[node].status == "missing"
                ),
                None,
            )
        wait = Wait.further(before, put_off.reason, put_off.patience_s, work.now)
        work.waits[self._node] = wait
        return wait.is_over(work.now)

    async def _made(self, came: Outcomes) -> Made | PutOff:
        try:
            box_s = _TIME_BOX_S.get(self._node, _USUAL_BOX_S)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(box_s) as box:
                work = replace(self._work, goes_on=lambda: box.reschedule(loop.time() + box_s))
                return await _STEPS[self._node](work, came)
        except EvaluationNotOursError:
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: a bug loses neither the evaluation nor what runs beside
            put_off = _why(self._node, error)
            if put_off is None:
                place = place_of(error)
                log.error(
                    "submission_step_failed",
                    evaluation=self._work.evaluation.id,
                    node=self._node.value,
                    error=fault(error),
                    at=place,
                )
                return PutOff(self._node, "internal error")
            return put_off

    async def _keep(self, made: Made) -> Outcome:
        evaluation = self._work.evaluation
        async with get_db_context() as db:
            await SessionRepository(db).lock_session(evaluation.session_id)
            claims = SubmissionClaims(db)
            if await claims.keep_step(evaluation, self._node, made.outcome, self._started_at):
                await made.also(db)
                return made.outcome
            # A commit of which we did not hear has kept it already, or whoever has taken over.
            stored = await claims.steps(evaluation.id)
            if self._node not in stored:
                raise EvaluationNotOursError
            return stored[self._node]


def _made_by(node: Node, came: Outcomes) -> dict[str, Any]:
    frozen = came[Node.FREEZE].value if Node.FREEZE in came else {}
    return {name: frozen[name] for name in _MADE_BY.get(node, ()) if frozen.get(name) is not None}


def _why(node: Node, error: Exception) -> PutOff | None:
    """What is away, where an error says so; ``None`` for one that nobody foresaw."""
    put_off: PutOff | None = None
    match error:
        case ModelError(code=ErrorCode.LLM_REJECTED):
            put_off = PutOff(node, "the judge rejects the request", error.retry_after_s, HOUR_S, shared=True)
        case ModelError():
            put_off = PutOff(node, "judge unavailable", error.retry_after_s, shared=True)
        case StartupError():
            put_off = PutOff(node, "the judge cannot be used", shared=True)
        case DocumentError():
            put_off = PutOff(node, "what it is judged by cannot be used")
        case RunnerUnavailableError():
            put_off = PutOff(node, "the code runner is unavailable")
        case AnalyserUnavailableError():
            put_off = PutOff(node, "the analyser is unavailable")
        case TimeoutError():
            # What has to be done has only the database to wait for.
            put_off = PutOff(node, "it took too long", patience_s=DAY_S if node in CAN_BE_MISSING else math.inf)
        case _ if isinstance(error, DATABASE_DOWN):
            put_off = PutOff(node, "the database is away", patience_s=math.inf)
        case _:
            pass
    return put_off
