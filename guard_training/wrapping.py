"""Ways in which a sentence comes: typed in haste, in a comment, in markup, before or after an honest request.

Attacks and harmless messages are wrapped alike, so that nothing is learned of the wrapping.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

PLAIN = 0.45
"""Share of messages that stay as they are."""

_AROUND = (
    "# {}",
    "// {}",
    "/* {} */",
    "<!-- {} -->",
    '"""{}"""',
    "-- {}",
    "TODO: {}",
    "({})",
    "[{}]",
    "**{}**",
    "> {}",
    '"{}"',
    "<note>{}</note>",
    '<span style="color:white">{}</span>',
    '{{"message": "{}"}}',
    'print("{}")',
    's = "{}"',
    "```\n{}\n```",
    "1. {}",
    "- {}",
    "### {}",
    "x = 1  # {}",
)
_BETWEEN = {
    "en": (
        ". ",
        "\n",
        "\n\n",
        ". Also, ",
        ". Then ",
        " and ",
        "\nPS: ",
        ". P.S. ",
        " - ",
        ", btw ",
        "; ",
        "\n# ",
        "\n// ",
        " / ",
    ),
    "ko": (
        " ",
        ". ",
        "\n",
        "\n\n",
        " 그리고 ",
        ". 그 다음 ",
        " 참고로 ",
        "\nPS: ",
        ". 추신: ",
        " 아 그리고 ",
        ", ",
        "\n# ",
        "\n// ",
        " / ",
    ),
}
_TAILS = {
    "en": ("!", "!!", "...", " ok?", " pls", " thx", "?", " lol", " :)"),
    "ko": ("!", "!!", "...", " ㅠㅠ", "ㅋㅋ", "~", "?", " ㅎㅎ", "요", " 부탁"),
}


def wrapped(text: str, language: str, others: Sequence[str], random: Random) -> str:
    """``text`` in one of many forms; ``others`` are harmless messages that it may be put next to."""
    if random.random() < PLAIN:
        return text
    way = _WAYS[int(random.random() * len(_WAYS))]
    return way(text, language, others, random)


def beside(text: str, language: str, others: Sequence[str], random: Random) -> str:
    """``text`` before, after or between harmless messages."""
    other, between = _one(others, random), _one(_BETWEEN[language], random)
    if random.random() < 0.35:
        return text.rstrip(".") + between + other
    if random.random() < 0.15:
        return other.rstrip(".") + between + text.rstrip(".") + "\n" + _one(others, random)
    return other.rstrip(".") + between + text


def _one(options: Sequence[str], random: Random) -> str:
    return options[int(random.random() * len(options))]


def _in_haste(text: str, language: str, others: Sequence[str], random: Random) -> str:
    return re.sub(r"[.,!?']", "", text).lower()


def _with_tail(text: str, language: str, others: Sequence[str], random: Random) -> str:
    return text.rstrip(".!?") + _one(_TAILS[language], random)


def _around(text: str, language: str, others: Sequence[str], random: Random) -> str:
    return _one(_AROUND, random).format(text)


def _mistyped(text: str, language: str, others: Sequence[str], random: Random) -> str:
    place = 1 + int(random.random() * max(1, len(text) - 2))
    if language == "ko":  # Korean is written with spaces or without
        return re.sub(" ", lambda _: "" if random.random() < 0.6 else " ", text)
    if random.random() < 0.5:
        return text[:place] + text[place + 1 :]
    return text[:place] + text[place : place + 2][::-1] + text[place + 2 :]


_Way = Callable[[str, str, Sequence[str], Random], str]
_WAYS: tuple[_Way, ...] = (_in_haste, _with_tail, _around, _mistyped, beside, beside, beside)
