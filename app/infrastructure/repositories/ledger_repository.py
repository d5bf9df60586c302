"""The ledger: what every provider call used, its corrections, and sums of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, LiteralString

from sqlalchemy import select, update

from app.domain.conversation import UsageSource
from app.domain.ledger import Scope, Tokens
from app.infrastructure.persistence.models import PromptSession, ProviderCall
from app.infrastructure.persistence.session import Transaction

ReportKey = Literal["participant", "model", "day", "purpose", "session"]

# A correction belongs to the time of the call that it corrects, whenever it was made.
_report = """
    SELECT {key} AS key,
           count(*) FILTER (WHERE entry.adjusts IS NULL) AS calls,
           count(*) FILTER (WHERE entry.adjusts IS NULL AND entry.source = 'provider') AS from_provider,
           count(*) FILTER (WHERE entry.adjusts IS NULL AND entry.source <> 'provider') AS counted,
           count(*) FILTER (WHERE entry.adjusts IS NULL AND entry.approximate) AS approximate,
           coalesce(sum(entry.prompt_tokens) FILTER (WHERE entry.adjusts IS NULL), 0) AS prompt,
           coalesce(sum(entry.completion_tokens) FILTER (WHERE entry.adjusts IS NULL), 0) AS completion,
           coalesce(sum(entry.cached_tokens) FILTER (WHERE entry.adjusts IS NULL), 0) AS cached,
           coalesce(sum(entry.reasoning_tokens) FILTER (WHERE entry.adjusts IS NULL), 0) AS reasoning,
           count(*) FILTER (WHERE entry.adjusts IS NOT NULL) AS corrections,
           coalesce(sum(entry.prompt_tokens) FILTER (WHERE entry.adjusts IS NOT NULL), 0) AS corrected_prompt,
           coalesce(sum(entry.completion_tokens) FILTER (WHERE entry.adjusts IS NOT NULL), 0) AS corrected_completion,
           coalesce(sum(entry.cached_tokens) FILTER (WHERE entry.adjusts IS NOT NULL), 0) AS corrected_cached,
           coalesce(sum(entry.reasoning_tokens) FILTER (WHERE entry.adjusts IS NOT NULL), 0) AS corrected_reasoning
    FROM provider_calls AS entry
    LEFT JOIN provider_calls AS corrected ON corrected.id = entry.adjusts
    JOIN prompt_sessions AS session ON session.id = entry.session_id
    WHERE (%(exam_id)s::bigint IS NULL OR session.exam_id = %(exam_id)s)
      AND (%(since)s::timestamptz IS NULL OR coalesce(corrected.created_at, entry.created_at) >= %(since)s)
      AND (%(until)s::timestamptz IS NULL OR coalesce(corrected.created_at, entry.created_at) < %(until)s)
    GROUP BY 1 ORDER BY 1
    """
# Work on a whole session is a submission's: its panel, and the review of its code.
_exam = """
    SELECT CASE WHEN entry.purpose <> 'evaluation' THEN entry.purpose
                WHEN entry.turn IS NULL THEN 'submissions' ELSE 'prompts' END AS part,
           entry.model,
           array_agg(DISTINCT entry.session_id) AS sessions,
           count(*) FILTER (WHERE entry.adjusts IS NULL) AS calls,
           sum(entry.prompt_tokens)::bigint AS prompt, sum(entry.completion_tokens)::bigint AS completion,
           sum(entry.cached_tokens)::bigint AS cached, sum(entry.reasoning_tokens)::bigint AS reasoning
    FROM provider_calls AS entry JOIN prompt_sessions AS session ON session.id = entry.session_id
    WHERE session.exam_id = %(exam_id)s
    GROUP BY 1, 2 ORDER BY 1, 2
    """
_day = "(coalesce(corrected.created_at, entry.created_at) AT TIME ZONE 'UTC')::date"
_reports: Mapping[ReportKey | None, LiteralString] = {
    None: _report.format(key="'all'::text"),
    "participant": _report.format(key="session.participant_id"),
    "model": _report.format(key="entry.model"),
    "day": _report.format(key=_day),
    "purpose": _report.format(key="entry.purpose"),
    "session": _report.format(key="entry.session_id"),
}


@dataclass(frozen=True, slots=True)
class ReportLine:
    """What a group of calls used.

    Attributes:
        key: the group's participant, model, day (UTC), purpose or session, as text.
        calls: how many; ``from_provider`` have the provider's figures, ``counted`` ours, and of the latter
            ``approximate`` were counted by another model's tokenizer.
        used: as it was recorded.
        corrections: how many there are of these calls; ``corrected`` is their sum.
    """

    key: str
    calls: int
    from_provider: int
    counted: int
    approximate: int
    used: Tokens
    corrections: int
    corrected: Tokens

    def __add__(self, other: ReportLine) -> ReportLine:
        return ReportLine(
            self.key,
            self.calls + other.calls,
            self.from_provider + other.from_provider,
            self.counted + other.counted,
            self.approximate + other.approximate,
            self.used + other.used,
            self.corrections + other.corrections,
            self.corrected + other.corrected,
        )


@dataclass(frozen=True, slots=True)
class ExamPart:
    """What one kind of work of an exam used with one model, corrections included.

    ``part`` is ``chat``, ``prompts`` (judging them), ``submissions`` (panels and reviews), or another purpose.
    """

    part: str
    model: str
    sessions: frozenset[int]
    calls: int
    used: Tokens


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A call of the ledger and what it used, corrections included."""

    id: int
    session_id: int
    turn: int | None
    purpose: str
    model: str
    source: str
    outcome: str
    provider_ref: str | None
    created_at: datetime
    used: Tokens
    corrections: int


class LedgerRepository:
    """Reads the ledger and adds to it within the transaction at hand. Nothing here changes a row."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def report(self, scope: Scope, by: ReportKey | None = None) -> list[ReportLine]:
        """Sums of a part of the ledger by a key, in its order. Nothing there: no line."""
        values = {"exam_id": scope.exam_id, "since": scope.since, "until": scope.until}
        return [_line(row) for row in await self._db.run(_reports[by], values)]

    async def exam(self, exam_id: int) -> list[ExamPart]:
        """What an exam used, by kind of work and model."""
        return [
            ExamPart(
                row.part,
                row.model,
                frozenset(row.sessions),
                row.calls,
                Tokens(row.prompt, row.completion, row.cached, row.reasoning),
            )
            for row in await self._db.run(_exam, {"exam_id": exam_id})
        ]

    async def session_of(self, call_id: int) -> int | None:
        """Whose call it is; ``None`` where there is no such call, or it is a correction."""
        statement = select(ProviderCall.session_id).where(ProviderCall.id == call_id, ProviderCall.adjusts.is_(None))
        return (await self._db.scalars(statement)).first()

    async def entries(
        self, session_id: int, *, call_id: int | None = None, turn: int | None = None, purpose: str | None = None
    ) -> list[LedgerEntry]:
        """A session's calls in order, with what they used by now; each filter may be left out."""
        statement = select(ProviderCall).where(ProviderCall.session_id == session_id).order_by(ProviderCall.id)
        rows = (await self._db.scalars(statement)).all()
        corrections: dict[int, list[ProviderCall]] = {}
        for row in rows:
            if row.adjusts is not None:
                corrections.setdefault(row.adjusts, []).append(row)
        return [
            _entry(row, corrections.get(row.id, ()))
            for row in rows
            if row.adjusts is None
            and (call_id is None or row.id == call_id)
            and (turn is None or row.turn == turn)
            and (purpose is None or row.purpose == purpose)
        ]

    async def add_correction(self, entry: LedgerEntry, difference: Tokens, reason: str, source: UsageSource) -> None:
        """Add a row with the difference, and to the session's total where the chat's figures change.

        The session's row has to be locked: so the figures that the difference was made of are still those.
        """
        self._db.add(
            ProviderCall(
                session_id=entry.session_id,
                turn=entry.turn,
                purpose=entry.purpose,
                model=entry.model,
                prompt_tokens=difference.prompt,
                completion_tokens=difference.completion,
                cached_tokens=difference.cached,
                reasoning_tokens=difference.reasoning,
                source=source,
                outcome="adjusted",
                adjusts=entry.id,
                reason=reason,
            )
        )
        await self._db.flush()
        if entry.purpose == "chat":
            total = PromptSession.total_tokens + difference.total
            await self._db.execute(
                update(PromptSession)
                .where(PromptSession.id == entry.session_id)
                .values(total_tokens=total)
                .execution_options(synchronize_session=False)
            )


def _line(row: Any) -> ReportLine:
    return ReportLine(
        str(row.key),
        row.calls,
        row.from_provider,
        row.counted,
        row.approximate,
        Tokens(int(row.prompt), int(row.completion), int(row.cached), int(row.reasoning)),
        row.corrections,
        Tokens(
            int(row.corrected_prompt),
            int(row.corrected_completion),
            int(row.corrected_cached),
            int(row.corrected_reasoning),
        ),
    )


def _entry(call: ProviderCall, corrections: Sequence[ProviderCall]) -> LedgerEntry:
    used = sum((_tokens(row) for row in corrections), start=_tokens(call))
    return LedgerEntry(
        call.id,
        call.session_id,
        call.turn,
        call.purpose,
        call.model,
        call.source,
        call.outcome,
        call.provider_ref,
        call.created_at,
        used,
        len(corrections),
    )


def _tokens(row: ProviderCall) -> Tokens:
    return Tokens(row.prompt_tokens, row.completion_tokens, row.cached_tokens, row.reasoning_tokens)
