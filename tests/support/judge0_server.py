"""A Judge0 of ours: its REST interface as its documentation and source have it (1.13), bubblewrap behind."""

from __future__ import annotations

import asyncio
import base64
import io
import shlex
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from app.domain.code_runner import CompileFailed, Ended, Execution, Limits, PreparedProgram, ProgramInput
from app.infrastructure.runner.judge0.languages import LANGUAGES
from tests.support.scripted_runner import ScriptedRunner

IDS = {
    48: ("c", "C (GCC 7.4.0)"),
    50: ("c", "C (GCC 9.2.0)"),
    54: ("cpp", "C++ (GCC 9.2.0)"),
    60: ("go", "Go (1.13.5)"),
    62: ("java", "Java (OpenJDK 13.0.1)"),
    63: ("javascript", "JavaScript (Node.js 12.14.0)"),
    70: ("", "Python (2.7.17)"),
    71: ("python", "Python (3.8.1)"),
    89: ("java", "Multi-file program"),
}
STATUSES = {1: "In Queue", 2: "Processing", 3: "Accepted", 5: "Time Limit Exceeded", 6: "Compilation Error"}


class Judge0Server(ScriptedRunner):
    """``configuration`` is what ``GET /config_info`` says; ``never_done`` lets submissions stay in the queue."""

    def __init__(self, *, key: str | None = None) -> None:
        super().__init__(key_header="X-Auth-Token", key=key, open_paths=frozenset())
        self.never_done = False
        self.configuration: dict[str, Any] = {
            "enable_compiler_options": True,
            "max_submission_batch_size": 5,
            "max_cpu_time_limit": 15.0,
            "max_wall_time_limit": 20.0,
            "max_memory_limit": 2_000_000,
            "max_max_file_size": 16_384,
        }
        self._submissions: dict[str, dict[str, Any]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._workers = asyncio.Semaphore(4)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/about", self._about),
            web.get("/config_info", self._config),
            web.get("/languages", self._languages),
            web.get("/languages/{id}", self._language),
            web.post("/submissions/batch", self._post),
            web.get("/submissions/batch", self._get),
        ]

    def forget(self) -> None:
        """As after somebody cleared its database."""
        self._submissions.clear()

    async def _about(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "1.13.1", "homepage": "https://judge0.com"})

    async def _config(self, request: web.Request) -> web.Response:
        return web.json_response(self.configuration)

    async def _languages(self, request: web.Request) -> web.Response:
        known = await self.languages()
        return web.json_response(
            [{"id": n, "name": name} for n, (ours, name) in IDS.items() if not ours or ours in known]
        )

    async def _language(self, request: web.Request) -> web.Response:
        assert request.match_info["id"] == "62"
        commands = {
            "compile_cmd": "/usr/local/openjdk13/bin/javac %s Main.java",
            "run_cmd": "/usr/local/openjdk13/bin/java Main",
        }
        return web.json_response(
            {"id": 62, "name": IDS[62][1], "is_archived": False, "source_file": "Main.java", **commands}
        )

    async def _post(self, request: web.Request) -> web.Response:
        assert request.query["base64_encoded"] == "true"
        rows = (await request.json())["submissions"]
        if len(rows) > self.configuration["max_submission_batch_size"]:
            return web.json_response({"error": "number of submissions in a batch"}, status=400)
        said = [self._take(row) for row in rows]
        return web.json_response(said, status=201 if any("token" in one for one in said) else 422)

    def _take(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if row["memory_limit"] > self.configuration["max_memory_limit"]:
            return {"memory_limit": ["must be less than or equal to"]}
        if "source_code" in row and not base64.b64decode(row["source_code"]).strip():
            return {"source_code": ["can't be blank"]}
        token = str(uuid.uuid4())
        self._submissions[token] = {"token": token, "status_id": 1}
        if not self.never_done:
            task = asyncio.create_task(self._work(token, row))
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        return {"token": token}

    async def _get(self, request: web.Request) -> web.Response:
        wanted, fields = request.query["tokens"].split(","), request.query["fields"].split(",")
        found = [self._submissions.get(token) for token in wanted]
        shown = [one and {name: one.get(name) for name in fields} for one in found]
        return web.json_response({"submissions": shown})

    async def _work(self, token: str, row: Mapping[str, Any]) -> None:
        async with self._workers:
            self._submissions[token]["status_id"] = 2
            try:
                done = await self._judge(row)
            except (OSError, RuntimeError, AssertionError) as error:
                done = {"status_id": 13, "message": _encode(repr(error).encode())}
            if token in self._submissions:
                self._submissions[token] |= done

    async def _judge(self, row: Mapping[str, Any]) -> dict[str, Any]:
        language = IDS[row["language_id"]][0]
        files = _unzip(row.get("additional_files"))
        arguments = shlex.split(row.get("command_line_arguments", ""))
        if row["language_id"] == 89:
            name = next(name for name in files if name.endswith(".java"))
            assert files["compile"].decode().split() == [
                "/usr/local/openjdk13/bin/javac",
                "-encoding",
                "UTF-8",
                "-d",
                ".",
                name,
            ]
            source, files["compile"] = files.pop(name).decode(), b""
            arguments = shlex.split(files.pop("run").decode())[2:]
        else:
            source = base64.b64decode(row["source_code"]).decode()
        made = await self.make(language, source)
        if isinstance(made, CompileFailed):
            # It has no look at the syntax of a language that is not compiled: there the program fails as it starts.
            compiled = language not in {"python", "javascript"}
            said = _encode(made.message.encode())
            return (
                {"status_id": 6, "compile_output": said}
                if compiled
                else {"status_id": 11, "exit_code": 1, "stderr": said}
            )
        return await self._run(
            row, language, source, made, ProgramInput(_decode(row["stdin"]), files, tuple(arguments))
        )

    async def _run(
        self, row: Mapping[str, Any], language: str, source: str, made: PreparedProgram, given: ProgramInput
    ) -> dict[str, Any]:
        more = LANGUAGES[language]
        limits = Limits(
            row["cpu_time_limit"],
            row["wall_time_limit"],
            max(1, row["memory_limit"] // 1024 - more.more_mb),
            row["max_file_size"] * 1024,
            row["max_processes_and_or_threads"] - more.more_processes,
        )
        run = await self.execute(made, source, given, limits)
        if isinstance(run, bytes):
            return {"status_id": 3, "stdout": _encode(run), "exit_code": 0, "time": "0.01", "memory": 1000}
        return _told(run, row["memory_limit"])


def _told(run: Execution, memory_kb: int) -> dict[str, Any]:
    signal = {Ended.MLE: 9, Ended.OLE: 25}.get(run.how, run.signal)
    status = {Ended.FINISHED: 3, Ended.TLE: 5, Ended.SE: 13}.get(run.how, 11)
    return {
        "status_id": status,
        "stdout": _encode(run.stdout) if run.stdout else None,
        # Bubblewrap keeps the end alone; of the begin only the size matters to a test.
        "stderr": _encode(b"." * (run.stderr_bytes - len(run.stderr)) + run.stderr) if run.stderr else None,
        "time": f"{run.cpu_ms / 1000:.3f}",
        "wall_time": f"{run.wall_ms / 1000:.3f}",
        "memory": memory_kb if run.how is Ended.MLE else run.memory_kb,
        "exit_code": run.exit_code if signal is None else 128 + signal if status == 11 else None,
        "exit_signal": 9 if status == 5 else None,
        "message": _encode(b"Time limit exceeded") if status == 5 else None,
    }


def _encode(data: bytes) -> str:
    """With a line break after 60 signs, as Ruby does it."""
    text = base64.b64encode(data).decode()
    return "".join(f"{text[at : at + 60]}\n" for at in range(0, len(text), 60))


def _decode(text: str) -> bytes:
    return base64.b64decode(text)


def _unzip(text: str | None) -> dict[str, bytes]:
    if text is None:
        return {}
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(text))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
