"""The code runner by Judge0 CE, over its REST interface.

Judge0 keeps no compiled program: each submission is compiled anew, by limits of its own. So ``prepared`` only asks
whether a program compiles; and a run that nobody waits for goes on there to its limits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, SecretStr, TypeAdapter

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
from app.infrastructure.runner.judge0.languages import PROJECT, Found, Listed, find_languages
from app.infrastructure.runner.judge0.submissions import (
    ACCEPTED,
    COMPILATION_ERROR,
    EXEC_FORMAT,
    FIELDS,
    INTERNAL_ERROR,
    RUNTIME_ERRORS,
    TIME_LIMIT,
    Configuration,
    Granted,
    Program,
    Submission,
    decode,
    encode,
    grant,
    read_run,
    write_submission,
)
from app.infrastructure.runner.remote import causes
from app.infrastructure.runner.remote.isolation import KeptIsolation, try_remote
from app.infrastructure.runner.remote.java_names import java_names
from app.infrastructure.runner.remote.service import MOST_BYTES, RemoteService, Request

_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 0.5
_BATCH_BYTES = 8 * 1024 * 1024
# For a program that looks at a program's syntax.
_TRYING = Limits(cpu_s=5, wall_s=10, memory_mb=128, output_bytes=64 * 1024)
# For the run that follows where a program compiles; nobody asks what comes of it.
_STARTING = Limits(cpu_s=0.2, wall_s=1, memory_mb=64, output_bytes=1024)


class _About(BaseModel):
    version: str | None = None


class _Details(BaseModel):
    compile_cmd: str | None = None
    run_cmd: str | None = None


class _Posted(BaseModel):
    token: str


class _Looked(BaseModel):
    submissions: list[Submission | None]


_POSTED = TypeAdapter(list[_Posted | dict[str, Any]])
_LOOKED = TypeAdapter(_Looked)


@dataclass(frozen=True, slots=True)
class _Known:
    configuration: Configuration
    languages: Mapping[str, Found]
    project: int | None


@dataclass(frozen=True, slots=True)
class _Prepared(PreparedProgram):
    program: Program


class Judge0Runner:
    """`CodeRunner` by Judge0. With the first program isolation is tried."""

    name = "judge0"

    def __init__(self, url: str, key: SecretStr | None, concurrency: int, *, patience_s: float = 120.0) -> None:
        """``concurrency`` is of batches at once; one that stands still for ``patience_s`` is given up."""
        headers = {} if key is None else {"x-auth-token": key.get_secret_value()}
        self._service = RemoteService("Judge0", url, headers)
        self._url, self._patience_s = url, patience_s
        self._slots = asyncio.Semaphore(concurrency)
        self._known: _Known | None = None
        self._isolation = KeptIsolation(self._try)

    async def languages(self) -> Mapping[str, Toolchain]:
        """The newest version it has of each."""
        return {name: found.toolchain for name, found in (await self._ask()).languages.items()}

    async def self_test(self) -> Isolation:
        """Try it anew, and ask anew what it can."""
        self._known = None
        return await self._isolation.anew()

    @asynccontextmanager
    async def prepared(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AsyncIterator[PreparedProgram | CompileFailed]:
        """Ask whether it compiles. ``limits`` have no effect: Judge0 compiles by its own."""
        if program.language not in (await self._ask()).languages:
            raise UnknownLanguageError(f"there is no toolchain for {program.language} on this Judge0")
        await self._isolation.ensure()
        async with self.prepare(program, limits) as made:
            yield made

    @asynccontextmanager
    async def prepare(
        self, program: SourceProgram, limits: CompileLimits = COMPILE_LIMITS
    ) -> AsyncIterator[PreparedProgram | CompileFailed]:
        """As `prepared`, without asking whether isolation holds."""
        del limits
        known = await self._ask()
        found = known.languages.get(program.language)
        if found is None:
            raise RunnerUnavailableError(
                f"Judge0 has no {program.language}, which tries its isolation.", "Give it a language Python (3…)."
            )
        ready = await self._program(known, found, program.source.encode("utf-8", "replace").decode())
        failed = await self._check(known, found, ready, program.source)
        yield _Prepared(program.language, "", ready) if failed is None else failed

    async def run(
        self, prepared: PreparedProgram, inputs: Sequence[bytes | ProgramInput], limits: Limits
    ) -> AsyncIterator[Execution]:
        """In batches as large as Judge0 takes them; results as they come, in order."""
        assert isinstance(prepared, _Prepared), "a program of another backend"
        known, language = await self._ask(), prepared.program.language
        granted = grant(limits, language, known.configuration)
        rows = [
            write_submission(
                prepared.program,
                ProgramInput(given) if isinstance(given, bytes) else given,
                limits,
                granted,
                known.configuration,
            )
            for given in inputs
        ]
        for batch in _batches(rows, known.configuration.max_submission_batch_size):
            async with self._slots:
                async for done in self._results(batch, granted):
                    yield read_run(done, language, limits, granted)

    async def close(self) -> None:
        """Close its connections."""
        await self._service.close()

    async def _program(self, known: _Known, found: Found, source: str) -> Program:
        options = found.language.options if known.configuration.enable_compiler_options else ""
        if found.toolchain.language == "java" and (names := java_names(source)) != ("Main.java", "Main"):
            return await self._java_project(known, found, names, source)
        # It refuses a program without a text, which some languages take.
        text = source if source.strip() else f"{found.language.comment}{source}"
        fields = {"language_id": found.id, "source_code": encode(text.encode())}
        return Program(found.language, {**fields, "compiler_options": options} if options else fields)

    async def _java_project(self, known: _Known, found: Found, names: Sequence[str], source: str) -> Program:
        """Its Java is always ``Main.java`` with a class ``Main``; others go as a project with scripts of our own."""
        details = await self._service.fetch(TypeAdapter(_Details), Request("GET", f"/languages/{found.id}"))
        compiler, _, given = (details.compile_cmd or "").partition(" ")
        starter = (details.run_cmd or "").partition(" ")[0]
        if known.project is None or not given or not starter:
            raise RunnerUnavailableError(
                f"This Judge0 runs Java only as Main.java: it has no {PROJECT}, or does not say how it compiles.",
                "Let it have its own list of languages.",
            )
        file, main = names
        scripts = {file: source, "compile": f"{compiler} -encoding UTF-8 -d . {file}\n"}
        return Program(found.language, {"language_id": known.project}, scripts, f"{starter} {main}")

    async def _check(self, known: _Known, found: Found, program: Program, source: str) -> CompileFailed | None:
        check = found.language.check
        if check is None:
            done = await self._one(known, program, b"", _STARTING)
            said = decode(done.compile_output)
            if done.status_id == COMPILATION_ERROR and said:
                late = said.startswith(b"Compilation time limit exceeded")
                cause = (
                    "compiling took too long"
                    if late
                    else "the compiler refused it (Judge0 does not tell its exit code)"
                )
                return CompileFailed(causes.message(said), cause)
        else:
            checker = Program(found.language, {"language_id": found.id, "source_code": encode(check.encode())})
            done = await self._one(known, checker, source.encode("utf-8", "replace"), _TRYING)
            least_s = grant(_TRYING, program.language, known.configuration).cpu_s
            if done.status_id == TIME_LIMIT and (done.time or 0.0) < least_s:
                raise causes.too_busy("Judge0")
            if done.status_id != ACCEPTED and done.status_id not in {INTERNAL_ERROR, EXEC_FORMAT}:
                refused = done.status_id in RUNTIME_ERRORS
                cause = (
                    f"the compiler refused it (exit code {done.exit_code})" if refused else "compiling took too long"
                )
                return CompileFailed(causes.message(decode(done.stderr)), cause)
        # A compiler that refuses a program says why; where nothing is said, there was none.
        if done.status_id in {INTERNAL_ERROR, EXEC_FORMAT, COMPILATION_ERROR}:
            raise RunnerUnavailableError(
                "Judge0 could not compile: it had an internal error.",
                "The log of its workers says why; on a machine with cgroup v2 alone, version 1.13 does not work.",
            )
        return None

    async def _one(self, known: _Known, program: Program, stdin: bytes, limits: Limits) -> Submission:
        granted = grant(limits, program.language, known.configuration)
        row = write_submission(program, ProgramInput(stdin), limits, granted, known.configuration)
        async with self._slots:
            [done] = [done async for done in self._results([row], granted)]
        return done

    async def _results(self, rows: Sequence[Mapping[str, Any]], granted: Granted) -> AsyncIterator[Submission]:
        """Send a batch, look until the next is done, and fetch each by itself: outputs may be large."""
        tokens = await self._send(rows)
        patience_s = granted.wall_s + self._patience_s
        looks, heard, states = _FIRST_LOOK_S, time.monotonic(), [0] * len(tokens)
        for number, token in enumerate(tokens):
            while states[number] <= 2:
                await asyncio.sleep(looks)
                looks = min(looks * 1.5, _LAST_LOOK_S)
                seen = [one.status_id for one in await self._look(tokens, "token,status_id", MOST_BYTES)]
                if seen != states:
                    heard, states = time.monotonic(), seen
                elif time.monotonic() - heard > patience_s:
                    raise self._service.silent(patience_s)
            [done] = await self._look([token], FIELDS, MOST_BYTES + 6 * 1024 * granted.output_kb)
            yield done

    async def _send(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        posted = await self._service.fetch(
            _POSTED,
            Request("POST", "/submissions/batch", body={"submissions": rows}, query={"base64_encoded": "true"}),
        )
        refused = sorted({name for row in posted if isinstance(row, dict) for name in row})
        if refused:
            raise RunnerUnavailableError(
                f"Judge0 refuses submissions for their {', '.join(refused)[:200]}.",
                "Its judge0.conf has to allow what docs/runner.md names.",
            )
        tokens = [row.token for row in posted if isinstance(row, _Posted)]
        if len(tokens) != len(rows):
            raise self._service.misunderstood(f"{len(tokens)} tokens for {len(rows)} submissions")
        return tokens

    async def _look(self, tokens: Sequence[str], fields: str, most_bytes: int) -> list[Submission]:
        query = {"tokens": ",".join(tokens), "base64_encoded": "true", "fields": fields}
        request = Request("GET", "/submissions/batch", query=query, most_bytes=most_bytes)
        found = [one for one in (await self._service.fetch(_LOOKED, request)).submissions if one is not None]
        if [one.token for one in found] != list(tokens):
            raise RunnerUnavailableError(
                "Judge0 has lost submissions that it took.", "See that nobody clears its database while it works."
            )
        return found

    async def _ask(self) -> _Known:
        if self._known is None:
            configuration, listed = await asyncio.gather(
                self._service.fetch(TypeAdapter(Configuration), Request("GET", "/config_info")),
                self._service.fetch(TypeAdapter(list[Listed]), Request("GET", "/languages")),
            )
            project = next((row.id for row in listed if row.name == PROJECT), None)
            self._known = _Known(configuration, find_languages(listed), project)
        return self._known

    async def _try(self) -> Isolation:
        about = await self._service.fetch(TypeAdapter(_About), Request("GET", "/about"))
        return await try_remote(self, self._url, {"version": about.version or "unknown"})


def _batches(rows: Sequence[dict[str, Any]], most: int) -> list[list[dict[str, Any]]]:
    """As large as Judge0 takes them, and of some megabytes at most."""
    batches: list[list[dict[str, Any]]] = []
    size = 0
    for row in rows:
        more = sum(len(value) for value in row.values() if isinstance(value, str))
        if not batches or len(batches[-1]) >= most or size + more > _BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(row)
        size += more
    return batches
