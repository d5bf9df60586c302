"""Delivers callbacks: claims sessions that have something due, and sends each one's events in order.

Nothing here holds a transaction open during a POST, and no session waits for another: each claimed session (lane) is a
task of its own. Delivery is at least once: a crash between Core's answer and our note of it means one more try with the
same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from app.core import metrics
from app.core.settings import CallbackSettings
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.profiles import Skipped
from app.infrastructure.repositories.callback_repository import (
    CallbackEvent,
    CallbackRepository,
    ClaimedLane,
    TryResult,
)
from app.infrastructure.webhook import Delivered, Refused, Unreachable, WebhookSender

log = structlog.get_logger()

_LOOK_AROUND_S = 1.0
"""How often to look for due lanes without having been woken: for events of other processes, and after an outage."""
_LOOK_AGAIN_S = 0.05
"""The shortest pause between two looks, for lanes that are due and that nobody can claim at this moment."""
_TIDY_EVERY_S = 2.0
_EVENTS_PER_CLAIM = 10
_CLAIM_S = 1.0
"""Events sent, and time after which no further one is begun, before the results are written down.

It bounds what a crash may send twice, and for how long a session with a long backlog keeps its place.
"""
_PLACE_S = 0.5
_MOST_PER_PLACE = 16
"""Lanes at once for each place: those that have made room cost a connection and no work, but not without end."""
_GIVE_UP_AT_ONCE = {410}
_GIVE_UP_SOON = {400, 413, 422}
_TRIES_UNTIL_SOON = 3
_SAYS_WHEN = {429, 503}
_ASKED_BEYOND_TRIES_S = 60.0
_MAY_HAVE_ARRIVED = "; it may have arrived, so it is not sent again unless it is replayed"
_SAYS_NOT_TAKEN = {500, 501, 503}
"""Of the answers from 500 on: Core's own. The others are a gateway's, which may have passed the event on."""


class CallbackRelay:
    """The delivery loop of one process.

    Lanes that fail, and wait for another try, may take three quarters of the places, and so may the others: neither
    kind can keep the other waiting, however many there are. Nor can those that Core keeps waiting: who has had a place
    for half a second makes room, and goes on beside the others.

    Args:
        settings: where to and how.
        worker: gives the id under which lanes are claimed now (it changes when this process has lost its lease).
    """

    def __init__(self, settings: CallbackSettings, worker: Callable[[], int]) -> None:
        self._settings = settings
        self._worker = worker
        self._places_per_kind = max(1, settings.concurrency * 3 // 4)
        self._woken = asyncio.Event()
        self._lanes: dict[asyncio.Task[None], ClaimedLane] = {}
        self._in_place: dict[asyncio.Task[None], ClaimedLane] = {}
        self._stopping = False

    def wake(self) -> None:
        """Something was committed: look now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled. POSTs under way are waited for, so that their outcome is written."""
        if self._settings.url is None:
            return
        self._stopping = False
        sender = WebhookSender(self._settings)
        try:
            await self._loop(sender)
        finally:
            self._stopping = True
            if self._lanes:
                await asyncio.wait(self._lanes, timeout=self._settings.timeout_s)
            for task in self._lanes:
                task.cancel()  # the database is away: what these lanes have sent will be sent again
            await sender.close()

    async def _loop(self, sender: WebhookSender) -> None:
        tidy_at = 0.0
        while True:
            self._woken.clear()
            try:
                if time.monotonic() >= tidy_at:
                    await self._tidy()
                    tidy_at = time.monotonic() + _TIDY_EVERY_S
                wait = await self._claim_and_start(sender)
            except DATABASE_DOWN as error:
                log.warning("callback_relay_waits_for_database", error=fault(error))
                wait, tidy_at = _LOOK_AROUND_S, 0.0
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):  # not wait_for, which may swallow a cancellation in Python 3.11
                    await self._woken.wait()

    async def _tidy(self) -> None:
        """Release what was held, by a process without a receiver or by a claim that nobody here knows of.

        Such a claim is left by a commit whose answer was lost, and by a lane that ended by a bug.
        """
        worker = self._worker()
        async with get_db_context() as db:
            callbacks = CallbackRepository(db)
            held = await callbacks.release_held()
            forgotten = await callbacks.release_forgotten(worker, self._sessions_of(worker))
        if held or forgotten:
            log.info("callbacks_released", events=held, lanes=forgotten)

    async def _claim_and_start(self, sender: WebhookSender) -> float:
        """Start what is due as far as there is room; returns how long to sleep if nobody wakes us."""
        places = self._settings.concurrency
        room = min(places - len(self._in_place), places * _MOST_PER_PLACE - len(self._lanes))
        if room <= 0:
            return _LOOK_AROUND_S  # a lane that ends or makes room wakes us
        worker = self._worker()
        busy = Counter(lane.failing for lane in self._in_place.values())
        async with get_db_context() as db:
            callbacks = CallbackRepository(db)
            lanes, due_in = await callbacks.claim(
                worker,
                fresh=max(self._places_per_kind - busy[False], 0),
                failing=max(self._places_per_kind - busy[True], 0),
                room=room,
            )
            events = await callbacks.next_events(lanes, limit=_EVENTS_PER_CLAIM) if lanes else {}
        for lane in lanes:
            self._start(sender, lane, events[lane.session_id])
        return _LOOK_AROUND_S if due_in is None else min(max(due_in, _LOOK_AGAIN_S), _LOOK_AROUND_S)

    def _sessions_of(self, worker: int) -> set[int]:
        return {lane.session_id for lane in self._lanes.values() if lane.worker == worker}

    def _start(self, sender: WebhookSender, lane: ClaimedLane, events: Sequence[CallbackEvent]) -> None:
        before = [task for task, other in self._lanes.items() if other.session_id == lane.session_id]
        delivery = self._deliver(sender, lane, events, before)
        task = asyncio.create_task(delivery, name=f"callbacks of {lane.session_id}")
        self._lanes[task] = self._in_place[task] = lane
        task.add_done_callback(self._lane_ended)
        asyncio.get_running_loop().call_later(_PLACE_S, self._make_room, task)

    def _make_room(self, task: asyncio.Task[None]) -> None:
        if self._in_place.pop(task, None) is not None:
            self.wake()

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        lane = self._lanes.pop(task)
        self._in_place.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its claim is released when we tidy; not at once, for the error will come again.
            log.error("callback_lane_failed", session_id=lane.session_id, error=type(error).__name__)
        self.wake()

    async def _deliver(
        self,
        sender: WebhookSender,
        lane: ClaimedLane,
        events: Sequence[CallbackEvent],
        before: list[asyncio.Task[None]],
    ) -> None:
        """Send a session's next events, and write down what became of them.

        ``before``: tasks that had the session; they may not have heard yet that their last commit was done.
        """
        if before:
            await asyncio.wait(before)
        results = await self._send_in_order(sender, lane, events)
        while True:
            try:
                async with get_db_context() as db:
                    await CallbackRepository(db).write_down(lane, results)
            except DATABASE_DOWN as error:
                log.warning("callback_lane_waits_for_database", error=fault(error))
                await asyncio.sleep(_LOOK_AROUND_S)
            else:
                return

    async def _send_in_order(
        self, sender: WebhookSender, lane: ClaimedLane, events: Sequence[CallbackEvent]
    ) -> list[TryResult]:
        """Send events until one has to wait, the claim's time is up, or this process is to stop or was fenced."""
        results: list[TryResult] = []
        begun = time.monotonic()
        for event in events:
            if self._stopping or self._worker() != lane.worker or (results and time.monotonic() - begun > _CLAIM_S):
                break
            if sender.sends_once(event.type):
                mine = await self._begin_only_try(event)
                if mine is None:
                    break
                result = await self._try(sender, event) if mine else _lost_sight_of(event)
            else:
                result = await self._try(sender, event)
            results.append(result)
            if result.status is CallbackStatusEnum.PENDING:
                break
        return results

    async def _begin_only_try(self, event: CallbackEvent) -> bool | None:
        """Write down, before it happens, that an event which must not arrive twice is sent.

        Returns:
            ``False`` where a try was begun before whose outcome nobody wrote; ``None`` where the database is away.
        """
        try:
            async with get_db_context() as db:
                return await CallbackRepository(db).begin_only_try(event.id)
        except DATABASE_DOWN as error:
            log.warning("callback_lane_waits_for_database", error=fault(error))
            return None

    async def _try(self, sender: WebhookSender, event: CallbackEvent) -> TryResult:
        outcome = await sender.send(event.event_id, event.body())
        age_s = max((datetime.now(UTC) - event.occurred_at).total_seconds(), 0.0)
        once = sender.sends_once(event.type)
        result = judge(outcome, event, self._settings.retry_delays_s, age_s, once=once)
        metrics.CALLBACK_TRIES.labels(type(outcome).__name__.lower()).inc()
        if isinstance(outcome, Delivered):
            metrics.CALLBACK_LATENCY.observe(age_s)
        elif not isinstance(outcome, Skipped):
            log.warning(
                "callback_not_delivered",
                event_id=event.event_id,
                type=event.type,
                attempt=result.number,
                reason=result.error,
                next_try_s=result.delay_s if result.status is CallbackStatusEnum.PENDING else None,
            )
        return result


def judge(
    outcome: Delivered | Refused | Unreachable | Skipped,
    event: CallbackEvent,
    delays_s: Sequence[float],
    age_s: float,
    *,
    once: bool = False,
) -> TryResult:
    """What a try's outcome means for the event: delivered, tried again after a delay, or given up.

    Core may say when to come again. Tries at its own times do not end the event before the delays together have
    passed: a Core that asks for a second's patience ten times is not given up after ten seconds.

    Args:
        outcome: of the try that has just been made.
        event: as it was before it.
        delays_s: seconds before each further try.
        age_s: seconds since the event was recorded.
        once: Core bears no second one, so what may have arrived is given up.
    """
    number = event.attempts + 1
    if isinstance(outcome, Skipped):
        return TryResult(event.id, number, CallbackStatusEnum.DELIVERED, f"not sent: {outcome.reason}")
    if isinstance(outcome, Delivered):
        return TryResult(event.id, number, CallbackStatusEnum.DELIVERED)
    reason = outcome.reason if isinstance(outcome, Unreachable) else f"HTTP {outcome.status}"
    if once and _may_have_arrived(outcome):
        return TryResult(event.id, number, CallbackStatusEnum.FAILED, reason + _MAY_HAVE_ARRIVED)
    status = outcome.status if isinstance(outcome, Refused) else None
    asked_for = outcome.retry_after_s if isinstance(outcome, Refused) and status in _SAYS_WHEN else None
    if status in _GIVE_UP_AT_ONCE or (status in _GIVE_UP_SOON and number >= _TRIES_UNTIL_SOON):
        return TryResult(event.id, number, CallbackStatusEnum.FAILED, reason)
    if number <= len(delays_s):
        delay = delays_s[number - 1] if asked_for is None else asked_for
    elif asked_for is not None and age_s < sum(delays_s):
        delay = max(asked_for, min(delays_s[-1], _ASKED_BEYOND_TRIES_S))
    else:
        return TryResult(event.id, number, CallbackStatusEnum.FAILED, reason)
    return TryResult(event.id, number, CallbackStatusEnum.PENDING, reason, delay)


def _may_have_arrived(outcome: Refused | Unreachable) -> bool:
    """Whether Core may have taken an event although it was not heard to say so."""
    if isinstance(outcome, Unreachable):
        return outcome.connected
    return outcome.status >= 500 and outcome.status not in _SAYS_NOT_TAKEN


def _lost_sight_of(event: CallbackEvent) -> TryResult:
    """The outcome of a try that a process had begun and did not live to write down."""
    reason = "interrupted while it was sent" + _MAY_HAVE_ARRIVED
    log.warning("callback_not_delivered", event_id=event.event_id, type=event.type, reason=reason)
    return TryResult(event.id, event.attempts + 1, CallbackStatusEnum.FAILED, reason)
