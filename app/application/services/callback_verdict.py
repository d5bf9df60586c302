"""What the outcome of a try means for the event. Pure but for the log."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.profiles import Skipped
from app.infrastructure.repositories.callback_lanes import TryResult
from app.infrastructure.repositories.callback_repository import CallbackEvent
from app.infrastructure.webhook import Delivered, Refused, Unreachable

log = structlog.get_logger()

_GIVE_UP_AT_ONCE = {410}
_GIVE_UP_SOON = {400, 413, 422}
_TRIES_UNTIL_SOON = 3
_SAYS_WHEN = {429, 503}
_ASKED_BEYOND_TRIES_S = 60.0
_MAY_HAVE_ARRIVED = "; it may have arrived, so it is not sent again unless it is replayed"
_SAYS_NOT_TAKEN = {500, 501, 503}
"""Of the answers from 500 on: Core's own. The others are a gateway's, which may have passed the event on."""


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


def lost_sight_of(event: CallbackEvent) -> TryResult:
    """The outcome of a try that a process had begun and did not live to write down."""
    reason = "interrupted while it was sent" + _MAY_HAVE_ARRIVED
    log.warning("callback_not_delivered", event_id=event.event_id, type=event.type, reason=reason)
    return TryResult(event.id, event.attempts + 1, CallbackStatusEnum.FAILED, reason)
