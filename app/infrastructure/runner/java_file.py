"""What a Java source's file is called."""

from __future__ import annotations

_MOST_BYTES = 250
"""Of a file's name; file systems take 255."""


def java_file(public: str | None) -> str:
    """The file of a source with this public type, or with none.

    A type whose file no system can hold gets ``Main.java``: the compiler refuses that, which is its author's to mend,
    while a file that cannot be made would be the service's own failure.
    """
    name = f"{public}.java"
    return "Main.java" if public is None or len(name.encode()) > _MOST_BYTES else name
