r"""Messages made by a grammar: the language that some thousand written ones do not hold.

``data/grammar/*.txt`` lists ideas and the words they are said with. A line is an idea; ``(a|b)`` is a choice, ``[a|b]``
one that may be left out, ``<name>`` a choice that has a name (``name = a | b``; what has none is text, such as
``<system>``), ``{을}`` a Korean particle that fits the word before it, ``\`` takes a character as it is. Under
``> technique`` stand its ideas. The same files give the same messages: which choice is taken is decided by the idea and
a number, not by a generator with a state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from guard_training.data import Label

FOLDER = Path(__file__).parent / "data" / "grammar"
LABELS = {
    "exfiltration": Label.PROMPT_EXFILTRATION,
    "judge": Label.JUDGE_MANIPULATION,
    "jailbreak": Label.JAILBREAK,
    "harmless": Label.HARMLESS,
    "twins": Label.HARMLESS,
}
PARTICLES = {
    "을": ("을", "를"),
    "이": ("이", "가"),
    "은": ("은", "는"),
    "과": ("과", "와"),
    "도": ("도", "도"),
    "이다": ("이", ""),
    "으로": ("으로", "로"),
}
"""Korean particles: their forms after a consonant and after a vowel."""
MOST_TRIES = 5


class GrammarError(ValueError):
    """A line of a grammar that cannot be read; says which and why."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several sequences; an empty one says nothing."""

    options: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True, slots=True)
class Name:
    """A choice that is defined elsewhere."""

    of: str


Part = str | Choice | Name


@dataclass(frozen=True, slots=True)
class Idea:
    """A line of a grammar: ``source`` names file and line."""

    label: Label
    language: str
    technique: str
    source: str
    parts: tuple[Part, ...]
    names: Mapping[str, Choice]


@dataclass(frozen=True, slots=True)
class Made:
    """A message made from an idea."""

    idea: Idea
    text: str


def ideas(folder: Path = FOLDER) -> list[Idea]:
    """All ideas of all grammars, sorted by file and line.

    Raises:
        GrammarError: a bracket is missing or one too many, or an idea stands under no technique.
    """
    found: list[Idea] = []
    for language in ("en", "ko"):
        shared = _Reader(folder / f"words.{language}.txt", {}).read()[1]
        for kind, label in LABELS.items():
            lines, names = _Reader(folder / f"{kind}.{language}.txt", shared).read()
            shared |= names
            found += [Idea(label, language, technique, source, parts, names) for technique, source, parts in lines]
    return found


def made(idea: Idea, count: int) -> Iterator[Made]:
    """At most ``count`` different messages of an idea."""
    seen: set[str] = set()
    for number in range(count * MOST_TRIES):
        seed = hashlib.sha256(f"{idea.label}/{idea.language}/{idea.source.split(':')[0]}/{number}/".encode())
        seed.update(repr(idea.parts).encode())
        random = Random(int.from_bytes(seed.digest()[:8], "big"))
        text = _tidy(_said(idea.parts, idea.names, random))
        if text and text not in seen:
            seen.add(text)
            yield Made(idea, text)
            if len(seen) == count:
                return


def _said(parts: tuple[Part, ...], names: Mapping[str, Choice], random: Random) -> str:
    words: list[str] = []
    for part in parts:
        if isinstance(part, str):
            words.append(part)
            continue
        choice = names[part.of] if isinstance(part, Name) else part
        words.append(_said(choice.options[int(random.random() * len(choice.options))], names, random))
    return "".join(words)


_PARTICLE = re.compile(rf"(.)\s*\{{({'|'.join(PARTICLES)})\}}")


def _particle(found: re.Match[str]) -> str:
    before, particle = found.groups()
    final = (ord(before) - ord("가")) % 28 if "가" <= before <= "힣" else 0
    consonant = final != 0 and not (particle == "으로" and final == 8)  # 로 after ㄹ
    return before + PARTICLES[particle][0 if consonant else 1]


def _tidy(text: str) -> str:
    text = _PARTICLE.sub(_particle, text)
    text = " ".join(text.split())
    return re.sub(r" (?=[.,!?;:](?: |$))", "", text)


class _Reader:
    """Reads one file."""

    def __init__(self, file: Path, names: Mapping[str, Choice]) -> None:
        self.file = file
        self.names = dict(names)

    def read(self) -> tuple[list[tuple[str, str, tuple[Part, ...]]], dict[str, Choice]]:
        lines: list[tuple[str, str, tuple[Part, ...]]] = []
        technique = ""
        for number, line in self._lines():
            if line.startswith("> "):
                technique = line[2:].strip()
            elif found := re.match(r"([^\W\d]\w*) = (.*)", line) if not technique else None:
                self.names[found.group(1)] = self._choice(number, found.group(2))
            else:
                lines.append((technique, f"{self.file.name}:{number}", self._sequence(number, line)))
        self._check(lines)
        return lines, self.names

    def _lines(self) -> Iterator[tuple[int, str]]:
        waiting: tuple[int, str] | None = None
        for number, line in enumerate(self.file.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith(" ") and waiting:
                waiting = (waiting[0], waiting[1] + line)
                continue
            if waiting:
                yield waiting
            waiting = (number, line) if line.strip() and not line.startswith("# ") else None
        if waiting:
            yield waiting

    def _choice(self, number: int, text: str) -> Choice:
        options, rest = self._options(number, text + ")", 0, ")")
        if rest != len(text) + 1:
            raise GrammarError(f"{self.file.name}, line {number}: a bracket is closed that was not opened")
        return Choice(tuple(tuple(_stripped(option)) for option in options))

    def _sequence(self, number: int, text: str) -> tuple[Part, ...]:
        return tuple(self._parts(number, text, 0, "")[0])

    def _options(self, number: int, text: str, place: int, end: str) -> tuple[list[list[Part]], int]:
        options: list[list[Part]] = []
        while True:
            parts, place = self._parts(number, text, place, "|" + end)
            options.append(parts)
            if place >= len(text):
                raise GrammarError(f"{self.file.name}, line {number}: {end!r} is missing")
            if text[place] == end:
                return options, place + 1
            place += 1

    def _parts(self, number: int, text: str, place: int, ends: str) -> tuple[list[Part], int]:
        parts: list[Part] = []
        while place < len(text) and text[place] not in ends:
            here = text[place]
            if here == "\\" and place + 1 < len(text):
                parts.append(text[place + 1])
                place += 2
            elif here in "([":
                options, place = self._options(number, text, place + 1, ")" if here == "(" else "]")
                silence: tuple[tuple[Part, ...], ...] = ()
                if here == "[":  # as often said as not; words around it stay apart
                    silence = ((" ",),) * len(options)
                parts.append(Choice(tuple(map(tuple, options)) + silence))
            elif here == "<" and (named := re.match(r"<([^\W\d]\w*)>", text[place:])):
                if named.group(1) in self.names:
                    parts.append(Name(named.group(1)))
                else:
                    parts.append(named.group())
                place += named.end()
            else:
                parts.append(here)
                place += 1
        return _joined(parts), place

    def _check(self, lines: list[tuple[str, str, tuple[Part, ...]]]) -> None:
        for technique, source, _ in lines:
            if not technique:
                raise GrammarError(f"{source}: an idea stands before the first '> technique'")


def _joined(parts: list[Part]) -> list[Part]:
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _stripped(parts: list[Part]) -> list[Part]:
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return parts
