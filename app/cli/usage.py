"""``turnstone usage``: what the calls to the provider used, and corrections of it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.console import LARGEST_ID, AsJson, SessionId, is_text, no_such, when, with_database
from app.domain.ledger import LARGEST_FIGURE

if TYPE_CHECKING:
    from app.domain.ledger import Tokens
    from app.infrastructure.repositories.ledger_repository import ReportLine

cli = typer.Typer(help="What provider calls used: sums, corrections, and the bills they have to match.")

Key = Literal["participant", "model", "day", "purpose", "session"]
_LONGEST_REASON = 500


def moment(text: str) -> datetime:
    """A day or a moment of the command line; UTC where it does not say otherwise."""
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter("write it as 2026-11-27 or 2026-11-27T08:30 (UTC), or with an offset.") from None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value


Exam = Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="Only this exam's.")]
Since = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="MOMENT", help="Only calls that ended then or later: a day or moment, UTC."),
]
Until = Annotated[
    datetime | None,
    typer.Option(parser=moment, metavar="MOMENT", help="Only calls that ended before: a day or moment, UTC."),
]
_Figure = Annotated[int | None, typer.Option(min=0, max=LARGEST_FIGURE, help="What it should be.")]


@cli.command("report")
def report(
    exam: Exam = None,
    by: Annotated[Key | None, typer.Option(help="A line for each; days are UTC.")] = None,
    since: Since = None,
    until: Until = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV, for other programs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sum up what calls used, corrections apart. A correction counts when its call did."""
    if as_csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json.")

    async def show() -> None:
        from app.domain.ledger import Scope
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.ledger_repository import LedgerRepository

        async with get_db_context() as db:
            lines = await LedgerRepository(db).report(Scope(exam, since, until), by)
        if as_json:
            for line in lines:
                typer.echo(json.dumps(_fields(line, by)))
        elif as_csv:
            _write_csv(lines, by)
        else:
            _print_table(lines, by)

    with_database(show)


@cli.command("calls")
def list_calls(session_id: SessionId, as_json: AsJson = False) -> None:
    """List a session's calls with what they used, corrections included."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.ledger_repository import LedgerRepository
        from app.infrastructure.repositories.session_repository import SessionRepository

        async with get_db_context() as db:
            if await SessionRepository(db).get_session(session_id) is None:
                raise no_such("session", session_id)
            entries = await LedgerRepository(db).entries(session_id)
        for entry in entries:
            if as_json:
                about = {"call": entry.id, "session_id": str(entry.session_id), "turn": entry.turn}
                about |= {"purpose": entry.purpose, "model": entry.model, "source": entry.source}
                about |= {"outcome": entry.outcome, "provider_ref": entry.provider_ref}
                about |= {"created_at": entry.created_at.astimezone(UTC).isoformat(), "corrections": entry.corrections}
                typer.echo(json.dumps({**about, **_figures(entry.used)}, ensure_ascii=False))
                continue
            place = f"{entry.id:>6}  turn {'–' if entry.turn is None else entry.turn}  {entry.purpose}  {entry.model}"
            used = f"{entry.used.prompt} + {entry.used.completion} tokens ({entry.source})"
            corrections = f"  {entry.corrections} corrections" if entry.corrections else ""
            ref = entry.provider_ref or "no provider's id"
            ended = when(entry.created_at.astimezone(UTC))
            typer.echo(f"{place}  {used}{corrections}  {entry.outcome}  {ended}  {ref}")

    with_database(show)


@cli.command("adjust")
def adjust(
    reason: Annotated[str, typer.Option(help="Why; Core is told.")],
    call: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="The call, by its id in the ledger.")] = None,
    session: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="Or its session,")] = None,
    turn: Annotated[int | None, typer.Option(min=1, max=2**31 - 1, help="and turn, if it belongs to one,")] = None,
    purpose: Annotated[str, typer.Option(help="and what it was for: chat, guard, judge.")] = "chat",
    prompt_tokens: _Figure = None,
    completion_tokens: _Figure = None,
    cached_tokens: _Figure = None,
    reasoning_tokens: _Figure = None,
    source: Annotated[Literal["provider", "counted"], typer.Option(help="Whose figures they are.")] = "provider",
) -> None:
    """Correct one call to the figures it should have; those that are not given stay. Twice is as good as once.

    The ledger gets a row with the differences, Core a usage_adjusted. A running service delivers it.
    """
    if (call is None) == (session is None) or (call is not None and turn is not None):
        raise typer.BadParameter("say which call: either --call, or --session and --turn.")
    if not reason.strip() or len(reason) > _LONGEST_REASON or not is_text(reason):
        raise typer.BadParameter(f"the reason is a text of 1 to {_LONGEST_REASON} characters.", param_hint="--reason")
    if {prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens} == {None}:
        raise typer.BadParameter("give at least one figure, such as --completion-tokens.")

    async def correct() -> None:
        from app.application.services.ledger_service import adjust_call, find_call
        from app.domain.ledger import Said

        said = Said(prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens)
        which = call if call is not None else await find_call(session or 0, turn, purpose)
        entry, difference = await adjust_call(which, said, reason.strip(), source=source, held=callbacks_held())
        if not difference:
            typer.echo(f"call {which} has these figures already; nothing was written")
            return
        typer.echo(f"call {which} of session {entry.session_id}: {signed(difference)}")

    with_database(correct)


def callbacks_held() -> bool:
    """Whether what is recorded waits, because no receiver is set."""
    from app.core.settings import load_settings

    return load_settings().callbacks.url is None


def signed(difference: Tokens) -> str:
    """A difference, for people."""
    parts = [f"{getattr(difference, name):+} {name}" for name in ("prompt", "completion", "cached", "reasoning")]
    return ", ".join(part for part in parts if not part.startswith("+0 "))


def _figures(tokens: Tokens, prefix: str = "") -> dict[str, int]:
    return {
        f"{prefix}prompt_tokens": tokens.prompt,
        f"{prefix}cached_tokens": tokens.cached,
        f"{prefix}completion_tokens": tokens.completion,
        f"{prefix}reasoning_tokens": tokens.reasoning,
        f"{prefix}total_tokens": tokens.total,
    }


def _fields(line: ReportLine, by: Key | None) -> dict[str, Any]:
    """A line as other programs read it: ``correction_…`` are to be added, ``net_total_tokens`` has them added."""
    return {
        by or "all": line.key,
        "calls": line.calls,
        "from_provider": line.from_provider,
        "counted": line.counted,
        "approximate": line.approximate,
        **_figures(line.used),
        "corrections": line.corrections,
        **_figures(line.corrected, "correction_"),
        "net_total_tokens": (line.used + line.corrected).total,
    }


def _write_csv(lines: Sequence[ReportLine], by: Key | None) -> None:
    from app.domain.ledger import Tokens
    from app.infrastructure.repositories.ledger_repository import ReportLine

    nothing = ReportLine("", 0, 0, 0, 0, Tokens(), 0, Tokens())
    writer = csv.DictWriter(sys.stdout, list(_fields(nothing, by)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_fields(line, by) for line in lines)


def _print_table(lines: Sequence[ReportLine], by: Key | None) -> None:
    if not lines:
        typer.echo("no calls")
        return
    heads = ["day (UTC)" if by == "day" else by or "", "calls", "provider", "counted", "approx."]
    heads += ["prompt", "cached", "completion", "reasoning", "total", "corrections", "net total"]
    rows = [_cells(line) for line in lines]
    if len(lines) > 1:
        whole = lines[0]
        for line in lines[1:]:
            whole += line
        rows.append(["all", *_cells(whole)[1:]])
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        first, *others = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join([first.strip().ljust(widths[0]), *others]))


def _cells(line: ReportLine) -> list[str]:
    counts = [line.calls, line.from_provider, line.counted, line.approximate]
    used = [line.used.prompt, line.used.cached, line.used.completion, line.used.reasoning, line.used.total]
    corrected = f"{line.corrected.total:+,} ({line.corrections})" if line.corrections else "0"
    net = (line.used + line.corrected).total
    return [line.key, *(f"{number:,}" for number in [*counts, *used]), corrected, f"{net:,}"]
