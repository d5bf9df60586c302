"""Code as tree-sitter sees it: its leaves in order, and what it could not make sense of."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple

import tree_sitter

_NO_TEXT = re.compile("[\x00\ud800-\udfff]")

WHOLE = frozenset(
    {
        *("comment", "line_comment", "block_comment", "html_comment", "hash_bang_line"),
        *("string_content", "escape_sequence", "string_fragment", "multiline_string_fragment", "format_specifier"),
        *("raw_string_content", "raw_string_delimiter", "raw_string_literal_content"),
        *("interpreted_string_literal_content", "rune_literal", "character", "character_literal"),
        *("regex_pattern", "jsx_text", "preproc_arg", "system_lib_string"),
    }
)
"""Nodes that are taken whole, whatever is below them: they hold text and no code."""


class Leaf(NamedTuple):
    """A token, ``code[start:end]``.

    ``kind`` and ``parent`` are the grammar's names, ``grand`` the parent's parent's; ``named``: no keyword or sign of
    the grammar's own; ``broken``: it stands in what the parser could not make sense of.
    """

    start: int
    end: int
    kind: str
    parent: str
    grand: str
    named: bool
    broken: bool


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """Where the grammar was left; ``missing`` is what it expected there, if that is known. Both count from 1."""

    line: int
    column: int
    missing: str | None


class Parsed:
    """Code of a language, parsed. NUL and half surrogate pairs, which no database takes, are replaced one for one.

    Args:
        language: one of `ANALYSED_LANGUAGES`.
        code: any text.
    """

    def __init__(self, language: str, code: str) -> None:
        self.language = language
        self.code = _NO_TEXT.sub("\ufffd", code)
        module: Any = importlib.import_module(f"tree_sitter_{language}")
        parser = tree_sitter.Parser(tree_sitter.Language(module.language()))
        self._tree = parser.parse(self.code.encode())
        self._places = None if self.code.isascii() else self._byte_places()

    @property
    def has_error(self) -> bool:
        """Whether the grammar could not make sense of all of it."""
        return bool(self._tree.root_node.has_error)

    @cached_property
    def leaves(self) -> list[Leaf]:
        """All tokens in order. None is empty."""
        return list(self._leaves())

    def problems(self, most: int) -> list[SyntaxProblem]:
        """The first places where the grammar was left."""
        found = []
        for node, _ in self._nodes():
            if node.is_error or node.is_missing:
                start = self._place(node.start_byte)
                line_begin = self.code.rfind("\n", 0, start) + 1
                missing = node.type if node.is_missing else None
                found.append(SyntaxProblem(node.start_point[0] + 1, start - line_begin + 1, missing))
                if len(found) == most:
                    break
        return found

    def _leaves(self) -> Iterator[Leaf]:
        for node, above in self._nodes():
            if (node.child_count and node.type not in WHOLE) or node.start_byte == node.end_byte:
                continue
            kinds = [kind for kind, _ in above[-2:]]
            yield Leaf(
                self._place(node.start_byte),
                self._place(node.end_byte),
                node.type,
                kinds[-1] if kinds else "",
                kinds[0] if len(kinds) > 1 else "",
                node.is_named,
                node.is_error or bool(above and above[-1][1]),
            )

    def _nodes(self) -> Iterator[tuple[tree_sitter.Node, list[tuple[str, bool]]]]:
        """Nodes in order, with the kinds above each and whether those are broken. No recursion: code nests deeply."""
        cursor = self._tree.walk()
        above: list[tuple[str, bool]] = []
        while True:
            node = cursor.node
            assert node is not None
            yield node, above
            if node.type not in WHOLE and cursor.goto_first_child():
                above.append((node.type, node.is_error or bool(above and above[-1][1])))
                continue
            while not cursor.goto_next_sibling():
                if not cursor.goto_parent():
                    return
                above.pop()

    def _place(self, byte: int) -> int:
        return byte if self._places is None else self._places[byte]

    def _byte_places(self) -> list[int]:
        """For every byte of the code in UTF-8 the character it belongs to; one more for the end."""
        sizes = [1 if c < "\x80" else 2 if c < "\u0800" else 3 if c < "\U00010000" else 4 for c in self.code]
        places = [0] * (sum(sizes) + 1)
        for place, (begin, size) in enumerate(zip(accumulate(sizes, initial=0), sizes, strict=False)):
            places[begin : begin + size] = [place] * size
        places[-1] = len(self.code)
        return places
