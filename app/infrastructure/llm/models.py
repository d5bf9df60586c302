"""From the settings to a model client."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp
import structlog

from app.core.errors import StartupError
from app.core.settings import LlmSettings, Settings, without_secrets
from app.domain.model_client import ModelClient
from app.infrastructure.llm.local_model import CONTEXT_TOKENS, MODEL_NAME, LocalModel
from app.infrastructure.llm.openai_client import OPENAI_URL, OpenAIClient
from app.infrastructure.llm.tokens import TokenCounter

log = structlog.get_logger()

_LOCAL_OUTPUT_TOKENS = 2_048
_LOCAL_RESERVE_TOKENS = 2_048
"""Kept free of history in the local model's context: for the system prompt and the new message."""
_CHECK_TIMEOUT_S = 5.0
_SPELLING = "It is local, or provider:model, such as openai:gpt-4.1-mini, anthropic:… or google_genai:…."


@dataclass(frozen=True, slots=True)
class OpenedModel:
    """A model ready to be asked. ``local`` is set where this process runs it itself."""

    client: ModelClient
    counter: TokenCounter
    max_output_tokens: int
    history_tokens: int
    local: LocalModel | None = None

    @property
    def ready(self) -> bool:
        """Whether the model can be asked now, as far as this process can know."""
        return self.local is None or self.local.alive


async def open_model(settings: Settings, stack: AsyncExitStack) -> OpenedModel:
    """Make the configured model's client; ``stack`` closes it.

    Raises:
        StartupError: the model's name is wrong, a key is missing, or the local model cannot be run.
    """
    llm = settings.llm
    local = None
    if llm.model == "local":
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        local = await LocalModel.start(log_path=settings.data_dir / "local-model.log")
        stack.push_async_callback(local.close)
        client: ModelClient = OpenAIClient(
            "local",
            model_at_provider=MODEL_NAME,
            base_url=local.base_url,
            api_key=None,
            timeout_s=llm.timeout_s,
            keep_alive=False,
        )
    else:
        client = _remote_client(llm)
    stack.push_async_callback(client.aclose)
    max_output = llm.max_output_tokens if local is None else min(llm.max_output_tokens, _LOCAL_OUTPUT_TOKENS)
    return OpenedModel(client, TokenCounter(llm.model), max_output, history_budget(llm), local)


def history_budget(llm: LlmSettings) -> int:
    """Tokens of past turns to send along; the local model's context holds fewer than others'."""
    if llm.model != "local":
        return llm.history_tokens
    return min(llm.history_tokens, CONTEXT_TOKENS - _LOCAL_OUTPUT_TOKENS - _LOCAL_RESERVE_TOKENS)


def _remote_client(llm: LlmSettings) -> ModelClient:
    provider, name = split_model(llm.model)
    key = llm.api_key.get_secret_value() if llm.api_key is not None else None
    if provider == "openai":
        return OpenAIClient(
            llm.model,
            model_at_provider=name,
            base_url=llm.base_url or OPENAI_URL,
            api_key=key,
            timeout_s=llm.timeout_s,
        )
    from app.infrastructure.llm.langchain_client import LangChainClient

    return LangChainClient(llm.model, api_key=key, base_url=llm.base_url, timeout_s=llm.timeout_s)


def split_model(model: str) -> tuple[str, str]:
    """``provider`` and ``model`` of ``provider:model``.

    Raises:
        StartupError: it is not of that form.
    """
    provider, separator, name = model.partition(":")
    if not separator or not provider or not name:
        raise StartupError(f"TURNSTONE_LLM__MODEL={model} is not a model's name.", _SPELLING)
    return provider, name


async def check_remote(llm: LlmSettings) -> str | None:
    """Ask an OpenAI-compatible endpoint for its models.

    Returns:
        A warning where the endpoint cannot be reached just now, does not show its list or does not list the model, else
        ``None``. Endpoints that have no such list are taken as they are.

    Raises:
        StartupError: what is set can never work: a host name nobody knows; at OpenAI itself also a missing or wrong
            key, or an unknown model.
    """
    provider, name = split_model(llm.model)
    if provider != "openai":
        return None
    if llm.base_url is None and llm.api_key is None:
        raise StartupError(
            f"TURNSTONE_LLM__MODEL={llm.model} needs a key.", "Set TURNSTONE_LLM__API_KEY (or TURNSTONE_LLM__BASE_URL)."
        )
    base = (llm.base_url or OPENAI_URL).rstrip("/")
    shown = without_secrets(base)
    headers = {"authorization": f"Bearer {llm.api_key.get_secret_value()}"} if llm.api_key is not None else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CHECK_TIMEOUT_S)) as client,
            client.get(f"{base}/models", headers=headers, allow_redirects=False) as response,
        ):
            if response.status in {401, 403}:
                refused = f"{shown} refuses the key (HTTP {response.status})"
                if llm.base_url is None:
                    raise StartupError(f"{refused}.", "Set TURNSTONE_LLM__API_KEY.")
                # Some gateways guard their list, and take the key for turns all the same.
                return f"{refused} for its list of models; turns fail with llm_unavailable if it does for them too."
            if 300 <= response.status < 400:
                return f"{shown} redirects (HTTP {response.status}), which turns do not follow; set where it leads to."
            known = _model_names(await response.json(content_type=None)) if response.status == 200 else set()
    except aiohttp.ClientConnectorDNSError:
        raise StartupError(
            f"The host of {shown} cannot be found: there is no network, or no host of that name.",
            "Mend TURNSTONE_LLM__BASE_URL or the network.",
        ) from None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return f"{shown} cannot be reached now ({type(error).__name__}); turns fail with llm_unavailable until it can."
    if known and name not in known:
        problem = f"{shown} has no model named {name} in its list"
        if llm.base_url is None:
            raise StartupError(f"{problem}.", "Mend TURNSTONE_LLM__MODEL.")
        return f"{problem} ({', '.join(sorted(known)[:10])})."  # lists of other endpoints need not be complete
    return None


def _model_names(answer: Any) -> set[str]:
    items = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(items, list):
        return set()
    return {item["id"] for item in items if isinstance(item, dict) and isinstance(item.get("id"), str)}
