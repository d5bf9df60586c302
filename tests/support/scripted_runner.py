"""What the scripted go-judge and Judge0 share: they speak another's protocol, fail as told, and really run programs.

Programs go to bubblewrap behind them, so that what they report of a run is what became of one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from app.domain.code_runner import (
    COMPILE_LIMITS,
    CompileFailed,
    CompileLimits,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
    SourceProgram,
    Toolchain,
)
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner
from tests.support.servers import AppThread, Journal


@dataclass(frozen=True, slots=True)
class Fault:
    """What the next requests whose path begins with ``path`` get instead of an answer."""

    path: str
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    action: str = "answer"  # answer, hang, drop
    times: int = 1
    method: str = ""

    def meets(self, request: web.Request) -> bool:
        """Whether it is for this request."""
        return request.path.startswith(self.path) and self.method in {"", request.method}


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


GOOD_LOOK: Mapping[str, Any] = {
    "network": "", "files of another run": "", "names": ["PATH"], "processes": 2, "capabilities": "", "user": 1536,
    "seccomp": 0,
}  # fmt: skip
"""What the program that looks around in a sandbox prints where all is well."""


def quick_trial(source: str, stdin: bytes) -> bytes | Execution | None:
    """What becomes of the programs that try isolation where all is well, without the seconds that trying takes."""
    if "turnstone-probe-" in source:
        return json.dumps(GOOD_LOOK).encode()
    how = {b"cpu": Ended.TLE, b"memory": Ended.MLE}.get(stdin)
    if how is not None:
        return Execution(how, None, 9, 500.0, 600.0, 65_536, b"", 0, b"", 0, "")
    return b"7" if stdin == b"processes" else None


class ScriptedRunner(AppThread):
    """The base. ``instead`` may say what becomes of a program without running it: ``(source, stdin)`` to its output."""

    def __init__(self, *, key_header: str, key: str | None, open_paths: frozenset[str]) -> None:
        super().__init__(self._application)
        self.received: Journal[Received] = Journal()
        self.instead: Callable[[str, bytes], bytes | Execution | None] = lambda source, stdin: None
        self.on_host = False
        self._key_header, self._key, self._open_paths = key_header, key, open_paths
        self._faults: list[Fault] = []
        self._sandboxes: BubblewrapRunner | None = None
        self._stack = AsyncExitStack()
        self._made: dict[tuple[str, str, CompileLimits | None], PreparedProgram | CompileFailed] = {}

    def reset(self) -> None:
        """As new, but for what is compiled."""
        self._faults.clear()
        self.received.clear()
        self.instead = quick_trial

    def next(self, fault: Fault) -> None:
        """Queue one."""
        self._faults.extend([fault] * fault.times)

    def routes(self) -> list[web.RouteDef]:
        """What it answers."""
        raise NotImplementedError

    async def languages(self) -> Mapping[str, Toolchain]:
        """What this machine has."""
        assert self._sandboxes is not None
        return await self._sandboxes.languages()

    async def make(
        self, language: str, source: str, limits: CompileLimits | None = None
    ) -> PreparedProgram | CompileFailed:
        """Compile once; kept until the server stops."""
        assert self._sandboxes is not None
        if (language, source, limits) not in self._made:
            making = self._sandboxes.prepared(SourceProgram(language, source), limits or COMPILE_LIMITS)
            self._made[language, source, limits] = await self._stack.enter_async_context(making)
        return self._made[language, source, limits]

    async def execute(
        self, program: PreparedProgram, source: str, given: ProgramInput, limits: Limits
    ) -> Execution | bytes:
        """Run it; bytes where they are given instead."""
        assert self._sandboxes is not None
        said = self.instead(source, given.stdin)
        if said is None and self.on_host:
            said = await _on_host(source, given.stdin)
        if said is not None:
            return said
        [execution] = [run async for run in self._sandboxes.run(program, [given], limits)]
        return execution

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[self._misbehave], client_max_size=1 << 28)
        application.add_routes(self.routes())
        application.cleanup_ctx.append(self._behind)
        return application

    async def _behind(self, application: web.Application) -> AsyncIterator[None]:
        self._sandboxes = BubblewrapRunner(4)
        yield
        await self._stack.aclose()
        self._stack, self._made = AsyncExitStack(), {}
        await self._sandboxes.close()

    @web.middleware
    async def _misbehave(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        body = await request.json() if request.content_type == "application/json" and request.can_read_body else None
        self.received.add(Received(request.method, request.path_qs, dict(request.headers), body))
        closed = self._key is not None and request.path not in self._open_paths
        if closed and request.headers.get(self._key_header) != self._key:
            return web.Response(status=401)
        fault = next((one for one in self._faults if one.meets(request)), None)
        if fault is not None:
            self._faults.remove(fault)
            if fault.action == "hang":
                await asyncio.sleep(3600)
            if fault.action == "drop":
                assert request.transport is not None
                request.transport.abort()
            return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        return await handler(request)


async def _on_host(source: str, stdin: bytes) -> bytes | None:
    """A probe that looks and leaves nothing is run without any sandbox, as a careless service would."""
    if b'"leave": ""' not in stdin:
        return None
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", source, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    return (await process.communicate(stdin))[0]
