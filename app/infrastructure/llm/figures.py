"""What providers say about a call, its token counts and its id: believed only where it can be meant."""

from __future__ import annotations

from app.domain.conversation import Usage

_LARGEST = 1_000_000_000
"""Tokens; whoever reports more in one call is not believed, and two calls still fit PostgreSQL's integer."""


_LONGEST_ID = 200
"""Characters; a longer id is none, for half of one would name another call."""


def reference(said: object) -> str | None:
    """A provider's own id of a call; ``None`` where there is none that could be stored and found again."""
    return said if isinstance(said, str) and 0 < len(said) <= _LONGEST_ID and said.isprintable() else None


def figure(said: object, name: str) -> int | None:
    """A count in an object that a provider sent; ``None`` where there is none that can be meant."""
    value = said.get(name) if isinstance(said, dict) else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    sensible = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST
    return value if sensible else None


def reported(prompt: int | None, completion: int | None, *, cached: int | None, reasoning: int | None) -> Usage | None:
    """Usage of a call by the provider's word; ``None`` where it cannot be meant, which is as if it were silent.

    ``prompt`` includes ``cached`` and ``completion`` includes ``reasoning``.
    """
    if not prompt or completion is None or max(prompt, completion) > _LARGEST:  # there is no empty prompt
        return None
    return Usage(prompt, completion, min(cached or 0, prompt), min(reasoning or 0, completion), "provider")
