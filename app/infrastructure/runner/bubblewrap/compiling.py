"""The compile step: a sandbox with the compiler in it, whose standard output is the compiled program."""

from __future__ import annotations

import asyncio
import io
import tarfile
import zipfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from app.domain.code_runner import CompileFailed, CompileLimits
from app.infrastructure.runner.bubblewrap.accounts import WORK
from app.infrastructure.runner.bubblewrap.boxes import box_limits, box_options, compile_command
from app.infrastructure.runner.bubblewrap.frames import Frame
from app.infrastructure.runner.bubblewrap.readings import read_compiler
from app.infrastructure.runner.bubblewrap.toolchains import JAR, PROGRAM, Language, main_class

_MOST_FILES = 500
_READ_ONLY, _RUNNABLE = 0o444, 0o555

Run = Callable[[dict[str, Any], Sequence[bytes]], Awaitable[Frame]]
"""Run one sandbox."""

File = tuple[str, int, bytes]
"""A place in a sandbox, a mode, a content."""


class Compiled(NamedTuple):
    """A program's files, and the name it is run by."""

    files: list[File]
    name: str

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(len(content) for _, _, content in self.files)


async def compile_program(run: Run, language: Language, source: str, limits: CompileLimits) -> Compiled | CompileFailed:
    """Compile, or check the syntax of a language that is not compiled.

    Raises:
        RunnerUnavailableError: no sandbox can be made.
    """
    factor = language.compile_factor
    limits = replace(limits, cpu_s=limits.cpu_s * factor, wall_s=limits.wall_s * factor)
    name = language.name_of(source)
    text = source.encode("utf-8", "replace")
    directories = [f"{WORK}/out"] if language.makes == "tree" else []
    header = {
        "options": box_options(language.compile_view, language, limits.files_mb << 20, directories),
        "argv": compile_command(language, name),
        "handle": "",
        "files": [f"{PROGRAM}/{name}"],
        "limits": box_limits(limits, language, compiling=True),
    }
    frame = await run(header, [b"", text])
    failed = read_compiler(frame, limits)
    if failed is not None:
        return failed
    if language.makes == "nothing":
        return Compiled([(f"{PROGRAM}/{name}", _READ_ONLY, text)], name)
    made = frame.parts[0]
    if language.makes == "file":
        return Compiled([(f"{PROGRAM}/main", _RUNNABLE, made)], "main")
    files = await asyncio.to_thread(_unpack, made)
    if files is None:
        return CompileFailed("", f"compiling made no classes, or more than {_MOST_FILES} files")
    return Compiled([(JAR, _READ_ONLY, _pack(files))], main_class(files, name))


def _unpack(archive: bytes) -> dict[str, bytes] | None:
    """Plain files of an archive by their path; it comes out of a sandbox, so nothing in it is believed."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="replace") as opened:
            for member in opened:
                path = PurePosixPath(member.name)
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    continue
                content = opened.extractfile(member)
                if content is not None:
                    files[str(path)] = content.read(len(archive))
                if len(files) > _MOST_FILES:
                    return None
    except tarfile.TarError:
        return None
    return files or None


def _pack(files: dict[str, bytes]) -> bytes:
    """A jar of them."""
    jar = io.BytesIO()
    with zipfile.ZipFile(jar, "w") as opened:
        for path, content in files.items():
            opened.writestr(zipfile.ZipInfo(path), content)
    return jar.getvalue()
