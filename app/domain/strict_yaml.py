"""Reads YAML so that nothing passes by mistake: each problem is collected with its path and line.

What YAML 1.1 would quietly make something else of is refused: a key given twice, ``010`` (eight), ``1:30`` (ninety),
``no`` (false), aliases and tags. A number is a number as people write it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from itertools import pairwise

import yaml

from app.domain.documents import DocumentError, DocumentProblem, is_strange, problems_of_text

_DEEPEST = 8
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,8})(?:\.[0-9]{1,15})?")
_NUMBER_TAGS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_TEXT_TAG = "tag:yaml.org,2002:str"
LONGEST_TEXT = 2_000


class Section:
    """A mapping of a document. What is asked of it and is not there as it should be becomes a problem.

    A getter then returns a stand-in of its type; `finish` raises before anybody uses it.
    """

    def __init__(
        self, fields: dict[str, yaml.Node], path: str, problems: list[DocumentProblem], line: int | None = None
    ) -> None:
        self._fields = fields
        self._path = path
        self._problems = problems
        self._line = line

    def __contains__(self, key: str) -> bool:
        return key in self._fields

    @property
    def is_there(self) -> bool:
        """Whether the document has this mapping."""
        return self._line is not None

    @property
    def keys(self) -> tuple[str, ...]:
        """The known keys that are there, in the document's order."""
        return tuple(self._fields)

    def problem(self, key: str, what: str) -> None:
        """Note that something is wrong with a field; ``""`` is the section itself."""
        line = _line(self._fields[key]) if key in self._fields else self._line
        self._problems.append(DocumentProblem(_join(self._path, key), what, line))

    def finish(self, what: str) -> None:
        """Raise `DocumentError` with all problems of the whole document, by line, if there are any."""
        if self._problems:
            ordered = sorted(self._problems, key=lambda problem: problem.line or 0)
            raise DocumentError(what, tuple(ordered))

    def text(self, key: str, *, pattern: str = "") -> str:
        """A text, without space around it; ``pattern``: all of it matches."""
        node = self._fields.get(key)
        if node is None:
            return ""
        value = node.value.strip() if isinstance(node, yaml.ScalarNode) and node.tag == _TEXT_TAG else None
        if value is None:
            self.problem(key, 'must be text; put it in "quotes" if it looks like something else')
        elif not value:
            self.problem(key, "must not be empty")
        elif len(value) > LONGEST_TEXT:
            self.problem(key, f"must have {LONGEST_TEXT} characters at most")
        elif any(is_strange(character) for character in value):
            self.problem(key, "holds characters that cannot be shown")
        elif pattern and not re.fullmatch(pattern, value):
            self.problem(key, f"must look like {pattern}")
        return value or ""

    def number(self, key: str, low: float, high: float) -> float:
        """A number from ``low`` to ``high``."""
        node = self._fields.get(key)
        if node is None:
            return math.nan
        written = node.value if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS else ""
        if not _NUMBER.fullmatch(written):
            self.problem(key, f"must be a number from {low:g} to {high:g}")
            return math.nan
        value = float(written)
        if not low <= value <= high:
            self.problem(key, f"must be from {low:g} to {high:g}, and is {written}")
        return value

    def whole(self, key: str, low: int, high: int) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.number(key, low, high)
        if math.isnan(value):
            return low
        if value != int(value):
            self.problem(key, "must be a whole number")
        return int(value)

    def is_word(self, key: str, word: str) -> bool:
        """Whether the field is just this word."""
        node = self._fields.get(key)
        return isinstance(node, yaml.ScalarNode) and node.tag == _TEXT_TAG and node.value == word

    def words(self, key: str, known: Collection[str]) -> tuple[str, ...]:
        """A list of words, each of them ``known`` and there once; it may be empty."""
        node = self._fields.get(key)
        if node is None:
            return ()
        entries = node.value if isinstance(node, yaml.SequenceNode) else None
        words = [entry.value for entry in entries or () if isinstance(entry, yaml.ScalarNode)]
        if entries is None or len(words) < len(entries) or len(set(words)) < len(words) or not set(words) <= set(known):
            self.problem(key, f"must be a list with some of {', '.join(known)}, each once")
            return ()
        return tuple(words)

    def section(self, key: str, required: Collection[str] = (), optional: Collection[str] = ()) -> Section:
        """A mapping within this one, with all of the keys ``required`` and no other but ``optional`` ones."""
        return self._open(self._fields.get(key), _join(self._path, key), required, optional)

    def sections(self, key: str, required: Collection[str], optional: Collection[str] = ()) -> list[Section]:
        """A list of mappings, with one entry at least."""
        node = self._fields.get(key)
        if node is None:
            return []
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self.problem(key, "must be a list, with one entry at least")
            return []
        path = _join(self._path, key)
        return [
            self._open(entry, f"{path}[{place}]", required, optional) for place, entry in enumerate(node.value, start=1)
        ]

    def _open(self, node: yaml.Node | None, path: str, required: Collection[str], optional: Collection[str]) -> Section:
        if node is None:
            return Section({}, path, self._problems)
        fields = _fields(node, path, self._problems)
        if fields is None:
            return Section({}, path, self._problems)
        known = [*required, *optional]
        for key in fields:
            if key not in known:
                what = f"is not known here; there is {', '.join(known)}"
                self._problems.append(DocumentProblem(_join(path, key), what, _line(fields[key])))
        for key in required:
            if key not in fields:
                self._problems.append(DocumentProblem(_join(path, key), "is missing", _line(node)))
        return Section({key: fields[key] for key in fields if key in known}, path, self._problems, _line(node))


def read_yaml(text: str, what: str, required: Collection[str], optional: Collection[str] = ()) -> Section:
    """The mapping that a document is.

    Args:
        text: the document.
        what: what it should be, for the error ("The policy").
        required: its keys; a missing one is a problem.
        optional: further keys; any other one is a problem.

    Raises:
        DocumentError: it is no YAML, or no single mapping. All else is raised by `Section.finish`.
    """
    return Section({"": _root(text, what)}, "", []).section("", required, optional)


def declared_kind(text: str) -> str | None:
    """What a document gives as its ``kind``; ``None`` where it gives none.

    Raises:
        DocumentError: it is no YAML, or no single mapping.
    """
    fields = _fields(_root(text, "The document cannot be read"), "", [])
    node = (fields or {}).get("kind")
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _root(text: str, what: str) -> yaml.Node:
    problems = problems_of_text(text) or _problems_of_events(text)
    if problems:
        raise DocumentError(what, tuple(problems))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise DocumentError(what, (_not_yaml(error),)) from None
    if not isinstance(root, yaml.MappingNode):
        raise DocumentError(what, (DocumentProblem("", "must be a mapping, such as `name: …`"),))
    return root


def is_out_of_order(values: Sequence[float], *, falling: bool = False) -> bool:
    """Whether values do not strictly rise (or fall); one that could not be read is left out."""
    known = [-value if falling else value for value in values if not math.isnan(value)]
    return any(after <= before for before, after in pairwise(known))


def _problems_of_events(text: str) -> list[DocumentProblem]:
    """What must not even be composed: PyYAML goes down a document by recursion and repeats what an alias names."""
    found: list[DocumentProblem] = []
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                found.append(DocumentProblem("", "must not use anchors and aliases (& and *)", line))
            if getattr(event, "tag", None):
                found.append(DocumentProblem("", "must not use tags (!)", line))
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > _DEEPEST:
                return [DocumentProblem("", "is nested too deeply", line)]
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        return [_not_yaml(error)]
    return found


def _not_yaml(error: Exception) -> DocumentProblem:
    mark = getattr(error, "problem_mark", None)
    reason = getattr(error, "problem", None) or "it cannot be read"
    return DocumentProblem("", f"is not YAML: {reason}", mark.line + 1 if mark is not None else None)


def _fields(node: yaml.Node, path: str, problems: list[DocumentProblem]) -> dict[str, yaml.Node] | None:
    if not isinstance(node, yaml.MappingNode):
        problems.append(DocumentProblem(path, "must be a mapping, such as `key: value`", _line(node)))
        return None
    fields: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        shown = name if len(name) <= 40 and not any(map(is_strange, name)) else f"{name[:40]!r}…"
        if shown in fields:
            problems.append(DocumentProblem(_join(path, shown), "is given twice", _line(key)))
        else:
            fields[shown] = value
    return fields


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path and key else path or key


def _line(node: yaml.Node | None) -> int | None:
    return None if node is None else node.start_mark.line + 1
