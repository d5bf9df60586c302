"""Counts tokens where a provider is silent: a cancelled answer, a broken stream, the size of a prompt to be sent.

Which tokenizer counts follows from the configured model name:

========================  ==============================  ===========
model                     tokenizer                       approximate
========================  ==============================  ===========
``openai:`` known family  o200k_base or cl100k_base       no
``local``                 the model's own, from its GGUF  no
everything else           o200k_base                      yes
========================  ==============================  ===========

Vocabularies are loaded once per process, at the first count or by :meth:`TokenCounter.load`, and shared by all
counters. Everything here may be used from several threads at once.
"""

from __future__ import annotations

import importlib.util
import mmap
import re
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

from app.core.errors import StartupError
from app.domain.model_client import ChatMessage

_O200K: Final = "o200k_base"
_CL100K: Final = "cl100k_base"

_OPENAI_FAMILIES: Final = (
    (re.compile(r"(gpt-4o|chatgpt-4o|gpt-4\.[15]|gpt-5|o[134])(?![0-9a-z])"), _O200K),
    (re.compile(r"(gpt-4|gpt-3\.5|gpt-35)(?![0-9a-z.])"), _CL100K),
)
"""Families by the beginning of a model's name; what follows it (``-mini``, ``.1``, ``:org``) does not matter."""

_OPENAI_PER_MESSAGE: Final = 3
"""Tokens OpenAI puts around each message, beside its role and its content."""

_OPENAI_PRIMING: Final = 3
"""Tokens OpenAI adds once, with which the answer begins."""

_LOCAL_SYSTEM_PROMPT: Final = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the local model's chat template says where a conversation has no system message of its own."""

_GGUF_STRING: Final = 8
_GGUF_ARRAY: Final = 9
_GGUF_NUMBERS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_GGUF_CONTROL_TOKEN: Final = 3

_loading = threading.Lock()


@dataclass(frozen=True, slots=True)
class TokenCount:
    """A number of tokens, and how it was come by.

    Attributes:
        tokens: how many.
        tokenizer: the vocabulary that counted, for example ``o200k_base``.
        approximate: the model's own tokenizer is not known here; another one stood in.
    """

    tokens: int
    tokenizer: str
    approximate: bool


@dataclass(frozen=True, slots=True)
class _Tokenizer:
    """A loaded vocabulary, and how conversations are put before the models that use it."""

    name: str
    count: Callable[[str], int]
    count_messages: Callable[[Sequence[ChatMessage]], int]


class TokenCounter:
    """Counts tokens as one configured model does. Cheap to make: nothing is loaded before it is needed.

    2,000 characters take about 0.1 ms with OpenAI's vocabularies and less than 1 ms with the local model's; the time
    grows linearly, whatever the text. Any ``str`` is accepted: a lone surrogate, which cannot be sent to a
    provider, counts as U+FFFD.

    Args:
        model: the name as it is configured, ``local`` or ``provider:model``.
    """

    def __init__(self, model: str) -> None:
        self._local = model == "local"
        self._vocabulary = _openai_vocabulary(model)

    def load(self) -> None:
        """Load the vocabulary now, in some tenths of a second; best called in a thread while starting."""
        self._tokenizer()

    def count(self, text: str) -> TokenCount:
        """Tokens of a bare text, such as an answer; without the one that ends an answer, which providers bill too."""
        tokenizer, approximate = self._tokenizer()
        return TokenCount(tokenizer.count(_encodable(text)), tokenizer.name, approximate)

    def count_messages(self, messages: Sequence[ChatMessage]) -> TokenCount:
        """Tokens of a whole prompt as the provider would bill it, with all that its chat template adds."""
        tokenizer, approximate = self._tokenizer()
        encodable = [ChatMessage(message.role, _encodable(message.content)) for message in messages]
        return TokenCount(tokenizer.count_messages(encodable), tokenizer.name, approximate)

    def _tokenizer(self) -> tuple[_Tokenizer, bool]:
        """The tokenizer, and whether it only stands in for the model's own."""
        with _loading:
            if self._local and (own := _local_tokenizer()) is not None:
                return own, False
            return _openai_tokenizer(self._vocabulary or _O200K), self._vocabulary is None


def _openai_vocabulary(model: str) -> str | None:
    """The vocabulary of an OpenAI model (``openai:gpt-4o-mini``, ``openai:ft:gpt-4o:…``); None where it is unknown."""
    provider, _, name = model.partition(":")
    if provider != "openai":
        return None
    name = name.removeprefix("ft:")
    return next((vocabulary for family, vocabulary in _OPENAI_FAMILIES if family.match(name)), None)


def _encodable(text: str) -> str:
    """``text`` itself, or if UTF-8 cannot say it, with pairs of surrogates joined and lone ones replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@cache
def _openai_tokenizer(name: str) -> _Tokenizer:
    count: Callable[[str], int] = _bpe_bindings().tokenizer_for_encoding(name).count

    def count_messages(messages: Sequence[ChatMessage]) -> int:
        per_message = (_OPENAI_PER_MESSAGE + count(role) + count(content) for role, content in messages)
        return _OPENAI_PRIMING + sum(per_message)

    return _Tokenizer(name, count, count_messages)


def _bpe_bindings() -> Any:
    """The compiled half of ``bpe_openai``, without its Python half.

    The package's ``__init__`` builds tables of three vocabularies in Python that a count has no use for: 1 s with the
    GIL held and 80 MB, against 0.05 s and 70 MB for this.
    """
    package = importlib.util.find_spec("bpe_openai")
    places = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec("_bindings", places)
    if spec is None or spec.loader is None:
        raise ImportError("bpe_openai has no compiled module '_bindings'", name="bpe_openai._bindings")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _local_tokenizer() -> _Tokenizer | None:
    """The local model's tokenizer; None where its weights are not installed or use another kind of vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    from app.infrastructure.llm.local_model import MODEL_NAME, find_weights

    try:
        metadata = _read_gguf_metadata(find_weights())
    except StartupError:
        return None
    if (metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        return None
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    kinds = metadata["tokenizer.ggml.token_type"]
    bpe.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _GGUF_CONTROL_TOKEN])

    def count(text: str) -> int:
        # The batch interface keeps no offsets, which nearly halves the time of Korean text.
        return len(bpe.encode_batch_fast([text], add_special_tokens=False)[0])

    return _Tokenizer(MODEL_NAME, count, lambda messages: count(_as_chatml(messages)))


def _as_chatml(messages: Sequence[ChatMessage]) -> str:
    """The prompt that the local model's chat template makes of a conversation.

    Special tokens that a user typed are special tokens in it too, as they are for the model's server.
    """
    if messages and messages[0].role != "system":
        messages = [ChatMessage("system", _LOCAL_SYSTEM_PROMPT), *messages]
    turns = (f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


def _read_gguf_metadata(path: Path) -> dict[str, Any]:
    """The key-value pairs at the beginning of a GGUF file (version 2 or 3, little-endian); tensors stay unread."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _GgufReader(data)
        return dict(reader.pairs())


class _GgufReader:
    """Walks through a GGUF header from its beginning."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def pairs(self) -> Iterator[tuple[str, Any]]:
        """Every key with its value."""
        magic, version, _tensors, pairs = self._numbers("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError("not a GGUF file of version 2 or 3")
        for _ in range(pairs):
            key = self._string()
            (kind,) = self._numbers("I")
            yield key, self._value(kind)

    def _value(self, kind: int) -> Any:
        if kind == _GGUF_STRING:
            return self._string()
        if kind == _GGUF_ARRAY:
            return self._array()
        return self._numbers(_GGUF_NUMBERS[kind])[0]

    def _array(self) -> Sequence[Any]:
        kind, length = self._numbers("IQ")
        if kind in _GGUF_NUMBERS:
            return self._numbers(f"{length}{_GGUF_NUMBERS[kind]}")
        return [self._value(kind) for _ in range(length)]

    def _string(self) -> str:
        (length,) = self._numbers("Q")
        start, self._at = self._at, self._at + length
        return self._data[start : self._at].decode()

    def _numbers(self, layout: str) -> tuple[Any, ...]:
        layout = "<" + layout
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values
