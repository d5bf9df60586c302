"""``turnstone usage exam``: what an exam used and cost, by kind of work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.console import LARGEST_ID, with_database

if TYPE_CHECKING:
    from app.core.settings import ModelPrice
    from app.infrastructure.repositories.ledger_repository import ExamPart


def exam_cost(
    exam: Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="The exam's id.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for other programs.")] = False,
) -> None:
    """Say what an exam used: chat, judging of prompts, evaluation of submissions; for each session, and in money."""

    async def show() -> None:
        from app.core.settings import load_settings
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.ledger_repository import LedgerRepository

        prices = load_settings().prices
        async with get_db_context() as db:
            found = await LedgerRepository(db).exam(exam)
        names = list(dict.fromkeys(part.part for part in found))
        lines = [_line(name, [part for part in found if part.part == name], prices.per_million) for name in names]
        if not lines:
            typer.echo("no calls")
            return
        lines.append(_line("all", found, prices.per_million))
        for line in lines:
            typer.echo(json.dumps(line.fields(prices.currency)) if as_json else line.text(prices.currency))

    with_database(show)


@dataclass(frozen=True, slots=True)
class _Line:
    part: str
    sessions: int
    calls: int
    prompt: int
    cached: int
    completion: int
    cost: float | None
    unpriced: Sequence[str]

    def fields(self, currency: str) -> dict[str, Any]:
        return {
            "part": self.part,
            "sessions": self.sessions,
            "calls": self.calls,
            "calls_per_session": self.calls / self.sessions,
            "prompt_tokens": self.prompt,
            "cached_tokens": self.cached,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "cost": self.cost,
            "currency": currency,
            "without_price": list(self.unpriced),
        }

    def text(self, currency: str) -> str:
        money = f"no price of {', '.join(self.unpriced)}" if self.cost is None else f"{self.cost:,.4f} {currency}"
        return (
            f"{self.part:<12} {self.sessions:>6,} sessions  {self.calls:>8,} calls"
            f"  {self.calls / self.sessions:>7.1f} each"
            f"  {self.prompt:>12,} prompt ({self.cached:,} cached) + {self.completion:,} completion tokens  {money}"
        )


def _line(name: str, parts: Sequence[ExamPart], prices: Mapping[str, ModelPrice]) -> _Line:
    unpriced = sorted({part.model for part in parts if part.model not in prices})
    return _Line(
        part=name,
        sessions=len(frozenset().union(*(part.sessions for part in parts))),
        calls=sum(part.calls for part in parts),
        prompt=sum(part.used.prompt for part in parts),
        cached=sum(part.used.cached for part in parts),
        completion=sum(part.used.completion for part in parts),
        cost=None if unpriced else sum(_cost(part, prices[part.model]) for part in parts),
        unpriced=unpriced,
    )


def _cost(part: ExamPart, price: ModelPrice) -> float:
    used = part.used
    return price.cost(prompt=used.prompt, cached=used.cached, completion=used.completion)
