"""Files of rows, as CSV or JSON Lines: read one row after the other, whatever their size, each with its line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from app.core.errors import ExportError

REMEDY = "docs/usage.md says what such a file has to look like."
_LONGEST_LINE = 1_048_576
_BOM = b"\xef\xbb\xbf"
_NESTED = frozenset(
    {
        *("usage", "usagemetadata", "payload", "cache_creation"),
        *("prompt_tokens_details", "input_tokens_details", "completion_tokens_details", "output_tokens_details"),
    }
)
"""Objects within a JSON row whose fields count as the row's own."""

Row = Mapping[str, object]
"""Its fields by their normalized names (`normalized`)."""


@lru_cache(maxsize=1_024)
def normalized(name: str) -> str:
    """A column's name without regard to case, surrounding spaces, hyphens and spaces in the place of ``_``."""
    return name.strip().lower().replace("-", "_").replace(" ", "_")


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a file, each with the number of its (last) line, counted from 1.

    What begins with ``{`` is JSON Lines, everything else CSV with a header; its separator is the comma, semicolon or
    tabulator, whichever the header has most of. The encoding is UTF-8.

    Raises:
        ExportError: the file cannot be read, or is not of such a form.
    """
    try:
        with path.open("rb") as file:
            lines = _lines(path, file)
            first = next((numbered for numbered in lines if numbered[1].strip()), None)
            if first is None:
                raise ExportError(path, None, "the file is empty.", REMEDY)
            number, line = first
            if line.lstrip().startswith("["):
                raise ExportError(path, number, "this is one JSON array.", "Write one object a line: jq -c '.[]'")
            reader = _json_rows if line.lstrip().startswith("{") else _csv_rows
            yield from reader(path, number, line, lines)
    except OSError as error:
        raise ExportError(path, None, f"the file cannot be read: {error.strerror}.", "Name another file.") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, str]]:
    number = 0
    while raw := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(raw) > _LONGEST_LINE:
            raise ExportError(path, number, "the line is longer than 1 MiB.", REMEDY)
        try:
            yield number, (raw.removeprefix(_BOM) if number == 1 else raw).decode("utf-8")
        except UnicodeDecodeError:
            raise ExportError(path, number, "this is not UTF-8.", "Save the file as UTF-8.") from None


def _json_rows(path: Path, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Row]]:
    while True:
        if line.strip():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                raise ExportError(path, number, "this is not JSON.", REMEDY) from None
            if not isinstance(value, dict):
                raise ExportError(path, number, "this is no JSON object.", REMEDY)
            yield number, _flat(value)
        try:
            number, line = next(lines)
        except StopIteration:
            return


def _flat(value: Mapping[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    inner: list[Mapping[str, object]] = []
    for name, field in value.items():
        key = normalized(name)
        if isinstance(field, dict):
            if key in _NESTED:
                inner.append(field)
        else:
            flat.setdefault(key, field)
    for part in inner:
        for name, field in _flat(part).items():
            flat.setdefault(name, field)
    return flat


def _csv_rows(path: Path, number: int, line: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Row]]:
    separator = max(",;\t", key=line.count)
    at = number

    def following() -> Iterator[str]:
        nonlocal at
        yield line
        for at, text in lines:  # noqa: B007  # the line that an error is at
            yield text

    reader = csv.reader(following(), delimiter=separator, strict=True)
    try:
        header = [normalized(name) for name in next(reader)]
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header):
                problem = f"there are {len(fields)} fields, and {len(header)} columns."
                raise ExportError(path, at, problem, REMEDY)
            # Of columns with one name the first counts.
            yield at, dict(zip(reversed(header), reversed(fields), strict=True))
    except csv.Error:
        raise ExportError(path, at, "this is not CSV.", REMEDY) from None
