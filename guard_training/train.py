"""Train the guard's classifier and write ``app/domain/guard_model.json``: ``python -m guard_training``.

Only the train side is looked at: which features count, their weights, and, by cross-validation over groups of the
written messages, the threshold. The same data give the same file to the last bit: order is sorted, chance is drawn from
the data, the solver's seed is fixed, and only thousandths of its result are kept.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.svm import LinearSVC

from app.domain import guard_features, guard_lexicon, normalising
from app.domain.guard_classifier import FORMAT, PARTS
from app.domain.guard_features import ideas, ngrams, pairs, sizes, windows
from app.domain.normalising import folded
from guard_training import data, generating, grammar, wrapping
from guard_training.data import ATTACKS, Example, Label
from guard_training.generating import extras

NGRAM_IN, PAIR_IN, IDEA_IN = 8, 5, 3
"""N-grams, pairs and ideas are looked at that occur in at least this many windows."""
KEPT = 65_500
"""So many of them count in the end: those that do most in a first fit. Half a million would do next to nothing more."""
NGRAM_VALUE, PAIR_VALUE, IDEA_VALUE = 0.5, 0.45, 0.1
"""Value of what is there, before that of n-grams and pairs is divided by the window's size: the less, the more careful
the solver is with it."""
COST = 0.7
SMOOTHING = 0.5
"""Added to how often something occurs in attacks, and in honest messages, before the two are compared."""
FOLDS = 3
FALSE_ALARMS = 0.003
"""Share of the first author's harmless messages that the threshold lets be flagged in cross-validation. The promise is
0.005, but of a thousand messages a handful more or less is chance."""
LIKE_AN_EXAM = "A"
"""Messages as a class writes them; most of the others' harmless ones are twins of attacks, hard on purpose."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Message:
    """What training knows of a message; ``written`` is None for one that was generated."""

    label: Label
    group: str | None
    weight: float
    written: Example | None = None

    @property
    def attack(self) -> bool:
        """Whether it has one of the three labels that the classifier finds."""
        return self.label in ATTACKS


def training_messages(examples: Sequence[Example]) -> list[tuple[Message, str]]:
    """The train side and what is generated beside it, with texts.

    ``UNSAFE`` is left out: finding it is no fault, and not finding it neither.
    """
    seen = [e for e in examples if e.split == "train" and e.label is not Label.UNSAFE]
    written = [(Message(e.label, e.group, 1.0, e), e.text) for e in seen]
    return written + [(Message(x.label, x.group, x.weight), x.text) for x in extras(examples)]


class Space:
    """Which features count, and where each stands in a matrix: n-grams, then pairs, then ideas."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Take the windows that tell which features are common enough."""
        seen: tuple[Counter[str], Counter[str], Counter[str]] = (Counter(), Counter(), Counter())
        for window in texts:
            for counts, found in zip(seen, (ngrams(window), pairs(window), ideas(window)), strict=True):
                counts.update(found)
        least = (NGRAM_IN, PAIR_IN, IDEA_IN)
        self.names = [sorted(n for n, c in counts.items() if c >= k) for counts, k in zip(seen, least, strict=True)]
        self._places: list[dict[str, int]] = []
        start = 0
        for names in self.names:
            self._places.append({name: start + i for i, name in enumerate(names)})
            start += len(names)
        self.width = start

    def matrix(self, texts: Sequence[str]) -> csr_matrix:
        """One line for each window."""
        values, places, ends = array("d"), array("i"), [0]
        for window in texts:
            characters, words = sizes(window)
            worth = (NGRAM_VALUE / characters, PAIR_VALUE / words, IDEA_VALUE)
            for known, found, value in zip(
                self._places, (ngrams(window), pairs(window), ideas(window)), worth, strict=True
            ):
                here = sorted(known[name] for name in found if name in known)
                places.extend(here)
                values.extend([value] * len(here))
            ends.append(len(places))
        return csr_matrix((np.array(values), np.array(places), ends), shape=(len(texts), self.width))


@dataclass(frozen=True, slots=True)
class Rows:
    """Windows of messages as lines of a matrix; ``owners`` says whose each is."""

    messages: list[Message]
    space: Space
    matrix: csr_matrix
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, known: Sequence[tuple[Message, str]]) -> Rows:
        """Cut into windows and count."""
        parts = [list(windows(folded(text))) for _, text in known]
        texts = [part for here in parts for part in here]
        space = Space(texts)
        owners = np.repeat(np.arange(len(known)), [len(here) for here in parts])
        return cls([message for message, _ in known], space, space.matrix(texts), owners)

    def best(self, scores: Numbers) -> Numbers:
        """The highest score of each message's windows."""
        highest = np.full(len(self.messages), -np.inf)
        np.maximum.at(highest, self.owners, scores)
        return highest


@dataclass(frozen=True, slots=True)
class Fitted:
    """A linear detector: a weight for each column of the matrix, most of them 0, and a bias."""

    weights: Numbers
    bias: float

    def scores(self, matrix: csr_matrix) -> Numbers:
        """Above 0 for what looks more like an attack."""
        return np.asarray(matrix @ self.weights + self.bias)


def fit(rows: Rows, chosen: NDArray[np.bool_] | None = None) -> Fitted:
    """Fit attacks against honest messages, on the lines that are ``chosen`` (all without it).

    Columns are scaled by how differently often they occur in the two, so that the solver trusts them by that (Wang and
    Manning 2012, "Baselines and Bigrams", with the root of the ratio's logarithm).
    """
    used = np.ones(len(rows.owners), dtype=bool) if chosen is None else chosen
    owners = [rows.messages[i] for i in rows.owners[used]]
    wanted, weights = np.array([o.attack for o in owners]), np.array([o.weight for o in owners])
    scale = _telling_apart(rows.matrix[used], wanted, weights)
    matrix = rows.matrix[used] @ diags_array(scale)
    first = np.abs(_svm(matrix, wanted, weights).coef_[0])
    moves = first * np.sqrt(np.asarray(matrix.multiply(matrix).sum(0)).ravel())
    kept = np.sort(np.argsort(-moves, kind="stable")[:KEPT])
    svm = _svm(matrix[:, kept], wanted, weights)
    whole = np.zeros(rows.space.width)
    whole[kept] = svm.coef_[0] * scale[kept]
    return Fitted(whole, float(svm.intercept_[0]))


def _telling_apart(matrix: csr_matrix, wanted: NDArray[np.bool_], weights: Numbers) -> Numbers:
    """A factor for each column, 1 in the mean."""
    there = (matrix > 0).astype(float).T
    of_attacks, of_others = SMOOTHING + there @ (weights * wanted), SMOOTHING + there @ (weights * ~wanted)
    ratio = np.sqrt(np.abs(np.log((of_attacks / of_attacks.sum()) / (of_others / of_others.sum()))))
    return np.asarray(ratio / ratio.mean())


def telling(rows: Rows) -> NDArray[np.bool_]:
    """The lines to learn from: of a long attack only one, for the others are honest text.

    It is the one that looks most like an attack to a first detector, which knows the short ones.
    """
    attack = np.array([message.attack for message in rows.messages])[rows.owners]
    alone = np.bincount(rows.owners)[rows.owners] == 1
    scores = fit(rows, ~attack | alone).scores(rows.matrix)
    chosen: NDArray[np.bool_] = ~attack | (scores == rows.best(scores)[rows.owners])
    return chosen


def _svm(matrix: csr_matrix, wanted: NDArray[np.bool_], weights: Numbers | None = None) -> LinearSVC:
    balance = None if weights is not None else "balanced"
    return LinearSVC(C=COST, class_weight=balance, tol=1e-4, max_iter=20_000, random_state=0).fit(
        matrix, wanted, sample_weight=weights
    )


def cross_validated(rows: Rows, lines: NDArray[np.bool_]) -> Numbers:
    """The score of each written message by a detector that saw none of its group, and none of its forms."""
    written = [i for i, message in enumerate(rows.messages) if message.written]
    labels = [rows.messages[i].label.value for i in written]
    groups = [rows.messages[i].group for i in written]
    scores = np.full(len(rows.messages), -np.inf)
    for _, unseen in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups):
        away = {groups[i] for i in unseen}
        seen = np.array([message.group not in away for message in rows.messages])
        judged = rows.best(fit(rows, lines & seen[rows.owners]).scores(rows.matrix))
        for i in unseen:
            scores[written[i]] = judged[written[i]]
    return scores


def threshold(messages: Sequence[Message], scores: Numbers, false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest score above which at most this share of the harmless messages lies that are like an exam's."""
    harmless = sorted(
        (
            score
            for message, score in zip(messages, scores, strict=True)
            if message.written and message.label is Label.HARMLESS and message.written.author == LIKE_AN_EXAM
        ),
        reverse=True,
    )
    return float(harmless[int(false_alarms * len(harmless))])


def trained(examples: Sequence[Example], false_alarms: float = FALSE_ALARMS) -> dict[str, Any]:
    """The artefact made from the train side of the examples; ``false_alarms`` as for ``threshold``."""
    rows = Rows.of(training_messages(examples))
    lines = telling(rows)
    scores = cross_validated(rows, lines)
    limit = threshold(rows.messages, scores, false_alarms)
    detector = fit(rows, lines)
    weights = detector.weights
    cuts = np.cumsum([len(names) for names in rows.space.names])
    by_kind = np.split(weights, cuts[:-1])
    values = (NGRAM_VALUE, PAIR_VALUE, IDEA_VALUE)
    named = {
        kind: _levels(names, found * value)
        for kind, names, found, value in zip(
            ("ngrams", "pairs", "ideas"), rows.space.names, by_kind, values, strict=True
        )
    }
    return {
        "format": FORMAT,
        "made_from": fingerprint(),
        "threshold": math.ceil(limit * PARTS),
        "bias": int(np.rint(detector.bias * PARTS)),
        "cross_validated": reached(rows.messages, scores, limit),
        **named,
        "kinds": _kinds(rows, lines),
    }


def reached(messages: Sequence[Message], scores: Numbers, limit: float) -> dict[str, float]:
    """Share of the written messages of each label that cross-validation scores above the limit, in thousandths."""
    found: dict[str, float] = {}
    for label in (*ATTACKS, Label.HARMLESS):
        here = [s for m, s in zip(messages, scores, strict=True) if m.written and m.label is label]
        found[label.value] = round(sum(score > limit for score in here) / max(1, len(here)), 4)
    return found


def _kinds(rows: Rows, lines: NDArray[np.bool_]) -> dict[str, Any]:
    """Of attacks, which kind: by ideas alone."""
    attack = lines & np.array([message.attack for message in rows.messages])[rows.owners]
    start = len(rows.space.names[0]) + len(rows.space.names[1])
    matrix = rows.matrix[attack][:, start:]
    labels = [rows.messages[i].label for i in rows.owners[attack]]
    kinds: dict[str, Any] = {}
    for label in ATTACKS:
        svm = _svm(matrix, np.array([found is label for found in labels]))
        kinds[label.value] = {
            "bias": int(np.rint(svm.intercept_[0] * PARTS)),
            "ideas": _levels(rows.space.names[2], svm.coef_[0] * IDEA_VALUE),
        }
    return kinds


def _levels(names: Sequence[str], weights: Numbers) -> dict[str, str]:
    """Names by their weight in thousandths, a line for each name; what weighs nothing is left out."""
    levels: defaultdict[int, list[str]] = defaultdict(list)
    for name, weight in zip(names, weights, strict=True):
        level = _rounded(weight * PARTS)
        if level:
            levels[level].append(name)
    return {str(level): "\n".join(levels[level]) for level in sorted(levels)}


def _rounded(thousandths: float) -> int:
    """To two digits, for a third would not tell anything."""
    whole = int(np.rint(thousandths))
    step = 10 ** max(0, len(str(abs(whole))) - 2)
    return int(round(whole / step) * step)


def fingerprint() -> str:
    """A hash of all that the artefact is made from: messages, grammar, and the code that reads them and trains."""
    code = [Path(str(module.__file__)) for module in (normalising, guard_features, guard_lexicon)]
    code += [Path(str(module.__file__)) for module in (data, generating, grammar, wrapping)]
    files = [*code, Path(__file__), *sorted(data.FOLDER.rglob("*.jsonl")), *sorted(grammar.FOLDER.glob("*.txt"))]
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def serialised(artefact: Mapping[str, Any]) -> str:
    """The artefact as it is written: sorted keys, one top-level key a line."""
    lines = [
        f"{json.dumps(key)}:{json.dumps(artefact[key], ensure_ascii=False, sort_keys=True, separators=(',', ':'))}"
        for key in sorted(artefact)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
