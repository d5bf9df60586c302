"""The messages that training adds to the written ones: made by the grammar, and written ones wrapped in another form.

None is like a message of the held-out side: what comes near one is left out, so that the held-out side stays unseen.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from guard_training.data import ATTACKS, SAME_FROM, Example, Label, shingles
from guard_training.grammar import Idea, ideas, made
from guard_training.wrapping import beside, wrapped

ATTACKS_OF_AN_IDEA = 22
HARMLESS_OF_AN_IDEA = 40
"""How many messages are made of an idea; there are fewer ideas of harmless ones."""
WEIGHT_MADE, WEIGHT_WRAPPED = 0.2, 0.4
"""What they count in training, where a written message counts 1."""
BESIDE = 0.4
"""Share of written messages that are put next to a harmless one; the others are wrapped like those made."""


@dataclass(frozen=True, slots=True)
class Extra:
    """A message that training adds, and what it counts; ``group`` is that of the written one it was made of, if any."""

    label: Label
    language: str
    group: str | None
    text: str
    weight: float


def extras(examples: Sequence[Example]) -> list[Extra]:
    """What is added to the train side of ``examples``, in a fixed order.

    Written messages stand next to made ones alone, so that cross-validation meets none of the messages it left out.
    """
    written = [e for e in examples if e.split == "train" and (e.label in ATTACKS or e.label is Label.HARMLESS)]
    plain = [
        (idea, message.text)
        for idea in ideas()
        for message in made(idea, HARMLESS_OF_AN_IDEA if idea.label is Label.HARMLESS else ATTACKS_OF_AN_IDEA)
    ]
    neighbours = {
        language: [text for idea, text in plain if idea.label is Label.HARMLESS and idea.language == language]
        for language in ("en", "ko")
    }
    found = [*_made(plain, neighbours), *_wrapped(written, neighbours)]
    known = Unlike(e.text for e in examples if e.split == "held_out")
    return [extra for extra in found if known.is_unlike(extra.text)]


def _made(plain: Iterable[tuple[Idea, str]], neighbours: dict[str, list[str]]) -> Iterator[Extra]:
    for idea, text in plain:
        random = _random(idea.source.partition(":")[0], text)
        changed = wrapped(text, idea.language, neighbours[idea.language], random)
        yield Extra(idea.label, idea.language, None, changed, WEIGHT_MADE)


def _wrapped(written: Iterable[Example], neighbours: dict[str, list[str]]) -> Iterator[Extra]:
    for example in written:
        language = _language(example)
        random = _random(example.id, example.text)
        way = beside if random.random() < BESIDE else wrapped
        text = way(example.text, language, neighbours[language], random)
        yield Extra(example.label, language, example.group, text, WEIGHT_WRAPPED)


def _language(example: Example) -> str:
    return "ko" if example.language == "ko" else "en"


def _random(*names: str) -> Random:
    return Random(int.from_bytes(hashlib.sha256("/".join(names).encode()).digest()[:8], "big"))


class Unlike:
    """Says whether a text is unlike all of some texts, by the share of 5-grams they have in common."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._sizes: list[int] = []
        self._with: defaultdict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            grams = shingles(text)
            self._sizes.append(len(grams))
            for gram in grams:
                self._with[gram].append(number)

    def is_unlike(self, text: str, least: float = SAME_FROM) -> bool:
        """Whether no known text has at least ``least`` (Jaccard) in common with ``text``."""
        grams = shingles(text)
        shared = Counter(number for gram in grams for number in self._with.get(gram, ()))
        return all(count < least * (len(grams) + self._sizes[n] - count) for n, count in shared.items())
