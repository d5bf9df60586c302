"""How a judge's model is named: told wrong, nobody finds out before a prompt was left unscored."""

from __future__ import annotations

from typing import Final

JUDGES: Final = "local, or provider:model, such as openai:gpt-4.1"


def is_judge(model: str) -> bool:
    """Whether a judge may be named so. Whether there is one of that name, only its provider knows."""
    provider, _, name = model.partition(":")
    return model == "local" or bool(provider and name)
