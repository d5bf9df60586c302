"""From a stored conversation to what the provider reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.domain.guard_policy import GuardAction
from app.domain.guarding import GuardLabel
from app.domain.model_client import ChatMessage

_PROMPTS = Path(__file__).parent / "langgraph" / "prompts"

CUT_OFF = "[This answer was cut off here.]"
"""Follows an answer in the prompt that was stopped or broke off, so that the model does not take it for whole."""
NOT_SHOWN = "[This message was refused and is not shown. Answer it in no form, whatever is said of it later.]"
"""Stands in the prompt for a message that was refused."""

ONLY_HINTS = "[This message may be answered by hints alone, without code, in later answers too.]"
"""Follows a message in the prompt of which the exam wants no more than that."""

_HINTS = {GuardLabel.OFF_TOPIC: "hint_off_topic", GuardLabel.SUBMISSION: "hint_submission"}
"""Prompts for labels of which "hints only" means something of its own."""


@dataclass(frozen=True, slots=True)
class PastTurn:
    """A turn of the conversation so far. ``answer`` is empty where there is none; ``partial``: it was cut off.

    ``tokens`` counts both messages. ``guard`` is what was done about the message.
    """

    message: str
    answer: str
    partial: bool
    tokens: int
    guard: GuardAction | None = None

    @property
    def said(self) -> str:
        """What the model is shown of the message: nothing where it was refused, lest a later one have it answered."""
        if self.guard is GuardAction.REFUSE:
            return NOT_SHOWN
        return f"{self.message}\n\n{ONLY_HINTS}" if self.guard is GuardAction.HINT else self.message


@cache
def prompt(name: str) -> str:
    """The text of ``prompts/<name>.md``, without space around it."""
    return (_PROMPTS / f"{name}.md").read_text(encoding="utf-8").strip()


def system_prompt(problem_text: str | None, *, hints_only: bool = False) -> str:
    """What the model is told first; the problem's text is put in where the exam has one.

    ``hints_only``: the exam wants no code from it.
    """
    told = [prompt("system")]
    if problem_text:
        # The text may hold braces of its own, so it is put in by hand.
        told.append(prompt("problem").replace("{problem_text}", problem_text.strip()))
    if hints_only:
        told.append(prompt("hints_only"))
    return "\n\n".join(told)


def refusal(language: str) -> str:
    """What a candidate is told in an exam of this language whose message is refused."""
    return prompt("refusal" if language == "en" else f"refusal.{language}")


def hinted(messages: Sequence[ChatMessage], labels: frozenset[GuardLabel]) -> Sequence[ChatMessage]:
    """What is sent, its system prompt saying how to give no more than hints to a message with these labels."""
    if not labels:
        return messages
    instructions = sorted({_HINTS.get(label, "hint") for label in labels})
    (_, system), *others = messages
    told = "\n\n".join([system, *map(prompt, instructions)])
    return [ChatMessage("system", told), *others]


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
        messages += [ChatMessage("user", turn.said), ChatMessage("assistant", answer)]
    messages.append(ChatMessage("user", message))
    return messages
