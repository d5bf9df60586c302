"""The real code runner, and one that fails on purpose."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from app.domain.code_runner import (
    COMPILE_LIMITS,
    CodeRunner,
    CompileFailed,
    CompileLimits,
    Ended,
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


@dataclass
class Failing:
    """A runner that runs as another does, but lets some runs fail as a broken machine would.

    ``fails`` has how often the run of an input fails, not counting the first ``spares`` runs of all and those of other
    languages than ``only``; ``how`` they end then. ``missing`` has the languages that it has not; after ``lives`` runs
    it answers no more.
    """

    runner: CodeRunner
    fails: dict[bytes, int] = field(default_factory=dict)
    missing: frozenset[str] = frozenset()
    lives: int | None = None
    spares: int = 0
    only: str | None = None
    how: Ended = Ended.SE
    ran: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.runner.name

    async def languages(self) -> Mapping[str, Toolchain]:
        found = await self.runner.languages()
        return {name: toolchain for name, toolchain in found.items() if name not in self.missing}

    def prepared(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AbstractAsyncContextManager[PreparedProgram | CompileFailed]:
        if program.language in self.missing:
            raise UnknownLanguageError(program.language)
        return self.runner.prepared(program, limits)

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        at = 0
        async for execution in self.runner.run(prepared, inputs, limits):
            given = inputs[at]
            given = given if isinstance(given, bytes) else given.stdin
            at += 1
            self.ran.append((prepared.language, given))
            if self.lives is not None and len(self.ran) > self.lives:
                raise RunnerUnavailableError("The runner is gone.", "Start it again.")
            meant = len(self.ran) > self.spares and self.only in (None, prepared.language)
            if meant and self.fails.get(given, 0) > 0:
                self.fails[given] -= 1
                yield replace(execution, how=self.how, cause="the sandbox could not be made", stdout=b"")
            else:
                yield execution

    async def self_test(self) -> Isolation:
        return await self.runner.self_test()
