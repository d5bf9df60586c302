"""From a stored conversation to what the provider reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.domain.model_client import ChatMessage

_PROMPTS = Path(__file__).parent / "langgraph" / "prompts"

CUT_OFF = "[This answer was cut off here.]"
"""Follows an answer in the prompt that was stopped or broke off, so that the model does not take it for whole."""


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A turn of the conversation so far. ``answer`` is empty where there is none; ``partial``: it was cut off.

    ``tokens`` counts both messages.
    """

    message: str
    answer: str
    partial: bool
    tokens: int


@cache
def prompt(name: str) -> str:
    """The text of ``prompts/<name>.md``, without space around it."""
    return (_PROMPTS / f"{name}.md").read_text(encoding="utf-8").strip()


def system_prompt(problem_text: str | None) -> str:
    """What the model is told first; the problem's text is put in where the exam has one."""
    if not problem_text:
        return prompt("system")
    # The text may hold braces of its own, so it is put in by hand.
    return f"{prompt('system')}\n\n{prompt('problem').replace('{problem_text}', problem_text.strip())}"


def build_messages(system: str, past: Sequence[PastTurn], message: str, *, token_budget: int) -> list[ChatMessage]:
    """The messages to send: the system prompt, the newest past turns that fit the budget whole, the new message.

    Turns without an answer are left out, so user and assistant always alternate. The system prompt and the new message
    are always sent; ``token_budget`` is for what lies between them.

    Args:
        system: the system prompt.
        past: past turns, oldest first.
        message: what the candidate says now.
        token_budget: tokens for past turns.
    """
    kept: list[PastTurn] = []
    for turn in reversed(past):
        if not turn.answer:
            continue
        token_budget -= turn.tokens
        if token_budget < 0:
            break
        kept.append(turn)
    messages = [ChatMessage("system", system)]
    for turn in reversed(kept):
        answer = f"{turn.answer}\n\n{CUT_OFF}" if turn.partial else turn.answer
        messages += [ChatMessage("user", turn.message), ChatMessage("assistant", answer)]
    messages.append(ChatMessage("user", message))
    return messages
