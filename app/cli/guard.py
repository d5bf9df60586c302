"""``turnstone guard``: what the guard makes of messages."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from app.cli.console import LARGEST_ID, AsJson, loading, read_settings, with_database
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.domain.guard_policy import GuardRules

cli = typer.Typer(help="The guard, which labels candidates' messages.", no_args_is_help=True)

_FIELDS = ("message", "text", "prompt", "content")
_SHOWN = 80
"""Characters of a message in a list for people."""


@cli.command("check")
def check(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Messages, one a line; of *.jsonl, one JSON object a line. -: stdin.")
    ],
    exam: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="By this exam's settings.")] = None,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Lines are JSON, whatever the file's name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the guard finds in messages, and what it would do about each. No model is asked.

    A score above 0 is an attack. "?": the guard is in doubt, and would ask a model where the exam wants that.
    """
    lines = _messages(file, jsonl=jsonl or file.endswith((".jsonl", ".ndjson")))
    if exam is None:
        with loading():
            settings = read_settings(quiet=True)
            from app.domain.guard_policy import refusing
        _report(lines, refusing(settings.guard.refuse), as_json=as_json)
        return

    async def with_exam() -> None:
        _report(lines, await _rules_of(exam), as_json=as_json)

    with_database(with_exam)


async def _rules_of(exam_id: int) -> GuardRules:
    from app.domain.guard_policy import refusing
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.exam_repository import ExamRepository

    async with get_db_context() as db:
        found = await ExamRepository(db).settings_of(exam_id, None)
    if found is None:
        raise StartupError(
            f"Nothing is known of exam {exam_id}.", "PUT /api/exams/{id} sets it; without --exam the default is taken."
        )
    return found.guard or refusing(read_settings(quiet=True).guard.refuse)


def _report(messages: Iterable[tuple[int, str]], rules: GuardRules, *, as_json: bool) -> None:
    from app.domain.guard_inspection import inspected

    actions: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    for line, message in messages:
        found = inspected(message)
        verdict = rules.decide(found.labels)
        actions[verdict.action.value] += 1
        labels.update(label.value for label in verdict.labels)
        row: dict[str, Any] = {
            "line": line,
            "action": verdict.action.value,
            "labels": sorted(verdict.labels),
            "by_rule": sorted(found.by_rule),
            "score": round(found.margin, 3),
            "doubtful": found.doubtful,
        }
        typer.echo(json.dumps(row, ensure_ascii=False) if as_json else _for_people(row, message))
    counts = {"messages": actions.total(), "actions": dict(actions), "labels": dict(labels)}
    if as_json:
        typer.echo(json.dumps(counts, ensure_ascii=False))
    else:
        typer.secho(f"{actions.total()} messages: {_listed(actions)}; {_listed(labels)}", bold=True)


def _for_people(row: dict[str, Any], message: str) -> str:
    # What a candidate wrote may hold a terminal's control sequences.
    shown = "".join(c if c.isprintable() else " " for c in message[:_SHOWN])
    doubt = "?" if row["doubtful"] else " "
    return (
        f"{row['line']:>6}  {row['action']:<6} {row['score']:+.2f}{doubt}  {', '.join(row['labels']) or '-'}  {shown}"
    )


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {word}" for word, count in counts.most_common()) or "no label"


def _messages(file: str, *, jsonl: bool) -> Iterator[tuple[int, str]]:
    """The messages and the lines they stand in, 1, 2, 3 …; empty lines are none."""
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as lines:
            yield from _read(lines, file, jsonl=jsonl)
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.", "Name another file, or - for stdin.") from None


def _read(lines: BinaryIO, file: str, *, jsonl: bool) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            text = line.decode().rstrip("\r\n")
            message = _field(json.loads(text)) if jsonl else text
        except (ValueError, RecursionError):
            message = None
        if message is None:
            wanted = f"a JSON object with a text as {', '.join(_FIELDS)}" if jsonl else "UTF-8"
            raise StartupError(f"Line {number} of {file} is not {wanted}.", "Mend or remove it.")
        yield number, message


def _field(row: object) -> str | None:
    if isinstance(row, dict):
        return next((row[name] for name in _FIELDS if isinstance(row.get(name), str)), None)
    return None
