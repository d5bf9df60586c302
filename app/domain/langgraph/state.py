"""What flows through the graph of a turn."""

from __future__ import annotations

from typing import TypedDict

from app.domain.conversation import FinishReason


class TurnState(TypedDict, total=False):
    """State of one turn.

    ``message`` is the candidate's text. The guard adds ``refused``; whichever node answers adds ``finish_reason``.
    The answer itself is not here: it goes straight into the turn's log.
    """

    message: str
    refused: bool
    finish_reason: FinishReason
