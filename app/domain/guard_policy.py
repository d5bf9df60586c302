"""What an exam wants done about the guard's labels. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.domain.guarding import GuardLabel


class GuardAction(StrEnum):
    """What becomes of a message with a label.

    ``ALLOW``: nothing, and the label is not kept. ``FLAG``: the model answers, and the label is kept and reported.
    ``HINT``: as ``FLAG``, but the model is told to pass over what the label is about and to give hints, no code.
    ``REFUSE``: the label is kept, and the service answers in the model's place.
    """

    ALLOW = "allow"
    FLAG = "flag"
    HINT = "hint"
    REFUSE = "refuse"


DONE_ABOUT_IT = (GuardAction.HINT, GuardAction.REFUSE)
"""Actions that a turn keeps: they hold for its message in later turns too, and in its judgement."""


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """What is done about one message: ``labels`` are kept and reported, ``hints`` are those that call for hints only.

    ``refused``: the model is not asked.
    """

    labels: frozenset[GuardLabel] = frozenset()
    hints: frozenset[GuardLabel] = frozenset()
    refused: bool = False

    @property
    def action(self) -> GuardAction:
        """The strictest action that was called for; ``ALLOW`` where no label is kept."""
        if self.refused:
            return GuardAction.REFUSE
        if self.hints:
            return GuardAction.HINT
        return GuardAction.FLAG if self.labels else GuardAction.ALLOW


NO_VERDICT = GuardVerdict()
"""Nothing was found."""


@dataclass(frozen=True, slots=True)
class GuardRules:
    """An exam's policy.

    Attributes:
        actions: what to do about a label; one that is not here is flagged.
        code: whether a candidate may ask for code. ``HINT``: every turn's model is told to write none. The other
            actions make no sense here.
        ask_model: a model decides about messages that rules and classifier are in doubt about, which costs a call.
    """

    actions: Mapping[GuardLabel, GuardAction] = field(default_factory=dict)
    code: GuardAction = GuardAction.ALLOW
    ask_model: bool = False

    def decide(self, labels: frozenset[GuardLabel]) -> GuardVerdict:
        """What is to be done about a message with these labels; the strictest action wins."""
        actions = {label: self.actions.get(label, GuardAction.FLAG) for label in labels}
        return GuardVerdict(
            frozenset(label for label, action in actions.items() if action is not GuardAction.ALLOW),
            frozenset(label for label, action in actions.items() if action is GuardAction.HINT),
            GuardAction.REFUSE in actions.values(),
        )

    def to_json(self) -> dict[str, Any]:
        """As it is stored: every label has its action, so that a later default changes nothing of an exam."""
        actions = {label.value: self.actions.get(label, GuardAction.FLAG).value for label in GuardLabel}
        return {"actions": actions, "code": self.code.value, "ask_model": self.ask_model}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> GuardRules:
        """The inverse of `to_json`. A label that a later program has stored is passed over."""
        known = {label.value for label in GuardLabel}
        actions = {
            GuardLabel(label): GuardAction(action) for label, action in stored["actions"].items() if label in known
        }
        return cls(actions, GuardAction(stored["code"]), bool(stored["ask_model"]))


def refusing(labels: Iterable[str]) -> GuardRules:
    """Rules that refuse the labels of these names and flag all others."""
    return GuardRules({GuardLabel(label): GuardAction.REFUSE for label in labels})
