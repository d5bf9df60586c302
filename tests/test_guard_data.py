"""The guard's labelled messages: how many, how varied, and that the held-out side shares nothing with the other."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from string import ascii_uppercase

import pytest

from guard_training.counts import table
from guard_training.data import (
    ATTACKS,
    FOLDER,
    LANGUAGES,
    SAME_FROM,
    DataError,
    Example,
    Label,
    load,
    near_duplicates,
    split_of,
)
from guard_training.generating import Unlike

LEAST = {
    Label.PROMPT_EXFILTRATION: 160,
    Label.JUDGE_MANIPULATION: 160,
    Label.JAILBREAK: 160,
    Label.OFF_TOPIC: 60,
    Label.UNSAFE: 60,
    Label.SUBMISSION: 60,
}


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    return load()


@pytest.fixture(scope="module")
def harmless(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.label is Label.HARMLESS]


def held_out(examples: list[Example]) -> list[Example]:
    return [example for example in examples if example.split == "held_out"]


def test_there_are_enough_harmless_messages(harmless: list[Example]) -> None:
    with_triggers = [example for example in harmless if example.triggers]
    ordinary = [example for example in harmless if not example.triggers and example.author == "A"]
    by_others = [example for example in harmless if example.author != "A"]
    assert (len(with_triggers) >= 420, len(held_out(with_triggers)) >= 130) == (True, True)
    assert (len(ordinary) >= 500, len(held_out(ordinary)) >= 150) == (True, True)
    assert (len(by_others) >= 2000, len(held_out(by_others)) >= 350) == (True, True)
    assert len({example.intent for example in harmless if example.author == "A"}) == 6


@pytest.mark.parametrize("label", LEAST)
def test_there_are_enough_of_each_label(examples: list[Example], label: Label) -> None:
    labelled = [example for example in examples if example.label is label]
    assert len(labelled) >= LEAST[label]
    assert len({example.technique for example in labelled}) >= (20 if label in ATTACKS else 5)
    if label in ATTACKS:
        assert len(held_out(labelled)) >= 50


@pytest.mark.parametrize("label", Label)
@pytest.mark.parametrize("language", ["en", "ko"])
def test_about_half_of_each_side_is_korean(examples: list[Example], label: Label, language: str) -> None:
    for side in ("train", "held_out"):
        labelled = [example for example in examples if example.label is label and example.split == side]
        share = sum(example.language == language for example in labelled) / len(labelled)
        assert 0.4 <= share <= 0.6, side


@pytest.mark.parametrize(
    ("author", "least", "most"),
    [
        ("A", 0.27, 0.34),
        ("B", 0.2, 0.3),
        ("C", 0.2, 0.3),
        *((author, 1, 1) for author in ("L", "EA", "EB", "EC")),
        *((author, 0, 0) for author in "DEFGHIJMNOPQRSTUVWXYZ"),
        *((f"A{letter}", 0, 0) for letter in ascii_uppercase),
        *((f"C{letter}", 0, 0) for letter in "ABCDEFG"),
        *((f"D{letter}", 0, 0) for letter in "ABCDEF"),
        *((f"F{letter}", 0, 0) for letter in "ABCDEFGHIJKLMNO"),
    ],
)
def test_how_much_of_an_author_is_held_out(examples: list[Example], author: str, least: float, most: float) -> None:
    theirs = [example for example in examples if example.author == author]
    assert len(theirs) > 600
    assert least <= len(held_out(theirs)) / len(theirs) <= most


def test_korean_is_written_in_hangul(examples: list[Example]) -> None:
    hangul = [any("\u1100" <= c <= "\u11ff" or "\u3131" <= c <= "\ud7a3" for c in e.text) for e in examples]
    odd = [e.id for e, has in zip(examples, hangul, strict=True) if has != (e.language == "ko")]
    # Base64 hides Hangul, code has none, and an English request may quote a Korean sentence.
    assert len(odd) <= len(examples) * 0.01, odd


def test_no_message_stands_there_twice(examples: list[Example]) -> None:
    assert [text for text, count in Counter(example.text for example in examples).items() if count > 1] == []
    assert [name for name, count in Counter(example.id for example in examples).items() if count > 1] == []


def test_an_idea_is_on_one_side(examples: list[Example]) -> None:
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        sides[example.group].add(example.split)
    assert [group for group, found in sides.items() if len(found) > 1] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_on_one_side_is_nearly_something_on_the_other(examples: list[Example]) -> None:
    known = Unlike(example.text for example in held_out(examples))
    assert [e.id for e in examples if e.split == "train" and not known.is_unlike(e.text)] == []


def test_a_near_duplicate_is_found_however_it_is_written(examples: list[Example]) -> None:
    original = next(example for example in examples if len(example.text) > 200 and example.text.isascii())
    disguised = "".join(f"{c}\u200b" for c in original.text.upper()) + " ok"
    copy = Example("copy", "en", Label.HARMLESS, "copy", "train", disguised)
    assert list(near_duplicates([original, copy], SAME_FROM)) == [(original, copy)]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_template_was_multiplied(examples: list[Example]) -> None:
    """Of one label and one author, few messages are alike even loosely."""
    for label in Label:
        labelled = [example for example in examples if example.label is label]
        alike = [(a, b) for a, b in near_duplicates(labelled, 0.5) if a.author == b.author]
        assert len(alike) <= len(labelled) * 0.02, (label, [(a.id, b.id) for a, b in alike])


def test_groups_keep_their_side_when_others_come() -> None:
    assert [split_of(group) for group in "abcd"] == ["train", "train", "held_out", "train"]


GOOD = {
    "id": "a1",
    "language": "en",
    "label": "JAILBREAK",
    "technique": "direct",
    "group": "a",
    "split": split_of("a"),
    "text": "be free",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "NICE"}, "NICE"),
        ({"label": "HARMLESS"}, r"harmless\.jsonl"),
        ({"language": "tlh"}, "tlh"),
        ({"text": " \n"}, "text is empty"),
        ({"technique": ""}, "technique is empty"),
        ({"split": {"train": "held_out", "held_out": "train"}[split_of("a")]}, "side"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, change: dict[str, str], said: str) -> None:
    (tmp_path / "harmless.jsonl").write_text("")
    (tmp_path / "attacks.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError, match=rf"attacks\.jsonl, line 2: .*{said}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"group": "b"}, "B/"), ({"split": "blind"}, "blind"), ({"technique": ""}, "technique is empty")],
)
def test_a_bad_line_of_another_author_is_named(tmp_path: Path, change: dict[str, str], said: str) -> None:
    (tmp_path / "harmless.jsonl").write_text("")
    (tmp_path / "attacks.jsonl").write_text("")
    line = {**GOOD, "author": "B", "group": "B/a", "split": "held_out"}
    (tmp_path / "others.jsonl").write_text(json.dumps(line) + "\n")
    assert load(tmp_path)[0].author == "B"
    (tmp_path / "others.jsonl").write_text(json.dumps({**line, **change}) + "\n")
    with pytest.raises(DataError, match=rf"others\.jsonl, line 1: .*{said}"):
        load(tmp_path)


def test_triggers_are_those_the_text_holds(tmp_path: Path) -> None:
    line = {
        **{key: value for key, value in GOOD.items() if key not in ("label", "technique")},
        "intent": "SETTING",
        "triggers": [],
        "text": "ignore it",
    }
    (tmp_path / "attacks.jsonl").write_text("")
    (tmp_path / "harmless.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="ignor"):
        load(tmp_path)


def test_files_are_written_so_that_a_reader_sees_what_is_there() -> None:
    for file in sorted(FOLDER.glob("*.jsonl")):
        text = file.read_text(encoding="utf-8")
        assert text.endswith("}\n")
        assert not any(c in text for c in "\u200b\u200c\u2060\u3000"), file.name
        names = [json.loads(line)["id"] for line in text.splitlines()]
        assert all(one < other for one, other in pairwise(names))


def test_languages_are_those_that_are_documented(examples: list[Example]) -> None:
    assert {example.language for example in examples} == LANGUAGES


def test_the_data_card_tells_the_counts(examples: list[Example]) -> None:
    card = (Path(__file__).parents[1] / "guard_training" / "README.md").read_text(encoding="utf-8")
    _, told, _ = re.split(r"<!-- (?:counts|end of counts).*-->\n", card)
    assert told == table(examples) + "\n"
