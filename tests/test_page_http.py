"""The browser's client behind proxies that let no WebSocket through; browser and service are real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from tests.conftest import Rows
from tests.support.browser import open_browser
from tests.support.chat import new_pair
from tests.support.hostile_proxy import HostileProxy, Sockets, open_hostile_proxy
from tests.support.provider import Provider, Script
from tests.support.service import Service
from tests.test_nginx import CONF, NGINX, nginx_before
from tests.test_page_e2e import answers, ended, open_tab, picture, shown, stored_answer, write

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 20.0
WORDS = tuple(f"낱말{number} 👩‍💻 " for number in range(60))
SLOW = Script(pieces=WORDS, piece_delay_s=0.02)
ENDLESS = Script(pieces=WORDS * 40, piece_delay_s=0.03)  # somebody stops it
DOUBTS = {"doubtMs": 400}  # where something is held back: each doubt takes as long
NO_SOCKETS = [Sockets.REFUSE, Sockets.SWALLOW, Sockets.DIE, Sockets.DIE_YOUNG]

OPEN_CLIENT = """async ({ tokens, ...options }) => {
  const { TurnstoneClient } = await import("/static/turnstone.js");
  const url = `ws://${location.host}/chat`;
  window.asked = 0;
  const token = tokens && (() => tokens[Math.min(window.asked++, tokens.length - 1)]);
  const quick = { backoffMs: 30, doubtMs: 10000, patienceMs: 30000 };  // a machine that stands still is no proxy
  const client = (window.client = new TurnstoneClient({ url, ...quick, ...(token && { token }), ...options }));
  window.events = [];
  for (const type of ["state", "started", "text", "cut", "ended", "error"]) {
    client.on(type, (detail) => {
      const { text, number } = detail.turn ?? {};
      window.events.push({ kind: type, ...detail, turn: undefined, text, number });
    });
  }
  client.connect();
}"""
REPORT = """async (turn) => {
  await turn.finished;
  const { state, text, answer, usage, error, number, sessionId, finishReason } = turn;
  return { state, text, seq: answer.seq, usage, error, number, sessionId, finishReason };
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as opened:
        expect.set_options(timeout=20_000)
        yield opened
        expect.set_options(timeout=5_000)  # Playwright's own, for the other modules


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    async with open_tab(browser) as tab:
        yield tab


@pytest_asyncio.fixture(loop_scope="module")
async def proxy(service: Service) -> AsyncIterator[HostileProxy]:
    async with open_hostile_proxy(service.url) as running:
        running.sockets = Sockets.REFUSE
        yield running


async def open_client(page: Page, url: str, **options: Any) -> None:
    """A client on a document of the service that runs nothing by itself."""
    await page.goto(f"{url}/healthz")
    await page.evaluate(OPEN_CLIENT, options)


async def ask(page: Page, **fields: Any) -> dict[str, Any]:
    """Send a message and give back what the turn is when it has ended."""
    pair = new_pair()
    message = {"message": "Why?", "turnId": "t1", "examId": pair["exam_id"], "participantId": pair["participant_id"]}
    report: dict[str, Any] = await page.evaluate(f"async (m) => ({REPORT})(client.send(m))", {**message, **fields})
    return report


async def events(page: Page, kind: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = await page.evaluate("(kind) => events.filter((e) => e.kind === kind)", kind)
    return seen


async def transport(page: Page) -> str:
    """What the client says that it uses."""
    said: str = (await events(page, "state"))[-1]["transport"]
    assert said == await page.evaluate("client.transport")
    return said


async def until_true(page: Page, expression: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.02)


async def more_text(page: Page, least: int = 1) -> None:
    """Wait for so many more pieces of text."""
    wanted = len(await events(page, "text")) + least
    await until_true(page, f"events.filter((e) => e.kind === 'text').length >= {wanted}")


async def check_text(page: Page, rows: Rows, turn: dict[str, Any]) -> None:
    """The answer is the stored one, shown without loss or repetition, and has ended once."""
    assert turn["text"] == stored_answer(rows)
    texts = await events(page, "text")
    assert "".join(event["added"] for event in texts) == turn["text"]
    assert all(turn["text"].startswith(event["text"]) for event in texts)
    assert len(await events(page, "ended")) == 1


# ---------------------------------------------------------------- falling back


@pytest.mark.parametrize("sockets", NO_SOCKETS, ids=lambda sockets: sockets.value)
async def test_where_no_websocket_gets_through_an_answer_streams_over_http(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows, sockets: Sockets
) -> None:
    proxy.sockets, is_silent = sockets, sockets is Sockets.SWALLOW
    provider.next(SLOW)
    await open_client(page, proxy.url, **(DOUBTS if is_silent else {}))
    await until_true(page, "client.transport !== 'websocket' && client.state === 'open'")
    # three; more where the service stood still, which is asked whether it is there
    assert 3 <= proxy.handshakes <= 12, "it was tried, but not for ever"
    turn = await ask(page)
    assert (turn["state"], turn["finishReason"], turn["number"]) == ("done", "stop", 1)
    assert turn["usage"]["total_tokens"] == 25 + len(WORDS)
    await check_text(page, rows, turn)
    assert [event["number"] for event in await events(page, "started")] == [1]
    assert await transport(page) in ({"sse", "poll"} if is_silent else {"sse"})
    assert len(provider.requests) == 1
    provider.next(ENDLESS)
    asked = asyncio.create_task(ask(page, turnId="t2"))
    await more_text(page, 10)  # it streams: there is no end of it
    await page.evaluate("client.cancel('t2')")
    assert (await asked)["state"] == "cancelled"


@pytest.mark.slow
async def test_message_sent_before_the_way_was_found_is_not_lost(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    proxy.sockets = Sockets.SWALLOW
    provider.next(SLOW)
    await open_client(page, proxy.url, patienceMs=60_000, **DOUBTS)  # silence is doubted long before that
    async with asyncio.timeout(WAIT_S):
        await check_text(page, rows, await ask(page))
    assert len(proxy.asked("POST", "/message")) == 1


async def test_stream_that_is_held_back_is_read_by_long_poll(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    proxy.buffers = True
    provider.next(ENDLESS)
    await open_client(page, proxy.url, **DOUBTS)
    asked = asyncio.create_task(ask(page))
    await more_text(page, 4)  # piece by piece, not at the end: there is none
    await page.evaluate("client.cancel('t1')")
    turn = await asked
    await check_text(page, rows, turn)
    assert await transport(page) == "poll"
    polls = proxy.asked("GET", "/events")
    assert 2 * len(polls) < turn["seq"], "and not a request for each word"
    begun = len(polls)
    await ask(page, turnId="t2")
    accepted = [request.headers["accept"] for request in proxy.asked("GET", "/events")[begun:]]
    assert set(accepted) == {"application/json"}, "what is known is not tried again"


@pytest.mark.slow
async def test_service_that_is_down_makes_nobody_fall_back(page: Page, proxy: HostileProxy, service: Service) -> None:
    proxy.sockets = Sockets.PASS
    await open_client(page, proxy.url)
    await until_true(page, "client.state === 'open'")
    proxy.target = None
    proxy.cut()
    await until_true(page, "events.filter((e) => e.state === 'waiting').length > 6")
    proxy.target = service.url
    await until_true(page, "client.state === 'open'")
    assert (await ask(page))["state"] == "done"
    assert {event["transport"] for event in await events(page, "state")} == {"websocket"}
    assert proxy.asked("POST", "/message") == []


async def test_page_of_a_portal_is_not_taken_for_the_service(page: Page, proxy: HostileProxy) -> None:
    await page.goto(f"{proxy.url}/healthz")
    proxy.intercept = lambda request: (
        web.json_response({"status": "please sign in"}) if request.path == "/healthz" else None
    )
    await page.evaluate(OPEN_CLIENT, {})
    await until_true(page, "events.filter((e) => e.state === 'waiting').length > 6")
    assert await transport(page) == "websocket"


UPGRADES = """            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
"""


@pytest.mark.slow
@pytest.mark.skipif(NGINX is None, reason="there is no nginx; install Debian's package nginx-light")
@pytest.mark.parametrize("way", ["sse", "poll"])
async def test_nginx_that_knows_no_websockets(
    page: Page, start: Callable[..., Service], provider: Provider, rows: Rows, tmp_path: Path, way: str
) -> None:
    conf = CONF.read_text()
    assert UPGRADES in conf
    conf = conf.replace(UPGRADES, 'proxy_set_header Connection "";')
    if way == "poll":
        held_back = "proxy_buffering on; proxy_ignore_headers X-Accel-Buffering; gzip on; gzip_types text/event-stream;"
        conf = conf.replace("location / {", f"location / {{ {held_back}")
    provider.next(ENDLESS)
    services = await asyncio.to_thread(lambda: (start(), start()))
    with nginx_before(services, conf, tmp_path) as url:
        await open_client(page, url, **(DOUBTS if way == "poll" else {}))
        asked = asyncio.create_task(ask(page))
        await more_text(page, 4)
        await page.evaluate("client.cancel('t1')")
        await check_text(page, rows, await asked)
        assert (await ask(page, turnId="t2"))["state"] == "done"
        assert await transport(page) == way
    assert len(provider.requests) == 2


# ---------------------------------------------------------------- and back


@pytest.mark.slow
async def test_websocket_is_tried_again_and_taken_between_two_turns(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    provider.next(ENDLESS)
    await open_client(page, proxy.url, begin="http", returnMs=600)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    proxy.sockets, tried = Sockets.PASS, proxy.handshakes
    await asyncio.sleep(1)
    assert not asked.done() and proxy.handshakes == tried, "its time has come, and it waits for the turn's end"
    await page.evaluate("client.cancel('t1')")
    await check_text(page, rows, await asked)
    await until_true(page, "client.transport === 'websocket' && client.state === 'open'")
    posted = len(proxy.asked("POST", "/message"))
    assert (await ask(page, turnId="t2"))["state"] == "done"
    assert len(proxy.asked("POST", "/message")) == posted
    states = [event["state"] for event in await events(page, "state")]
    assert "waiting" not in states, "nobody has noticed"


@pytest.mark.slow
async def test_try_that_fails_disturbs_nothing_and_is_made_again(page: Page, proxy: HostileProxy, rows: Rows) -> None:
    clock = asyncio.get_running_loop().time
    begun = clock()
    await open_client(page, proxy.url, begin="http", returnMs=150, patienceMs=300)
    await asyncio.sleep(1)
    async with asyncio.timeout(WAIT_S):
        while proxy.handshakes < 2:
            await asyncio.sleep(0.02)
    assert proxy.handshakes <= 1 + (clock() - begun) / 0.15
    proxy.sockets, tried = Sockets.SWALLOW, proxy.handshakes
    async with asyncio.timeout(WAIT_S):
        while proxy.handshakes < tried + 2:
            await asyncio.sleep(0.02)
    await check_text(page, rows, await ask(page))
    assert {event["transport"] for event in await events(page, "state")} == {"sse"}
    proxy.sockets = Sockets.PASS
    await until_true(page, "client.transport === 'websocket'")


async def test_another_network_is_tried_at_once(page: Page, proxy: HostileProxy) -> None:
    await open_client(page, proxy.url, begin="http")
    await until_true(page, "client.state === 'open'")
    proxy.sockets = Sockets.PASS
    await page.evaluate("dispatchEvent(new Event('online'))")
    await until_true(page, "client.transport === 'websocket' && client.state === 'open'")
    assert (await ask(page))["state"] == "done"


# ---------------------------------------------------------------- what must hold over HTTP, too

WAYS = pytest.mark.parametrize("way", ["sse", "poll"])


async def open_over_http(page: Page, proxy: HostileProxy, way: str, **options: Any) -> None:
    proxy.buffers = way == "poll"
    doubts = DOUBTS if way == "poll" else {}
    await open_client(page, proxy.url, begin="http", **{**doubts, **options})


@WAYS
async def test_cancel_stops_the_provider(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows, way: str
) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, way)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    assert await page.evaluate("client.cancel('t1')") is True
    turn = await asked
    assert turn["state"] == "cancelled"
    (request,) = await provider.closed_reach(1)
    assert request.ended == "client_closed"
    await check_text(page, rows, turn)
    assert await transport(page) == way


async def test_cancel_before_the_session_is_known(page: Page, proxy: HostileProxy, provider: Provider) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, "sse")
    await until_true(page, "client.state === 'open'")
    sent = "client.send({message: 'x', turnId: 't1', examId: 1, participantId: 1})"
    async with asyncio.timeout(WAIT_S):
        # nothing can be answered while this runs
        turn = await page.evaluate(f"() => {{ const turn = {sent}; client.cancel('t1'); return ({REPORT})(turn); }}")
    assert turn["state"] == "cancelled"
    assert proxy.asked("POST", "/cancel")


@WAYS
async def test_reload_goes_on_after_what_is_held(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows, way: str
) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, way)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    await open_over_http(page, proxy, way)
    with pytest.raises(Exception, match=r"navigation|destroyed|closed"):
        await asked
    session = str(rows.one("SELECT id FROM prompt_sessions")["id"])
    resume = f"async () => ({REPORT})(client.resume({{sessionId: '{session}', turnId: 't1'}}))"
    resumed = asyncio.create_task(page.evaluate(resume))
    await more_text(page, 2)
    await page.evaluate("client.cancel('t1')")
    turn = await resumed
    await check_text(page, rows, turn)
    assert (await page.evaluate(resume))["text"] == turn["text"], "a turn that has ended, too"
    assert len(provider.requests) == 1


async def test_connection_cut_in_mid_stream_again_and_again(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    proxy.cut_after = 900
    provider.next(ENDLESS)
    await open_over_http(page, proxy, "sse")
    asked = asyncio.create_task(ask(page))
    async with asyncio.timeout(WAIT_S):
        while len(proxy.asked("GET", "/events")) <= 6:
            await asyncio.sleep(0.02)
    await page.evaluate("client.cancel('t1')")
    await check_text(page, rows, await asked)
    reads = proxy.asked("GET", "/events")
    places = [int(request.query["after_seq"]) for request in reads]
    assert places == sorted(places) and places[-1] > 0
    assert "waiting" not in [event["state"] for event in await events(page, "state")], "a stream's end is no news"


@WAYS
async def test_lost_network_costs_nothing(
    page: Page, proxy: HostileProxy, service: Service, provider: Provider, rows: Rows, way: str
) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, way)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    proxy.target = None
    proxy.cut()
    await until_true(page, "client.state === 'waiting'")
    proxy.target = service.url
    await more_text(page)
    await page.evaluate("client.cancel('t1')")
    await check_text(page, rows, await asked)
    assert len(provider.requests) == 1


async def test_message_whose_answer_was_lost_runs_once(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    provider.next(SLOW)
    proxy.loses = 1
    await open_over_http(page, proxy, "sse")
    await check_text(page, rows, await ask(page))
    assert len(proxy.asked("POST", "/message")) == 2
    assert len(provider.requests) == 1


@WAYS
async def test_interrupted_answer_is_cut_back_to_what_is_stored(
    page: Page, proxy: HostileProxy, start: Callable[..., Service], provider: Provider, rows: Rows, way: str
) -> None:
    first = await asyncio.to_thread(start, shutdown_grace_s=0)
    proxy.target = first.url
    provider.next(ENDLESS)
    await open_over_http(page, proxy, way)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    await asyncio.to_thread(first.stop)
    proxy.target = (await asyncio.to_thread(start)).url
    turn = await asked
    assert (turn["state"], turn["error"]["code"], turn["error"]["retryable"]) == ("error", "interrupted", True)
    assert turn["text"] == stored_answer(rows)
    assert len(await events(page, "ended")) == 1


async def test_refused_message_ends_as_over_the_socket(page: Page, proxy: HostileProxy, provider: Provider) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, "sse")
    pair = new_pair()
    place = {"examId": pair["exam_id"], "participantId": pair["participant_id"]}
    asked = asyncio.create_task(ask(page, **place))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    for fields, code, retryable in (
        ({"turnId": "t2", **place}, "turn_in_progress", True),
        ({"turnId": "t3", "sessionId": "987654"}, "session_not_found", False),
        ({"turnId": "t4", "message": "x" * 33_000}, "message_too_large", False),
        ({"turnId": "..", **place}, "invalid_frame", False),
    ):
        turn = await ask(page, **fields)
        assert (turn["state"], turn["error"]["code"], turn["error"]["retryable"]) == ("error", code, retryable)
        assert (turn["text"], turn["number"]) == ("", None)
    await page.evaluate("client.cancel('t1')")
    assert (await asked)["state"] == "cancelled"
    again = await ask(page, message="Something else", **place)
    assert (again["error"]["code"], again["text"]) == ("turn_id_conflict", "")
    assert (await ask(page, **place))["text"] != "", "and the same message is the same turn"
    assert len(provider.requests) == 1


@pytest.mark.slow
async def test_busy_service_is_asked_again_when_it_says(page: Page, proxy: HostileProxy, provider: Provider) -> None:
    problem = {"title": "Busy", "status": 503, "detail": "Busy.", "code": "overloaded", "retryable": True}
    asked_at: dict[str, list[float]] = {"/message": [], "/events": []}

    def busy_once(request: web.Request) -> web.Response | None:
        for ending, times in asked_at.items():
            if request.path.endswith(ending):
                times.append(asyncio.get_running_loop().time())
                if len(times) == 1:
                    return web.json_response(problem, status=503, headers={"Retry-After": "1"})
        return None

    proxy.intercept = busy_once
    await open_over_http(page, proxy, "sse")
    assert (await ask(page))["state"] == "done"
    for times in asked_at.values():
        assert 1.0 <= times[1] - times[0] < 15.0
    assert await transport(page) == "sse", "and busy is not held back"
    proxy.intercept = lambda request: (
        web.json_response(problem, status=503, headers={"Retry-After": "0"}) if request.path.endswith("e") else None
    )
    turn = await ask(page, turnId="t2")
    assert (turn["error"]["code"], turn["error"]["retryable"]) == ("overloaded", True)


@pytest.mark.slow
async def test_silent_network_is_left_and_found_again(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    provider.next(Script(pieces=("so far ", "and on"), piece_delay_s=3))
    await open_over_http(page, proxy, "sse", heartbeatMs=300, patienceMs=400)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    proxy.hangs = asyncio.Event()
    await until_true(page, "client.state === 'waiting'")
    proxy.hangs.set()
    await check_text(page, rows, await asked)


@pytest.mark.slow
async def test_browser_without_a_network_goes_on_when_it_has_one(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    provider.next(ENDLESS)
    await open_over_http(page, proxy, "sse", **DOUBTS)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    await page.context.set_offline(True)
    await until_true(page, "client.state === 'waiting'")
    assert "offline" in [event["state"] for event in await events(page, "state")]
    await page.context.set_offline(False)
    await more_text(page)
    await page.evaluate("client.cancel('t1')")
    await check_text(page, rows, await asked)


async def test_token_goes_in_the_header_and_nowhere_else(
    page: Page, proxy: HostileProxy, start: Callable[..., Service], rows: Rows
) -> None:
    key = "the-key.of~exam_1"
    proxy.target = (await asyncio.to_thread(start, auth={"mode": "token", "api_key": key})).url
    await open_client(page, proxy.url, token=key)
    await check_text(page, rows, await ask(page))
    assert await transport(page) == "sse"
    assert all(key not in str(request.raw_path) for request in proxy.requests)
    for request in [*proxy.asked("POST", "/message"), *proxy.asked("GET", "/events")]:
        assert request.headers["authorization"] == f"Bearer {key}"
    await open_client(page, proxy.url, token="wrong", begin="http")
    turn = await ask(page)
    assert (turn["error"]["code"], turn["error"]["retryable"]) == ("unauthenticated", False)
    last = (await events(page, "state"))[-1]
    assert (last["state"], last["closeCode"]) == ("refused", 4401)


async def test_token_that_has_expired_is_asked_for_anew(
    page: Page, proxy: HostileProxy, start: Callable[..., Service], rows: Rows
) -> None:
    proxy.target = (await asyncio.to_thread(start, auth={"mode": "token", "api_key": "fresh"})).url
    await open_client(page, proxy.url, begin="http", tokens=["stale", "fresh"])
    await check_text(page, rows, await ask(page))
    assert await page.evaluate("window.asked") == 2
    await open_client(page, proxy.url, begin="http", tokens=["stale", "staler", "stalest"])
    assert (await ask(page))["error"]["code"] == "unauthenticated"
    assert await page.evaluate("window.asked") == 2, "not for ever"


async def test_foreign_page_is_refused(page: Page, proxy: HostileProxy) -> None:
    problem = {"title": "Forbidden", "status": 403, "detail": "No.", "code": "forbidden", "retryable": False}
    proxy.intercept = lambda request: (
        web.json_response(problem, status=403) if request.path.startswith("/api") else None
    )
    await open_over_http(page, proxy, "sse")
    assert (await ask(page))["error"]["code"] == "forbidden"
    last = (await events(page, "state"))[-1]
    assert (last["state"], last["closeCode"]) == ("refused", 4403)


async def test_turn_s_name_may_hold_anything(page: Page, proxy: HostileProxy) -> None:
    await open_over_http(page, proxy, "sse")
    for name in ("a/b events/é?#", 7):
        assert (await ask(page, turnId=name))["state"] == "done"


# ---------------------------------------------------------------- the page


@pytest.mark.slow
async def test_page_reads_well_where_websockets_are_blocked(
    page: Page, proxy: HostileProxy, provider: Provider, rows: Rows
) -> None:
    provider.next(ENDLESS, ENDLESS)
    connection = page.locator("#connection")
    await page.goto(f"{proxy.url}/?exam_id=4&participant_id=2")
    await expect(connection).to_have_text("Connected, restricted network")
    await expect(connection).to_have_attribute(
        "title", "This network blocks WebSockets. Answers come another way, and nothing is lost."
    )
    await write(page, "Go on")
    await expect(answers(page)).to_contain_text("낱말5 ")
    await picture(page, "12-over-http")
    await page.get_by_role("button", name="Stop").click()
    await expect(page.locator(".status")).to_contain_text("Stopped · ")
    assert await shown(page) == stored_answer(rows).strip()
    await write(page, "And now?")
    await expect(answers(page).nth(1)).to_contain_text("낱말5 ")
    tried = proxy.handshakes
    await page.reload()
    await expect(answers(page).nth(1)).to_contain_text("낱말5 ")
    await page.get_by_role("button", name="Stop").click()
    await expect(ended(page)).to_have_count(2)
    assert await shown(page, 1) == stored_answer(rows, 2).strip()
    await expect(connection).to_have_text("Connected, restricted network")
    assert proxy.handshakes == tried, "it is known by now"
    assert len(provider.requests) == 2
    await picture(page, "13-over-http-reloaded")
    proxy.sockets = Sockets.PASS
    await page.evaluate("dispatchEvent(new Event('online'))")
    await expect(connection).to_have_text("Connected")
    await page.reload()
    await expect(connection).to_have_text("Connected")
    assert proxy.handshakes > tried + 1, "and the next page begins with it again"
