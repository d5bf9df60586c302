"""What a Java source's file has to be called, and which of its classes is started."""

from __future__ import annotations

import re
from typing import NamedTuple

from app.infrastructure.runner.java_file import java_file

_NO_CODE = re.compile(
    r"""//[^\n]* | /\*.*?\*/ | \"\"\".*?\"\"\" | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])+'""", re.DOTALL | re.VERBOSE
)
_PACKAGE = re.compile(r"^\s*package\s+([\w.]+)\s*;", re.MULTILINE)
_PUBLIC = re.compile(r"\bpublic\s+(?:(?:final|abstract|strictfp|sealed)\s+)*(?:class|record|enum|interface)\s+(\w+)")
_MARK = re.compile(
    r"(?P<brace>[{}]) | \b(?:class|record|enum|interface)\s+(?P<type>\w+)"
    r"| (?P<main>\bstatic\b[^;{}()]*\bvoid\s+main\s*\()",
    re.VERBOSE,
)


class JavaNames(NamedTuple):
    """``Solution.java``, and the class to start with its package: ``exam.Solution``."""

    file: str
    main: str


def java_names(source: str) -> JavaNames:
    """Read both from a source that need not compile. Without a public type the file is ``Main.java``.

    Of several classes with ``main`` it is ``Main``, else the file's, else the first.
    """
    bare = _NO_CODE.sub(" ", source)
    public, package = _PUBLIC.search(bare), _PACKAGE.search(bare)
    file = java_file(public[1] if public else None)
    of_file = file.removesuffix(".java")
    started = _with_main(bare)
    main = next((name for name in ("Main", of_file, *started) if name in started), of_file)
    return JavaNames(file, f"{package[1]}.{main}" if package else main)


def _with_main(bare: str) -> list[str]:
    found: list[str] = []
    depth, outermost = 0, ""
    for mark in _MARK.finditer(bare):
        if mark["brace"]:
            depth += 1 if mark["brace"] == "{" else -1
        elif mark["type"] and depth == 0:
            outermost = mark["type"]
        elif mark["main"] and depth == 1 and outermost not in found:
            found.append(outermost)
    return found
