"""Fenced code in a conversation: how the earlier version of a candidate's code is found. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from app.domain.model_client import ChatMessage

_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)")
_NAMES = {
    "python": ("python", "py", "python3", "py3"),
    "javascript": ("javascript", "js", "node", "nodejs", "jsx", "mjs"),
    "java": ("java",),
    "c": ("c", "h"),
    "cpp": ("cpp", "c++", "cc", "cxx", "hpp"),
    "go": ("go", "golang"),
}


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """A fenced block: who wrote it, the ``message`` it stands in (0, 1 …), its tag in lower case, and its lines."""

    message: int
    role: str
    tag: str
    code: str


def code_blocks(messages: Sequence[ChatMessage], language: str) -> list[CodeBlock]:
    """All blocks of a language, in the conversation's order; blocks without a tag only where none has the language's.

    Args:
        messages: the conversation, oldest first; candidate's and assistant's alike.
        language: a name of `app.domain.code_patterns.ANALYSED_LANGUAGES`; of any other, the tag has to be the name.
    """
    found = [
        CodeBlock(place, message.role, tag, code)
        for place, message in enumerate(messages)
        for tag, code in _fenced(message.content)
        if code.strip()
    ]
    names = _NAMES.get(language, (language,))
    return [block for block in found if block.tag in names] or [block for block in found if not block.tag]


def first_version(messages: Sequence[ChatMessage], language: str) -> str | None:
    """The first code of a language in a conversation; ``None`` where there is none."""
    blocks = code_blocks(messages, language)
    return blocks[0].code if blocks else None


def _fenced(text: str) -> Iterator[tuple[str, str]]:
    """Tag and lines of each block. One that is not closed ends with the message: a stopped answer has such."""
    mark, tag, lines = "", "", list[str]()
    for line in text.splitlines(keepends=True):
        fence = _FENCE.match(line)
        if mark:
            if fence and fence[1][0] == mark[0] and len(fence[1]) >= len(mark) and not line[fence.end(1) :].strip():
                yield tag, "".join(lines)
                mark = ""
            else:
                lines.append(line)
        elif fence and not (fence[1][0] == "`" and "`" in line[fence.end() :]):
            mark, tag, lines = fence[1], fence[2].lower(), []
    if mark:
        yield tag, "".join(lines)
