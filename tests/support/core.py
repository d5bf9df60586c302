"""A fake Core: receives callbacks over HTTP, keeps everything that came, and answers as told.

It reads and answers as `app.fake_core` does; there chance decides, here each test says what it wants.

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
import threading
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from app.fake_core import answer as of_core
from app.fake_core.receiver import LARGEST_BODY, Delivery, Receiver, give
from tests.support.servers import WAIT_S, AppThread, Journal

Predicate = Callable[[list["Delivery"]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(of_core.Answer):
    """How Core answers one POST. ``times``: how many POSTs get it when it stands in a queue.

    ``after``: it is given once this is set, so that what has to come before does, however long it takes.
    """

    times: int = 1
    after: threading.Event | None = None


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
        self._receiver = Receiver(secret=secret, api_key=api_key)
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
        app = web.Application(client_max_size=LARGEST_BODY)
        app.router.add_post("/callbacks", self._receive)
        app.router.add_post("/api/{path:.*}", self._receive)
        return app

    async def _receive(self, request: web.Request) -> web.Response:
        delivery = await self._receiver.read(request)
        self.deliveries.add(delivery)
        try:
            answer = self._choose(delivery)
            while answer.after is not None and not answer.after.is_set():
                await asyncio.sleep(0.01)
            return await give(request, delivery, answer)
        finally:
            self.deliveries.changed()

    def _choose(self, delivery: Delivery) -> Answer:
        if not delivery.trusted:
            return Answer(status=401)
        for key in (delivery.session_id, None):
            if self._queues[key]:
                return self._queues[key].popleft()
        return self.session_defaults.get(delivery.session_id, self.default)
