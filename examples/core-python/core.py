"""A small Core: receives Turnstone's callbacks, fills gaps from its feed, and keeps who has used what.

python core.py serve     receive, and read the feed besides
python core.py follow    read the feed alone, without receiving anything (--once: to its end)
python core.py bill      tokens by exam and participant
python core.py results   of each submission what counts now; one that people still look at is open
python core.py compare   hold what was taken against the whole feed; 1 where they differ
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import logging
import os
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from ledger import Ledger
from standardwebhooks import Webhook, WebhookVerificationError

log = logging.getLogger("core")

LONGEST_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Config:
    """From the environment.

    Attributes:
        secrets: `whsec_…`, separated by spaces: two while they are changed.
        api_key: what `X-API-Key` has to be; not looked at when empty.
        turnstone: its address, for the feed; `key` is its key, where it wants one.
        feed_every_s: how often to look into the feed when nothing is missing.
    """

    port: int = field(default_factory=lambda: int(os.environ.get("CORE_PORT", "9000")))
    database: str = field(default_factory=lambda: os.environ.get("CORE_DB", "core.sqlite"))
    secrets: tuple[str, ...] = field(default_factory=lambda: tuple(os.environ.get("CORE_SECRETS", "").split()))
    api_key: str = field(default_factory=lambda: os.environ.get("CORE_API_KEY", ""))
    turnstone: str = field(default_factory=lambda: os.environ.get("CORE_TURNSTONE_URL", "http://127.0.0.1:8000"))
    key: str = field(default_factory=lambda: os.environ.get("CORE_TURNSTONE_KEY", ""))
    feed_every_s: float = field(default_factory=lambda: float(os.environ.get("CORE_FEED_EVERY_S", "30")))


class Receiver:
    """What Turnstone POSTs to."""

    def __init__(self, config: Config, ledger: Ledger, missing: asyncio.Event) -> None:
        self._webhooks = [Webhook(secret) for secret in config.secrets]
        self._api_key = config.api_key.encode()
        self._ledger = ledger
        self._missing = missing

    def is_genuine(self, headers: Mapping[str, str], raw: bytes) -> bool:
        """Whether the raw body bears the key, and was signed with one of the secrets less than five minutes ago."""
        if self._api_key and not hmac.compare_digest(headers.get("X-API-Key", "").encode(), self._api_key):
            return False
        for webhook in self._webhooks:
            # ValueError: the header is not what it should be at all.
            with suppress(WebhookVerificationError, ValueError):
                webhook.verify(raw, dict(headers))
                return True
        return False

    async def receive(self, request: web.Request) -> web.Response:
        """Take one event. 204 is said when it is safe, and not before."""
        raw = await request.read()
        if not self.is_genuine(request.headers, raw):
            return web.Response(status=401)  # tried again, so that a wrong secret can be mended
        try:
            waits = await asyncio.to_thread(self._ledger.take, request.headers["webhook-id"], json.loads(raw))
        except sqlite3.OperationalError:
            return web.Response(status=503, headers={"Retry-After": "5"})
        if waits:
            self._missing.set()
        return web.Response(status=204)


async def read_feed(config: Config, ledger: Ledger) -> None:
    """Read the feed from where it was left to its end.

    Raises:
        aiohttp.ClientError, TimeoutError: it could not be read; what was read is safe.
    """
    headers = {"Authorization": f"Bearer {config.key}"} if config.key else {}
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, raise_for_status=True) as client:
        more = True
        while more:
            query = {"after": ledger.cursor(), "limit": "200"}
            async with client.get(f"{config.turnstone}/api/callbacks/events", params=query) as answer:
                part = await answer.json()
            await asyncio.to_thread(ledger.take_part_of_feed, part["items"])
            more = part["next"] is not None
    await asyncio.to_thread(ledger.give_up_gaps)


async def follow(config: Config, ledger: Ledger, missing: asyncio.Event) -> None:
    """Read the feed again and again: at once when something is missing, and every now and then."""
    while True:
        missing.clear()
        try:
            await read_feed(config, ledger)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("the feed cannot be read: %s", type(error).__name__)
            await asyncio.sleep(1)
        with suppress(TimeoutError):
            async with asyncio.timeout(config.feed_every_s):
                await missing.wait()


async def serve(config: Config) -> None:
    """Receive until the process is ended."""
    ledger, missing = Ledger(config.database), asyncio.Event()
    app = web.Application(client_max_size=LONGEST_BODY_BYTES)
    app.router.add_post("/callbacks", Receiver(config, ledger, missing).receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", config.port).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}/callbacks", flush=True)
    await follow(config, ledger, missing)


async def compare(config: Config) -> int:
    """Read the whole feed into an empty ledger, and print what differs from ours."""
    ours, theirs = Ledger(config.database), Ledger(":memory:")
    await read_feed(config, theirs)
    missing, strange = theirs.ids() - ours.ids(), ours.ids() - theirs.ids()
    bills = ours.bill(), theirs.bill()
    differing = sorted(who for who in bills[0].keys() | bills[1].keys() if bills[0].get(who) != bills[1].get(who))
    for who in differing:
        print(f"exam {who[0]}, participant {who[1]}: {bills[0].get(who)} here, {bills[1].get(who)} by the feed")
    print(f"{len(missing)} events missing here, {len(strange)} not in the feed, {len(differing)} bills differ")
    return 1 if missing or strange or differing else 0


def main() -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["serve", "follow", "bill", "results", "compare"])
    parser.add_argument("--once", action="store_true", help="follow: stop at the feed's end")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    config = Config()
    if arguments.command == "serve" and not config.secrets:
        parser.error("set CORE_SECRETS to what Turnstone signs with, TURNSTONE_CALLBACKS__SIGNING_SECRET")
    with suppress(KeyboardInterrupt):
        match arguments.command:
            case "serve":
                asyncio.run(serve(config))
            case "follow" if arguments.once:
                asyncio.run(read_feed(config, Ledger(config.database)))
            case "follow":
                asyncio.run(follow(config, Ledger(config.database), asyncio.Event()))
            case "bill":
                for (exam, participant), figures in Ledger(config.database).bill().items():
                    print(exam, participant, *figures)
            case "results":
                for submission, revision, status, total, grade in Ledger(config.database).results():
                    shown = "open" if total is None else f"{total:.2f} {grade}"
                    print(submission, f"revision {revision}", status, shown)
            case "compare":
                return asyncio.run(compare(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
