"""Whether a prompt is the problem's own text and asks for nothing besides. Pure; no model is asked."""

from __future__ import annotations

import re

from app.domain.judging.shown import shown

_WORD = re.compile(r"\w+|[?？]")
_REQUEST = re.compile(
    r"[?？]|\b(?:solve|write|implement|help|explain|how|why|what|please|fix|code|answer|translate|hint)\b"
    r"|줘|주세요|주십시오|풀이|풀어|해결|작성|구현|알려|설명|부탁|해라|하세요|번역|힌트",
    re.IGNORECASE,
)
_LEAST_SHARE = 0.5
"""Of the problem's words, so that a quoted sentence is no pasted problem."""
_MOST_OWN_WORDS = 2
"""Such as a heading."""
_RUN = 3
"""Words in a row that count as taken from the problem."""


def is_pasted_problem(message: str, problem_text: str | None) -> bool:
    """Whether the message is at least half of the problem's text, with two words of its own at most, and no request.

    Case, white space, punctuation and invisible characters do not count.
    """
    if not problem_text:
        return False
    said, problem = _words(message), _words(problem_text)
    known, found = set(_runs(problem)), list(_runs(said))
    taken = {at + offset for at, run in enumerate(found) if run in known for offset in range(_RUN)}
    if not known or len(known & set(found)) < _LEAST_SHARE * len(known):
        return False
    own = [word for at, word in enumerate(said) if at not in taken]
    return len(own) <= _MOST_OWN_WORDS and not _REQUEST.search(" ".join(own))


def _words(text: str) -> list[str]:
    return _WORD.findall(shown(text).text.casefold())


def _runs(words: list[str]) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + _RUN]) for at in range(len(words) - _RUN + 1)]
