"""Sessions and their messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert

from app.domain.exam_settings import DEFAULT_LANGUAGE, ExamTerms
from app.domain.guard_policy import GuardAction, GuardRules
from app.infrastructure.persistence.models import PromptMessage, PromptRoleEnum, PromptSession
from app.infrastructure.persistence.session import Transaction

_ACTIVE = PromptSession.ended_at.is_(None)

_insert_session = (
    pg_insert(PromptSession)
    .on_conflict_do_nothing(index_elements=[PromptSession.exam_id, PromptSession.participant_id], index_where=_ACTIVE)
    .returning(PromptSession)
)
_insert_messages = """
    INSERT INTO prompt_messages (session_id, turn, role, content, token_count, meta)
    SELECT %(session_id)s, message.turn, message.role, message.content, message.token_count, message.meta FROM unnest(
        %(turns)s::int[], %(roles)s::text[], %(contents)s::text[], %(token_counts)s::int[],
        %(metas)s::jsonb[]
    ) WITH ORDINALITY AS message(turn, role, content, token_count, meta, place)
    ORDER BY place
    """
# One walk down the index: a turn's question stands right before its answer there, where it has one.
_past = """
    SELECT turn, role, content, token_count, partial, guard FROM (
        SELECT turn, role, content, token_count, partial, guard, sum(tokens) OVER newest_first - tokens AS newer FROM (
            SELECT turn, role, content, token_count, coalesce((meta ->> 'partial')::boolean, false) AS partial,
                   meta ->> 'guard' AS guard,
                   -- A provider's count is believed within reason.
                   greatest(coalesce(token_count, length(content) / 2), length(content) / 16) AS tokens,
                   role = 'ASSISTANT' OR lead(turn) OVER newest_first = turn AS answered
            FROM prompt_messages WHERE session_id = {session_id} AND turn < {before_turn}
            WINDOW newest_first AS (ORDER BY turn DESC, role DESC)
        ) AS every
        WHERE answered
        WINDOW newest_first AS (ORDER BY turn DESC, role DESC)
    ) AS message
    WHERE newer <= %(token_budget)s ORDER BY turn DESC, role DESC
    """
_history = _past.format(session_id="%(session_id)s", before_turn="%(before_turn)s")
# What a statement reads is older than the lock for which it had to wait. So it says whether the turn before this one
# had ended by then; hardly anybody asks again sooner than that.
_start_turn = """
    WITH numbered AS (
        UPDATE prompt_sessions SET last_turn = last_turn + 1
        WHERE {which} AND ended_at IS NULL AND (%(spec_id)s::bigint IS NULL OR spec_id = %(spec_id)s::bigint)
          AND EXISTS (SELECT FROM workers WHERE workers.id = %(owner)s AND fenced_at IS NULL)
        RETURNING id, exam_id, last_turn
    ), exam AS (
        SELECT problem_text, settings, CASE WHEN settings <> '{{}}' THEN version END AS version
        FROM exams, numbered WHERE exams.id = numbered.exam_id
    ), started AS (
        INSERT INTO prompt_turns (session_id, turn, client_turn_id, turn_id_is_int, status, owner, model, exam_version)
        SELECT id, last_turn, %(client_turn_id)s, %(turn_id_is_int)s, 'running', %(owner)s, %(model)s,
            (SELECT version FROM exam) FROM numbered
        RETURNING id
    ), said AS (
        INSERT INTO prompt_messages (session_id, turn, role, content, token_count, meta)
        SELECT id, last_turn, 'USER', %(message)s, %(token_count)s, %(meta)s::jsonb FROM numbered
    )
    SELECT started.id AS pk, numbered.id AS session_id, numbered.last_turn AS turn,
        exam.problem_text, exam.version AS exam_version, exam.settings -> 'guard' AS guard,
        exam.settings ->> 'language' AS language,
        (SELECT json_agg(json_build_array(turn, role, content, token_count, partial, guard)) FROM ({past}) AS past)
            AS past,
        numbered.last_turn - 1 = (SELECT last_turn FROM prompt_sessions AS seen WHERE seen.id = numbered.id)
        AND NOT EXISTS (
            SELECT FROM prompt_turns AS seen WHERE seen.session_id = numbered.id AND seen.status = 'running'
        ) AS up_to_date
    FROM started, numbered LEFT JOIN exam ON true
    """
_past_of_numbered = _past.format(session_id="numbered.id", before_turn="numbered.last_turn")
_start_turn_in_session = _start_turn.format(which="id = %(session_id)s", past=_past_of_numbered)
_start_turn_of_pair = _start_turn.format(
    which="exam_id = %(exam_id)s AND participant_id = %(participant_id)s", past=_past_of_numbered
)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to store. ``token_count`` counts ``content`` alone."""

    turn: int
    role: PromptRoleEnum
    content: str
    token_count: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HistoryMessage:
    """A stored message as the next prompt needs it. An answer says what the ``guard`` did about its message."""

    turn: int
    role: PromptRoleEnum
    content: str
    token_count: int | None
    partial: bool
    guard: GuardAction | None = None


@dataclass(frozen=True, slots=True)
class NewTurn:
    """A turn about to run, and the message that it begins with.

    ``session`` is an id, or a pair (exam, participant), whose active session is meant. ``spec_id``, where it is given,
    has to be the session's. ``message`` is stored as the turn's first.
    """

    session: int | tuple[int, int]
    client_turn_id: str
    turn_id_is_int: bool
    owner: int
    model: str
    message: str
    token_count: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    spec_id: int | None = None


@dataclass(frozen=True, slots=True)
class StartedTurn:
    """A turn that has its number; with what its prompt needs: the exam's terms, and the conversation so far.

    Both are read when they are asked for: of what a later program wrote they may raise, when the turn is stored.
    """

    pk: int
    session_id: int
    turn: int
    row: Any

    @property
    def exam(self) -> ExamTerms:
        """What its exam wants."""
        guard = None if self.row.guard is None else GuardRules.from_json(self.row.guard)
        return ExamTerms(self.row.problem_text, self.row.language or DEFAULT_LANGUAGE, guard, self.row.exam_version)

    @property
    def history(self) -> list[HistoryMessage] | None:
        """As `SessionRepository.history` gives it; ``None`` where the turn before was only just ending.

        Then it has to be read anew.
        """
        return [_history_message(*message) for message in self.row.past or ()] if self.row.up_to_date else None


class SessionRepository:
    """Reads and writes sessions and messages within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def create_session(self, exam_id: int, participant_id: int, spec_id: int | None = None) -> PromptSession:
        """Start a session, or return the active one of the pair when there is one already.

        The database itself holds the pair to one active session, so racing calls all get the same one.
        """
        session, _ = await self.ensure_session(exam_id, participant_id, spec_id)
        return session

    async def ensure_session(
        self, exam_id: int, participant_id: int, spec_id: int | None = None
    ) -> tuple[PromptSession, bool]:
        """The active session of the pair, and whether this call has started it; of racing calls just one has."""
        values = {"exam_id": exam_id, "participant_id": participant_id, "spec_id": spec_id}
        while True:
            created = (await self._db.scalars(_insert_session, [values])).first()
            if created is not None:
                return created, True
            active = await self.get_active_session(exam_id, participant_id)
            if active is not None:  # else it has ended between the two statements: then there is room for a new one
                return active, False

    async def get_active_session(self, exam_id: int, participant_id: int) -> PromptSession | None:
        """The session of the pair that has not ended."""
        statement = select(PromptSession).where(
            PromptSession.exam_id == exam_id, PromptSession.participant_id == participant_id, _ACTIVE
        )
        return (await self._db.scalars(statement)).first()

    async def newest_session(self, exam_id: int, participant_id: int) -> PromptSession | None:
        """The pair's last session, ended or not."""
        statement = select(PromptSession).where(
            PromptSession.exam_id == exam_id, PromptSession.participant_id == participant_id
        )
        return (await self._db.scalars(statement.order_by(PromptSession.id.desc()).limit(1))).first()

    async def name_problem(self, session_id: int, spec_id: int) -> None:
        """Say which problem a session is about, where nobody has said so before."""
        statement = update(PromptSession).where(PromptSession.id == session_id, PromptSession.spec_id.is_(None))
        await self._db.execute(statement.values(spec_id=spec_id).execution_options(synchronize_session=False))

    async def get_session(self, session_id: int) -> PromptSession | None:
        """The session, ended or not."""
        return await self._db.get(PromptSession, session_id)

    async def lock_session(self, session_id: int) -> PromptSession | None:
        """The session, its row locked until the transaction ends.

        Every transaction that changes a session or its turns takes this lock first; so none of them deadlock.
        """
        statement = select(PromptSession).where(PromptSession.id == session_id).with_for_update()
        return (await self._db.scalars(statement.execution_options(populate_existing=True))).first()

    async def start_turn(self, new: NewTurn, *, token_budget: int) -> StartedTurn | None:
        """Give a turn its number, store it as running and its message with it, and read the conversation before it.

        One statement, and the transaction at hand may hold nothing else: it commits by itself.

        Returns:
            ``None`` where nothing was stored: there is no such session, it has ended, or it has another ``spec_id``; or
            the owner has lost its lease, and another one is about to be taken.

        Raises:
            sqlalchemy.exc.IntegrityError: the session runs a turn already, or knows the turn's id.
        """
        values: dict[str, Any] = {
            "spec_id": new.spec_id,
            "client_turn_id": new.client_turn_id,
            "turn_id_is_int": new.turn_id_is_int,
            "owner": new.owner,
            "model": new.model,
            "message": new.message,
            "token_count": new.token_count,
            "meta": json.dumps(new.meta, ensure_ascii=False),
            "token_budget": token_budget,
        }
        if isinstance(new.session, int):
            statement, values["session_id"] = _start_turn_in_session, new.session
        else:
            statement, (values["exam_id"], values["participant_id"]) = _start_turn_of_pair, new.session
        rows = await self._db.run(statement, values, whole=True)
        if not rows:
            return None
        [row] = rows
        return StartedTurn(row.pk, row.session_id, row.turn, row)

    async def list_sessions(
        self, exam_id: int | None, participant_id: int | None, *, after: int = 0, limit: int = 100
    ) -> Sequence[PromptSession]:
        """Sessions with an id above ``after``, oldest first; each filter may be left out."""
        statement = select(PromptSession).where(PromptSession.id > after).order_by(PromptSession.id).limit(limit)
        if exam_id is not None:
            statement = statement.where(PromptSession.exam_id == exam_id)
        if participant_id is not None:
            statement = statement.where(PromptSession.participant_id == participant_id)
        return (await self._db.scalars(statement)).all()

    async def end_session(self, session_id: int) -> PromptSession | None:
        """Set ``ended_at``, once: ending an ended session changes nothing."""
        statement = (
            update(PromptSession)
            .where(PromptSession.id == session_id)
            .values(ended_at=func.coalesce(PromptSession.ended_at, func.now()))
            .returning(PromptSession)
        )
        return (await self._db.scalars(statement)).first()

    async def add_message(
        self,
        session_id: int,
        turn: int,
        role: PromptRoleEnum,
        content: str,
        *,
        token_count: int | None = None,
        meta: dict[str, Any] | None = None,
    ) -> None:
        """Store one message.

        Raises:
            sqlalchemy.exc.IntegrityError: the turn has a message of this role already.
        """
        await self.save_messages_batch(session_id, [NewMessage(turn, role, content, token_count, meta or {})])

    async def save_messages_batch(self, session_id: int, messages: Sequence[NewMessage]) -> None:
        """Store several messages of one session: all of them or, when one is refused, none.

        Raises:
            sqlalchemy.exc.IntegrityError: a turn has a message of this role already.
        """
        if not messages:
            return
        await self._db.run(
            _insert_messages,
            {
                "session_id": session_id,
                "turns": [message.turn for message in messages],
                "roles": [message.role.value for message in messages],
                "contents": [message.content for message in messages],
                "token_counts": [message.token_count for message in messages],
                "metas": [json.dumps(message.meta, ensure_ascii=False) for message in messages],
            },
        )

    async def list_messages(self, session_id: int, *, after: int = 0, limit: int = 100) -> Sequence[PromptMessage]:
        """Messages with an id above ``after``, in the order of the conversation."""
        statement = (
            select(PromptMessage)
            .where(PromptMessage.session_id == session_id, PromptMessage.id > after)
            .order_by(PromptMessage.id)
            .limit(limit)
        )
        return (await self._db.scalars(statement)).all()

    async def messages_until(self, session_id: int, last_turn: int) -> Sequence[PromptMessage]:
        """Every message up to and with a turn, in the order of the conversation."""
        statement = (
            select(PromptMessage)
            .where(PromptMessage.session_id == session_id, PromptMessage.turn <= last_turn)
            .order_by(PromptMessage.id)
        )
        return (await self._db.scalars(statement)).all()

    async def guard_action(self, session_id: int, turn: int) -> GuardAction | None:
        """What the guard did about a turn's message, where it did more than to flag it."""
        statement = select(PromptMessage.meta["guard"].astext).where(
            PromptMessage.session_id == session_id,
            PromptMessage.turn == turn,
            PromptMessage.role == PromptRoleEnum.ASSISTANT,
        )
        done = (await self._db.scalars(statement)).first()
        return None if done is None else GuardAction(done)

    async def history(self, session_id: int, *, before_turn: int, token_budget: int) -> list[HistoryMessage]:
        """The newest messages of answered turns that together fit the budget, and one beyond: newest turn first.

        Within a turn the candidate's message comes first. Messages that nobody counted weigh half their characters, and
        none weighs less than a sixteenth of them.
        """
        rows = await self._db.run(
            _history, {"session_id": session_id, "before_turn": before_turn, "token_budget": token_budget}
        )
        return [_history_message(*row) for row in rows]


def _history_message(
    turn: int, role: str, content: str, token_count: int | None, partial: bool, guard: str | None
) -> HistoryMessage:
    done = None if guard is None else GuardAction(guard)
    return HistoryMessage(turn, PromptRoleEnum(role), content, token_count, partial, done)
