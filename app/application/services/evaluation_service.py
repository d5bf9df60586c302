"""Judgements made again, made known, and corrected by people."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from app.application.evaluation.basis import basis_of_exam
from app.application.evaluation.outcome import told
from app.application.evaluation.record import tell
from app.application.services.callback_service import CallbackService
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.conversation import TurnStatus
from app.domain.guard_policy import GuardAction
from app.domain.rubric import LANGUAGES, Rubric
from app.domain.scoring import ScorePolicy
from app.infrastructure.persistence.models import (
    EvaluationRun,
    PromptTurn,
    ReviewReasonEnum,
    RunStatusEnum,
    ScoreOverride,
)
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import (
    JUDGED_ENDINGS,
    EvaluationRepository,
    RunBasis,
)
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import JudgedBy, TurnRepository

_MOST_SAMPLES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunOrder:
    """What to judge again, and what to change in how it is done; what is ``None`` stays as it was.

    One of ``exam_id`` and ``session_id`` is set. Documents are given by hash.
    """

    exam_id: int | None = None
    session_id: int | None = None
    rubric: str | None = None
    prompt: str | None = None
    policy: str | None = None
    samples: int | None = None
    model: str | None = None
    asked_by: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A turn that was judged again: the run, and the one that counts without it (that counted, once it is told of)."""

    run: EvaluationRun
    before: EvaluationRun | None

    @property
    def to_publish(self) -> bool:
        """Whether it may be told of, if ``before`` is what Core was told last.

        A score is not given up for a run that has none, and what was asked for later is not pushed aside. A turn's own
        judgement, which nobody asked for, is no later one, whenever it was recorded.
        """
        if self.run.status is not RunStatusEnum.DONE or self.run.result is None or self.run.published:
            return False
        if self.before is None or self.before.result is None:
            return True
        if self.before.cause != "turn" and self.before.id > self.run.id:
            return False
        return self.run.result["score"] is not None or self.before.result["score"] is None


class EvaluationService:
    """Use cases of judgements. Each call is its own transactions, with the session's row locked first.

    Args:
        default: what is judged by where nobody says.
        held: callbacks wait, because no receiver is set.
    """

    def __init__(self, default: JudgedBy, *, held: bool) -> None:
        self._default = default
        self._held = held

    async def check(self, order: RerunOrder) -> None:
        """Refuse a rubric that has no text in a language in which turns would be judged by it.

        Raises:
            DocumentError: with the language.
        """
        if order.rubric is None:
            return
        async with get_db_context() as db:
            rubric = Rubric.parse(await DocumentRepository(db).content("rubric", order.rubric))
            used = await EvaluationRepository(db).languages(order.exam_id, order.session_id)
        for language in LANGUAGES:
            if language in used:
                rubric.text(language)

    async def record_rerun(self, order: RerunOrder) -> AsyncIterator[tuple[str, int]]:
        """Record a run for every turn that is judged; yields the batch's name and the runs so far, session by session.

        Turns that have not been judged so far are judged by their exam's settings. Nothing is told of until it is
        published.
        """
        batch, count, after = f"rerun_{secrets.token_hex(6)}", 0, (0, 0)
        while True:
            async with get_db_context() as db:
                turns = await EvaluationRepository(db).judgeable_turns(order.exam_id, order.session_id, after=after)
            if not turns:
                return
            for session_id, of_session in groupby(turns, key=lambda turn: turn.session_id):
                async with get_db_context() as db:
                    await SessionRepository(db).lock_session(session_id)
                    for turn in of_session:
                        await self._add(db, turn, order, batch)
                        count += 1
                        after = (session_id, turn.turn)
                yield batch, count

    async def _add(self, db: Transaction, turn: PromptTurn, order: RerunOrder, batch: str) -> None:
        basis = await self._basis(db, turn)
        changed = replace(
            basis,
            rubric=order.rubric or basis.rubric,
            prompt=order.prompt or basis.prompt,
            policy=order.policy or basis.policy,
            settings={
                **basis.settings,
                **({"samples": order.samples} if order.samples else {}),
                **({"model": order.model} if order.model else {}),
            },
        )
        await EvaluationRepository(db).add_run(
            turn.session_id, turn.turn, changed, cause="rerun", batch=batch, asked_by=order.asked_by
        )

    async def _basis(self, db: Transaction, turn: PromptTurn) -> RunBasis:
        evaluations = EvaluationRepository(db)
        like = await evaluations.told_run(turn.session_id, turn.turn) or await evaluations.first_run(
            turn.session_id, turn.turn
        )
        if like is not None:
            return RunBasis.of(like)
        session = await SessionRepository(db).get_session(turn.session_id)
        assert session is not None, "a turn has a session"
        exam = (
            await ExamRepository(db).get_version(session.exam_id, turn.exam_version)
            if turn.exam_version is not None
            else None
        )
        return basis_of_exam(exam.settings if exam is not None else {}, self._default)

    async def changes(self, batch: str) -> AsyncIterator[Change]:
        """A batch's runs, each with what counts without it."""
        after = 0
        while True:
            async with get_db_context() as db:
                part = await EvaluationRepository(db).batch(batch, after=after)
            if not part:
                return
            for run, before in part:
                yield Change(run, before)
            after = part[-1][0].id

    async def publish(self, batch: str) -> AsyncIterator[int]:
        """Tell Core of a batch's runs, each under its turn's next revision; yields how many so far.

        What has been told is not told again, so it can be repeated. Left out are runs that wait, that would take a
        score away for none, or that are older than what Core knows; which is so, the session's lock decides.
        """
        count = 0
        async for change in self.changes(batch):
            if change.to_publish and await self._publish(change.run):
                count += 1
                yield count

    async def _publish(self, run: EvaluationRun) -> bool:
        """Tell of a run, if it is to be by what Core has been told of its turn by now."""
        async with get_db_context() as db:
            await SessionRepository(db).lock_session(run.session_id)
            evaluations = EvaluationRepository(db)
            now = await evaluations.get_run(run.id)
            if now is None or not Change(now, await evaluations.told_run(run.session_id, run.judged_turn)).to_publish:
                return False
            revision = await evaluations.publish(now)
            async with CallbackService(db, held=self._held).together() as callbacks:
                await tell(db, callbacks, now, revision)
        return True

    async def override(self, session_id: int, turn_id: str, score: float, reason: str, person: str) -> ScoreOverride:
        """Set a person's score (0 to 100) beside the machine's, and tell Core under the next revision.

        Raises:
            TurnstoneError: there is no such session or turn, it runs (``turn_in_progress``), or was not answered
                (``not_scored``).
        """
        async with get_db_context() as db:
            turn = await _locked_turn(db, session_id, turn_id)
            evaluations = EvaluationRepository(db)
            revision = await evaluations.next_revision(session_id, turn.turn)
            override = await ReviewRepository(db).override(session_id, turn.turn, score, reason, person, revision)
            run = await evaluations.told_run(session_id, turn.turn)
            result = run.result if run is not None else None
            done = await SessionRepository(db).guard_action(session_id, turn.turn)
            unjudged = _not_judged(turn, refused=done is GuardAction.REFUSE)
            log, counted = told(unjudged if result is None else result, override)
            await CallbackService(db, held=self._held).send_turn_evaluation(
                session_id, turn.turn, log, counted, revision=revision
            )
        return override

    async def appeal(self, session_id: int, turn_id: str, reason: str, person: str) -> tuple[int, EvaluationRun]:
        """Ask people to look at a turn, and for a further run with more samples for them to look at; returns both.

        The run is told of when somebody publishes its batch. While an appeal is open, another one is that one.

        Raises:
            TurnstoneError: there is no such session or turn, it runs (``turn_in_progress``), or was not answered
                (``not_scored``).
        """
        async with get_db_context() as db:
            turn = await _locked_turn(db, session_id, turn_id)
            reviews, evaluations = ReviewRepository(db), EvaluationRepository(db)
            opened = await reviews.open_appeal(session_id, turn.turn)
            if opened is not None and opened.run_id is not None:
                known = await evaluations.get_run(opened.run_id)
                assert known is not None, "an item does not outlive its run"
                return opened.id, known
            basis = await self._basis(db, turn)
            assert basis.policy is not None, "a basis names its documents"
            policy = ScorePolicy.parse(await DocumentRepository(db).content("policy", basis.policy))
            samples = min(2 * (basis.settings.get("samples") or policy.samples) + 1, _MOST_SAMPLES)
            more = replace(basis, settings={**basis.settings, "samples": samples})
            batch = f"appeal_{secrets.token_hex(6)}"
            run = await evaluations.add_run(session_id, turn.turn, more, cause="appeal", batch=batch, asked_by=person)
            item_id = await reviews.open(
                session_id,
                turn.turn,
                run.id,
                ReviewReasonEnum.APPEAL,
                {"reason": reason, "batch": batch},
                asked_by=person,
            )
        assert item_id is not None, "the run is new, so it has no item"
        return item_id, run


async def resolve_review_item(item_id: int, person: str, resolution: str) -> None:
    """Say what came of a review. The same again changes nothing.

    Raises:
        TurnstoneError: there is no such item, or something else was said of it.
    """
    async with get_db_context() as db:
        reviews = ReviewRepository(db)
        if await reviews.resolve(item_id, person, resolution):
            return
        found = await reviews.get(item_id)
    if found is None:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "There is no such review item.")
    if (found[0].resolved_by, found[0].resolution) != (person, resolution):
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The review item has been resolved already.")


def _not_judged(turn: PromptTurn, *, refused: bool) -> Mapping[str, Any]:
    """The log of a turn of which no judgement is known, to stand beside a person's score."""
    return {
        "turn_id": int(turn.client_turn_id) if turn.turn_id_is_int else turn.client_turn_id,
        "status": "unscored",
        "reason": "not judged",
        "score": None,
        "intent": None,
        "criteria": [],
        "advice": "",
        "spread": 0,
        "labels": sorted(turn.labels or ()),
        "withheld": [],
        "versions": {**dict.fromkeys(("rubric", "prompt", "policy", "judge_model")), "exam_version": turn.exam_version},
        "components": {
            "guard": "refused" if refused else "passed",
            "judge": "not_asked",
        },
    }


async def _locked_turn(db: Transaction, session_id: int, turn_id: str) -> PromptTurn:
    """A turn whose prompt is judged, by now or by and by; its session is locked.

    One that runs has no judgement to correct, and the run that its end records would come upon ours.
    """
    if await SessionRepository(db).lock_session(session_id) is None:
        raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
    turn = await TurnRepository(db).find(session_id, turn_id)
    if turn is None:
        raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "The session has no such turn.")
    if turn.status is TurnStatus.RUNNING:
        raise TurnstoneError(ErrorCode.TURN_IN_PROGRESS, "The turn is still being answered.")
    if turn.finish_reason not in JUDGED_ENDINGS:
        raise TurnstoneError(ErrorCode.NOT_SCORED, "The turn was not answered, so its prompt is not judged.")
    return turn
