"""HTTP to a runner elsewhere: whatever it does wrong becomes one kind of error that says what to do.

Requests carry candidates' programs, so neither they nor answers are logged or quoted.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from app.core.http import parse_retry_after
from app.core.settings import without_secrets
from app.domain.code_runner import RunnerUnavailableError

T = TypeVar("T")

MOST_BYTES = 4 * 1024 * 1024
"""Of an answer that holds no program's output."""

_TRIES = 4
_PAUSES_S = (0.1, 0.4, 1.0)
_LONGEST_PAUSE_S = 5.0
"""What is away for longer is the caller's to try again."""

_BUSY = frozenset({429, 502, 503, 504})
_SAID_BYTES = 400


class RefusedError(RunnerUnavailableError):
    """It answered with a status that is no success. ``said`` is the begin of its body, which may quote a program."""

    def __init__(self, problem: str, remedy: str, *, status: int, said: str) -> None:
        """Keep what an adapter needs to know more about it."""
        super().__init__(problem, remedy)
        self.status, self.said = status, said


class _AwayError(Exception):
    """This try failed before anything came of it, so another may follow, after ``pause_s`` where it was told."""

    def __init__(self, error: RunnerUnavailableError, pause_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.pause_s = error, pause_s


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``timeout_s`` is from its start to the end of the answer, ``most_bytes`` the longest answer.

    ``body`` is sent as JSON, ``file`` as the field of that name in a form.
    """

    method: str
    path: str
    body: Any = None
    file: bytes | None = None
    query: Mapping[str, str] | None = None
    timeout_s: float = 20.0
    most_bytes: int = MOST_BYTES


class RemoteService:
    """One service by its address. Connections are kept; they open with the first request."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str]) -> None:
        """``name`` is how messages call it; ``headers`` go with every request and are shown nowhere."""
        address = URL(url)
        basic = {}
        if address.user is not None:  # a proxy's; an engine that takes its key in the same header goes first
            user = b64encode(f"{address.user}:{address.password or ''}".encode()).decode()
            basic = {"authorization": f"Basic {user}"}
        self.name, self._url = name, str(address.with_user(None)).rstrip("/")
        self._headers = {**basic, **headers}
        self._place = without_secrets(url)
        self._client: aiohttp.ClientSession | None = None

    async def fetch(self, shape: TypeAdapter[T], request: Request) -> T:
        """Ask, and read the answer as JSON of this shape.

        Raises:
            RunnerUnavailableError: it does not answer, or not with that.
        """
        data = await self.fetch_bytes(request)
        try:
            return shape.validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise self.misunderstood(f"{first['msg']}{f' at {where}' if where else ''}") from None

    async def fetch_bytes(self, request: Request) -> bytes:
        """Ask; a connection that cannot be made and a service that is busy are tried again for some seconds.

        A program that is run twice does no harm: each run is in a sandbox of its own.

        Raises:
            RunnerUnavailableError: it does not answer.
        """
        for tried in range(1, _TRIES + 1):
            try:
                return await self._try(request)
            except _AwayError as away:
                pause = _PAUSES_S[min(tried, len(_PAUSES_S)) - 1] if away.pause_s is None else away.pause_s
                if tried == _TRIES or pause > _LONGEST_PAUSE_S:
                    raise away.error from None
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def misunderstood(self, what: str) -> RunnerUnavailableError:
        """An answer that is not what the protocol says; ``what`` quotes nothing of it."""
        return RunnerUnavailableError(
            f"{self.name} at {self._place} answers something that is not understood: {what}.",
            f"See that TURNSTONE_RUNNER__URL is {self.name}'s, and that docs/runner.md names its version.",
        )

    def silent(self, seconds: float) -> RunnerUnavailableError:
        """Nothing came of it in this time."""
        return RunnerUnavailableError(
            f"{self.name} at {self._place} did not answer within {seconds:g} s.",
            "Look at its log and its load: its workers may hang, or be too few.",
        )

    async def close(self) -> None:
        """Close its connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _try(self, request: Request) -> bytes:
        try:
            async with asyncio.timeout(request.timeout_s):
                return await self._exchange(request)
        except TimeoutError:
            raise self.silent(request.timeout_s) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _AwayError(
                RunnerUnavailableError(
                    f"{self.name} at {self._place} cannot be reached ({type(error).__name__}).",
                    "Start it, or let TURNSTONE_RUNNER__URL say where it is.",
                )
            ) from None

    async def _exchange(self, request: Request) -> bytes:
        form = None
        if request.file is not None:
            form = aiohttp.FormData()
            form.add_field("file", request.file, filename="file", content_type="application/octet-stream")
        async with self._session().request(
            request.method,
            f"{self._url}{request.path}",
            json=request.body if form is None else None,
            data=form,
            params=request.query,
            allow_redirects=False,  # neither a program nor a key goes where nobody has set
        ) as answer:
            if answer.ok and answer.status < 300:
                return await self._read(answer, request.most_bytes)
            said = (await answer.content.read(_SAID_BYTES)).decode("utf-8", "replace")
            refused = self._refused(answer.status, said)
            if answer.status in _BUSY:
                raise _AwayError(refused, parse_retry_after(answer.headers.get("Retry-After")))
            raise refused

    async def _read(self, answer: aiohttp.ClientResponse, most: int) -> bytes:
        data = bytearray()
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > most:
                raise self.misunderstood(f"more than {most} bytes")
        return bytes(data)

    def _refused(self, status: int, said: str) -> RefusedError:
        whom = f"{self.name} at {self._place}"
        if status in {401, 403}:
            problem, remedy = "refuses the key", "Let TURNSTONE_RUNNER__API_KEY be the one that it was given."
        elif status in _BUSY:
            problem = "is busy or being changed"
            remedy = "Wait, give it more workers, or lower TURNSTONE_RUNNER__CONCURRENCY."
        elif status >= 500:
            problem, remedy = "failed", "Its log says why."
        else:
            problem = "refuses the request"
            remedy = f"See that TURNSTONE_RUNNER__URL is {self.name}'s, and that docs/runner.md names its version."
        return RefusedError(f"{whom} {problem} ({status}).", remedy, status=status, said=said)

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                headers={"user-agent": "turnstone", "accept-encoding": "identity", **self._headers},
                auto_decompress=False,  # a few bytes may unpack to gigabytes
            )
        return self._client
