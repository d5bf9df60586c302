"""What the guard finds in a message, by rules and by the trained classifier. Pure, and no model is asked.

A message is read piece by piece, so that whoever inspects a long one can do something else in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from app.domain.guard_classifier import GuardClassifier, guard_classifier
from app.domain.guard_topics import topics_of
from app.domain.guarding import ATTACKS, GuardLabel, accusations
from app.domain.normalising import decoded, plain

PIECE, OVERLAP = 1_200, 300
"""Characters from the start of one piece to that of the next, and how many of them both have; no rule spans more."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in a message, or in one piece of it.

    Attributes:
        by_rule: labels of the rules.
        margin: how far the classifier's score lies above its threshold, of the piece where that is most.
        kinds: the attacks that the classifier takes pieces for, of all whose margin is above 0.
        passage: the piece that a model would be asked about: a doubtful one, and of those one that has no kind if there
            is any. Another piece's label, which the exam may allow, says nothing about it.
        doubtful: whether a model's opinion would be worth a call: there is a piece that no rule calls an attack and of
            which the classifier is not sure.
        elsewhere: those of the kinds that other pieces than ``passage`` have.
    """

    by_rule: frozenset[GuardLabel]
    margin: float
    kinds: frozenset[GuardLabel]
    passage: str
    doubtful: bool
    elsewhere: frozenset[GuardLabel] = frozenset()

    @property
    def labels(self) -> frozenset[GuardLabel]:
        """All labels of the message."""
        return self.by_rule | self.kinds

    def labels_with(self, attack: frozenset[GuardLabel]) -> frozenset[GuardLabel]:
        """All labels after a model was asked about ``passage``: its word stands for the classifier's on that alone."""
        return self.by_rule | self.elsewhere | attack


def inspected(message: str) -> Inspection:
    """What is found in a message: under a millisecond for a usual one, some tens of them for the longest."""
    steps = inspecting(message)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: Inspection = ended.value
            return found


async def inspected_aside(message: str) -> Inspection:
    """As `inspected`; between the pieces of a long message others have their turn."""
    steps = inspecting(message)
    while True:
        try:
            next(steps)
        except StopIteration as ended:
            found: Inspection = ended.value
            return found
        await asyncio.sleep(0)


def inspecting(message: str) -> Generator[None, None, Inspection]:
    """As `inspected`, with a stop after every piece but the last; base64 in a message of several is read before them.

    A piece begins anywhere in a blob, where its letters stand for other bytes.
    """
    several = len(message) > PIECE + OVERLAP
    message = decoded(message)
    if several:
        yield
    found: list[Inspection] = []
    for piece in _pieces(message):
        if found:
            yield
        found.append(_inspect(piece))
    return _together(found)


def _inspect(piece: str) -> Inspection:
    classifier = guard_classifier()
    suspicion = classifier.judge(piece)
    seen = plain(piece)
    by_rule = _attacks_of(seen, classifier) | topics_of(seen)
    lowest, highest = classifier.doubt
    doubtful = not by_rule & ATTACKS and lowest <= suspicion.score <= highest
    margin = suspicion.score - classifier.threshold
    return Inspection(by_rule, margin, frozenset(map(GuardLabel, suspicion.labels)), piece, doubtful)


def _attacks_of(seen: str, classifier: GuardClassifier) -> frozenset[GuardLabel]:
    """What the rules find, but where the classifier has no doubt that the sentence is innocent.

    "The robot has to print its original instructions again" is an exercise; a rule cannot tell.
    """
    found: set[GuardLabel] = set()
    for label, sentence in dict.fromkeys(accusations(seen)):
        if label not in found and classifier.judge(sentence).score >= classifier.doubt[0]:
            found.add(label)
    return frozenset(found)


def _together(pieces: Sequence[Inspection]) -> Inspection:
    """What was found in a message, by what was found in its pieces, of which there is at least one."""
    worst = max(pieces, key=lambda piece: piece.margin)
    doubtful = [piece for piece in pieces if piece.doubtful]
    asked = max(doubtful, key=lambda piece: (not piece.kinds, piece.margin), default=worst)
    nothing: frozenset[GuardLabel] = frozenset()
    return Inspection(
        nothing.union(*[piece.by_rule for piece in pieces]),
        worst.margin,
        nothing.union(*[piece.kinds for piece in pieces]),
        asked.passage,
        bool(doubtful),
        nothing.union(*[piece.kinds for piece in pieces if piece is not asked]),
    )


def _pieces(message: str) -> Iterator[str]:
    for start in range(0, max(1, len(message) - OVERLAP), PIECE):
        yield message[start : start + PIECE + OVERLAP]
