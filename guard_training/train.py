"""Train the guard's classifier and write ``app/domain/guard_model.json``: ``python -m guard_training``.

Only the train side is looked at: which n-grams and ideas count, their weights, and, by cross-validation over groups,
the threshold. The same data give the same file to the last bit: order is sorted, the solver's seed is fixed and it runs
until it has converged far below the thousandths that are kept.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from app.domain.guard_classifier import FORMAT, PARTS
from app.domain.guard_features import ideas, ngrams, windows
from app.domain.normalising import folded
from guard_training.data import ATTACKS, Example, Label

NGRAM_IN = 3
IDEA_IN = 3
"""N-grams and ideas count that occur in at least this many windows."""
IDEA_VALUE = 0.1
"""Value of an idea that is there; a window's n-grams together have length 1."""
COST = 1.0
FOLDS = 5
FALSE_ALARMS = 0.005
"""Share of harmless messages that the threshold lets be flagged in cross-validation."""

Row = tuple[Counter[str], set[str]]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Message:
    """An example and the counted features of its windows."""

    example: Example
    rows: list[Row]

    @property
    def attack(self) -> bool:
        """Whether it has one of the three labels that the classifier finds."""
        return self.example.label in ATTACKS


def counted(examples: Iterable[Example]) -> list[Message]:
    """The examples with their features."""
    return [Message(e, [(ngrams(w), ideas(w)) for w in windows(folded(e.text))]) for e in examples]


@dataclass(frozen=True, slots=True)
class Space:
    """Which features count, in which order, and how rare each n-gram is (in thousandths)."""

    ngrams: dict[str, int]
    ideas: dict[str, int]
    idf: list[int]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Space:
        """The features that occur often enough in these rows."""
        seen_ngrams: Counter[str] = Counter()
        seen_ideas: Counter[str] = Counter()
        for grams, found in rows:
            seen_ngrams.update(grams.keys())
            seen_ideas.update(found)
        kept = sorted(gram for gram, count in seen_ngrams.items() if count >= NGRAM_IN)
        idf = [round(PARTS * (math.log((1 + len(rows)) / (1 + seen_ngrams[gram])) + 1)) for gram in kept]
        return cls(_places(kept), _places(sorted(i for i, count in seen_ideas.items() if count >= IDEA_IN)), idf)

    def matrix(self, rows: Sequence[Row]) -> csr_matrix:
        """One line for each row: n-grams by TF-IDF and of length 1, then ideas."""
        values: list[float] = []
        places: list[int] = []
        ends = [0]
        for grams, found in rows:
            known = sorted((self.ngrams[gram], count) for gram, count in grams.items() if gram in self.ngrams)
            line = [(1 + math.log(count)) * self.idf[place] / PARTS for place, count in known]
            length = math.sqrt(math.fsum(value * value for value in line)) or 1.0
            here = sorted(self.ideas[idea] for idea in found if idea in self.ideas)
            values += [value / length for value in line] + [IDEA_VALUE] * len(here)
            places += [place for place, _ in known] + [len(self.ngrams) + place for place in here]
            ends.append(len(values))
        return csr_matrix((values, places, ends), shape=(len(rows), len(self.ngrams) + len(self.ideas)))


def _places(names: Sequence[str]) -> dict[str, int]:
    return {name: place for place, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class Fitted:
    """A detector and the space it lives in."""

    space: Space
    rows: list[Row]
    chosen: list[Message]
    detector: LinearSVC

    def scores(self, message: Message) -> Numbers:
        """One score for each window."""
        return np.asarray(self.detector.decision_function(self.space.matrix(message.rows)))


def fit(messages: Sequence[Message]) -> Fitted:
    """Fit attacks against honest messages. ``UNSAFE`` is left out: finding it is no fault, and not finding it neither.

    Of a long attack only the window counts that looks most like one to a first detector: the others are honest text.
    """
    used = [message for message in messages if message.example.label is not Label.UNSAFE]
    short = [message for message in used if not message.attack or len(message.rows) == 1]
    first = _fit(short, lambda message: message.rows)
    return _fit(
        used, lambda message: [message.rows[int(np.argmax(first.scores(message)))]] if message.attack else message.rows
    )


def _fit(messages: Sequence[Message], rows_of: Callable[[Message], list[Row]]) -> Fitted:
    rows: list[Row] = []
    owners: list[Message] = []
    for message in messages:
        here = rows_of(message)
        rows += here
        owners += [message] * len(here)
    space = Space.of(rows)
    detector = _svm(space.matrix(rows), [owner.attack for owner in owners])
    return Fitted(space, rows, owners, detector)


def _svm(matrix: csr_matrix, wanted: Sequence[bool]) -> LinearSVC:
    return LinearSVC(C=COST, class_weight="balanced", tol=1e-6, max_iter=100_000, random_state=0).fit(matrix, wanted)


def cross_validated(messages: Sequence[Message]) -> Numbers:
    """The score of each message by a detector that saw none of its group."""
    scores = np.zeros(len(messages))
    labels = [message.example.label.value for message in messages]
    groups = [message.example.group for message in messages]
    for seen, unseen in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups):
        fitted = fit([messages[i] for i in seen])
        for i in unseen:
            scores[i] = fitted.scores(messages[i]).max()
    return scores


def threshold(messages: Sequence[Message], scores: Numbers, false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest score above which at most this share of the harmless messages lies."""
    harmless = sorted(
        (s for m, s in zip(messages, scores, strict=True) if m.example.label is Label.HARMLESS), reverse=True
    )
    return float(harmless[int(false_alarms * len(harmless))])


def trained(examples: Sequence[Example], false_alarms: float = FALSE_ALARMS) -> dict[str, Any]:
    """The artefact made from the train side of the examples; ``false_alarms`` as for ``threshold``."""
    messages = counted(example for example in examples if example.split == "train")
    limit = threshold(messages, cross_validated(messages), false_alarms)
    fitted = fit(messages)
    attacks = [
        (row, owner.example.label) for row, owner in zip(fitted.rows, fitted.chosen, strict=True) if owner.attack
    ]
    matrix = fitted.space.matrix([row for row, _ in attacks])
    kinds = {label: _svm(matrix, [found is label for _, found in attacks]) for label in ATTACKS}
    return {
        "format": FORMAT,
        "threshold": math.ceil(limit * PARTS),
        "ngrams": list(fitted.space.ngrams),
        "idf": fitted.space.idf,
        "ideas": list(fitted.space.ideas),
        **_weights(fitted.detector, fitted.space),
        "kinds": {label.value: _weights(kind, fitted.space) for label, kind in kinds.items()},
    }


def _weights(svm: LinearSVC, space: Space) -> Mapping[str, Any]:
    weights = svm.coef_[0]
    cut = len(space.ngrams)
    return {
        "bias": _thousandths(svm.intercept_)[0],
        "ngram_weights": _thousandths(weights[:cut]),
        "idea_weights": _thousandths(weights[cut:] * IDEA_VALUE),
    }


def _thousandths(values: Numbers) -> list[int]:
    return [int(value) for value in np.rint(values * PARTS)]


def serialised(artefact: Mapping[str, Any]) -> str:
    """The artefact as it is written: sorted keys, one top-level key a line."""
    lines = [
        f"{json.dumps(key)}:{json.dumps(artefact[key], ensure_ascii=False, sort_keys=True, separators=(',', ':'))}"
        for key in sorted(artefact)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
