"""For how long a job waits for what is away, and when that is long enough. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

HOUR_S: Final = 3_600.0
DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Wait:
    """That a job has to wait, counted from when it first had to: not from when it was asked for, which may be long ago.

    Times are seconds of the epoch, by the database's clock.

    Attributes:
        reason: what for, in our words.
        since: when it first had to wait.
        cause_since: since when for a cause with this patience.
        patience_s: for how long it waits for such a cause; infinite where it waits for ever.
    """

    reason: str
    since: float
    cause_since: float
    patience_s: float

    @classmethod
    def further(cls, before: Wait | None, reason: str, patience_s: float, now: float) -> Self:
        """The wait after one more try that came to nothing."""
        if before is None:
            return cls(reason, now, now, patience_s)
        if before.patience_s == patience_s:
            return cls(reason, before.since, before.cause_since, patience_s)
        # What may take longer than a day is no reason to be short with what comes after it.
        return cls(reason, now if before.patience_s > DAY_S else before.since, now, patience_s)

    def is_over(self, now: float) -> bool:
        """Whether it has been long enough; causes that take turns don't prolong it beyond the longest of a day."""
        return now - self.cause_since >= self.patience_s or now - self.since >= max(self.patience_s, DAY_S)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        patience_s = None if math.isinf(self.patience_s) else self.patience_s
        return {
            "reason": self.reason,
            "since": self.since,
            "cause_since": self.cause_since,
            "patience_s": patience_s,
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        patience_s = math.inf if stored["patience_s"] is None else stored["patience_s"]
        return cls(stored["reason"], stored["since"], stored["cause_since"], patience_s)
