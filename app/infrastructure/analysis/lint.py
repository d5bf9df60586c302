"""Lint: ruff for Python, and rules of ours for the other languages (``lint_rules.yaml``), all read by ast-grep."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from importlib.resources import files
from typing import Any, Final

import yaml

from app.infrastructure.analysis.grammar import Parsed
from app.infrastructure.analysis.matching import matches_of

_SELECTED: Final = "E7,E9,F,B,PLE,PLW0120,C4,SIM1,RET5"
"""Faults and needless detours; nothing of layout, which says nothing of a program."""
_NEWEST: Final = "py314"
_SHOWN: Final = 100
_LONGEST_TEXT: Final = 300
_PATIENCE_S: Final = 30


class LinterCrashedError(Exception):
    """The linter's own process ended badly."""


def lint_of(parsed: Parsed) -> dict[str, Any]:
    """What a linter says.

    Returns:
        ``tool``; ``messages`` with ``rule``, ``line``, ``column`` and ``message``, the first ones by line; ``count`` of
        all; ``syntax``: for Python what ruff's parser, which knows newer Python than the grammar, says of the syntax
        (true or false), for others null.

    Raises:
        LinterCrashedError: ruff ends in a way of its own, as it does on code that nests too deeply.
    """
    return _by_ruff(parsed.code) if parsed.language == "python" else _by_rules(parsed)


def _by_ruff(code: str) -> dict[str, Any]:
    from ruff import find_ruff_bin

    command = [find_ruff_bin(), "check", "-", "--isolated", "--no-cache", "--ignore-noqa", "--exit-zero"]
    options = ["--output-format", "json", "--select", _SELECTED, "--target-version", _NEWEST]
    done = subprocess.run(  # noqa: S603  # our own arguments; the code goes through a pipe
        [*command, *options, "--stdin-filename", "code.py"],
        input=code.encode(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        timeout=_PATIENCE_S,
        check=False,
    )
    if done.returncode != 0:
        raise LinterCrashedError(f"ruff ended with {done.returncode}")
    found = json.loads(done.stdout)
    wrong = [entry for entry in found if entry["code"] in (None, "invalid-syntax")]
    messages = [
        {
            "rule": entry["code"] or "invalid-syntax",
            "line": entry["location"]["row"],
            "column": entry["location"]["column"],
            "message": entry["message"][:_LONGEST_TEXT],
        }
        for entry in found[:_SHOWN]
    ]
    return {"tool": "ruff", "messages": messages, "count": len(found), "syntax": not wrong}


def _by_rules(parsed: Parsed) -> dict[str, Any]:
    found = matches_of(parsed.language, parsed.code, own_rules(parsed.language))
    messages = [
        {"rule": rule["id"], "line": place["line"], "column": place["column"], "message": rule["message"]}
        for rule in found
        for place in rule["matches"]
    ]
    messages.sort(key=lambda message: (message["line"], message["column"], message["rule"]))
    count = sum(rule["count"] or 0 for rule in found)
    return {"tool": "ast-grep-py", "messages": messages[:_SHOWN], "count": count, "syntax": None}


@cache
def own_rules(language: str) -> list[dict[str, Any]]:
    """Our rules for a language, as `matches_of` takes them."""
    text = files("app.infrastructure.analysis").joinpath("lint_rules.yaml").read_text(encoding="utf-8")
    return [
        {
            "id": entry["id"],
            "language": language,
            "message": entry["message"],
            "severity": "warning",
            "matcher": {key: entry[key] for key in ("rule", "constraints", "utils") if key in entry},
        }
        for entry in yaml.safe_load(text)
        if language in entry["languages"]
    ]
