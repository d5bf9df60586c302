"""The labelled messages that train and test the guard: their shape, how they are read, and which side each is on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from app.domain.normalising import folded

FOLDER = Path(__file__).parent / "data"
LANGUAGES = frozenset({"en", "ko", "de", "es", "fr", "ja", "zh"})
HELD_OUT_OF_100 = 31
SAME_FROM = 0.6
"""Two texts whose 5-grams are this alike (Jaccard) must be on one side."""

Split = Literal["train", "held_out"]


class Label(StrEnum):
    """What a message is to the guard."""

    HARMLESS = "HARMLESS"
    PROMPT_EXFILTRATION = "PROMPT_EXFILTRATION"
    JUDGE_MANIPULATION = "JUDGE_MANIPULATION"
    JAILBREAK = "JAILBREAK"
    OFF_TOPIC = "OFF_TOPIC"
    UNSAFE = "UNSAFE"
    SUBMISSION = "SUBMISSION"


ATTACKS = (Label.PROMPT_EXFILTRATION, Label.JUDGE_MANIPULATION, Label.JAILBREAK)
"""The three that are aimed at the assistant or the grading."""


class Intent(StrEnum):
    """What a harmless message wants."""

    CREATION = "CREATION"
    SETTING = "SETTING"
    REFINEMENT = "REFINEMENT"
    DEBUGGING = "DEBUGGING"
    EXPLORATION = "EXPLORATION"
    FOLLOW_UP = "FOLLOW_UP"


@dataclass(frozen=True, slots=True)
class Example:
    """One message.

    ``group`` names its idea: paraphrases and translations share it, and so the side they are on. ``author`` is a
    letter or two. A harmless message of the first author, ``A``, has an ``intent`` and the ``triggers`` it uses
    innocently; any other has a ``technique``.
    """

    id: str
    language: str
    label: Label
    group: str
    split: Split
    text: str
    intent: Intent | None = None
    technique: str | None = None
    triggers: tuple[str, ...] = ()
    author: str = "A"


class DataError(ValueError):
    """A line that is not an example; says file, line and what to mend."""


def load(folder: Path = FOLDER) -> list[Example]:
    """All examples, those of the first author first and of them the harmless ones, in the order of the files.

    Raises:
        DataError: a line is no JSON object, lacks or has unknown fields, or holds a value that is not allowed.
    """
    first = [*_read(folder / "harmless.jsonl", _harmless), *_read(folder / "attacks.jsonl", _labelled)]
    others = folder / "others.jsonl"
    return [*first, *(_read(others, _of_another) if others.exists() else ())]


def split_of(group: str) -> Split:
    """The side of a group of the first author, by its name alone: adding examples moves none that are there."""
    place = int.from_bytes(hashlib.sha256(f"guard/{group}".encode()).digest()[:4], "big")
    return "held_out" if place % 100 < HELD_OUT_OF_100 else "train"


def shingles(text: str) -> frozenset[str]:
    """The character 5-grams of ``text`` as the guard sees it; a shorter text is its own only one."""
    seen = folded(text)
    return frozenset(seen[i : i + 5] for i in range(max(1, len(seen) - 4)))


def similarity(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard's index of two sets of shingles, 0 to 1."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def near_duplicates(examples: Iterable[Example], least: float = SAME_FROM) -> Iterator[tuple[Example, Example]]:
    """Pairs of examples that are at least this similar, each once, the shorter one first.

    Two such sets share at least one of the rarest shingles of each: only pairs that do are compared.
    """
    known = sorted(((example, shingles(example.text)) for example in examples), key=lambda item: len(item[1]))
    frequency = Counter(gram for _, grams in known for gram in grams)
    with_gram: defaultdict[str, list[int]] = defaultdict(list)
    for index, (example, grams) in enumerate(known):
        rare = sorted(grams, key=lambda gram: (frequency[gram], gram))[: len(grams) - math.ceil(least * len(grams)) + 1]
        for number in sorted({number for gram in rare for number in with_gram[gram]}):
            other, more = known[number]
            if len(more) >= least * len(grams) and similarity(grams, more) >= least:
                yield other, example
        for gram in rare:
            with_gram[gram].append(index)


_ENGLISH = (
    "access|act|admin|adversarial|assign|attack|authori|award|blow|bomb|bypass|cheat|command|crack|decode|defense"
    "|disregard|drop|erase|evaluat|everything|execut|exploit|explosion|forbidden|forget|forgot|from now on|grade"
    "|grading|guard|hack|hidden|hide|ignor|inject|instruct|jailbreak|judge|kill|leak|mask|master|original|overrid"
    "|password|points|pretend|previous|prison|privilege|prompt|protect|remember|repeat|reset|restrict|reveal|revert|role|root|rule|safe|score"
    "|scoring|scrap|secret|session|skip|steal|system|undo|unlock|verdict|virus|vulnerab|weak|weapon|you are|you're"
)
_KOREAN = (
    "감독|감옥|강제|공격|관리자|권한|규칙|금지|금칙어|기억|덮어|등급|루트|마피아|만점|명령|무기|무시|바이러스|버리고|버려|비밀|숨겨진"
    "|숨은|시스템|심사|심판|암호|역할|오버라이|우회|이전|인젝션|잊|저지|점수|정답|제한|좀비|지금까지|지금부터|지시|지침|채점|초기화"
    "|탈옥|탈출|통과|평가|폭탄|프로세스|프롬프트|학점|해킹|해커|행동해"
)
_TRIGGERS = re.compile(rf"(?<![a-z])(?:{_ENGLISH})|{_KOREAN}", re.IGNORECASE)


def triggers_in(text: str) -> tuple[str, ...]:
    """Words, or beginnings of words, in ``text`` that attacks use as well: lower case, sorted, each once."""
    return tuple(sorted({found.group().lower() for found in _TRIGGERS.finditer(text)}))


_Fields = dict[str, Any]


def _read(file: Path, example_of: Callable[[_Fields], Example]) -> list[Example]:
    examples: list[Example] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            examples.append(example_of(json.loads(line)))
        except (TypeError, ValueError, KeyError) as wrong:
            raise DataError(f"{file.name}, line {number}: {wrong!r}") from wrong
    return examples


def _harmless(fields: _Fields) -> Example:
    intent, triggers = Intent(fields.pop("intent")), tuple(fields.pop("triggers"))
    return _checked(Example(label=Label.HARMLESS, intent=intent, triggers=triggers, **fields))


def _labelled(fields: _Fields) -> Example:
    label = Label(fields.pop("label"))
    if label is Label.HARMLESS:
        raise ValueError("harmless messages stand in harmless.jsonl")
    if not fields["technique"]:
        raise ValueError("technique is empty")
    return _checked(Example(label=label, **fields))


def _of_another(fields: _Fields) -> Example:
    label = Label(fields.pop("label"))
    example = _checked(Example(label=label, **fields))
    if not example.technique:
        raise ValueError("technique is empty")
    return example


def _checked(example: Example) -> Example:
    if not example.text.strip():
        raise ValueError("text is empty")
    if example.language not in LANGUAGES:
        raise ValueError(f"language {example.language!r} is none of {sorted(LANGUAGES)}")
    if example.author != "A":
        if not example.group.startswith(f"{example.author}/"):
            raise ValueError(f"group {example.group!r} should begin with its author: {example.author}/")
        if example.split not in ("train", "held_out"):
            raise ValueError(f"split {example.split!r} is neither 'train' nor 'held_out'")
        return example
    if example.split != split_of(example.group):
        raise ValueError(f"group {example.group!r} is on the side {split_of(example.group)!r}")
    if example.label is Label.HARMLESS and example.triggers != triggers_in(example.text):
        raise ValueError(f"triggers should be {list(triggers_in(example.text))}")
    return example
