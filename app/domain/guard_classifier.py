"""The trained part of the guard: how much a message looks like an attack, and which kind. No model server.

A net with one small hidden layer over what ``guard_features`` finds; ``guard_training`` makes ``guard_model.xz``. A
message is judged window by window and its score is the highest one, so that an attack in a long honest request is not
averaged away.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.domain.guard_features import SLOTS, features, known, sizes, slots_of, windows
from app.domain.normalising import folded

ARTEFACT = Path(__file__).parent / "guard_model.xz"
FORMAT = 4
KINDS = ("PROMPT_EXFILTRATION", "JUDGE_MANIPULATION", "JAILBREAK")
"""What the net's outputs after the first, which stands for honest messages, are for."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the classifier makes of one message.

    ``score`` is the logarithm of the odds of an attack as training saw them, in which attacks are frequent. ``label``
    names the most likely kind of attack (``PROMPT_EXFILTRATION``, ``JUDGE_MANIPULATION`` or ``JAILBREAK``) where the
    score passes the threshold that training chose, else it is None. ``labels`` has the kind of each window whose score
    does: one message may hold several attacks.
    """

    score: float
    label: str | None
    labels: frozenset[str] = frozenset()


class GuardClassifier:
    """A classifier read from an artefact; made once, safe to share between tasks and threads."""

    def __init__(self, artefact: bytes) -> None:
        """Take the bytes of ``guard_model.xz``.

        They are, compressed, a line of JSON, the tags of the slots and then the hidden layer's weights, a byte each and
        a row for each slot that is not empty.

        Raises:
            ValueError: the artefact has another format.
        """
        head, _, rest = lzma.decompress(artefact).partition(b"\n")
        self.about: dict[str, Any] = json.loads(head)
        if self.about.get("format") != FORMAT:
            raise ValueError(f"format {self.about.get('format')!r} of the guard's model is not {FORMAT}: train it anew")
        self.threshold: float = self.about["threshold"]
        self.doubt: tuple[float, float] = (self.about["doubt"][0], self.about["doubt"][1])
        """Scores between which the classifier is not sure: nearly all attacks lie above the one, and hardly an honest
        message above the other, in cross-validation on the training side."""
        self._tags = np.frombuffer(rest[:SLOTS], np.uint8)
        taken = np.flatnonzero(self._tags)
        rows = np.frombuffer(rest[SLOTS:], np.int8).reshape(len(taken), -1)
        self._weights = np.zeros((SLOTS, rows.shape[1]), np.int8)
        self._weights[taken] = rows
        self._steps = np.array(self.about["steps"])
        self._values = np.array(self.about["values"])
        self._hidden_bias = np.array(self.about["hidden_bias"])
        self._out = np.array(self.about["out"])
        self._out_bias = np.array(self.about["out_bias"])

    def judge(self, message: str) -> Suspicion:
        """Judge one message: under 1 ms for 500 characters, and bounded for the longest one."""
        judged = [self._judged(window) for window in windows(folded(message))]
        labels = [label for score, label in sorted(judged, reverse=True) if score > self.threshold]
        return Suspicion(max(judged)[0], labels[0] if labels else None, frozenset(labels))

    def _judged(self, window: str) -> tuple[float, str]:
        """The score of one window, and the attack that it is if it is one."""
        characters, words = sizes(window)
        worth = self._values / (characters, words, 1.0)
        found = [slots_of(numbers[known(self._tags, numbers)]) for numbers in features(window)]
        sums = [self._weights[slots].sum(axis=0, dtype=np.int32) for slots in found]
        hidden = np.maximum(worth @ np.array(sums) * self._steps + self._hidden_bias, 0.0)
        honest, *attacks = (hidden @ self._out + self._out_bias).tolist()
        kind = max(range(len(KINDS)), key=attacks.__getitem__)
        return float(np.logaddexp.reduce(attacks)) - honest, KINDS[kind]


@cache
def guard_classifier() -> GuardClassifier:
    """The classifier that ships with the service; read once, in some tens of milliseconds."""
    return GuardClassifier(ARTEFACT.read_bytes())
