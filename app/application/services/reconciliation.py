"""Our ledger, the provider's bill and Core's books held against each other."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from app.core.errors import StartupError
from app.domain.ledger import Difference, DifferenceKind, Said, Scope, Tokens, Tolerance, model_key
from app.infrastructure.exports.bills import ChargedDay, ProviderExport, read_core_export
from app.infrastructure.repositories.reconciliation_repository import ReconciliationRepository, open_reconciliation

Kind = DifferenceKind
_EXACT = Tolerance()


@dataclass(frozen=True, slots=True)
class Exports:
    """The files to compare with; ``None`` is left out."""

    provider: Path | None = None
    core: Path | None = None


async def differences(exports: Exports, scope: Scope, tolerance: Tolerance) -> AsyncGenerator[Difference]:
    """Everything in which our ledger, the provider's export and Core's do not agree.

    Args:
        exports: the provider's and Core's files.
        scope: the part of our books in question.
        tolerance: for the provider's figures; Core has to have ours exactly.

    Raises:
        ExportError: a file cannot be taken.
        StartupError: what was asked for cannot be compared.
    """
    async with open_reconciliation() as books:
        days: dict[tuple[str, date], ChargedDay] | None = None
        provider = ProviderExport(exports.provider) if exports.provider is not None else None
        if provider is not None and provider.by_call:
            await books.load_charged(provider.calls())
        elif provider is not None:
            if scope.exam_id is not None:
                raise StartupError(
                    f"{exports.provider} has sums of models and days, which are not of one exam.",
                    "Leave out --exam, or export the single calls with their ids.",
                )
            days = _sum_days(provider.days())
        if exports.core is not None:
            await books.load_kept(read_core_export(exports.core))
        with_ids = await books.begin_comparing()
        if days is not None:
            for difference in _compare_days(await books.days(scope), days, scope, tolerance):
                yield difference
        elif provider is not None:
            async for difference in _of_provider(books, scope, tolerance):
                yield difference
        if exports.core is not None:
            async for difference in _of_core(books, scope, with_ids=with_ids):
                yield difference
        async for row in books.own_books(scope):
            detail = f"ledger {row.total} (chat {row.chat}), told Core {row.told}, the session's total {row.shown}"
            yield Difference(kind=Kind.OWN_BOOKS_DIFFER, where={"session_id": row.session_id}, detail=detail)


async def _of_provider(
    books: ReconciliationRepository, scope: Scope, tolerance: Tolerance
) -> AsyncIterator[Difference]:
    async for row in books.charged_calls(scope, tolerance):
        yield _charged_call(row)
    async for row in books.calls_without_ref(scope):
        yield Difference(
            kind=Kind.NO_PROVIDER_ID,
            where=_call(row),
            ours=_ours(row),
            detail="an estimate that no row of the export can confirm; correct it with `turnstone usage adjust`",
        )
    async for row in books.unknown_calls():
        yield Difference(
            kind=Kind.UNKNOWN_TO_US,
            where={"provider_ref": row.ref, "model": row.model},
            line=row.line,
            theirs=Said(row.prompt, row.completion, row.cached, row.reasoning),
        )


def _charged_call(row: Any) -> Difference:
    ours, where = _ours(row), {**_call(row), "provider_ref": row.ref}
    theirs = Said(row.said_prompt, row.said_completion, row.said_cached, row.said_reasoning) if row.rows else None
    detail = f"{row.calls} calls of ours have this id, {row.rows} rows of the export" if row.calls != row.rows else ""
    if row.rows != row.calls:
        kind = Kind.DOUBLED_AT_PROVIDER if row.rows > row.calls else Kind.MISSING_AT_PROVIDER
        return Difference(kind=kind, where=where, line=row.line, ours=ours, theirs=theirs, detail=detail)
    kind = Kind.PROVIDER_FIGURES_DIFFER if row.settled else Kind.ESTIMATE_DIFFERS
    if row.calls > 1:  # which of them is wrong, nobody knows
        detail = f"sums of {row.calls} calls that have this id"
        return Difference(kind=kind, where=where, line=row.line, ours=ours, theirs=theirs, detail=detail)
    assert theirs is not None, "there is a row"
    return Difference(kind=kind, where=where, line=row.line, ours=ours, theirs=theirs, proposal=theirs.over(ours))


def _sum_days(rows: Iterable[ChargedDay]) -> dict[tuple[str, date], ChargedDay]:
    """The provider's sums of each model and day; the line is the first one's."""
    sums: dict[tuple[str, date], ChargedDay] = {}
    for row in rows:
        key = model_key(row.model), row.day
        before = sums.get(key)
        sums[key] = row if before is None else ChargedDay(before.line, row.day, before.model, before.said + row.said)
    return sums


def _compare_days(
    rows: Iterable[Any], theirs: dict[tuple[str, date], ChargedDay], scope: Scope, tolerance: Tolerance
) -> Iterable[Difference]:
    ours: dict[tuple[str, date], Tokens] = {}
    for row in rows:
        key = model_key(row.model), row.day
        ours[key] = ours.get(key, Tokens()) + _ours(row)
    meant = {key for key in theirs if _within(key[1], scope)}
    for key in sorted(ours.keys() | meant, key=lambda key: (key[1], key[0])):
        used, charged = ours.get(key, Tokens()), theirs.get(key)
        said = charged.said if charged is not None else Said(0, 0)
        if not tolerance.equal(used, said):
            yield Difference(
                kind=Kind.PROVIDER_SUM_DIFFERS,
                where={"model": key[0], "day": key[1].isoformat()},
                line=charged.line if charged is not None else None,
                ours=used,
                theirs=said,
            )


def _within(day: date, scope: Scope) -> bool:
    """Whether a day (UTC) has anything of the scope's time in it."""
    begins = datetime.combine(day, time(), UTC)
    ends = begins + timedelta(days=1)
    return (scope.since is None or ends > scope.since) and (scope.until is None or begins < scope.until)


async def _of_core(books: ReconciliationRepository, scope: Scope, *, with_ids: bool) -> AsyncIterator[Difference]:
    if with_ids:
        async for row in books.kept_events(scope):
            for difference in _kept_event(row):
                yield difference
        async for row in books.missing_events(scope):
            yield _missing_event(row)
        async for row in books.unknown_events():
            yield Difference(
                kind=Kind.UNKNOWN_EVENT,
                where={"session_id": row.session_id, "turn": row.turn, "event_id": row.event_id},
                line=row.line,
                theirs=Said(row.prompt, row.completion, row.cached),
            )
    async for row in books.kept_sums(scope):
        yield Difference(
            kind=Kind.CORE_SUM_DIFFERS,
            where={"session_id": row.session_id},
            line=row.line,
            ours=Tokens(row.prompt, row.completion, row.cached),
            theirs=Said(row.said_prompt, row.said_completion, row.said_cached),
        )


def _kept_event(row: Any) -> Iterable[Difference]:
    where = {"session_id": row.our_session_id, "turn": row.our_turn, "event_id": row.event_id}
    ours = Tokens(row.prompt, row.completion, row.cached)
    theirs = Said(row.said_prompt, row.said_completion, row.said_cached)
    if row.line > row.first_line:
        detail = f"line {row.first_line} has this event already"
        yield Difference(kind=Kind.DOUBLED_AT_CORE, where=where, line=row.line, ours=ours, theirs=theirs, detail=detail)
    if row.differs:
        detail = ""
        if _EXACT.equal(ours, theirs):
            detail = "its session, turn, purpose or total is another one"
        yield Difference(
            kind=Kind.CORE_FIGURES_DIFFER, where=where, line=row.line, ours=ours, theirs=theirs, detail=detail
        )


def _missing_event(row: Any) -> Difference:
    again = f"`turnstone callbacks replay {row.event_id}` sends it again"
    kind, detail = {
        "delivered": (Kind.MISSING_AT_CORE, f"Core had taken it; {again}"),
        "failed": (Kind.DELIVERY_FAILED, again),
    }.get(row.status, (Kind.NOT_DELIVERED_YET, f"it is {row.status}"))
    where = {"session_id": row.session_id, "turn": row.turn, "event_id": row.event_id}
    return Difference(kind=kind, where=where, ours=Tokens(row.prompt, row.completion, row.cached), detail=detail)


def _call(row: Any) -> dict[str, int | str | None]:
    about = {"session_id": row.session_id, "turn": row.turn, "purpose": row.purpose, "model": row.model}
    return {**about, "call": row.call}


def _ours(row: Any) -> Tokens:
    return Tokens(row.prompt, row.completion, row.cached, row.reasoning)
