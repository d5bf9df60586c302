"""The process in which parsers run: a request as JSON on standard input, a line of JSON per stage on standard output.

``{"begun": stage}`` before a stage and ``{"done": stage, "value": …}`` after it, so that whoever reads knows in which
one the process ended. A defect is told by its kind alone: its text may quote the code.
"""

from __future__ import annotations

import sys

from app.infrastructure.analysis.limits import confine

confine(tuple(map(int, sys.argv[1:])))  # before anything else is imported: what follows reads what a candidate wrote

import json  # noqa: E402
from types import TracebackType  # noqa: E402
from typing import Any  # noqa: E402

from app.infrastructure.analysis.stages import STAGES, Subject  # noqa: E402


def main() -> None:
    """Do the stages that the request names, in order."""
    sys.excepthook = _tell_kind
    request = json.loads(sys.stdin.buffer.read())
    subject = Subject(request)
    for name in request["stages"]:
        _tell({"begun": name})
        _tell({"done": name, "value": STAGES[name](subject)})
    _tell({"end": True})


def _tell(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _tell_kind(kind: type[BaseException], _: BaseException, __: TracebackType | None) -> None:
    _tell({"crashed": kind.__name__})


if __name__ == "__main__":
    main()
