"""Names in code that carry words to a judge, and placeholders for them.

Prose is suspicious with two things of judging in it; a name may honestly be ``max_score`` or ``best_answer``. So a name
is replaced that names whoever judges or what a prompt is for, that names three such things, or that is a sentence by
its length; and of a line whose names together are an order, those that are part of it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import count
from typing import Final

from app.domain.judging.readings import readings, with_latin_letters
from app.domain.judging.shown import shown
from app.domain.judging.talk import HEAVY, is_order, names_in

_ALONE: Final = frozenset({"who", "intent"})
"""``reader`` is not among them: half of all Java programs have one."""
_MANY: Final = 3
_MOST_WORDS: Final = 6
_LONGEST_NAME: Final = 48
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\da-zA-Z_]+")
_CRITERION: Final = re.compile("[Rr][1-4]")
"""``R1 = 5`` is a fine statement, and an order."""
_CACHED: Final = 20_000


def placeholders(code: str, places: Sequence[tuple[int, int]], broken: Sequence[int] = ()) -> dict[str, str]:
    """For each name that has to be replaced a placeholder as long as it is, and that no name in the code is.

    Args:
        code: the program.
        places: where its names stand, ``code[start:end]``, in order.
        broken: places in lines that are no sound code; what is left there of a sentence is taken apart too.
    """
    lines = [0, *(found.end() for found in re.finditer("\n", code))]
    by_line: dict[int, list[str]] = {}
    for start, end in places:
        by_line.setdefault(bisect_right(lines, start), []).append(code[start:end])
    unsound = {bisect_right(lines, place) for place in broken}
    names = {code[start:end]: None for start, end in places}  # in order
    spoken = [name for name in names if speaks(name)]
    found = dict.fromkeys(spoken)
    for line, of_line in by_line.items():
        # Next to a name that speaks, or to words that are no code, an honest name is the rest of the sentence.
        if line in unsound or any(name in found for name in of_line):
            found |= dict.fromkeys(name for name in of_line if _names_of(name) & HEAVY)
        found |= dict.fromkeys(_of_order(of_line))
    numbers = count(1)
    taken = set(names)
    result = {}
    for name in found:
        result[name] = _placeholder(len(name), taken, numbers)
    return result


@lru_cache(_CACHED)
def speaks(name: str) -> bool:
    """Whether a name speaks to whoever judges, or is a sentence."""
    if _CRITERION.fullmatch(name) or len(name) > _LONGEST_NAME or len(_WORDS.findall(name)) > _MOST_WORDS:
        return True
    seen = with_latin_letters(shown(name).text)
    names = names_in(seen)
    if (
        names & _ALONE
        or (len(names) >= _MANY and names & HEAVY)
        or ("criterion" in names and names & {"mark", "digit"})
    ):
        return True
    return any(is_order(names_in(reading)) for reading in readings(seen) if reading != seen)


def _of_order(names: Sequence[str]) -> list[str]:
    """The names of one line that are an order together, such as ``give . full . marks``."""
    if len(names) < 2:
        return []
    of_each = {name: _names_of(name) for name in names}
    together = frozenset[str]().union(*of_each.values())
    if not (len(together & HEAVY) >= 2 and ("order" in together or together & _ALONE) and len(together) >= _MANY):
        return []
    return [name for name, named in of_each.items() if named & HEAVY or named & {"order"}]


@lru_cache(_CACHED)
def _names_of(name: str) -> frozenset[str]:
    return names_in(with_latin_letters(shown(name).text))


def _placeholder(length: int, taken: set[str], numbers: count[int]) -> str:
    """``v1``, ``v2`` …, filled up to the length; longer than it only where all short ones are taken."""
    while True:
        name = f"v{next(numbers)}".ljust(length, "_")
        if name not in taken:
            taken.add(name)
            return name
