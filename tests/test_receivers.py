"""Real deliveries as receivers verify them: by official libraries, by the specification, and in Java."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks

from app.core.settings import CallbackSettings
from app.infrastructure.webhook import WebhookSender
from tests.conftest import SECRET
from tests.support.chat import connect, new_pair
from tests.support.core import Delivery, FakeCore
from tests.support.service import Service

EXAMPLE = Path(__file__).parents[1] / "examples/core-spring"
OTHER_SECRET = "whsec_" + "b3RoZXIgc2VjcmV0IG9mIGEgY2hhbmdlIG9mIGtleXM="
WAIT_S = 30.0
Verify = Callable[[bytes, Mapping[str, str]], bool]


def by_standard_webhooks(raw: bytes, headers: Mapping[str, str]) -> bool:
    try:
        standardwebhooks.Webhook(SECRET).verify(raw, dict(headers), json_parse=False)
    except (standardwebhooks.WebhookVerificationError, ValueError):
        return False
    return True


def by_svix(raw: bytes, headers: Mapping[str, str]) -> bool:
    try:
        svix.webhooks.Webhook(SECRET).verify(raw, dict(headers))
    except (svix.webhooks.WebhookVerificationError, ValueError):
        return False
    return True


def by_the_specification(raw: bytes, headers: Mapping[str, str]) -> bool:
    """Written from its text: neither library has a part in it."""
    signed = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), raw])
    mac = hmac.new(base64.b64decode(SECRET.removeprefix("whsec_")), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(mac).decode()}" in headers["webhook-signature"].split(" ")


@pytest.fixture
async def deliveries(service: Service, core: FakeCore) -> list[Delivery]:
    """What a real turn brings to Core, with characters that have several bytes."""
    async with connect(service.url) as client:
        await client.ask('작은 새 🐦 "quoted" \\', "턴", **new_pair())
    return await core.reaches(2, WAIT_S)


@pytest.mark.parametrize("verify", [by_standard_webhooks, by_svix, by_the_specification])
async def test_signatures_of_real_deliveries_verify_and_nothing_changed_does(
    deliveries: list[Delivery], verify: Verify
) -> None:
    for delivery in deliveries:
        headers = {name: value for name, value in delivery.headers.items() if name.startswith("webhook-")}
        assert verify(delivery.raw, headers)
        for raw, changed in tampered(delivery.raw, headers):
            assert not verify(raw, changed), (raw, changed)


def tampered(raw: bytes, headers: dict[str, str]) -> Iterator[tuple[bytes, dict[str, str]]]:
    """A delivery with one thing changed in it."""
    for place in (0, len(raw) // 2, len(raw) - 1):
        if raw[place] < 0x80:  # whole characters, so that only the signature can tell
            yield raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :], headers
    yield raw + b" ", headers
    yield raw[:-1], headers
    yield raw, headers | {"webhook-id": headers["webhook-id"] + "0"}
    yield raw, headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}
    version, _, signature = headers["webhook-signature"].partition(",")
    yield raw, headers | {"webhook-signature": f"{version},{signature[1:]}"}
    yield raw, headers | {"webhook-signature": f"v2,{signature}"}


# ---------------------------------------------------------------- in Java


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs the example's classes, compiled as its README says."""
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("no JDK here (javac, java): the Java example is neither compiled nor run")
    build = tmp_path_factory.mktemp("java") / "build"
    block = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(encoding="utf-8"), re.DOTALL)[0]
    compile_command, run_command = block.splitlines()
    assert run_command.startswith("java -cp build turnstone.CallbackDriver whsec_")
    command = compile_command.replace("javac -d build", f"javac -Xlint:all -Werror --release 11 -d {build}")
    done = subprocess.run(["bash", "-c", command], cwd=EXAMPLE, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return ["java", "-XX:TieredStopAtLevel=1", "-cp", str(build), "turnstone.CallbackDriver"]


def line(raw: bytes, headers: Mapping[str, str], session: str = "1", seq: int = 1) -> str:
    said = (headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    return "\t".join([*said, session, str(seq), base64.b64encode(raw).decode()])


def outcomes(java: list[str], lines: list[str], *secrets: str) -> list[str]:
    """What became of each line, with the numbers of the events that took effect by it."""
    done = subprocess.run(
        [*java, *(secrets or (SECRET,))],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def signed(event_id: str, secret: str = SECRET, *, age_s: float = 0.0, raw: bytes = b"{}") -> dict[str, str]:
    """Headers as the official library signs them."""
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    signature = standardwebhooks.Webhook(secret).sign(event_id, at, raw.decode())
    return {"webhook-id": event_id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}


async def test_java_takes_real_deliveries_and_refuses_what_was_changed(
    java: list[str], deliveries: list[Delivery]
) -> None:
    real = [(d.raw, dict(d.headers), d.session_id, int(d.seq or 0)) for d in deliveries]
    forged = [line(raw, headers) for d in deliveries for raw, headers in tampered(d.raw, dict(d.headers))]
    found = outcomes(java, [*forged, *(line(*args) for args in real)])
    assert found == ["REFUSED"] * len(forged) + ["APPLIED 1", "APPLIED 2"]


@pytest.fixture
async def sender(core: FakeCore) -> AsyncIterator[WebhookSender]:
    opened = WebhookSender(CallbackSettings(url=core.callback_url, signing_secret=SECRET))
    yield opened
    await opened.close()


async def test_java_verifies_any_body_that_our_sender_signs(
    java: list[str], sender: WebhookSender, core: FakeCore
) -> None:
    texts = ["", "plain", "작은 새 🐦", 'quote " and \\', "\x00\x7f\u2028", "line\nbreak\ttab", "é" * 5000]
    for number, text in enumerate(texts, 1):
        await sender.send(f"evt_{number}", {"text": text})
    lines = [line(d.raw, d.headers, seq=number) for number, d in enumerate(core.deliveries, 1)]
    assert outcomes(java, lines) == [f"APPLIED {number}" for number in range(1, len(texts) + 1)]


def test_java_refuses_what_is_too_old_too_new_or_no_signature_at_all(java: list[str]) -> None:
    fresh = signed("evt_1")
    bad: list[dict[str, Any]] = [
        signed("evt_1", age_s=310),
        signed("evt_1", age_s=-360),  # they grow older until they are read
        signed("evt_1", OTHER_SECRET),
        *(fresh | {"webhook-signature": value} for value in ("", "v1", "v1,", "v1,!", "v1a," + "A" * 44, "x")),
        *(fresh | {"webhook-timestamp": value} for value in ("", "now", "-5", "+5", "1" * 30, "1.5")),
        fresh | {"webhook-id": ""},
    ]
    good = [signed("evt_1", age_s=240), signed("evt_2", age_s=-290)]
    found = outcomes(
        java, [line(b"{}", headers) for headers in bad] + [line(b"{}", good[0]), line(b"{}", good[1], seq=2)]
    )
    assert found == ["REFUSED"] * len(bad) + ["APPLIED 1", "APPLIED 2"]


def test_java_goes_through_a_change_of_secrets(java: list[str]) -> None:
    both = signed("evt_1")
    both["webhook-signature"] = f"{signed('evt_1', OTHER_SECRET)['webhook-signature']} {both['webhook-signature']}"
    for secrets in ((SECRET,), (OTHER_SECRET,), (OTHER_SECRET, SECRET)):
        assert outcomes(java, [line(b"{}", both)], *secrets) == ["APPLIED 1"], secrets
    unpadded = SECRET.rstrip("=").removeprefix("whsec_")  # as some write it
    assert outcomes(java, [line(b"{}", signed("evt_1"))], unpadded) == ["APPLIED 1"]


def test_java_takes_each_event_once_and_a_session_s_in_order(java: list[str]) -> None:
    def event(seq: int, session: str = "1", event_id: str | None = None) -> str:
        return line(b"{}", signed(event_id or f"evt_{session}_{seq}"), session, seq)

    assert outcomes(
        java,
        [
            *(event(2), event(2), event(1), event(1), event(2)),
            *(event(1, "7"), event(4), event(3)),
            event(3, event_id="another"),
            *(event(7), "give-up\t1\t7", "give-up\t1\t7", event(6), event(8)),
        ],
    ) == [
        *("WAITS", "KNOWN", "APPLIED 1,2", "KNOWN", "KNOWN"),
        *("APPLIED 1", "WAITS", "APPLIED 3,4"),
        "KNOWN",
        *("WAITS", "GIVEN_UP 7", "GIVEN_UP", "APPLIED 6", "APPLIED 8"),
    ]
    for order in itertools.permutations((1, 2, 3)):
        found = outcomes(java, [event(seq) for seq in order])
        assert ",".join(word.split()[1] for word in found if " " in word) == "1,2,3", order


def test_java_wants_a_secret_that_is_one(java: list[str]) -> None:
    for secrets in ([], ["whsec_!!"], ["whsec_"]):
        done = subprocess.run([*java, *secrets], input="", capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode != 0, secrets
