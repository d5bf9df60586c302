"""Models that judge: one whole answer for each call, in the form of a JSON Schema.

Nobody waits for its first token, so this is not the chat's streaming path: a general HTTP client is enough.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, cast

import aiohttp
import msgspec

from app.core.errors import ErrorCode, ModelError, StartupError
from app.core.http import parse_retry_after
from app.core.settings import JudgeSettings, Settings
from app.domain.conversation import Usage
from app.domain.judging import JudgeAnswer, JudgeClient, JudgeRequest
from app.infrastructure.llm.figures import reported
from app.infrastructure.llm.gbnf import grammar
from app.infrastructure.llm.local_model import MODEL_NAME, LocalModel
from app.infrastructure.llm.openai_client import OPENAI_URL
from app.infrastructure.llm.sse import error_for_status, malformed, read_usage

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

_LARGEST_BODY: Final = 1024 * 1024
_CONNECT_S: Final = 10.0
_SCHEMA_NAME: Final = "judgement"
_LOCAL_TEXT: Final = 28
"""Characters of each text; see `app.infrastructure.llm.gbnf`.

A sign may take four tokens of a small model, and nine texts of such signs have to fit into the cap of an answer: one
that is cut off is no JSON.
"""


async def open_judge(
    settings: Settings, model: str, stack: AsyncExitStack, *, local: LocalModel | None = None
) -> JudgeClient:
    """Make the client for a judge's model; ``stack`` closes it.

    Args:
        settings: of the process; ``judge`` has address, key and limits.
        model: ``local`` or ``provider:model``, by the exam's word or the settings'.
        stack: closed when judging ends.
        local: the local model, where this process runs it already; it stays open.

    Raises:
        StartupError: the model's name is wrong, a package or a key is missing, or the local model cannot be run.
    """
    judge = settings.judge
    provider, _, name = model.partition(":")
    client: JudgeClient
    if model == "local":
        if local is None:
            settings.data_dir.mkdir(parents=True, exist_ok=True)
            local = await LocalModel.start(log_path=settings.data_dir / "local-judge.log")
            stack.push_async_callback(local.close)
        client = OpenAIJudge("local", MODEL_NAME, local.base_url, None, judge, by_grammar=True)
    elif not (provider and name):
        raise StartupError(
            f"The judge's model {model!r} is not a model's name.",
            "It is local, or provider:model, such as openai:gpt-4.1; mend TURNSTONE_JUDGE__MODEL or the exam.",
        )
    elif provider == "openai":
        key = judge.api_key.get_secret_value() if judge.api_key is not None else None
        if judge.base_url is None and key is None:
            raise StartupError(
                f"The judge's model {model} needs a key.",
                "Set TURNSTONE_JUDGE__API_KEY (or TURNSTONE_JUDGE__BASE_URL).",
            )
        client = OpenAIJudge(model, name, judge.base_url or OPENAI_URL, key, judge)
    else:
        client = LangChainJudge(model, judge)
    stack.push_async_callback(client.aclose)
    return client


class OpenAIJudge:
    """Any OpenAI-compatible endpoint that takes ``response_format`` with a JSON Schema.

    Args:
        model: the name under which calls are stored.
        model_at_provider: the name the endpoint knows.
        base_url: the endpoint, up to and with ``/v1``.
        api_key: sent as a bearer token.
        settings: time limit, calls at once and cap of one answer.
        by_grammar: bind the answer by a grammar, as llama.cpp's server takes it, and not by the schema.
    """

    def __init__(
        self,
        model: str,
        model_at_provider: str,
        base_url: str,
        api_key: str | None,
        settings: JudgeSettings,
        *,
        by_grammar: bool = False,
    ) -> None:
        self._model = model
        self._model_at_provider = model_at_provider
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._limit_field = "max_completion_tokens" if base_url.startswith(OPENAI_URL) else "max_tokens"
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._settings = settings
        self._by_grammar = by_grammar
        self._free = asyncio.Semaphore(settings.concurrency)
        self._http: aiohttp.ClientSession | None = None

    @property
    def model(self) -> str:
        """Name under which calls are stored."""
        return self._model

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """See `app.domain.judging.JudgeClient.complete`. The time limit begins when the call's turn has come."""
        async with self._free:
            begun = time.monotonic()
            body = await self._post(_encoded(self._body(request)))
            text, usage = _read(body)
            return JudgeAnswer(text, usage, round((time.monotonic() - begun) * 1000))

    async def aclose(self) -> None:
        """Close all connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    def _body(self, request: JudgeRequest) -> dict[str, Any]:
        return {
            "model": self._model_at_provider,
            "messages": [{"role": role, "content": content} for role, content in request.messages],
            "temperature": request.parameters["temperature"],
            "seed": request.parameters["seed"],
            self._limit_field: _cap(request, self._settings),
            **self._form(request),
        }

    def _form(self, request: JudgeRequest) -> dict[str, Any]:
        if self._by_grammar:
            return {"grammar": grammar(request.schema, longest_text=_LOCAL_TEXT)}
        schema = {"name": _SCHEMA_NAME, "strict": True, "schema": request.schema}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    async def _post(self, body: bytes) -> bytes:
        if self._http is None:
            timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s, connect=_CONNECT_S)
            self._http = aiohttp.ClientSession(timeout=timeout, headers=self._headers)
        headers = {"content-type": "application/json"}
        try:
            # A redirect would take the conversation, and maybe the key, to an address that nobody has set.
            async with self._http.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                if not 200 <= response.status < 300:
                    raise error_for_status(response.status, parse_retry_after(response.headers.get("retry-after")))
                return await _whole(response.content)
        except aiohttp.ServerDisconnectedError:
            raise malformed("disconnected") from None
        except aiohttp.ConnectionTimeoutError:
            raise _unreachable("connection timeout") from None
        except TimeoutError:
            raise ModelError(ErrorCode.LLM_TIMEOUT, "The judge did not answer in time.", detail="timeout") from None
        except aiohttp.ClientConnectionError as error:
            raise _unreachable(type(error).__name__) from None
        except aiohttp.ClientError as error:
            raise malformed(type(error).__name__) from None


class LangChainJudge:
    """A provider that does not speak the OpenAI format, through LangChain (extra ``providers``).

    Args:
        model: ``provider:model``, the provider as LangChain names it.
        settings: address, key, time limit, calls at once and cap of one answer.

    Raises:
        StartupError: a package is missing, or LangChain cannot make this model.
    """

    def __init__(self, model: str, settings: JudgeSettings) -> None:
        from app.infrastructure.llm.langchain_client import chat_model

        self._model = model
        self._settings = settings
        self._free = asyncio.Semaphore(settings.concurrency)
        options = {
            "api_key": settings.api_key.get_secret_value() if settings.api_key is not None else None,
            "base_url": settings.base_url,
            "max_retries": 1 if model.startswith("google_genai:") else 0,  # some of its versions read 0 as the default
            "temperature": 0,
            "max_tokens": settings.max_output_tokens,
        }
        self._chat = chat_model(model, {name: value for name, value in options.items() if value is not None})

    @property
    def model(self) -> str:
        """Name under which calls are stored."""
        return self._model

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """See `app.domain.judging.JudgeClient.complete`. The schema binds where the provider's package can bind it."""
        from langsmith.run_helpers import tracing_context

        async with self._free:
            begun = time.monotonic()
            try:
                # The tracer that LANGSMITH_TRACING switches on would send the conversation to a third party.
                async with asyncio.timeout(self._settings.timeout_s):
                    with tracing_context(enabled=False):
                        message = await self._ask(request)
            except TimeoutError:
                raise ModelError(ErrorCode.LLM_TIMEOUT, "The judge did not answer in time.", detail="timeout") from None
            except Exception as error:  # noqa: BLE001 - what each provider's package raises is not known here
                raise _langchain_error(error) from None
            return JudgeAnswer(str(message.text), _langchain_usage(message), round((time.monotonic() - begun) * 1000))

    async def aclose(self) -> None:
        """LangChain has no way to close its connections."""

    async def _ask(self, request: JudgeRequest) -> Any:
        chat: BaseChatModel = self._chat
        options: dict[str, Any] = {"callbacks": []}
        schema = {"title": _SCHEMA_NAME, "description": "The judgement.", **request.schema}
        try:
            bound = chat.with_structured_output(schema, include_raw=True, method="json_schema")
        except (NotImplementedError, ValueError, TypeError):  # the prompt asks for the schema too
            return await chat.ainvoke(list(request.messages), cast(Any, options))
        found = cast("dict[str, Any]", await bound.ainvoke(list(request.messages), cast(Any, options)))
        return found["raw"]


def _encoded(body: dict[str, Any]) -> bytes:
    return msgspec.json.encode(body)


def _cap(request: JudgeRequest, settings: JudgeSettings) -> int:
    return min(int(request.parameters["max_output_tokens"]), settings.max_output_tokens)


async def _whole(content: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in content.iter_any():
        size += len(part)
        if size > _LARGEST_BODY:
            raise malformed("answer too large")
        parts.append(part)
    return b"".join(parts)


def _read(body: bytes) -> tuple[str, Usage | None]:
    """The answer's text (a refusal's, where there is one: it is no judgement) and the provider's figures."""
    try:
        said = msgspec.json.decode(body)
        message = said["choices"][0]["message"]
        text = message.get("content") or message.get("refusal") or ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, TypeError, AttributeError):
        raise malformed("not a chat completion") from None
    if not isinstance(text, str):
        raise malformed("content is no text")
    return text, read_usage(said.get("usage"))


def _unreachable(detail: str) -> ModelError:
    return ModelError(ErrorCode.LLM_UNAVAILABLE, "The judge cannot be reached right now.", detail=detail)


def _langchain_error(error: Exception) -> ModelError:
    status = getattr(error, "status_code", None) or getattr(error, "code", None)
    if isinstance(status, int) and 300 <= status < 600:
        return error_for_status(status)
    return _unreachable(type(error).__name__)


def _langchain_usage(message: Any) -> Usage | None:
    said = message.usage_metadata or {}
    return reported(
        said.get("input_tokens"),
        said.get("output_tokens"),
        cached=(said.get("input_token_details") or {}).get("cache_read"),
        reasoning=(said.get("output_token_details") or {}).get("reasoning"),
    )
