"""``ChatStream``: bytes of a provider in, text and figures out."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.core.errors import ErrorCode, ModelError
from app.domain.conversation import FinishReason, Usage
from app.domain.model_client import ModelCall
from app.infrastructure.llm.sse import ChatStream, error_for_status
from tests.support.provider import RAW_EVENTS, SECRET

DONE = b"data: [DONE]\n\n"


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(finish_reason: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": 0, "delta": fields, "finish_reason": finish_reason}])


def text(*pieces: str) -> bytes:
    return b"".join(delta(content=piece) for piece in pieces)


STOP = delta("stop")


class Read(NamedTuple):
    text: str
    fault: ModelError | None
    call: ModelCall
    pieces: list[str]


def read(reads: Iterable[bytes], *, eof: bool = True) -> Read:
    """Feed the reads as the client does: until ``[DONE]``, a fault, or the end of the connection."""
    call = ModelCall("m")
    stream = ChatStream(call)
    pieces: list[str] = []
    for data in reads:
        piece, fault = stream.feed(data)
        pieces.append(piece)
        if fault is not None or stream.ended:
            break
    else:
        fault = None
        if eof:
            piece, fault = stream.finish()
            pieces.append(piece)
    return Read("".join(pieces), fault, call, [piece for piece in pieces if piece])


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


def joined(pieces: Iterable[str]) -> str:
    """What the pieces say together, once halves of characters are joined or replaced."""
    whole = "".join(pieces).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return whole.replace("\x00", "\N{REPLACEMENT CHARACTER}")


# --- cutting and joining ---

any_text = st.text(st.characters(), max_size=8)  # surrogates and NUL too


@given(
    pieces=st.lists(any_text, max_size=6),
    places=st.lists(st.integers(0, 5000), max_size=30),
    newline=st.sampled_from([b"\n", b"\r\n"]),
    spaced=st.booleans(),
    escaped=st.booleans(),
    done=st.booleans(),
)
@example(pieces=["\ud83d", "\ude00"], places=list(range(500)), newline=b"\r\n", spaced=False, escaped=True, done=True)
@example(pieces=["a\ud83d"], places=[], newline=b"\n", spaced=True, escaped=True, done=False)
@example(pieces=["\x00", "\udc00\ud800"], places=[7], newline=b"\n", spaced=True, escaped=True, done=False)
@settings(max_examples=300, deadline=None)
def test_bytes_cut_anywhere_give_the_same_text_with_whole_characters_only(
    pieces: list[str], places: list[int], newline: bytes, spaced: bool, escaped: bool, done: bool
) -> None:
    whole = b""
    for piece in pieces:
        choice = {"choices": [{"delta": {"content": piece}}]}
        try:
            body = json.dumps(choice, ensure_ascii=escaped).encode()
        except UnicodeEncodeError:  # half a pair exists as an escape only
            body = json.dumps(choice).encode()
        whole += (b"data: " if spaced else b"data:") + body + newline * 2
    whole += STOP.replace(b"\n", newline) + (DONE.replace(b"\n", newline) if done else b"")
    result = read(cut(whole, places))
    assert result.text == joined(pieces)
    assert result.fault is None
    assert result.call.finish_reason is FinishReason.STOP
    assert result.call.text_chars == len(result.text)
    for piece in result.pieces:
        piece.encode()  # raises where there is half a character


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=10))
@settings(max_examples=200, deadline=None)
def test_whatever_bytes_come_the_end_is_a_typed_fault_or_an_answer(data: bytes, places: list[int]) -> None:
    result = read(cut(data, places))
    assert (result.fault is None) == (result.call.finish_reason is not None)
    if result.fault is not None:
        assert result.fault.code is ErrorCode.LLM_UNAVAILABLE


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("choices", "usage", "error", "id"), any_json)))
@settings(max_examples=200, deadline=None)
def test_whatever_an_event_holds_nothing_but_a_typed_fault_comes_of_it(fields: dict[str, Any]) -> None:
    result = read([text("before"), event(**fields), STOP])
    assert result.text.startswith("before")
    assert result.fault is None or result.fault.code in {ErrorCode.LLM_UNAVAILABLE, ErrorCode.LLM_REJECTED}


def test_pieces_of_one_read_come_joined_and_those_of_several_reads_apart() -> None:
    assert read([text("a", "b"), text("c"), STOP + DONE]).pieces == ["ab", "c"]


def test_text_in_the_read_of_the_end_is_not_lost() -> None:
    assert read([text("all at ", "once") + STOP + DONE]).text == "all at once"


def test_a_pair_split_over_two_events_is_one_character_wherever_the_reads_are() -> None:
    halves = text("smile: \ud83d", "\ude00!")
    assert read([halves + STOP]).text == "smile: 😀!"
    assert read([bytes([byte]) for byte in halves + STOP]).text == "smile: 😀!"


def test_a_first_half_waits_for_the_second_and_is_replaced_where_none_comes() -> None:
    stream = ChatStream(ModelCall("m"))
    assert stream.feed(text("x\ud83d")) == ("x", None)
    assert stream.feed(text("y")) == ("\N{REPLACEMENT CHARACTER}y", None)
    assert stream.feed(text("\ud83d")) == ("", None)
    assert stream.feed(STOP + DONE) == ("\N{REPLACEMENT CHARACTER}", None)


def test_nul_which_the_database_cannot_hold_is_replaced() -> None:
    assert read([text("a\x00b"), STOP]).text == "a\N{REPLACEMENT CHARACTER}b"


def test_a_byte_order_mark_hides_no_event() -> None:
    marked = b"\xef\xbb\xbf" + text("first ", "second") + STOP
    assert read([marked]).text == "first second"
    assert read([bytes([byte]) for byte in marked]).text == "first second"


# --- the format ---


@pytest.mark.parametrize(
    "noise",
    [
        b": ping\n\n",
        b":\n",
        b"\n\n\n",
        b"\r\n",
        b"event: message\nid: 7\nretry: 10\n\n",
        b"nonsense without a colon\n\n",
        RAW_EVENTS["role_only"],
        RAW_EVENTS["empty_content"],
        RAW_EVENTS["null_content"],
        RAW_EVENTS["empty_delta"],
        RAW_EVENTS["null_delta"],
        RAW_EVENTS["no_choices"],
        RAW_EVENTS["null_choices"],
        RAW_EVENTS["empty_choices"],
        delta(reasoning_content="thinking", reasoning="thinking"),
        delta(content=None, tool_calls=[{"index": 0, "function": {"name": "f"}}]),
        event(choices=[{"index": 0}], error=None),
        event(choices=[], usage=None, x_extension={"deep": [1, {"er": 2}]}),
    ],
)
def test_what_carries_no_text_changes_nothing(noise: bytes) -> None:
    clean = read([text("a", "b"), STOP, DONE])
    noisy = read([noise, text("a"), noise, text("b"), noise, STOP, noise, DONE])
    noisy.call.provider_ref = None  # the id is the only thing that some of it brings
    assert (noisy.text, noisy.fault, noisy.call) == (clean.text, None, clean.call)


def test_data_over_several_lines_is_one_event() -> None:
    lines = json.dumps({"choices": [{"delta": {"content": "joined"}}]}, indent=1).splitlines()
    whole = "".join(f"data: {line}\r\n" for line in lines).encode() + b"\r\n"
    assert read([whole + STOP]).text == "joined"
    assert read([bytes([byte]) for byte in whole + STOP]).text == "joined"


def test_the_last_event_counts_also_without_an_empty_line_after_it() -> None:
    assert read([text("a"), STOP.rstrip(b"\n")]).fault is None
    assert read([text("a"), b"data: [DONE]"]).call.finish_reason is FinishReason.STOP


def test_a_piece_of_a_megabyte_comes_whole_in_reasonable_time() -> None:
    piece = "가x" * 512 * 1024
    whole = text(piece) + STOP
    begun = time.process_time()
    result = read(whole[at : at + 16_384] for at in range(0, len(whole), 16_384))
    assert result.text == piece
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("block", [b"data: " + b"x" * 65_530, b"data: x\n" * 8_192, b": " + b"x" * 65_534])
def test_an_event_without_end_is_a_fault_before_it_fills_the_memory(block: bytes) -> None:
    stream = ChatStream(ModelCall("m"))
    fed = 0
    while fed < 32 * 1024 * 1024:
        _, fault = stream.feed(block)
        fed += len(block)
        if fault is not None:
            break
    assert fault is not None, "it would have gone on for ever"
    assert fault.code is ErrorCode.LLM_UNAVAILABLE
    assert fault.retryable


@pytest.mark.parametrize(
    "broken",
    [
        RAW_EVENTS["invalid_json"],
        RAW_EVENTS["invalid_utf8"],
        RAW_EVENTS["not_an_object"],
        RAW_EVENTS["wrong_types"],
        b"data: \n\n",
        b'data: "text"\n\n',
        b"data: [DONE\n\n",
        b'data: {"choices":[null]}\n\n',
        b'data: {"choices":[{"delta":{"content":7}}]}\n\n',
        b'data: {"deep":' + b"[" * 200_000 + b"\n\n",
        b'data: {"deep":' + b"[" * 200_000 + b"]" * 200_000 + b"}\n\n",
    ],
    ids=range(11),
)
def test_a_broken_event_ends_the_stream_after_the_text_before_it(broken: bytes) -> None:
    for reads in ([text("kept"), broken, STOP], [text("kept") + broken + STOP]):
        result = read(reads)
        assert result.text == "kept"
        assert result.fault is not None
        assert (result.fault.code, result.fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
        assert result.call.text_chars == 4


# --- the end ---


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("content_filter", FinishReason.REFUSED),
        ("tool_calls", FinishReason.STOP),
        ("something new", FinishReason.STOP),
    ],
)
def test_finish_reasons(said: str, meant: FinishReason) -> None:
    assert read([text("a"), delta(said), DONE]).call.finish_reason is meant


def test_without_done_the_finish_reason_ends_the_answer() -> None:
    result = read([text("a"), STOP])
    assert (result.text, result.fault, result.call.finish_reason) == ("a", None, FinishReason.STOP)


def test_done_without_a_finish_reason_ends_the_answer_too() -> None:
    result = read([text("a"), DONE])
    assert (result.text, result.fault, result.call.finish_reason) == ("a", None, FinishReason.STOP)


def test_neither_of_them_is_a_fault() -> None:
    result = read([text("half an ans")])
    assert result.text == "half an ans"
    assert result.fault is not None
    assert (result.fault.code, result.fault.retryable) == (ErrorCode.LLM_UNAVAILABLE, True)
    assert result.call.finish_reason is None


def test_an_empty_finish_reason_in_every_event_is_none() -> None:
    result = read([delta("", content="a"), delta("", content="b")])
    assert result.fault is not None
    assert read([delta("", content="a"), delta("length", content="b"), DONE]).call.finish_reason is FinishReason.LENGTH


def test_a_refusal_is_shown_and_named() -> None:
    result = read([delta(content=None, refusal="I can't "), delta(refusal="do that."), STOP, DONE])
    assert (result.text, result.fault) == ("I can't do that.", None)
    assert result.call.finish_reason is FinishReason.REFUSED
    assert read([delta(refusal="No."), DONE]).call.finish_reason is FinishReason.REFUSED


def test_a_refusal_that_breaks_off_is_a_fault() -> None:
    result = read([delta(refusal="I can't ")])
    assert result.text == "I can't "
    assert result.fault is not None
    assert result.call.finish_reason is None


def test_what_comes_after_done_is_not_read() -> None:
    assert read([text("a") + STOP + DONE, text("b")]).text == "a"


# --- errors in the stream ---


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        ({"message": SECRET, "code": 400}, ErrorCode.LLM_REJECTED, False),
        ({"message": SECRET, "code": "400"}, ErrorCode.LLM_REJECTED, False),
        ({"message": SECRET, "code": 413}, ErrorCode.LLM_REJECTED, False),
        ({"message": SECRET, "code": "context_length_exceeded"}, ErrorCode.LLM_REJECTED, False),
        ({"message": SECRET, "code": 401}, ErrorCode.LLM_UNAVAILABLE, False),
        ({"message": SECRET, "code": 429}, ErrorCode.LLM_UNAVAILABLE, True),
        ({"message": SECRET, "code": 502}, ErrorCode.LLM_UNAVAILABLE, True),
        ({"message": SECRET, "code": None}, ErrorCode.LLM_UNAVAILABLE, True),
        ({"message": SECRET, "code": [400]}, ErrorCode.LLM_UNAVAILABLE, True),
        ({"message": SECRET, "code": {"a": 1}}, ErrorCode.LLM_UNAVAILABLE, True),
        ({"message": "\ud800" + SECRET, "code": 400}, ErrorCode.LLM_REJECTED, False),
        ({}, ErrorCode.LLM_UNAVAILABLE, True),
        (SECRET, ErrorCode.LLM_UNAVAILABLE, True),
    ],
)
def test_an_error_in_the_stream_is_typed_by_its_code_and_quoted_nowhere(
    error: object, code: ErrorCode, retryable: bool
) -> None:
    result = read([text("kept"), event(error=error), STOP])
    assert result.text == "kept"
    assert result.fault is not None
    assert (result.fault.code, result.fault.retryable) == (code, retryable)
    assert SECRET not in f"{result.fault!r} {result.fault.message} {result.fault.detail}"


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        *((status, ErrorCode.LLM_REJECTED, False) for status in (400, 404, 413, 422)),
        *((status, ErrorCode.LLM_UNAVAILABLE, False) for status in (401, 403, 301, 307)),
        *((status, ErrorCode.LLM_UNAVAILABLE, True) for status in (408, 429, 500, 502, 503, 504, 529)),
    ],
)
def test_statuses_mean_what_the_contract_says(status: int, code: ErrorCode, retryable: bool) -> None:
    error = error_for_status(status)
    assert (error.code, error.retryable) == (code, retryable)


# --- figures ---


def usage(prompt: Any = 10, completion: Any = 5, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


def call_with(*events: bytes) -> ModelCall:
    result = read(events)
    assert result.fault is None
    assert result.text == "answer"
    return result.call


@pytest.mark.parametrize(
    "reads",
    [
        [text("answer"), STOP, event(choices=[], usage=usage()), DONE],
        [text("answer"), event(choices=[{"delta": {}, "finish_reason": "stop"}], usage=usage()), DONE],
        [text("answer"), event(choices=[], usage=usage()), STOP, DONE],
        [text("answer"), event(choices=[], usage=usage()), DONE],
        [text("answer"), STOP, event(choices=None, usage=usage(10.0, 5.0))],
    ],
    ids=["own", "finish", "before the end", "without a reason", "as floats"],
)
def test_figures_are_the_provider_s_wherever_they_stand(reads: list[bytes]) -> None:
    call = call_with(*reads)
    assert call.usage == Usage(10, 5, source="provider")
    assert call.usage_complete


def test_complaint_19_of_cumulative_figures_the_last_stand_for_all() -> None:
    growing = (
        event(choices=[{"delta": {"content": piece}, "finish_reason": None}], usage=usage(10, count))
        for count, piece in enumerate(("an", "sw", "er"), 1)
    )
    call = call_with(*growing, STOP, DONE)
    assert call.usage == Usage(10, 3, source="provider")
    assert call.usage_complete


def test_figures_from_before_the_last_text_do_not_cover_it() -> None:
    call = call_with(event(choices=[], usage=usage(10, 0)), text("answer"), STOP, DONE)
    assert call.usage == Usage(10, 0, source="provider")
    assert not call.usage_complete


def test_figures_of_an_answer_that_broke_off_are_kept_and_not_complete() -> None:
    result = read([event(choices=[{"delta": {"content": "a"}}], usage=usage(10, 1))])
    assert result.call.usage == Usage(10, 1, source="provider")
    assert not result.call.usage_complete


def test_complaint_20_cached_and_reasoning_tokens_are_parts_not_additions() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 12},
        "total_tokens": 120,
    }
    call = call_with(text("answer"), STOP, event(choices=[], usage=usage(100, 20, **details)))
    assert call.usage == Usage(100, 20, 64, 12, "provider")
    assert call.usage is not None
    assert call.usage.total_tokens == 120


@pytest.mark.parametrize(
    "more",
    [
        {"total_tokens": 150},
        {"total_tokens": 150, "completion_tokens_details": {"reasoning_tokens": 30}},
        {"completion_tokens_details": {"reasoning_tokens": 30}},
    ],
    ids=["only the total tells", "total and details", "more thinking than completion"],
)
def test_complaint_19_thinking_that_a_provider_leaves_out_of_the_completion_is_counted(more: dict[str, Any]) -> None:
    call = call_with(text("answer"), STOP, event(choices=[], usage=usage(100, 20, **more)))
    assert call.usage == Usage(100, 50, 0, 30, "provider")


@pytest.mark.parametrize(
    "details",
    [
        {"prompt_tokens_details": None, "completion_tokens_details": None, "total_tokens": None},
        {"prompt_tokens_details": {}, "completion_tokens_details": {"reasoning_tokens": None}},
        {"prompt_tokens_details": {"cached_tokens": -4}, "completion_tokens_details": {"reasoning_tokens": "many"}},
        {"prompt_tokens_details": [1], "completion_tokens_details": "x", "total_tokens": "15"},
        {"total_tokens": -1},
        {"total_tokens": 3},
    ],
    ids=range(6),
)
def test_strange_details_do_not_spoil_good_figures(details: dict[str, Any]) -> None:
    call = call_with(text("answer"), STOP, event(choices=[], usage=usage(**details)))
    assert call.usage == Usage(10, 5, source="provider")


def test_more_cached_than_prompt_is_the_whole_prompt() -> None:
    call = call_with(text("answer"), STOP, event(choices=[], usage=usage(prompt_tokens_details={"cached_tokens": 11})))
    assert call.usage is not None
    assert call.usage.cached_tokens == 10


@pytest.mark.parametrize(
    "said",
    [
        *(usage(prompt=value) for value in (-5, 0, None, "10", 1.5, 2**31, 10**40, True, [10], {"n": 10})),
        *(usage(completion=value) for value in (-5, None, "5", 0.1, 2**63, False)),
        {},
        [],
        "lots",
        7,
    ],
    ids=str,
)
def test_figures_that_cannot_be_meant_are_as_good_as_none(said: object) -> None:
    call = call_with(text("answer"), STOP, event(choices=[], usage=said), DONE)
    assert call.usage is None
    assert not call.usage_complete


def test_a_figure_beyond_every_float_is_as_good_as_none() -> None:
    absurd = b'data: {"choices":[],"usage":{"prompt_tokens":1e999,"completion_tokens":5}}\n\n'
    assert call_with(text("answer"), STOP, absurd, DONE).usage is None


def test_good_figures_are_not_taken_back_by_strange_ones() -> None:
    call = call_with(text("answer"), STOP, event(choices=[], usage=usage()), event(choices=[], usage=usage(-1, -1)))
    assert call.usage == Usage(10, 5, source="provider")
    assert call.usage_complete


# --- the answer's id ---


def test_the_first_id_that_can_be_meant_is_the_call_s() -> None:
    hi = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
    assert read([event(id="a-1", **hi), event(id="b-2", **hi), STOP, DONE]).call.provider_ref == "a-1"
    late = read([event(**hi), event(id=None), event(id=""), event(id="작은-새", choices=[]), STOP, DONE])
    assert late.call.provider_ref == "작은-새"
    assert read([STOP, DONE]).call.provider_ref is None


@pytest.mark.parametrize(
    "said", [7, 1.5, True, ["a"], {"a": 1}, "", "a\x00b", "\ud800", "two\nlines", "x" * 201, None], ids=repr
)
def test_an_id_that_is_none_spoils_nothing(said: object) -> None:
    seen = read([event(id=said, choices=[{"index": 0, "delta": {"content": "hi"}}]), STOP, DONE])
    assert (seen.text, seen.fault, seen.call.provider_ref) == ("hi", None, None)
    assert read([event(id="x" * 200), STOP, DONE]).call.provider_ref == "x" * 200
