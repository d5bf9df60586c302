"""The conversation's use cases: a message comes in, a turn runs, an answer is streamed and stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import IntegrityError

from app.application.turns.ending import ending_of
from app.application.turns.exchange import AttachedTurn, ChatCommand, ChatResult, Started
from app.application.turns.generation import Generation, Generations
from app.application.turns.input import TurnInput, input_of
from app.application.turns.reading import ended, held, read
from app.application.turns.runner import TurnRunner
from app.application.turns.running import RunningTurn, TurnRef
from app.application.turns.tail import Tails
from app.core import metrics
from app.core.errors import ErrorCode, TurnstoneError
from app.core.ids import new_turn_id
from app.domain.conversation import TurnId, TurnStatus
from app.domain.exam_settings import ExamTerms
from app.domain.turn_log import Done, Ending, Failed, Piece, TurnLog
from app.infrastructure.persistence.models import PromptSession, PromptTurn
from app.infrastructure.persistence.session import DATABASE_DOWN, PoolExhausted, get_db_context
from app.infrastructure.repositories.session_repository import (
    HistoryMessage,
    NewTurn,
    SessionRepository,
    StartedTurn,
)
from app.infrastructure.repositories.state_repository import StateRepository, TurnKey
from app.infrastructure.repositories.turn_repository import TurnRepository

_TRIES_TO_START = 10
"""What is in a turn's way may be gone when we look for it; then it is tried again, but not for ever.

Where nothing is in the way, this process has lost its lease and is about to take another.
"""
_PAUSE_S = 0.05
"""After the first try; each further one waits longer, 2.25 s together."""


class TurnStream:
    """A turn about to be started or attached to.

    Await it for the `AttachedTurn`; or iterate over it for the turn's events: `Started`, then a `Piece` for each delta
    (several joined where the iterator is slow), then the `Ending`.
    """

    def __init__(self, service: EvalService, command: ChatCommand) -> None:
        self._service = service
        self._command = command

    def __await__(self) -> Generator[Any, None, AttachedTurn]:
        return self._service.attach(self._command).__await__()

    async def __aiter__(self) -> AsyncIterator[Started | Piece | Ending]:
        attached = await self
        with held(attached.log):
            yield attached.started
            async for event in read(attached.log):
                yield event


class EvalService:
    """Use cases of the conversation.

    Args:
        runner: runs turns in this process.
        generations: begins runs of the graph.
        state: the live-turn store.
        tails: follows turns of other processes.
        owner: gives the fencing token under which turns are started now.
    """

    def __init__(
        self,
        runner: TurnRunner,
        generations: Generations,
        state: StateRepository,
        tails: Tails,
        owner: Callable[[], int],
    ) -> None:
        self._runner = runner
        self._generations = generations
        self._state = state
        self._tails = tails
        self._owner = owner

    def process_message_stream(
        self,
        message: str,
        turn_id: TurnId,
        *,
        session_id: int | None = None,
        exam_id: int | None = None,
        participant_id: int | None = None,
        spec_id: int | None = None,
    ) -> TurnStream:
        """Answer a message piece by piece; see `TurnStream`.

        The session is found by its id, or found or created for the pair. The same ``turn_id`` with the same message is
        the same turn: it is attached to, or replayed.

        Raises:
            TurnstoneError: on awaiting; the turn was not started.
        """
        return TurnStream(self, ChatCommand(message, turn_id, session_id, exam_id, participant_id, spec_id))

    async def process_message(
        self,
        message: str,
        turn_id: TurnId | None = None,
        *,
        session_id: int | None = None,
        exam_id: int | None = None,
        participant_id: int | None = None,
        spec_id: int | None = None,
    ) -> ChatResult:
        """Answer a message as a whole, by the same rules as `process_message_stream`.

        Raises:
            TurnstoneError: the turn was not started, or ended with an error; what came of it is stored.
        """
        attached = await self.process_message_stream(
            message,
            new_turn_id() if turn_id is None else turn_id,
            session_id=session_id,
            exam_id=exam_id,
            participant_id=participant_id,
            spec_id=spec_id,
        )
        return await self.result(attached)

    async def result(self, attached: AttachedTurn) -> ChatResult:
        """Wait for a turn's end.

        Raises:
            TurnstoneError: it ended with an error.
        """
        ending = await ended(attached.log)
        if isinstance(ending, Failed):
            raise TurnstoneError(ending.code, ending.message, retryable=ending.retryable)
        reason = ending.finish_reason if isinstance(ending, Done) else "cancelled"
        started = attached.started
        return ChatResult(started.session_id, started.turn, started.turn_id, attached.log.text, reason, ending.usage)

    async def attach(self, command: ChatCommand) -> AttachedTurn:
        """Start the turn, or attach to it where it exists already."""
        arrived_at = time.monotonic()
        async with _database_errors():
            for tried in range(_TRIES_TO_START):
                if tried:
                    await asyncio.sleep(_PAUSE_S * tried)
                attached = None if self._runner.refusal() else await self._start(command, arrived_at)
                if attached is not None:
                    await asyncio.sleep(0)  # the model's request goes out first, and then what the client is told
                    return attached
                existing = await self._explain(command)
                if existing is not None:
                    return await self._attach_to_stored(existing, command.turn_id)
        raise TurnstoneError(ErrorCode.OVERLOADED, "The service is busy; try again in a moment.")

    async def _start(self, command: ChatCommand, arrived_at: float) -> AttachedTurn | None:
        with self._runner.starting():
            begun = await self._begin(command)
            if begun is None:
                return None
            ref, given, generation = begun
            metrics.TURN_START.observe(time.monotonic() - arrived_at)
            log = self._state.open(ref.key)
            self._runner.start(RunningTurn(ref, given, log, generation, arrived_at=arrived_at))
        return AttachedTurn(Started(ref.session_id, ref.turn, ref.turn_id), log, fresh=True)

    async def resume(self, session_id: int, turn_id: TurnId) -> AttachedTurn:
        """A turn that was started earlier, running or ended.

        Raises:
            TurnstoneError: ``session_not_found`` or ``turn_not_found``.
        """
        running = self._runner.get(TurnKey(session_id, str(turn_id)))
        if running is not None:
            return AttachedTurn(Started(session_id, running.ref.turn, turn_id), running.log, fresh=False)
        async with _database_errors():
            return await self._attach_to_stored(await self._stored(session_id, turn_id), turn_id)

    async def cancel(self, session_id: int, turn_id: TurnId) -> AttachedTurn:
        """Stop a turn, wherever it runs; returns it, so that its end can be awaited. An ended turn stays as it is.

        Raises:
            TurnstoneError: ``session_not_found`` or ``turn_not_found``.
        """
        running = self._runner.get(TurnKey(session_id, str(turn_id)))
        if running is not None:
            running.cancel()
            return AttachedTurn(Started(session_id, running.ref.turn, turn_id), running.log, fresh=False)
        async with _database_errors():
            stored = await self._stored(session_id, turn_id)
            if stored.status is TurnStatus.RUNNING:
                async with get_db_context() as db:
                    await TurnRepository(db).request_cancel(stored.id)
            return await self._attach_to_stored(stored, turn_id)

    async def _begin(self, command: ChatCommand) -> tuple[TurnRef, TurnInput, Generation] | None:
        """The turn's number is taken and the message stored, in one commit.

        ``None`` when something is in the way, which is rare; nothing is stored then, and `_explain` finds out what.
        Once it is stored the turn is run, whatever happens, for it has to end.
        """
        model = self._runner.model
        counted = model.counter.count(command.message)
        new = NewTurn(
            session=command.session,
            client_turn_id=str(command.turn_id),
            turn_id_is_int=isinstance(command.turn_id, int),
            owner=self._owner(),
            model=model.client.model,
            message=command.message,
            token_count=counted.tokens,
            meta={"tokenizer": counted.tokenizer} | ({"approximate": True} if counted.approximate else {}),
            spec_id=command.spec_id,
        )
        generation = self._generations.take(command.message)
        try:
            started = await self._store_start(new)
        except IntegrityError:
            started = None
        except BaseException:
            generation.discard()
            raise
        if started is None:
            generation.discard()
            return None
        try:
            history = started.history
            if history is None:
                history = await self._history(started)
            given = input_of(command.message, history, exam=started.exam, history_tokens=model.history_tokens)
        except Exception as error:  # noqa: BLE001  # the boundary: it is stored, so it has to run, and to end
            generation.fail(error)
            given = input_of(command.message, [], exam=ExamTerms(), history_tokens=model.history_tokens)
        except BaseException:
            generation.discard()
            raise
        return TurnRef(started.pk, started.session_id, started.turn, command.turn_id, new.owner), given, generation

    async def _store_start(self, new: NewTurn) -> StartedTurn | None:
        """Start the turn in its session; a pair that has none gets one."""
        budget = self._runner.model.history_tokens
        async with get_db_context() as db:
            started = await SessionRepository(db).start_turn(new, token_budget=budget)
        if started is not None or isinstance(new.session, int):
            return started
        async with get_db_context() as db:
            session = await _session_of_pair(SessionRepository(db), new.session, new.spec_id)
        async with get_db_context() as db:
            return await SessionRepository(db).start_turn(replace(new, session=session.id), token_budget=budget)

    async def _history(self, started: StartedTurn) -> list[HistoryMessage]:
        """The conversation before a turn; tried twice, for the connection at hand may have been cut meanwhile."""
        budget = self._runner.model.history_tokens
        for last in (False, True):
            try:
                async with get_db_context() as db:
                    sessions = SessionRepository(db)
                    return await sessions.history(started.session_id, before_turn=started.turn, token_budget=budget)
            except DATABASE_DOWN:
                if last:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _explain(self, command: ChatCommand) -> PromptTurn | None:
        """Why a turn cannot be started.

        Returns:
            The turn itself where it exists already; ``None`` where nothing is in the way any more.

        Raises:
            TurnstoneError: what is in the way.
        """
        async with get_db_context() as db:
            sessions, turns = SessionRepository(db), TurnRepository(db)
            session_id = command.session
            if not isinstance(session_id, int):
                session_id = (await _session_of_pair(sessions, session_id, command.spec_id)).id
            session = await sessions.lock_session(session_id)
            if session is None:
                raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
            _check_spec(command, session.spec_id)
            in_the_way = await turns.find_in_the_way(session.id, str(command.turn_id))
            for turn in in_the_way:
                if turn.client_turn_id == str(command.turn_id):
                    if await turns.user_message(turn) != command.message:
                        raise TurnstoneError(ErrorCode.TURN_ID_CONFLICT, "This turn_id was used with another message.")
                    return turn
            if session.ended_at is not None and command.session_id is not None:
                raise TurnstoneError(ErrorCode.SESSION_ENDED, "The session has ended.")
            if in_the_way:
                raise TurnstoneError(ErrorCode.TURN_IN_PROGRESS, "The session is answering another message.")
            refusal = self._runner.refusal()
            if refusal is not None:
                raise refusal
        return None

    async def _stored(self, session_id: int, turn_id: TurnId) -> PromptTurn:
        async with get_db_context() as db:
            turn = await TurnRepository(db).find(session_id, str(turn_id))
            if turn is None:
                if await SessionRepository(db).get_session(session_id) is None:
                    raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
                raise TurnstoneError(ErrorCode.TURN_NOT_FOUND, "The session has no such turn.")
        return turn

    async def _attach_to_stored(self, turn: PromptTurn, turn_id: TurnId) -> AttachedTurn:
        started = Started(turn.session_id, turn.turn, turn_id)
        running = self._runner.get(TurnKey(turn.session_id, turn.client_turn_id))
        if running is not None:
            return AttachedTurn(started, running.log, fresh=False)
        async with get_db_context() as db:
            turns = TurnRepository(db)
            current = await turns.get(turn.id)
            assert current is not None, "turns are never deleted while they are asked for"
            ending = ending_of(current)
            if ending is not None:
                stored = await turns.stored_text(current)
                return AttachedTurn(started, TurnLog.restored(stored.content, stored.lengths, ending), fresh=False)
        ref = TurnRef(turn.id, turn.session_id, turn.turn, turn_id, turn.owner)
        return AttachedTurn(started, await self._tails.follow(ref), fresh=False)


async def _session_of_pair(sessions: SessionRepository, pair: tuple[int, int], spec_id: int | None) -> PromptSession:
    return await sessions.get_active_session(*pair) or await sessions.create_session(*pair, spec_id)


def _check_spec(command: ChatCommand, spec_id: int | None) -> None:
    if command.spec_id is not None and command.spec_id != spec_id:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "The session was started with another spec_id.")


class _database_errors:  # noqa: N801  # reads as a statement
    """Turns a database that is away into an error a client understands."""

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, PoolExhausted):
            raise TurnstoneError(ErrorCode.OVERLOADED, "The service is busy; try again in a moment.") from error
        if isinstance(error, DATABASE_DOWN):
            raise TurnstoneError(
                ErrorCode.INTERNAL, "The service cannot store anything right now; try again in a moment."
            ) from error
