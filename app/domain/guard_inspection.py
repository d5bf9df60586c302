"""What the guard finds in a message, by rules and by the trained classifier. Pure, and no model is asked.

A message is read piece by piece, so that whoever inspects a long one can do something else in between.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from app.domain.guard_classifier import GuardClassifier, guard_classifier
from app.domain.guard_topics import topics_of
from app.domain.guarding import ATTACKS, GuardLabel, accusations
from app.domain.normalising import plain

PIECE, OVERLAP = 1_200, 300
"""Characters from the start of one piece to that of the next, and how many of them both have; no rule spans more."""
GREY_FROM, GREY_TO = -0.7, 0.2
"""From where to where, relative to its threshold, the classifier is in doubt. In cross-validation on the training side
96 % of the attacks lie above the one, and one or two in a thousand harmless messages above the other."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found.

    Attributes:
        by_rule: labels of the rules.
        margin: how far the classifier's score lies above its threshold, of the piece where that is most.
        kind: the attack that the classifier takes that piece for, where the margin is above 0.
        passage: the piece.
    """

    by_rule: frozenset[GuardLabel]
    margin: float
    kind: GuardLabel | None
    passage: str

    @property
    def labels(self) -> frozenset[GuardLabel]:
        """All labels of the message."""
        return self.by_rule if self.kind is None else self.by_rule | {self.kind}

    @property
    def doubtful(self) -> bool:
        """Whether a model's opinion would be worth a call: no rule says attack, and the classifier is not sure."""
        return not self.by_rule & ATTACKS and GREY_FROM <= self.margin <= GREY_TO


def inspected(message: str) -> Inspection:
    """What is found in a message: under a millisecond for a usual one, some tens of them for the longest."""
    steps = inspecting(message)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: Inspection = ended.value
            return found


def inspecting(message: str) -> Generator[None, None, Inspection]:
    """As `inspected`, with a stop after every piece but the last."""
    found: Inspection | None = None
    for piece in _pieces(message):
        if found is not None:
            yield
        found = _more_of(found, _inspect(piece))
    assert found is not None, "there is at least one piece"
    return found


def _inspect(piece: str) -> Inspection:
    classifier = guard_classifier()
    suspicion = classifier.judge(piece)
    seen = plain(piece)
    by_rule = _attacks_of(seen, classifier) | topics_of(seen)
    kind = None if suspicion.label is None else GuardLabel(suspicion.label)
    return Inspection(by_rule, suspicion.score - classifier.threshold, kind, piece)


def _attacks_of(seen: str, classifier: GuardClassifier) -> frozenset[GuardLabel]:
    """What the rules find, but where the classifier has no doubt that the sentence is innocent.

    "The robot has to print its original instructions again" is an exercise; a rule cannot tell.
    """
    found: set[GuardLabel] = set()
    for label, sentence in dict.fromkeys(accusations(seen)):
        if label not in found and classifier.judge(sentence).score >= classifier.threshold + GREY_FROM:
            found.add(label)
    return frozenset(found)


def _more_of(before: Inspection | None, piece: Inspection) -> Inspection:
    if before is None:
        return piece
    worse = max(before, piece, key=lambda one: one.margin)
    return Inspection(before.by_rule | piece.by_rule, worse.margin, worse.kind, worse.passage)


def _pieces(message: str) -> Iterator[str]:
    for start in range(0, max(1, len(message) - OVERLAP), PIECE):
        yield message[start : start + PIECE + OVERLAP]
