"""``turnstone rubric``: what judging goes by, looked at and compared. Only what is stored needs the database."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.cli.console import AsJson, Limit, fail, is_file, loading, say, when, with_database
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.domain.document_reading import Document
    from app.domain.documents import DocumentError, DocumentKind

cli = typer.Typer(
    help="Rubrics, judges' prompts and score policies: check, show, compare, store.", no_args_is_help=True
)

Kind = Annotated[
    str | None,
    typer.Option("--kind", metavar="rubric|prompt|policy", help="What it has to be; told from its content otherwise."),
]
Which = Annotated[
    str, typer.Argument(metavar="NAME|HASH|FILE", help="A shipped one's name, a hash or its first 8 signs, or a file.")
]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A YAML or Markdown file.")]
_HASH = re.compile("[0-9a-f]{8,64}")


@dataclass(frozen=True)
class _Found:
    """A document with where it came from; ``kind`` is not told yet where that was a file."""

    source: str
    name: str
    text: str
    kind: DocumentKind | None = None


@cli.command("lint")
def lint(file: File, kind: Kind = None) -> None:
    """Check a file: every problem with its line. Exit code 1 if there is any."""
    with loading():
        from app.domain.documents import content_hash
    found = _read_file(file)
    known, document = _parsed(found, _checked_kind(kind))
    typer.echo(f"{file}: a {known} without faults, {_title(found, document)}, {content_hash(found.text)}")


@cli.command("list")
def list_documents(
    stored: Annotated[
        bool, typer.Option("--stored", help="What the database keeps; otherwise what is shipped.")
    ] = False,
    kind: Kind = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List documents: hash, kind and name."""
    with loading():
        from app.domain.documents import KINDS, content_hash, shipped, shipped_names
    only = _checked_kind(kind)
    if not stored:
        for of_kind in KINDS if only is None else (only,):
            for name in shipped_names(of_kind):
                _list_one({"hash": content_hash(shipped(of_kind, name)), "kind": of_kind, "name": name}, as_json)
        return

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.document_repository import DocumentRepository

        async with get_db_context() as db:
            found = await DocumentRepository(db).list_documents(only, limit=limit)
        for kept in found:
            entry = {"hash": kept.hash, "kind": kept.kind, "name": kept.name, "created_at": kept.created_at.isoformat()}
            _list_one(entry, as_json, f"  stored {when(kept.created_at)}")

    with_database(show)


@cli.command("show")
def show_document(which: Which, as_json: AsJson = False) -> None:
    """Print a document as it is: a beginning for one of your own. Its kind and hash go to standard error."""
    with loading():
        from app.domain.documents import content_hash
    [found] = _find([which])
    kind, document = _parsed(found)
    key = content_hash(found.text)
    if as_json:
        entry = {"kind": kind, "name": found.name, "hash": key, "content": found.text}
        typer.echo(json.dumps(entry, ensure_ascii=False))
        return
    say(f"{kind} {_title(found, document)}, {key}")
    typer.echo(found.text, nl=not found.text.endswith("\n"))


@cli.command("diff")
def diff(before: Which, after: Which, as_json: AsJson = False) -> None:
    """Tell what two documents differ in by meaning: weights, thresholds, anchors, texts."""
    with loading():
        from app.domain.document_reading import differences
    first, second = _find([before, after])
    kind, old = _parsed(first)
    other_kind, new = _parsed(second)
    if kind != other_kind:
        raise typer.BadParameter(f"{before} is a {kind} and {after} a {other_kind}: they cannot be compared")
    found = differences(old, new)
    for difference in found:
        if as_json:
            entry = {"path": difference.path, "before": difference.before, "after": difference.after}
            typer.echo(json.dumps(entry, ensure_ascii=False))
        else:
            _tell(difference.path, difference.before, difference.after)
    if not found:
        same = first.text == second.text
        say("the same document" if same else "no difference in meaning; names, comments or layout differ")


@cli.command("store")
def store(file: File, kind: Kind = None) -> None:
    """Keep a document of your own in the database, so that exams can pin it; prints its hash."""
    found = _read_file(file)
    known, document = _parsed(found, _checked_kind(kind))

    async def keep() -> None:
        from app.domain.documents import DocumentError
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.document_repository import DocumentRepository

        try:
            async with get_db_context() as db:
                key = await DocumentRepository(db).put(known, _title(found, document), found.text)
        except DocumentError as error:  # a prompt's name is its file's, which may be anything
            _tell_problems(found.source, error)
        typer.echo(key)

    with_database(keep)


def _find(wanted: list[str]) -> list[_Found]:
    """What each argument names. The database is asked only about hashes that are no shipped document's, and once."""
    with loading():
        from app.domain.document_reading import find_shipped
    found: dict[str, _Found] = {}
    for which in wanted:
        shipped = find_shipped(which)
        if shipped is not None:
            kind, name, text = shipped
            found[which] = _Found(which, name, text, kind)
        elif is_file(which):
            found[which] = _read_file(Path(which))
        elif not _HASH.fullmatch(which):
            problem = f"{which} is neither a shipped document nor a hash nor a file."
            raise StartupError(problem, "`turnstone rubric list` shows what is shipped.")
    hashes = [which for which in wanted if which not in found]

    async def look() -> None:
        for which in hashes:
            found[which] = await _kept(which)

    if hashes:
        with_database(look)
    return [found[which] for which in wanted]


async def _kept(beginning: str) -> _Found:
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.document_repository import DocumentRepository

    async with get_db_context() as db:
        kept = await DocumentRepository(db).starting_with(beginning)
    if len(kept) != 1:
        problem = f"{'No stored document has' if not kept else 'Several stored documents have'} the hash {beginning}."
        raise StartupError(problem, "`turnstone rubric list --stored` shows which there are.")
    return _Found(beginning, kept[0].name, kept[0].content, _checked_kind(kept[0].kind))


def _read_file(file: Path) -> _Found:
    with loading():
        from app.domain.documents import LONGEST_DOCUMENT
    try:
        with file.open("rb") as opened:
            # As bytes, so that line ends stay and the hash is the file's own. No character has more than four.
            text = opened.read(4 * LONGEST_DOCUMENT + 1).decode("utf-8")
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.", "Choose another file.") from None
    except UnicodeDecodeError:
        raise StartupError(f"{file} is no text in UTF-8.", "Save it as UTF-8.") from None
    return _Found(str(file), file.name.removesuffix(".md").removesuffix(".yaml").removesuffix(".yml"), text)


def _parsed(found: _Found, kind: DocumentKind | None = None) -> tuple[DocumentKind, Document]:
    with loading():
        from app.domain.document_reading import kind_of, read_document
        from app.domain.documents import DocumentError
    try:
        known = kind or found.kind or kind_of(found.text)
        return known, read_document(known, found.text)
    except DocumentError as error:
        _tell_problems(found.source, error)


def _tell_problems(source: str, error: DocumentError) -> NoReturn:
    for problem in error.problems:
        place = source if problem.line is None else f"{source}:{problem.line}"
        typer.echo(f"{place}: {problem.path + ': ' if problem.path else ''}{problem.what}")
    count = "one problem" if len(error.problems) == 1 else f"{len(error.problems)} problems"
    fail(
        StartupError(
            f"{source} has {count}.", "docs/evaluation.md explains every key; `turnstone rubric show` an example."
        )
    )


def _title(found: _Found, document: Document) -> str:
    from app.domain.document_reading import name_of

    return name_of(document) or found.name


def _checked_kind(kind: str | None) -> DocumentKind | None:
    from app.domain.documents import KINDS

    if kind is None:
        return None
    for known in KINDS:
        if kind == known:
            return known
    raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="--kind")


def _list_one(entry: dict[str, Any], as_json: bool, more: str = "") -> None:
    typer.echo(json.dumps(entry, ensure_ascii=False) if as_json else "{hash}  {kind:<6}  {name}".format(**entry) + more)


def _tell(path: str, before: str | None, after: str | None) -> None:
    """One difference: on one line where both values are short, else line by line."""
    lines_before, lines_after = (before or "").splitlines(), (after or "").splitlines()
    if all(len(lines) <= 1 and len("".join(lines)) <= 30 for lines in (lines_before, lines_after)):
        typer.echo(f"{path}: {'–' if before is None else before} → {'–' if after is None else after}")
        return
    import difflib

    typer.echo(f"{path}:")
    for line in list(difflib.unified_diff(lines_before, lines_after, n=0, lineterm=""))[2:]:
        if not line.startswith("@@"):
            typer.secho(f"  {line[0]} {line[1:]}", fg="red" if line[0] == "-" else "green")
