"""The packages that the analyser is made of: which are there, and in which versions."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from app.domain.code_patterns import ANALYSED_LANGUAGES
from app.infrastructure.analysis.errors import AnalyserUnavailableError

REMEDY: Final = "pip install 'turnstone[judge]'"
OWN_VERSION: Final = "1"
"""Of the rules that are ours: what counts as duplication, as a line of code, as a function. It is stored with each
result, so it rises with every change that changes a figure."""

GRAMMARS: Final = {language: f"tree-sitter-{language}" for language in ANALYSED_LANGUAGES}
_COMMON: Final = ("lizard", "tree-sitter", "ast-grep-py")
_PYTHON_ONLY: Final = ("ruff", "complexipy")


def packages_for(language: str) -> tuple[str, ...]:
    """The packages that analyse a language."""
    return (*_COMMON, GRAMMARS[language], *(_PYTHON_ONLY if language == "python" else ()))


def installed(language: str | None = None) -> dict[str, str]:
    """Names and versions of the packages that analyse a language, or of all.

    Raises:
        AnalyserUnavailableError: with those that are missing, and what to install.
    """
    found: dict[str, str] = {}
    missing = []
    for package in packages_for(language) if language else (*_COMMON, *GRAMMARS.values(), *_PYTHON_ONLY):
        there = _version(package)
        if there is None:
            missing.append(package)
        else:
            found[package] = there
    if missing:
        raise AnalyserUnavailableError(f"Static analysis lacks {', '.join(missing)}.", f"{REMEDY} installs it.")
    return found


@cache
def _version(package: str) -> str | None:
    try:
        number = version(package)
    except PackageNotFoundError:
        return None
    return number if importlib.util.find_spec(package.replace("-", "_")) is not None else None
