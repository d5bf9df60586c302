"""From the provider to the client's screen: what may never happen to a piece of text, and what a slow client costs.

The first half drives an outbox by hand: `Client` stands in the place of the server's socket, so that a test says itself
when the client takes data. The second half runs the whole service.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.websockets import WebSocketDisconnect

from app.application.turns.exchange import AttachedTurn, Started
from app.core.errors import ErrorCode
from app.domain.conversation import FinishReason, Usage
from app.domain.turn_log import Cancelled, Done, Ending, Failed, IllegalMoveError, TurnLog
from app.presentation.api.routes.chat import Conversation
from app.presentation.api.socket import Outbox, SocketReader
from tests.conftest import Rows
from tests.support.chat import ChatClient, TurnSeen, connect, connect_many, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.provider import Ending as ProviderEnding
from tests.support.provider import Provider, Script
from tests.support.service import Service

DONE = Done(FinishReason.STOP, Usage(3, 4))


class Client:
    """A client as the outbox sees it: it takes what is sent, or, when it is slow, as many frames as it is told to."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []
        self.gone = False
        self._left = math.inf
        self._takes = asyncio.Event()
        self._takes.set()

    async def send(self, message: dict[str, Any]) -> None:
        await self._takes.wait()
        if self.gone:
            raise WebSocketDisconnect(1006)
        self.frames.append(json.loads(message["text"]))
        self._left -= 1
        if self._left <= 0:
            self._takes.clear()

    def block(self) -> None:
        self._takes.clear()

    async def take(self, frames: float = math.inf) -> None:
        """Take so many frames, or all there are and will be."""
        self._left = frames
        self._takes.set()
        await until_idle()

    def leave(self) -> None:
        self.gone = True
        self._takes.set()

    def seen(self) -> TurnSeen:
        return TurnSeen([frame for frame in self.frames if frame["type"] != "pong"])


async def until_idle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


class Reading:
    """A client, its outbox, and a turn's log to read."""

    def __init__(self, log: TurnLog | None = None) -> None:
        self.client = Client()
        self.outbox = Outbox(self.client.send)
        self.log = log or TurnLog()
        self.ended: list[Ending] = []

    def read(self, after_seq: int = 0) -> SocketReader:
        attached = AttachedTurn(Started(1, 1, "t1"), self.log, fresh=False)
        reader = SocketReader(attached, self.outbox, after_seq=after_seq, on_end=self.ended.append)
        reader.start()
        return reader


# --- the outbox ---


async def test_a_delta_is_sent_in_the_tick_in_which_it_comes() -> None:
    reading = Reading()
    reading.read()
    reading.log.append("now")
    assert reading.client.frames == [{"type": "delta", "turn_id": "t1", "seq": 1, "content": "now"}]


async def test_what_comes_while_the_client_is_slow_is_joined_and_comes_after_started() -> None:
    reading = Reading()
    reading.client.block()
    reading.outbox.say('{"type":"started"}')
    reading.read()
    for content in ("a", "b", "c"):
        reading.log.append(content)
    reading.log.end(DONE)
    assert reading.client.frames == []
    await reading.client.take()
    assert [frame["type"] for frame in reading.client.frames] == ["started", "delta", "done"]
    assert reading.client.frames[1] | {"turn_id": None} == {
        "type": "delta", "turn_id": None, "seq": 3, "first_seq": 1, "content": "abc",
    }  # fmt: skip


async def test_a_reading_that_was_replaced_while_the_client_was_slow_sends_nothing_any_more() -> None:
    reading = Reading()
    first = reading.read()
    reading.log.append("a")
    reading.client.block()
    reading.log.append("b")
    reading.log.append("c")
    first.stop()
    reading.read(after_seq=1)  # the client has resumed on the same connection
    reading.log.append("d")
    reading.log.end(DONE)
    await reading.client.take()
    frames = reading.client.frames
    assert [frame["type"] for frame in frames].count("done") == 1
    # "b" had been on its way before the resume; nothing else comes twice
    assert [frame["content"] for frame in frames if frame["type"] == "delta"] == ["a", "b", "bcd"]
    assert len(reading.ended) == 1


async def test_a_fast_turn_does_not_keep_other_frames_of_a_slow_client_waiting() -> None:
    reading = Reading()
    reading.read()
    reading.client.block()
    reading.log.append("0")
    reading.outbox.say('{"type":"pong"}')
    for number in range(1, 4):
        reading.log.append(str(number))  # there is something new each time the client takes a frame
        await reading.client.take(1)
    assert "pong" in [frame["type"] for frame in reading.client.frames]
    await reading.client.take()
    assert reading.client.seen().text == "0123"


async def test_nothing_more_is_read_from_a_client_for_whom_too_much_waits() -> None:
    client = Client()
    outbox = Outbox(client.send)
    client.block()
    said = 0
    while said < 10_000:
        try:
            async with asyncio.timeout(0.01):
                await outbox.room()
        except TimeoutError:
            break
        outbox.say('{"type":"pong"}')
        said += 1
    assert 1 < said < 100, "a few frames are answered, and not without end"
    await client.take()
    await outbox.room()
    assert len(client.frames) == said


async def test_closing_while_a_client_is_waited_for_ends_the_wait_and_sends_nothing() -> None:
    for steps in (0, 1, 5):  # before the waiting task has begun, and after
        reading = Reading()
        reader = reading.read()
        reading.client.block()
        reading.log.append("a")
        reading.log.append("b")
        for _ in range(steps):
            await asyncio.sleep(0)
        reader.stop()
        await reading.outbox.close()
        assert {task for task in asyncio.all_tasks() if task.get_name() == "outbox"} == set()
        reading.log.append("c")
        reading.outbox.say('{"type":"pong"}')
        await reading.client.take()
        assert reading.client.frames == []


async def test_a_client_that_goes_while_it_is_waited_for_closes_the_outbox_and_not_the_turn() -> None:
    reading = Reading()
    reading.read()
    reading.client.block()
    reading.log.append("a")
    reading.client.leave()
    await until_idle()
    assert reading.outbox.closed
    reading.log.append("b")
    reading.log.end(DONE)
    assert reading.log.text == "ab"


async def test_a_log_keeps_nothing_of_a_client_that_is_gone() -> None:
    reading = Reading()
    log = reading.log
    reader = reading.read()
    reading.client.block()
    log.append("a")
    reader.stop()
    await reading.outbox.close()
    outbox, client = weakref.ref(reading.outbox), weakref.ref(reading.client)
    del reading, reader
    gc.collect()
    assert (outbox(), client()) == (None, None)


class _Leaving:
    """A reader that makes another one leave when it is told of something."""

    def __init__(self, log: TurnLog) -> None:
        self.log = log
        self.other: _Leaving | None = None
        self.told = 0

    def wake(self) -> None:
        self.told += 1
        if self.other is not None:
            self.log.detach(self.other)


def test_a_reader_may_leave_while_the_log_tells_its_readers() -> None:
    log = TurnLog()
    first, second, third = (_Leaving(log) for _ in range(3))
    first.other = second
    for reader in (first, second, third):
        log.attach(reader)
    log.append("a")
    log.append("b")
    assert (first.told, third.told) == (2, 2)
    assert second.told <= 1


def test_a_log_ends_once_and_has_no_deltas_after_its_end() -> None:
    log = TurnLog()
    log.append("a")
    log.end(DONE)
    with pytest.raises(IllegalMoveError):
        log.append("b")
    with pytest.raises(IllegalMoveError):
        log.end(DONE)
    assert (log.text, log.ending) == ("a", DONE)


texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), max_size=12)
endings: st.SearchStrategy[Ending] = st.sampled_from(
    [DONE, Cancelled(Usage()), Failed(ErrorCode.LLM_TIMEOUT, "silent", True, Usage(), 0)]
)


@given(pieces=texts, ending=endings, moves=st.lists(st.sampled_from(["block", "take", "take one", "attach"])))
@settings(max_examples=150, deadline=None)
def test_every_reader_gets_the_text_once_and_one_ending_however_slow_it_is(
    pieces: list[str], ending: Ending, moves: list[str]
) -> None:
    async def scenario() -> None:
        log = TurnLog()
        readings = [(Reading(log), 0)]
        readings[0][0].read()
        steps: Iterator[str] = iter(moves)
        for piece in pieces:
            log.append(piece)
            move = next(steps, "none")
            if move == "attach":
                late = Reading(log)
                late.client.block()
                late.read(after_seq=log.last_seq // 2)
                readings.append((late, log.last_seq // 2))
            for reading, _ in readings:
                if move == "block":
                    reading.client.block()
                elif move == "take":
                    await reading.client.take()
                elif move == "take one":
                    await reading.client.take(1)
        log.end(ending)
        for reading, after_seq in readings:
            await reading.client.take()
            seen = reading.client.seen()
            seen.check_order(after_seq)
            assert seen.text == "".join(pieces[after_seq:])
            assert len(reading.ended) == 1

    asyncio.run(scenario())


@given(pieces=texts, after_seq=st.integers(0, 13))
@settings(max_examples=100, deadline=None)
def test_a_log_restored_from_its_row_reads_as_the_one_that_was_stored(pieces: list[str], after_seq: int) -> None:
    log = TurnLog()
    for piece in pieces:
        log.append(piece)
    log.end(DONE)
    restored = TurnLog.restored(log.text, log.lengths, DONE)
    assert restored.contents == log.contents
    assert restored.since(after_seq) == log.since(after_seq)


# --- the whole service ---


def stored(rows: Rows, session_id: int) -> str:
    """The session's answer as it is stored."""
    query = "SELECT content FROM prompt_messages WHERE session_id = %s AND role = 'ASSISTANT'"
    content: str = rows.one(query, session_id)["content"]
    return content


FAMILY = "👩\u200d👩\u200d👧\u200d👦"
TEXTS: dict[str, Sequence[str]] = {
    "korean": ("안녕하세요, ", "이 함수는 ", "왜 느린가요?", " 한글\u1112\u1161\u11ab"),
    "emoji": ("🐦", FAMILY, "👍🏽", "🇰🇷", "e\u0301", "\U0010ffff"),
    "code": (
        "```python\n",
        'def f(x):\n\treturn x ** 2  # \\n "\'"\r\n',
        "```\n",
        "<script>alert(1)</script> & \u2028 \u2029",
    ),
    "control": ("bell \x07", "esc \x1b[31m", "del \x7f", "bom \ufeff", "rtl \u202e", "zero\u200bwidth"),
    "nul": ("before", "\x00", "after\x00\x00", "end"),
    "halves": ("smile: ", "\ud83d", "\ude00", "!", "\ud83d\ude00 \ud83d", "\udc26"),
    "lone halves": ("a\ud800", "b", "\udc00c", "\ud83d"),
    "long": ("x" * 70_000, "가" * 70_000, "🐦" * 10_000),
    "blank": (" ", "\n", "\t", " "),
}


AT_PROVIDER: dict[str, ProviderEnding] = {"done": "finish", "cancelled": "hang", "error": "eof"}


def shown(pieces: Sequence[str]) -> str:
    """What a screen shows of the pieces: halves that belong together joined, what cannot be stored replaced."""
    text = "".join(pieces).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\x00", "\ufffd")


@pytest.mark.parametrize("ending", ["done", "cancelled", "error"])
async def test_what_the_provider_sent_is_what_is_shown_and_what_is_stored(
    start: Callable[..., Service], provider: Provider, rows: Rows, ending: str
) -> None:
    service = start(llm={"timeout_s": 60})
    async with AsyncExitStack() as stack:

        async def ask(name: str) -> tuple[str, TurnSeen]:
            client = await stack.enter_async_context(connect(service.url))
            provider.named[name] = Script(
                pieces=TEXTS[name], ending=AT_PROVIDER[ending], piece_delay_s=0.01, escape_ascii=name == "code"
            )
            seen = await client.start(f"[[script:{name}]]", **new_pair())
            expected = shown(TEXTS[name])
            if ending == "cancelled":
                # a half that may still find its other one is not shown yet
                expected = expected.removesuffix("\ufffd") if TEXTS[name][-1][-1] == "\ud83d" else expected
                while seen.text != expected:
                    seen.frames.append(await client.receive())
                await client.send(type="cancel", turn_id="t1")
            return name, await client.turn(seen=seen)

        results = await asyncio.gather(*(ask(name) for name in TEXTS))
    for name, seen in results:
        assert seen.end["type"] == ending, name
        assert stored(rows, seen.session_id) == seen.text, name
        assert seen.text.removesuffix("\ufffd") == shown(TEXTS[name]).removesuffix("\ufffd"), name


async def test_characters_cut_anywhere_between_two_reads_are_never_shown_in_halves(
    service: Service, provider: Provider, rows: Rows
) -> None:
    pieces = ("é", "한", "🐦", FAMILY, "\ud83d", "\ude00", "\x00", "끝")

    async def ask(client: ChatClient, every: int) -> TurnSeen:
        provider.named[f"every {every}"] = Script(pieces=pieces, split_every=every, split_gap_s=0.0005)
        return await client.ask(f"[[script:every {every}]]", **new_pair())

    sizes = [1, 2, 3, 4, 5, 7, 11, 64, 97, 131, 172, 173, 174, 175, 176, 177, 178, 179, 180]
    async with connect_many(service.url, len(sizes)) as clients:
        turns = await asyncio.gather(*(ask(client, size) for client, size in zip(clients, sizes, strict=True)))
    for seen in turns:
        assert seen.end["type"] == "done"
        assert seen.text == shown(pieces) == stored(rows, seen.session_id)


async def test_a_hundred_streams_at_fifty_tokens_a_second_all_complete(
    service: Service, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    provider.default = Script(pieces=tuple(f"{i}번 " for i in range(100)), piece_delay_s=0.02)
    async with connect_many(service.url, 100) as clients:
        turns = await asyncio.gather(*(client.ask("hello", **new_pair()) for client in clients))
    assert {seen.end["type"] for seen in turns} == {"done"}
    assert {seen.text for seen in turns} == {provider.default.text}
    assert len({seen.session_id for seen in turns}) == 100
    usage = {"prompt_tokens": 25, "completion_tokens": 100, "total_tokens": 125, "source": "provider"}
    assert all(seen.end["usage"] == usage for seen in turns)
    answers = rows("SELECT content FROM prompt_messages WHERE role = 'ASSISTANT'")
    assert [row["content"] for row in answers] == [provider.default.text] * 100
    assert rows.one("SELECT sum(total_tokens) AS n FROM prompt_sessions")["n"] == 12_500
    await core.reaches(200)
    for seen in turns:
        events = core.events(seen.session_id)
        assert [(event.type, event.seq) for event in events] == [("usage", 1), ("message_response", 2)]
        assert events[1].body["ai_message"] == provider.default.text
        assert {key: events[0].body[key] for key in usage} == usage


BIG = "0123456789abcdef" * 512


def narrow(service: Service) -> socket.socket:
    """A connection that takes little before it is full: for clients that do not read."""
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect(("127.0.0.1", service.port))
    return opened


async def test_a_client_that_does_not_read_slows_nobody_and_gets_the_whole_text_later(
    service: Service, provider: Provider, rows: Rows
) -> None:
    provider.named["big"] = Script(pieces=[f"{i} {BIG}" for i in range(400)], piece_delay_s=0.002)
    provider.named["small"] = Script(pieces=[f"word{i} " for i in range(20)], piece_delay_s=0.01)
    async with connect(service.url, sock=narrow(service), max_queue=1) as slow, connect(service.url) as quick:
        seen = await slow.start("[[script:big]]", **new_pair())
        other = await quick.ask("[[script:small]]", **new_pair())
        assert (other.end["type"], other.text) == ("done", provider.named["small"].text)
        # its own turn does not wait for it either
        status = "SELECT status FROM prompt_turns WHERE session_id = %s"
        await asyncio.to_thread(wait_until, lambda: rows.one(status, seen.session_id)["status"] == "completed")
        await slow.turn(seen=seen)
    assert seen.text == provider.named["big"].text == stored(rows, seen.session_id)
    assert any("first_seq" in frame for frame in seen.frames), "what had come meanwhile was joined"
    assert seen.last_seq > len(seen.frames)


async def test_a_client_that_does_not_read_can_stop_its_turn(
    start: Callable[..., Service], provider: Provider, rows: Rows
) -> None:
    service = start(llm={"timeout_s": 60})
    provider.default = Script(pieces=[BIG] * 1000, piece_delay_s=0.002, ending="hang")
    async with connect(service.url, sock=narrow(service), max_queue=1) as slow:
        seen = await slow.start("hello", **new_pair())
        [request] = await provider.requests_reach(1)
        await asyncio.to_thread(wait_until, lambda: request.pieces_sent > 500)  # more than any buffer holds
        for _ in range(3):
            await slow.send(type="ping")
        await slow.send(type="cancel", turn_id="t1")
        await provider.closed_reach(1)
        await slow.turn(seen=seen)
    assert seen.end["type"] == "cancelled"
    assert seen.text == stored(rows, seen.session_id)


async def test_nothing_of_a_client_is_kept_when_it_is_gone_though_its_turn_runs(
    service: Service, provider: Provider
) -> None:
    def kept() -> int:
        gc.collect()
        return sum(isinstance(thing, Outbox | SocketReader | Conversation) for thing in gc.get_objects())

    provider.default = Script(pieces=[BIG] * 5000, piece_delay_s=0.005)
    before = kept()
    async with connect(service.url) as client:
        seen = await client.start("hello", text=BIG, **new_pair())
        [request] = provider.requests

        def sent(count: int) -> bool:
            return request.pieces_sent > count

        for number in range(4):
            async with connect(service.url, sock=narrow(service), max_queue=1) as slow:
                await slow.send(type="resume", session_id=seen.session_id, turn_id="t1", after_seq=0)
                await slow.receive()
                enough = request.pieces_sent + 100 * (number % 2)  # blocked by then, or not
                await asyncio.to_thread(wait_until, partial(sent, enough))
                slow.drop()
        await asyncio.to_thread(wait_until, lambda: kept() <= before + 3)  # those of the client that is still there
        await client.send(type="cancel", turn_id="t1")
        await client.turn(seen=seen)
    await asyncio.to_thread(wait_until, lambda: kept() <= before)
