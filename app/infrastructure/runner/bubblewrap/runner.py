"""The code runner on this machine: each run in a sandbox of its own, made by bubblewrap."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from app.core.cpus import ANY, beside_chats
from app.domain.code_runner import (
    COMPILE_LIMITS,
    CompileFailed,
    CompileLimits,
    Execution,
    Isolation,
    Limits,
    PreparedProgram,
    ProgramInput,
    RunnerUnavailableError,
    SourceProgram,
    Toolchain,
    UnknownLanguageError,
)
from app.infrastructure.runner.bubblewrap.accounts import WORK
from app.infrastructure.runner.bubblewrap.boxes import box_limits, box_options, find_bwrap, home_of
from app.infrastructure.runner.bubblewrap.compiling import compile_program
from app.infrastructure.runner.bubblewrap.frames import Frame
from app.infrastructure.runner.bubblewrap.link import WardenLink
from app.infrastructure.runner.bubblewrap.readings import read_run, was_made
from app.infrastructure.runner.bubblewrap.self_test import try_isolation
from app.infrastructure.runner.bubblewrap.staging import reachable
from app.infrastructure.runner.bubblewrap.toolchains import Language, find_languages
from app.infrastructure.runner.bubblewrap.users import FIRST_UID, USERS
from app.infrastructure.runner.ordered import in_order

_TRY_AGAIN_S = 30.0
"""How long a failed start is believed; it costs a second, and whoever waits asks often."""

_TRIES = 3
"""To make a sandbox; what was used up may be free an instant later."""

Level = Literal["cgroup2", "cgroup1", "rlimits"]


@dataclass(frozen=True, slots=True)
class _Prepared(PreparedProgram):
    link: WardenLink
    name: str
    size: int


class BubblewrapRunner:
    """`CodeRunner` by bubblewrap. With the first run the warden starts, and isolation is tried."""

    name = "bubblewrap"

    def __init__(self, concurrency: int, *, delegated: Path | None = None, level: Level | None = None) -> None:
        """``concurrency`` is of sandboxes at once; ``level`` is the only way limits are held, ``None``: the best."""
        self._concurrency = concurrency
        self._delegated, self._level = delegated, level
        self._slots = asyncio.Semaphore(concurrency)
        self._starting = asyncio.Lock()
        self._link: WardenLink | None = None
        self._isolation: Isolation | None = None
        self._failed: tuple[float, RunnerUnavailableError] | None = None
        self._found: dict[str, Language] | None = None

    @property
    def warden_pid(self) -> int | None:
        """The process that starts sandboxes, while it runs; all of theirs come from it."""
        return self._link.pid if self._link is not None and self._link.alive else None

    async def languages(self) -> Mapping[str, Toolchain]:
        """What is found on this machine, looked for once."""
        return {name: language.toolchain for name, language in (await self._languages()).items()}

    async def self_test(self) -> Isolation:
        """Try it anew, whatever was found before."""
        async with self._starting:
            self._isolation = self._failed = None
            await self._open()
            assert self._isolation is not None
            return self._isolation

    @asynccontextmanager
    async def prepared(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AsyncIterator[PreparedProgram | CompileFailed]:
        """Compile in a sandbox; what was made stays in the warden's memory and is never on disk."""
        language = (await self._languages()).get(program.language)
        if language is None:
            raise UnknownLanguageError(f"there is no toolchain for {program.language} on this machine")
        link = await self._ready()
        compiled = await compile_program(self._runs_on(link), language, program.source, limits)
        if isinstance(compiled, CompileFailed):
            yield compiled
            return
        handle = uuid.uuid4().hex
        link.put(handle, compiled.files)
        try:
            yield _Prepared(program.language, handle, link, compiled.name, compiled.size)
        finally:
            link.drop(handle)

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        """One sandbox per input, as many at once as there are slots."""
        assert isinstance(prepared, _Prepared), "a program of another backend"
        language = (await self._languages())[prepared.language]
        runs = in_order(
            lambda given: self._run_one(prepared, language, given, limits), inputs, at_once=self._concurrency
        )
        async with aclosing(runs):
            async for execution in runs:
                yield execution

    async def close(self) -> None:
        """End what runs, and the warden."""
        async with self._starting:
            await self._leave()

    async def _run_one(
        self, prepared: _Prepared, language: Language, given: bytes | ProgramInput, limits: Limits
    ) -> Execution:
        given = ProgramInput(given) if isinstance(given, bytes) else given
        size = sum(map(len, given.files.values()))
        header = {
            "options": box_options(language.run_view, language, (limits.files_mb << 20) + size),
            "argv": [*language.run(limits.memory_mb, prepared.name), *given.arguments],
            "handle": prepared.handle,
            "files": [f"{WORK}/{path}" for path in given.files],
            "limits": box_limits(limits, language, size=prepared.size + size),
        }
        frame = await self._runs_on(prepared.link)(header, [given.stdin, *given.files.values()])
        return read_run(frame, language, limits)

    def _runs_on(self, link: WardenLink) -> Any:
        async def run(header: dict[str, Any], parts: Sequence[bytes]) -> Frame:
            async with self._slots:
                for _ in range(_TRIES - 1):
                    frame = await link.run(header, parts)
                    if was_made(frame):
                        return frame
                return await link.run(header, parts)

        return run

    async def _languages(self) -> dict[str, Language]:
        if self._found is None:
            self._found = await asyncio.to_thread(find_languages)
        return self._found

    async def _ready(self) -> WardenLink:
        async with self._starting:
            if self._link is None or not self._link.alive or self._isolation is None:
                if self._failed is not None and time.monotonic() - self._failed[0] < _TRY_AGAIN_S:
                    raise self._failed[1]
                await self._open()
            assert self._link is not None
            return self._link

    async def _open(self) -> None:
        """Start the warden where none runs, and try the isolation."""
        try:
            languages = await self._languages()
            if self._link is None or not self._link.alive:
                await self._leave()
                self._link = await self._start(languages)
            await try_isolation(self._runs_on(self._link), languages)
        except RunnerUnavailableError as error:
            self._failed = (time.monotonic(), error)
            raise
        self._isolation = self._describe(self._link.opened)

    async def _start(self, languages: Mapping[str, Language]) -> WardenLink:
        bwrap = find_bwrap()
        sources = {home_of(bwrap)}
        for language in languages.values():
            for view in (language.compile_view, language.run_view):
                sources |= {Path(bind.source) for bind in view.binds}
        return await WardenLink.start(
            {
                "bwrap": str(bwrap),
                "hidden": sorted(str(path) for path in sources if not reachable(path)),
                "level": self._level,
                "delegated": None if self._delegated is None else str(self._delegated),
                "cpus": beside_chats(),
                "any_cpu": ANY,
            }
        )

    async def _leave(self) -> None:
        link, self._link, self._isolation = self._link, None, None
        if link is not None:
            await link.close()

    def _describe(self, opened: Mapping[str, Any]) -> Isolation:
        counted = opened["level"] != "rlimits"
        details = {
            "namespaces": "user, process, network, ipc, host name, cgroup, mount",
            "seccomp": "in force",
            "user": f"one of {FIRST_UID} to {FIRST_UID + USERS - 1} for each sandbox"
            if opened["root"]
            else "the service's own",
            "limits": "for all processes together" if counted else "for each process; sums by looking every 5 to 40 ms",
            "cpu_time": "of the control group"
            if counted
            else "of processes that were waited for or seen; short ones that nobody waits for may be missing",
        }
        if opened["reasons"]:
            details["not_better_because"] = "; ".join(opened["reasons"])
        return Isolation(self.name, opened["level"], details)
