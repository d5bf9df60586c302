"""``turnstone usage reconcile``: our ledger, the provider's bill and Core's books held against each other."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import AsJson, with_database
from app.cli.usage import Exam, Since, Until, callbacks_held, signed
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.domain.ledger import Difference, Tokens

REASON = "the provider's export has other figures"
_FILE = {"dir_okay": False, "help": "CSV or JSON Lines; see docs/usage.md."}
_File = Annotated[Path | None, typer.Option(**_FILE)]


def _tolerance(text: str) -> tuple[int, float]:
    """Tokens, or with ``%`` a share of our figure."""
    number = text.strip().removesuffix("%")
    try:
        if number == text.strip():
            tokens, share = int(number), 0.0
        else:
            tokens, share = 0, float(number) / 100
    except ValueError:
        tokens, share = -1, 0.0
    if tokens < 0 or not 0 <= share <= 1:
        raise typer.BadParameter("write tokens, such as 5, or a share, such as 0.5%.")
    return tokens, share


def reconcile(
    provider_export: _File = None,
    core_export: _File = None,
    exam: Exam = None,
    since: Since = None,
    until: Until = None,
    tolerance: Annotated[
        str, typer.Option(help="How far a figure of the provider may lie from ours: tokens, or a share such as 0.5%.")
    ] = "0",
    apply: Annotated[bool, typer.Option("--apply", help="Write the proposed corrections, and tell Core.")] = False,
    as_json: AsJson = False,
) -> None:
    """Name every difference between our ledger, the provider's bill and Core's books, and propose corrections.

    Ends with 1 where there is any, and with 0 where there is none.
    """
    if provider_export is None and core_export is None:
        raise typer.BadParameter("name a file to compare with: --provider-export, --core-export, or both.")
    tokens, share = _tolerance(tolerance)
    found: Counter[str] = Counter()

    async def compare() -> None:
        from app.application.services.reconciliation import Exports, differences
        from app.domain.ledger import Scope, Tolerance

        held = callbacks_held()
        if apply:
            _need_two_connections()
        exports, scope = Exports(provider_export, core_export), Scope(exam, since, until)
        show = _as_json if as_json else _as_line
        async with aclosing(differences(exports, scope, Tolerance(tokens, share))) as compared:
            async for difference in compared:
                applied = await _apply(difference, held=held) if apply else None
                found[difference.kind.value] += 1
                found["proposed"] += difference.proposal is not None
                found["applied"] += bool(applied)
                typer.echo(show(difference, applied))

    with_database(compare)
    proposed, applied = found.pop("proposed", 0), found.pop("applied", 0)
    _sum_up(found, proposed, applied, as_json=as_json)
    raise typer.Exit(1 if found else 0)


async def _apply(difference: Difference, *, held: bool) -> Tokens | None:
    """Write the correction that is proposed; returns what was written, which is nothing where it stands already."""
    if difference.proposal is None:
        return None
    from app.application.services.ledger_service import adjust_call
    from app.domain.ledger import Said

    wanted = difference.proposal
    said = Said(wanted.prompt, wanted.completion, wanted.cached, wanted.reasoning)
    call_id = difference.where["call"]
    assert isinstance(call_id, int), "what is proposed is proposed of a call"
    _, written = await adjust_call(call_id, said, REASON, held=held)
    return written


def _need_two_connections() -> None:
    from app.core.settings import load_settings

    if load_settings().database.pool_size < 2:
        raise StartupError("--apply needs two connections to the database.", "Set TURNSTONE_DATABASE__POOL_SIZE to 2.")


def _as_line(difference: Difference, applied: Tokens | None) -> str:
    where = [f"{name} {value}" for name, value in difference.where.items() if value is not None and value != ""]
    if difference.line is not None:
        where.append(f"line {difference.line}")
    parts = [f"{difference.kind.value}: {', '.join(where)}"]
    if difference.ours is not None:
        parts.append(f"ours {_shown(difference.ours)}")
    if difference.theirs is not None:
        parts.append(f"theirs {_shown(difference.theirs)}")
    if difference.detail:
        parts.append(difference.detail)
    if applied:
        parts.append(f"corrected: {signed(applied)}")
    elif difference.proposal is not None and difference.ours is not None:
        parts.append(f"proposed: {signed(difference.proposal - difference.ours)}")
    return "; ".join(parts)


def _shown(figures: Any) -> str:
    """Figures for people: prompt (of which cached) + completion (of which reasoning)."""
    cached = f" ({figures.cached} cached)" if figures.cached else ""
    reasoning = f" ({figures.reasoning} reasoning)" if figures.reasoning else ""
    return f"{figures.prompt}{cached} + {figures.completion}{reasoning}"


def _as_json(difference: Difference, applied: Tokens | None) -> str:
    session = difference.where.get("session_id")
    proposal = None
    if difference.proposal is not None and difference.ours is not None:
        proposal = _figures(difference.proposal - difference.ours)
    fields = {
        "kind": difference.kind.value,
        **difference.where,
        **({} if session is None else {"session_id": str(session)}),
        "line": difference.line,
        "ours": None if difference.ours is None else _figures(difference.ours),
        "theirs": None if difference.theirs is None else _figures(difference.theirs),
        "detail": difference.detail,
        "proposal": proposal,
        "applied": bool(applied),
    }
    return json.dumps(fields, ensure_ascii=False)


def _figures(figures: Any) -> dict[str, int | None]:
    names = ("prompt", "completion", "cached", "reasoning")
    return {f"{name}_tokens": getattr(figures, name) for name in names}


def _sum_up(found: Counter[str], proposed: int, applied: int, *, as_json: bool) -> None:
    count = sum(found.values())
    if as_json:
        summary = {"kind": "summary", "differences": count, "proposed": proposed, "applied": applied}
        typer.echo(json.dumps({**summary, "by_kind": dict(sorted(found.items()))}))
        return
    if not count:
        typer.echo("no difference")
        return
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
    typer.echo(f"{count} {'difference' if count == 1 else 'differences'}: {kinds}")
    if applied:
        typer.echo(f"{applied} of {proposed} proposed corrections written")
    elif proposed:
        typer.echo(f"{proposed} corrections proposed; --apply writes them")
