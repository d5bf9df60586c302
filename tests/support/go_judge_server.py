"""A go-judge of ours: its REST interface as its documentation and source have it (1.9), bubblewrap behind.

::

    with GoJudgeServer() as server:
        server.next(Fault("/run", status=500, body=b'"worker queue is full"'))
        ...  # the code under test talks to server.url
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from app.domain.code_runner import (
    CompileFailed,
    CompileLimits,
    Ended,
    Execution,
    Limits,
    PreparedProgram,
    ProgramInput,
)
from app.infrastructure.runner.go_judge.commands import COMMANDS
from tests.support.scripted_runner import ScriptedRunner

_SOURCES = {"main.py": "python", "main.js": "javascript", "main.c": "c", "main.cpp": "cpp", "main.go": "go"}
_STATUS = {
    Ended.FINISHED: "Accepted",
    Ended.TLE: "Time Limit Exceeded",
    Ended.MLE: "Memory Limit Exceeded",
    Ended.OLE: "Output Limit Exceeded",
    Ended.RE: "Nonzero Exit Status",
    Ended.SE: "Internal Error",
}

Compiled = tuple[str, str, PreparedProgram]
"""Language, source, program."""


class GoJudgeServer(ScriptedRunner):
    """``files`` is its file store: bytes, or a compiled program."""

    def __init__(self, *, key: str | None = None) -> None:
        bearer = None if key is None else f"Bearer {key}"
        super().__init__(key_header="Authorization", key=bearer, open_paths=frozenset({"/version", "/config"}))
        self.files: dict[str, bytes | Compiled] = {}
        self._ids = itertools.count(1)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/version", self._version),
            web.get("/config", self._config),
            web.post("/run", self._run),
            web.post("/file", self._put),
            web.get("/file/{id}", self._get),
            web.delete("/file/{id}", self._delete),
        ]

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"buildVersion": "v1.9.0", "goVersion": "go1.24", "os": "linux", "platform": "amd64"})

    async def _config(self, request: web.Request) -> web.Response:
        return web.json_response({"copyOutOptional": True, "runnerConfig": {"cgroupType": 2, "workDir": "/w"}})

    async def _put(self, request: web.Request) -> web.Response:
        part = (await request.post())["file"]
        assert isinstance(part, web.FileField)
        return web.json_response(self._keep(part.file.read()))

    async def _get(self, request: web.Request) -> web.Response:
        content = self.files.get(request.match_info["id"])
        if not isinstance(content, bytes):
            return web.Response(status=404)
        return web.Response(body=content)

    async def _delete(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.files.pop(request.match_info["id"], None) is not None else 404)

    async def _run(self, request: web.Request) -> web.Response:
        results = []
        for command in (await request.json())["cmd"]:
            wanted = (
                [entry.get("fileId") for entry in [*command["copyIn"].values(), *command["files"]]]
                if "copyIn" in command
                else []
            )
            lost = [one for one in wanted if one is not None and one not in self.files]
            if lost:
                return web.json_response(f'file does not exists with id: "{lost[0]}"', status=500)
            results.append(await self._command(command))
        return web.json_response(results)

    async def _command(self, command: Mapping[str, Any]) -> dict[str, Any]:
        args, copy_in = command["args"], command.get("copyIn", {})
        if args[0] == "/bin/sh" and "command -v" in args[2]:
            return await self._find(args[4:])
        program = next(
            (self.files[e["fileId"]] for e in copy_in.values() if isinstance(self.files.get(e.get("fileId")), tuple)),
            None,
        )
        compiles = bool(command.get("copyOutCached")) and command["copyOutCached"] != ["stdout"]
        if isinstance(program, tuple):
            return await self._execute(command, program)
        name, source = next(
            (name, entry["content"]) for name, entry in copy_in.items() if name in _SOURCES or name.endswith(".java")
        )
        language = _SOURCES.get(name, "java")
        if compiles or "--check" in args or "-c" in args:
            return await self._compile(command, language, source)
        made = await self.make(language, source)
        assert isinstance(made, PreparedProgram)
        return await self._execute(command, (language, source, made))

    async def _find(self, programs: list[str]) -> dict[str, Any]:
        known = await self.languages()
        language = next(name for name, commands in COMMANDS.items() if list(commands.programs) == programs)
        if language not in known:
            return _result("Nonzero Exit Status", exitStatus=127, files={"stdout": "", "stderr": ""})
        paths = [shutil.which(program) or f"/usr/bin/{program}" for program in programs]
        said = "\n".join([*paths, f"version {known[language].version}", ""])
        return _result("Accepted", files={"stdout": said, "stderr": ""})

    async def _compile(self, command: Mapping[str, Any], language: str, source: str) -> dict[str, Any]:
        limits = CompileLimits(
            command["cpuLimit"] / 1e9, command["clockLimit"] / 1e9, command["memoryLimit"] >> 20, command["copyOutMax"]
        )
        made = await self.make(language, source, limits)
        if isinstance(made, PreparedProgram):
            ids = {name: self._keep((language, source, made)) for name in command["copyOutCached"]}
            return _result("Accepted", files={"stdout": "", "stderr": ""}, fileIds=ids)
        return _not_compiled(made)

    async def _execute(self, command: Mapping[str, Any], program: Compiled) -> dict[str, Any]:
        language, source, prepared = program
        stdin, out = self._content(command["files"][0]), command["files"][1]
        named = {
            name: self._content(entry)
            for name, entry in command["copyIn"].items()
            if name not in _SOURCES and not isinstance(self.files.get(entry.get("fileId", "")), tuple)
        }
        own = {"python": "main.py", "javascript": "main.js", "java": "program.jar"}.get(language, "./main")
        after = command["args"].index(own) + (2 if language == "java" else 1)
        memory_mb = (command["memoryLimit"] >> 20) - COMMANDS[language].more_mb
        processes = command["procLimit"] - COMMANDS[language].more_processes
        limits = Limits(command["cpuLimit"] / 1e9, command["clockLimit"] / 1e9, memory_mb, out["max"], processes)
        given = ProgramInput(stdin, named, tuple(command["args"][after:]))
        run = await self.execute(prepared, source, given, limits)
        if isinstance(run, bytes):
            return _result("Accepted", files={"stdout": run.decode(), "stderr": ""})
        ids = {"stdout": self._keep(run.stdout)} if "stdout" in command.get("copyOutCached", ()) else {}
        return _ran(run, ids)

    def _content(self, entry: Mapping[str, Any]) -> bytes:
        if "content" in entry:
            return str(entry["content"]).encode()
        content = self.files[entry["fileId"]]
        assert isinstance(content, bytes)
        return content

    def _keep(self, content: bytes | Compiled) -> str:
        file_id = f"FILE{next(self._ids):04}"
        self.files[file_id] = content
        return file_id


def _ran(run: Execution, ids: Mapping[str, str]) -> dict[str, Any]:
    status, exit_status = _STATUS[run.how], 0
    if run.how is Ended.RE:
        status = "Signalled" if run.signal is not None else status
        exit_status = run.signal if run.signal is not None else run.exit_code or 0
    elif run.how is not Ended.FINISHED:
        exit_status = 9
    stdout = run.stdout + (b"x" if run.stdout_bytes > len(run.stdout) else b"")  # it keeps one byte more than it may
    files = {"stdout": _text(stdout), "stderr": _text(run.stderr)}
    if run.stderr_bytes > len(run.stderr):  # of a stream it keeps the begin; what matters to a test is its size
        files["stderr"] = "." * (run.stderr_bytes - len(run.stderr)) + files["stderr"]
    if ids:
        del files["stdout"]
    return _result(
        status,
        exitStatus=exit_status,
        time=int(run.cpu_ms * 1e6),
        runTime=int(run.wall_ms * 1e6),
        memory=run.memory_kb * 1024,
        files=files,
        fileIds=dict(ids),
    )


def _not_compiled(failed: CompileFailed) -> dict[str, Any]:
    files = {"stdout": "", "stderr": failed.message}
    if "is larger" in failed.cause:
        errors = [{"name": "main", "type": "CopyOutSizeExceeded", "message": "copyout: size exceeds limit"}]
        return _result("File Error", files=files, error=errors[0]["message"], fileError=errors)
    assert failed.cause.startswith("the compiler refused it"), failed.cause
    return _result("Nonzero Exit Status", exitStatus=1, files=files)


def _text(data: bytes) -> str:
    """As Go's JSON writes bytes: one sign for each that is no text."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join("\N{REPLACEMENT CHARACTER}" if "\udc80" <= sign <= "\udcff" else sign for sign in text)


def _result(status: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "exitStatus": 0, "time": 1_000_000, "runTime": 2_000_000, "memory": 1_000_000, **more}
