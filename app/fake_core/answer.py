"""What Core may do with a POST once it has read it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How one POST is answered.

    Attributes:
        action: ``hang``: no answer, ever. ``reset``, ``close``: the connection ends (RST, FIN) in the place of an
            answer.
        delay_s: wait before it.
    """

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: str = "{}"
    delay_s: float = 0.0
    action: Literal["answer", "hang", "reset", "close"] = "answer"
