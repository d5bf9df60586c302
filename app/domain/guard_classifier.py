"""The trained part of the guard: how much a message looks like an attack, and which kind. Pure Python, no model server.

A linear model over what ``guard_features`` counts; ``guard_training`` makes ``guard_model.json``. A message is judged
window by window and its score is the highest one, so that an attack in a long honest request is not averaged away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.guard_features import ideas, ngrams, pairs, sizes, windows
from app.domain.normalising import folded

ARTEFACT = Path(__file__).parent / "guard_model.json"
FORMAT = 2
PARTS = 1000
"""Numbers of the artefact are whole thousandths, so that the last bits of a solver's result do not show."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the classifier makes of one message.

    ``score`` has no unit. ``label`` names the most likely kind of attack (``PROMPT_EXFILTRATION``,
    ``JUDGE_MANIPULATION`` or ``JAILBREAK``) where the score passes the threshold that training chose, else it is None.
    ``labels`` has the kind of each window whose score does: one message may hold several attacks.
    """

    score: float
    label: str | None
    labels: frozenset[str] = frozenset()


class GuardClassifier:
    """A linear classifier read from an artefact; made once, safe to share between tasks."""

    def __init__(self, artefact: Mapping[str, Any]) -> None:
        """Take the parsed ``guard_model.json``.

        Raises:
            ValueError: the artefact has another format.
        """
        if artefact.get("format") != FORMAT:
            raise ValueError(f"format {artefact.get('format')!r} of the guard's model is not {FORMAT}: train it anew")
        self.threshold: float = artefact["threshold"] / PARTS
        self._bias: float = artefact["bias"] / PARTS
        self._ngrams = _weights(artefact["ngrams"])
        self._pairs = _weights(artefact["pairs"])
        self._ideas = _weights(artefact["ideas"])
        self._kinds = {
            label: (kind["bias"] / PARTS, _weights(kind["ideas"])) for label, kind in artefact["kinds"].items()
        }

    def judge(self, message: str) -> Suspicion:
        """Judge one message: under 1 ms for 500 characters, and bounded for the longest one."""
        scored = sorted(((self._score(window), window) for window in windows(folded(message))), reverse=True)
        kinds = [self._kind_of(window) for score, window in scored if score > self.threshold]
        return Suspicion(scored[0][0], kinds[0] if kinds else None, frozenset(kinds))

    def _score(self, window: str) -> float:
        characters, words = sizes(window)
        return (
            self._bias
            + math.fsum(map(self._ngrams.__getitem__, ngrams(window, self._ngrams))) / characters
            + _sum(self._pairs, pairs(window)) / words
            + _sum(self._ideas, ideas(window))
        )

    def _kind_of(self, window: str) -> str:
        found = ideas(window)
        scores: dict[str, float] = {
            label: bias + _sum(weights, found) for label, (bias, weights) in self._kinds.items()
        }
        return max(sorted(scores), key=lambda label: scores[label])


def _weights(levels: Mapping[str, str]) -> dict[str, float]:
    """Weight by name, of names by weight: a line for each name under the weight they share."""
    return {name: int(weight) / PARTS for weight, names in levels.items() for name in names.split("\n")}


def _sum(weights: Mapping[str, float], found: Set[str]) -> float:
    return math.fsum([weights[name] for name in found if name in weights])


@cache
def guard_classifier() -> GuardClassifier:
    """The classifier that ships with the service; read once, in some tens of milliseconds."""
    return GuardClassifier(json.loads(ARTEFACT.read_text(encoding="utf-8")))
