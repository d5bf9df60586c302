"""A fake Core: receives callbacks over HTTP, keeps everything that came, and answers as told.

::

    with FakeCore(secret="whsec_…") as core:
        core.next(Answer(status=503, headers=(("Retry-After", "1"),)))  # the first POST, whatever it is
        core.next(Answer(action="hang"), session_id="7")  # the first POST of session 7
        ...  # the code under test posts to core.callback_url
        core.wait_for(3)
        assert [d.body["type"] for d in core.events("7")] == ["usage", "message_response"]
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from tests.support.servers import WAIT_S, AppThread, Journal, reset_connection

Predicate = Callable[[list["Delivery"]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How Core answers one POST.

    Attributes:
        action: ``hang``: no answer, ever. ``reset``, ``close``: the connection ends (RST, FIN) in the place of an
            answer.
        delay_s: wait before it.
        times: how many POSTs get it when it stands in a queue.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: str = "{}"
    delay_s: float = 0.0
    action: Literal["answer", "hang", "reset", "close"] = "answer"
    times: int = 1


@dataclass(slots=True, eq=False)
class Delivery:
    """One POST as it came. ``at`` is ``time.monotonic()`` seconds.

    Attributes:
        headers: with names in lower case.
        body: the parsed JSON object; empty when it was none.
        signature: whether the Standard Webhooks signature fits; ``None`` when Core knows no secret.
        status: what was answered; ``None`` while nothing was.
        ended_at: when the answer was sent or the connection ended.
    """

    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Any]
    at: float
    signature: bool | None
    status: int | None = None
    ended_at: float | None = None
    path: str = "/callbacks"

    @property
    def id(self) -> str | None:
        """``webhook-id``, the same for every try of one event."""
        return self.headers.get("webhook-id")

    @property
    def session_id(self) -> str:
        """The session it belongs to, as text; empty when the body names none."""
        return str(self.body.get("session_id", ""))

    @property
    def seq(self) -> int | None:
        """``callback_seq``."""
        return self.body.get("callback_seq")

    @property
    def type(self) -> str | None:
        """The event's type."""
        return self.body.get("type")

    @property
    def accepted(self) -> bool:
        """Whether it was answered with a 2xx."""
        return self.status is not None and 200 <= self.status < 300


class FakeCore(AppThread):
    """Core's receiver on a thread of its own.

    A POST is answered by the next answer queued for its session, else the next one queued for all, else the
    session's default, else ``default``. With an ``api_key``, a POST that does not bear it gets 401; with a
    ``secret``, one whose signature does not fit gets 401.
    """

    def __init__(self, *, secret: str | None = None, api_key: str | None = None, port: int = 0) -> None:
        super().__init__(self._application, port=port)
        self.default = Answer()
        self.session_defaults: dict[str, Answer] = {}
        self.deliveries: Journal[Delivery] = Journal()
        self._webhook = Webhook(secret) if secret is not None else None
        self._api_key = api_key
        self._queues: defaultdict[str | None, deque[Answer]] = defaultdict(deque)

    # what a test uses

    @property
    def callback_url(self) -> str:
        """Where to post."""
        return f"{self.url}/callbacks"

    def next(self, *answers: Answer, session_id: str | int | None = None) -> None:
        """Queue answers, for one session or for whatever comes."""
        queue = self._queues[None if session_id is None else str(session_id)]
        for answer in answers:
            queue.extend([answer] * answer.times)

    def always(self, answer: Answer, session_id: str | int | None = None) -> None:
        """Answer so from now on when nothing is queued, for one session or for all."""
        if session_id is None:
            self.default = answer
        else:
            self.session_defaults[str(session_id)] = answer

    def reset_answers(self) -> None:
        """Forget what was told: accept whatever comes."""
        self.default = Answer()
        self.session_defaults.clear()
        self._queues.clear()

    def reset(self) -> None:
        """Forget what came and what was told."""
        self.reset_answers()
        self.deliveries.clear()

    def wait_for(self, what: int | Predicate, timeout: float = WAIT_S) -> list[Delivery]:
        """Block until that many different events were accepted, or the predicate holds for all POSTs."""
        if callable(what):
            return self.deliveries.wait(what, timeout)
        count = what
        return self.deliveries.wait(lambda items: len({d.id for d in items if d.accepted}) >= count, timeout)

    async def reaches(self, what: int | Predicate, timeout: float = WAIT_S) -> list[Delivery]:
        """``wait_for`` for a coroutine."""
        return await asyncio.to_thread(self.wait_for, what, timeout)

    def events(self, session_id: str | int | None = None) -> list[Delivery]:
        """What a receiver that remembers ids has: accepted POSTs, the first of each id, in the order they came."""
        first: dict[str | None, Delivery] = {}
        for delivery in self.deliveries:
            if delivery.accepted and (session_id is None or delivery.session_id == str(session_id)):
                first.setdefault(delivery.id, delivery)
        return list(first.values())

    def by_session(self) -> dict[str, list[Delivery]]:
        """Every POST, refused ones and repeats too, by session in the order they came."""
        sessions: defaultdict[str, list[Delivery]] = defaultdict(list)
        for delivery in self.deliveries:
            sessions[delivery.session_id].append(delivery)
        return dict(sessions)

    def unique_ids(self) -> set[str]:
        """The ids of all events that came, accepted or not."""
        return {delivery.id for delivery in self.deliveries if delivery.id is not None}

    # the server

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/callbacks", self._receive)
        app.router.add_post("/api/{path:.*}", self._receive)
        return app

    async def _receive(self, request: web.Request) -> web.Response:
        at = time.monotonic()
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        delivery = Delivery(headers, raw, _parse(raw), at, self._verify(raw, headers), path=request.path)
        self.deliveries.add(delivery)
        answer = self._choose(delivery)
        try:
            if answer.action == "hang":
                await asyncio.sleep(math.inf)
            if answer.delay_s > 0:
                await asyncio.sleep(answer.delay_s)
            if answer.action in ("reset", "close"):
                _end(request.transport, with_reset=answer.action == "reset")
            else:
                delivery.status = answer.status
        finally:
            delivery.ended_at = time.monotonic()
            self.deliveries.changed()
        return web.Response(
            status=answer.status, headers=list(answer.headers), text=answer.body, content_type="application/json"
        )

    def _verify(self, raw: bytes, headers: dict[str, str]) -> bool | None:
        if self._webhook is None:
            return None
        try:
            self._webhook.verify(raw, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):  # ValueError: the header cannot be read at all
            return False
        return True

    def _choose(self, delivery: Delivery) -> Answer:
        if delivery.signature is False:
            return Answer(status=401)
        if self._api_key is not None and delivery.headers.get("x-api-key") != self._api_key:
            return Answer(status=401)
        for key in (delivery.session_id, None):
            if self._queues[key]:
                return self._queues[key].popleft()
        return self.session_defaults.get(delivery.session_id, self.default)


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _end(transport: asyncio.Transport | None, *, with_reset: bool) -> None:
    if transport is None:
        return
    if with_reset:
        reset_connection(transport)
    else:
        transport.close()
