"""Core's address and Core's answers do no harm, and no secret is shown or logged."""

from __future__ import annotations

import asyncio
import gzip
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import BasicAuth

from app.core.errors import StartupError
from app.core.settings import Settings, load_settings
from app.doctor import examine
from app.infrastructure.webhook import Delivered, Refused, Unreachable, WebhookSender
from tests.conftest import CORE_KEY, SECRET
from tests.support.chat import Command, connect, environment, new_pair, wait_until
from tests.support.core import Answer, FakeCore
from tests.support.service import running
from tests.test_webhook import BODY, settings_for

SECRETS = {
    "TURNSTONE_DATABASE__URL": "postgresql://turnstone:hidden-1@db.invalid/turnstone",
    "TURNSTONE_REDIS__URL": "redis://:hidden-2@redis.invalid/0",
    "TURNSTONE_LLM__BASE_URL": "https://user:hidden-3@llm.invalid/v1?key=hidden-4",
    "TURNSTONE_LLM__API_KEY": "hidden-5",
    "TURNSTONE_CALLBACKS__URL": "https://user:hidden@core.invalid/callbacks?token=hidden-6",
    "TURNSTONE_CALLBACKS__API_KEY": "hidden-7",
    "TURNSTONE_CALLBACKS__SIGNING_SECRET": "whsec_aGlkZGVuLTgtaGlkZGVuLTgtaGlkZGVuLTg=",
    "TURNSTONE_AUTH__MODE": "token",
    "TURNSTONE_AUTH__API_KEY": "hidden-9",
    "TURNSTONE_AUTH__TICKET_SECRET": "hidden-10",
}
HIDDEN = ("hidden", "aGlkZGVu")


def shows_a_secret(text: str) -> bool:
    return any(part in text for part in HIDDEN)


# the address


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("core.example/callbacks", "must start with http:// or https://"),
        ("ftp://core.example/", "must start with http:// or https://"),
        ("file:///etc/passwd", "must start with http:// or https://"),
        ("https://", "names no host"),
        ("https:///callbacks", "names no host"),
        ("https://user:hidden@", "names no host"),
        ("https://core.example:port/", "cannot be read"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, url: str, said: str
) -> None:
    monkeypatch.setenv("TURNSTONE_CALLBACKS__URL", url)
    with pytest.raises(StartupError) as refused:
        load_settings()
    problem = refused.value.problem
    assert problem.startswith("TURNSTONE_CALLBACKS__URL: ")
    assert said in problem
    assert not shows_a_secret(problem)


@pytest.mark.parametrize("url", ["https://core.example/?token=hidden", "https://core.example/#hidden"])
def test_paths_are_not_appended_to_a_query(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("TURNSTONE_CALLBACKS__URL", url)
    assert load_settings().callbacks.url == url
    monkeypatch.setenv("TURNSTONE_CALLBACKS__PROFILE", "vibecode")
    with pytest.raises(StartupError) as refused:
        load_settings()
    assert "profile vibecode" in refused.value.problem
    assert not shows_a_secret(refused.value.problem)


def test_a_profile_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNSTONE_CALLBACKS__PROFILE", "vibe")
    with pytest.raises(StartupError, match="TURNSTONE_CALLBACKS__PROFILE: must be 'standard' or 'vibecode'"):
        load_settings()


async def test_a_user_and_a_password_are_sent_as_such_and_not_as_part_of_the_address(core: FakeCore) -> None:
    url = core.callback_url.replace("http://", "http://worker:hidden@")
    sender = WebhookSender(settings_for(url))
    assert await sender.send("evt_1", BODY) == Delivered()
    await sender.close()
    assert core.deliveries[0].headers["authorization"] == BasicAuth("worker", "hidden").encode()
    assert "hidden" not in core.deliveries[0].headers["host"]


async def test_the_name_of_core_is_looked_up_for_a_connection_and_not_in_between(
    core: FakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is the operator's own, so nothing is checked that a second look-up could get around."""
    lookups: list[str] = []
    look_up = socket.getaddrinfo

    def counted(host: Any, *arguments: Any, **options: Any) -> Any:
        lookups.append(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    sender = WebhookSender(settings_for(core.callback_url.replace("127.0.0.1", "localhost")))
    for number in range(3):
        assert await sender.send(f"evt_{number}", BODY) == Delivered()
    await sender.close()
    assert lookups == ["localhost"]


async def test_a_redirect_leads_nowhere_in_either_profile(core: FakeCore) -> None:
    with FakeCore() as elsewhere:
        core.always(Answer(status=308, headers=(("Location", f"{elsewhere.url}/api/x"),)))
        told = {"type": "usage", "exam_id": 1, "participant_id": 2, "total_tokens": 3, "purpose": "chat"}
        for profile, url in (("standard", core.callback_url), ("vibecode", core.url)):
            sender = WebhookSender(settings_for(url, profile=profile))
            assert await sender.send("evt_1", told) == Refused(308, body_start="{}")
            await sender.close()
        assert len(elsewhere.deliveries) == 0


# the answer


@asynccontextmanager
async def answering(
    answer: Callable[[asyncio.StreamWriter], Any],
) -> AsyncIterator[str]:
    """A server that answers every connection by hand; yields its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            await answer(writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", limit=2**20)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(200, Delivered()), (500, Refused(500, body_start="x" * 500)), (302, Refused(302, body_start="x" * 500))],
)
async def test_of_an_answer_without_end_little_is_taken(status: int, expected: Delivered | Refused) -> None:
    taken = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {2**33}\r\n\r\n".encode())
        writer.transport.set_write_buffer_limits(2**16)
        for _ in range(2**33 // 2**16):
            writer.write(b"x" * 2**16)
            await writer.drain()
            taken += 2**16

    async with answering(flood) as url:
        sender = WebhookSender(settings_for(url, timeout_s=30))
        async with asyncio.timeout(60):
            assert await sender.send("evt_1", BODY) == expected
        await sender.close()
    assert taken < 16 * 2**20, "what the kernel's buffers hold, and not gigabytes"


async def test_an_answer_that_drips_ends_with_the_timeout() -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 X\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with answering(drip) as url:
        sender = WebhookSender(settings_for(url, timeout_s=1))
        async with asyncio.timeout(30):
            assert isinstance(await sender.send("evt_1", BODY), Refused | Unreachable)
        await sender.close()


async def test_a_compressed_answer_is_not_blown_up() -> None:
    bomb = gzip.compress(b"0" * 2**28)

    async def explode(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n"
        writer.write(head.encode() + bomb)
        await writer.drain()

    async with answering(explode) as url:
        sender = WebhookSender(settings_for(url, timeout_s=30))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await sender.send("evt_1", BODY) == Delivered()
        await asyncio.sleep(0.2)
        await sender.close()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 40_000, f"{grown_kb} kB"


async def test_endless_headers_are_no_answer() -> None:
    async def headers(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1_000_000):
            writer.write(b"X-Header-%d: %s\r\n" % (number, b"x" * 1000))
            await writer.drain()

    async with answering(headers) as url:
        sender = WebhookSender(settings_for(url, timeout_s=60))
        async with asyncio.timeout(30):
            assert isinstance(await sender.send("evt_1", BODY), Unreachable)
        await sender.close()


# secrets


@pytest.fixture
def secretive(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return load_settings()


def test_settings_show_no_secret_when_they_are_printed(secretive: Settings) -> None:
    sections = [getattr(secretive, name) for name in Settings.model_fields]
    for value in (secretive, *sections):
        assert not shows_a_secret(repr(value))
        assert not shows_a_secret(str(value))


@pytest.mark.parametrize("name", [name for name in SECRETS if name != "TURNSTONE_AUTH__MODE"])
def test_no_error_repeats_the_value_that_it_is_about(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for value in ("hidden\n", "\x00hidden", "whsec_hidden!", "//hidden", "hidden://hidden@[hidden"):
        with monkeypatch.context() as patch:
            try:
                patch.setenv(name, value)
            except ValueError:
                continue  # no environment can hold it
            try:
                settings = load_settings()
            except StartupError as error:
                assert not shows_a_secret(f"{error} {error.problem} {error.remedy} {error.__cause__!r}")
            else:
                assert not shows_a_secret(repr(settings))


async def test_the_doctor_shows_no_secret(secretive: Settings) -> None:
    findings = await examine(secretive.model_copy(update={"port": 0}))
    [callbacks] = [finding for finding in findings if finding.what == "callbacks"]
    assert "core.invalid" in callbacks.found
    for finding in findings:
        assert not shows_a_secret(f"{finding.found} {finding.remedy}"), finding.what


@pytest.fixture(params=["standard", "vibecode"])
def refusing(request: pytest.FixtureRequest, settings: Settings, core: FakeCore) -> Iterator[dict[str, str]]:
    """The environment of a service whose Core refuses, and quotes what it was sent."""
    core.always(Answer(status=400, body=f"{CORE_KEY} {SECRET}"))
    yield {
        **environment(settings),
        "TURNSTONE_CALLBACKS__PROFILE": request.param,
        "TURNSTONE_CALLBACKS__URL": core.url if request.param == "vibecode" else core.callback_url,
        "TURNSTONE_LOG_LEVEL": "debug",
        "TURNSTONE_PORT": "0",
    }


async def test_no_secret_is_logged_nor_shown_by_callbacks(refusing: dict[str, str]) -> None:
    with running(Command("serve", env=refusing)) as process:
        process.wait_ready()
        async with connect(process.url) as client:
            await client.ask("hello", **new_pair())
        with httpx.Client(base_url=process.url, timeout=30) as http:

            def failed() -> list[dict[str, Any]]:
                found: list[dict[str, Any]] = http.get("/api/callbacks?status=failed").json()["items"]
                return found

            gone = (await asyncio.to_thread(wait_until, failed))[0]["id"]
            paths = ("/api/callbacks", f"/api/callbacks/{gone}", "/openapi.json", "/metrics", "/readyz")
            texts = [http.get(path).text for path in paths]
        for command in (("list",), ("list", "--json"), ("show", gone), ("replay", gone)):
            _, output = Command("callbacks", *command, env=refusing).ended()
            texts.append(output)
        await asyncio.to_thread(process.wait_for_line, "callback_not_delivered")
        texts.append(process.output)
    for text in texts:
        assert CORE_KEY not in text
        assert SECRET.removeprefix("whsec_") not in text
