"""Delivers callbacks: claims sessions that have something due, and sends each one's events in order.

Nothing here holds a transaction open during a POST, and no session waits for another: each claimed session (lane) is a
task of its own. Delivery is at least once: a crash between Core's answer and our note of it means one more try with the
same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from app.core import metrics
from app.core.settings import CallbackSettings
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
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
_EVENTS_PER_LANE = 10
"""Events sent before a result is written down; what a crash may send twice."""
_GIVE_UP_AT_ONCE = {410}
_GIVE_UP_SOON = {400, 413, 422}
_TRIES_UNTIL_SOON = 3


class CallbackRelay:
    """The delivery loop of one process.

    Args:
        settings: where to and how.
        worker: gives the id under which lanes are claimed now (it changes when this process has lost its lease).
    """

    def __init__(self, settings: CallbackSettings, worker: Callable[[], int]) -> None:
        self._settings = settings
        self._worker = worker
        self._woken = asyncio.Event()
        self._lanes: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Something was committed: look now."""
        self._woken.set()

    async def run(self) -> None:
        """Deliver until cancelled. Lanes in the middle of a POST are waited for, so that its outcome is written."""
        if self._settings.url is None:
            return
        sender = WebhookSender(self._settings)
        try:
            await self._loop(sender)
        finally:
            if self._lanes:
                await asyncio.wait(self._lanes, timeout=self._settings.timeout_s)
            await sender.close()

    async def _loop(self, sender: WebhookSender) -> None:
        held_released = False
        while True:
            self._woken.clear()
            try:
                if not held_released:
                    async with get_db_context() as db:
                        count = await CallbackRepository(db).release_held()
                    held_released = True
                    if count:
                        log.info("callbacks_released", count=count)
                wait = await self._claim_and_start(sender)
            except DATABASE_DOWN as error:
                log.warning("callback_relay_waits_for_database", error=fault(error))
                wait = _LOOK_AROUND_S
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):  # not wait_for, which may swallow a cancellation in Python 3.11
                    await self._woken.wait()

    async def _claim_and_start(self, sender: WebhookSender) -> float:
        """Start what is due as far as there is room; returns how long to sleep if nobody wakes us."""
        room = self._settings.concurrency - len(self._lanes)
        if room <= 0:
            return _LOOK_AROUND_S  # a lane that ends wakes us
        worker = self._worker()
        async with get_db_context() as db:
            callbacks = CallbackRepository(db)
            lanes = await callbacks.claim(worker, lanes=room)
            if not lanes:
                due_in = await callbacks.seconds_to_next()
                return _LOOK_AROUND_S if due_in is None else min(max(due_in, 0.01), _LOOK_AROUND_S)
        for lane in lanes:
            task = asyncio.create_task(self._deliver_lane(sender, lane, worker), name=f"callbacks of {lane.session_id}")
            self._lanes.add(task)
            task.add_done_callback(self._lane_ended)
        return 0.0 if len(lanes) == room else _LOOK_AROUND_S

    def _lane_ended(self, task: asyncio.Task[None]) -> None:
        self._lanes.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The claim stays until this process's lease ends; that is right only for what nobody foresaw.
            log.error("callback_lane_failed", error=type(error).__name__)
        self.wake()

    async def _deliver_lane(self, sender: WebhookSender, lane: ClaimedLane, worker: int) -> None:
        """Send a session's events in order until none is left or one has to wait."""
        results: list[TryResult] = []
        while True:
            try:
                async with get_db_context() as db:
                    callbacks = CallbackRepository(db)
                    if results:
                        await callbacks.report(results)
                        if results[-1].status is CallbackStatusEnum.PENDING:
                            await callbacks.release_lane(lane.session_id, worker, delay_s=results[-1].delay_s)
                            return
                    results = []
                    events = await callbacks.next_events(lane.session_id, worker, limit=_EVENTS_PER_LANE)
                    if not events:
                        if await callbacks.remove_lane(lane, worker):
                            return
                        wakes = await callbacks.wakes(lane.session_id, worker)
                        if wakes is None:
                            return
                        lane = ClaimedLane(lane.session_id, wakes)
                        continue
            except DATABASE_DOWN as error:
                log.warning("callback_outcome_waits_for_database", error=fault(error))
                await asyncio.sleep(_LOOK_AROUND_S)
                continue
            for event in events:
                result = await self._try(sender, event)
                results.append(result)
                if result.status is CallbackStatusEnum.PENDING:
                    break

    async def _try(self, sender: WebhookSender, event: CallbackEvent) -> TryResult:
        outcome = await sender.send(event.event_id, event.body())
        result = judge(outcome, event, self._settings.retry_delays_s)
        metrics.CALLBACK_TRIES.labels(type(outcome).__name__.lower()).inc()
        if result.status is CallbackStatusEnum.DELIVERED:
            metrics.CALLBACK_LATENCY.observe((datetime.now(UTC) - event.occurred_at).total_seconds())
        else:
            log.warning(
                "callback_not_delivered",
                event_id=event.event_id,
                type=event.type,
                attempt=event.attempts + 1,
                reason=result.error,
                next_try_s=result.delay_s if result.status is CallbackStatusEnum.PENDING else None,
            )
        return result


def judge(outcome: Delivered | Refused | Unreachable, event: CallbackEvent, delays_s: tuple[float, ...]) -> TryResult:
    """What a try's outcome means for the event: delivered, tried again after a delay, or given up."""
    if isinstance(outcome, Delivered):
        return TryResult(event.id, CallbackStatusEnum.DELIVERED)
    tries = event.attempts + 1
    if isinstance(outcome, Unreachable):
        reason, allowed, asked_for = outcome.reason, math.inf, None
    else:
        reason, allowed, asked_for = f"HTTP {outcome.status}", math.inf, None
        if outcome.status in _GIVE_UP_AT_ONCE:
            allowed = 1
        elif outcome.status in _GIVE_UP_SOON:
            allowed = _TRIES_UNTIL_SOON
        elif outcome.status in {429, 503}:
            asked_for = outcome.retry_after_s
    if tries >= min(allowed, len(delays_s) + 1):
        return TryResult(event.id, CallbackStatusEnum.FAILED, reason)
    delay = delays_s[tries - 1] if asked_for is None else asked_for
    return TryResult(event.id, CallbackStatusEnum.PENDING, reason, delay)
