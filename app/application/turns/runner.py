"""Runs this process's turns, each in a task that the application owns and waits for, from its start to its ending."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog

from app.application.turns.ending import (
    INTERNAL,
    INTERRUPTED,
    FinalTurn,
    Outcome,
    ending_from,
    ending_of,
    record_calls,
    record_guard_calls,
    sum_usage,
)
from app.application.turns.running import RunningTurn
from app.application.turns.settlement import NotOursError, settle
from app.core import metrics
from app.core.errors import ErrorCode, ModelError, TurnstoneError
from app.core.logging import place_of
from app.domain.conversation import Usage
from app.domain.guard_policy import DONE_ABOUT_IT
from app.domain.model_client import ModelClient, ModelRequest
from app.domain.prompting import hinted
from app.domain.turn_log import Failed
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.state_repository import StateRepository, TurnKey
from app.infrastructure.repositories.turn_repository import CallRecord, JudgedBy, TurnEnding, TurnRepository

log = structlog.get_logger()

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 5.0
_LAST_START_S = 2.0
_LAST_SETTLE_S = 10.0
_OTHERS_SETTLE_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Model:
    """The model that turns are run on, and what goes with it."""

    client: ModelClient
    counter: TokenCounter
    max_output_tokens: int
    history_tokens: int


class TurnRunner:
    """The turns that run in this process.

    Args:
        model: what answers.
        state: the live-turn store, where running turns are found.
        most_turns: how many may run at once.
        held: callbacks are held, because no receiver is set.
        on_settled: called after each commit that may have recorded callbacks or a judgement to make.
        judged_by: what prompts are judged by, where their exam does not say.
    """

    def __init__(
        self,
        model: Model,
        state: StateRepository,
        *,
        most_turns: int,
        held: bool,
        on_settled: Callable[[], None],
        judged_by: JudgedBy | None = None,
    ) -> None:
        self.model = model
        self._state = state
        self._most_turns = most_turns
        self._held = held
        self._on_settled = on_settled
        self._judged_by = judged_by
        self._turns: dict[TurnKey, RunningTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starts: set[object] = set()
        self._changed = asyncio.Event()
        self._hurried = False
        self._suspects: dict[int, frozenset[object]] = {}
        self._lost_up_to = 0
        self._flushing = asyncio.Lock()
        self.draining = False

    def refusal(self) -> TurnstoneError | None:
        """Why no further turn can be started here just now; ``None`` where one can."""
        if self.draining:
            return TurnstoneError(ErrorCode.OVERLOADED, "The service is restarting; reconnect and send again.")
        if len(self._turns) + len(self._starts) >= self._most_turns:
            return TurnstoneError(ErrorCode.OVERLOADED, "The service is full; try again in a moment.")
        return None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Store a turn that was not refused, and `start` it, within this block: `drain` waits for it too."""
        start = object()
        self._starts.add(start)
        try:
            yield
        finally:
            self._starts.discard(start)
            self._changed.set()

    def start(self, turn: RunningTurn) -> None:
        """Run a turn whose start is committed."""
        if turn.ref.owner <= self._lost_up_to:
            turn.disown()  # while it was stored
        turn.begin(ModelRequest(turn.given.messages, self.model.max_output_tokens))
        self._turns[turn.ref.key] = turn
        metrics.TURNS_RUNNING.set(len(self._turns))
        task = asyncio.create_task(self._run(turn), name=f"turn {turn.ref.pk}")
        self._tasks.add(task)
        task.add_done_callback(self._leave)
        if self._hurried:
            turn.interrupt()

    def get(self, key: TurnKey) -> RunningTurn | None:
        """A turn that runs here."""
        return self._turns.get(key)

    def cancel_by_pk(self, turn_pks: set[int]) -> None:
        """Cancel those of these turns that run here."""
        for turn in list(self._turns.values()):
            if turn.ref.pk in turn_pks:
                turn.cancel()

    def disown(self, owner: int) -> None:
        """This process has lost a lease: others settle the turns it owned under it, and those that are being started.

        Every later lease has a larger ``owner``.
        """
        self._lost_up_to = max(self._lost_up_to, owner)
        for turn in list(self._turns.values()):
            if turn.ref.owner <= owner:
                turn.disown()

    async def drain(self, grace_s: float) -> None:
        """Let turns end that run or are being started, and interrupt those that have not after ``grace_s``.

        It returns when all are settled. Where the database is away even then, the turns are given up, those whose start
        hangs sooner: another process finds them by their lease.
        """
        self.draining = True
        await self._wait_until(lambda: self._hurried or not (self._tasks or self._starts), grace_s)
        self.interrupt_all()
        await self._wait_until(lambda: not self._starts, _LAST_START_S)
        await self._wait_until(lambda: not self._tasks, _LAST_SETTLE_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _wait_until(self, condition: Callable[[], bool], patience_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    def _leave(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    def interrupt_all(self) -> None:
        """End all running turns now, as ``interrupted``, and those that are being started as soon as they run."""
        self._hurried = True
        self._changed.set()
        for turn in list(self._turns.values()):
            turn.interrupt()

    async def flush_forever(self, interval_s: float, owner: Callable[[], int]) -> None:
        """Make new text safe every ``interval_s``, until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            if not self._turns:
                continue
            try:
                await self.flush(owner())
            except DATABASE_DOWN as error:
                # The text is still here, and the next flush takes all of it.
                log.warning("flush_waits_for_database", error=fault(error))

    async def flush(self, owner: int) -> None:
        """Write the new text of all running turns in one statement, and see which of them somebody wants stopped."""
        async with self._flushing:
            await self._flush(owner)

    async def _flush(self, owner: int) -> None:
        begun = time.monotonic()
        turns = [turn for turn in self._turns.values() if turn.ref.owner == owner and not turn.settling]
        chunks = [chunk for turn in turns if (chunk := turn.unflushed()) is not None]
        reached = {turn.ref.pk: turn.log.last_seq for turn in turns}
        async with get_db_context(vital=True) as db:
            repository = TurnRepository(db)
            cancels = await repository.cancels_requested(owner)
            flushed = await repository.flush(owner, chunks) if chunks else False
        if flushed:
            metrics.FLUSH.observe(time.monotonic() - begun)
            for turn in turns:
                turn.flushed_seq = max(turn.flushed_seq, reached[turn.ref.pk])
        if cancels:
            self.cancel_by_pk(set(cancels))

    async def find_lost(self, owner: int) -> set[int]:
        """Turns that the database says we run and that we do not, seen so twice in a row.

        A start whose commit was answered by a broken connection leaves one. Call it now and then. Whatever was being
        started when a turn was first seen so may be that turn, for as long as it takes.
        """
        async with get_db_context() as db:
            stored = set(await TurnRepository(db).running_of(owner))
        before = self._suspects
        unknown = stored - {turn.ref.pk for turn in self._turns.values()}
        self._suspects = {pk: before.get(pk, frozenset(self._starts)) for pk in unknown}
        return {pk for pk in unknown if pk in before and before[pk].isdisjoint(self._starts)}

    async def _run(self, turn: RunningTurn) -> None:
        try:
            outcome = await self._answer(turn)
            if turn.disowned or not await self._store(turn, outcome):
                await self._end_as_stored(turn)
        finally:
            self._forget(turn)
            if turn.log.ending is None:
                # Only a process that is being torn down gets here; what is flushed is what others will find.
                turn.log.end(Failed(INTERNAL.code, INTERNAL.message, INTERNAL.retryable, Usage(), turn.flushed_seq))

    def _forget(self, turn: RunningTurn) -> None:
        if self._turns.pop(turn.ref.key, None) is not None:
            self._state.close(turn.ref.key)
            metrics.TURNS_RUNNING.set(len(self._turns))

    async def _answer(self, turn: RunningTurn) -> Outcome:
        try:
            state = await turn.ended()
        except asyncio.CancelledError:
            if not turn.stopped:
                raise  # not the turn but the process is being torn down
            return Outcome() if turn.cancel_requested else Outcome(error=INTERRUPTED)
        except ModelError as error:
            log.warning("model_failed", turn_pk=turn.ref.pk, code=error.code, detail=error.detail)
            return Outcome(error=error)
        except Exception as error:  # noqa: BLE001  # the boundary: whatever went wrong, the turn has to end
            log.error("turn_failed", turn_pk=turn.ref.pk, error=type(error).__name__, at=place_of(error))
            return Outcome(error=INTERNAL)
        return Outcome(finish_reason=state["finish_reason"])

    def _final(self, turn: RunningTurn, outcome: Outcome) -> FinalTurn:
        text, context = turn.log.text, turn.generation.context
        messages = hinted(turn.given.messages, context.verdict.hints)
        calls = record_calls(context.calls, text, messages, self.model.counter)
        usage = sum_usage(calls)
        labels = sorted(context.verdict.labels)
        meta: dict[str, object] = {"model": self.model.client.model, "status": outcome.status.value}
        if outcome.finish_reason is not None:
            meta["finish_reason"] = outcome.finish_reason.value
        else:
            meta["partial"] = True
        if labels:
            meta["labels"] = labels
        if context.verdict.action in DONE_ABOUT_IT:
            meta["guard"] = context.verdict.action.value
        if turn.given.exam.version is not None:
            meta["exam_version"] = turn.given.exam.version
        row = TurnEnding(
            status=outcome.status,
            usage=usage,
            finish_reason=outcome.finish_reason,
            error_code=outcome.error.code if outcome.error else None,
            error_message=outcome.error.message if outcome.error else None,
            error_retryable=outcome.error.retryable if outcome.error else None,
            lengths=turn.log.lengths,
            first_token_ms=turn.first_token_ms,
            duration_ms=turn.duration_ms,
            labels=labels,
        )
        token_count = self._count_answer(text, calls, meta)
        calls += record_guard_calls(context.guard_calls, self.model.counter)
        return FinalTurn(text, row, calls, token_count, meta)

    def _count_answer(self, text: str, calls: list[CallRecord], meta: dict[str, object]) -> int:
        """Tokens of the answer's text alone; says in ``meta`` who counted, where it was not the provider."""
        if calls and calls[-1].usage.source == "provider":
            return max(calls[-1].usage.completion_tokens - calls[-1].usage.reasoning_tokens, 0)
        counted = self.model.counter.count(text)
        meta["tokenizer"] = counted.tokenizer
        if counted.approximate:
            meta["approximate"] = True
        return counted.tokens

    async def _store(self, turn: RunningTurn, outcome: Outcome) -> bool:
        """Store how the turn ended; ``False`` when others do."""
        try:
            return await self._settle(turn, self._final(turn, outcome))
        except Exception as error:  # noqa: BLE001  # the boundary: a bug of ours must not leave the turn without an end
            # The turn looks abandoned from now on, and is settled with what was flushed (`find_lost`).
            log.error("turn_cannot_be_stored", turn_pk=turn.ref.pk, error=fault(error), at=place_of(error))
            self._forget(turn)
            return False

    async def _settle(self, turn: RunningTurn, final: FinalTurn) -> bool:
        """Store the ending, for as long as it takes; ``False`` when the turn is not ours any more."""
        pause = _FIRST_RETRY_S
        turn.settling = True  # it is flushed no more: all of its text goes with the settlement
        async with self._flushing:
            pass  # what a flush writes that is under way now would not be seen, and stay
        while True:
            try:
                await settle(turn.ref, final, held=self._held, judged_by=self._judged_by)
            except NotOursError:
                return False
            except DATABASE_DOWN as error:
                log.warning("turn_waits_for_database", turn_pk=turn.ref.pk, error=fault(error), pause_s=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_RETRY_S)
            else:
                break
        self._on_settled()
        turn.log.end(ending_from(final.row))
        return True

    async def _end_as_stored(self, turn: RunningTurn) -> None:
        """Tell the readers how the turn was ended by whoever did (us, in a commit we did not hear of; or another)."""
        while turn.log.ending is None:
            try:
                async with get_db_context() as db:
                    stored = await TurnRepository(db).get(turn.ref.pk)
                ending = ending_of(stored) if stored is not None else None
            except DATABASE_DOWN:
                ending = None
            if ending is not None:
                self._on_settled()
                turn.log.end(ending)
            else:
                await asyncio.sleep(_OTHERS_SETTLE_POLL_S)
