"""What flows through the graph of a turn."""

from __future__ import annotations

from typing import TypedDict

from app.domain.conversation import FinishReason


class TurnState(TypedDict, total=False):
    """State of one turn.

    The guard says whether the message is ``refused``; whichever node answers adds ``finish_reason``. Neither the
    message nor the answer is here: the one comes after the run has begun (`TurnContext.message`), the other goes
    straight into the turn's log.
    """

    refused: bool
    finish_reason: FinishReason
