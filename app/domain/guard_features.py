"""What the guard's classifier counts in a message: character n-grams, and which ideas stand together.

N-grams alone know phrasings they were trained on. An attack is an idea, though: somebody (the assistant, the grader) is
to do something (reveal, drop, award) with something of the exam (instructions, rules, marks). So words are also looked
up in a small lexicon of such ideas, and those that stand within a few words of each other are counted in pairs. Pure;
the same for training and for judging.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterator
from functools import lru_cache

from app.domain.guard_lexicon import FIRST_LETTERS, LONGEST_LATIN, LONGEST_OTHER, STEMS

SMALLEST, LARGEST = 2, 5
"""Lengths of the n-grams, in characters; they go across words."""
WINDOW, STRIDE = 320, 240
"""Characters of a window, and from the start of one to the start of the next."""
NEAR = 6
"""Words from one idea to another that still make a pair."""
MOST_NEAR = 11
"""Ideas after one that are looked at: a word may be written together of several."""
HEAD, TAIL = 8_000, 4_000
"""Of longer messages only this many characters at either end are read, so that judging takes bounded time."""

_WORD = re.compile(
    r"r[1-4]\b|@?[a-zß-ÿ]+(?:['’][a-z]+)?\+?|[0-9]*[가-힣ㅠ]+|[\u3040-\u30ff\u4e00-\u9fff]+|[0-9]+(?:/[0-9]+)?"
)


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


def ngrams(window: str, known: Container[str] | None = None) -> Counter[str]:
    """How often each n-gram (of those that are ``known``) occurs in ``window``, with a space before and after it."""
    padded = f" {window} "
    found: list[str] = []
    for size in range(SMALLEST, LARGEST + 1):
        found += [padded[i : i + size] for i in range(len(padded) - size + 1)]
    return Counter(found if known is None else filter(known.__contains__, found))


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
