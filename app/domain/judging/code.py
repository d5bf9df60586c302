"""Code in a prompt without comments, docstrings and strings that talk of judging: orders hide there.

A lexer of our own for what the common languages share: it knows comments and strings by the family of the block's
language. Where code is not fenced, lines are taken for code by their punctuation. Prose is never touched.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from app.domain.judging.shown import Cut
from app.domain.judging.suspicion import talks_of_judging

BLANK = "…"
"""Stands between the marks of a comment or string whose words are left out."""

_HASH = {"python", "py", "python3", "ruby", "rb", "sh", "bash", "zsh", "shell", "perl", "r", "elixir", "julia", "nim"}
_HASH_DATA = {"yaml", "yml", "toml", "ini", "conf", "dockerfile", "make", "makefile", "properties"}
_DASH = {"sql", "lua", "haskell", "hs", "ada", "elm"}
_SLASH = {
    *("c", "cpp", "c++", "cc", "h", "java", "js", "jsx", "javascript", "ts", "tsx", "typescript", "go", "golang"),
    *("rust", "rs", "kotlin", "kt", "swift", "cs", "csharp", "c#", "scala", "dart", "groovy", "zig", "objc", "php"),
    *("css", "scss", "jsonc", "json5"),
}
_TEXT = {"json", "xml", "html", "svg", "md", "markdown", "text", "txt", "log", "console", "output", "csv", "diff"}

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+#-]*)[^\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.M | re.S)
_HTML_COMMENT = re.compile(r"<!--(.*?)(?:-->|\Z)", re.S)
_STRINGS = (
    r"(?P<triple>\"\"\"(?P<in3>.*?)(?:\"\"\"|\Z)|'''(?P<in3b>.*?)(?:'''|\Z))"
    r"|(?P<string>\"(?P<in1>(?:\\.|[^\"\\\n])*)\"|(?<!\w)'(?P<in2>(?:\\.|[^'\\\n])*)'|`(?P<in4>[^`]*)`)"
)
_SLASHES = r"(?<!:)//(?P<line>[^\n]*)|/\*(?P<block>.*?)(?:\*/|\Z)"
_HASHES = r"(?:(?<=\s)|^)#(?!include|define|if|endif|pragma|undef|!)(?P<hash>[^\n]*)"
_DASHES = r"(?:(?<=\s)|^)--(?P<dash>[^\n]*)"
_STRONG = re.compile(
    r"[;{}]\s*(?://.*|#.*|/\*.*)?$|^\s*(?:def|class|func|fun|fn|public|private|static|import|from|#include|return|"
    r"const|let|var|elif|else:|try:|except|@\w+)\b.*[(:={;.]|^\s*(?:for|while|if)\b.*:\s*(?:#.*)?$"
    r"|^\s*[\w.\[\]]+\s*(?:[-+*/|&]?=)\s*\S|^\s*(?:[\w.]+\()+.*\)\s*(?:#.*|//.*)?$"
)
_DATA_LINE = re.compile(r"^\s*[\[{]*\s*\"[^\"\n]*\"\s*[:,\]}]|^\s*[\[{]+\s*$|^\s*[\]}]+,?\s*$")
_COMMENT_LINE = re.compile(r"^\s*(?://|/?\*|#(?!\s*#)|--\s|\"\"\"|''')")
_PROSE_TAIL = re.compile(r"[.?!요다까]\s*$")


def blanked(text: str) -> list[Cut]:
    """Cuts for the words of comments, docstrings and strings in the code in ``text``, where they talk of judging.

    It takes less than in prose: one word of it is enough, and no judge is asked first.
    """
    spans = [found.span(1) for found in _HTML_COMMENT.finditer(text)]
    for start, end, lexer in _code(text):
        for found in lexer.finditer(text, start, end):
            group = next((name for name, value in found.groupdict().items() if name[0] in "ilbhd" and value), None)
            if group is not None:
                spans.append(found.span(group))
    return [Cut(start, end, BLANK) for start, end in spans if talks_of_judging(text[start:end])]


def _lexer(*comments: str) -> re.Pattern[str]:
    return re.compile("|".join((_STRINGS, *comments)), re.S | re.M)


_LEXERS = {
    "hash": _lexer(_HASHES),
    "slash": _lexer(_SLASHES),
    "dash": _lexer(_DASHES),
    "any": _lexer(_SLASHES, _HASHES),
}
_COMMENTS_ONLY = re.compile(_HASHES, re.M)


def _code(text: str) -> Iterator[tuple[int, int, re.Pattern[str]]]:
    """Where code stands, and the lexer that reads it."""
    at = 0
    for fence in _FENCE.finditer(text):
        yield from _loose_code(text, at, fence.start())
        at = fence.end()
        lexer = _lexer_for(fence.group(2).lower(), fence.group(3))
        if lexer is not None:
            yield fence.start(3), fence.end(3), lexer
    yield from _loose_code(text, at, len(text))


def _lexer_for(language: str, body: str) -> re.Pattern[str] | None:
    for names, name in ((_HASH, "hash"), (_SLASH, "slash"), (_DASH, "dash")):
        if language in names:
            return _LEXERS[name]
    if language in _HASH_DATA:
        return _COMMENTS_ONLY
    if language in _TEXT:
        return None
    return _LEXERS["any"] if any(_STRONG.search(line) for line in body.splitlines()) else None


def _loose_code(text: str, start: int, end: int) -> Iterator[tuple[int, int, re.Pattern[str]]]:
    """Runs of lines outside fences that are code; a comment line counts where a line of code is next to it."""
    begun: int | None = None
    certain = False
    at = start
    for line in text[start:end].splitlines(keepends=True):
        strong = (
            bool(_STRONG.search(line))
            and not _DATA_LINE.search(line)
            and not (_PROSE_TAIL.search(line) and " " in line.strip())
        )
        if strong or _COMMENT_LINE.search(line):
            begun = at if begun is None else begun
            certain = certain or strong
        elif begun is not None and line.strip():
            if certain:
                yield begun, at, _LEXERS["any"]
            begun, certain = None, False
        at += len(line)
    if begun is not None and certain:
        yield begun, at, _LEXERS["any"]
