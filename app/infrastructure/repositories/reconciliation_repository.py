"""Exports beside our own books: loaded into temporary tables of one connection, compared by the database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, LiteralString

from app.domain.ledger import Said, Scope, Tolerance
from app.infrastructure.exports.bills import ChargedCall, KeptEvent
from app.infrastructure.persistence.session import Transaction, get_db_context

_BATCH = 10_000
"""Rows of one transaction: one that writes, and stays open, would keep the feed of callbacks waiting."""

_tables = """
    DROP TABLE IF EXISTS pg_temp.charged, pg_temp.kept;
    CREATE TEMPORARY TABLE charged (
        line bigint, ref text, model text, prompt bigint, completion bigint, cached bigint, reasoning bigint
    );
    CREATE TEMPORARY TABLE kept (
        line bigint, event_id text, session_id bigint, turn int, purpose text, prompt bigint, completion bigint,
        cached bigint, total bigint
    )
    """
_drop = "DROP TABLE IF EXISTS pg_temp.charged, pg_temp.kept"
_copy_charged = "COPY pg_temp.charged (line, ref, model, prompt, completion, cached, reasoning) FROM STDIN"
_copy_kept = """
    COPY pg_temp.kept (line, event_id, session_id, turn, purpose, prompt, completion, cached, total) FROM STDIN
    """
_analyze = "ANALYZE pg_temp.charged, pg_temp.kept"
_one_view = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


# The calls in question with what they used by now. `settled`: their figures are the provider's.
_calls = """
    calls AS (
        SELECT call.id AS call, call.session_id, call.turn, call.purpose, call.model, call.provider_ref AS ref,
               call.created_at,
               call.prompt_tokens + coalesce(correction.prompt, 0) AS prompt,
               call.completion_tokens + coalesce(correction.completion, 0) AS completion,
               call.cached_tokens + coalesce(correction.cached, 0) AS cached,
               call.reasoning_tokens + coalesce(correction.reasoning, 0) AS reasoning,
               call.source = 'provider' OR coalesce(correction.settled, false) AS settled
        FROM provider_calls AS call
        JOIN prompt_sessions AS session ON session.id = call.session_id
        LEFT JOIN (
            SELECT adjusts, sum(prompt_tokens) AS prompt, sum(completion_tokens) AS completion,
                   sum(cached_tokens) AS cached, sum(reasoning_tokens) AS reasoning,
                   bool_or(source = 'provider') AS settled
            FROM provider_calls WHERE adjusts IS NOT NULL GROUP BY adjusts
        ) AS correction ON correction.adjusts = call.id
        WHERE call.adjusts IS NULL
          AND (%(exam_id)s::bigint IS NULL OR session.exam_id = %(exam_id)s)
          AND (%(since)s::timestamptz IS NULL OR call.created_at >= %(since)s)
          AND (%(until)s::timestamptz IS NULL OR call.created_at < %(until)s)
    )
    """

_events = """
    every AS (
        SELECT event.event_id, event.session_id, event.status, event.type, (event.payload ->> 'turn')::int AS turn,
               event.payload ->> 'purpose' AS purpose, (event.payload ->> 'prompt_tokens')::bigint AS prompt,
               (event.payload ->> 'completion_tokens')::bigint AS completion,
               (event.payload ->> 'cached_tokens')::bigint AS cached,
               (event.payload ->> 'total_tokens')::bigint AS total,
               (%(exam_id)s::bigint IS NULL OR session.exam_id = %(exam_id)s)
               AND (%(since)s::timestamptz IS NULL OR event.occurred_at >= %(since)s)
               AND (%(until)s::timestamptz IS NULL OR event.occurred_at < %(until)s) AS meant
        FROM callbacks AS event JOIN prompt_sessions AS session ON session.id = event.session_id
        WHERE event.type IN ('usage', 'usage_adjusted')
    )
    """
_differs = """
    (kept.session_id <> every.session_id OR kept.prompt <> every.prompt OR kept.completion <> every.completion
     OR coalesce(kept.turn <> every.turn, kept.turn IS NOT NULL AND every.turn IS NULL)
     OR coalesce(kept.purpose <> every.purpose, false) OR coalesce(kept.cached <> every.cached, false)
     OR coalesce(kept.total <> every.total, false))
    """


def _near(ours: LiteralString, theirs: LiteralString) -> LiteralString:
    return f"abs({ours} - {theirs}) <= greatest(%(tokens)s, %(share)s::float8 * abs({ours}))"


_all_near = " AND ".join(
    (
        _near("prompt", "said_prompt"),
        _near("completion", "said_completion"),
        _near("cached", "coalesce(said_cached, cached)"),
        _near("reasoning", "coalesce(said_reasoning, reasoning)"),
    )
)


def _completed(statement: LiteralString) -> LiteralString:
    """A statement with the parts that several of them share."""
    parts = {"calls": _calls, "every": _events, "differs": _differs, "all_near": _all_near}
    for name, part in parts.items():
        statement = statement.replace(f"{{{name}}}", part)
    return statement


# Where several calls or rows have one id, their sums are compared. A figure that not all rows have is not.
_charged_calls = _completed(
    """
    WITH {calls}, ours AS (
        SELECT ref, count(*) AS calls, min(call) AS call, min(session_id) AS session_id, min(turn) AS turn,
               min(purpose) AS purpose, min(model) AS model, bool_and(settled) AS settled,
               sum(prompt)::bigint AS prompt, sum(completion)::bigint AS completion,
               sum(cached)::bigint AS cached, sum(reasoning)::bigint AS reasoning
        FROM calls WHERE ref IS NOT NULL GROUP BY ref
    ), theirs AS (
        SELECT ref, count(*) AS rows, min(line) AS line,
               sum(prompt)::bigint AS said_prompt, sum(completion)::bigint AS said_completion,
               CASE WHEN count(cached) = count(*) THEN sum(cached)::bigint END AS said_cached,
               CASE WHEN count(reasoning) = count(*) THEN sum(reasoning)::bigint END AS said_reasoning
        FROM pg_temp.charged GROUP BY ref
    )
    SELECT ours.*, coalesce(rows, 0) AS rows, line, said_prompt, said_completion, said_cached, said_reasoning
    FROM ours LEFT JOIN theirs USING (ref)
    WHERE (rows IS NULL AND prompt + completion > 0) OR rows <> calls
       OR NOT ({all_near})
    ORDER BY ours.call
    """
)
_without_ref = _completed(
    """
    WITH {calls}
    SELECT * FROM calls WHERE ref IS NULL AND prompt + completion > 0 AND NOT settled ORDER BY call
    """
)
_unknown_calls = """
    SELECT charged.* FROM pg_temp.charged
    WHERE NOT EXISTS (SELECT FROM provider_calls WHERE provider_ref = charged.ref) ORDER BY line
    """
_days = _completed(
    """
    WITH {calls}
    SELECT model, (created_at AT TIME ZONE 'UTC')::date AS day, sum(prompt)::bigint AS prompt,
           sum(completion)::bigint AS completion, sum(cached)::bigint AS cached, sum(reasoning)::bigint AS reasoning
    FROM calls GROUP BY 1, 2
    """
)

_kept_events = _completed(
    """
    WITH {every}, kept AS (
        SELECT *, first_value(line) OVER (PARTITION BY event_id ORDER BY line) AS first_line
        FROM pg_temp.kept WHERE event_id IS NOT NULL
    )
    SELECT kept.line, kept.event_id, kept.session_id, kept.turn, kept.first_line, {differs} AS differs,
           every.session_id AS our_session_id, every.turn AS our_turn, every.prompt, every.completion, every.cached,
           kept.prompt AS said_prompt, kept.completion AS said_completion, kept.cached AS said_cached
    FROM kept JOIN every USING (event_id)
    WHERE every.meant AND (kept.line > kept.first_line OR {differs})
    ORDER BY kept.line
    """
)
_missing_events = _completed(
    """
    WITH {every}
    SELECT * FROM every
    WHERE meant AND NOT EXISTS (SELECT FROM pg_temp.kept WHERE kept.event_id = every.event_id)
    ORDER BY session_id, event_id
    """
)
_unknown_events = """
    SELECT * FROM pg_temp.kept
    WHERE event_id IS NOT NULL AND NOT EXISTS (SELECT FROM callbacks WHERE callbacks.event_id = kept.event_id)
    ORDER BY line
    """
# Of ours counts what Core has said it has, and what its export says it has; of theirs what is not out of question.
_kept_sums = _completed(
    """
    WITH {every}, ours AS (
        SELECT session_id, sum(prompt)::bigint AS prompt, sum(completion)::bigint AS completion,
               sum(cached)::bigint AS cached
        FROM every
        WHERE meant AND (
            status = 'delivered' OR EXISTS (SELECT FROM pg_temp.kept WHERE kept.event_id = every.event_id)
        )
        GROUP BY session_id
    ), theirs AS (
        SELECT kept.session_id, min(kept.line) AS line, sum(kept.prompt)::bigint AS said_prompt,
               sum(kept.completion)::bigint AS said_completion,
               CASE WHEN count(kept.cached) = count(*) THEN sum(kept.cached)::bigint END AS said_cached
        FROM pg_temp.kept LEFT JOIN every ON every.event_id = kept.event_id
        WHERE coalesce(every.meant, true)
        GROUP BY kept.session_id
    )
    SELECT session_id, line, coalesce(prompt, 0) AS prompt, coalesce(completion, 0) AS completion,
           coalesce(cached, 0) AS cached, coalesce(said_prompt, 0) AS said_prompt,
           coalesce(said_completion, 0) AS said_completion, said_cached
    FROM ours FULL JOIN theirs USING (session_id)
    WHERE coalesce(prompt, 0) <> coalesce(said_prompt, 0) OR coalesce(completion, 0) <> coalesce(said_completion, 0)
       OR coalesce(cached, 0) <> coalesce(said_cached, cached, 0)
    ORDER BY session_id
    """
)
_own_books = _completed(
    """
    WITH {calls}, meant AS (SELECT DISTINCT session_id FROM calls), ledger AS (
        SELECT session_id, sum(prompt_tokens + completion_tokens)::bigint AS total,
               coalesce(sum(prompt_tokens + completion_tokens) FILTER (WHERE purpose = 'chat'), 0)::bigint AS chat
        FROM provider_calls JOIN meant USING (session_id) GROUP BY session_id
    ), told AS (
        SELECT session_id, sum((payload ->> 'total_tokens')::bigint)::bigint AS total
        FROM callbacks JOIN meant USING (session_id) WHERE type IN ('usage', 'usage_adjusted') GROUP BY session_id
    )
    SELECT ledger.session_id, ledger.total, ledger.chat, coalesce(told.total, 0) AS told,
           session.total_tokens AS shown
    FROM ledger JOIN prompt_sessions AS session ON session.id = ledger.session_id LEFT JOIN told USING (session_id)
    WHERE ledger.chat <> session.total_tokens OR ledger.total <> coalesce(told.total, 0)
    ORDER BY ledger.session_id
    """
)


class ReconciliationRepository:
    """Holds exports beside our tables; `open_reconciliation` makes one. Its rows come a few at a time."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def load_charged(self, calls: Iterable[ChargedCall]) -> int:
        """Take a provider's calls; returns how many there are."""
        rows = ((c.line, c.ref, c.model, *_figures(c.said), c.said.reasoning) for c in calls)
        return await self._load(_copy_charged, rows)

    async def load_kept(self, events: Iterable[KeptEvent]) -> int:
        """Take Core's events; returns how many there are."""
        rows = ((e.line, e.event_id, e.session_id, e.turn, e.purpose, *_figures(e.said), e.total) for e in events)
        return await self._load(_copy_kept, rows)

    async def begin_comparing(self) -> bool:
        """Everything is loaded; from here on all is seen as it was at one moment. Returns whether Core gave ids."""
        await self._db.run(_analyze, {})
        await self._db.commit()
        await self._db.run(_one_view, {})
        [kept] = await self._db.run(
            "SELECT count(event_id) > 0 OR count(*) = 0 AS with_ids FROM (SELECT * FROM pg_temp.kept LIMIT 1) AS first",
            {},
        )
        return bool(kept.with_ids)

    def charged_calls(self, scope: Scope, tolerance: Tolerance) -> AsyncIterator[Any]:
        """Our calls with an id that the provider has not, has more or less often, or with other figures."""
        limits = {"tokens": tolerance.tokens, "share": tolerance.share}
        return self._db.run_streaming(_charged_calls, {**_values(scope), **limits})

    def calls_without_ref(self, scope: Scope) -> AsyncIterator[Any]:
        """Our calls that have no provider's id and figures of our own."""
        return self._db.run_streaming(_without_ref, _values(scope))

    def unknown_calls(self) -> AsyncIterator[Any]:
        """The provider's calls that are nowhere in our ledger."""
        return self._db.run_streaming(_unknown_calls, {})

    async def days(self, scope: Scope) -> Sequence[Any]:
        """Our sums of each model and day (UTC)."""
        return await self._db.run(_days, _values(scope))

    def kept_events(self, scope: Scope) -> AsyncIterator[Any]:
        """Core's events that are doubled or say something else than ours of the same id."""
        return self._db.run_streaming(_kept_events, _values(scope))

    def missing_events(self, scope: Scope) -> AsyncIterator[Any]:
        """Our events that Core has not."""
        return self._db.run_streaming(_missing_events, _values(scope))

    def unknown_events(self) -> AsyncIterator[Any]:
        """Core's events that we never recorded."""
        return self._db.run_streaming(_unknown_events, {})

    def kept_sums(self, scope: Scope) -> AsyncIterator[Any]:
        """Sessions of which Core has another sum than what we have delivered."""
        return self._db.run_streaming(_kept_sums, _values(scope))

    def own_books(self, scope: Scope) -> AsyncIterator[Any]:
        """Sessions whose ledger, callbacks and total do not say the same."""
        return self._db.run_streaming(_own_books, _values(scope))

    async def _load(self, statement: LiteralString, rows: Iterator[tuple[Any, ...]]) -> int:
        count = 0
        while batch := list(islice(rows, _BATCH)):
            await self._db.copy(statement, batch)
            await self._db.commit()
            count += len(batch)
        return count


def _figures(said: Said) -> tuple[int | None, int | None, int | None]:
    return said.prompt, said.completion, said.cached


def _values(scope: Scope) -> dict[str, Any]:
    return {"exam_id": scope.exam_id, "since": scope.since, "until": scope.until}


@asynccontextmanager
async def open_reconciliation() -> AsyncIterator[ReconciliationRepository]:
    """A place on a connection of its own, gone with everything loaded when the block ends."""
    async with get_db_context() as db:
        for statement in _tables.split(";"):
            await db.run(statement, {})
        await db.commit()
        yield ReconciliationRepository(db)
        await db.commit()
        await db.run(_drop, {})
