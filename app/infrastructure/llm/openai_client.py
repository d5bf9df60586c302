"""The lean path to any OpenAI-compatible endpoint: bytes in, deltas out, in one tick."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from app.core.errors import ErrorCode, ModelError
from app.core.http import parse_retry_after
from app.domain.model_client import ModelCall, ModelRequest
from app.infrastructure.llm.figures import reference
from app.infrastructure.llm.http_stream import BrokenError, NoConnectionError, SilenceError, StreamingHttp
from app.infrastructure.llm.sse import ChatStream, error_for_status, malformed

OPENAI_URL = "https://api.openai.com/v1"


class OpenAIClient:
    """Streams chat completions; safe for any number of calls at once.

    Args:
        model: the name under which calls are stored and reported.
        model_at_provider: the name the endpoint knows.
        base_url: the endpoint, up to and with ``/v1``.
        api_key: sent as a bearer token.
        timeout_s: silence (no byte at all) that ends a call.
        keep_alive: keep connections for the next call; not every server does what it announces.
    """

    def __init__(
        self,
        model: str,
        *,
        model_at_provider: str,
        base_url: str,
        api_key: str | None,
        timeout_s: float,
        keep_alive: bool = True,
    ) -> None:
        self._model = model
        self._model_at_provider = model_at_provider
        # OpenAI's newer models refuse the older name, which everybody else speaks.
        self._limit_field = "max_completion_tokens" if base_url.startswith(OPENAI_URL) else "max_tokens"
        headers = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        url = f"{base_url.rstrip('/')}/chat/completions"
        self._http = StreamingHttp(url, headers, timeout_s=timeout_s, keep_alive=keep_alive)

    @property
    def model(self) -> str:
        """Name under which calls are stored and reported."""
        return self._model

    async def stream(self, request: ModelRequest, call: ModelCall, emit: Callable[[str], None]) -> None:
        """See `app.domain.model_client.ModelClient.stream`."""
        answer = _Answer(call, emit)
        try:
            if not await self._http.post(self._body(request), answer):
                answer.finish()
        except NoConnectionError as fault:
            raise ModelError(
                ErrorCode.LLM_UNAVAILABLE, "The model cannot be reached right now.", detail=str(fault)
            ) from None
        except SilenceError as fault:
            raise ModelError(ErrorCode.LLM_TIMEOUT, "The model has fallen silent.", detail=str(fault)) from None
        except BrokenError as fault:
            raise malformed(str(fault)) from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _body(self, request: ModelRequest) -> bytes:
        return msgspec.json.encode(
            {
                "model": self._model_at_provider,
                "messages": [{"role": role, "content": content} for role, content in request.messages],
                "stream": True,
                "stream_options": {"include_usage": True},
                self._limit_field: request.max_output_tokens,
            }
        )


class _Answer:
    """One call's response: its text goes to ``emit``, everything else into ``call``."""

    __slots__ = ("_call", "_emit", "_stream")

    def __init__(self, call: ModelCall, emit: Callable[[str], None]) -> None:
        self._call = call
        self._emit = emit
        self._stream = ChatStream(call)

    def sent(self) -> None:
        self._call.reached = True

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        # All there is for a call that is refused; the answer's own id, by which providers list calls, replaces it.
        self._call.provider_ref = reference(headers.get("x-request-id"))
        # A redirect is refused like any other: it would take the conversation, and maybe the key, to an address that
        # nobody has set.
        if not 200 <= status < 300:
            raise error_for_status(status, parse_retry_after(headers.get("retry-after")))
        self._call.accepted = True

    def data(self, data: bytes) -> bool:
        self._take(*self._stream.feed(data))
        return self._stream.ended

    def finish(self) -> None:
        """The response ended without ``[DONE]``."""
        self._take(*self._stream.finish())

    def _take(self, text: str, fault: ModelError | None) -> None:
        if text:
            self._emit(text)
        if fault is not None:
            raise fault
