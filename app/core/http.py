"""What two HTTP clients of ours read in the same way."""

from __future__ import annotations

import email.utils
import math
from datetime import UTC, datetime

_LONGEST_RETRY_AFTER_S = 86_400.0


def parse_retry_after(value: str | None) -> float | None:
    """Seconds to wait as ``Retry-After`` says it, in either form; ``None`` where it says nothing usable.

    Never negative, and a day at most.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_S)
