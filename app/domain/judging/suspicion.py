"""Passages that may speak to whoever judges a prompt. A suspicion costs a call (the probe), never a mark.

So it may be wide: it asks whether a passage talks about judging at all, in plain writing or in a disguise that a model
reads (letters that look like others, letter by letter, backwards, rot13, leet, first letters of lines, base64, hex,
bits, Morse, percent signs, escapes). Whether a passage does anything to the judge, the probe tells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from app.domain.judging.readings import acrostic, decoded, readings, with_latin_letters
from app.domain.judging.talk import ALONE, ENOUGH, HEAVY, VALUES, is_order, is_suspicious, names_in

_UNIT = re.compile(r"[^\n.!?。…]{0,400}(?:[.!?。…]+(?=[\s\"'”’)\]]|[가-힣]|$)|[.!?…]|\n|\Z|)[\"'”’)\]}]*\s*")
_CLAUSE = re.compile(r"[^\n,;:()\"“”'‘’—–|]*(?:(?:[,;:()\"“”—–|]|(?<!\w)['‘]|['’](?!\w)|\n)+\s*|['’‘]|\Z)")
_THIRD_SCRIPT = re.compile("[\u0370-\u05ff\u0600-\u0e7f\u3040-\u30ff\u3400-\u9fff]{2,}|[À-ÖØ-öø-ÿ]")
_ENGLISH_WORD = re.compile(r"(?<![\w.(])[A-Za-z]{2,}(?![\w(.]\w)")
_COMMON = frozenset(
    [
        "a",
        "an",
        "the",
        "is",
        "are",
        "was",
        "be",
        "it",
        "its",
        "in",
        "on",
        "of",
        "to",
        "and",
        "or",
        "for",
        "with",
        "from",
        "by",
        "at",
        "as",
        "if",
        "so",
        "no",
        "not",
        "this",
        "that",
        "these",
        "i",
        "my",
        "me",
        "you",
        "your",
        "we",
        "do",
        "does",
        "did",
        "can",
        "how",
        "what",
        "why",
        "when",
        "which",
        "where",
        "write",
        "make",
        "use",
        "return",
        "add",
        "get",
        "all",
        "each",
        "one",
        "two",
        "than",
        "then",
        "but",
    ]
)
_LONG_SENTENCE = 7
_WINDOW = 1_000
_MANY = 5
_CACHED_TEXTS = 512


@dataclass(frozen=True, slots=True)
class Passage:
    """``text[start:end]`` of what is shown, and what of judging it names; ``hidden``: read in a disguise."""

    start: int
    end: int
    names: frozenset[str]
    hidden: bool = False


@lru_cache(_CACHED_TEXTS)
def passages(text: str) -> tuple[Passage, ...]:
    """Suspicious sentences of a text as it is shown, in their order; empty for most prompts."""
    found = list(_units(text, _UNIT, 0, len(text)))
    loud = {at for at, unit in enumerate(found) if unit.hidden or is_suspicious(unit.names)}
    named = frozenset[str]().union(*(unit.names for unit in found))
    if len(named & HEAVY) > ENOUGH:
        loud |= {at for at, unit in enumerate(found) if unit.names & HEAVY}
    for at, (one, other) in enumerate(pairwise(found)):  # an order may be cut in two by a full stop
        both = one.names | other.names
        if one.names & HEAVY and other.names & HEAVY and len(both & HEAVY) >= ENOUGH:
            loud |= {at, at + 1}
    if not loud:
        return (Passage(0, len(text), frozenset(), hidden=True),) if is_order(names_in(acrostic(text))) else ()
    # What talks of judging elsewhere is often the rest of the order; the probe is asked about all of it together.
    return tuple(unit for at, unit in enumerate(found) if at in loud or unit.names & HEAVY)


def is_to_the_judge(passage: Passage) -> bool:
    """Whether a passage names what hardly any sentence about code does, or hides something."""
    names = passage.names
    return passage.hidden or bool(names & ALONE) or ("mark" in names and bool(names & {"value", "digit", "criterion"}))


@lru_cache(_CACHED_TEXTS)
def mentions_judging(text: str) -> bool:
    """Whether anything in a text as it is shown names a thing of judging; a fifth of honest prompts does.

    High values and digits are the talk of every program: they count where somebody is told to do something with them.
    What that misses is found by its marks, where they are too good (`trials.is_too_good`).
    """
    found = list(_units(text, _UNIT, 0, len(text)))
    names = frozenset[str]().union(*(unit.names for unit in found))
    valued = bool(names & VALUES) and names >= {"order", "frame"}
    return bool(names & (HEAVY - VALUES)) or valued or any(unit.hidden for unit in found) or is_unusual(text)


def is_unusual(text: str) -> bool:
    """Whether a text is of a kind in which no word list finds anything: encoded, in a third language, repeating."""
    encoded = any(
        sum(sign.isalpha() for sign in reading) > 1 and reading not in text and reading.isprintable()
        for at in range(0, len(text), _WINDOW)
        for reading in decoded(text[at : at + 2 * _WINDOW])  # Morse looks like many sentences
    )
    if encoded or _THIRD_SCRIPT.search(text):
        return True
    shapes = Counter(
        re.sub(r"\w+", "w", line.strip())[-12:] for line in re.split(r"[\n,.]", text) if len(line.split()) > 1
    )
    words = Counter(re.findall(r"\w+", text))
    if max(shapes.values(), default=0) >= _MANY and max(words.values(), default=0) >= _MANY:
        return True
    sentences = (_ENGLISH_WORD.findall(unit.group()) for unit in _UNIT.finditer(text))
    return any(len(said) >= _LONG_SENTENCE and not _COMMON & {word.lower() for word in said} for said in sentences)


def talking(text: str) -> tuple[Passage, ...]:
    """All sentences that name anything of judging, be it only a word."""
    return tuple(unit for unit in _units(text, _UNIT, 0, len(text)) if unit.names or unit.hidden)


def clauses(text: str, sentence: Passage) -> list[Passage]:
    """The parts of a suspicious sentence that talk of judging; all of it where the order is hidden in the whole."""
    found = list(_units(text, _CLAUSE, sentence.start, sentence.end))
    talking = [unit for unit in found if unit.names & HEAVY or unit.hidden]
    return talking if talking and not sentence.hidden else [sentence]


def talks_of_judging(text: str) -> bool:
    """Whether a comment or a string names anything of judging at all; stricter than for prose: orders hide there."""
    units = [unit.group() for unit in _UNIT.finditer(text)]
    return any(names_in(reading) for unit in units for reading in (with_latin_letters(unit), *readings(unit)))


def _units(text: str, shape: re.Pattern[str], start: int, end: int) -> Iterator[Passage]:
    for unit in shape.finditer(text, start, end):
        said = unit.group()
        if not said.strip():
            continue
        names = names_in(with_latin_letters(said))
        hidden = not is_suspicious(names) and any(is_order(names_in(reading)) for reading in readings(said))
        yield Passage(unit.start(), unit.end(), names, hidden)
