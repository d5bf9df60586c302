"""Token counts as providers report them: believed only where they can be meant."""

from __future__ import annotations

from app.domain.conversation import Usage

_LARGEST = 1_000_000_000
"""Tokens; whoever reports more in one call is not believed, and two calls still fit PostgreSQL's integer."""


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
