"""Code without anything that is only for readers, character for character where it was.

Comments, docstrings, the contents of strings, characters, regular expressions and templates, and what the grammar
could not make sense of are blanked; what stands in ``${…}`` of a template is code and stays. A token is kept only
where it is a sign or keyword of the grammar, a single name, or a number, so what a grammar calls by a name that nobody
thought of is blanked.

Names are code and stay, and a name can carry words. Those that speak of judging, and those that are whole sentences,
are replaced, each by one placeholder of the same length wherever it stands.
"""

from __future__ import annotations

import re
from typing import Any, Final

from app.domain.judging.identifiers import placeholders
from app.infrastructure.analysis.grammar import Leaf, Parsed

BLANK: Final = "·"
"""Stands for each character of a text that is left out."""
COMMENTS: Final = frozenset({"comment", "line_comment", "block_comment", "html_comment", "hash_bang_line"})
LITERALS: Final = frozenset(
    {
        *("string_content", "escape_sequence", "string_fragment", "multiline_string_fragment", "format_specifier"),
        *("raw_string_content", "raw_string_delimiter", "raw_string_literal_content"),
        *("interpreted_string_literal_content", "rune_literal", "character", "character_literal"),
        *("regex_pattern", "jsx_text", "system_lib_string"),
    }
)
_KINDS: Final = {
    **dict.fromkeys(("rune_literal", "character", "character_literal"), "character"),
    "regex_pattern": "regex",
    "jsx_text": "text",
}
_MARKS: Final = re.compile(r"#!?|//+|/\*+|\*+/|<!--|-->")
_WORD: Final = re.compile(r"[#@$]?[^\W\d][\w$]*")
_NUMBER: Final = re.compile(r"\.?\d[\w.']*(?:(?<=[eEpP])[+-]\d+\w*)?")
_LONGEST_NUMBER: Final = 24
"""A longer one may spell a text."""
_SIGNS: Final = re.compile(r"[!-/:-@\[-^`{-~]{1,8}")
_MARK: Final = re.compile(r"[A-Za-z0-9]{0,3}(?:\"\"\"|'''|[\"'`])|![rsa]")
"""What begins or ends a string, and how a value is put into one."""
_DIRECTIVE: Final = re.compile(
    r"#[ \t]*(?:include|define|undef|if|ifdef|ifndef|else|elif|elifdef|elifndef|endif|pragma|error|warning|line)"
)
_TOKEN_OF_MACRO: Final = re.compile(
    r"(?P<text>//.*|/\*.*?(?:\*/|\Z)|\"(?:\\.|[^\"\\])*(?:\"|\Z)|'(?:\\.|[^'\\])*(?:'|\Z))"
    r"|(?P<word>[^\W\d]\w*)|(?P<number>\.?\d[\w.']*)|(?P<space>\s+)|(?P<sign>[!-/:-@\[-^`{-~])",
    re.DOTALL,
)
TYPES: Final = frozenset({"primitive_type", "integral_type", "boolean_type", "floating_point_type", "void_type"})
_SIDE_BY_SIDE: Final = 3
_IMPORTS: Final = frozenset({"import_spec", "preproc_include"})
_PATH: Final = re.compile(r"<?[A-Za-z][A-Za-z0-9_+.-]*(?:/[A-Za-z0-9_+.-]+){0,4}>?")
_LONGEST_PATH: Final = 40
_LAYOUT: Final = " \t\n\r\f"
_MOST_TOLD: Final = 500
_LONGEST_TOLD: Final = 20_000
"""Characters of all blanked pieces together that are told."""


def is_literal(leaf: Leaf) -> bool:
    """Whether a token is a number or a part of a text."""
    return leaf.kind in LITERALS or "literal" in leaf.kind or leaf.kind in ("integer", "float", "number")


def sanitise(parsed: Parsed) -> dict[str, Any]:
    """The code for a reviewer, and apart from it what was left out.

    Returns:
        ``code``: as long as the original, with its lines; ``blanked``: pieces with ``kind`` (comment, docstring,
        string, character, regex, text, number, directive, unparsed), ``line`` and ``column`` (from 1) and ``text``, as
        far as they fit; ``blanked_characters``: how many in all; ``renamed``: placeholders by name.
    """
    work = _Sanitiser(parsed)
    work.run()
    return work.result()


class _Sanitiser:
    def __init__(self, parsed: Parsed) -> None:
        self.code = parsed.code
        self.leaves = parsed.leaves
        self.out: list[str] = list(parsed.code)
        self.blanked: list[tuple[int, int, str]] = []
        self.words: list[tuple[int, int]] = []
        # A name in broken code may be a word of a sentence; one that is also used in sound code is a name.
        self.sound = {self.code[leaf.start : leaf.end] for leaf in parsed.leaves if not leaf.broken and leaf.named}

    def run(self) -> None:
        prose = self._prose()
        at = 0
        for place, leaf in enumerate(self.leaves):
            self._between(at, leaf.start)
            if place in prose:
                self._blank(leaf.start, leaf.end, "unparsed")
            else:
                self._leaf(leaf)
            at = leaf.end
        self._between(at, len(self.code))
        broken = [start for start, _, kind in self.blanked if kind == "unparsed"]
        self.renamed = placeholders(self.code, self.words, broken)
        for start, end in self.words:
            name = self.code[start:end]
            if name in self.renamed:
                self.out[start:end] = [self.renamed[name], *[""] * (end - start - 1)]  # every place stays where it is

    def result(self) -> dict[str, Any]:
        told, length, number, line_start, at = [], 0, 1, 0, 0
        for start, end, kind in self.blanked[:_MOST_TOLD]:
            number += self.code.count("\n", at, start)
            line_start = max(line_start, self.code.rfind("\n", at, start) + 1)
            at = start
            text = self.code[start:end][: _LONGEST_TOLD - length]
            length += len(text)
            told.append({"kind": kind, "line": number, "column": start - line_start + 1, "text": text})
            if length >= _LONGEST_TOLD:
                break
        return {
            "code": "".join(self.out),
            "blanked": told,
            "blanked_characters": sum(end - start for start, end, _ in self.blanked),
            "renamed": self.renamed,
        }

    def _prose(self) -> set[int]:
        """Which tokens are names side by side, with nothing but blanks between: no language says anything so."""
        found: set[int] = set()
        run: list[int] = []
        for place, leaf in enumerate(self.leaves):
            if run and self.code[self.leaves[run[-1]].end : leaf.start].strip(" \t"):
                run = []
            if not leaf.named or leaf.kind in TYPES or not _WORD.fullmatch(self.code, leaf.start, leaf.end):
                run = []
                continue
            run.append(place)
            if len(run) >= _SIDE_BY_SIDE:
                found.update(run)
        return found

    def _leaf(self, leaf: Leaf) -> None:
        start, end = leaf.start, leaf.end
        text = self.code[start:end]
        if leaf.kind in COMMENTS:
            self._comment(start, end)
        elif leaf.kind == "preproc_arg":
            self._macro(start, end, is_code=leaf.parent in ("preproc_def", "preproc_function_def"))
        elif leaf.kind in LITERALS:
            if not self._is_import(leaf, text):
                self._text(start, end, self._kind(leaf))
        elif not leaf.named and text == leaf.kind:
            pass  # a keyword or sign of the grammar's own
        elif _WORD.fullmatch(text):
            if leaf.broken and text not in self.sound:
                self._blank(start, end, "unparsed")
            else:
                self.words.append((start, end))
        elif _NUMBER.fullmatch(text):
            if len(text) > _LONGEST_NUMBER:
                self._blank(start, end, "number")
        elif not (_SIGNS.fullmatch(text) or _MARK.fullmatch(text) or _DIRECTIVE.fullmatch(text)):
            self._blank(start, end, "unparsed")

    @staticmethod
    def _kind(leaf: Leaf) -> str:
        if leaf.kind == "string_content" and leaf.grand == "expression_statement":
            return "docstring"
        return _KINDS.get(leaf.kind, "string")

    @staticmethod
    def _is_import(leaf: Leaf, text: str) -> bool:
        """Whether it names a library: ``<stdio.h>``, ``"fmt"``."""
        return (
            not leaf.broken
            and bool({leaf.parent, leaf.grand} & _IMPORTS)
            and len(text) <= _LONGEST_PATH
            and bool(_PATH.fullmatch(text))
            and not placeholders(text, [found.span() for found in re.finditer(r"\w+", text)])
        )

    def _comment(self, start: int, end: int) -> None:
        """The marks stay, so that a reader sees that there is a comment."""
        begin = start + _length(_MARKS.match(self.code, start, end))
        closing = re.search(r"\*+/$|-->$", self.code[begin:end])
        stop = begin + closing.start() if closing else end
        self._blank(begin, stop, "comment", by=" ")

    def _text(self, start: int, end: int, kind: str) -> None:
        quoted = end - start > 1 and self.code[start] in "'\"" and self.code[start] == self.code[end - 1]
        bracketed = self.code[start] == "<" and self.code[end - 1] == ">"
        inner = 1 if quoted or bracketed else 0
        self._blank(start + inner, end - inner, kind)

    def _macro(self, start: int, end: int, *, is_code: bool) -> None:
        """A macro's body, which the grammar takes for one text; the words of ``#error`` and ``#pragma`` are no code."""
        if not is_code:
            self._blank(start, end, "directive")
            return
        at = start
        for token in _TOKEN_OF_MACRO.finditer(self.code, start, end):
            self._between(at, token.start())
            at = token.end()
            if token.lastgroup == "text" and token.group()[0] == "/":
                self._comment(*token.span())
            elif token.lastgroup == "text":
                self._text(*token.span(), "string")
            elif token.lastgroup == "word":
                self.words.append(token.span())
            elif token.lastgroup == "number" and len(token.group()) > _LONGEST_NUMBER:
                self._blank(*token.span(), "number")
        self._between(at, end)

    def _between(self, start: int, end: int) -> None:
        """What no token covers: layout, and what the parser skipped."""
        run: int | None = None
        for place in range(start, end):
            character = self.code[place]
            continued = character == "\\" and self.code[place + 1 : place + 2] in ("\n", "\r")
            if character in _LAYOUT or continued:
                if run is not None:
                    self._blank(run, place, "unparsed")
                    run = None
            elif character.isspace() or character == "\ufeff":
                self.out[place] = " "
            elif run is None:
                run = place
        if run is not None:
            self._blank(run, end, "unparsed")

    def _blank(self, start: int, end: int, kind: str, by: str = BLANK) -> None:
        if start >= end:
            return
        for place in range(start, end):
            character = self.code[place]
            if character not in "\n\r":
                self.out[place] = by
        if self.blanked and self.blanked[-1][1:] == (start, kind):
            self.blanked[-1] = (self.blanked[-1][0], end, kind)
        else:
            self.blanked.append((start, end, kind))


def without_comments(parsed: Parsed) -> str:
    """The code with its comments blank: metrics do not heed what a comment tells them, such as to look away."""
    out = list(parsed.code)
    for leaf in parsed.leaves:
        if leaf.kind in COMMENTS:
            for place in range(leaf.start, leaf.end):
                if out[place] not in "\n\r":
                    out[place] = " "
    return "".join(out)


def _length(found: re.Match[str] | None) -> int:
    return found.end() - found.start() if found else 0
