"""The files of a package, in a folder or a ZIP archive: read within bounds, and never anything outside of it."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from app.domain.problem import Fault, ProblemError

MOST_FILES = 5_000
LARGEST_FILE = 16 * 1024 * 1024
LARGEST_PACKAGE = 64 * 1024 * 1024
"""Bytes of everything that is read of a package, unpacked."""
WHAT = "The package cannot be imported"


def refuse(path: str, what: str) -> ProblemError:
    """The error that names one fault; for those that leave nothing to go on with."""
    return ProblemError(WHAT, (Fault(path, what),))


@dataclass(frozen=True, slots=True)
class _Entry:
    size: int
    read: Callable[[int], bytes]
    """Takes the most that may be read."""


class PackageFiles:
    """A package's files by their path in it (``data/sample/1.in``)."""

    def __init__(self, name: str, entries: dict[str, _Entry]) -> None:
        self.name = name
        self._entries = entries
        self._left = LARGEST_PACKAGE

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def under(self, folder: str) -> list[str]:
        """Paths below a folder, in order."""
        return sorted(path for path in self._entries if path.startswith(f"{folder}/"))

    def folders(self) -> set[str]:
        """The folders at the top."""
        return {path.partition("/")[0] for path in self._entries if "/" in path}

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            ProblemError: it is too large, or too much was read already.
        """
        entry = self._entries[path]
        if entry.size > LARGEST_FILE:
            raise refuse(path, f"has {entry.size} bytes; {LARGEST_FILE} may be read of one file")
        content = entry.read(LARGEST_FILE + 1)
        self._left -= len(content)
        if len(content) > LARGEST_FILE or self._left < 0:
            raise refuse(path, f"makes the package too large: {LARGEST_PACKAGE} bytes may be read of one")
        return content

    def text(self, path: str) -> str:
        """A file's content as text, with line ends as they are everywhere else.

        Raises:
            ProblemError: it is none, or too large.
        """
        try:
            text = self.read(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise refuse(path, "is not text in UTF-8; other inputs and outputs are not supported") from None
        return text.replace("\r\n", "\n")


@contextmanager
def open_package(path: Path) -> Iterator[PackageFiles]:
    """Open a folder or a ZIP archive.

    Raises:
        ProblemError: it cannot be read, is no package, or would lead out of itself.
    """
    try:
        if path.is_dir():
            if not (path / "problem.yaml").is_file():
                raise refuse("problem.yaml", f"is missing in {path.name}")
            yield PackageFiles(path.resolve().name, _of_folder(path.resolve()))
            return
        with zipfile.ZipFile(path) as archive:
            yield PackageFiles(path.stem, _without_top(_of_archive(archive)))
    except zipfile.BadZipFile:
        raise refuse(path.name, "is neither a folder nor a ZIP archive that can be read") from None
    except (NotImplementedError, zlib.error, EOFError):
        raise refuse(path.name, "is packed in a way that cannot be read; pack it anew, with deflate") from None
    except OSError as error:
        raise refuse(path.name, f"cannot be read: {error.strerror or 'input or output failed'}") from None


def _of_folder(root: Path) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for found in sorted(root.rglob("*")):  # which follows no link to a folder
        inside = found.relative_to(root).as_posix()
        if any(part.startswith(".") and part != ".timelimit" for part in inside.split("/")) or found.is_dir():
            continue
        real = found.resolve()
        if not real.is_relative_to(root):
            raise refuse(inside, "is a link that leads out of the package")
        if not real.is_file():
            raise refuse(inside, "is not a file")
        entries[inside] = _Entry(real.stat().st_size, lambda most, real=real: _read(real, most))  # type: ignore[misc]  # a default binds it
        _check_number(entries)
    return entries


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _of_archive(archive: zipfile.ZipFile) -> dict[str, _Entry]:
    entries: dict[str, _Entry] = {}
    for info in archive.infolist():
        shown = info.filename[:200]
        path = PurePosixPath(info.filename)
        if (
            info.filename.startswith("/")
            or ".." in path.parts
            or "\\" in info.filename
            or ":" in info.filename.partition("/")[0]
        ):
            raise refuse(shown, "would lead out of the package")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise refuse(shown, "is a link; archives with links are not supported, a folder may have them")
        if info.flag_bits & 1:
            raise refuse(shown, "is encrypted")
        if info.is_dir() or any(part.startswith(".") and part != ".timelimit" for part in path.parts):
            continue
        if path.parts[:1] in ((), ("__MACOSX",)):
            continue
        if str(path) in entries:
            raise refuse(shown, "is in the archive twice")
        entries[str(path)] = _Entry(info.file_size, lambda most, info=info: _unpack(archive, info, most))  # type: ignore[misc]  # a default binds it
        _check_number(entries)
    return entries


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    with archive.open(info) as file:
        return file.read(most)  # what the archive says of its sizes need not be true


def _check_number(entries: dict[str, _Entry]) -> None:
    if len(entries) > MOST_FILES:
        raise refuse("", f"has more than {MOST_FILES} files")


def _without_top(entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """The entries below the one folder that most archives consist of."""
    tops = {path.partition("/")[0] for path in entries}
    if "problem.yaml" in entries or len(tops) != 1:
        return entries
    [top] = tops
    return {path.removeprefix(f"{top}/"): entry for path, entry in entries.items()}
