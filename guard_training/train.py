"""Train the guard's classifier and write ``app/domain/guard_model.xz``: ``python -m guard_training``.

Only the train side is looked at: which features count, their weights, and, by cross-validation over groups of the
written messages, the threshold. The same data give the same file to the last bit: order is sorted, chance is drawn from
the data, the solver's seed is fixed, and of its result only a few digits are kept.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags_array
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.neural_network import MLPClassifier

from app.domain import guard_features, guard_lexicon, normalising
from app.domain.guard_classifier import FORMAT, KINDS
from app.domain.guard_features import SLOTS, features, known, sizes, slots_of, tags_of, windows
from app.domain.normalising import folded
from guard_training import data, generating, grammar, wrapping
from guard_training.data import ATTACKS, Example, Label
from guard_training.generating import extras

VALUES = np.array([0.5, 0.45, 0.1])
"""Value of an n-gram, a pair and an idea that is there, before those of the first two are divided by the window's size:
the less, the more careful the solver is with it."""
OUTPUTS = (Label.HARMLESS, *(Label(kind) for kind in KINDS))
FEWEST = 22
"""Windows of the training in which a feature is, for it to have a slot."""
HIDDEN, STRENGTH, DECAY = 4, 3.0, 1e-5
BATCH, RATE, EPOCHS = 512, 0.002, 8
"""Twice as many hidden units, fewer or more epochs, another seed: all came out within a point of recall."""
LEVELS, DIGITS = 11, 5
SMOOTHING = 0.5
"""Added to how often something occurs in attacks, and in honest messages, before the two are compared."""
FOLDS = 5
FALSE_ALARMS = 0.0035
"""Share of harmless messages like an exam's that the threshold lets be flagged in cross-validation. What is promised is
0.005: an estimate by ten messages is easily wrong by a third."""
OUT_OF_REACH, BEYOND_DOUBT = 0.04, 0.005
"""Shares of attacks that score below what is doubtful, and of harmless messages that score above it."""
LIKE_AN_EXAM = frozenset("ABC")
"""Who wrote as a class does; most of the others' harmless messages are twins of attacks, hard on purpose."""

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


@dataclass(frozen=True, slots=True)
class Rows:
    """Windows of messages as lines of a matrix; ``owners`` says whose each is, ``numbers`` what feature a column is."""

    messages: list[Message]
    matrix: csr_matrix
    numbers: NDArray[np.uint32]
    owners: NDArray[np.int64]

    @classmethod
    def of(cls, messages: Sequence[tuple[Message, str]]) -> Rows:
        """Cut into windows and look for features."""
        parts = [list(windows(folded(text))) for _, text in messages]
        owners = np.repeat(np.arange(len(messages)), [len(here) for here in parts])
        matrix, numbers = _matrix([part for here in parts for part in here])
        return cls([message for message, _ in messages], matrix, numbers, owners)

    def best(self, scores: Numbers) -> Numbers:
        """The highest score of each message's windows."""
        highest = np.full(len(self.messages), -np.inf)
        np.maximum.at(highest, self.owners, scores)
        return highest

    def telling(self) -> NDArray[np.bool_]:
        """The lines to learn from: not those of an attack of several windows, for most of them are honest text."""
        attack = np.array([message.attack for message in self.messages])[self.owners]
        alone = np.bincount(self.owners)[self.owners] == 1
        learned: NDArray[np.bool_] = ~attack | alone
        return learned

    def tags(self, chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """A table for the features of the ``chosen`` lines, by their slots: see `guard_features.known`."""
        counts = np.bincount(self.matrix[chosen].indices, minlength=len(self.numbers))
        often = np.flatnonzero(counts >= FEWEST)
        commonest_last = self.numbers[often[np.argsort(counts[often], kind="stable")]]
        tags = np.zeros(SLOTS, np.uint8)
        tags[slots_of(commonest_last)] = tags_of(commonest_last)
        return tags

    def placed(self, tags: NDArray[np.uint8], chosen: NDArray[np.bool_] | slice = slice(None)) -> csr_matrix:
        """The ``chosen`` lines without what the table does not know: a column for each slot that is not empty."""
        lines = self.matrix[chosen]
        kept = known(tags, self.numbers)[lines.indices]
        ends = np.concatenate([[0], np.cumsum(kept)])[lines.indptr]
        taken = np.cumsum(tags > 0, dtype=np.int32)
        places = (taken - 1)[slots_of(self.numbers)][lines.indices[kept]]
        placed = csr_matrix((lines.data[kept], places, ends), shape=(lines.shape[0], taken[-1]))
        placed.sum_duplicates()  # features of two kinds may share a slot, and what is taken for one that has it
        return placed


def _matrix(texts: Sequence[str]) -> tuple[csr_matrix, NDArray[np.uint32]]:
    """One line for each window and a column for each feature that is anywhere; and the features' numbers."""
    values, found, ends = [], [], [0]
    for window in texts:
        kinds = features(window)
        values.append(np.repeat(VALUES / (*sizes(window), 1.0), [len(kind) for kind in kinds]).astype(np.float32))
        found.append(np.concatenate(kinds))
        ends.append(ends[-1] + len(found[-1]))
    numbers, columns = np.unique(np.concatenate(found), return_inverse=True)
    matrix = csr_matrix(
        (np.concatenate(values), columns.astype(np.int32), ends),
        shape=(len(texts), len(numbers)),
    )
    return matrix, numbers


@dataclass(frozen=True, slots=True)
class Fitted:
    """A net with one hidden layer of rectifiers and an output for honest messages and for each kind of attack.

    Shapes: ``tags`` (slots), ``weights`` (slots that are not empty, hidden), ``hidden_bias`` (hidden), ``out`` (hidden,
    4), ``out_bias`` (4).
    """

    tags: NDArray[np.uint8]
    weights: Numbers
    hidden_bias: Numbers
    out: Numbers
    out_bias: Numbers

    def scores(self, rows: Rows) -> Numbers:
        """Logarithm of the odds of an attack, for each line."""
        hidden = np.maximum(rows.placed(self.tags) @ self.weights + self.hidden_bias, 0)
        found = hidden @ self.out + self.out_bias
        return np.asarray(np.logaddexp.reduce(found[:, 1:], axis=1) - found[:, 0])


def fit(rows: Rows, chosen: NDArray[np.bool_], seed: int = 0) -> Fitted:
    """Fit the kinds of attack and honest messages against each other, on the lines that are ``chosen``.

    Columns are scaled by how differently often they occur in attacks and elsewhere, so that the solver trusts them by
    that (Wang and Manning 2012, "Baselines and Bigrams", with the root of the ratio's logarithm).
    """
    owners = [rows.messages[i] for i in rows.owners[chosen]]
    weights = np.array([o.weight for o in owners])
    attacks = np.array([o.attack for o in owners])
    tags = rows.tags(chosen)
    matrix = rows.placed(tags, chosen)
    scale = _telling_apart(matrix, attacks, weights)
    classes = np.array([OUTPUTS.index(o.label) if o.attack else 0 for o in owners])
    net = MLPClassifier(
        (HIDDEN,),
        alpha=DECAY,
        batch_size=BATCH,
        learning_rate_init=RATE,
        max_iter=EPOCHS,
        n_iter_no_change=EPOCHS,
        random_state=seed,
    )
    net.fit(matrix @ diags_array(scale), classes, sample_weight=weights)
    first, out = net.coefs_
    return Fitted(tags, first * scale[:, np.newaxis], net.intercepts_[0], out, net.intercepts_[1])


def _telling_apart(matrix: csr_matrix, wanted: NDArray[np.bool_], weights: Numbers) -> NDArray[np.float32]:
    """A factor for each column, ``STRENGTH`` in the mean."""
    there = (matrix > 0).astype(float).T
    of_attacks, of_others = SMOOTHING + there @ (weights * wanted), SMOOTHING + there @ (weights * ~wanted)
    ratio = np.sqrt(np.abs(np.log((of_attacks / of_attacks.sum()) / (of_others / of_others.sum()))))
    return np.asarray(STRENGTH * ratio / ratio.mean(), np.float32)


def cross_validated(rows: Rows, lines: NDArray[np.bool_]) -> Numbers:
    """The score of each written message by a detector that saw none of its group, and none of its forms."""
    written = [i for i, message in enumerate(rows.messages) if message.written]
    labels = [rows.messages[i].label.value for i in written]
    groups = [rows.messages[i].group for i in written]
    scores = np.full(len(rows.messages), -np.inf)
    folds = [
        unseen for _, unseen in StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0).split(labels, labels, groups)
    ]

    def judged(unseen: NDArray[np.int64]) -> Numbers:
        away = {groups[i] for i in unseen}
        seen = np.array([message.group not in away for message in rows.messages])
        return rows.best(fit(rows, lines & seen[rows.owners]).scores(rows))

    with ThreadPoolExecutor(min(FOLDS, os.cpu_count() or 1)) as pool:
        for number, (unseen, found) in enumerate(zip(folds, pool.map(judged, folds), strict=True), 1):
            for i in unseen:
                scores[written[i]] = found[written[i]]
            print(f"fold {number} of {FOLDS} done", file=sys.stderr)
    return scores


def threshold(messages: Sequence[Message], scores: Numbers, false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest score above which at most this share of the harmless messages lies that are like an exam's."""
    harmless = sorted(
        (
            score
            for message, score in zip(messages, scores, strict=True)
            if message.written and message.label is Label.HARMLESS and message.written.author in LIKE_AN_EXAM
        ),
        reverse=True,
    )
    return float(harmless[int(false_alarms * len(harmless))])


def trained(examples: Sequence[Example], false_alarms: float = FALSE_ALARMS) -> bytes:
    """The artefact made from the train side of the examples; ``false_alarms`` as for ``threshold``."""
    warnings.simplefilter("ignore", ConvergenceWarning)  # it stops early on purpose, before it knows all by heart
    rows = Rows.of(training_messages(examples))
    lines = rows.telling()
    print(f"{len(rows.messages)} messages read; {FOLDS + 1} fits of some minutes each", file=sys.stderr)
    scores = cross_validated(rows, lines)
    limit = threshold(rows.messages, scores, false_alarms)
    about = {
        "format": FORMAT,
        "made_from": fingerprint(),
        "threshold": round(limit, DIGITS),
        "doubt": [round(score, DIGITS) for score in doubt(rows.messages, scores)],
        "cross_validated": reached(rows.messages, scores, limit),
        "values": VALUES.tolist(),
    }
    return serialised(fit(rows, lines), about)


def doubt(messages: Sequence[Message], scores: Numbers) -> tuple[float, float]:
    """The score that all attacks but few reach, and the one that hardly a harmless message does."""
    written = [i for i, message in enumerate(messages) if message.written]
    attacks = scores[[i for i in written if messages[i].attack]]
    harmless = scores[[i for i in written if messages[i].label is Label.HARMLESS]]
    return float(np.quantile(attacks, OUT_OF_REACH)), float(np.quantile(harmless, 1 - BEYOND_DOUBT))


def reached(messages: Sequence[Message], scores: Numbers, limit: float) -> dict[str, float]:
    """Share of the written messages of each label that cross-validation scores above the limit, in thousandths."""
    found: dict[str, float] = {}
    for label in (*ATTACKS, Label.HARMLESS):
        here = [s for m, s in zip(messages, scores, strict=True) if m.written and m.label is label]
        found[label.value] = round(sum(score > limit for score in here) / max(1, len(here)), 4)
    return found


def fingerprint() -> str:
    """A hash of all that the artefact is made from: messages, grammar, and the code that reads them and trains."""
    code = [Path(str(module.__file__)) for module in (normalising, guard_features, guard_lexicon)]
    code += [Path(str(module.__file__)) for module in (data, generating, grammar, wrapping)]
    files = [*code, Path(__file__), *sorted(data.FOLDER.rglob("*.jsonl")), *sorted(grammar.FOLDER.glob("*.txt"))]
    whole = hashlib.sha256()
    for file in files:
        whole.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def serialised(fitted: Fitted, about: Mapping[str, Any]) -> bytes:
    """The artefact as it is written: see `GuardClassifier`. A weight is one of ``2 * LEVELS + 1`` steps from 0.

    A hidden unit's step is chosen so that of its weights one in a thousand is cut off.
    """
    steps = np.quantile(np.abs(fitted.weights), 0.999, axis=0) / LEVELS
    levels = np.clip(np.rint(fitted.weights / steps), -LEVELS, LEVELS).astype(np.int8)
    rounded = {"steps": steps, "hidden_bias": fitted.hidden_bias, "out": fitted.out, "out_bias": fitted.out_bias}
    head = {**about, **{name: np.round(numbers, DIGITS).tolist() for name, numbers in rounded.items()}}
    whole = json.dumps(head, sort_keys=True).encode() + b"\n" + fitted.tags.tobytes() + levels.tobytes()
    # There is nothing to be found in such bytes but how often each occurs.
    by_bytes_alone = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 0, "pb": 0}
    return lzma.compress(whole, filters=[by_bytes_alone])
