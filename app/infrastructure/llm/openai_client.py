"""The lean path to any OpenAI-compatible endpoint: aiohttp in, deltas out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace

import aiohttp
import msgspec
import structlog

from app.core.errors import ErrorCode, ModelError
from app.core.http import parse_retry_after
from app.domain.model_client import ModelCall, ModelRequest
from app.infrastructure.llm.sse import ChatStream, error_for_status, malformed

log = structlog.get_logger()

OPENAI_URL = "https://api.openai.com/v1"
_CONNECT_TIMEOUT_S = 10.0
_DRAIN_TIMEOUT_S = 1.0


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
        self._timeout_s = timeout_s
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        # OpenAI's newer models refuse the older name, which everybody else speaks.
        self._limit_field = "max_completion_tokens" if base_url.startswith(OPENAI_URL) else "max_tokens"
        headers = {"content-type": "application/json", "accept": "text/event-stream", "accept-encoding": "identity"}
        if api_key is not None:
            headers["authorization"] = f"Bearer {api_key}"
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, force_close=not keep_alive),
            timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S, sock_read=timeout_s),
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            trace_configs=[_marking_reached()],
        )
        self._draining: set[asyncio.Task[None]] = set()

    @property
    def model(self) -> str:
        """Name under which calls are stored and reported."""
        return self._model

    async def stream(self, request: ModelRequest, call: ModelCall, emit: Callable[[str], None]) -> None:
        """See `app.domain.model_client.ModelClient.stream`."""
        response: aiohttp.ClientResponse | None = None
        whole = False
        try:
            response = await self._post(request, call)
            if not 200 <= response.status < 300:
                raise error_for_status(response.status, parse_retry_after(response.headers.get("retry-after")))
            call.accepted = True
            whole = await self._read(response, call, emit)
        except aiohttp.ConnectionTimeoutError:
            raise _no_connection("connection timeout") from None
        except TimeoutError:
            raise ModelError(ErrorCode.LLM_TIMEOUT, "The model has fallen silent.", detail="silence") from None
        except aiohttp.ClientConnectorError as error:
            raise _no_connection(type(error).__name__) from None
        except (aiohttp.ClientError, OSError) as error:
            raise malformed(type(error).__name__) from None
        finally:
            if response is not None:
                self._let_go(response, whole=whole)

    async def aclose(self) -> None:
        """Close all connections."""
        draining = list(self._draining)
        for task in draining:
            task.cancel()
        await asyncio.gather(*draining, return_exceptions=True)
        await self._client.close()

    async def _post(self, request: ModelRequest, call: ModelCall) -> aiohttp.ClientResponse:
        # aiohttp's own timer begins when the request is out; a provider may also stop reading in the middle of it.
        async with asyncio.timeout(_CONNECT_TIMEOUT_S + self._timeout_s):
            # A redirect would take the conversation, and maybe the key, to an address that nobody has set.
            return await self._client.post(
                self._url, data=self._body(request), allow_redirects=False, trace_request_ctx=call
            )

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

    async def _read(self, response: aiohttp.ClientResponse, call: ModelCall, emit: Callable[[str], None]) -> bool:
        """Read to the end of the answer; returns whether ``[DONE]`` has come, so that the connection can be kept."""
        stream = ChatStream(call)
        content = response.content
        while not stream.ended:
            data = await content.readany()
            text, fault = stream.feed(data) if data else stream.finish()
            if text:
                emit(text)
            if fault is not None:
                raise fault
            if not data:
                break
        return stream.ended

    def _let_go(self, response: aiohttp.ClientResponse, *, whole: bool) -> None:
        """Keep the connection for the next call where the answer is whole; close it otherwise, now."""
        if not whole:
            response.close()
        elif response.content.is_eof():
            response.release()
        else:
            task = asyncio.create_task(_drain(response))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)


def _marking_reached() -> aiohttp.TraceConfig:
    """Sets ``call.reached`` when the request's body goes out, so that it is right however the call ends."""

    async def sent(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
        context.trace_request_ctx.reached = True

    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(sent)
    return trace


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the few bytes that follow ``[DONE]``; aiohttp keeps a connection only when the body is read."""
    try:
        async with asyncio.timeout(_DRAIN_TIMEOUT_S):
            await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError):
        response.close()
    finally:
        response.release()


def _no_connection(detail: str) -> ModelError:
    return ModelError(ErrorCode.LLM_UNAVAILABLE, "The model cannot be reached right now.", detail=detail)
