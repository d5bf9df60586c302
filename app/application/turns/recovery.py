"""Ends the turns of processes that died, with what they had made safe."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from app.application.turns.ending import INTERRUPTED, FinalTurn, count_call, sum_usage
from app.application.turns.input import TurnInput, input_of
from app.application.turns.running import TurnRef
from app.application.turns.settlement import NotOursError, settle
from app.core.logging import place_of
from app.domain.conversation import TurnStatus
from app.domain.exam_settings import ExamTerms
from app.domain.guard_inspection import inspected_aside
from app.domain.guard_policy import DONE_ABOUT_IT, GuardRules, GuardVerdict
from app.domain.model_client import ModelCall
from app.domain.prompting import hinted, refusal
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.models import PromptTurn
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.session_repository import HistoryMessage, SessionRepository
from app.infrastructure.repositories.turn_repository import StoredText, TurnEnding, TurnRepository
from app.infrastructure.repositories.worker_repository import WorkerRepository

log = structlog.get_logger()


class Recovery:
    """Settles orphaned turns as ``interrupted``.

    Args:
        counter: counts the usage that nobody else will report.
        history_tokens: budget of the prompts that the turns were started with.
        guard: what to do about the guard's labels in an exam that does not say.
        held: callbacks are held, because no receiver is set.
        on_settled: called after each commit that has recorded callbacks.
    """

    def __init__(
        self,
        counter: TokenCounter,
        history_tokens: int,
        guard: GuardRules,
        *,
        held: bool,
        on_settled: Callable[[], None],
    ) -> None:
        self._counter = counter
        self._history_tokens = history_tokens
        self._guard = guard
        self._held = held
        self._on_settled = on_settled

    async def settle_orphans(self) -> int:
        """Settle every running turn whose owner is fenced, or gone; returns how many. Any process may do it."""
        settled = 0
        while True:
            async with get_db_context() as db:
                orphans = await TurnRepository(db).orphans()
            done = [await self._try_to_settle(turn, after_fencing=True) for turn in orphans]
            settled += sum(done)
            if not any(done):
                break
        async with get_db_context() as db:
            await TurnRepository(db).sweep_chunks()
            await WorkerRepository(db).sweep()
        return settled

    async def settle_lost(self, turn_pks: set[int]) -> None:
        """Settle turns that this process owns and does not run."""
        for turn_pk in turn_pks:
            async with get_db_context() as db:
                turn = await TurnRepository(db).get(turn_pk)
            if turn is not None:
                await self._try_to_settle(turn, after_fencing=False)

    async def _try_to_settle(self, turn: PromptTurn, *, after_fencing: bool) -> bool:
        """One turn that the database does not take must not keep the others from their end, nor the lease from us."""
        try:
            return await self._settle(turn, after_fencing=after_fencing)
        except DATABASE_DOWN:
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: a bug, or what a later program wrote
            log.error("turn_cannot_be_settled", turn_pk=turn.id, error=fault(error), at=place_of(error))
            return False

    async def _settle(self, turn: PromptTurn, *, after_fencing: bool) -> bool:
        async with get_db_context() as db:
            turns, sessions = TurnRepository(db), SessionRepository(db)
            flushed = await turns.flushed_text(turn.id)
            session, message = await sessions.get_session(turn.session_id), await turns.user_message(turn)
            assert session is not None and message is not None, "a turn has a session and begins with a message"
        exam, history = await self._circumstances(turn, session.exam_id)
        given = input_of(message, history, exam=exam, history_tokens=self._history_tokens)
        found = await inspected_aside(message)
        rules = exam.guard or self._guard
        verdict = rules.decide(found.labels)
        refused = flushed.content == refusal(exam.language) or (
            # Where a model was to be asked, nobody knows what it said.
            verdict.refused and not flushed.content and not (rules.ask_model and found.doubtful)
        )
        turn_id = int(turn.client_turn_id) if turn.turn_id_is_int else turn.client_turn_id
        ref = TurnRef(turn.id, turn.session_id, turn.turn, turn_id, turn.owner)
        try:
            final = self._final(turn, given, verdict, flushed, refused=refused)
            await settle(ref, final, held=self._held, after_fencing=after_fencing)
        except NotOursError:
            return False
        log.warning("turn_interrupted", turn_pk=turn.id, characters=len(flushed.content))
        self._on_settled()
        return True

    async def _circumstances(self, turn: PromptTurn, exam_id: int) -> tuple[ExamTerms, list[HistoryMessage]]:
        """The exam's terms and the conversation before; without them the turn is ended all the same."""
        try:
            async with get_db_context() as db:
                history = await SessionRepository(db).history(
                    turn.session_id, before_turn=turn.turn, token_budget=self._history_tokens
                )
                settings = await ExamRepository(db).settings_of(exam_id, turn.exam_version)
            return ExamTerms() if settings is None else settings.terms(turn.exam_version), history
        except DATABASE_DOWN:
            raise
        except Exception as error:  # noqa: BLE001  # the boundary: what a later program wrote keeps no turn from its end
            log.error("turn_settled_without_its_exam", turn_pk=turn.id, error=fault(error), at=place_of(error))
            return ExamTerms(), []

    def _final(
        self, turn: PromptTurn, given: TurnInput, verdict: GuardVerdict, flushed: StoredText, *, refused: bool
    ) -> FinalTurn:
        """The ending of a turn whose process is gone.

        Whether the provider had been reached is not known. It is by far the likelier case, for the call follows the
        turn's start within milliseconds; so usage is counted, but not of a message that the guard has ``refused``: that
        one is answered without it.
        """
        meta: dict[str, object] = {"model": turn.model, "status": TurnStatus.INTERRUPTED.value, "partial": True}
        counted = self._counter.count(flushed.content)
        meta["tokenizer"] = counted.tokenizer
        if counted.approximate:
            meta["approximate"] = True
        calls = []
        if not refused:
            messages = hinted(given.messages, verdict.hints)
            call = ModelCall(turn.model, outcome=INTERRUPTED.code)
            calls.append(count_call(call, flushed.content, messages, self._counter))
        labels = sorted(verdict.labels)
        if labels:
            meta["labels"] = labels
        if verdict.action in DONE_ABOUT_IT:
            meta["guard"] = verdict.action.value
        if turn.exam_version is not None:
            meta["exam_version"] = turn.exam_version
        row = TurnEnding(
            status=TurnStatus.INTERRUPTED,
            usage=sum_usage(calls),
            error_code=INTERRUPTED.code,
            error_message=INTERRUPTED.message,
            error_retryable=INTERRUPTED.retryable,
            lengths=flushed.lengths,
            labels=labels,
        )
        return FinalTurn(flushed.content, row, calls, counted.tokens, meta)
