"""The chat page in a real browser against the real service; only the provider is scripted.

With ``SCREENSHOTS=directory`` in the environment the tests leave pictures there.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from app.core.settings import Settings
from tests.conftest import Rows
from tests.support.browser import open_browser
from tests.support.core import FakeCore
from tests.support.provider import SCRIPTS, Provider, Script
from tests.support.service import Service, ServiceProcess, running

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WAIT_MS = 20_000
WORDS = tuple(f"word{number} " for number in range(70))
SLOW = Script(pieces=WORDS, piece_delay_s=0.03)
ENDLESS = Script(pieces=WORDS * 20, piece_delay_s=0.03)  # somebody stops it


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        expect.set_options(timeout=WAIT_MS)
        yield opened
        expect.set_options(timeout=5_000)  # Playwright's own, for the other modules


@asynccontextmanager
async def open_tab(browser: Browser) -> AsyncIterator[Page]:
    """A tab of a browser of its own. What the policy had to forbid, and every uncaught error, fails the test."""
    context = await browser.new_context(viewport={"width": 1000, "height": 760})
    tab = await context.new_page()
    tab.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    tab.on("pageerror", lambda fault: complaints.append(str(fault)))
    tab.on(
        "console",
        lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield tab
    await context.close()
    assert complaints == []


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with open_tab(browser) as tab:
        yield tab


class Line:
    """The line between browser and service: it can be cut, and lead to another service."""

    def __init__(self, service: Service) -> None:
        self.service: Service | None = service
        self._ends: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Drop every connection without a word."""
        for end in list(self._ends):
            end.transport.abort()

    async def __aenter__(self) -> Line:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(writer)
        try:
            if self.service is not None:
                there, back = await asyncio.open_connection("127.0.0.1", self.service.port)
                self._ends.add(back)
                await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        except OSError:
            pass  # a cut line
        finally:
            self._ends.discard(writer)
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                sink.write(data)
                await sink.drain()
        finally:
            self._ends.discard(sink)
            with suppress(OSError):
                sink.close()


async def picture(page: Page, name: str) -> None:
    if directory := os.environ.get("SCREENSHOTS"):
        await page.screenshot(path=Path(directory) / f"{name}.png")


async def visit(page: Page, url: str, query: str = "") -> None:
    response = await page.goto(f"{url}/{query}")
    assert response is not None
    assert response.status == 200
    await expect(page.locator("#connection")).to_have_text("Connected")


async def write(page: Page, message: str) -> None:
    await page.get_by_label("Message", exact=True).fill(message)
    await page.keyboard.press("Enter")


def answers(page: Page) -> Any:
    return page.locator(".answer")


def ended(page: Page) -> Any:
    return page.locator("li[data-mood=ended]")


async def shown(page: Page, number: int = 0) -> str:
    text: str = await answers(page).nth(number).inner_text()
    return text.strip()


def stored_answer(rows: Rows, turn: int = 1) -> str:
    query = "SELECT content FROM prompt_messages WHERE role = 'ASSISTANT' AND turn = %s"
    content: str = rows.one(query, turn)["content"]
    return content


async def test_answer_is_streamed_rendered_and_stored(
    page: Page, service: Service, provider: Provider, rows: Rows
) -> None:
    text = "Here **it** is:\n\n```python\nprint('한국어 🐦')\n```\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    provider.next(Script(pieces=tuple(re.findall(r"\s*\S+\s*", text)), piece_delay_s=0.03))
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    await visit(page, service.url)
    await expect(page.locator("#welcome")).to_be_visible()
    await picture(page, "1-welcome")
    await write(page, "Why does <b>this</b> fail?")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".question")).to_have_text("Why does <b>this</b> fail?")
    await expect(page.locator(".answer strong")).to_have_text("it")
    await expect(page.locator(".answer pre code.language-python")).to_have_text("print('한국어 🐦')\n")
    await expect(page.locator(".answer li")).to_have_text(["one", "two"])
    await expect(page.locator(".answer td")).to_have_text(["1", "2"])
    pieces = len(re.findall(r"\s*\S+\s*", text))
    await expect(page.locator(".status")).to_have_text(f"{25 + pieces} tokens (25 in, {pieces} out)")
    await expect(page.locator("#total")).to_have_text(f"{25 + pieces} tokens in this session")
    await expect(page.locator("#core")).to_be_hidden()
    assert faults == []
    assert stored_answer(rows) == text
    await picture(page, "2-answer")


async def test_page_comes_with_its_policy(page: Page, service: Service) -> None:
    response = await page.goto(f"{service.url}/")
    assert response is not None
    headers = await response.all_headers()
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    await page.reload()
    await expect(page.locator("#connection")).to_have_text("Connected")
    assert hosts == {service.url.removeprefix("http://")}, "nothing comes from elsewhere"


async def test_stop_closes_the_provider_and_keeps_what_came(
    page: Page, service: Service, provider: Provider, rows: Rows
) -> None:
    provider.next(ENDLESS)
    await visit(page, service.url)
    await write(page, "Go on")
    await expect(answers(page)).to_contain_text("word5 ")
    await picture(page, "3-writing")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".status")).to_have_text(re.compile(r"^Stopped · \d+ tokens \(.* estimated\)$"))
    (request,) = await provider.closed_reach(1)
    assert request.ended == "client_closed"
    assert request.pieces_sent < len(ENDLESS.pieces)
    assert await shown(page) == stored_answer(rows).strip()
    await expect(page.get_by_label("Message", exact=True)).to_be_focused()
    await write(page, "And now?")
    await expect(ended(page)).to_have_count(2)
    await picture(page, "4-stopped")


async def test_lost_connection_costs_nothing(page: Page, service: Service, provider: Provider, rows: Rows) -> None:
    provider.next(SLOW)
    async with Line(service) as line:
        await visit(page, line.url)
        await write(page, "Go on")
        await expect(answers(page)).to_contain_text("word5 ")
        line.service = None
        line.cut()
        await expect(page.locator("#connection")).not_to_have_text("Connected")
        await picture(page, "5-lost")
        line.service = service
        await expect(page.locator("#connection")).to_have_text("Connected")
        await expect(ended(page)).to_have_count(1)
        assert await shown(page) == "".join(WORDS).strip() == stored_answer(rows).strip()
        await expect(page.locator(".status")).to_have_text(f"{25 + len(WORDS)} tokens (25 in, {len(WORDS)} out)")
    assert len(provider.requests) == 1


async def test_restarted_service_is_found_again(
    page: Page, start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    provider.next(ENDLESS)
    first = start(shutdown_grace_s=0)
    async with Line(first) as line:
        await visit(page, line.url)
        await write(page, "Go on")
        await expect(answers(page)).to_contain_text("word5 ")
        await asyncio.to_thread(first.stop)
        await expect(page.locator("li[data-mood=failed] .status")).to_contain_text("interrupted")
        await expect(page.locator("#connection")).not_to_have_text("Connected")
        assert await shown(page) == stored_answer(rows).strip()
        await picture(page, "6-interrupted")
        line.service = await asyncio.to_thread(start)
        await expect(page.locator("#connection")).to_have_text("Connected")
        await page.reload()
        await expect(page.locator("li[data-mood=failed] .status")).to_contain_text("interrupted")
        assert await shown(page) == stored_answer(rows).strip()
        provider.default = Script(pieces=("Here ", "again."))
        await page.get_by_role("button", name="Try again").click()
        await expect(ended(page)).to_have_count(1)
        await expect(page.locator(".question")).to_have_text(["Go on", "Go on"])
        assert await shown(page, 1) == "Here again."
    assert len(provider.requests) == 2


async def test_answer_runs_nothing(page: Page, service: Service, provider: Provider) -> None:
    attack = (
        "<script>window.hacked = 1</script>\n\n<img src=x onerror='window.hacked = 2'>\n\n"
        "![x](/static/favicon.svg)\n\n[click](javascript:window.hacked=3) <svg onload='window.hacked = 4'>\n\n"
        "```html\n<script>window.hacked = 5</script>\n```\n\nend"
    )
    provider.next(Script(pieces=tuple(re.findall(r"\s*\S+\s*", attack)), piece_delay_s=0.01))
    await visit(page, service.url)
    await write(page, "<img src=x onerror='window.hacked = 6'>")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer pre code")).to_have_text("<script>window.hacked = 5</script>\n")
    await expect(page.locator(".answer .tail")).to_have_text("")
    await expect(page.locator(".answer")).to_contain_text("<script>window.hacked = 1</script>")
    await page.reload()
    await expect(page.locator(".answer pre code")).to_have_text("<script>window.hacked = 5</script>\n")
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#log :is(script, img, svg, iframe, a)").count() == 0
    await picture(page, "7-attack")


async def test_failure_is_said_in_words_and_can_be_tried_again(
    page: Page, start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    service = start(limits={"message_chars": 60})
    provider.default = SCRIPTS["status_503"]
    await visit(page, service.url)
    await write(page, "Anybody there?")
    failed = page.locator("li[data-mood=failed] .status")
    await expect(failed).to_contain_text(re.compile(r"[A-Z][a-z]+ .*\."))
    words = rows.one("SELECT error_message FROM prompt_turns")["error_message"]
    await expect(failed).to_contain_text(words)
    await picture(page, "8-failed")
    before = await failed.inner_text()
    await page.reload()
    await expect(failed).to_contain_text(words)
    assert await failed.inner_text() == before, "with the same way out"
    provider.default = Script()
    await page.get_by_role("button", name="Try again").click()
    await expect(ended(page)).to_have_count(1)
    await write(page, "x" * 61)
    await expect(page.locator("#remark")).to_have_text("The message has 61 characters; the limit is 60.")
    await expect(page.get_by_label("Message", exact=True)).to_have_value("x" * 61)
    await expect(page.locator(".question")).to_have_text(["Anybody there?"] * 2)
    provider.default = SCRIPTS["status_400"]
    await write(page, "y")
    await expect(failed).to_have_count(2)
    await expect(page.get_by_role("button", name="Try again")).to_have_count(0)
    shown_before = await page.locator(".status").all_inner_texts()
    await page.reload()
    await expect(failed).to_have_count(2)
    after = await page.locator(".status").all_inner_texts()
    assert [after[0], after[2]] == [shown_before[0], shown_before[2]], "an older failure is explained, too"


async def test_second_tab_waits_its_turn(page: Page, browser: Browser, service: Service, provider: Provider) -> None:
    provider.next(ENDLESS)
    await visit(page, service.url)
    async with open_tab(browser) as other:
        await visit(other, service.url)
        await write(page, "First")
        await expect(answers(page)).to_contain_text("word5 ")
        await write(other, "Second")
        await expect(other.locator("li[data-mood=failed] .status")).to_contain_text("answering another message")
        await page.get_by_role("button", name="Stop").click()
        await expect(ended(page)).to_have_count(1)
        await other.get_by_role("button", name="Try again").click()
        await expect(ended(other)).to_have_count(1)
    await page.reload()
    await expect(page.locator(".question")).to_have_text(["First", "Second"])


async def test_reload_in_mid_stream_goes_on(page: Page, service: Service, provider: Provider, rows: Rows) -> None:
    provider.next(Script(pieces=("first ", "answer")), SLOW)
    await visit(page, service.url, "?exam_id=4&participant_id=2")
    await write(page, "First?")
    await expect(ended(page)).to_have_count(1)
    await write(page, "Second?")
    await expect(answers(page).nth(1)).to_contain_text("word5 ")
    await page.reload()
    await expect(page.locator(".question")).to_have_text(["First?", "Second?"])
    await expect(ended(page)).to_have_count(2)
    assert await shown(page) == "first answer"
    assert await shown(page, 1) == "".join(WORDS).strip() == stored_answer(rows, 2).strip()
    await expect(page.locator("#total")).to_have_text(f"{25 + 2 + 25 + len(WORDS)} tokens in this session")
    await page.reload()
    await expect(ended(page)).to_have_count(2)
    assert await shown(page, 1) == "".join(WORDS).strip()
    await picture(page, "9-reloaded")
    assert len(provider.requests) == 2
    session = rows.one("SELECT exam_id, participant_id FROM prompt_sessions")
    assert tuple(session.values()) == (4, 2)


async def test_reload_can_stop_what_an_earlier_page_began(page: Page, service: Service, provider: Provider) -> None:
    provider.next(ENDLESS)
    await visit(page, service.url)
    await write(page, "Go on")
    await expect(answers(page)).to_contain_text("word5 ")
    await page.reload()
    await expect(answers(page)).to_contain_text("word5 ")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".status")).to_contain_text("Stopped · ")
    (request,) = await provider.closed_reach(1)
    assert request.ended == "client_closed"


async def test_token_comes_in_the_address_and_leaves_it(
    page: Page, browser: Browser, start: Callable[..., Service]
) -> None:
    service = start(auth={"mode": "token", "api_key": "the-key.of~exam_1"})
    async with open_tab(browser) as stranger:
        await stranger.goto(f"{service.url}/")
        await expect(stranger.locator("#connection")).to_have_text("Not signed in")
        await expect(stranger.locator(".notice")).to_contain_text("This server asks for a token.")
        await picture(stranger, "10-no-token")
        await stranger.evaluate("location.hash = '#token=the-key.of~exam_1'")  # as typed into the address bar
        await expect(stranger.locator("#connection")).to_have_text("Connected")
        assert stranger.url == f"{service.url}/"
    await visit(page, service.url, "#token=the-key.of~exam_1")
    assert page.url == f"{service.url}/"
    await write(page, "Hello")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer p")).to_have_count(1)  # rendered, so that call had the token too
    await page.reload()
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator("#connection")).to_have_text("Connected")


def demo_environment(settings: Settings) -> dict[str, str]:
    assert settings.database.url is not None
    assert settings.llm.base_url is not None
    return {
        "TURNSTONE_PORT": "0",
        "TURNSTONE_DATA_DIR": str(settings.data_dir),
        "TURNSTONE_DATABASE__URL": settings.database.url,
        "TURNSTONE_LLM__MODEL": settings.llm.model,
        "TURNSTONE_LLM__BASE_URL": settings.llm.base_url,
        "TURNSTONE_LLM__API_KEY": "sk-scripted",
    }


@pytest.mark.slow
async def test_demo_shows_what_core_received(page: Page, settings: Settings, core: FakeCore, tmp_path: Path) -> None:
    environment = demo_environment(settings)
    pane = page.get_by_role("complementary", name="What Core received")
    with running(ServiceProcess("demo", env=environment, cwd=tmp_path)) as demo:
        await asyncio.to_thread(demo.wait_ready)
        await visit(page, demo.url)
        await expect(pane).to_contain_text("Nothing yet.")
        await write(page, "Hello")
        await expect(ended(page)).to_have_count(1)
        await expect(pane.locator("strong")).to_have_text(["message_response", "usage"])
        await expect(pane.locator("li span").last).to_have_text("session 1 · turn 1 · 31 tokens")
        await pane.locator("li summary").first.click()
        await expect(pane.locator("pre").first).to_contain_text('"status": "completed"')
        await expect(pane.locator("pre").first).to_contain_text("webhook-id: evt_")
        await picture(page, "11-demo")
        await asyncio.to_thread(demo.kill)
    with running(ServiceProcess("demo", env=environment | {"TURNSTONE_PORT": str(demo.port)}, cwd=tmp_path)) as demo:
        await asyncio.to_thread(demo.wait_ready)
        await write(page, "Still there?")  # on the page that was open before
        await expect(ended(page)).to_have_count(2)
        await expect(pane.locator("li span")).to_contain_text(["turn 2 · completed", "turn 2 · 31 tokens"])
        assert await asyncio.to_thread(demo.stop) == 0
    assert len(core.deliveries) == 0, "the demo has a Core of its own"
