"""What a model may read in a text that does not say it plainly: other alphabets, orders of letters, and encodings."""

from __future__ import annotations

import base64
import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator

_LETTERS = str.maketrans("асеорхуіѕАВСЕНКМОРТХԁһӏ", "aceopxyisABCEHKMOPTXdhl")
_LEET = str.maketrans("0134578@$", "oieastbas")
_DIGITS_IN_WORD = re.compile(r"[a-z]\d|\d[a-z]", re.IGNORECASE)
_SPACED = re.compile(r"(?:\b\w[ ._*-]){3,}\w\b")


def with_latin_letters(text: str) -> str:
    """Letters of other alphabets that look like Latin ones, as those."""
    return text.translate(_LETTERS)


def readings(text: str) -> Iterator[str]:
    """What a model may read in a text that does not say it plainly."""
    yield text[::-1]
    if text.isascii() or re.search("[A-Za-z]{3}", text):
        yield codecs.encode(text, "rot13")
    if _DIGITS_IN_WORD.search(text):
        yield text.translate(_LEET)
    for run in _SPACED.finditer(text):
        yield re.sub(r"[ ._*-]", "", run.group())
    if any("ㄱ" <= letter <= "ㅣ" for letter in text):
        yield _composed(text)
    if not text.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
        yield unicodedata.normalize("NFC", plain)
    yield from decoded(text)


def decoded(text: str) -> Iterator[str]:
    """What the runs say that are base64, hex, bits, percent signs, escapes or Morse."""
    for pattern, decode in _ENCODINGS:
        for run in pattern.finditer(text):
            yield from _decoded(decode, run.group())


def acrostic(text: str) -> str:
    """First letters, or first words, of the lines."""
    lines = [line.strip(" \t-*>#0123456789.") for line in text.splitlines() if line.strip()]
    if len(lines) < 3:
        return ""
    return "".join(line[:1] for line in lines) + "\n" + " ".join((line.split() or [""])[0] for line in lines)


def _composed(text: str) -> str:
    """Single Hangul letters put together to syllables."""
    initials, vowels, finals = (
        "ㄱㄲㄴㄷㄸㄹㅁㅂㅃㅅㅆㅇㅈㅉㅊㅋㅌㅍㅎ",
        "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ",
        ("ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"),
    )
    syllable = re.compile(f"([{initials}])([{vowels}])(?:([{finals}])(?![{vowels}]))?")

    def put(found: re.Match[str]) -> str:
        final = finals.index(found.group(3)) + 1 if found.group(3) else 0
        return chr(0xAC00 + (initials.index(found.group(1)) * 21 + vowels.index(found.group(2))) * 28 + final)

    return syllable.sub(put, text)


def _decoded(decode: Callable[[str], str], run: str) -> Iterator[str]:
    try:
        yield decode(run)
    except ValueError:  # most such runs are no encoding of a text
        return


def _base64(run: str) -> str:
    padded = run.rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(padded + "=" * (-len(padded) % 4)).decode()


def _percent(run: str) -> str:
    data = re.sub(rb"%([0-9A-Fa-f]{2})", lambda code: bytes.fromhex(code.group(1).decode()), run.encode())
    return data.decode()


def _escapes(run: str) -> str:
    plain = re.sub(r"\\[ux]([0-9a-f]{2,4})", lambda code: chr(int(code.group(1), 16)), run, flags=re.IGNORECASE)
    return re.sub(r"&#(\d+);", lambda code: chr(min(int(code.group(1)), 0x10FFFF)), plain)


_MORSE = {
    code: letter
    for letter, code in (
        pair.split(":")
        for pair in [
            "a:.-",
            "b:-...",
            "c:-.-.",
            "d:-..",
            "e:.",
            "f:..-.",
            "g:--.",
            "h:....",
            "i:..",
            "j:.---",
            "k:-.-",
            "l:.-..",
            "m:--",
            "n:-.",
            "o:---",
            "p:.--.",
            "q:--.-",
            "r:.-.",
            "s:...",
            "t:-",
            "u:..-",
            "v:...-",
            "w:.--",
            "x:-..-",
            "y:-.--",
            "z:--..",
            "0:-----",
            "1:.----",
            "2:..---",
            "3:...--",
            "4:....-",
            "5:.....",
            "6:-....",
            "7:--...",
            "8:---..",
            "9:----.",
        ]
    )
}


def _morse(run: str) -> str:
    return " ".join("".join(_MORSE.get(sign, "?") for sign in word.split()) for word in run.split("/"))


_ENCODINGS: tuple[tuple[re.Pattern[str], Callable[[str], str]], ...] = (
    (re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}"), _base64),
    (
        re.compile(r"\b(?:0x)?(?:[0-9a-f]{2}[ :]?){8,}", re.IGNORECASE),
        lambda run: bytes.fromhex(re.sub(r"0x|[ :]", "", run)).decode(),
    ),
    (
        re.compile(r"(?:[01]{8}\s?){2,}"),
        lambda run: bytes(int(bits, 2) for bits in re.findall("[01]{8}", run)).decode(),
    ),
    (re.compile(r"(?:%[0-9A-F]{2}[^\s%]{0,40}){3,}", re.IGNORECASE), _percent),
    (re.compile(r"(?:\\u[0-9a-f]{4}|\\x[0-9a-f]{2}|&#\d+;|\s){3,}", re.IGNORECASE), _escapes),
    (re.compile(r"(?<![\w.-])[.-]{1,6}(?:[ /]+[.-]{1,6}){4,}(?![\w.-])"), _morse),
)
