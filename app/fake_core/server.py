"""The fake Core as a server: ``POST /callbacks``, and what it knows under ``GET /`` and ``GET /events``."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from app.fake_core.answer import Answer
from app.fake_core.chaos import Chaos
from app.fake_core.ledger import Ledger
from app.fake_core.receiver import LARGEST_BODY, Delivery, Receiver, give, reset_connection
from app.fake_core.store import Store

PATH = "/callbacks"


class CoreServer:
    """A Core that keeps what it takes, and misbehaves as ``chaos`` says.

    A POST whose signature or key is wrong gets 401, one that is no event (no JSON object, no ``webhook-id``) 400; both
    whatever the chaos.

    Args:
        receiver: reads and checks.
        chaos: decides.
        ledger: keeps, in memory.
        store: keeps, in a file; what it holds already is put into the ledger.

    Raises:
        StartupError: the store holds something else.
    """

    def __init__(self, receiver: Receiver, chaos: Chaos, ledger: Ledger, store: Store | None = None) -> None:
        self._receiver = receiver
        self._chaos = chaos
        self.ledger = ledger
        self._store = store
        self._begun = time.monotonic()
        self._posts = 0
        self._refused: Counter[str] = Counter()
        self._faults: Counter[str] = Counter()
        self._tries: Counter[str] = Counter()
        if store is not None:
            for item in store.items():
                ledger.add(item)

    @property
    def age_s(self) -> float:
        """Seconds since it was made; the chaos's times count from there."""
        return time.monotonic() - self._begun

    def status(self) -> dict[str, Any]:
        """Counts: of POSTs and faults since the start, of events in all."""
        return {
            "posts": self._posts,
            **self.ledger.counts(),
            "bad_signatures": self._refused["signature"],
            "bad_keys": self._refused["key"],
            "no_events": self._refused["event"],
            "not_stored": self._refused["store"],
            "faults": dict(self._faults),
            "chaos": self._chaos.text,
            "seed": self._chaos.seed,
            "now": self._chaos.now(self.age_s),
        }

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_post(PATH, self._receive)
        app.router.add_get("/", self._show_status)
        app.router.add_get("/events", self._show_events)
        return app

    async def _receive(self, request: web.Request) -> web.Response:
        self._posts += 1
        if self._chaos.down(self.age_s):
            self._faults["down"] += 1
            reset_connection(request.transport)
            return web.Response(status=503)  # nobody hears it
        delivery = await self._receiver.read(request)
        return await give(request, delivery, self._refusal(delivery) or await self._handle(delivery))

    def _refusal(self, delivery: Delivery) -> Answer | None:
        if not delivery.trusted:
            self._refused["signature" if delivery.signature is False else "key"] += 1
            return Answer(status=401)
        if not delivery.id or not delivery.body:
            self._refused["event"] += 1
            return Answer(status=400)
        return None

    async def _handle(self, delivery: Delivery) -> Answer:
        # An event's id differs from run to run; its place in its session does not.
        event = str(delivery.id) if delivery.seq is None else f"{delivery.session_id}/{delivery.seq}"
        self._tries[event] += 1
        fault = self._chaos.decide(event, delivery.session_id, self._tries[event], self.age_s)
        if fault is not None:
            self._faults[fault.word] += 1
            if fault.forgets:
                self.ledger.forget_ids()
            if not fault.stores:
                return fault.answer
        try:
            await self._keep(delivery)
        except OSError:
            self._refused["store"] += 1
            return Answer(status=507)  # insufficient storage
        return fault.answer if fault is not None else Answer()

    async def _keep(self, delivery: Delivery) -> None:
        item = self.ledger.new(delivery)
        if item is not None:
            if self._store is not None:
                self._store.append(item)
            self.ledger.add(item)
        if self._store is not None:
            await self._store.settle()  # for a duplicate too: the first one may not be on the disk yet

    async def _show_status(self, _request: web.Request) -> web.Response:
        return web.json_response(self.status())

    async def _show_events(self, request: web.Request) -> web.Response:
        try:
            after = int(request.query.get("after", "0"))
            limit = int(request.query["limit"]) if "limit" in request.query else None
        except ValueError:
            after = limit = -1
        if after < 0 or (limit is not None and limit < 0):
            return web.json_response({"error": "after and limit are numbers, from 0 on"}, status=400)
        session_id = request.query.get("session_id")
        return web.json_response(self.ledger.events(after=after, session_id=session_id, limit=limit))


@asynccontextmanager
async def serving(app: web.Application, listener: socket.socket) -> AsyncIterator[None]:
    """Serve for as long as the block lasts. A handler whose client has gone is cancelled."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()
