"""Where an attack's text sits, and how what is encoded there is read again."""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterator
from enum import StrEnum


class Carrier(StrEnum):
    """The place or the writing that carries an attack's directive."""

    PROMPT = "prompt"
    CODE = "code"
    COMMENT = "comment"
    DOCSTRING = "docstring"
    STRING_LITERAL = "string_literal"
    IDENTIFIER = "identifier"
    FILE_NAME = "file_name"
    MARKDOWN = "markdown"
    JSON = "json"
    XML = "xml"
    LOG_OUTPUT = "log_output"
    PROBLEM_QUOTE = "problem_quote"
    CONVERSATION_FAKE = "conversation_fake"
    BASE64 = "base64"
    HEX = "hex"
    ROT13 = "rot13"
    REVERSED = "reversed"
    ACROSTIC = "acrostic"
    LEET = "leet"
    BINARY = "binary"
    MORSE = "morse"
    URL_ENCODED = "url_encoded"
    UNICODE_ESCAPE = "unicode_escape"
    HOMOGLYPH = "homoglyph"
    ZERO_WIDTH = "zero_width"
    BIDI = "bidi"
    UNICODE_TAG = "unicode_tag"
    FULLWIDTH = "fullwidth"
    ENCLOSED = "enclosed"
    MATH_LETTERS = "math_letters"
    COMBINING = "combining"
    NFD = "nfd"
    COMPAT_JAMO = "compat_jamo"


BIDI_CONTROLS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
CYRILLIC_TO_LATIN = str.maketrans("асеорхуіѕАВСЕНКМОРТХ", "aceopxyisABCEHKMOPTX")
"""Cyrillic letters that look like a Latin one, and that one."""

_LEET = str.maketrans("013457", "oieast")
_MORSE_TABLE = (
    "a.- b-... c-.-. d-.. e. f..-. g--. h.... i.. j.--- k-.- l.-.. m-- n-. o--- p.--. q--.- r.-. s... t- u..- v...- "
    "w.-- x-..- y-.-- z--.. 0----- 1.---- 2..--- 3...-- 4....- 5..... 6-.... 7--... 8---.. 9----."
)
_MORSE = {code: sign for sign, code in re.findall(r"(\w)([.-]+)", _MORSE_TABLE)}
_INITIALS = "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ"
_VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
_FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
_SYLLABLE = re.compile(f"([{_INITIALS}])([{_VOWELS}])(?:([{_FINALS.strip()}])(?![{_VOWELS}]))?")


def is_invisible(character: str) -> bool:
    """Whether a character shows nothing of its own: zero-width, bidirectional control, tag, soft hyphen."""
    return unicodedata.category(character) == "Cf"


def visible(text: str) -> str:
    """The text without what cannot be seen."""
    return "".join(character for character in text if not is_invisible(character))


def mixes_scripts(word: str) -> bool:
    """Whether Latin and Cyrillic letters stand in one word."""
    names = [unicodedata.name(letter, "") for letter in word if letter.isalpha()]
    return any(name.startswith("LATIN") for name in names) and any(name.startswith("CYRILLIC") for name in names)


def hides(carrier: Carrier) -> bool:
    """Whether the carrier is an encoding or a disguise, so that an entry has to say what it hides."""
    return carrier in _READERS


def readings(carrier: Carrier, text: str) -> list[str]:
    """All that can be read in ``text`` once this carrier's encoding or disguise is undone; empty for plain carriers."""
    reader = _READERS.get(carrier)
    return list(reader(text)) if reader else []


def _utf8(values: bytes) -> Iterator[str]:
    try:
        yield values.decode()
    except UnicodeDecodeError:
        return


def _base64(text: str) -> Iterator[str]:
    for run in re.findall(r"[A-Za-z0-9+/_-]{16,}={0,2}", text):
        try:
            decoded = base64.b64decode(run, altchars=b"-_" if set(run) & set("-_") else None, validate=True)
        except binascii.Error:
            continue
        yield from _utf8(decoded)


def _hex(text: str) -> Iterator[str]:
    for run in re.findall(r"\b[0-9a-f]{2}(?: ?[0-9a-f]{2}){7,}\b", text):
        yield from _utf8(bytes.fromhex(run))


def _binary(text: str) -> Iterator[str]:
    for run in re.findall(r"[01]{8}(?: [01]{8})+", text):
        yield from _utf8(bytes(int(group, 2) for group in run.split()))


def _morse(text: str) -> Iterator[str]:
    for run in re.findall(r"[.-]+(?:[ /]+[.-]+){4,}", text):
        yield " ".join("".join(_MORSE.get(sign, "?") for sign in word.split()) for word in run.split("/"))


def _escapes(text: str) -> Iterator[str]:
    for run in re.findall(r"(?:\\u[0-9a-f]{4})+", text):
        yield "".join(chr(int(code, 16)) for code in run.split("\\u")[1:])


def _zero_width(text: str) -> Iterator[str]:
    yield visible(text)
    for run in re.findall("[\u200b\u200c]{8,}", text):
        bits = ["1" if sign == "\u200c" else "0" for sign in run]
        yield from _utf8(bytes(int("".join(bits[at : at + 8]), 2) for at in range(0, len(bits), 8)))


def _bidi(text: str) -> Iterator[str]:
    for run in re.findall("\u202e([^\u202c]*)", text):
        yield run[::-1]
    yield "".join(sign for sign in text if sign not in BIDI_CONTROLS)


def _tags(text: str) -> Iterator[str]:
    for run in re.findall("[\U000e0020-\U000e007e]+", text):
        yield "".join(chr(ord(sign) - 0xE0000) for sign in run)


def _compat_jamo(text: str) -> Iterator[str]:
    def composed(match: re.Match[str]) -> str:
        initial, vowel, final = match.groups(default=" ")
        place = _INITIALS.index(initial) * 588 + _VOWELS.index(vowel) * 28 + _FINALS.index(final)
        return chr(0xAC00 + place)

    yield _SYLLABLE.sub(composed, text)


def _without_marks(text: str) -> Iterator[str]:
    yield "".join(sign for sign in text if unicodedata.category(sign) != "Mn")


def _acrostic(text: str) -> Iterator[str]:
    yield "".join(line.strip()[0] for line in text.splitlines() if line.strip())


def _normal(form: str) -> Callable[[str], Iterator[str]]:
    return lambda text: iter([unicodedata.normalize(form, text)])  # type: ignore[arg-type]


_READERS: dict[Carrier, Callable[[str], Iterator[str]]] = {
    Carrier.BASE64: _base64,
    Carrier.HEX: _hex,
    Carrier.ROT13: lambda text: iter([codecs.decode(text, "rot13")]),
    Carrier.REVERSED: lambda text: iter([text[::-1]]),
    Carrier.ACROSTIC: _acrostic,
    Carrier.LEET: lambda text: iter([text.translate(_LEET)]),
    Carrier.BINARY: _binary,
    Carrier.MORSE: _morse,
    Carrier.URL_ENCODED: lambda text: iter([urllib.parse.unquote(text)]),
    Carrier.UNICODE_ESCAPE: _escapes,
    Carrier.HOMOGLYPH: lambda text: iter([text.translate(CYRILLIC_TO_LATIN)]),
    Carrier.ZERO_WIDTH: _zero_width,
    Carrier.BIDI: _bidi,
    Carrier.UNICODE_TAG: _tags,
    Carrier.FULLWIDTH: _normal("NFKC"),
    Carrier.ENCLOSED: _normal("NFKC"),
    Carrier.MATH_LETTERS: _normal("NFKC"),
    Carrier.COMBINING: _without_marks,
    Carrier.NFD: _normal("NFC"),
    Carrier.COMPAT_JAMO: _compat_jamo,
}
