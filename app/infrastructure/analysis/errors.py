"""What may be wrong with the analyser. What is wrong with the code is a value, such as ``syntax_ok`` false.

::

    AnalysisError
    ├── AnalyserUnavailableError   the analyser is away: trying again later may help (``transient`` true)
    └── AnalysisFailedError        it fails on this code, today and tomorrow (``transient`` false)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class AnalysisError(Exception):
    """No result. ``problem`` says what is wrong and ``remedy`` what to do; neither holds any of the code.

    ``transient``: whether the same analysis may succeed later.
    """

    transient: bool

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem} {remedy}")
        self.problem = problem
        self.remedy = remedy


class AnalyserUnavailableError(AnalysisError):
    """A tool is not installed, the process cannot be started or was ended from outside, or the machine is too busy."""

    transient = True


class AnalysisFailedError(AnalysisError):
    """This code breaks the analyser: it crashes, or needs more time or memory than it is given, in a ``stage``.

    ``partial`` has what the stages before came to, such as the sanitised code.
    """

    transient = False

    def __init__(self, problem: str, remedy: str, *, stage: str, partial: Mapping[str, Any]) -> None:
        super().__init__(problem, remedy)
        self.stage = stage
        self.partial = partial
