"""The language in which a Core is told to misbehave, and what it decides for each try of an event.

::

    500:0.1,reset:0.05                       one try in ten gets 500, one in twenty a reset connection
    down 20s then 503=2:0.5 1m then up       away, then half of all is put off by two seconds, then all is well

A decision depends on the seed, the event's session, its number and which try it is, and on nothing else: so however the
tries of several sessions fall among each other, the same run of events meets the same faults.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from app.fake_core.answer import Answer

WORDS: Mapping[str, str] = {
    "NNN": "answers with that status (300 to 599) and stores nothing. 429 and 503 say Retry-After: `503=5:0.1` "
    "asks for 5 seconds, 1 unless told. 410 ends an event, 400, 413 and 422 do at the third time",
    "hang": "stores nothing and never answers: the sender gives up after its own time limit",
    "reset": "stores nothing and resets the connection",
    "lost-answer": "stores the event, then resets the connection: the sender cannot know, and comes again with the "
    "same id",
    "lost-event": "answers 200 and stores nothing: no sender comes again after a 200, so only the feed of events "
    "(GET /api/callbacks/events) brings it back",
    "slow": "stores the event and answers 200 after a while: `slow=3:0.1` after 3 seconds, 1 unless told",
    "forget": "forgets all ids it has seen before it takes this one: what comes again is then stored again",
    "dead": "this share of the sessions, chosen by the seed, gets 500 for every try, and the others never",
}
"""Every word and what Core does then. Each stands with its probability, `WORD:0.1`."""

PHASES: Mapping[str, str] = {
    "down": "every POST's connection is reset before it is read",
    "up": "every POST is taken",
}
"""What stands in the place of words with probabilities."""

_STATUS = range(300, 600)
_ASKS_FOR_PATIENCE = {429, 503}
_WITH_SECONDS = {"slow", *map(str, _ASKS_FOR_PATIENCE)}
_DEFAULT_S = 1.0
_LONGEST_S = 86_400.0
_FAULT = re.compile(r"(?P<word>[a-z-]+|\d{3})(?:=(?P<seconds>\d+(?:\.\d+)?))?:(?P<share>\d*\.?\d+)")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(s|m)")
_UNIT_S = {"s": 1.0, "m": 60.0}


class ChaosError(ValueError):
    """What Core was told cannot be read; the message says which part and why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What Core does with one POST.

    Attributes:
        word: by which it was asked for.
        stores: whether the event is stored, before the answer.
        forgets: whether all ids are forgotten first.
    """

    word: str
    answer: Answer
    stores: bool = False
    forgets: bool = False


@dataclass(frozen=True, slots=True)
class _Phase:
    text: str
    seconds: float
    state: Literal["up", "down", "faults"]
    faults: Sequence[tuple[float, Fault]] = ()
    dead: float = 0.0


class Chaos:
    """Decides what becomes of each try.

    Args:
        text: in the language of this module; empty: all is well.
        seed: another one, other decisions.

    Raises:
        ChaosError: the text cannot be read.
    """

    def __init__(self, text: str = "", seed: int = 0) -> None:
        self.text = text
        self.seed = seed
        self._phases = [_phase(part.strip()) for part in re.split(r"\bthen\b", text)] if text.strip() else []

    def now(self, age_s: float) -> str:
        """The phase ``age_s`` seconds after the start, as it was written; ``up`` after the last one."""
        return self._at(age_s).text

    def down(self, age_s: float) -> bool:
        """Whether nothing is even read ``age_s`` seconds after the start."""
        return self._at(age_s).state == "down"

    def decide(self, event: str, session_id: str, number: int, age_s: float) -> Fault | None:
        """What becomes of a try; ``None``: it is taken.

        Args:
            event: names the event, the same at every try.
            session_id: its session.
            number: which try of it this is, from 1.
            age_s: seconds since the start.
        """
        phase = self._at(age_s)
        if phase.dead and self._draw(f"dead/{session_id}") < phase.dead:
            return Fault("dead", Answer(status=500))
        if not phase.faults:
            return None
        drawn = self._draw(f"{event}/{number}")
        for share, fault in phase.faults:
            drawn -= share
            if drawn < 0:
                return fault
        return None

    def _draw(self, what: str) -> float:
        return random.Random(f"{self.seed}/{what}").random()  # noqa: S311  # chance, and no secret

    def _at(self, age_s: float) -> _Phase:
        for phase in self._phases:
            if age_s < phase.seconds:
                return phase
            age_s -= phase.seconds
        return _UP


_UP = _Phase("up", math.inf, "up")


def _phase(text: str) -> _Phase:
    parts = re.sub(r"\s*([,:=])\s*", r"\1", text).split()
    seconds = math.inf
    if len(parts) > 1 and (duration := _DURATION.fullmatch(parts[-1])):
        seconds = float(duration[1]) * _UNIT_S[duration[2]]
        parts.pop()
    if len(parts) != 1:
        raise ChaosError(
            f"`{text}` cannot be read: words stand between commas, a duration such as `20s` or `5m` behind them, "
            "and `then` between one time and the next."
        )
    if parts[0] == "up":
        return _Phase(text, seconds, "up")
    if parts[0] == "down":
        return _Phase(text, seconds, "down")
    faults, dead = [], 0.0
    for part in parts[0].split(","):
        share, fault = _fault(part)
        if fault.word == "dead":
            dead = share
        else:
            faults.append((share, fault))
    if sum(share for share, _ in faults) > 1 + 1e-9:
        raise ChaosError(f"`{parts[0]}`: the probabilities together are above 1.")
    return _Phase(text, seconds, "faults", faults, dead)


def _fault(text: str) -> tuple[float, Fault]:
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ChaosError(f"`{text}` cannot be read: a word and its probability look like `reset:0.05`.")
    word, share = match["word"], float(match["share"])
    is_status = word.isdigit() and int(word) in _STATUS
    if not is_status and (word not in WORDS or word == "NNN"):
        raise ChaosError(f"`{word}` is no word of this language.")
    if share > 1:
        raise ChaosError(f"`{text}`: a probability lies between 0 and 1.")
    if match["seconds"] is not None and word not in _WITH_SECONDS:
        raise ChaosError(f"`{text}`: only {', '.join(sorted(_WITH_SECONDS))} take seconds.")
    seconds = float(match["seconds"] or _DEFAULT_S)
    if seconds > _LONGEST_S:
        raise ChaosError(f"`{text}`: a day at most.")
    return share, _meaning(word, seconds)


def _meaning(word: str, seconds: float) -> Fault:
    if word.isdigit():
        headers = (("Retry-After", f"{seconds:g}"),) if int(word) in _ASKS_FOR_PATIENCE else ()
        return Fault(word, Answer(status=int(word), headers=headers))
    return {
        "hang": Fault(word, Answer(action="hang")),
        "reset": Fault(word, Answer(action="reset")),
        "lost-answer": Fault(word, Answer(action="reset"), stores=True),
        "lost-event": Fault(word, Answer()),
        "slow": Fault(word, Answer(delay_s=seconds), stores=True),
        "forget": Fault(word, Answer(), stores=True, forgets=True),
        "dead": Fault(word, Answer(status=500)),
    }[word]
