"""A JSON Schema as a grammar of llama.cpp (GBNF), for what our schemas are made of.

The local server answers chats as they were generated, and takes no schema for those; a grammar binds them all the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

_MOST_ITEMS: Final = 3


def grammar(schema: Mapping[str, Any], *, longest_text: int) -> str:
    """A grammar for closed objects with all keys in their order, short lists, texts, whole numbers, and ``enum``.

    Args:
        schema: of ``object``, ``array``, ``string``, ``integer`` (0 to 9999 here) and ``enum`` only.
        longest_text: characters of a text at most; a small model repeats itself to the end of whatever it may fill.

    Raises:
        ValueError: the schema has something else.
    """
    letters = r'[^"\\\x00-\x1F] | "\\" ["\\/bfnrt]'
    return f'root ::= {_rule(schema)}\ntext ::= "\\"" ({letters}){{1,{longest_text}}} "\\""\n'


def _rule(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return "(" + " | ".join(_literal(json.dumps(value)) for value in schema["enum"]) + ")"
    if schema.get("type") == "string":
        return "text"
    if schema.get("type") == "integer":
        return '("0" | [1-9] [0-9]{0,3})'
    if schema.get("type") == "array":
        item = _rule(schema["items"])
        return f'"[" ({item} (", " {item}){{0,{_MOST_ITEMS - 1}}})? "]"'
    if schema.get("type") != "object":
        raise ValueError(f"no rule for {schema.get('type')}")
    members = [f"{_literal(json.dumps(key) + ': ')} {_rule(inner)}" for key, inner in schema["properties"].items()]
    return f'"{{" {(" " + _literal(", ") + " ").join(members)} "}}"'


def _literal(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
