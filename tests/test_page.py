"""The browser client, frame by frame, and the chat page in a real browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from tests.support.browser import open_browser
from tests.support.page_server import Chat, Connection, Frame, PageServer, delta, error, open_page_server

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WAIT_S = 30
USAGE = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12, "source": "counted"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with open_browser() as running:
        expect.set_options(timeout=WAIT_S * 1000)
        yield running
        expect.set_options(timeout=5_000)  # Playwright's own, for the other modules


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[PageServer]:
    async with open_page_server() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """An empty tab. Whatever the page's policy had to forbid, and every uncaught error, fails the test."""
    context = await browser.new_context()
    tab = await context.new_page()
    tab.set_default_timeout(WAIT_S * 1000)
    complaints: list[str] = []
    tab.on("pageerror", lambda fault: complaints.append(str(fault)))
    tab.on(
        "console",
        lambda message: complaints.append(message.text) if "Content Security Policy" in message.text else None,
    )
    yield tab
    await context.close()
    assert complaints == []


# ---------------------------------------------------------------- the client

OPEN_CLIENT = """async (options) => {
  const { TurnstoneClient } = await import("/static/turnstone.js");
  const url = `ws://${location.host}/chat`;
  const client = (window.client = new TurnstoneClient({ url, backoffMs: 30, ...options }));
  window.events = [];
  for (const type of ["state", "started", "text", "cut", "ended", "error", "frame"]) {
    client.on(type, (detail) => {
      window.events.push({ kind: type, ...detail, turn: undefined, text: detail.turn?.text });
    });
  }
  client.connect();
}"""
REPORT = """async (turn) => {
  await turn.finished;
  const { state, text, answer, usage, error, number, sessionId, finishReason } = turn;
  return { state, text, seq: answer.seq, usage, error, number, sessionId, finishReason };
}"""


async def open_client(page: Page, server: PageServer, **options: object) -> None:
    await page.goto(f"{server.url}/blank")
    await page.evaluate(OPEN_CLIENT, options)


async def ask(page: Page, **fields: object) -> dict[str, Any]:
    """Send a message and give back what the turn is when it has ended."""
    message = {"message": "Why?", "turnId": "t1", "examId": 1, "participantId": 1, **fields}
    report: dict[str, Any] = await page.evaluate(f"async (m) => ({REPORT})(client.send(m))", message)
    return report


async def events(page: Page, kind: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = await page.evaluate("(kind) => events.filter((e) => e.kind === kind)", kind)
    return seen


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.01)


async def until_true(page: Page, expression: str) -> None:
    """Wait in the page; Playwright's own way needs ``eval``, which the page's policy forbids."""
    async with asyncio.timeout(WAIT_S):
        while not await page.evaluate(expression):
            await asyncio.sleep(0.02)


def started(turn_id: str | int = "t1") -> Frame:
    return {"type": "started", "session_id": "1", "turn_id": turn_id, "turn": 1}


def done(turn_id: str | int = "t1") -> Frame:
    return {"type": "done", "turn_id": turn_id, "turn": 1, "finish_reason": "stop", "usage": USAGE}


def interrupted(last_seq: int) -> Frame:
    return error("t1", "interrupted", retryable=True, last_seq=last_seq, usage=USAGE)


Answer = Callable[[Connection, Frame], Awaitable[None]]


def script(**answers: Answer | list[Frame]) -> Answer:
    """A script from what to answer to each type of frame: frames to send, or something to do."""

    async def run(connection: Connection, frame: Frame) -> None:
        answer = answers.get(frame["type"], [])
        if isinstance(answer, list):
            await connection.send(*answer)
        else:
            await answer(connection, frame)

    return run


PIECES = ["Hel", "lo, ", "한국", "어 👩‍💻", "\n\n", "end."]


@pytest.mark.parametrize("count", range(len(PIECES) + 2))
async def test_connection_lost_after_every_frame(page: Page, server: PageServer, count: int) -> None:
    chat = server.script = Chat(PIECES, pace_s=0.01, drop_after=count)
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["text"]) == ("done", "".join(PIECES))
    assert len(chat.turns) == 1, "the message ran once"
    assert len(server.connections) == 2, "the connection was lost once"
    texts = [event["text"] for event in await events(page, "text")]
    assert "".join(event["added"] for event in await events(page, "text")) == turn["text"], "nothing shown twice"
    assert all(turn["text"].startswith(text) for text in texts)
    assert len(await events(page, "started")) == 1
    assert len(await events(page, "ended")) == 1


async def test_message_that_was_lost_with_its_connection_is_sent_again(page: Page, server: PageServer) -> None:
    chat = Chat(["Yes."])

    async def run(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message" and connection.number == 1:
            connection.drop()
        else:
            await chat(connection, frame)

    server.script = run
    await open_client(page, server)
    turn = await ask(page)
    assert turn["text"] == "Yes."
    first, second = server.frames("message")
    assert first == second
    assert first["turn_id"] == "t1"


async def test_started_turn_says_where_it_belongs_and_ends_with_its_usage(page: Page, server: PageServer) -> None:
    server.script = script(message=[started(7), delta(7, 1, "a"), done(7)])
    await open_client(page, server)
    turn = await ask(page, turnId=7, specId=3)
    assert server.frames("message") == [
        {"type": "message", "message": "Why?", "turn_id": 7, "exam_id": 1, "participant_id": 1, "spec_id": 3}
    ]
    assert (turn["sessionId"], turn["number"], turn["finishReason"]) == ("1", 1, "stop")
    assert turn["usage"] == USAGE


async def test_session_id_and_made_turn_id(page: Page, server: PageServer) -> None:
    async def answer(connection: Connection, frame: Frame) -> None:
        await connection.send(started(frame["turn_id"]), done(frame["turn_id"]))

    server.script = script(message=answer)
    await open_client(page, server)
    report = f"async () => ({REPORT})(client.send({{message: 'Hi', sessionId: '1'}}))"
    assert (await page.evaluate(report))["state"] == "done"
    (frame,) = server.frames("message")
    assert frame["session_id"] == "1"
    assert "exam_id" not in frame
    assert re.fullmatch(r"[0-9a-f-]{36}", frame["turn_id"])


async def test_joined_frame_that_begins_at_a_known_place_is_split(page: Page, server: PageServer) -> None:
    held = [delta("t1", number, text) for number, text in enumerate("abc", 1)]
    server.script = script(message=[started(), *held, delta("t1", 2, "b", "c", "d", "e"), held[0], done()])
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["text"], turn["seq"]) == ("abcde", 5)
    assert server.frames("resume") == []


async def test_joined_frame_that_begins_inside_another_is_asked_for_again(page: Page, server: PageServer) -> None:
    server.script = script(
        message=[started(), delta("t1", 1, "a", "b", "c"), delta("t1", 3, "c", "d", "e")],
        resume=[delta("t1", 4, "d", "e"), done()],
    )
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["text"], turn["seq"]) == ("abcde", 5)
    assert [frame["after_seq"] for frame in server.frames("resume")] == [3]


async def test_missing_delta_is_asked_for_and_an_end_waits_for_it(page: Page, server: PageServer) -> None:
    server.script = script(
        message=[started(), delta("t1", 1, "a"), delta("t1", 3, "c"), delta("t1", 4, "d"), done()],
        resume=[delta("t1", 2, "b", "c", "d"), done()],
    )
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["text"]) == ("done", "abcd")
    assert [(frame["session_id"], frame["after_seq"]) for frame in server.frames("resume")] == [("1", 1)]
    assert len(await events(page, "ended")) == 1


async def test_end_is_not_lost_when_the_replay_brings_only_text(page: Page, server: PageServer) -> None:
    server.script = script(
        message=[started(), delta("t1", 2, "b"), done()],
        resume=[delta("t1", 1, "a", "b")],
    )
    await open_client(page, server)
    assert (await ask(page))["text"] == "ab"


async def test_interrupted_cuts_back_to_what_was_kept(page: Page, server: PageServer) -> None:
    deltas = [delta("t1", number, text) for number, text in enumerate("abc", 1)]
    server.script = script(message=[started(), *deltas, interrupted(2)])
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["text"], turn["usage"]) == ("error", "ab", USAGE)
    assert turn["error"]["code"] == "interrupted"
    assert turn["error"]["retryable"] is True
    assert [event["text"] for event in await events(page, "cut")] == ["ab"]


async def test_interrupted_inside_a_joined_frame_is_read_again(page: Page, server: PageServer) -> None:
    server.script = script(
        message=[started(), delta("t1", 1, "a"), delta("t1", 2, "b", "c", "d"), interrupted(3)],
        resume=[delta("t1", 2, "b", "c"), interrupted(3)],
    )
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["text"], turn["seq"]) == ("error", "abc", 3)
    assert [frame["after_seq"] for frame in server.frames("resume")] == [1]


async def test_interrupted_after_more_than_was_held_reads_the_rest(page: Page, server: PageServer) -> None:
    server.script = script(
        message=[started(), delta("t1", 1, "a"), interrupted(2)],
        resume=[delta("t1", 2, "b"), interrupted(2)],
    )
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["text"]) == ("error", "ab")


async def test_unknown_frames_are_passed_on_and_do_no_harm(page: Page, server: PageServer) -> None:
    clock = {"type": "clock", "remaining_s": 60}
    odd = {"type": "thinking", "turn_id": "t1", "seq": 99}
    stray = delta("of another tab", 1, "x")
    server.script = script(message=[clock, started(), odd, stray, delta("t1", 1, "a"), done(), done()])
    await open_client(page, server)
    assert (await ask(page))["text"] == "a"
    assert "clock" in [event["type"] for event in await events(page, "frame")]


async def test_error_before_the_start_ends_the_turn(page: Page, server: PageServer) -> None:
    server.script = script(message=[error("t1", "turn_in_progress", retryable=True)])
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["usage"]) == ("error", None)
    assert turn["error"] == {
        "code": "turn_in_progress",
        "message": "It failed: turn_in_progress.",
        "retryable": True,
    }


async def test_error_without_a_turn_is_an_event(page: Page, server: PageServer) -> None:
    server.script = script(message=[error(None, "invalid_frame"), started(), done()])
    await open_client(page, server)
    assert (await ask(page))["state"] == "done"
    assert [event["code"] for event in await events(page, "error")] == ["invalid_frame"]


async def test_refused_resume_is_tried_again(page: Page, server: PageServer) -> None:
    async def refuse_once(connection: Connection, _: Frame) -> None:
        if len(server.frames("resume")) == 1:
            await connection.send(error("t1", "overloaded", retryable=True))
        else:
            await connection.send(delta("t1", 1, "a"), done())

    server.script = script(resume=refuse_once)
    await open_client(page, server)
    turn = await page.evaluate(f"async () => ({REPORT})(client.resume({{sessionId: '1', turnId: 't1'}}))")
    assert (turn["state"], turn["text"]) == ("done", "a")


async def test_answer_that_never_becomes_whole_fails(page: Page, server: PageServer) -> None:
    await page.clock.install()
    server.script = script(message=[started(), delta("t1", 5, "x"), done()], resume=[done()])
    await open_client(page, server)
    asked = asyncio.create_task(ask(page))
    for count in range(1, 5):
        await until(lambda count=count: len(server.frames("resume")) == count)  # type: ignore[misc]
        await page.clock.run_for(3_100)
    turn = await asked
    assert (turn["state"], turn["error"]["code"]) == ("error", "internal")
    assert len(server.frames("resume")) == 4


@pytest.mark.parametrize("code", [1001, 1011, 1012, 4408, 4429, 4503])
async def test_closed_connection_is_opened_again(page: Page, server: PageServer, code: int) -> None:
    async def run(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message":
            await connection.send(started(), delta("t1", 1, "a"))
            await connection.close(code)
        elif frame["type"] == "resume":
            await connection.send(delta("t1", 2, "b"), done())

    server.script = run
    await open_client(page, server)
    assert (await ask(page))["text"] == "ab"
    resume = {"type": "resume", "session_id": "1", "turn_id": "t1", "after_seq": 1}
    assert server.frames("resume") == [resume]


@pytest.mark.parametrize(("code", "word"), [(4401, "unauthenticated"), (4403, "forbidden")])
async def test_refused_connection_is_not_tried_again(page: Page, server: PageServer, code: int, word: str) -> None:
    async def refuse(connection: Connection, _: Frame) -> None:
        await connection.close(code)

    server.script = script(message=refuse)
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["state"], turn["error"]["code"], turn["error"]["retryable"]) == ("error", word, False)
    await asyncio.sleep(0.3)
    assert len(server.connections) == 1
    assert await page.evaluate("client.state") == "refused"


async def test_too_large_message_is_not_sent_for_ever(page: Page, server: PageServer) -> None:
    async def refuse(connection: Connection, _: Frame) -> None:
        await connection.close(1009)

    server.script = script(message=refuse)
    await open_client(page, server)
    assert (await ask(page))["error"]["code"] == "message_too_large"
    await until(lambda: len(server.connections) == 2)
    assert len(server.frames("message")) == 1


async def test_message_that_kills_every_connection_is_given_up(page: Page, server: PageServer) -> None:
    async def drop(connection: Connection, _: Frame) -> None:
        connection.drop()

    server.script = script(message=drop, ping=[{"type": "pong"}])
    await open_client(page, server)
    turn = await ask(page)
    assert (turn["error"]["code"], turn["error"]["retryable"]) == ("internal", True)
    assert len(server.frames("message")) == 4


async def test_waits_grow_while_a_server_only_closes(page: Page, server: PageServer) -> None:
    async def close(connection: Connection, _: Frame) -> None:
        await connection.send(error(None, "overloaded", retryable=True))
        await connection.close(4503)

    server.script = close
    await open_client(page, server, backoffMs=10, backoffMaxMs=400)
    await until(lambda: len(server.connected_at) == 8)
    times = server.connected_at
    waits = [later - earlier for earlier, later in pairwise(times)]
    # the longest wait of the n-th try is 40 ms times 2^n, at most 400; jitter takes up to half of it
    assert waits[-1] >= 0.2
    assert waits[2] >= 0.08


async def test_turn_the_server_never_got_is_sent_again(page: Page, server: PageServer) -> None:
    server.script = script(resume=[error("t1", "turn_not_found")], message=[started(), delta("t1", 1, "a"), done()])
    await open_client(page, server)
    turn = await page.evaluate(
        f"async () => ({REPORT})(client.resume({{sessionId: '1', turnId: 't1', message: 'Why?'}}))"
    )
    assert (turn["state"], turn["text"]) == ("done", "a")
    message = {"type": "message", "message": "Why?", "turn_id": "t1", "session_id": "1"}
    assert server.frames("message") == [message]


async def test_unknown_turn_without_its_message_fails(page: Page, server: PageServer) -> None:
    server.script = script(resume=[error("t1", "turn_not_found")])
    await open_client(page, server)
    turn = await page.evaluate(f"async () => ({REPORT})(client.resume({{sessionId: '1', turnId: 't1'}}))")
    assert turn["error"]["code"] == "turn_not_found"


async def test_silent_connection_is_replaced(page: Page, server: PageServer) -> None:
    async def run(connection: Connection, frame: Frame) -> None:
        if connection.number > 1 and frame["type"] == "resume":
            await connection.send(delta("t1", 2, "b"), done())
        elif connection.number > 1 and frame["type"] == "ping":
            await connection.send({"type": "pong"})
        elif connection.number > 1 and frame["type"] == "message":  # the first one was silent even before it was heard
            await connection.send(started(), delta("t1", 1, "a"), delta("t1", 2, "b"), done())
        elif frame["type"] == "message":
            await connection.send(started(), delta("t1", 1, "a"))  # and never a word again

    server.script = run
    await open_client(page, server, heartbeatMs=500, patienceMs=1000)
    assert (await ask(page))["text"] == "ab"
    assert len(server.connections) >= 2


async def test_answered_heartbeat_keeps_the_connection(page: Page, server: PageServer) -> None:
    await open_client(page, server, heartbeatMs=50, patienceMs=10_000)
    await until_true(page, "events.filter((e) => e.kind === 'frame').length >= 5")  # pongs
    assert len(server.connections) == 1


async def states(page: Page) -> list[str]:
    return [event["state"] for event in await events(page, "state")]


async def test_connection_outlives_a_network_it_does_not_need(page: Page, server: PageServer) -> None:
    await open_client(page, server)
    await until_true(page, "client.state === 'open'")
    await page.evaluate("dispatchEvent(new Event('offline'))")
    assert (await ask(page))["state"] == "done", "what is sent meanwhile is sent"
    assert await states(page) == ["connecting", "open", "offline", "open"]
    assert len(server.connections) == 1


async def test_connection_lost_with_its_network_is_found_soon(page: Page, server: PageServer) -> None:
    await open_client(page, server, doubtMs=1000)
    await until_true(page, "client.state === 'open'")
    await page.context.set_offline(True)
    await until_true(page, "events.some((event) => event.state === 'waiting')")
    await page.context.set_offline(False)
    await until_true(page, "client.state === 'open'")
    seen = await states(page)
    assert seen[:4] == ["connecting", "open", "offline", "waiting"]
    assert len(server.connections) == 2


async def test_connection_that_died_in_a_change_of_networks_is_replaced(page: Page, server: PageServer) -> None:
    async def answer_once(connection: Connection, _: Frame) -> None:
        if connection.number > 1 or not await page.evaluate("window.moved"):
            await connection.send({"type": "pong"})

    server.script = script(ping=answer_once)
    await open_client(page, server, doubtMs=1000)
    await until_true(page, "events.some((event) => event.type === 'pong' || event.kind === 'frame')")
    await page.evaluate("window.moved = true; dispatchEvent(new Event('online'))")
    await until(lambda: len(server.connections) >= 2)  # the heartbeat would find out after 30 s


async def test_cancel_is_repeated_after_a_lost_connection(page: Page, server: PageServer) -> None:
    async def run(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message":
            await connection.send(started(), delta("t1", 1, "a"))
        elif frame["type"] == "cancel" and connection.number == 1:
            connection.drop()
        elif frame["type"] == "cancel":
            await connection.send({"type": "cancelled", "turn_id": "t1", "turn": 1, "usage": USAGE})

    server.script = run
    await open_client(page, server)
    asked = asyncio.create_task(ask(page))
    await until_true(page, "events.some((e) => e.kind === 'text')")
    assert await page.evaluate("client.cancel('t1')") is True
    turn = await asked
    assert (turn["state"], turn["text"]) == ("cancelled", "a")
    assert [frame["type"] for frame in server.received] == ["message", "cancel", "resume", "cancel"]
    assert server.frames("cancel") == [{"type": "cancel", "turn_id": "t1", "session_id": "1"}] * 2
    assert await page.evaluate("client.cancel('t1')") is False


async def test_message_cancelled_before_it_was_sent_never_is(page: Page, server: PageServer) -> None:
    await page.goto(f"{server.url}/blank")
    await page.evaluate(OPEN_CLIENT, {})
    sent = "client.send({message: 'x', turnId: 't1', examId: 1, participantId: 1})"
    begun_anew = "client.close(); client.connect()"
    # no connection can open while this runs
    in_one_go = f"async () => {{ {begun_anew}; const turn = {sent}; client.cancel('t1'); return ({REPORT})(turn); }}"
    turn = await page.evaluate(in_one_go)
    assert turn["state"] == "cancelled"
    await until_true(page, "client.state === 'open'")
    assert server.frames("message") == []


async def test_same_turn_id_is_the_same_turn(page: Page, server: PageServer) -> None:
    server.script = script(message=[started()])
    await open_client(page, server)
    again = "client.send({message: 'x', turnId: 7, sessionId: '1'})"
    assert await page.evaluate(f"{again} === client.send({{message: 'x', turnId: '7', sessionId: '1'}})")
    conflict = "() => { try { client.send({message: 'y', turnId: 7, sessionId: '1'}) } catch (e) { return e.message } }"
    assert await page.evaluate(conflict) == "turn 7 is still running"


async def test_token_goes_with_the_subprotocols(page: Page, server: PageServer) -> None:
    await open_client(page, server, token="abc.DEF-123_x")
    assert (await ask(page))["state"] == "done"
    assert server.connections[0].protocols == "turnstone.v1, bearer.abc.DEF-123_x"
    assert server.frames("auth") == []


async def test_token_with_other_characters_goes_into_a_first_frame(page: Page, server: PageServer) -> None:
    await open_client(page, server, token="a/b=")
    assert (await ask(page))["state"] == "done"
    assert server.connections[0].protocols == ""
    assert server.received[0] == {"type": "auth", "token": "a/b="}


async def test_closed_client_stays_closed(page: Page, server: PageServer) -> None:
    await open_client(page, server)
    await until_true(page, "client.state === 'open'")
    await page.evaluate("client.close()")
    await asyncio.sleep(0.2)
    assert len(server.connections) == 1
    assert await page.evaluate("client.state") == "closed"


# ---------------------------------------------------------------- the page

CODE_ANSWER = [
    "Here **it** is:\n\n",
    "```python\n",
    "print('한국어')\n",
    "```\n",
    "\n- one\n- two\n",
]


async def open_page(page: Page, server: PageServer, query: str = "") -> None:
    await page.goto(f"{server.url}/{query}")
    await expect(page.locator("#connection")).to_have_text("Connected")


async def write(page: Page, message: str = "Why?") -> None:
    await page.get_by_label("Message", exact=True).fill(message)
    await page.keyboard.press("Enter")


def ended(page: Page) -> Any:
    return page.locator("li[data-mood=ended]")


async def test_streamed_answer_becomes_html_with_its_usage(page: Page, server: PageServer) -> None:
    server.script = Chat(CODE_ANSWER, pace_s=0.02)
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".question")).to_have_text("Why?")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer strong")).to_have_text("it")
    await expect(page.locator(".answer pre code.language-python")).to_have_text("print('한국어')\n")
    await expect(page.locator(".answer li")).to_have_text(["one", "two"])
    await expect(page.locator(".status")).to_have_text("15 tokens (10 in, 5 out)")
    await expect(page.locator("#total")).to_have_text("15 tokens in this session")
    await expect(page.locator(".answer .tail")).to_have_text("")
    assert server.frames("message")[0] | {"turn_id": ""} == {
        "type": "message", "message": "Why?", "turn_id": "", "exam_id": 1, "participant_id": 1,
    }  # fmt: skip


async def test_no_token_waits_for_a_rendering(page: Page, server: PageServer) -> None:
    server.script = Chat(["**bold** ", "and ", "plain"], pace_s=0.05)
    server.render_delay_s = 6.0
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".answer")).to_have_text("**bold** and plain")
    await expect(page.locator(".answer")).to_have_text("bold and plain")


async def test_growing_answer_reads_right_at_every_moment(page: Page, server: PageServer) -> None:
    text = "One two.\n\nThree four:\n\n```python\nif x:\n    y = 1\n\nz\n```\n\nFive.\n\n- six\n- seven"
    pieces = re.findall(r"\S+\s*", text)
    server.script = Chat(pieces, pace_s=0.06)
    await open_page(page, server)
    await page.evaluate(
        """() => {
          window.seen = new Set();
          const note = () => seen.add(document.querySelector(".answer")?.innerText ?? "");
          const all = { childList: true, subtree: true, characterData: true };
          new MutationObserver(note).observe(document.getElementById("turns"), all);
        }"""
    )
    await write(page)
    await expect(page.locator(".answer li")).to_have_text(["six", "seven"])

    def words(shown: str) -> list[str]:
        return [word for word in shown.split() if word not in ("```", "```python", "python", "Copy", "-")]

    seen: list[str] = await page.evaluate("[...seen]")
    assert len(seen) >= len(pieces) - 4
    for shown in seen:
        # nothing missing, doubled, out of order or glued together
        assert words(shown) == words(text)[: len(words(shown))]


@pytest.mark.parametrize(("fence", "in_code"), [("```\n\n", False), ("", True)])
async def test_plain_text_stands_where_it_will(page: Page, server: PageServer, fence: str, in_code: bool) -> None:
    async def begin(connection: Connection, frame: Frame) -> None:
        turn_id = frame["turn_id"]
        await connection.send(started(turn_id), delta(turn_id, 1, f"```python\nx = 1\n{fence}"))

    server.script = script(message=begin)
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".answer pre code")).to_have_count(1)
    server.render_delay_s = 60
    await server.connections[0].send(delta(server.frames("message")[0]["turn_id"], 2, "more"))
    await expect(page.locator(".answer .tail")).to_contain_text("more")
    assert await page.locator(".answer pre .tail").count() == int(in_code)


async def test_failed_rendering_leaves_the_text(page: Page, server: PageServer) -> None:
    server.script = Chat(["**bold** ", "<b>text</b>"])
    server.render_status = 500
    await open_page(page, server)
    await write(page)
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer")).to_have_text("**bold** <b>text</b>")


@pytest.mark.parametrize("way", ["button", "key"])
async def test_stop(page: Page, server: PageServer, way: str) -> None:
    chat = server.script = Chat(["word "] * 500, pace_s=0.02)
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".answer")).to_contain_text("word word")
    if way == "button":
        await page.get_by_role("button", name="Stop").click()
    else:
        await page.keyboard.press("Escape")
    await expect(page.locator(".status")).to_contain_text("Stopped · ")
    await expect(page.get_by_role("button", name="Send")).to_be_visible()
    await expect(page.get_by_label("Message", exact=True)).to_be_focused()
    shown = await page.locator(".answer").inner_text()
    assert shown.strip() == chat.turns[0].text.strip()


@pytest.mark.parametrize("count", range(len(CODE_ANSWER) + 2))
async def test_page_survives_a_lost_connection(page: Page, server: PageServer, count: int) -> None:
    chat = server.script = Chat(CODE_ANSWER, pace_s=0.02, drop_after=count)
    await open_page(page, server)
    await write(page)
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer li")).to_have_text(["one", "two"])
    await expect(page.locator(".answer pre")).to_have_count(1)
    await expect(page.locator("#connection")).to_have_text("Connected")
    assert len(chat.turns) == 1


async def test_lost_connection_is_said(page: Page, server: PageServer) -> None:
    await open_page(page, server)
    server.connections[0].drop()
    await expect(page.get_by_role("status").first).to_have_text("Reconnecting…")
    await expect(page.locator("#connection")).to_have_text("Connected")


async def test_offline_is_said_and_the_running_answer_waits(page: Page, server: PageServer) -> None:
    server.script = Chat(["word "] * 200, pace_s=0.03)  # it runs for longer than a browser may take to notice
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".status")).to_have_text("Writing…")
    await page.context.set_offline(True)
    await expect(page.locator("#connection")).to_have_text(re.compile("^Offline(, still trying)?$"))
    await expect(page.locator("li[data-mood=paused] .status")).to_have_text("Waiting for the connection")
    await page.context.set_offline(False)
    await expect(page.locator("#connection")).to_have_text("Connected")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer")).to_have_text("word " * 200)


async def test_answer_cannot_run_anything(page: Page, server: PageServer) -> None:
    attack = (
        "<script>window.hacked = 1</script>\n\n<img src=x onerror='window.hacked = 2'>\n\n"
        "![x](/static/favicon.svg)\n\n[click](javascript:window.hacked=3) <svg onload='window.hacked = 4'>\n\n"
        "```html\n<script>window.hacked = 5</script>\n```\n\nend"
    )
    server.script = Chat(re.findall(r"\s*\S+\s*", attack), pace_s=0.01)
    await open_page(page, server)
    await write(page, "<img src=x onerror='window.hacked = 6'>")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer pre code")).to_have_text("<script>window.hacked = 5</script>\n")
    await expect(page.locator(".answer .tail")).to_have_text("")
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("#log :is(script, img, svg, iframe, a)").count() == 0
    await expect(page.locator(".answer")).to_contain_text("<script>window.hacked = 1</script>")


async def test_policy_stops_what_nobody_cleaned(browser: Browser, server: PageServer) -> None:
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(f"{server.url}/")
    async with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror='window.hacked = 1'>`)"
        )
    await asyncio.sleep(0.1)
    assert await page.evaluate("window.hacked") is None
    await context.close()


async def test_reload_in_mid_stream(page: Page, server: PageServer) -> None:
    first = server.script = Chat(["word "] * 40, pace_s=0.03)
    server.page_size = 2
    await open_page(page, server, "?exam_id=1&participant_id=1")
    await write(page, "First?")
    await expect(ended(page)).to_have_count(1)
    first.pace_s = 0.5  # it is answered still when the page has been loaded again
    await write(page, "Second?")
    await expect(page.locator(".answer").nth(1)).to_contain_text("word word")
    await page.reload()
    await expect(page.locator(".question")).to_have_text(["First?", "Second?"])
    await expect(page.locator(".answer").first).to_have_text("word " * 40)
    await expect(page.get_by_role("button", name="Stop")).to_be_visible()
    first.pace_s = 0.0
    await expect(ended(page)).to_have_count(2)
    await expect(page.locator(".answer").nth(1)).to_have_text("word " * 40)
    await expect(page.locator("#total")).to_have_text("100 tokens in this session")
    assert [turn.message for turn in first.turns] == ["First?", "Second?"]
    assert server.frames("resume")[0]["after_seq"] == 0
    told = await page.locator(".status").all_text_contents()
    assert all("tokens (" in words for words in told)
    await page.reload()
    await expect(page.locator(".status")).to_have_text(told)
    assert len(server.frames("resume")) == 1, "what has ended is not asked for again"


async def test_reload_before_the_server_had_the_message(page: Page, server: PageServer) -> None:
    answering = server.script
    server.script = script()
    await open_page(page, server)
    await write(page, "Anybody there?")
    await until(lambda: len(server.frames("message")) == 1)
    server.script = answering
    await page.reload()
    await expect(page.locator(".answer")).to_have_text("Hello, world.")
    await expect(page.locator(".question")).to_have_text(["Anybody there?"])
    first, second = server.frames("message")
    assert first == second


async def test_chosen_exam_stays_in_the_address(page: Page, server: PageServer) -> None:
    await open_page(page, server)
    await page.get_by_label("Exam", exact=True).fill("7")
    await page.get_by_label("Participant", exact=True).fill("12")
    await page.get_by_role("button", name="Open").click()
    await page.wait_for_url("**/?exam_id=7&participant_id=12")
    await expect(page.get_by_label("Exam", exact=True)).to_have_value("7")
    await write(page)
    await expect(ended(page)).to_have_count(1)
    (frame,) = server.frames("message")
    assert (frame["exam_id"], frame["participant_id"]) == (7, 12)


async def test_token_is_taken_out_of_the_address(page: Page, server: PageServer) -> None:
    await open_page(page, server, "?exam_id=1&participant_id=1#token=abc.def")
    assert page.url.endswith("/?exam_id=1&participant_id=1")
    async with page.expect_request("**/api/render") as request:
        await write(page)
    assert (await (await request.value).all_headers())["authorization"] == "Bearer abc.def"
    assert server.connections[0].protocols == "turnstone.v1, bearer.abc.def"


async def test_error_is_said_in_words_and_can_be_tried_again(page: Page, server: PageServer) -> None:
    answering = server.script

    async def fail(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message":
            await connection.send(error(frame["turn_id"], "overloaded", retryable=True))

    server.script = fail
    await open_page(page, server)
    await write(page)
    await expect(page.locator("li[data-mood=failed] .status")).to_contain_text("It failed: overloaded.")
    server.script = answering
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator(".answer")).to_have_text(["Hello, world."])
    first, second = server.frames("message")
    assert first["message"] == second["message"]
    assert first["turn_id"] != second["turn_id"]


async def test_error_that_will_not_pass_gives_the_message_back(page: Page, server: PageServer) -> None:
    async def fail(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message":
            await connection.send(error(frame["turn_id"], "message_too_large"))

    server.script = fail
    await open_page(page, server)
    await write(page, "a long text")
    remark = page.locator("#remark")
    await expect(remark).to_have_text("It failed: message_too_large.")
    await expect(page.locator("#announcer")).to_have_text("It failed: message_too_large.")
    await expect(page.locator("#turns > li")).to_have_count(0)
    await expect(page.locator("#welcome")).to_be_visible()
    box = page.get_by_label("Message", exact=True)
    await expect(box).to_have_value("a long text")
    await expect(box).to_have_attribute("aria-invalid", "true")
    await expect(box).to_have_accessible_description(re.compile("^It failed: message_too_large"))
    await box.press("Backspace")
    await expect(remark).to_be_hidden()
    await expect(box).not_to_have_attribute("aria-invalid", "true")


async def test_second_message_is_held_back_while_an_answer_runs(page: Page, server: PageServer) -> None:
    server.script = Chat(["word "] * 500, pace_s=0.02)
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".answer")).to_contain_text("word word")
    await write(page, "And then?")
    await expect(page.locator("#remark")).to_have_text("An answer is still being written. Stop it first, or wait.")
    await page.keyboard.press("Escape")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator("#remark")).to_be_hidden()
    await expect(page.get_by_label("Message", exact=True)).to_have_value("And then?")
    assert len(server.frames("message")) == 1


async def test_conversation_that_cannot_be_loaded_is_said(page: Page, server: PageServer) -> None:
    await page.route("**/api/sessions?*", lambda route: route.fulfill(status=503))
    await open_page(page, server)
    await expect(page.locator(".notice")).to_contain_text("The earlier conversation could not be loaded.")
    await page.unroute("**/api/sessions?*")
    await page.get_by_role("button", name="Try again").click()
    await expect(page.locator("#welcome")).to_be_visible()
    await expect(page.locator(".notice")).to_have_count(0)


async def test_enter_that_ends_a_composition_does_not_send(page: Page, server: PageServer) -> None:
    await open_page(page, server)
    box = page.get_by_label("Message", exact=True)
    await box.focus()
    devtools = await page.context.new_cdp_session(page)
    await page.evaluate(
        """() => {
          window.composed = [];
          const note = (event) => composed.push([event.key, event.isComposing, event.keyCode]);
          document.getElementById("message").addEventListener("keydown", note, true);
        }"""
    )
    await devtools.send("Input.imeSetComposition", {"text": "한국", "selectionStart": 2, "selectionEnd": 2})
    await page.keyboard.press("Enter")
    # Safari's order: the composition has ended by then, and only the key code tells
    await devtools.send("Input.insertText", {"text": "한국어"})
    enter = {"type": "rawKeyDown", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 229}
    await devtools.send("Input.dispatchKeyEvent", enter)
    assert await page.evaluate("composed") == [["Enter", True, 13], ["Enter", False, 229]]
    await asyncio.sleep(0.1)
    assert server.frames("message") == []
    await page.keyboard.press("Enter")
    await expect(page.locator(".question")).to_have_text("한국어")
    assert server.frames("message")[0]["message"] == "한국어"


@pytest.mark.parametrize("given", ["exam_id=abc", "exam_id=-3", "exam_id=1&participant_id="])
async def test_address_that_names_no_exam_opens_none(page: Page, server: PageServer, given: str) -> None:
    await page.goto(f"{server.url}/?{given}")
    wrong = given.rsplit("&", maxsplit=1)[-1]
    await expect(page.locator(".notice")).to_contain_text(f"The address says {wrong}, ")
    await expect(page.get_by_label("Message", exact=True)).to_be_disabled()
    assert server.connections == []
    await page.keyboard.type("7")  # into the field that was wrong
    await page.keyboard.press("Enter")
    await expect(page.locator("#connection")).to_have_text("Connected")
    await expect(page.locator(".notice")).to_have_count(0)
    assert "=7" in page.url


async def test_token_added_to_an_open_page(page: Page, server: PageServer) -> None:
    await open_page(page, server, "?exam_id=1&participant_id=1")
    await page.evaluate("location.hash = '#token=abc.def'")
    await until(lambda: len(server.connections) == 2)
    await expect(page.locator("#connection")).to_have_text("Connected")
    assert page.url.endswith("/?exam_id=1&participant_id=1")
    assert server.connections[1].protocols == "turnstone.v1, bearer.abc.def"


async def test_keyboard_alone(page: Page, server: PageServer) -> None:
    server.script = Chat(CODE_ANSWER)
    await open_page(page, server)
    box = page.get_by_label("Message", exact=True)
    await expect(box).to_be_focused()
    await page.keyboard.type("one")
    await page.keyboard.press("Shift+Enter")
    await page.keyboard.type("two")
    await expect(box).to_have_value("one\ntwo")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")  # an empty message is none
    await expect(page.locator(".question")).to_have_text(["one\ntwo"])
    await expect(page.locator(".answer li")).to_have_count(2)
    assert len(server.frames("message")) == 1
    reached = set()
    for _ in range(12):
        await page.keyboard.press("Shift+Tab")
        reached.add(await page.evaluate("document.activeElement.id || document.activeElement.className"))
        outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or await page.evaluate("document.activeElement === document.body")
    assert {"log", "copy"} <= reached


async def test_code_is_copied(page: Page, server: PageServer) -> None:
    server.script = Chat(CODE_ANSWER)
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".answer li")).to_have_count(2)
    await page.get_by_role("button", name="Copy python code").click()
    await expect(page.get_by_role("button", name="Copied python code")).to_have_text("Copied")
    await expect(page.locator("#announcer")).to_have_text("Copied.")
    assert await page.evaluate("navigator.clipboard.readText()") == "print('한국어')\n"


async def test_selection_and_focus_outlive_a_growing_answer(page: Page, server: PageServer) -> None:
    server.script = Chat(["```python\nx = 1\n```\n\nSome text.\n\n", *["more "] * 60], pace_s=0.03)
    await open_page(page, server)
    await write(page)
    await page.get_by_role("button", name="Copy python code").focus()
    await page.evaluate("getSelection().selectAllChildren(document.querySelector('.answer > p'))")
    selected = await page.evaluate("getSelection().toString().trim()")
    assert selected.startswith("Some text.")
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".copy")).to_be_focused()
    assert (await page.evaluate("getSelection().toString().trim()")).startswith("Some text.")


async def test_growing_code_keeps_focus_and_scroll_position(page: Page, server: PageServer) -> None:
    chat = server.script = Chat([f"```py\nx = '{'long ' * 60}'\n", *["y = 1\n"] * 60], pace_s=0.5)
    await open_page(page, server)
    await write(page)
    await page.get_by_role("button", name="Copy py code").focus()
    await page.evaluate("document.querySelector('.answer pre').scrollLeft = 150")
    before = await page.evaluate("(window.block = document.querySelector('.answer pre')).textContent.length")
    chat.pace_s = 0.02
    await expect(ended(page)).to_have_count(1)
    await expect(page.locator(".answer .tail")).to_have_text("")
    assert await page.evaluate("document.querySelector('.answer pre').textContent.length") > before
    await expect(page.locator(".copy")).to_be_focused()
    assert await page.evaluate("document.querySelector('.answer pre').scrollLeft") == 150
    assert await page.evaluate("document.querySelector('.answer pre') === block")


async def test_reader_further_up_is_left_in_peace(page: Page, server: PageServer) -> None:
    server.script = Chat(["line\n\n"] * 120, pace_s=0.02)
    await page.set_viewport_size({"width": 800, "height": 500})
    await open_page(page, server)
    await write(page)
    at_end = (
        "() => { const l = document.getElementById('log'); return l.scrollHeight - l.scrollTop - l.clientHeight < 60 }"
    )
    await until_true(page, "document.getElementById('log').scrollTop > 300")
    assert await page.evaluate(at_end)
    await page.evaluate("document.getElementById('log').scrollTop = 100")
    await expect(page.get_by_role("button", name="Newest")).to_be_visible()
    await asyncio.sleep(0.5)
    assert await page.evaluate("document.getElementById('log').scrollTop") == 100
    await page.get_by_role("button", name="Newest").click()
    await until_true(page, at_end)
    await expect(ended(page)).to_have_count(1)
    await until_true(page, at_end)


LISTEN = """() => {
  window.heard = [];
  const announcer = document.getElementById("announcer");
  new MutationObserver(() => heard.push(announcer.textContent)).observe(announcer, { childList: true });
}"""


async def test_screen_reader_hears_an_answer_once_and_without_signs(page: Page, server: PageServer) -> None:
    text = (
        "# So\n\nIt **is** `x`:\n\n```java\nint a;\nint b;\n```\n\n- [x] one\n\n```\ncode\n```\n\n|a|b|\n|-|-|\n|1|2|"
    )
    server.script = Chat(re.findall(r"\s*\S+\s*", text), pace_s=0.02)
    await open_page(page, server)
    log = page.get_by_role("log", name="Conversation")
    await expect(log).to_have_attribute("aria-live", "off")
    await page.evaluate(LISTEN)
    await write(page)
    await until_true(page, "heard.length === 2")
    said = "Answer: So It is x: Code block, java, 2 lines. ☑ one Code block, 1 line. a b 1 2"
    assert await page.evaluate("heard") == ["Waiting for the answer.", said]
    assert await page.locator("#announcer").get_attribute("aria-live") == "polite"
    await expect(page.get_by_role("heading", level=1)).to_have_count(1)
    await expect(page.get_by_role("heading", level=3, name="So")).to_be_visible()
    for name in ("java code", "code", "Table"):
        await expect(page.get_by_role("region", name=name, exact=True)).to_have_attribute("tabindex", "0")


BROKEN = {"usage": USAGE, "last_seq": 1, "turn": 1}
ENDINGS: dict[str, tuple[Frame, str]] = {
    "stopped": ({"type": "cancelled", "turn": 1, "usage": USAGE}, "Stopped. The answer so far: some"),
    "broken off": (
        error(None, "llm_timeout", **BROKEN),
        "The answer broke off. It failed: llm_timeout. It says so far: some",
    ),
    "too long": (
        {"type": "done", "turn": 1, "finish_reason": "length", "usage": USAGE},
        "Cut off at the longest length allowed. Answer: some",
    ),
}


@pytest.mark.parametrize(("end", "said"), ENDINGS.values(), ids=ENDINGS.keys())
async def test_screen_reader_hears_how_an_answer_ended(page: Page, server: PageServer, end: Frame, said: str) -> None:
    async def run(connection: Connection, frame: Frame) -> None:
        if frame["type"] == "message":
            turn_id = frame["turn_id"]
            await connection.send(started(turn_id), delta(turn_id, 1, "some"), {**end, "turn_id": turn_id})

    server.script = run
    await open_page(page, server)
    await write(page)
    await expect(page.locator("#announcer")).to_have_text(said)


async def test_everything_has_a_name_and_a_role(page: Page, server: PageServer) -> None:
    server.script = Chat(CODE_ANSWER)
    server.core_events = [core_event(1, "usage")]
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".copy")).to_be_visible()
    nameless = await page.evaluate(
        """() => [...document.querySelectorAll("button, input, textarea, form, aside, [role]")]
          .filter((e) => !e.hidden && e.role !== "status")
          .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.ariaLabelledByElements?.length))
          .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    assert await page.locator("html").get_attribute("lang") == "en"
    assert await page.title() == "Turnstone"
    for role, count in {"main": 1, "banner": 1, "complementary": 1, "log": 1, "status": 1, "heading": 2}.items():
        await expect(page.get_by_role(role)).to_have_count(count)  # type: ignore[arg-type]
    ids = await page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    const colour = getComputedStyle(e).backgroundColor;
    return colour === "rgba(0, 0, 0, 0)" ? behind(e.parentElement) : colour;
  };
  const visible = (e) => e.checkVisibility() && !e.classList.contains("unseen");
  const withText = [...document.querySelectorAll("body *")].filter(visible)
    .filter((e) => [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()));
  return withText.map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_words_stand_out_from_their_ground(browser: Browser, server: PageServer, scheme: str) -> None:
    context = await browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
    page = await context.new_page()
    server.script = Chat(["> quote `code` [link](https://a.example)\n\n", *CODE_ANSWER])
    server.core_events = [core_event(1, "usage")]
    await open_page(page, server)
    await write(page)
    await expect(page.locator(".copy")).to_be_visible()
    await page.evaluate("document.querySelector('#core details').open = true")
    measured = await page.evaluate(CONTRAST)
    assert len(measured) > 15
    assert [item for item in measured if item[0] < 4.5] == [], "WCAG AA"
    await page.evaluate("document.activeElement.blur()")
    edges = await page.evaluate(EDGES)
    assert len(edges) == 5
    assert [item for item in edges if item[0] < 3] == [], "WCAG AA, of what is written in or pressed"
    ground = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (sum(ground) < 150) == (scheme == "dark")
    await context.close()


EDGES = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("input, textarea, #send, #place button")].map((e) => {
    const [a, b] = [light(getComputedStyle(e).borderColor), ground].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 80)];
  });
}"""


@pytest.mark.parametrize("width", [320, 360, 768])
async def test_narrow_screen_does_not_scroll_sideways(page: Page, server: PageServer, width: int) -> None:
    wide = "x" * 300
    server.script = Chat(
        [*CODE_ANSWER, f"\n\n```\n{wide}\n```\n\n{wide}\n\n|{'a|' * 30}\n|{'-|' * 30}\n|{'b|' * 30}\n"]
    )
    server.core_events = [core_event(1, "usage")]
    await page.set_viewport_size({"width": width, "height": 740})
    await open_page(page, server)
    await write(page, wide)
    await expect(page.locator(".answer table")).to_have_count(1)
    too_wide = await page.evaluate(
        """() => [...document.querySelectorAll("body *")]
          .filter((e) => !e.closest("pre, .wide, .unseen") && e.getBoundingClientRect().right > innerWidth + 0.5)
          .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert too_wide == []
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert await page.evaluate(
        "document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth"
    )
    await expect(page.get_by_role("button", name="Send")).to_be_in_viewport()


@pytest.mark.parametrize(("width", "height"), [(320, 256), (844, 390), (320, 640), (1280, 400)])
async def test_low_window_keeps_everything_within_reach(
    page: Page, server: PageServer, width: int, height: int
) -> None:
    server.script = Chat([*CODE_ANSWER, "\nAnd a long line of text, which breaks. " * 20])
    server.core_events = [core_event(number, "usage") for number in range(1, 30)]
    await page.set_viewport_size({"width": width, "height": height})
    await open_page(page, server)
    boxes = """() => Object.fromEntries(["log", "welcome", "message", "total", "composer", "core"].map((id) => {
      const { top, bottom, height } = document.getElementById(id).getBoundingClientRect();
      return [id, { top, bottom, height }];
    }))"""
    empty = await page.evaluate(boxes)
    assert empty["welcome"]["bottom"] <= empty["log"]["bottom"] or height < 300, "the welcome is not cut off"
    await write(page)
    await expect(ended(page)).to_have_count(1)
    at = await page.evaluate(boxes)
    assert at["log"]["height"] >= 140
    assert at["log"]["bottom"] <= at["composer"]["top"] + 0.5
    assert at["total"]["bottom"] <= at["composer"]["bottom"]
    if width < 1024:
        assert at["composer"]["bottom"] <= at["core"]["top"] + 0.5
        assert at["core"]["height"] < 60, "folded"
        await page.get_by_text("What Core received").click()
        await expect(page.locator("#core-events li").first).to_be_visible()
        assert (await page.evaluate(boxes))["log"]["height"] >= 140
    await page.get_by_label("Message", exact=True).focus()
    for name in ("Send", "Open"):
        await page.get_by_role("button", name=name).scroll_into_view_if_needed()
        await expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_composer_stands_in_line_with_the_conversation(page: Page, server: PageServer) -> None:
    edges = """() => [".answer", ".column"].map((selector) => {
      const { left, right } = document.querySelector(selector).getBoundingClientRect();
      return [left, right];
    })"""
    await open_page(page, server)
    await write(page)
    await expect(ended(page)).to_have_count(1)
    for width in (360, 1280):
        await page.set_viewport_size({"width": width, "height": 500})
        answer, composer = await page.evaluate(edges)
        assert answer == composer


async def test_systems_colours_leave_bubbles_and_dots(browser: Browser, server: PageServer) -> None:
    context = await browser.new_context(forced_colors="active")
    page = await context.new_page()
    await open_page(page, server)
    await write(page)
    await expect(ended(page)).to_have_count(1)
    looks = """() => {
      const look = (selector, part) => getComputedStyle(document.querySelector(selector), part);
      return [look(".question").borderStyle, look("#connection", "::before").backgroundColor,
        look("body").backgroundColor];
    }"""
    border, dot, ground = await page.evaluate(looks)
    assert border == "solid"
    assert dot != ground
    await context.close()


def core_event(number: int, kind: str) -> Frame:
    body = {"type": kind, "session_id": "1", "turn": number, "total_tokens": 14312, "note": "<b>not bold</b>"}
    return {"n": number, "received_at": "2026-01-01T10:00:00Z", "headers": {"webhook-id": f"m{number}"}, "body": body}


async def test_core_pane_shows_callbacks_as_they_arrive(page: Page, server: PageServer) -> None:
    server.core_events = [core_event(1, "usage")]
    await open_page(page, server)
    pane = page.get_by_role("complementary", name="What Core received")
    await expect(pane.locator("strong")).to_have_text(["usage"])
    await expect(pane.locator("li span")).to_have_text(["session 1 · turn 1 · 14,312 tokens"])
    failure = {"type": "error", "session_id": "1", "error_type": "llm_timeout", "metadata": {"turn": 2}}
    server.core_events.append(core_event(2, "error") | {"body": failure})
    await expect(pane.locator("strong")).to_have_text(["error", "usage"])
    await expect(pane.locator("li span").first).to_have_text("session 1 · turn 2 · llm_timeout")
    colours = await pane.locator("li span").evaluate_all("(all) => all.map((e) => getComputedStyle(e).color)")
    assert colours[0] != colours[1]
    await expect(page.locator("#core-count")).to_have_text("2")
    await pane.locator("li summary").last.click()
    raw = pane.get_by_role("region", name="Body and headers of usage")
    await expect(raw).to_contain_text('"note": "<b>not bold</b>"')
    await expect(raw).to_contain_text("webhook-id: m1")


async def test_core_pane_outlives_a_restarted_demo(page: Page, server: PageServer) -> None:
    server.core_events = []
    await open_page(page, server)
    pane = page.get_by_role("complementary", name="What Core received")
    await expect(pane).to_contain_text("Nothing yet.")
    server.core_events = [core_event(number, "usage") for number in (1, 2, 3)]
    await expect(pane.locator("strong")).to_have_text(["usage"] * 3)
    await expect(page.locator("#core-empty")).to_be_hidden()
    await page.route("**/demo/core/events?*", lambda route: route.fulfill(body="<half an ans"), times=1)
    server.core_epoch, server.core_events = "second", [core_event(1, "message_response")]
    await expect(pane.locator("strong")).to_have_text(["message_response"])


async def test_no_core_pane_without_the_demo(page: Page, server: PageServer) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/demo/" in request.url else None)
    await open_page(page, server)
    await page.evaluate("new Promise((resolve) => setTimeout(resolve, 50))")
    assert asked == []
    await expect(page.locator("#core")).to_be_hidden()
