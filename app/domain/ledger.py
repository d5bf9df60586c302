"""The ledger's arithmetic: signed figures, corrections, and what makes two books differ. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

LARGEST_FIGURE = 1_000_000_000
"""Tokens of one call; two calls still fit PostgreSQL's integer."""

CallbackPurpose = Literal["chat", "evaluation"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Figures of calls, or the difference of two, which may be negative.

    ``prompt`` includes ``cached`` and ``completion`` includes ``reasoning``, as everywhere.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion

    def __bool__(self) -> bool:
        return bool(self.prompt or self.completion or self.cached or self.reasoning)

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt + other.prompt,
            self.completion + other.completion,
            self.cached + other.cached,
            self.reasoning + other.reasoning,
        )

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.prompt - other.prompt,
            self.completion - other.completion,
            self.cached - other.cached,
            self.reasoning - other.reasoning,
        )


@dataclass(frozen=True, slots=True)
class Said:
    """Figures as somebody else has them; ``None`` is what they did not say."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    reasoning: int | None = None

    def over(self, ours: Tokens) -> Tokens:
        """Our figures, with theirs in the place of those that they said. No part is larger than its whole."""
        prompt = ours.prompt if self.prompt is None else self.prompt
        completion = ours.completion if self.completion is None else self.completion
        cached = ours.cached if self.cached is None else self.cached
        reasoning = ours.reasoning if self.reasoning is None else self.reasoning
        return Tokens(prompt, completion, min(cached, prompt), min(reasoning, completion))

    def __add__(self, other: Said) -> Said:
        """Sums of what both said."""
        return Said(
            _sum(self.prompt, other.prompt),
            _sum(self.completion, other.completion),
            _sum(self.cached, other.cached),
            _sum(self.reasoning, other.reasoning),
        )


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two figures may lie apart: so many tokens, or such a share of ours, whichever is more."""

    tokens: int = 0
    share: float = 0.0

    def allows(self, ours: int, theirs: int) -> bool:
        """Whether two figures count as equal."""
        return abs(ours - theirs) <= max(self.tokens, self.share * abs(ours))

    def equal(self, ours: Tokens, theirs: Said) -> bool:
        """Whether all figures that they said count as equal to ours."""
        pairs = (
            (ours.prompt, theirs.prompt),
            (ours.completion, theirs.completion),
            (ours.cached, theirs.cached),
            (ours.reasoning, theirs.reasoning),
        )
        return all(said is None or self.allows(own, said) for own, said in pairs)


@dataclass(frozen=True, slots=True)
class Scope:
    """Which part of the ledger is meant: an exam's, from ``since`` up to and without ``until``; ``None`` is all."""

    exam_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None


class DifferenceKind(StrEnum):
    """What can be wrong between our ledger, the provider's bill and Core's books."""

    MISSING_AT_PROVIDER = "missing_at_provider"
    UNKNOWN_TO_US = "unknown_to_us"
    DOUBLED_AT_PROVIDER = "doubled_at_provider"
    PROVIDER_FIGURES_DIFFER = "provider_figures_differ"
    ESTIMATE_DIFFERS = "estimate_differs"
    NO_PROVIDER_ID = "no_provider_id"
    PROVIDER_SUM_DIFFERS = "provider_sum_differs"
    MISSING_AT_CORE = "missing_at_core"
    NOT_DELIVERED_YET = "not_delivered_yet"
    DELIVERY_FAILED = "delivery_failed"
    DOUBLED_AT_CORE = "doubled_at_core"
    CORE_FIGURES_DIFFER = "core_figures_differ"
    UNKNOWN_EVENT = "unknown_event"
    CORE_SUM_DIFFERS = "core_sum_differs"
    OWN_BOOKS_DIFFER = "own_books_differ"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing in which two books differ.

    Attributes:
        where: what places it: ``session_id``, ``turn``, ``call``, ``provider_ref``, ``event_id``, ``model``, ``day`` …,
            those that are known.
        line: the line of the export that it was found in.
        ours: our figures, corrections included.
        theirs: the other book's.
        detail: for people: what it is, where the kind alone does not say.
        proposal: the figures that the call should have, where a correction would settle it.
    """

    kind: DifferenceKind
    where: dict[str, int | str | None]
    line: int | None = None
    ours: Tokens | None = None
    theirs: Said | None = None
    detail: str = ""
    proposal: Tokens | None = None


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def purpose_for_core(purpose: str) -> CallbackPurpose:
    """The two purposes that Core tells apart: what a candidate's chat used, and everything else."""
    return "chat" if purpose == "chat" else "evaluation"


def model_key(name: str) -> str:
    """A model's name without what only one of two books says: our provider's prefix, Google's, and a version's date."""
    bare = re.sub(r"^(?!ft:)[a-z_]+:", "", name.strip()).removeprefix("models/")
    return re.sub(r"-(\d{4}-\d{2}-\d{2}|\d{8})$", "", bare)
