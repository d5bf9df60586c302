"""When to stop knocking at a door behind which nobody is: a circuit breaker. Pure; the caller tells the time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

_FEW_SESSIONS, _MANY_SESSIONS = 5, 320
"""How many different sessions must find nobody, one after the other with no answer in between.

One session's event that Core cannot digest is no dead Core, however often it is tried. Nor are those of many sessions:
where one that never failed is answered while it is open, and none of them finds nobody, twice as many sessions are
asked for the next time.
"""
_NEW_ONE_EVERY_S = 1.0
_LONGEST_PAUSE_S = 15.0
_LONGEST_ASKED_S = 300.0


class CircuitState(StrEnum):
    """``CLOSED``: all go. ``OPEN``: none goes. ``HALF_OPEN``: one goes ahead to see."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Circuit:
    """Opens when nobody answers across several sessions, lets one go ahead after a pause, closes when it is answered.

    Args:
        pauses_s: seconds of the first, the second … pause in a row; the last one, 15 s at most, goes on.
    """

    def __init__(self, pauses_s: Sequence[float]) -> None:
        self._pauses_s = [min(pause, _LONGEST_PAUSE_S) for pause in pauses_s if pause > 0] or [1.0]
        self._silent: set[int] = set()
        self._needed = _FEW_SESSIONS
        self._confirmed = False
        self._next_new_one = -math.inf
        self._answered_at = -math.inf
        self._pauses = 0
        self._until = 0.0
        self._state = CircuitState.CLOSED

    @property
    def state(self) -> CircuitState:
        """Where it stands."""
        return self._state

    def wait_s(self, now: float) -> float:
        """Seconds until somebody may go ahead; 0 where somebody may now. ``now`` is monotonic seconds."""
        return max(self._until - now, 0.0) if self._state is CircuitState.OPEN else 0.0

    def go_ahead(self, now: float) -> None:
        """One goes to see whether Core is back; nobody else until it is `answered`, found `silent` or `turned_back`."""
        if self._state is not CircuitState.OPEN or self.wait_s(now):
            raise ValueError("there is nobody to send ahead")
        self._state = CircuitState.HALF_OPEN

    def turned_back(self) -> None:
        """Whoever went ahead had nothing to send."""
        if self._state is CircuitState.HALF_OPEN:
            self._state = CircuitState.OPEN

    def new_one_may_go(self, now: float) -> bool:
        """Whether one whose last try did not fail may go at once: so a session is not kept waiting by what others have.

        One a second, so that a Core that is dead is left in peace; asking counts as going.
        """
        if now < self._next_new_one:
            return False
        self._next_new_one = now + _NEW_ONE_EVERY_S
        return True

    def answered(self, now: float, *, new: bool) -> None:
        """Somebody is there, whatever the answer was.

        Args:
            now: monotonic seconds.
            new: the last try of the session did not fail.
        """
        if self._state is not CircuitState.CLOSED and new and not self._confirmed:
            self._needed = min(self._needed * 2, _MANY_SESSIONS)
        self._silent.clear()
        self._confirmed = False
        self._answered_at = now
        self._pauses = 0
        self._state = CircuitState.CLOSED

    def silent(self, session_id: int, begun: float, now: float, *, new: bool, asked_s: float | None = None) -> None:
        """A session's try found nobody, or was told that nobody can serve it (503).

        Args:
            session_id: whose.
            begun: monotonic seconds; a try that began before the last answer came says nothing new.
            now: monotonic seconds.
            new: the last try of the session did not fail.
            asked_s: for how long Core asked to be left alone.
        """
        if begun < self._answered_at:
            return
        self._silent.add(session_id)
        if new and self._state is not CircuitState.CLOSED:
            self._needed, self._confirmed = _FEW_SESSIONS, True
        if self._state is CircuitState.OPEN or (
            self._state is CircuitState.CLOSED and len(self._silent) < self._needed
        ):
            return
        pause = self._pauses_s[min(self._pauses, len(self._pauses_s) - 1)]
        self._until = now + max(pause, min(asked_s or 0.0, _LONGEST_ASKED_S))
        self._pauses += 1
        self._state = CircuitState.OPEN
