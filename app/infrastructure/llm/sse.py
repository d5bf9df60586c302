"""Server-sent events, as the OpenAI-compatible chat format uses them. Bytes in, text out; no I/O."""

from __future__ import annotations

import codecs
import json
from typing import Any

import msgspec

from app.core.errors import ErrorCode, ModelError
from app.domain.conversation import FinishReason, Usage
from app.domain.model_client import ModelCall
from app.domain.whole_text import WholeText
from app.infrastructure.llm.figures import figure, reference, reported

_LONGEST_EVENT = 8 * 1024 * 1024
_REJECTED = {400, 404, 413, 422}
_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "content_filter": FinishReason.REFUSED,
}


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    # Of any form: strange figures and ids do not spoil an answer, and an error is an error whatever it looks like.
    id: Any = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Event)


def malformed(detail: str) -> ModelError:
    """The stream is not what it should be."""
    return ModelError(ErrorCode.LLM_UNAVAILABLE, "The model's answer broke off.", detail=detail)


class ChatStream:
    """One streamed answer: fed with the bytes of each read, returns the new text and keeps ``call`` up to date.

    Lines and characters may be cut anywhere between two reads, and a character between two events (`WholeText`).
    """

    __slots__ = (
        "_begun",
        "_buffer",
        "_call",
        "_data",
        "_data_bytes",
        "_identified",
        "_refused",
        "_text",
        "_usage_lags",
        "ended",
    )

    def __init__(self, call: ModelCall) -> None:
        self._call = call
        self._begun = False
        self._buffer = b""
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._identified = False
        self._text = WholeText()
        self._refused = False
        self._usage_lags = True
        self.ended = False
        """Whether ``[DONE]`` has come."""

    def feed(self, data: bytes) -> tuple[str, ModelError | None]:
        """Take the bytes of one read.

        Returns:
            All new text joined (may be empty), and the fault that ended the stream, if any: the text came before it.
        """
        texts: list[str] = []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if lines and not self._begun:
            self._begun, lines[0] = True, lines[0].removeprefix(codecs.BOM_UTF8)
        try:
            for line in lines:
                self._line(line, texts)
            if len(self._buffer) + self._data_bytes > _LONGEST_EVENT:
                raise malformed("event too long")
        except ModelError as fault:
            return self._joined(texts), fault
        return self._joined(texts) + (self._rest() if self.ended else ""), None

    def finish(self) -> tuple[str, ModelError | None]:
        """The connection has ended: returns what is left, and a fault where the answer had not ended."""
        text, fault = self.feed(b"\n\n") if self._buffer or self._data else ("", None)
        text += self._rest()
        if fault is None and self._call.finish_reason is None:
            fault = malformed("connection closed before the end")
        return text, fault

    def _line(self, line: bytes, texts: list[str]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._data_bytes += len(line)
        elif not line and self._data:
            event = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
            self._data = []
            self._data_bytes = 0
            self._event(event, texts)
        # Other fields and comments carry nothing for us, as the standard has it.

    def _event(self, data: bytes, texts: list[str]) -> None:
        if data == b"[DONE]":
            self.ended = True
            if self._call.finish_reason is None:
                self._finish(FinishReason.STOP)
            return
        try:
            event = _decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            event = _decode_leniently(data)
        if not self._identified:
            self._take_id(event.id)
        if event.error is not None:
            raise _error_in_stream(event.error)
        for choice in event.choices or ():
            if choice.delta is not None:
                if choice.delta.content:
                    texts.append(choice.delta.content)
                    self._usage_lags = True
                elif choice.delta.refusal:
                    texts.append(choice.delta.refusal)
                    self._usage_lags = self._refused = True
            if choice.finish_reason:  # some write an empty one into every event
                self._finish(_FINISH.get(choice.finish_reason, FinishReason.STOP))
        if event.usage is not None:
            self._take_usage(event.usage)

    def _finish(self, reason: FinishReason) -> None:
        self._call.finish_reason = FinishReason.REFUSED if self._refused else reason
        self._call.usage_complete = not self._usage_lags

    def _take_id(self, said: object) -> None:
        """Every event has the answer's id; the first is as good as the last."""
        if (ref := reference(said)) is not None:
            self._call.provider_ref = ref
            self._identified = True

    def _take_usage(self, said: object) -> None:
        """Providers that report along the way report totals so far, so the latest figures stand for all."""
        usage = _read_usage(said)
        if usage is not None:
            self._call.usage = usage
            self._usage_lags = False
            self._call.usage_complete = self._call.finish_reason is not None

    def _joined(self, texts: list[str]) -> str:
        if not texts:
            return ""
        text = self._text.take(texts[0] if len(texts) == 1 else "".join(texts))
        self._call.text_chars += len(text)
        return text

    def _rest(self) -> str:
        text = self._text.rest()
        self._call.text_chars += len(text)
        return text


def _decode_leniently(data: bytes) -> _Event:
    """Decode an event whose strings hold lone surrogates, which the strict decoder refuses."""
    try:
        return msgspec.convert(json.loads(data), _Event)
    except (ValueError, msgspec.ValidationError, RecursionError):
        raise malformed("not a chat completion chunk") from None


def _read_usage(said: object) -> Usage | None:
    """The provider's figures in our reading."""
    if not isinstance(said, dict):
        return None
    prompt, completion = figure(said, "prompt_tokens"), figure(said, "completion_tokens")
    if prompt is None or completion is None:
        return None
    cached = figure(said.get("prompt_tokens_details"), "cached_tokens")
    reasoning = figure(said.get("completion_tokens_details"), "reasoning_tokens") or 0
    # Some providers leave thinking out of the completion; then the total tells, or thinking above the whole completion.
    left_out = max((figure(said, "total_tokens") or 0) - prompt - completion, 0)
    if not left_out and reasoning > completion:
        left_out = reasoning
    return reported(prompt, completion + left_out, cached=cached, reasoning=max(reasoning, left_out))


def _error_in_stream(error: object) -> ModelError:
    code = str(error.get("code")) if isinstance(error, dict) else ""
    if code == "context_length_exceeded":
        return rejected("error in the stream")
    if code.isascii() and code.isdigit() and len(code) == 3:
        return error_for_status(int(code), detail=f"error {code} in the stream")
    return ModelError(ErrorCode.LLM_UNAVAILABLE, "The model failed while it answered.", detail="error in the stream")


def rejected(detail: str) -> ModelError:
    """The provider will not answer this request, now or later."""
    return ModelError(
        ErrorCode.LLM_REJECTED,
        "The model did not accept this conversation (it may be too long).",
        retryable=False,
        detail=detail,
    )


def error_for_status(status: int, retry_after_s: float | None = None, *, detail: str | None = None) -> ModelError:
    """What an HTTP status other than 2xx means for a turn."""
    detail = detail or f"HTTP {status}"
    if status in _REJECTED:
        return rejected(detail)
    if status in {401, 403} or 300 <= status < 400:
        return ModelError(
            ErrorCode.LLM_UNAVAILABLE, "The model is not available to this service.", retryable=False, detail=detail
        )
    message = "The model is busy; try again in a moment." if status == 429 else "The model is not available right now."
    return ModelError(ErrorCode.LLM_UNAVAILABLE, message, retry_after_s=retry_after_s, detail=detail)
