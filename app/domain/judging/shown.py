"""What a judge is shown of a text, character by character traced back to where it stands in the original.

A judge reads no invisible characters, no lookalike of the marks that its instructions are built with, and no words in
place of which something else was put (`Cut`). A quote of what was shown is a quote of the original, and `locate` says
of which part.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

OPEN, CLOSE = "⟦", "⟧"
"""The brackets of all marks in a request. In what is shown of a text they are `[` and `]`."""
LEFT_OUT = "⟦…⟧"
"""Stands for words that are withheld."""
SHORTEST_QUOTE = 4
"""Letters and digits that a quote needs, unless it is the whole text; a syllable's or a word's sign counts twice."""

_NOWHERE = -1
_CHAT_TOKENS = re.compile(
    r"<\|[^|<>\n]{0,40}\|>|<[｜|]|[|｜]>|\[/?INST\]|<</?SYS>>"
    r"|</?s>|</?(?:system|user|assistant|human|developer|tool|im_start|im_end|start_of_turn|end_of_turn)\b[^>\n]{0,40}>"
    r"|\{\{|\}\}|\{%|%\}|\$\{",
    re.IGNORECASE,
)
_VISIBLE_FORM = str.maketrans("<>|[]{}%$", "‹›¦⁅⁆❴❵٪﹩")
_UNSEEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""What Unicode calls ignorable by default, fillers of Hangul among it, and Braille's empty cell.

None is shown, and each would keep two letters of a word apart: for the word rules, and where it is a mark also for
NFKC. Real letters of Hangul are none of these.
"""
_MARKS = {"Mn", "Me"}
_DROPPED = {"Cf", "Cc", "Co", "Cn"}
_KEPT_CONTROLS = "\n\t"


@dataclass(frozen=True, slots=True)
class Cut:
    """``text[start:end]`` of what is shown is to be replaced by ``by``, which is no word of the original's author."""

    start: int
    end: int
    by: str = LEFT_OUT


@dataclass(frozen=True, slots=True)
class ShownText:
    """``text`` as it is shown; character ``i`` of it stands for ``original[starts[i]:ends[i]]``, or for none (-1)."""

    text: str
    starts: tuple[int, ...]
    ends: tuple[int, ...]

    def without(self, cuts: Iterable[Cut]) -> ShownText:
        """The same with all cuts made; of cuts that overlap the first one is made, and the rest of a later one."""
        texts: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for cut in sorted(cuts, key=lambda cut: (cut.start, -cut.end)):
            if cut.end <= at:
                continue
            begin = max(at, cut.start)
            texts += (self.text[at:begin], cut.by)
            starts += (*self.starts[at:begin], *[_NOWHERE] * len(cut.by))
            ends += (*self.ends[at:begin], *[_NOWHERE] * len(cut.by))
            at = cut.end
        texts.append(self.text[at:])
        return ShownText("".join(texts), (*starts, *self.starts[at:]), (*ends, *self.ends[at:]))

    def locate(self, quote: str) -> tuple[int, int] | None:
        """Where in the original a verbatim quote stands; ``None`` where it is none.

        White space counts alike whatever and how much it is, and a quote may be written in the original's or in the
        shown form. One that holds words put there in place of others, or has too few letters, is none.
        """
        wanted = "".join(_squeezed(shown(quote).text)[0]).strip()
        pieces, places = _squeezed(self.text)
        whole = "".join(pieces)
        if not wanted or (_weight(wanted) < SHORTEST_QUOTE and _weight(wanted) < _weight(whole)):
            return None
        at = whole.find(wanted)
        while at >= 0:
            inside = range(places[at], places[at + len(wanted) - 1] + 1)
            if all(self.starts[index] != _NOWHERE for index in inside):
                return self.starts[inside[0]], self.ends[inside[-1]]
            at = whole.find(wanted, at + 1)
        return None


def shown(text: str) -> ShownText:
    """A text without what cannot be seen, in NFKC, its reserved marks made harmless."""
    pieces: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    places = _seen_places(text)
    text = _UNSEEN.sub("", text)
    for start, end in _clusters(text):
        piece = _seen(text[start:end])
        pieces.append(piece)
        starts += [places[start]] * len(piece)
        ends += [places[end - 1] + 1] * len(piece)
    plain = "".join(pieces)
    # One for one, so that every index stays where it is.
    plain = plain.replace(OPEN, "[").replace(CLOSE, "]")
    plain = _CHAT_TOKENS.sub(lambda found: found.group().translate(_VISIBLE_FORM), plain)
    return ShownText(plain, tuple(starts), tuple(ends))


def _seen_places(text: str) -> Sequence[int]:
    """Where in a text each of its characters stands that is not left out."""
    unseen = {found.start() for found in _UNSEEN.finditer(text)}
    return [index for index in range(len(text)) if index not in unseen] if unseen else range(len(text))


def _clusters(text: str) -> Iterable[tuple[int, int]]:
    """Spans of a character with the marks and the conjoining jamo that follow it: what NFKC may make one."""
    start = 0
    for index in range(1, len(text) + 1):
        if index == len(text) or not _joins(text[index]):
            yield start, index
            start = index


def _joins(character: str) -> bool:
    return not character.isascii() and (
        unicodedata.category(character) in _MARKS or "\u1160" <= character <= "\u11ff"  # vowels and finals of Hangul
    )


def _seen(cluster: str) -> str:
    if cluster.isascii() and (cluster.isprintable() or cluster in _KEPT_CONTROLS):
        return cluster
    head, marks = cluster[0], cluster[1:]
    if unicodedata.category(head) == "Cs":
        return "\ufffd"
    kept = "" if unicodedata.category(head) in _DROPPED and head not in _KEPT_CONTROLS else head
    if not marks and "\u3130" <= head <= "\u318f":
        return head  # a Hangul letter alone: NFKC makes another of it, which fonts show as a fragment
    # More marks than any script needs only hide what they stand on; NFKC sorts them in quadratic time.
    return unicodedata.normalize("NFKC", kept + marks[:3]) if kept or len(marks) <= 3 else ""


def _squeezed(text: str) -> tuple[list[str], list[int]]:
    """Characters with every run of white space as one blank, and where each stands."""
    pieces: list[str] = []
    places: list[int] = []
    for index, character in enumerate(text):
        blank = character.isspace()
        if blank and pieces and pieces[-1] == " ":
            continue
        pieces.append(" " if blank else character)
        places.append(index)
    return pieces, places


def _weight(text: str) -> int:
    return sum((2 if character > "\u2e7f" else 1) for character in text if character.isalnum())
