"""Providers that do not speak the OpenAI format, through LangChain (extra ``providers``).

LangChain knows how each provider wants to be asked, and gives back text. What it does not give back is read by a
transport under the SDKs of Anthropic and Google (``_Wire``): whether the request left, the status, heartbeats, and the
figures and the call's id as the provider sent them. Any other provider LangChain knows works by what LangChain's chunks
tell.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import msgspec
from langchain_core.messages.ai import UsageMetadata, add_usage
from langsmith.run_helpers import tracing_context

from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.http import parse_retry_after
from app.domain.conversation import FinishReason, Usage
from app.domain.model_client import ModelCall, ModelRequest
from app.domain.whole_text import WholeText
from app.infrastructure.llm.figures import figure, reference, reported
from app.infrastructure.llm.sse import error_for_status

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AIMessageChunk

_CONNECT_S = 10.0
_CAP_NAMES = {"google_genai": "max_output_tokens", "google_vertexai": "max_output_tokens"}  # others: max_tokens
_REASON_KEYS = ("finish_reason", "stop_reason", "stopReason", "done_reason")
_LENGTH = frozenset({"length", "max_tokens", "model_context_window_exceeded"})
_REFUSED = frozenset(
    {"refusal", "content_filter", "content_filtered", "guardrail_intervened", "safety", "recitation", "language"}
    | {"blocklist", "prohibited_content", "spii", "model_armor", "image_safety"}
)

_OWN_IDS = ("run-", "lc_")
"""How the ids begin that LangChain makes up where a provider's package gives none."""
_REQUEST_IDS = ("request-id", "x-request-id")

_Json = dict[str, Any]


class _Said(NamedTuple):
    """What one event says besides text: figures, the answer's id, and whether it ends the answer."""

    figures: _Json
    ended: bool
    ref: object


def _anthropic_event(event: _Json) -> _Said:
    """Figures stand in ``message_start`` and ``message_delta``; the last of those has the reason of the end."""
    message = event.get("message") or {}
    figures = event.get("usage") or message.get("usage") or {}
    return _Said(figures, bool((event.get("delta") or {}).get("stop_reason")), message.get("id"))


def _anthropic_usage(figures: _Json) -> Usage | None:
    """``input_tokens`` leaves out the cache, read or written; ``output_tokens`` includes thinking."""
    cached = _count(figures, "cache_read_input_tokens")
    prompt = _count(figures, "input_tokens") + cached + _count(figures, "cache_creation_input_tokens")
    thinking = figure(figures.get("output_tokens_details"), "thinking_tokens")
    return reported(prompt, _count(figures, "output_tokens"), cached=cached, reasoning=thinking)


def _google_event(event: _Json) -> _Said:
    """Any event may carry figures; a refused prompt has ``promptFeedback`` in place of candidates."""
    ended = any(candidate.get("finishReason") for candidate in event.get("candidates") or ())
    blocked = (event.get("promptFeedback") or {}).get("blockReason")
    return _Said(event.get("usageMetadata") or {}, bool(ended or blocked), event.get("responseId"))


def _google_usage(figures: _Json) -> Usage | None:
    """``promptTokenCount`` includes the cache; ``candidatesTokenCount`` leaves out the thoughts."""
    thoughts, cached = _count(figures, "thoughtsTokenCount"), _count(figures, "cachedContentTokenCount")
    prompt = _count(figures, "promptTokenCount") + _count(figures, "toolUsePromptTokenCount")
    return reported(prompt, _count(figures, "candidatesTokenCount") + thoughts, cached=cached, reasoning=thoughts)


def _count(figures: _Json, name: str) -> int:
    """A count, 0 where it is left out.

    Raises:
        ValueError: it cannot be meant.
    """
    value = figure(figures, name)
    if value is None and figures.get(name) is not None:
        raise ValueError(name)
    return value or 0


class _Format(NamedTuple):
    event: Callable[[_Json], _Said]
    usage: Callable[[_Json], Usage | None]


_FORMATS = {
    "anthropic": _Format(_anthropic_event, _anthropic_usage),
    "google_genai": _Format(_google_event, _google_usage),
}


class _Wire:
    """One call as its connection shows it: fills ``call`` and calls ``heard`` at every sign of life."""

    def __init__(self, call: ModelCall, heard: Callable[[], None], format_: _Format | None) -> None:
        self._call = call
        self._format = format_
        self._line = b""
        self._ended = False
        self._body: Any = None
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancels = self._task.cancelling()
        self.heard = heard
        self.figures: _Json = {}
        self.failure: Any = None

    async def traced(self, name: str, _info: Mapping[str, Any]) -> None:
        """Callback of httpcore's ``trace`` extension."""
        if name.endswith("send_request_headers.started"):
            self._call.reached = True

    def answered(self, response: Any) -> None:
        """The status line and the headers came; ``failure`` keeps a response that is not a 2xx."""
        self.heard()
        self._body = response.stream
        self._call.accepted = response.is_success
        said = (reference(response.headers.get(name)) for name in _REQUEST_IDS)
        self._call.provider_ref = next((ref for ref in said if ref), None)
        self.failure = None if response.is_success else response

    def received(self, data: bytes) -> None:
        """Some bytes of the body came."""
        self.heard()
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if self._format is not None and self._call.accepted and line.startswith(b"data:"):
                self._read(self._format, line[5:])

    def _read(self, format_: _Format, data: bytes) -> None:
        try:
            figures, ended, ref = format_.event(msgspec.json.decode(data, type=_Json))
            self._ended = self._ended or ended
            self._call.provider_ref = reference(ref) or self._call.provider_ref
            if figures:
                # Counts are cumulative with both providers, and a later event may leave out what an earlier one said.
                self.figures.update((name, value) for name, value in figures.items() if value is not None)
                self._call.usage = format_.usage(self.figures)
        except (msgspec.MsgspecError, AttributeError, TypeError):
            return  # the SDK reads the same line and knows whether that is a fault
        except ValueError:
            self._call.usage = None
        self._call.usage_complete = self._ended and self._call.usage is not None

    def insist_on_cancellation(self) -> None:
        """Raise again what ``asyncio.wait_for``, which LangChain's own code uses, swallows at times in Python 3.11."""
        if self._task.cancelling() > self._cancels:
            raise asyncio.CancelledError

    async def aclose(self) -> None:
        """Close the connection, unless the body was read to its end: left to itself it would wait for the collector."""
        if self._body is not None:
            await self._body.aclose()


_wire: ContextVar[_Wire] = ContextVar("_wire")
"""The call that the running task makes; an SDK passes nothing of ours on to its transport."""


def _transport(http: Any) -> Any:
    """A transport for a client of ``http`` (``httpx``, or its successor ``httpx2``) that keeps the call's ``_Wire``."""

    class Body(http.AsyncByteStream):  # type: ignore[misc]  # which module it is shows at run time
        def __init__(self, stream: Any, wire: _Wire) -> None:
            self._stream, self._wire = stream, wire

        async def __aiter__(self) -> AsyncIterator[bytes]:
            async for data in self._stream:
                self._wire.received(data)
                yield data

        async def aclose(self) -> None:
            await self._stream.aclose()

    class Transport(http.AsyncHTTPTransport):  # type: ignore[misc]  # as above
        async def handle_async_request(self, request: Any) -> Any:
            wire = _wire.get()
            request.headers["accept-encoding"] = "identity"  # a compressor would hold tokens back
            request.extensions = {"timeout": {"connect": _CONNECT_S}, "trace": wire.traced}
            response = await super().handle_async_request(request)
            response.stream = Body(response.stream, wire)
            wire.answered(response)
            return response

        def close(self) -> None:
            """Google's SDK hands the transport to a synchronous client too, which we never use, and closes it."""

    return Transport(limits=http.Limits(max_connections=None, max_keepalive_connections=100))


class LangChainClient:
    """A ``ModelClient`` for whatever LangChain's ``init_chat_model`` can make.

    Args:
        model: ``provider:model``, the provider as LangChain names it (``anthropic``, ``google_genai`` …).
        api_key: the provider's key; ``None``: the provider's own environment variable.
        base_url: another address than the provider's own.
        timeout_s: seconds without a byte from the provider that end a call.

    Raises:
        StartupError: a package is missing, or LangChain cannot make this model.
    """

    def __init__(self, model: str, *, api_key: str | None, base_url: str | None, timeout_s: float) -> None:
        self._model = model
        self._provider = model.partition(":")[0]
        self._timeout_s = timeout_s
        self._transport: Any = None
        options: dict[str, Any] = {"api_key": api_key, "base_url": base_url, "max_retries": 0}
        if self._provider == "google_genai":
            # Set by this variable the SDK leaves httpx for httpx2; some of its versions read 0 retries as the default.
            http = "httpx2" if os.environ.get("GOOGLE_GENAI_HTTP_CLIENT", "").lower() == "httpx2" else "httpx"
            self._transport = _transport(importlib.import_module(http))
            options |= {"max_retries": 1, "client_args": {"transport": self._transport}}
        self._chat = _chat_model(model, {name: value for name, value in options.items() if value is not None})
        if self._provider == "anthropic":
            self._transport = _watch_anthropic(self._chat)

    @property
    def model(self) -> str:
        """Name under which calls are stored and reported."""
        return self._model

    async def stream(self, request: ModelRequest, call: ModelCall, emit: Callable[[str], None]) -> None:
        """Run one call, as ``ModelClient.stream`` says."""
        loop = asyncio.get_running_loop()
        silence = asyncio.timeout(self._timeout_s)

        def heard() -> None:
            if not silence.expired():
                silence.reschedule(loop.time() + self._timeout_s)

        wire = _Wire(call, heard, _FORMATS.get(self._provider))
        token = _wire.set(wire)
        try:
            # The tracer that LANGSMITH_TRACING switches on would send the conversation to a third party.
            async with silence:
                with tracing_context(enabled=False):
                    await self._run(request, call, emit, wire)
        except TimeoutError:
            if not silence.expired():
                raise
            raise ModelError(ErrorCode.LLM_TIMEOUT, "The model fell silent.", detail="silence") from None
        finally:
            _wire.reset(token)
            await wire.aclose()

    async def _run(self, request: ModelRequest, call: ModelCall, emit: Callable[[str], None], wire: _Wire) -> None:
        # Where no transport of ours watches, a request counts as sent as soon as LangChain has it.
        call.reached = self._transport is None
        cap: dict[str, Any] = {_CAP_NAMES.get(self._provider, "max_tokens"): request.max_output_tokens}
        # No callbacks: those of a surrounding graph would be run for every chunk.
        chunks = self._chat.astream(list(request.messages), {"callbacks": []}, **cap)
        summed: UsageMetadata | None = None
        whole = WholeText()
        async with aclosing(cast("AsyncGenerator[AIMessageChunk]", chunks)) as stream:
            while (chunk := await _next(stream, wire)) is not None:
                wire.heard()
                call.reached = call.accepted = True
                if text := whole.take(str(chunk.text)):
                    call.text_chars += len(text)
                    emit(text)
                call.finish_reason = _finish_reason(chunk.response_metadata) or call.finish_reason
                if call.provider_ref is None:
                    call.provider_ref = _chunk_id(chunk)
                if chunk.usage_metadata and not wire.figures:
                    summed = add_usage(summed, chunk.usage_metadata)
                    call.usage = _usage(summed)
                    call.usage_complete = call.usage is not None and call.finish_reason is not None
        if text := whole.rest():
            call.text_chars += len(text)
            emit(text)
        if call.finish_reason is None:
            raise _unavailable("the stream ended without a finish reason")

    async def aclose(self) -> None:
        """Close the connections that are ours; LangChain has no way to close those of other providers."""
        if self._transport is not None:
            await self._transport.aclose()


async def _next(stream: AsyncGenerator[AIMessageChunk], wire: _Wire) -> AIMessageChunk | None:
    try:
        return await anext(stream, None)
    except Exception as error:  # noqa: BLE001 - what each provider's package raises is not known here
        raise _model_error(error, wire.failure) from None  # the provider's words may quote the prompt
    finally:
        wire.insist_on_cancellation()


def _chat_model(spec: str, options: Mapping[str, Any]) -> BaseChatModel:
    provider, _, name = spec.partition(":")
    if not (provider and name):
        raise StartupError(
            f"TURNSTONE_LLM__MODEL={spec} does not say which provider has which model.",
            "Write provider:model, for example anthropic:claude-sonnet-4-5 or google_genai:gemini-2.5-flash.",
        )
    try:
        from langchain.chat_models import init_chat_model

        return cast("BaseChatModel", init_chat_model(name, model_provider=provider, **options))
    except ImportError as error:
        package = (getattr(error.__cause__ or error, "name", None) or "langchain").partition(".")[0].replace("_", "-")
        raise StartupError(
            f"The model {spec} needs the Python package {package}, which is not installed.",
            "Anthropic and Google come with the extra: pip install 'turnstone[providers]'. "
            f"For another provider add its package: pip install {package}.",
        ) from None
    except Exception as error:  # noqa: BLE001 - what each provider's package raises is not known here
        raise StartupError(
            f"LangChain cannot make the model {spec} ({type(error).__name__}).",
            "Write provider:model with a provider that LangChain knows (anthropic, google_genai, bedrock_converse, "
            "mistralai …) and give its key in TURNSTONE_LLM__API_KEY.",
        ) from None


def _watch_anthropic(chat: Any) -> Any:
    """Give ``chat`` an SDK client of its own with our transport, and return that.

    LangChain takes no client and shares one between all models of a process, so that closing it would cut off others.
    """
    import anthropic
    import httpx2

    key = chat.anthropic_api_key.get_secret_value()
    if not key:
        raise StartupError("Anthropic's key is missing.", "Set TURNSTONE_LLM__API_KEY or ANTHROPIC_API_KEY.")
    transport = _transport(httpx2)
    vars(chat)["_async_client"] = anthropic.AsyncAnthropic(
        api_key=key,
        base_url=chat.anthropic_api_url,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )
    return transport


def _finish_reason(metadata: Mapping[str, Any]) -> FinishReason | None:
    said = next((metadata[key] for key in _REASON_KEYS if metadata.get(key)), None)
    if said is None:
        blocked = (metadata.get("prompt_feedback") or {}).get("block_reason")
        return FinishReason.REFUSED if blocked else None
    reason = str(said).lower()
    if reason in _LENGTH:
        return FinishReason.LENGTH
    return FinishReason.REFUSED if reason in _REFUSED else FinishReason.STOP


def _chunk_id(chunk: AIMessageChunk) -> str | None:
    """The provider's id of the answer, as its package passes it on."""
    for said in (chunk.id, chunk.response_metadata.get("id")):
        ref = reference(said)
        if ref is not None and not ref.startswith(_OWN_IDS):
            return ref
    return None


def _usage(summed: UsageMetadata) -> Usage | None:
    """Chunks of LangChain are to be added up; their details are parts of the two counts."""
    return reported(
        figure(summed, "input_tokens"),
        figure(summed, "output_tokens"),
        cached=figure(summed.get("input_token_details"), "cache_read"),
        reasoning=figure(summed.get("output_token_details"), "reasoning"),
    )


def _unavailable(detail: str) -> ModelError:
    return ModelError(ErrorCode.LLM_UNAVAILABLE, "The model cannot be reached at the moment.", detail=detail)


def _model_error(error: BaseException, failure: Any) -> ModelError:
    """The error for what an SDK raised; ``failure`` is the response that is not a 2xx, where one was seen."""
    name = type(error).__name__
    cause: BaseException | None = error
    status = failure.status_code if failure is not None else None
    while status is None and cause is not None:
        codes = (getattr(cause, "status_code", None), getattr(cause, "code", None))
        status = next((code for code in codes if isinstance(code, int) and code >= 400), None)
        failure = getattr(cause, "response", None)
        cause = cause.__cause__
    if status is None:
        return _unavailable(name)
    asked_for = failure.headers.get("retry-after") if hasattr(failure, "headers") else None
    return error_for_status(status, parse_retry_after(asked_for), detail=f"status {status}, {name}")
