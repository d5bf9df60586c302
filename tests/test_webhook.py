"""One try of one callback against a real receiver: what it bears, and what each answer means."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.application.services.callback_verdict import judge
from app.core.settings import CallbackSettings
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.repositories.callback_repository import CallbackEvent
from app.infrastructure.webhook import Delivered, Refused, Unreachable, WebhookSender
from tests.conftest import CORE_KEY, SECRET
from tests.support.core import Answer, Delivery, FakeCore

BODY = {"type": "usage", "session_id": "7", "callback_seq": 1, "text": '작은 새 🐦 "quoted" \\ line\n'}
DELAYS = (1.0, 2.0, 4.0)


def settings_for(url: str, **changed: Any) -> CallbackSettings:
    values: dict[str, Any] = {"url": url, "api_key": CORE_KEY, "signing_secret": SECRET, "timeout_s": 5, **changed}
    return CallbackSettings(**values)


@pytest.fixture
async def sender(core: FakeCore) -> AsyncIterator[WebhookSender]:
    opened = WebhookSender(settings_for(core.callback_url))
    yield opened
    await opened.close()


async def send(sender: WebhookSender, core: FakeCore, event_id: str = "evt_1") -> Delivery:
    """One try and how it came."""
    await sender.send(event_id, BODY)
    return core.deliveries[-1]


async def test_the_body_arrives_as_it_is_and_the_headers_name_event_time_and_sender(
    sender: WebhookSender, core: FakeCore
) -> None:
    before = datetime.now(UTC)
    assert await sender.send("evt_1", BODY) == Delivered()
    delivery = core.deliveries[0]
    assert delivery.body == BODY
    assert delivery.headers["content-type"] == "application/json"
    assert delivery.headers["x-api-key"] == CORE_KEY
    assert delivery.id == "evt_1"
    sent_at = datetime.fromtimestamp(int(delivery.headers["webhook-timestamp"]), UTC)
    assert before - timedelta(seconds=1) <= sent_at <= datetime.now(UTC)


async def test_the_official_library_verifies_the_signature_and_refuses_a_changed_byte(
    sender: WebhookSender, core: FakeCore
) -> None:
    delivery = await send(sender, core)
    official = Webhook(SECRET)
    headers = dict(delivery.headers)
    assert official.verify(delivery.raw, headers) == BODY
    changed = delivery.raw.replace(b'"7"', b'"8"')
    assert changed != delivery.raw
    for raw, said in (
        (changed, headers),
        (delivery.raw, {**headers, "webhook-id": "evt_2"}),
        (delivery.raw, {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            official.verify(raw, said)


async def test_tries_of_one_event_bear_one_id_and_a_signature_each(sender: WebhookSender, core: FakeCore) -> None:
    core.next(Answer(status=500))
    assert await sender.send("evt_1", BODY) == Refused(500, body_start="{}")
    assert await sender.send("evt_1", BODY) == Delivered()
    assert [delivery.id for delivery in core.deliveries] == ["evt_1", "evt_1"]
    assert [delivery.signature for delivery in core.deliveries] == [True, True]


async def test_without_a_secret_and_a_key_nothing_is_signed_and_no_key_sent() -> None:
    with FakeCore() as core:
        sender = WebhookSender(settings_for(core.callback_url, api_key=None, signing_secret=None))
        assert await sender.send("evt_1", BODY) == Delivered()
        await sender.close()
        assert "webhook-signature" not in core.deliveries[0].headers
        assert "x-api-key" not in core.deliveries[0].headers


@pytest.mark.parametrize("status", [200, 201, 202, 204, 226, 299])
async def test_any_2xx_is_delivered(sender: WebhookSender, core: FakeCore, status: int) -> None:
    core.next(Answer(status=status))
    assert await sender.send("evt_1", BODY) == Delivered(status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_an_answer_and_not_followed(sender: WebhookSender, core: FakeCore, status: int) -> None:
    with FakeCore() as elsewhere:
        core.next(Answer(status=status, headers=(("Location", elsewhere.callback_url),)))
        assert await sender.send("evt_1", BODY) == Refused(status, body_start="{}")
        assert len(elsewhere.deliveries) == 0
    assert len(core.deliveries) == 1


async def test_retry_after_is_read_as_seconds_and_as_a_date(sender: WebhookSender, core: FakeCore) -> None:
    in_a_minute = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    long_ago = format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
    found = []
    for value in ("17", in_a_minute, long_ago, "soon", "-3"):
        core.next(Answer(status=503, headers=(("Retry-After", value),)))
        outcome = await sender.send("evt_1", BODY)
        assert isinstance(outcome, Refused) and outcome.status == 503
        found.append(outcome.retry_after_s)
    assert found[0] == 17
    assert found[1] is not None and 30 < found[1] <= 60
    assert found[2:] == [0, None, 0]


async def test_no_answer_in_time_is_a_value_as_is_every_broken_connection(
    sender: WebhookSender, core: FakeCore
) -> None:
    with FakeCore() as mute:
        mute.always(Answer(action="hang"))
        hasty = WebhookSender(settings_for(mute.callback_url, timeout_s=0.3))
        assert await hasty.send("evt_1", BODY) == Unreachable("timeout")
        await hasty.close()
    core.next(Answer(action="reset"), Answer(action="close"))
    for nobody in (False, False, True):  # who breaks a connection off is there, and this very event may be why
        if nobody:
            core.stop()
        outcome = await sender.send("evt_1", BODY)
        assert isinstance(outcome, Unreachable)
        assert outcome.nobody is nobody


async def test_an_answer_that_never_ends_is_judged_by_its_status_and_not_read() -> None:
    endless = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 0x1000 + b"\r\n"

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(endless)  # and no last chunk
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1")
    port = server.sockets[0].getsockname()[1]
    sender = WebhookSender(settings_for(f"http://127.0.0.1:{port}/", timeout_s=60))
    async with asyncio.timeout(30):
        assert await sender.send("evt_1", BODY) == Delivered()
        assert await sender.send("evt_2", BODY) == Delivered()
        await sender.close()
    server.close()


@pytest.mark.parametrize("encoding", [b"", b"Content-Encoding: gzip\r\n"])
async def test_of_a_failures_body_the_first_bytes_are_kept_and_no_more_is_read(encoding: bytes) -> None:
    flood = (
        b"HTTP/1.1 500 No\r\n" + encoding + b"Transfer-Encoding: chunked\r\n\r\n1000\r\n" + b"\x00\xff" + b"x" * 0xFFE
    )

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(flood)
        with suppress(ConnectionError):
            while True:
                await writer.drain()
                writer.write(b"\r\n100000\r\n" + b"x" * 0x100000)

    server = await asyncio.start_server(answer, "127.0.0.1")
    sender = WebhookSender(settings_for(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout_s=60))
    async with asyncio.timeout(30):
        outcome = await sender.send("evt_1", BODY)
    assert outcome == Refused(500, body_start="\ufffd\ufffd" + "x" * 498)
    await sender.close()
    server.close()


async def test_a_failures_body_that_does_not_come_changes_nothing() -> None:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 422 No\r\nContent-Length: 100\r\n\r\nunknown fie")
        await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1")
    sender = WebhookSender(settings_for(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", timeout_s=3))
    assert await sender.send("evt_1", BODY) == Refused(422, body_start="unknown fie")
    await sender.close()
    server.close()


async def test_while_core_changes_its_secret_both_sign(core: FakeCore) -> None:
    new = "whsec_" + base64.b64encode(b"a new secret of some length").decode()
    sender = WebhookSender(settings_for(core.callback_url, signing_secret=new, previous_secret=SECRET))
    await sender.send("evt_1", BODY)
    await sender.close()
    (delivery,) = core.deliveries
    assert len(delivery.headers["webhook-signature"].split(" ")) == 2
    for secret in (new, SECRET):
        assert Webhook(secret).verify(delivery.raw, dict(delivery.headers))
    with pytest.raises(WebhookVerificationError):
        Webhook("whsec_" + base64.b64encode(b"somebody else's secret").decode()).verify(
            delivery.raw, dict(delivery.headers)
        )


async def test_a_name_that_does_not_resolve_is_a_value() -> None:
    sender = WebhookSender(settings_for("http://no-such-host.invalid/callbacks"))
    assert isinstance(await sender.send("evt_1", BODY), Unreachable)
    await sender.close()


async def test_connections_are_kept_and_used_again() -> None:
    accepted = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if b"content-length" in line)
            json.loads(await reader.readexactly(length))
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", family=socket.AF_INET)
    sender = WebhookSender(settings_for(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
    for number in range(5):
        assert await sender.send(f"evt_{number}", BODY) == Delivered(204)
    await sender.close()
    server.close()
    assert accepted == 1


# what an outcome means


def event_after(tries: int) -> CallbackEvent:
    return CallbackEvent(1, "evt_1", 7, 1, "usage", {}, tries, datetime.now(UTC), 1, 1)


def verdicts(outcome: Refused | Unreachable, *, age_s: float = 0.0) -> list[float | None]:
    """The waits after the first try, the second … up to the one that ends it (``None``)."""
    found: list[float | None] = []
    while not found or (found[-1] is not None and len(found) < 20):
        result = judge(outcome, event_after(len(found)), DELAYS, age_s)
        assert result.number == len(found) + 1
        assert result.error
        found.append(result.delay_s if result.status is CallbackStatusEnum.PENDING else None)
        assert result.status in (CallbackStatusEnum.PENDING, CallbackStatusEnum.FAILED)
    return found


@pytest.mark.parametrize(
    "outcome", [Refused(500), Refused(404), Refused(401), Refused(301), Refused(503), Unreachable("timeout")]
)
def test_most_failures_are_tried_again_by_the_delays_and_then_given_up(outcome: Refused | Unreachable) -> None:
    assert verdicts(outcome) == [1, 2, 4, None]


def test_410_ends_an_event_at_once_and_what_core_cannot_read_after_three_tries() -> None:
    assert verdicts(Refused(410)) == [None]
    for status in (400, 413, 422):
        assert verdicts(Refused(status)) == [1, 2, None]


def test_429_and_503_are_tried_again_when_core_says_and_others_are_not() -> None:
    assert verdicts(Refused(429, 9), age_s=99) == [9, 9, 9, None]
    assert verdicts(Refused(503, 0), age_s=99) == [0, 0, 0, None]
    assert verdicts(Refused(500, 9), age_s=99) == [1, 2, 4, None]


def test_asking_for_patience_many_times_does_not_use_up_the_tries_before_their_time() -> None:
    early = judge(Refused(503, 1), event_after(3), DELAYS, 3.5)
    assert (early.status, early.delay_s) == (CallbackStatusEnum.PENDING, 4)
    late = judge(Refused(503, 1), event_after(3), DELAYS, 7.5)
    assert late.status is CallbackStatusEnum.FAILED


def test_without_delays_there_is_one_try() -> None:
    for outcome in (Refused(500), Refused(503, 1), Unreachable("timeout")):
        assert judge(outcome, event_after(0), (), 0.0).status is CallbackStatusEnum.FAILED


def test_2xx_is_delivered_whatever_was_before() -> None:
    result = judge(Delivered(), event_after(3), DELAYS, 0.0)
    assert (result.status, result.number, result.error) == (CallbackStatusEnum.DELIVERED, 4, None)
