"""Text as a reader sees it, whatever characters it was written with: what the guard looks at.

An attack may be spelt with Cyrillic letters, full-width forms, zero-width characters, jamo, digits for letters or a
space after each letter, or stand there in base64. Each is undone here, the same way for training and for judging. Pure.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata

MOST_CHARACTERS = 32_000
"""Longer text is cut here; a message of the protocol is not longer."""

_UNSEEN = frozenset({"Cf", "Mn", "Me"})
"""Unicode categories of what shows nothing of its own: formats such as zero-width space, and combining marks."""
_WHOLE_PHRASES = "\ufdfa\ufdfb"
"""Two characters that NFKC makes eighteen and eight of."""

_CONFUSABLES = str.maketrans(
    # letters of other alphabets, lower case, that look like the Latin one below them
    "авеԁгһіјкӏмноԛрѕтуѵԝхцɑɡɩαεινορτυχωϲϳꓲ",
    "abedrhijklmhoqpstyvwxuagiaeivoptuxwcji",
)
_LEET = str.maketrans("0134578@$!", "oieastba" + "si")
_LEET_WORD = re.compile(r"(?<![\w@$])(?=[\w@$!]*[a-z])(?=[\w@$!]*[0134578@$!])[a-z0-9@$!]{2,24}(?![\w@$])")
_ORDINARY_WORD = re.compile(r"[a-z]+[0-9!]*|[0-9]+[a-z]{1,2}|[0-9]+e[0-9]+|[@$][a-z]+")
"""Letters before or after a number (``dp1``, ``10k``, ``1e9``, ``@param``) are no disguise."""

_SPELT_OUT = re.compile(
    r"(?<![^\W\d_])[^\W\d_](?:[ ][^\W\d_](?![^\W\d_])){3,}"
    r"|(?<![^\W\d_])[^\W\d_](?:[.*~|/-][^\W\d_](?![^\W\d_]))+|(?<![^\W\d_])[^\W\d_](?:_[^\W\d_](?![^\W\d_])){2,}"
)
_SEPARATORS = re.compile(r"[ .*~|/_-]")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{16,4000}={0,2}(?![A-Za-z0-9+/=])")
_JAMO = re.compile(r"[ㄱ-ㅎ][ㅏ-ㅣ][ㄱ-ㅎㅏ-ㅣ]*")
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SYLLABLE = re.compile(r"([ㄱ-ㄲㄴㄷ-ㄹㅁ-ㅃㅅ-ㅎ])([ㅏ-ㅣ])([ㄱ-ㅎ](?![ㅏ-ㅣ]))?")


def plain(text: str) -> str:
    """``text`` after NFKC and without what cannot be seen; letters keep their case and lines their breaks."""
    if text.isascii():
        return text
    # Marks go before NFKC, for it sorts them in quadratic time: 32,000 of them would hold up the event loop for 1.6 s.
    gone = {c for c in set(text) if unicodedata.category(c) in _UNSEEN or c in _WHOLE_PHRASES}
    if gone:
        text = "".join([c for c in text if c not in gone])
    return unicodedata.normalize("NFKC", text)


def folded(text: str) -> str:
    """``text`` as compared with known attacks: lower case, disguises undone, runs of white space made one space.

    At most ``MOST_CHARACTERS`` are read.
    """
    text = _BASE64.sub(_decoded, text[:MOST_CHARACTERS])
    if not text.isascii():
        text = plain(_JAMO.sub(_composed, text))
    text = text.lower()
    if not text.isascii():
        text = text.translate(_CONFUSABLES)
    text = _SPELT_OUT.sub(lambda run: _SEPARATORS.sub("", run.group()), text)
    text = _LEET_WORD.sub(_without_digits, text)
    return " ".join(text.split())


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


def _decoded(passage: re.Match[str]) -> str:
    """The text that base64 stands for; what stands for none is a name, a hash or a picture, and is left."""
    written = passage.group().rstrip("=")
    try:
        read = base64.b64decode(written + "=" * (-len(written) % 4)).decode()
    except (binascii.Error, UnicodeDecodeError):
        return passage.group()
    return read if read.isprintable() else passage.group()
