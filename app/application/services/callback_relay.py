"""Delivers callbacks: claims sessions that have something due, and sends each one's events in order.

Nothing here holds a transaction open during a POST, and no session waits for another: each claimed session (lane) is a
task of its own. Delivery is at least once: a crash between Core's answer and our note of it means one more try with the
same ``webhook-id``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import structlog

from app.application.services.callback_verdict import judge, lost_sight_of
from app.core import metrics
from app.core.settings import CallbackSettings
from app.domain.circuit import Circuit, CircuitState
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.profiles import Skipped
from app.infrastructure.repositories.callback_lanes import CallbackLanes, ClaimedLane, TryResult
from app.infrastructure.repositories.callback_repository import CallbackEvent
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
_MOST_PER_PLACE = 8
"""Lanes at once for each place: those that have made room cost a connection and no work, but not without end."""
_UNAVAILABLE = 503
_JITTER = 1.1


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
        self._circuit = Circuit(settings.retry_delays_s)
        self._ahead: set[ClaimedLane] = set()
        self._stopping = False
        self._patience_s = settings.timeout_s

    def wake(self) -> None:
        """Something was committed: look now."""
        self._woken.set()

    def hurry(self) -> None:
        """At the end wait for no POST: what becomes of those under way is lost, and their events are sent again."""
        self._patience_s = 0.0
        if self._stopping:
            for task in self._lanes:
                task.cancel()

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
                await asyncio.wait(self._lanes, timeout=self._patience_s)
            lanes = list(self._lanes)
            for task in lanes:
                task.cancel()  # the database is away: what these lanes have sent will be sent again
            await asyncio.gather(*lanes, return_exceptions=True)
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
            callbacks = CallbackLanes(db)
            held = await callbacks.release_held()
            forgotten = await callbacks.release_forgotten(worker, self._sessions_of(worker))
        if held or forgotten:
            log.info("callbacks_released", events=held, lanes=forgotten)

    async def _claim_and_start(self, sender: WebhookSender) -> float:
        """Start what is due as far as there is room; returns how long to sleep if nobody wakes us."""
        if self._circuit.state is not CircuitState.CLOSED:
            return await self._send_ahead(sender)
        places = self._settings.concurrency
        room = min(places - len(self._in_place), places * _MOST_PER_PLACE - len(self._lanes))
        if room <= 0:
            return _LOOK_AROUND_S  # a lane that ends or makes room wakes us
        worker = self._worker()
        busy = Counter(lane.failing for lane in self._in_place.values())
        async with get_db_context() as db:
            callbacks = CallbackLanes(db)
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

    async def _send_ahead(self, sender: WebhookSender) -> float:
        """Nobody answers: let one lane now and then see whether Core is back; the others' tries are kept.

        One that has not failed may go at once. Of the others one goes after each pause.
        """
        now = time.monotonic()
        if self._circuit.new_one_may_go(now) and await self._send_one(sender, failing=False):
            return _LOOK_AROUND_S
        wait = self._circuit.wait_s(now)
        if wait or self._circuit.state is not CircuitState.OPEN:
            return min(wait or _LOOK_AROUND_S, _LOOK_AROUND_S)
        if await self._send_one(sender, failing=True):
            self._go_ahead()
        return _LOOK_AROUND_S

    def _go_ahead(self) -> None:
        """The lane that was just claimed goes ahead, unless another one has found out meanwhile."""
        now = time.monotonic()
        if self._circuit.state is CircuitState.OPEN and not self._circuit.wait_s(now):
            self._circuit.go_ahead(now)

    async def _send_one(self, sender: WebhookSender, *, failing: bool) -> bool:
        async with get_db_context() as db:
            callbacks = CallbackLanes(db)
            lanes, _ = await callbacks.claim(self._worker(), fresh=int(not failing), failing=int(failing), room=1)
            events = await callbacks.next_events(lanes, limit=_EVENTS_PER_CLAIM) if lanes else {}
        for lane in lanes:
            self._ahead.add(lane)
            self._start(sender, lane, events[lane.session_id])
        return bool(lanes)

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
        if lane in self._ahead:
            self._ahead.discard(lane)
            if lane.failing:
                self._circuit.turned_back()
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
                    await CallbackLanes(db).write_down(lane, results)
            except DATABASE_DOWN as error:
                log.warning("callback_lane_waits_for_database", error=fault(error))
                await asyncio.sleep(_LOOK_AROUND_S)
                if self._was_claimed_again(lane):
                    return  # so the commit was done, of which nobody has heard; once more would end the new claim
            else:
                return

    def _was_claimed_again(self, lane: ClaimedLane) -> bool:
        """Whether this process has claimed the lane anew under the same lease; whoever had it before has ended."""
        same = [each for each in self._lanes.values() if each.session_id == lane.session_id]
        return any(each is not lane and each.worker == lane.worker for each in same)

    async def _send_in_order(
        self, sender: WebhookSender, lane: ClaimedLane, events: Sequence[CallbackEvent]
    ) -> list[TryResult]:
        """Send events until one has to wait, the claim's time is up, or this process is to stop or was fenced."""
        results: list[TryResult] = []
        begun = time.monotonic()
        for event in events:
            if self._stopping or self._worker() != lane.worker or (results and time.monotonic() - begun > _CLAIM_S):
                break
            if self._circuit.state is not CircuitState.CLOSED and lane not in self._ahead:
                break
            if sender.sends_once(event.type):
                mine = await self._begin_only_try(event)
                if mine is None:
                    break
                result = await self._try(sender, event, new=not lane.failing) if mine else lost_sight_of(event)
            else:
                result = await self._try(sender, event, new=not lane.failing)
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
                return await CallbackLanes(db).begin_only_try(event.id)
        except DATABASE_DOWN as error:
            log.warning("callback_lane_waits_for_database", error=fault(error))
            return None

    async def _try(self, sender: WebhookSender, event: CallbackEvent, *, new: bool) -> TryResult:
        begun, tried_at = time.monotonic(), datetime.now(UTC)
        outcome = await sender.send(event.event_id, event.body())
        if not isinstance(outcome, Skipped):
            self._learn(outcome, event.session_id, begun, new=new)
        age_s = max((datetime.now(UTC) - event.occurred_at).total_seconds(), 0.0)
        once = sender.sends_once(event.type)
        result = judge(outcome, event, self._settings.retry_delays_s, age_s, once=once)
        if isinstance(outcome, Skipped):
            return result
        result = replace(
            result,
            tried_at=tried_at,
            duration_ms=round((time.monotonic() - begun) * 1000),
            answered=None if isinstance(outcome, Unreachable) else outcome.status,
            body_start=outcome.body_start if isinstance(outcome, Refused) else None,
        )
        metrics.CALLBACK_TRIES.labels(type(outcome).__name__.lower()).inc()
        if isinstance(outcome, Delivered):
            metrics.CALLBACK_LATENCY.observe(age_s)
            return result
        # Never sooner than Core or the settings say, and not all that failed together together again.
        result = replace(result, delay_s=result.delay_s * random.uniform(1.0, _JITTER))  # noqa: S311  # no secret
        log.warning(
            "callback_not_delivered",
            event_id=event.event_id,
            type=event.type,
            attempt=result.number,
            reason=result.error,
            next_try_s=round(result.delay_s, 3) if result.status is CallbackStatusEnum.PENDING else None,
        )
        return result

    def _learn(self, outcome: Delivered | Refused | Unreachable, session_id: int, begun: float, *, new: bool) -> None:
        """What an outcome says of Core itself. A connection that broke under an event says nothing."""
        before, now = self._circuit.state, time.monotonic()
        if isinstance(outcome, Unreachable):
            if outcome.nobody:
                self._circuit.silent(session_id, begun, now, new=new)
        elif outcome.status == _UNAVAILABLE:
            asked_s = outcome.retry_after_s if isinstance(outcome, Refused) else None
            self._circuit.silent(session_id, begun, now, new=new, asked_s=asked_s)
        else:
            self._circuit.answered(now, new=new)
        state = self._circuit.state
        if state is before:
            return
        self.wake()
        if state is CircuitState.CLOSED:
            log.info("core_answers_again")
            metrics.CIRCUIT_OPEN.set(0)
        elif before is CircuitState.CLOSED:
            log.warning("core_does_not_answer", pause_s=round(self._circuit.wait_s(now), 3))
            metrics.CIRCUIT_OPEN.set(1)
