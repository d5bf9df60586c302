"""The small HTTP client of the streaming path against servers that send bytes of our choice."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest
import trustme
import uvloop

from app.infrastructure.llm import http_stream
from app.infrastructure.llm.http_stream import (
    BrokenError,
    ExchangeError,
    NoConnectionError,
    SilenceError,
    StreamingHttp,
)

WAIT_S = 20.0
OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
PAUSE = b""
"""In a server's bytes: wait, so that what comes next is a read of its own."""


class Taken:
    """An answer that notes what it is given; it has enough when it has seen ``enough``."""

    def __init__(self, enough: bytes = b"never") -> None:
        self.enough = enough
        self.was_sent = False
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.reads = 0

    def sent(self) -> None:
        self.was_sent = True

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.status, "told once"
        self.status, self.headers = status, headers

    def data(self, data: bytes) -> bool:
        assert data and self.status
        self.body += data
        self.reads += 1
        return self.enough in self.body


class Peer:
    """A server on loopback that answers each request with the next of its scripts, whatever was asked."""

    def __init__(self) -> None:
        self.scripts: list[Sequence[bytes]] = []
        self.requests: list[bytes] = []
        self.written_at: list[float] = []
        self.connections = 0
        self.hang = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while self.scripts:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                self.written_at = written_at = []
                for part in self.scripts.pop(0):
                    await asyncio.sleep(0.02 if part == PAUSE else 0)
                    if part != PAUSE:
                        written_at.append(asyncio.get_running_loop().time())
                    writer.write(part)
                    await writer.drain()
            if self.hang:
                await reader.read()
        writer.close()


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    peer = Peer()
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    yield peer
    server.close()


@pytest.fixture
async def client(peer: Peer) -> AsyncIterator[Callable[..., StreamingHttp]]:
    made: list[StreamingHttp] = []

    def make(*, timeout_s: float = WAIT_S, keep_alive: bool = True) -> StreamingHttp:
        url = f"http://127.0.0.1:{peer.port}/v1/chat?a=b"
        made.append(StreamingHttp(url, {"x-key": "k"}, timeout_s=timeout_s, keep_alive=keep_alive))
        return made[-1]

    yield make
    for http in made:
        await http.aclose()


async def post(http: StreamingHttp, answer: Taken, body: bytes = b"{}") -> bool:
    async with asyncio.timeout(WAIT_S):
        return await http.post(body, answer)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_request_is_plain_http(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    peer.scripts = [[OK + b"content-length: 2\r\n\r\nhi"]]
    answer = Taken()
    assert await post(client(), answer, b'{"a":1}') is False
    assert peer.requests == [
        b"POST /v1/chat?a=b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\nx-key: k\r\ncontent-length: 7\r\n\r\n" % peer.port
        + b'{"a":1}'
    ]
    assert (answer.was_sent, answer.status, answer.body) == (True, 200, b"hi")
    assert answer.headers["content-type"] == "text/event-stream"


ZIPPED = gzip.compress(b"abcdef")
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "reads"),
    [
        ([OK + b"content-length: 6\r\n\r\n", PAUSE, b"abc", PAUSE, b"def"], 2),
        ([CHUNKED + b"3\r\nabc\r\n", PAUSE, b"3\r\ndef\r\n0\r\n\r\n"], 2),
        ([CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"], 1),
        ([CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n", PAUSE, b"0\r\nx-trailer: a\r\n\r\n"], 1),
        ([OK + b"\r\n", PAUSE, b"abc", PAUSE, b"def"], 2),
        ([OK + b"connection: close\r\n\r\nabcdef"], 1),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"content-length: 6\r\n\r\nabcdef"], 1),
        ([b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", PAUSE, OK + b"content-length: 6\r\n\r\nabcdef"], 1),
        ([b"HTTP/1.0 200 OK\r\n\r\nabc", PAUSE, b"def"], 2),
        ([OK + b"content-encoding: gzip\r\n\r\n" + ZIPPED[:9], PAUSE, ZIPPED[9:]], 1),
    ],
    ids=["length", "chunks", "one read", "trailer", "until close", "close", "continue", "hints", "1.0", "gzip"],
)
async def test_a_body_comes_in_the_reads_that_brought_it(
    peer: Peer, client: Callable[..., StreamingHttp], parts: Sequence[bytes], reads: int
) -> None:
    peer.scripts = [parts]
    answer = Taken()
    assert await post(client(), answer) is False
    assert (answer.status, answer.body, answer.reads) == (200, b"abcdef", reads)


async def test_a_response_cut_into_single_bytes_is_the_same(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    whole = b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
    peer.scripts = [[whole[i : i + 1] for i in range(len(whole))]]
    answer = Taken()
    assert await post(client(), answer) is False
    assert (answer.status, answer.body) == (200, b"abcdef")


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([b""], b""),
        ([b"HTTP/1.1 200 OK\r\ncontent-le"], b""),
        ([OK + b"content-length: 6\r\n\r\nabc"], b"abc"),
        ([CHUNKED + b"3\r\nabc\r\n"], b"abc"),
        ([CHUNKED + b"3\r\nabc\r\nno chunk\r\n"], b"abc"),
        ([b"SSH-2.0-OpenSSH_9.6\r\n"], b""),
        ([OK + b"x-long: " + b"a" * 70_000], b""),
        ([OK + b"content-encoding: gzip\r\n\r\nabc"], b""),
    ],
    ids=["nothing", "half a head", "short", "no last chunk", "no chunk", "no HTTP", "endless head", "no gzip"],
)
async def test_what_is_broken_is_said_to_be_after_what_came(
    peer: Peer, client: Callable[..., StreamingHttp], parts: Sequence[bytes], body: bytes
) -> None:
    peer.scripts = [parts]
    answer = Taken()
    with pytest.raises(BrokenError):
        await post(client(), answer)
    assert answer.body == body


@pytest.mark.slow
async def test_nobody_there_and_no_tls_are_no_connection(peer: Peer) -> None:
    peer.scripts = [[b"no TLS here"]]
    for url in (f"https://127.0.0.1:{peer.port}/", "http://127.0.0.1:1/"):
        http, answer = StreamingHttp(url, {}, timeout_s=WAIT_S), Taken()
        with pytest.raises(NoConnectionError):
            await post(http, answer)
        assert not answer.was_sent
        await http.aclose()


def test_a_server_that_speaks_unasked_is_no_connection_on_the_service_s_loop() -> None:
    """There what it says is read before anything can be asked; on asyncio's own loop it is taken for the answer."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(speak, "127.0.0.1", 0)
        http = StreamingHttp(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, timeout_s=WAIT_S)
        for _ in range(20):
            answer = Taken()
            try:
                await post(http, answer)
            except NoConnectionError:
                assert not answer.was_sent
            else:
                assert answer.status == 503
        await http.aclose()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@pytest.mark.parametrize("url", ["ftp://a/", "http:///path", "nothing", "http://a:99999/"])
def test_a_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        StreamingHttp(url, {}, timeout_s=1)


async def test_a_login_in_the_url_is_sent_as_basic_authentication(peer: Peer) -> None:
    peer.scripts = [[OK + b"content-length: 0\r\n\r\n"]]
    http = StreamingHttp(f"http://me:p%40ss@127.0.0.1:{peer.port}", {}, timeout_s=WAIT_S)
    await post(http, Taken())
    await http.aclose()
    assert b"authorization: Basic bWU6cEBzcw==\r\n" in peer.requests[0]
    assert peer.requests[0].startswith(b"POST / HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % peer.port)


async def test_silence_counts_from_the_last_byte(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    peer.hang = True
    for _ in range(10):  # a machine that stands still is silent, too, but not each time
        peer.scripts, answer = [[CHUNKED, *[PAUSE, b"1\r\na\r\n"] * 30, *[PAUSE] * 100]], Taken()
        with pytest.raises(SilenceError):
            await post(client(timeout_s=0.3), answer)
        if answer.body:
            assert asyncio.get_running_loop().time() - peer.written_at[len(answer.body)] >= 0.3
        if len(answer.body) == 30:
            break
    assert answer.body == b"a" * 30


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_came_while_this_process_stood_still_was_no_silence(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    class StandsStill(Taken):
        def data(self, data: bytes) -> bool:
            has_enough = super().data(data)
            if self.reads == 1:
                time.sleep(0.8)  # longer than silence may last; the rest is here before it is over
            return has_enough

    def serve(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(CHUNKED + b"1\r\na\r\n")
            time.sleep(0.1)
            connection.sendall(b"1\r\nb\r\n")
            over.wait(WAIT_S)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening, asyncio.Runner(loop_factory=new_loop) as runner:
        server = threading.Thread(target=serve, args=(listening,))
        server.start()
        http = StreamingHttp(f"http://127.0.0.1:{listening.getsockname()[1]}/", {}, timeout_s=0.4)
        answer = StandsStill(b"b")
        assert runner.run(post(http, answer)) is True
        over.set()
        runner.run(http.aclose())
        server.join()
    assert answer.body == b"ab"


async def test_connections_are_used_again_where_the_server_lets_them(
    peer: Peer, client: Callable[..., StreamingHttp]
) -> None:
    whole = OK + b"content-length: 2\r\n\r\nhi"
    peer.scripts = [[whole], [whole], [OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi"], [whole], [whole]]
    http = client()
    for _ in range(3):
        await post(http, Taken())
    assert peer.connections == 1
    await post(http, Taken())
    assert peer.connections == 2


async def test_an_answer_that_has_enough_is_not_kept_waiting_and_its_connection_not_lost(
    peer: Peer, client: Callable[..., StreamingHttp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stream, "_DRAIN_S", WAIT_S)
    peer.scripts = [[CHUNKED + b"3\r\nend\r\n", PAUSE, PAUSE, b"4\r\nmore\r\n0\r\n\r\n"]] * 2
    http, first, second = client(), Taken(b"end"), Taken(b"end")
    assert await post(http, first) is True
    await until(lambda: http._idle)
    assert await post(http, second) is True
    assert (first.body, second.body, peer.connections) == (b"end", b"end", 1)


async def test_a_connection_that_speaks_unasked_is_dropped(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    whole = OK + b"content-length: 2\r\n\r\nhi"
    peer.scripts = [[whole, PAUSE, whole], [whole]]
    http, answer = client(), Taken()
    await post(http, answer)
    await until(lambda: not http._open)
    await post(http, Taken())
    assert (answer.body, peer.connections) == (b"hi", 2)


@pytest.mark.parametrize(
    "surplus",
    [
        b"x",
        b"\x00\xff",
        b"HTT",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
        CHUNKED + b"2\r\nno\r\n0\r\n\r\n",
        b"HTTP/9",
    ],
    ids=["a byte", "binary", "part of a response", "a response", "a response in chunks", "no response"],
)
@pytest.mark.parametrize(
    "whole",
    [
        OK + b"content-length: 2\r\n\r\nhi",
        CHUNKED + b"2\r\nhi\r\n0\r\n\r\n",
        OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi",
    ],
    ids=["length", "chunks", "close"],
)
async def test_what_follows_a_whole_response_takes_nothing_from_it_and_its_connection_is_not_used_again(
    peer: Peer, client: Callable[..., StreamingHttp], whole: bytes, surplus: bytes
) -> None:
    peer.scripts = [[whole + surplus], [OK + b"content-length: 2\r\n\r\nyo"]]
    http, answer, other = client(), Taken(), Taken()
    assert await post(http, answer) is False
    assert (answer.status, answer.body) == (200, b"hi")
    assert await post(http, other) is False
    assert (other.body, peer.connections) == (b"yo", 2)


async def test_an_answer_that_has_enough_has_it_whatever_follows_in_the_same_read(
    peer: Peer, client: Callable[..., StreamingHttp]
) -> None:
    peer.scripts = [[CHUNKED + b"3\r\nend\r\n0\r\n\r\nwhat?"], [CHUNKED + b"3\r\nend\r\n0\r\n\r\n"]]
    http = client()
    for _ in range(2):
        answer = Taken(b"end")
        assert await post(http, answer) is True
        assert answer.body == b"end"
    assert peer.connections == 2


async def test_an_idle_connection_is_closed_in_time(
    peer: Peer, client: Callable[..., StreamingHttp], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_stream, "_IDLE_S", 0.05)
    whole = OK + b"content-length: 2\r\n\r\nhi"
    peer.scripts = [[whole], [whole]]
    http = client()
    await post(http, Taken())
    await asyncio.sleep(0.2)
    await post(http, Taken())
    assert peer.connections == 2


async def test_what_an_answer_raises_ends_the_exchange_and_the_connection(
    peer: Peer, client: Callable[..., StreamingHttp]
) -> None:
    class Refusing(Taken):
        def data(self, data: bytes) -> bool:
            raise LookupError("no more")

    peer.scripts = [[CHUNKED + b"3\r\nabc\r\n"] * 3, [OK + b"content-length: 0\r\n\r\n"]]
    http = client()
    with pytest.raises(LookupError, match="no more"):
        await post(http, Refusing())
    await post(http, Taken())
    assert peer.connections == 2


async def test_nothing_comes_after_a_cancel(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    peer.hang = True
    peer.scripts = [[CHUNKED, *[b"1\r\na\r\n", PAUSE] * 200]]
    http, answer = client(), Taken()
    asking = asyncio.create_task(post(http, answer))
    while not answer.body:
        await asyncio.sleep(0.01)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    came = answer.body
    assert not http._open, "closed before the cancellation went on"
    await asyncio.sleep(0.1)
    assert answer.body == came


async def test_closing_ends_what_is_under_way_without_a_word_in_the_log(
    peer: Peer, client: Callable[..., StreamingHttp], caplog: pytest.LogCaptureFixture
) -> None:
    peer.hang = True
    peer.scripts = [[CHUNKED, *[PAUSE] * 1000]]
    http, answer = client(), Taken()
    asking = asyncio.create_task(post(http, answer))
    while not answer.status:
        await asyncio.sleep(0.01)
    await http.aclose()
    with pytest.raises(ExchangeError):
        await asking
    assert caplog.records == []


async def test_tls_is_spoken_with_a_server_whose_certificate_is_trusted_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(ours)
    peer = Peer()
    peer.scripts = [[CHUNKED + b"3\r\nabc\r\n", PAUSE, b"3\r\ndef\r\n0\r\n\r\n"]]
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=ours)
    url = f"https://localhost:{server.sockets[0].getsockname()[1]}/v1/chat"
    stranger = StreamingHttp(url, {}, timeout_s=WAIT_S)
    with pytest.raises(NoConnectionError, match="SSLCertVerificationError"):
        await post(stranger, Taken())
    await stranger.aclose()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    client, answer = StreamingHttp(url, {}, timeout_s=WAIT_S), Taken()
    assert await post(client, answer) is False
    assert (answer.status, answer.body) == (200, b"abcdef")
    await client.aclose()
    server.close()


async def test_an_address_that_leads_nowhere_does_not_hide_the_next(
    peer: Peer, client: Callable[..., StreamingHttp], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.scripts = [[OK + b"content-length: 2\r\n\r\nhi"]]
    loop = asyncio.get_running_loop()
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)  # room for one connection that nobody accepts; a further one waits for its handshake
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())

        async def two_addresses(*_: object, **__: object) -> list[object]:
            found = [listener.getsockname(), ("127.0.0.1", peer.port)]
            return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address) for address in found]

        monkeypatch.setattr(loop, "getaddrinfo", two_addresses)
        answer = Taken()
        await post(client(), answer)
    assert answer.body == b"hi"


async def test_a_connection_that_was_closed_this_very_moment_is_not_used(
    peer: Peer, client: Callable[..., StreamingHttp]
) -> None:
    whole = OK + b"content-length: 2\r\n\r\nhi"
    peer.scripts = [[whole], [whole]]
    http, answer = client(), Taken()
    await post(http, Taken())
    [idle] = http._idle
    idle.abort()  # as its timer does; that it is closed is heard a moment later
    await post(http, answer)
    assert (answer.body, peer.connections) == (b"hi", 2)


async def test_cancelled_twice_it_is_closed_all_the_same(peer: Peer, client: Callable[..., StreamingHttp]) -> None:
    peer.hang = True
    peer.scripts = [[CHUNKED, *[b"1\r\na\r\n", PAUSE] * 200]]
    http, answer = client(), Taken()
    asking = asyncio.create_task(post(http, answer))
    while not answer.body:
        await asyncio.sleep(0.01)
    [connection] = http._open
    asking.cancel()
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.wait([connection.closed], timeout=WAIT_S)
    assert connection.closed.done() and not connection.closed.cancelled()
