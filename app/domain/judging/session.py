"""A whole session as a panel is shown it: the candidate's prompts and the assistant's answers, cut to a size."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from app.domain.judging.requests import shown_text, suspicious_cuts
from app.domain.judging.shown import CLOSE, OPEN, Cut, ShownText
from app.domain.judging.tasks import Withhold

BUDGET: Final = 48_000
"""What a panel is shown of a session, prompts and answers, in `weight`; about 12,000 tokens."""
_CAPS: Final = (
    *((8_000, 1_600), (8_000, 800), (8_000, 400), (8_000, 200), (4_000, 200)),
    *((2_000, 200), (1_000, 200), (1_000, 0), (500, 0)),
)
"""The longest prompt and the longest answer, tried in this order: what is marked is cut last."""
_GAP = re.compile(f"{OPEN}… ([0-9]+) …{CLOSE}")
_RAW_END = 8_000
"""Characters of each end of a text that are looked at; what lies between them would be cut in any case."""
_LABEL_WEIGHT = 10
_HEAD = 0.6
"""Of what is left of a text that is cut; the rest is its end."""
_CACHED_SESSIONS = 16


@dataclass(frozen=True, slots=True)
class PanelTurn:
    """A turn of a session.

    Attributes:
        number: 1, 2 …; rising, with gaps where turns do not count.
        prompt: as the candidate sent it.
        answer: the assistant's; empty where there is none.
        withheld: parts of the prompt, ``(start, end)``, that acted on the judge when the turn was judged.
    """

    number: int
    prompt: str
    answer: str = ""
    withheld: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ShownTurn:
    """A turn as it is shown; it is known where each character stands in what was sent."""

    number: int
    prompt: ShownText
    answer: ShownText


@dataclass(frozen=True, slots=True)
class ShownSession:
    """What is shown of a session, and how much of it is not.

    Attributes:
        turns: those that are shown.
        left_out: the numbers of those that are not, since the session is too long.
        prompt_characters: characters of prompts that are not shown for their length.
        answer_characters: the same of answers.
    """

    turns: tuple[ShownTurn, ...]
    left_out: tuple[int, ...] = ()
    prompt_characters: int = 0
    answer_characters: int = 0

    def prompt(self, number: int) -> ShownText | None:
        """The prompt of that number, if it is shown."""
        return next((turn.prompt for turn in self.turns if turn.number == number), None)

    @property
    def is_quotable(self) -> bool:
        """Whether anything of a prompt is left that could be quoted."""
        return any(
            sign.isalnum() and start >= 0
            for turn in self.turns
            for sign, start in zip(turn.prompt.text, turn.prompt.starts, strict=True)
        )

    def prompts_text(self) -> str:
        """The prompts under their numbers, and where some are missing."""
        return "\n\n".join(_labelled([(turn.number, turn.prompt.text) for turn in self.turns], self.left_out))

    def answers_text(self) -> str:
        """The answers under the numbers of their prompts; empty where there is none."""
        return "\n\n".join(
            _labelled([(turn.number, turn.answer.text) for turn in self.turns if turn.answer.text.strip()], ())
        )


@lru_cache(_CACHED_SESSIONS)
def shown_session(turns: tuple[PanelTurn, ...], withhold: Withhold) -> ShownSession:
    """A session for a panel's eyes, `BUDGET` at most. The same session is always cut in the same way.

    Long texts lose their middle, answers before prompts; only then turns are left out, between the first ones and the
    last ones.
    """
    whole = [
        ShownTurn(turn.number, _shown(turn.prompt, turn.withheld, withhold), _shown(turn.answer, (), withhold))
        for turn in turns
    ]
    caps = next((caps for caps in _CAPS if _size(whole, *caps) <= BUDGET), _CAPS[-1])
    kept = _ends(
        [ShownTurn(turn.number, shortened(turn.prompt, caps[0]), shortened(turn.answer, caps[1])) for turn in whole]
    )
    numbers = {turn.number for turn in kept}
    return ShownSession(
        turns=tuple(kept),
        left_out=tuple(turn.number for turn in turns if turn.number not in numbers),
        prompt_characters=sum(_gone(turn.prompt) for turn in kept),
        answer_characters=sum(_gone(turn.answer) for turn in kept),
    )


def weight(text: str) -> int:
    """A text's size: its characters, those of Korean and of other wide scripts twice, as they are in tokens."""
    return len(text) + sum(character > "\u2e7f" for character in text)


def shortened(text: ShownText, most: int) -> ShownText:
    """The text without so much of its middle that ``most`` is left of its `weight`."""
    removed = _middle(text.text, most)
    if removed is None:
        return text
    start, end = removed
    before = max(text.ends[:start], default=0)
    after = next((place for place in text.starts[end:] if place >= 0), max(text.ends))
    return text.without([Cut(start, end, _gap(max(after - before, 0)))])


def _shown(text: str, withheld: Sequence[tuple[int, int]], withhold: Withhold) -> ShownText:
    """A text for the judge's eyes; only the ends of a very long one."""
    if len(text) <= 2 * _RAW_END:
        return _shown_piece(text, 0, withheld, withhold)
    end = len(text) - _RAW_END
    head = _shown_piece(text[:_RAW_END], 0, withheld, withhold)
    tail = _shown_piece(text[end:], end, withheld, withhold)
    gap = _gap(end - _RAW_END)
    nowhere = (-1,) * len(gap)
    return ShownText(
        head.text + gap + tail.text,
        (*head.starts, *nowhere, *tail.starts),
        (*head.ends, *nowhere, *tail.ends),
    )


def _shown_piece(text: str, at: int, withheld: Sequence[tuple[int, int]], withhold: Withhold) -> ShownText:
    visible = shown_text(text, Withhold.NOTHING)
    cuts = list(suspicious_cuts(text, withhold))
    for start, end in withheld:
        inside = [index for index, place in enumerate(visible.starts) if place >= 0 and start <= place + at < end]
        if inside:
            cuts.append(Cut(inside[0], inside[-1] + 1))
    seen = visible.without(cuts)
    if not at:
        return seen
    moved = (tuple(place if place < 0 else place + at for place in places) for places in (seen.starts, seen.ends))
    return ShownText(seen.text, *moved)


def _gap(characters: int) -> str:
    return f"{OPEN}… {characters} …{CLOSE}"


def _gone(seen: ShownText) -> int:
    """Characters that are not shown for the text's length."""
    return sum(int(number) for number in _GAP.findall(seen.text))


def _middle(text: str, most: int) -> tuple[int, int] | None:
    """What to leave out of a text's middle; ``None`` where it is short enough."""
    if weight(text) <= most:
        return None
    start = _reach(text, most * _HEAD)
    end = len(text) - _reach(text[::-1], most * (1 - _HEAD))
    return start, max(start, end)


def _reach(text: str, most: float) -> int:
    """How many characters from the start weigh ``most`` at most."""
    for at, character in enumerate(text):
        most -= 2 if character > "\u2e7f" else 1
        if most < 0:
            return at
    return len(text)


def _size(turns: Sequence[ShownTurn], prompt: int, answer: int) -> int:
    return sum(
        min(weight(turn.prompt.text), prompt) + min(weight(turn.answer.text), answer) + _LABEL_WEIGHT for turn in turns
    )


def _ends(turns: Sequence[ShownTurn]) -> list[ShownTurn]:
    """The turns that fit: from the start and from the end, two of the end for each of the start."""
    room = BUDGET
    kept: list[int] = []
    for place in _from_both_ends(len(turns)):
        room -= _size([turns[place]], BUDGET, BUDGET)
        if room < 0:
            break
        kept.append(place)
    return [turns[place] for place in sorted(kept)]


def _from_both_ends(count: int) -> Iterator[int]:
    first, last = 0, count - 1
    for step in range(count):
        if step % 3 == 0:
            yield first
            first += 1
        else:
            yield last
            last -= 1


def _labelled(texts: Sequence[tuple[int, str]], left_out: Sequence[int]) -> Iterator[str]:
    for at, (number, text) in enumerate(texts):
        before = texts[at - 1][0] if at else 0
        missing = [other for other in left_out if before < other < number]
        if missing:
            yield f"{OPEN}#{missing[0]}–#{missing[-1]} …{CLOSE}"
        yield f"{OPEN}#{number}{CLOSE}\n{text}"
