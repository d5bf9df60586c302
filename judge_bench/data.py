"""The two data sets, read and checked: ``attacks()`` and ``ladder()``.

An entry that is not as the card says (``judge_bench/data/README.md``) ends reading with a ``DataError`` that names the
file, the line and the rule. What only the whole set can break (near duplicates, missing families) is told by
``near_duplicates`` and ``order_told_by_length``, and held by the tests.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from guard_training.data import Example, Label, load
from judge_bench.carriers import Carrier, hides, readings, visible

FOLDER = Path(__file__).parent / "data"
NEAR_DUPLICATE = 0.7
"""Two attacks are near duplicates from this similarity on (Jaccard, sets of five characters in a row)."""
_GRAM = 5
LENGTH_CLASS = 2.0
"""A twin is at most this many times as long, or as short, as its attack (visible characters)."""
_LEVELS = 6

Text = Annotated[str, StringConstraints(min_length=1)]
Row = TypeVar("Row", bound="_Row")


class DataError(ValueError):
    """A data file has a line that breaks a rule; the message names file, line and rule."""


class Intent(StrEnum):
    """What a prompt is, to the rubric."""

    CREATION = "CREATION"
    SETTING = "SETTING"
    REFINEMENT = "REFINEMENT"
    DEBUGGING = "DEBUGGING"
    EXPLORATION = "EXPLORATION"
    FOLLOW_UP = "FOLLOW_UP"


class Family(StrEnum):
    """An attack's technique."""

    DIRECT_ORDER = "direct_order"
    FAKE_RUBRIC = "fake_rubric"
    FAKE_EXAMPLES = "fake_examples"
    MANY_SHOT = "many_shot"
    FAKE_END = "fake_end"
    FAKE_SYSTEM = "fake_system"
    FAKE_VERDICT = "fake_verdict"
    AUTHORITY = "authority"
    PRESSURE = "pressure"
    ROLE_PLAY = "role_play"
    FAKE_EVIDENCE = "fake_evidence"
    OUTPUT_STEERING = "output_steering"
    SELF_PRAISE = "self_praise"
    HIDDEN_IN_CODE = "hidden_in_code"
    HIDDEN_IN_DOCUMENT = "hidden_in_document"
    ENCODED = "encoded"
    LOOKALIKE = "lookalike"
    SPLIT_TURNS = "split_turns"
    ANSWER_RELAY = "answer_relay"
    LANGUAGE_SWITCH = "language_switch"
    RUBRIC_LEAK = "rubric_leak"
    QUIET_PERSUASION = "quiet_persuasion"
    INTENT_SPOOF = "intent_spoof"
    PADDING = "padding"
    PASTED_LOG = "pasted_log"
    TRANSLATE_THIS = "translate_this"
    SANDWICH = "sandwich"
    GUARD_EVASION = "guard_evasion"


class Aim(StrEnum):
    """What an attack wants to move: a criterion, all of them, or a part of the judging."""

    R1 = "R1"
    R2 = "R2"
    R3 = "R3"
    R4 = "R4"
    ALL = "all"
    INTENT = "intent"
    EVIDENCE = "evidence"
    FORMAT = "format"
    GUARD = "guard"


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Attack(_Row):
    """One attack and its harmless twin.

    ``attack`` and ``twin`` are whole prompts as a candidate would send them; ``earlier`` and ``twin_earlier`` the
    candidate's prompts before, in one session, where the attack is split over turns. ``hidden`` is what an encoding or
    a disguise hides, in plain letters. ``bare`` is the honest request alone, where it can stand alone: what the
    attack is worth without its directive.
    """

    id: Annotated[str, StringConstraints(pattern=r"^a-\d{3}$")]
    language: Literal["en", "ko"]
    family: Family
    carrier: Carrier
    aims_at: Aim
    intent: Intent
    attack: Text
    twin: Text
    earlier: tuple[Text, ...] = ()
    twin_earlier: tuple[Text, ...] = ()
    hidden: Text | None = None
    bare: Text | None = None

    @property
    def sent(self) -> str:
        """All that the attacker sends, the turns before included."""
        return "\n".join([*self.earlier, self.attack])

    @property
    def harmless(self) -> str:
        """All that the twin's author sends, the turns before included."""
        return "\n".join([*self.twin_earlier, self.twin])

    @property
    def directive(self) -> str:
        """What of ``sent`` is not in ``harmless``, word by word."""
        sent, harmless = _words(self.sent), _words(self.harmless)
        steps = difflib.SequenceMatcher(None, sent, harmless, autojunk=False).get_opcodes()
        return "".join("".join(sent[start:end]) for step, start, end, _, _ in steps if step != "equal")

    @model_validator(mode="after")
    def _twin_is_a_twin(self) -> Self:
        if not self.directive.strip():
            raise ValueError("twin: it holds all of the attack, so nothing of the attack was taken out")
        if len(self.earlier) != len(self.twin_earlier):
            raise ValueError("twin_earlier: as many turns as in earlier")
        ratio = len(visible(self.harmless)) / len(visible(self.sent))
        if not 1 / LENGTH_CLASS <= ratio <= LENGTH_CLASS:
            raise ValueError(f"twin: {ratio:.2f} times as long as the attack, more than {LENGTH_CLASS} apart")
        if self.bare is not None and not _is_part(_words(self.bare), _words(self.attack)):
            raise ValueError("bare: only words of the attack, in their order, and not all of them")
        return self

    @model_validator(mode="after")
    def _hides_what_it_says(self) -> Self:
        if hides(self.carrier) != (self.hidden is not None):
            raise ValueError(f"hidden: needed for an encoding or a disguise, and for these only ({self.carrier})")
        if self.hidden is None:
            return self
        if self.hidden in self.sent:
            raise ValueError("hidden: it stands in the attack as it is, so nothing is hidden")
        for name, text, expected in [("attack", self.sent, True), ("twin", self.harmless, False)]:
            found = any(_folded(self.hidden) in _folded(reading) for reading in readings(self.carrier, text))
            if found != expected:
                raise ValueError(f"{name}: read as {self.carrier}, it {'lacks' if expected else 'has'} what is hidden")
        return self


class Version(_Row):
    """One prompt of a ladder; ``why`` names what makes it better than the level below (of level 1: what it lacks)."""

    level: Annotated[int, Field(ge=1, le=_LEVELS)]
    text: Text
    why: Text


class Ladder(_Row):
    """Six prompts for one problem, from level 1, the worst, to level 6; ``context`` is what was said before."""

    id: Annotated[str, StringConstraints(pattern=r"^l-\d{2}$")]
    language: Literal["en", "ko"]
    intent: Intent
    problem: Text
    context: str
    versions: tuple[Version, ...]

    @model_validator(mode="after")
    def _levels_are_all_there(self) -> Self:
        if [version.level for version in self.versions] != list(range(1, _LEVELS + 1)):
            raise ValueError("versions: levels 1 to 6, each once, in this order")
        for field in ("text", "why"):
            if len({getattr(version, field) for version in self.versions}) < _LEVELS:
                raise ValueError(f"versions: two have the same {field}")
        needs_context = self.intent in {Intent.REFINEMENT, Intent.DEBUGGING, Intent.FOLLOW_UP}
        if needs_context and not self.context:
            raise ValueError(f"context: {self.intent} is judged by R4, so the ladder needs a conversation before it")
        return self


def attacks(path: Path = FOLDER / "attacks.jsonl") -> tuple[Attack, ...]:
    """All attacks, checked one by one.

    Raises:
        DataError: a line is no JSON, breaks a rule, or repeats an id.
    """
    return tuple(_rows(path, Attack))


def ladder(path: Path = FOLDER / "ladder.jsonl") -> tuple[Ladder, ...]:
    """All ladders, checked one by one.

    Raises:
        DataError: a line is no JSON, breaks a rule, or repeats an id.
    """
    return tuple(_rows(path, Ladder))


def harmless_prompts() -> tuple[Example, ...]:
    """Harmless prompts in English and Korean that use the words of attacks, as the guard is tested with them."""
    return tuple(one for one in load() if one.label is Label.HARMLESS and one.triggers)


def near_duplicates(texts: Iterable[tuple[str, str]], limit: float = NEAR_DUPLICATE) -> list[tuple[str, str, float]]:
    """Pairs of ids whose texts are at least ``limit`` alike, and how much (0 to 1); ``texts`` are pairs of id and text.

    Alike is the share of common among all runs of five characters (Jaccard); case and white space do not count.
    """
    grams = [(name, _grams(text)) for name, text in texts]
    alike = ((one, other, len(a & b) / len(a | b)) for (one, a), (other, b) in combinations(grams, 2))
    return [pair for pair in alike if pair[2] >= limit]


def order_told_by_length(ladders: Sequence[Ladder]) -> float:
    """Share of all pairs of versions in which the better one is also the longer one: 1.0 if length told everything."""
    pairs = [pair for one in ladders for pair in combinations(one.versions, 2)]
    return sum(len(worse.text) < len(better.text) for worse, better in pairs) / len(pairs)


def _rows(path: Path, kind: type[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = kind.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            told = first["msg"].removeprefix("Value error, ")
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path.name}, line {number}: {where and where + ': '}{told}") from None
        name: str = row.id  # type: ignore[attr-defined]
        if name in seen:
            raise DataError(f"{path.name}, line {number}: id {name} is taken, use the next free one")
        seen.add(name)
        yield row


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _is_part(part: list[str], whole: list[str]) -> bool:
    """Whether ``part`` is a shorter sequence of words of ``whole`` in their order; white space does not count."""
    words, all_words = ([word for word in words if not word.isspace()] for words in (part, whole))
    rest = iter(all_words)
    return len(words) < len(all_words) and all(word in rest for word in words)


def _grams(text: str) -> frozenset[str]:
    plain = _folded(text)
    return frozenset(plain[at : at + _GRAM] for at in range(max(1, len(plain) - _GRAM + 1)))
