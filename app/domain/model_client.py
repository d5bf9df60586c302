"""The port to a language model: what the writer node asks for, whatever speaks to the provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from app.domain.conversation import FinishReason, Usage


class ChatMessage(NamedTuple):
    """One message of the conversation as a provider reads it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What one provider call asks for.

    ``messages`` begins with at most one system message; after it ``user`` and ``assistant`` alternate, ending with
    ``user``. ``max_output_tokens`` is the cap for this answer.
    """

    messages: Sequence[ChatMessage]
    max_output_tokens: int


@dataclass(slots=True)
class ModelCall:
    """What became of one provider call, written while it runs so that nothing is lost when it is cancelled.

    Attributes:
        model: the name of the model, as stored and reported (``openai:gpt-x``, ``local``).
        reached: the request was handed to the provider; from here on the turn has reached it.
        accepted: the provider agreed to answer (a 2xx status); from here on it may charge for the prompt.
        usage: the provider's own figures, the latest it gave; ``None`` while it is silent.
        usage_complete: whether ``usage`` is final. Partial figures (an input count at the start of a stream) are kept
            but do not cover the completion.
        finish_reason: why the provider ended the answer; ``None`` while it has not.
        text_chars: characters of answer text received.
        outcome: how the call ended: ``completed``, an error's code, or ``cancelled`` (also while it runs).
        provider_ref: the provider's own id of the answer, or of the request where it gave no other; ``None`` where it
            gave none.
    """

    model: str
    reached: bool = False
    accepted: bool = False
    usage: Usage | None = None
    usage_complete: bool = False
    finish_reason: FinishReason | None = None
    text_chars: int = 0
    outcome: str = "cancelled"
    provider_ref: str | None = None


class ModelClient(Protocol):
    """Streams answers of one model. Safe for any number of calls at once."""

    @property
    def model(self) -> str:
        """Name under which calls are stored and reported."""

    async def stream(self, request: ModelRequest, call: ModelCall, emit: Callable[[str], None]) -> None:
        """Run one call: ``emit`` gets every new piece of text at once, in order, never empty.

        Several pieces that arrived in one read are joined. ``call`` is kept up to date all the time. Returns when
        the provider ended the answer properly (``call.finish_reason`` is set). One try: whoever calls decides whether
        to try again.

        Cancelling the awaiting task closes the connection to the provider before the cancellation goes on.

        Raises:
            ModelError: ``llm_unavailable``, ``llm_rejected`` or ``llm_timeout``; the connection is closed by then.
        """

    async def aclose(self) -> None:
        """Close what is open. No call may be running."""
