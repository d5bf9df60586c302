"""The trained part of the guard: how much a message looks like an attack, and which kind. Pure Python, no model server.

A linear model over what ``guard_features`` counts; ``guard_training`` makes ``guard_model.json``. A message is judged
window by window and its score is the highest one, so that an attack in a long honest request is not averaged away.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from app.domain.guard_features import ideas, ngrams, windows
from app.domain.normalising import folded

ARTEFACT = Path(__file__).parent / "guard_model.json"
FORMAT = 1
PARTS = 1000
"""Numbers of the artefact are whole thousandths, so that the last bits of a solver's result do not show."""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What the classifier makes of one message.

    ``score`` has no unit. ``label`` names the most likely kind of attack (``PROMPT_EXFILTRATION``,
    ``JUDGE_MANIPULATION`` or ``JAILBREAK``) where the score passes the threshold that training chose, else it is None.
    """

    score: float
    label: str | None


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
        self._ngrams = _table(artefact["ngrams"], artefact["idf"], artefact["ngram_weights"])
        self._ideas = dict(zip(artefact["ideas"], _whole(artefact["idea_weights"]), strict=True))
        self._kinds: dict[str, _Kind] = {
            label: _Kind(
                kind["bias"] / PARTS,
                dict(zip(artefact["ngrams"], _whole(kind["ngram_weights"]), strict=True)),
                dict(zip(artefact["ideas"], _whole(kind["idea_weights"]), strict=True)),
            )
            for label, kind in artefact["kinds"].items()
        }

    def judge(self, message: str) -> Suspicion:
        """Judge one message: about 1 ms for 500 characters, and bounded for the longest one."""
        score, window = max((self._score(window), window) for window in windows(folded(message)))
        return Suspicion(score, self._kind_of(window) if score > self.threshold else None)

    def _score(self, window: str) -> float:
        known = self._ngrams
        dot = squares = 0.0
        for gram, count in ngrams(window, known).items():
            weighted, weight = known[gram]
            if count > 1:
                weighted *= 1 + math.log(count)
            squares += weighted * weighted
            dot += weighted * weight
        weights = self._ideas
        total = self._bias + math.fsum([weights[idea] for idea in ideas(window) if idea in weights])
        return total + dot / math.sqrt(squares) if squares else total

    def _kind_of(self, window: str) -> str:
        known = self._ngrams
        vector = {gram: known[gram][0] * (1 + math.log(count)) for gram, count in ngrams(window, known).items()}
        length = math.sqrt(sum(value * value for value in vector.values())) or 1.0
        found = ideas(window)
        scores = {label: kind.score(vector, length, found) for label, kind in self._kinds.items()}
        return max(sorted(scores), key=lambda label: scores[label])


@dataclass(frozen=True, slots=True)
class _Kind:
    bias: float
    ngrams: Mapping[str, float]
    ideas: Mapping[str, float]

    def score(self, vector: Mapping[str, float], length: float, found: Iterable[str]) -> float:
        dot = sum(value * self.ngrams[gram] for gram, value in vector.items())
        return self.bias + dot / length + math.fsum([self.ideas[idea] for idea in found if idea in self.ideas])


def _whole(thousandths: Iterable[int]) -> Iterable[float]:
    return (number / PARTS for number in thousandths)


def _table(names: Sequence[str], idf: Sequence[int], weights: Sequence[int]) -> dict[str, tuple[float, float]]:
    return dict(zip(names, zip(_whole(idf), _whole(weights), strict=True), strict=True))


@cache
def guard_classifier() -> GuardClassifier:
    """The classifier that ships with the service; read once, in some tens of milliseconds."""
    return GuardClassifier(json.loads(ARTEFACT.read_text(encoding="utf-8")))
