"""What the guard's classifier looks for in a message: character n-grams, and words and ideas near each other.

N-grams alone know phrasings they were trained on. An attack is an idea, though: somebody (the assistant, the grader) is
to do something (reveal, drop, award) with something of the exam (instructions, rules, marks). So words near each other
are looked at in pairs, and they are looked up in a small lexicon of such ideas, which are paired too. What counts is
whether something is there, not how often.

Each feature is a number of 32 bits, made of its characters: no list of names is kept, and whole windows are numbered at
once. Those that training met often have a slot in a table each, by some bits of the number; others of the number, the
slot's tag, tell them from what the table does not know, which counts nothing. (Feature hashing, Weinberger et al. 2009,
has no tags; there whatever is rare or new adds the weights of something else.) Pure; the same for training and judging.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.domain.guard_lexicon import FIRST_LETTERS, LONGEST_LATIN, LONGEST_OTHER, STEMS

SLOTS = 1 << 20
"""Places of the table of known features, one for each; of those that fall into one place the commonest has it."""
TAGS = 127
"""Different tags, from 1; of what has no slot one in so many is taken for what has. 0 is the tag of an empty slot."""

SMALLEST, LARGEST = 2, 5
"""Lengths of the n-grams, in characters; they go across words."""
LATIN_STEM, OTHER_STEM = 5, 2
"""Characters of a word's beginning that stand for it in a pair."""
BESIDE = 4
"""Words after one that it makes a pair with."""
WINDOW, STRIDE = 480, 360
"""Characters of a window, and from the start of one to the start of the next."""
NEAR = 6
"""Words from one idea to another that still make a pair."""
MOST_NEAR = 11
"""Ideas after one that are looked at: a word may be written together of several."""
FEWEST_CHARACTERS, FEWEST_WORDS = 20, 4
"""A shorter window counts as one of this length."""
HEAD, TAIL = 8_000, 4_000
"""Of longer messages only this many characters at either end are read, so that judging takes bounded time."""

_WORD = re.compile(
    r"r[1-4]\b|@?[a-zß-ÿ]+(?:['’][a-z]+)?\+?|[0-9]*[가-힣ㅠ]+|[\u3040-\u30ff\u4e00-\u9fff]+|[0-9]+(?:/[0-9]+)?"
)

_PLAIN_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[가-힣]+")
_BETWEEN_HANGUL = re.compile(r"(?<=[가-힣]) (?=[가-힣])")

_NEXT_CHARACTER, _NEXT_WORD, _WORD_NEAR = np.uint32(0x01000193), np.uint32(0x27D4EB2F), np.uint32(0x165667B1)
"""What a hash is multiplied by before that of the next part is added; odd, so that nothing of it is lost."""
_OF_SIZE = 0x1000003

Numbers = NDArray[np.uint32]


def windows(folded: str) -> Iterator[str]:
    """The parts of a folded message that are judged each by itself; together they are all of it."""
    if len(folded) > HEAD + TAIL:
        folded = f"{folded[:HEAD]} {folded[-TAIL:]}"
    if len(folded) <= WINDOW + STRIDE // 4:
        yield folded
        return
    overlap = WINDOW - STRIDE
    for start in range(0, len(folded) - overlap, STRIDE):
        yield folded[start : start + WINDOW]


class Features(NamedTuple):
    """Numbers of a window's features of each kind, 32 bits, ascending, each once."""

    ngrams: Numbers
    pairs: Numbers
    ideas: Numbers


def features(window: str) -> Features:
    """All that is looked for in a window of folded text."""
    return Features(ngrams(window), pairs(window), _mixed(_hashes("!", ideas(window))))


def slots_of(numbers: Numbers) -> Numbers:
    """The slots that features with these numbers may have: from 0 below ``SLOTS``."""
    return numbers & np.uint32(SLOTS - 1)


def tags_of(numbers: Numbers) -> NDArray[np.uint8]:
    """The tags of features with these numbers, 1 to ``TAGS``, of bits that do not decide the slot."""
    return ((numbers >> np.uint32(24)) % np.uint32(TAGS) + np.uint32(1)).astype(np.uint8)


def known(tags: NDArray[np.uint8], numbers: Numbers) -> NDArray[np.bool_]:
    """Which of the features have their slot in a table with these tags, shape (``SLOTS``,)."""
    return np.asarray(tags[slots_of(numbers)] == tags_of(numbers))


def ngrams(window: str) -> Numbers:
    """The n-grams of ``window``, with a space before and after it.

    Korean is read as if written without spaces.
    """
    text = f" {window if window.isascii() else _BETWEEN_HANGUL.sub('', window)} "
    # Lone surrogates are characters of a message as well.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    rolling, found = codes, []
    for size in range(2, LARGEST + 1):
        rolling = rolling[:-1] * _NEXT_CHARACTER + codes[size - 1 :] if len(codes) >= size else codes[:0]
        if size >= SMALLEST:
            found.append(rolling + np.uint32(size * _OF_SIZE))
    return _mixed(np.concatenate(found))


def pairs(window: str) -> Numbers:
    """Words of ``window`` alone and in pairs, in their order.

    Both beginnings of words, alone and with those of words near after them, and whole words, alone and with the next.
    """
    words = _PLAIN_WORD.findall(window)
    stems = _hashes("_", [word[: LATIN_STEM if word[0] < "\u3040" else OTHER_STEM] for word in words])
    whole = _hashes("=", words)
    found = [stems, whole, whole[:-1] * _NEXT_WORD + whole[1:]]
    found += [stems[:-ahead] * _WORD_NEAR + stems[ahead:] for ahead in range(1, BESIDE + 1)]
    return _mixed(np.concatenate(found))


def _hashes(kind: str, names: Iterable[str]) -> Numbers:
    return np.array([_hash(kind + name) for name in names], np.uint32)


@lru_cache(maxsize=32_768)  # people use the same words over and over
def _hash(name: str) -> int:
    return zlib.crc32(name.encode("utf-8", "surrogatepass"))


def _mixed(hashes: Numbers) -> Numbers:
    """The numbers of features by their hashes, whose bits alone would be too much alike (finaliser of MurmurHash 3)."""
    mixed = hashes ^ (hashes >> np.uint32(16))
    mixed *= np.uint32(0x85EBCA6B)
    mixed ^= mixed >> np.uint32(13)
    mixed *= np.uint32(0xC2B2AE35)
    mixed ^= mixed >> np.uint32(16)
    mixed.sort()  # what `np.unique` does by hashes, which takes three times as long
    last_of_its_kind = np.ones(len(mixed), bool)
    last_of_its_kind[:-1] = mixed[:-1] != mixed[1:]
    return mixed[last_of_its_kind]


def sizes(window: str) -> tuple[float, float]:
    """What the weights of n-grams and of pairs are divided by: a window is not suspicious for its length."""
    return math.sqrt(max(FEWEST_CHARACTERS, len(window))), math.sqrt(max(FEWEST_WORDS, window.count(" ") + 1))


def ideas(window: str) -> set[str]:
    """Ideas in ``window``, ordered pairs near each other as ``A>B``, those of neighbouring words also as ``A>>B``."""
    placed = [(place, found) for place, word in enumerate(_WORD.findall(window)) for found in _ideas_of(word)]
    seen = {idea for _, found in placed for idea in found}
    for index, (place, found) in enumerate(placed):
        for there, other in placed[index + 1 : index + 1 + MOST_NEAR]:
            if there - place > NEAR:
                break
            pairs = [f"{one}>{two}" for one in found for two in other if one != two]
            seen.update(pairs)
            if there - place <= 1:
                seen.update([pair.replace(">", ">>") for pair in pairs])
    return seen


@lru_cache(maxsize=16_384)  # people use the same words over and over
def _ideas_of(word: str) -> list[tuple[str, ...]]:
    whole = STEMS.get(f"={word}")
    if whole is not None:
        return [whole]
    if word[0] < "\u3040":
        return [found] if (found := _at(word, 0)[0]) else []
    parts: list[tuple[str, ...]] = []
    place = 0
    while place < len(word):  # words are written together: 시스템프롬프트
        found, length = _at(word, place)
        if found:
            parts.append(found)
        place += length
    return parts


def _at(word: str, start: int) -> tuple[tuple[str, ...], int]:
    """Ideas of the longest stem at ``start``, and its length."""
    if word[start] not in FIRST_LETTERS:
        return (), 1
    longest = LONGEST_LATIN if word[start] < "\u3040" else LONGEST_OTHER
    for end in range(min(len(word), start + longest), start, -1):
        known = STEMS.get(word[start:end])
        if known is not None and (end - start > 1 or start == 0 or end == len(word)):
            return known, end - start
    return (), 1
