"""Turns: their start, the text flushed while they run, and their one ending."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, or_, select

from app.domain.conversation import FinishReason, TurnStatus, Usage
from app.domain.judging.tasks import Trials
from app.infrastructure.persistence.bell import CANCELS
from app.infrastructure.persistence.models import (
    PromptMessage,
    PromptRoleEnum,
    PromptTurn,
    TurnChunk,
    Worker,
)
from app.infrastructure.persistence.session import Transaction

_flush = """
    WITH mine AS MATERIALIZED (SELECT id FROM workers WHERE id = %(owner)s AND fenced_at IS NULL FOR SHARE)
    INSERT INTO turn_chunks (turn_pk, first_seq, content, delta_lengths)
    SELECT chunk.* FROM mine, unnest(
        %(turn_pks)s::bigint[], %(first_seqs)s::int[], %(contents)s::text[], %(lengths)s::bytea[]
    ) AS chunk
    ON CONFLICT (turn_pk, first_seq)
    DO UPDATE SET content = EXCLUDED.content, delta_lengths = EXCLUDED.delta_lengths
    RETURNING turn_pk
    """
_cancels = """
    SELECT id FROM prompt_turns WHERE owner = %(owner)s AND status = 'running' AND cancel_requested_at IS NOT NULL
    """
_request_cancel = """
    WITH asked AS (
        UPDATE prompt_turns SET cancel_requested_at = coalesce(cancel_requested_at, now())
        WHERE id = %(turn_pk)s AND status = 'running' RETURNING id
    )
    SELECT pg_notify(%(channel)s, id::text) FROM asked
    """
# The session's row is locked before the turn's, which comes `FROM` it; see `SessionRepository.lock_session`. A run that
# is there already, whoever recorded it, is no reason to lose the turn.
_settle = """
    WITH session AS (
        UPDATE prompt_sessions SET total_tokens = total_tokens + %(prompt_tokens)s + %(completion_tokens)s
        WHERE id = %(session_id)s RETURNING id, exam_id
    ), ended AS (
        UPDATE prompt_turns SET
            status = %(status)s, finish_reason = %(finish_reason)s, error_code = %(error_code)s,
            error_message = %(error_message)s, error_retryable = %(error_retryable)s, delta_lengths = %(delta_lengths)s,
            prompt_tokens = %(prompt_tokens)s, completion_tokens = %(completion_tokens)s,
            cached_tokens = %(cached_tokens)s, reasoning_tokens = %(reasoning_tokens)s,
            usage_source = %(usage_source)s, ended_at = now(), first_token_ms = %(first_token_ms)s,
            duration_ms = %(duration_ms)s, labels = %(labels)s::text[]
        FROM session
        WHERE prompt_turns.id = %(turn_pk)s AND prompt_turns.session_id = session.id AND owner = %(owner)s
          AND status = 'running'
          AND {whose} (SELECT 1 FROM workers WHERE workers.id = %(owner)s AND fenced_at IS NULL)
        RETURNING prompt_turns.id, prompt_turns.session_id, prompt_turns.turn, exam_version, session.exam_id
    ), cleared AS (
        DELETE FROM turn_chunks USING ended WHERE turn_pk = ended.id
    ), called AS (
        INSERT INTO provider_calls (session_id, turn, purpose, model, prompt_tokens, completion_tokens, cached_tokens,
                                    reasoning_tokens, source, tokenizer, approximate, outcome, provider_ref)
        SELECT ended.session_id, ended.turn, call.* FROM ended, unnest(
            %(purposes)s::text[], %(models)s::text[], %(prompts)s::int[], %(completions)s::int[],
            %(cached)s::int[], %(reasoned)s::int[], %(sources)s::text[], %(tokenizers)s::text[],
            %(approximates)s::boolean[], %(outcomes)s::text[], %(refs)s::text[]
        ) AS call
    ), to_judge AS (
        INSERT INTO evaluation_runs (session_id, turn, revision, status,
                                     rubric_hash, prompt_hash, policy_hash, settings)
        SELECT ended.session_id, ended.turn, 1, 'waiting',
            coalesce(exam.settings ->> 'rubric', %(rubric)s::text),
            coalesce(
                exam.settings ->> 'judge_prompt',
                CASE WHEN exam.settings ->> 'language' = 'ko' THEN %(prompt_ko)s::text ELSE %(prompt_en)s::text END
            ),
            coalesce(exam.settings ->> 'score_policy', %(policy)s::text),
            jsonb_strip_nulls(jsonb_build_object(
                'model', coalesce(exam.settings ->> 'judge_model', %(judge_model)s::text),
                'samples', exam.settings -> 'samples',
                'trials', %(trials)s::text
            ))
        FROM ended LEFT JOIN exam_versions AS exam ON exam.exam_id = ended.exam_id AND exam.version = ended.exam_version
        WHERE %(judged)s::boolean AND coalesce(exam.settings ->> 'judge_model', %(judge_model)s::text) IS NOT NULL
        ON CONFLICT DO NOTHING
    )
    SELECT id FROM ended
    """
_settle_own = _settle.format(whose="EXISTS")
_settle_orphan = _settle.format(whose="NOT EXISTS")


def pack_lengths(lengths: Sequence[int]) -> bytes:
    """Lengths of deltas, in characters, as little-endian uint32."""
    return array("I", lengths).tobytes()


def unpack_lengths(packed: bytes) -> list[int]:
    """The inverse of `pack_lengths`."""
    return list(array("I", packed))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text of a running turn, from the delta ``first_seq`` on."""

    turn_pk: int
    first_seq: int
    content: str
    lengths: Sequence[int]


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One provider call as it is stored. ``tokenizer`` names what counted, where we did.

    ``provider_ref`` is the provider's own id of the call.
    """

    model: str
    usage: Usage
    outcome: str
    purpose: str = "chat"
    tokenizer: str | None = None
    approximate: bool = False
    provider_ref: str | None = None


@dataclass(frozen=True, slots=True)
class TurnEnding:
    """How a turn ended, as its row keeps it. An error's fields are set where ``status`` is failed or interrupted.

    ``labels`` are the guard's.
    """

    status: TurnStatus
    usage: Usage
    finish_reason: FinishReason | None = None
    error_code: str | None = None
    error_message: str | None = None
    error_retryable: bool | None = None
    lengths: Sequence[int] = ()
    first_token_ms: int | None = None
    duration_ms: int | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class JudgedBy:
    """What prompts are judged by where their exam does not say: hashes of documents, and the judge's ``model``.

    Without a model only those are judged whose exam names one. ``trials``: when a judge is tried, whoever it is.
    """

    rubric: str
    prompt_en: str
    prompt_ko: str
    policy: str
    model: str | None = None
    trials: str = Trials.SUSPICIOUS.value


@dataclass(frozen=True, slots=True)
class StoredText:
    """Text of a turn from the delta ``first_seq`` on, and the length of each delta in characters."""

    content: str
    lengths: list[int]
    first_seq: int = 1


class TurnRepository:
    """Reads and writes turns within the transaction at hand."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def find(self, session_id: int, client_turn_id: str) -> PromptTurn | None:
        """The turn with the client's id (as text)."""
        statement = select(PromptTurn).where(
            PromptTurn.session_id == session_id, PromptTurn.client_turn_id == client_turn_id
        )
        return (await self._db.scalars(statement)).first()

    async def find_in_the_way(self, session_id: int, client_turn_id: str) -> Sequence[PromptTurn]:
        """What a new turn has to mind: the turn with the same id, and the one that is running."""
        statement = select(PromptTurn).where(
            PromptTurn.session_id == session_id,
            or_(PromptTurn.client_turn_id == client_turn_id, PromptTurn.status == TurnStatus.RUNNING),
        )
        return (await self._db.scalars(statement)).all()

    async def get(self, turn_pk: int) -> PromptTurn | None:
        """The turn as it stands in the database now."""
        return await self._db.get(PromptTurn, turn_pk, populate_existing=True)

    async def flush(self, owner: int, chunks: Sequence[Chunk]) -> bool:
        """Make text of running turns safe, in one statement; ``False`` when the owner has been fenced.

        Text that was flushed already, by a commit of which nobody heard, may be flushed again with what follows.
        """
        rows = await self._db.run(
            _flush,
            {
                "owner": owner,
                "turn_pks": [chunk.turn_pk for chunk in chunks],
                "first_seqs": [chunk.first_seq for chunk in chunks],
                "contents": [chunk.content for chunk in chunks],
                "lengths": [pack_lengths(chunk.lengths) for chunk in chunks],
            },
        )
        return len(rows) == len(chunks)

    async def settle(
        self,
        turn_pk: int,
        session_id: int,
        owner: int,
        ending: TurnEnding,
        calls: Sequence[CallRecord] = (),
        *,
        judged_by: JudgedBy | None = None,
        after_fencing: bool = False,
    ) -> bool:
        """Write a turn's ending, its calls' rows in the ledger and the session's total, in one statement.

        With ``judged_by`` the prompt's judgement is recorded too, to be made by and by, if there is a judge for it.

        ``False`` when it is not the owner's to end any more: it has ended, or the owner was fenced. The transaction has
        to be given up then, for it may have counted the turn's tokens. With ``after_fencing`` somebody else ends it in
        the fenced owner's place, so the fence has to be there; an owner without a row counts as fenced.
        """
        rows = await self._db.run(
            _settle_orphan if after_fencing else _settle_own,
            {
                "turn_pk": turn_pk,
                "session_id": session_id,
                "owner": owner,
                "status": ending.status.value,
                "finish_reason": ending.finish_reason.value if ending.finish_reason else None,
                "error_code": ending.error_code,
                "error_message": ending.error_message,
                "error_retryable": ending.error_retryable,
                "delta_lengths": pack_lengths(ending.lengths),
                "prompt_tokens": ending.usage.prompt_tokens,
                "completion_tokens": ending.usage.completion_tokens,
                "cached_tokens": ending.usage.cached_tokens,
                "reasoning_tokens": ending.usage.reasoning_tokens,
                "usage_source": ending.usage.source,
                "first_token_ms": ending.first_token_ms,
                "duration_ms": ending.duration_ms,
                "labels": list(ending.labels) or None,
                "purposes": [call.purpose for call in calls],
                "models": [call.model for call in calls],
                "prompts": [call.usage.prompt_tokens for call in calls],
                "completions": [call.usage.completion_tokens for call in calls],
                "cached": [call.usage.cached_tokens for call in calls],
                "reasoned": [call.usage.reasoning_tokens for call in calls],
                "sources": [call.usage.source for call in calls],
                "tokenizers": [call.tokenizer for call in calls],
                "approximates": [call.approximate for call in calls],
                "outcomes": [call.outcome for call in calls],
                "judged": judged_by is not None,
                "judge_model": judged_by and judged_by.model,
                "trials": judged_by and judged_by.trials,
                "rubric": judged_by and judged_by.rubric,
                "prompt_en": judged_by and judged_by.prompt_en,
                "prompt_ko": judged_by and judged_by.prompt_ko,
                "policy": judged_by and judged_by.policy,
                "refs": [call.provider_ref for call in calls],
            },
        )
        return bool(rows)

    async def request_cancel(self, turn_pk: int) -> None:
        """Ask the process that runs the turn to cancel it; it is told with the commit, or finds it by itself."""
        await self._db.run(_request_cancel, {"turn_pk": turn_pk, "channel": CANCELS})

    async def cancels_requested(self, owner: int) -> Sequence[int]:
        """Keys of the owner's running turns that somebody wants cancelled."""
        return [row.id for row in await self._db.run(_cancels, {"owner": owner})]

    async def flushed_text(self, turn_pk: int, *, after_seq: int = 0) -> StoredText:
        """What is flushed of a running turn, from the first chunk that begins behind ``after_seq``."""
        statement = (
            select(TurnChunk.first_seq, TurnChunk.content, TurnChunk.delta_lengths)
            .where(TurnChunk.turn_pk == turn_pk, TurnChunk.first_seq > after_seq)
            .order_by(TurnChunk.first_seq)
        )
        rows = (await self._db.execute(statement)).all()
        lengths = unpack_lengths(b"".join(row.delta_lengths for row in rows))
        return StoredText("".join(row.content for row in rows), lengths, rows[0].first_seq if rows else after_seq + 1)

    async def stored_text(self, turn: PromptTurn) -> StoredText:
        """The text of a turn that has ended; empty where it has no assistant message."""
        statement = select(PromptMessage.content).where(
            PromptMessage.session_id == turn.session_id,
            PromptMessage.turn == turn.turn,
            PromptMessage.role == PromptRoleEnum.ASSISTANT,
        )
        content = (await self._db.scalars(statement)).first()
        return StoredText(content or "", unpack_lengths(turn.delta_lengths))

    async def user_message(self, turn: PromptTurn) -> str | None:
        """What the candidate said in this turn."""
        statement = select(PromptMessage.content).where(
            PromptMessage.session_id == turn.session_id,
            PromptMessage.turn == turn.turn,
            PromptMessage.role == PromptRoleEnum.USER,
        )
        return (await self._db.scalars(statement)).first()

    async def client_ids(self, session_id: int, turns: set[int]) -> dict[int, str | int]:
        """The clients' ids of some turns, by their number, each as its client wrote it."""
        statement = select(PromptTurn.turn, PromptTurn.client_turn_id, PromptTurn.turn_id_is_int).where(
            PromptTurn.session_id == session_id, PromptTurn.turn.in_(turns)
        )
        rows = await self._db.execute(statement)
        return {row.turn: int(row.client_turn_id) if row.turn_id_is_int else row.client_turn_id for row in rows}

    async def tokens_until(self, session_id: int, turn: int) -> int:
        """Tokens used by the session's turns up to and with this one, prompts and answers."""
        used = func.coalesce(func.sum(PromptTurn.prompt_tokens + PromptTurn.completion_tokens), 0)
        statement = select(used).where(PromptTurn.session_id == session_id, PromptTurn.turn <= turn)
        return int((await self._db.execute(statement)).scalar_one())

    async def running_of(self, owner: int) -> Sequence[int]:
        """Keys of the owner's running turns."""
        statement = select(PromptTurn.id).where(PromptTurn.owner == owner, PromptTurn.status == TurnStatus.RUNNING)
        return (await self._db.scalars(statement)).all()

    async def orphans(self, *, limit: int = 100) -> Sequence[PromptTurn]:
        """Running turns whose owner is fenced, or gone without a trace: anybody may settle them."""
        alive = select(Worker.id).where(Worker.id == PromptTurn.owner, Worker.fenced_at.is_(None))
        statement = (
            select(PromptTurn)
            .where(PromptTurn.status == TurnStatus.RUNNING, ~alive.exists())
            .order_by(PromptTurn.id)
            .limit(limit)
        )
        return (await self._db.scalars(statement)).all()

    async def sweep_chunks(self) -> None:
        """Remove chunks that a flush wrote in the same moment in which their turn ended."""
        ended = select(PromptTurn.id).where(PromptTurn.id == TurnChunk.turn_pk, PromptTurn.status != TurnStatus.RUNNING)
        await self._db.execute(delete(TurnChunk).where(ended.exists()).execution_options(synchronize_session=False))
