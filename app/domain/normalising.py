"""Text as a reader sees it, whatever characters it was written with: what the guard looks at.

An attack may be spelt with Cyrillic letters, accents, full-width or framed forms, zero-width characters, tags that only
a model sees, jamo, digits for letters or a gap after each letter, or stand there in base64. Each is undone here, the
same way for training and for judging. Pure.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

MOST_CHARACTERS = 32_000
"""Longer text is cut here; a message of the protocol is not longer."""

_UNSEEN = frozenset({"Cf", "Mn", "Me", "Cc"})
"""Unicode categories of what shows nothing of its own: formats such as zero-width space, combining marks, controls."""
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u17b4\u17b5\u2800\u180e\u2065")
"""Fillers of Hangul and Khmer, the Braille pattern without a dot: letters and signs by category, and nothing to see."""
_WHITE = frozenset("\t\n\r\v\f\x85")
"""Controls that are white space."""
_WHOLE_PHRASES = frozenset("\ufdfa\ufdfb")
"""Two characters that NFKC makes eighteen and eight of."""
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_TAGS_FROM = 0xE0000
_LONG_RUN = 8
"""So many tags are words of their own; fewer may be a part of the word that they stand in."""

_FRAMED = {
    chr(first + i): chr(ord("A") + i)
    for first in (
        0x1F110,
        0x1F150,
        0x1F170,
        0x1F1E6,
    )  # in brackets, white on a circle and on a square, halves of a flag
    for i in range(26)
} | {chr(0x249C + i): chr(ord("a") + i) for i in range(26)}
"""Letters with something around them of which NFKC makes more than the letter, or nothing."""
_HALF_WIDTH_JAMO = {
    chr(code): chr(int(unicodedata.decomposition(chr(code)).split()[1], 16))
    for code in range(0xFFA1, 0xFFDD)
    if unicodedata.decomposition(chr(code))
}
_MIDDLE_DOT = {"\u318d": "·"}  # a vowel no longer in use, which Korean keyboards offer as the dot
_SHOWN = _FRAMED | _HALF_WIDTH_JAMO | _MIDDLE_DOT


def _base(letter: str) -> str:
    """The letter without its accents; itself if it has none."""
    return unicodedata.normalize("NFD", letter)[0]


def _letters() -> dict[int, str]:
    """The plain Latin letter that one with an accent or one of another alphabet looks like, by its code point."""
    alike = dict(
        zip(
            "авеԁгһіјкӏмноԛрсѕтуѵԝхцпиьшяɑɡɩαβγεζηικμνορτυχωϲϳꓲøđłħŧıƀɨʉɇɍɏƶᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘꞯʀꜱᴛᴜᴠᴡʏᴢ",
            "abedrhijklmhoqpcstyvwxunubwragiabyeznikuvoptuxwcjiodlhtibiueryzabcdefghijklmnopqrstuvwyz",
            strict=True,
        )
    )
    alike |= {letter.upper(): like.upper() for letter, like in alike.items() if "а" <= letter <= "ԯ"}
    # Capitals of Greek look like others than their small letters do.
    alike |= dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧϹͿØĐŁĦŦ", "ABEZHIKMNOPTYXCJODLHT", strict=True))
    accented = [*range(0xC0, 0x250), *range(0x370, 0x530), *range(0x1E00, 0x2000)]
    based = {code: alike.get(_base(chr(code)), _base(chr(code))) for code in accented if chr(code).isalpha()}
    return {code: like for code, like in based.items() if like != chr(code)} | {
        ord(letter): like for letter, like in alike.items()
    }


_LETTERS = _letters()
_LEET = str.maketrans("0134578@$!", "oieastba" + "si")
_LEET_WORD = re.compile(r"(?<![\w@$])(?=[\w@$!]*[a-z])(?=[\w@$!]*[0134578@$!])[a-z0-9@$!]{2,24}(?![\w@$])")
_ORDINARY_WORD = re.compile(r"[a-z]+[0-9!]*|[0-9]+[a-z]{1,2}|[0-9]+e[0-9]+|[@$][a-z]+")
"""Letters before or after a number (``dp1``, ``10k``, ``1e9``, ``@param``) are no disguise."""

_SPELT_OUT = re.compile(
    r"(?<![^\W\d_])[^\W\d_](?P<gap>[^\S\n]{1,3}|[ ]?\n[ ]?|[ ]?[·•‧∙⋅・][ ]?)"
    r"[^\W\d_](?![^\W\d_])(?:(?P=gap)[^\W\d_](?![^\W\d_])){2,}"
    r"|(?<![^\W\d_])[^\W\d_](?:[.*~|/·•‧∙⋅・-][^\W\d_](?![^\W\d_]))+"
    r"|(?<![^\W\d_])[^\W\d_](?:_[^\W\d_](?![^\W\d_])){2,}"
)
"""Single letters with the same gap between each two: four with white space, fewer with a sign. A wider gap ends it."""
_SEPARATORS = re.compile(r"[\s.*~|/·•‧∙⋅・_-]")
_BASE64 = re.compile(
    r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{16,}+(?:\r?\n[A-Za-z0-9+/]++(?=={0,2}[^\S\n]*(?:[^\w\s]|\n|\Z)))*+={0,2}"
    r"(?![A-Za-z0-9+/=])"
)
"""A run of base64, and the lines below that hold nothing else: what is encoded is often wrapped."""
_SHORTEST = 16
_INSIDE_A_CHARACTER = bytes(range(0x80, 0xC0))
_BREAKS = str.maketrans("", "", "\t\n\r")
_JAMO = re.compile(r"[ㄱ-ㅎ][ㅏ-ㅣ][ㄱ-ㅎㅏ-ㅣ]*")
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SYLLABLE = re.compile(r"([ㄱ-ㄲㄴㄷ-ㄹㅁ-ㅃㅅ-ㅎ])([ㅏ-ㅣ])([ㄱ-ㅎ](?![ㅏ-ㅣ]))?")


def plain(text: str) -> str:
    """``text`` as it looks: without what cannot be seen, tags read, each letter the plain one that it looks like.

    Letters keep their case and lines their breaks.
    """
    if text.isascii():
        return _CONTROLS.sub("", text)
    characters = set(text)
    if ord(max(characters)) >= _TAGS_FROM:
        text = _TAGS.sub(_tags_read, text)
    # Marks go before NFKC, for it sorts them in quadratic time: 32,000 of them would hold up the event loop for 1.6 s.
    shown = {ord(c): seen for c in characters if (seen := _shown(c)) != c}
    if shown:
        text = text.translate(shown)
    return unicodedata.normalize("NFKC", _JAMO.sub(_composed, text)).translate(_LETTERS)


def folded(text: str) -> str:
    """``text`` as compared with known attacks: lower case, disguises undone, runs of white space made one space.

    At most ``MOST_CHARACTERS`` are read.
    """
    text = decoded(plain(text[:MOST_CHARACTERS])).lower()
    text = _SPELT_OUT.sub(lambda run: _SEPARATORS.sub("", run.group()), text)
    text = _LEET_WORD.sub(_without_digits, text)
    return " ".join(text.split())


def decoded(text: str) -> str:
    """``text`` with the passages in base64 replaced by what they stand for."""
    return _BASE64.sub(lambda passage: "\n".join(_read(passage.group().split("\n"))), text)


@lru_cache(maxsize=16_384)  # people write with the same characters over and over
def _shown(character: str) -> str:
    """What is to be seen of one character: nothing, a letter in a frame, or itself."""
    if character in _BLANK or character in _WHOLE_PHRASES:
        return ""
    if unicodedata.category(character) in _UNSEEN and character not in _WHITE:
        return ""
    return _SHOWN.get(character, character)


def _tags_read(run: re.Match[str]) -> str:
    read = "".join([chr(ord(tag) - _TAGS_FROM) for tag in run.group()])
    return f" {read} " if len(read) >= _LONG_RUN else read


def _without_digits(word: re.Match[str]) -> str:
    written = word.group()
    return written if _ORDINARY_WORD.fullmatch(written) else written.translate(_LEET)


def _composed(run: re.Match[str]) -> str:
    """Letters typed one by one as the syllables they spell; NFKC alone would leave the final consonants out."""
    return _SYLLABLE.sub(_syllable, run.group())


def _syllable(letters: re.Match[str]) -> str:
    initial, vowel, final = letters.groups(default=" ")
    if final not in _FINALS:
        return _syllable_of(initial, vowel, " ") + final
    return _syllable_of(initial, vowel, final)


def _syllable_of(initial: str, vowel: str, final: str) -> str:
    return chr(0xAC00 + (_INITIALS.index(initial) * 21 + ord(vowel) - ord("ㅏ")) * 28 + _FINALS.index(final))


def _read(lines: list[str]) -> Iterator[str]:
    """Lines of base64 as the text they stand for, those of one blob together."""
    start = 0
    while start < len(lines):
        end = _end_of_blob(lines, start)
        for last in (end, end - 1):  # a word alone on the line below is no part of the blob
            read = _text_of("".join(lines[start:last]))
            if read is not None:
                yield read
                start = last
                break
        else:
            yield from [_text_of(line) or line for line in lines[start:end]]
            start = end


def _end_of_blob(lines: list[str], start: int) -> int:
    """The line after a blob: all its lines but the last are equally long."""
    width = len(lines[start].rstrip("\r"))
    for end in range(start + 1, len(lines)):
        if len(lines[end - 1].rstrip("\r")) != width:
            return end
    return len(lines)


def _text_of(written: str) -> str | None:
    """The text that base64 stands for; what stands for none is a name, a hash or a picture.

    A blob may be cut out of a longer one, in the middle of a character at either end.
    """
    written = written.replace("\r", "").rstrip("=")
    if len(written) < _SHORTEST:
        return None
    try:
        data = base64.b64decode(written[: len(written) - (len(written) % 4 == 1)] + "=" * (-len(written) % 4))
        read = codecs.getincrementaldecoder("utf-8")().decode(data.lstrip(_INSIDE_A_CHARACTER))
    except (binascii.Error, UnicodeDecodeError):
        return None
    return plain(read) if read and read.translate(_BREAKS).isprintable() else None
