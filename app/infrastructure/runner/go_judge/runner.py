"""The code runner by go-judge, over its REST interface."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import BaseModel, Field, SecretStr, TypeAdapter

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
from app.infrastructure.runner.go_judge.commands import COMMANDS, ENVIRONMENT, Commands
from app.infrastructure.runner.go_judge.results import LOST, Result, read_compiler, read_run
from app.infrastructure.runner.ordered import in_order
from app.infrastructure.runner.remote.isolation import KeptIsolation, try_remote
from app.infrastructure.runner.remote.service import MOST_BYTES, RefusedError, RemoteService, Request

log = structlog.get_logger(__name__)

_VERSION = re.compile(r"\d+(?:\.\d+)+")
_MESSAGES_BYTES = 1024 * 1024
_ESCAPED = 6
"""Bytes of JSON that a byte of output takes at most."""

_FIND = Limits(cpu_s=10, wall_s=20, memory_mb=512, processes=32)


class _Version(BaseModel):
    buildVersion: str = "unknown"  # noqa: N815  # its name there


class _Config(BaseModel):
    runnerConfig: dict[str, Any] = Field(default_factory=dict)  # noqa: N815


_RESULTS = TypeAdapter(list[Result])
_FILE_ID = TypeAdapter(str)


@dataclass(frozen=True, slots=True)
class _Found:
    toolchain: Toolchain
    commands: Commands
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Prepared(PreparedProgram):
    found: _Found
    source: str
    files: Mapping[str, Mapping[str, str]]


class GoJudgeRunner:
    """`CodeRunner` by go-judge. With the first program isolation is tried."""

    name = "go-judge"

    def __init__(self, url: str, key: SecretStr | None, concurrency: int, *, patience_s: float = 60.0) -> None:
        """``concurrency`` is of commands at once; ``patience_s`` is how long one may wait for its turn there."""
        headers = {} if key is None else {"authorization": f"Bearer {key.get_secret_value()}"}
        self._service = RemoteService(self.name, url, headers)
        self._url, self._concurrency, self._patience_s = url, concurrency, patience_s
        self._slots = asyncio.Semaphore(concurrency)
        self._found: dict[str, _Found] | None = None
        self._isolation = KeptIsolation(self._try)

    async def languages(self) -> Mapping[str, Toolchain]:
        """What its image holds, asked by running each toolchain once."""
        return {name: found.toolchain for name, found in (await self._languages()).items()}

    async def self_test(self) -> Isolation:
        """Try it anew, and look for toolchains anew."""
        self._found = None
        return await self._isolation.anew()

    @asynccontextmanager
    async def prepared(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AsyncIterator[PreparedProgram | CompileFailed]:
        """Compile there; what was made is kept there under an id until the end of the context."""
        if program.language not in await self._languages():
            raise UnknownLanguageError(f"there is no toolchain for {program.language} on this go-judge")
        await self._isolation.ensure()
        async with self.prepare(program, limits) as made:
            yield made

    @asynccontextmanager
    async def prepare(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AsyncIterator[PreparedProgram | CompileFailed]:
        """As `prepared`, without asking whether isolation holds."""
        found = (await self._languages()).get(program.language)
        if found is None:
            raise RunnerUnavailableError(
                f"go-judge has no {program.language}, which tries its isolation.", "Put python3 into its image."
            )
        commands, source = found.commands, program.source.encode("utf-8", "replace").decode()
        files = {commands.source(source): {"content": source}}
        command = _command(commands.compile(found.paths, source), _MESSAGES_BYTES, limits)
        command |= {
            "env": [*ENVIRONMENT, *commands.environment],
            "copyIn": files,
            "copyOutCached": [commands.makes] if commands.makes else [],
            "copyOutMax": limits.output_bytes,
        }
        result = await self._command(command, limits.wall_s)
        try:
            failed = read_compiler(result, commands.makes, limits)
            if failed is not None:
                yield failed
                return
            if commands.makes:
                files = {commands.makes: {"fileId": (result.fileIds or {})[commands.makes]}}
            yield _Prepared(program.language, "", found, source, files)
        finally:
            await self._drop(result)

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        """One command per input, as many at once as there are slots."""
        assert isinstance(prepared, _Prepared), "a program of another backend"
        runs = in_order(lambda given: self._run_one(prepared, given, limits), inputs, at_once=self._concurrency)
        async with aclosing(runs):
            async for execution in runs:
                yield execution

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()

    async def _run_one(self, prepared: _Prepared, given: bytes | ProgramInput, limits: Limits) -> Execution:
        given = ProgramInput(given) if isinstance(given, bytes) else given
        commands = prepared.found.commands
        async with AsyncExitStack() as stack:
            stdin = await self._give(stack, given.stdin)
            files = {name: await self._give(stack, content) for name, content in given.files.items()}
            argv = [*commands.run(prepared.found.paths, limits.memory_mb, prepared.source), *given.arguments]
            command = _command(argv, limits.output_bytes, limits, more=commands)
            command |= {"env": list(ENVIRONMENT), "copyIn": {**files, **prepared.files}}
            command["files"][0] = stdin
            result = await self._command(command, limits.wall_s, 2 * limits.output_bytes)
            if result.status != "Accepted" or LOST not in (result.files or {}).get("stdout", ""):
                return read_run(result, commands, limits)
            # Its output is not text, or has this very sign in it: once more, and fetched as bytes.
            result = await self._command(
                {**command, "copyOutCached": ["stdout"]}, limits.wall_s, 2 * limits.output_bytes
            )
            stack.push_async_callback(self._drop, result)
            kept = (result.fileIds or {}).get("stdout")
            exact = b"" if kept is None else await self._fetch_file(kept, limits.output_bytes)
            return read_run(result, commands, limits, exact)

    async def _command(self, command: Mapping[str, Any], wall_s: float, output_bytes: int = _MESSAGES_BYTES) -> Result:
        request = Request(
            "POST",
            "/run",
            body={"cmd": [command]},
            timeout_s=wall_s + self._patience_s,
            most_bytes=MOST_BYTES + _ESCAPED * output_bytes,
        )
        async with self._slots:
            try:
                results = await self._service.fetch(_RESULTS, request)
            except RefusedError as error:
                raise _explained(error) from None
        if len(results) != 1:
            raise self._service.misunderstood(f"{len(results)} results for one command")
        return results[0]

    async def _give(self, stack: AsyncExitStack, content: bytes) -> dict[str, str]:
        """Text goes along with the command; what is not text is put there as a file before, until the stack ends."""
        try:
            return {"content": content.decode()}
        except UnicodeDecodeError:
            file_id = await self._service.fetch(_FILE_ID, Request("POST", "/file", file=content))
            stack.push_async_callback(self._forget, file_id)
            return {"fileId": file_id}

    async def _fetch_file(self, file_id: str, most: int) -> bytes:
        return await self._service.fetch_bytes(Request("GET", f"/file/{file_id}", most_bytes=most + 1024))

    async def _drop(self, result: Result) -> None:
        for file_id in (result.fileIds or {}).values():
            await self._forget(file_id)

    async def _forget(self, file_id: str) -> None:
        try:
            await self._service.fetch_bytes(Request("DELETE", f"/file/{file_id}", timeout_s=5))
        except RunnerUnavailableError as error:
            # The result stands; go-judge forgets files by itself where -file-timeout is set.
            log.warning("runner_file_left", backend=self.name, problem=error.problem)

    async def _languages(self) -> dict[str, _Found]:
        if self._found is None:
            found = await asyncio.gather(*(self._find(name, commands) for name, commands in COMMANDS.items()))
            self._found = {one.toolchain.language: one for one in found if one is not None}
        return self._found

    async def _find(self, name: str, commands: Commands) -> _Found | None:
        command = _command(commands.find, 4096, _FIND, more=commands)
        result = await self._command({**command, "env": list(ENVIRONMENT)}, _FIND.wall_s)
        lines = (result.files or {}).get("stdout", "").splitlines()
        wanted = len(commands.programs)
        version = _VERSION.search(" ".join(lines[wanted:]))
        if result.status != "Accepted" or len(lines) <= wanted or version is None:
            return None
        return _Found(Toolchain(name, version[0]), commands, tuple(lines[:wanted]))

    async def _try(self) -> Isolation:
        version = await self._service.fetch(TypeAdapter(_Version), Request("GET", "/version"))
        config = await self._service.fetch(TypeAdapter(_Config), Request("GET", "/config"))
        cgroup = config.runnerConfig.get("cgroupType", "unknown")
        details = {"version": version.buildVersion, "cgroup": str(cgroup)[:40]}
        return await try_remote(self, self._url, details)


def _command(
    argv: Sequence[str], output_bytes: int, limits: Limits | CompileLimits, *, more: Commands | None = None
) -> dict[str, Any]:
    more_mb, more_processes = (more.more_mb, more.more_processes) if more is not None else (0, 0)
    memory = (limits.memory_mb + more_mb) << 20
    return {
        "args": list(argv),
        "files": [
            {"content": ""},
            {"name": "stdout", "max": output_bytes, "pipe": True},
            {"name": "stderr", "max": output_bytes, "pipe": True},
        ],
        "cpuLimit": int(limits.cpu_s * 1e9),
        "clockLimit": int(limits.wall_s * 1e9),
        "memoryLimit": memory,
        "stackLimit": min(memory, 64 << 20),
        "procLimit": limits.processes + more_processes,
    }


def _explained(error: RefusedError) -> RunnerUnavailableError:
    """go-judge says most of what is wrong with status 500 and a sentence."""
    if "does not exist" in error.said or "not exists" in error.said:
        return RunnerUnavailableError(
            "The compiled program is not on go-judge any more.",
            "Let its -file-timeout be longer than a submission takes (30m), and do not put a balancer before several.",
        )
    if "queue is full" in error.said:
        return RunnerUnavailableError(
            "go-judge has too many commands waiting.", "Lower TURNSTONE_RUNNER__CONCURRENCY, or add another go-judge."
        )
    return error
