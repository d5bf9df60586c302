"""Exports of providers and of Core: what is read from them, and how a bad file is told."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.errors import ExportError
from app.domain.ledger import Said
from app.infrastructure.exports.bills import KeptEvent, ProviderExport, read_core_export

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def writes(content: str | bytes) -> Path:
        path = tmp_path / "export"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return writes


def row(fields: dict[str, Any]) -> str:
    return f"{json.dumps(fields)}\n"


# --- a provider's calls ---

CALLS = {
    "OpenAI's names": ("id,model,prompt_tokens,completion_tokens,cached_tokens\nx-1,m,100,20,64\n", Said(100, 20, 64)),
    "OpenAI's newer names": (
        "response_id;model;input_tokens;output_tokens;input_cached_tokens\nx-1;m;100;20;64\n",
        Said(100, 20, 64),
    ),
    "our own names": (
        row({"call": 5, "provider_ref": "x-1", "model": "m", "prompt_tokens": 100, "completion_tokens": 20}),
        Said(100, 20),
    ),
    "case, spaces, BOM, CRLF": (
        "\ufeff ID \tModel\tPrompt Tokens\tCompletion-Tokens\r\nx-1\tm\t100\t20.0\r\n\r\n",
        Said(100, 20),
    ),
    "a quoted field": ('id,model,input_tokens,output_tokens,note\nx-1,m,100,20,"a,\n""b"""\n', Said(100, 20)),
    "a response as it came": (
        row(
            {
                "id": "x-1",
                "model": "m",
                "usage": {
                    "prompt_tokens": 100,
                    "completion_tokens": 20,
                    "prompt_tokens_details": {"cached_tokens": 64},
                    "completion_tokens_details": {"reasoning_tokens": 7},
                },
            }
        ),
        Said(100, 20, 64, 7),
    ),
    "Anthropic, whose input leaves out the cache": (
        row(
            {
                "id": "x-1",
                "model": "m",
                "input_tokens": 25,
                "cache_read_input_tokens": 1000,
                "cache_creation_input_tokens": 300,
                "output_tokens": 90,
            }
        ),
        Said(1325, 90, 1000),
    ),
    "Anthropic's usage report": (
        row(
            {
                "id": "x-1",
                "model": "m",
                "uncached_input_tokens": 25,
                "cache_read_input_tokens": 1000,
                "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
                "output_tokens": 90,
            }
        ),
        Said(1325, 90, 1000),
    ),
    "Google, whose candidates leave out the thoughts": (
        row(
            {
                "responseId": "x-1",
                "modelVersion": "m",
                "usageMetadata": {
                    "promptTokenCount": 120,
                    "cachedContentTokenCount": 100,
                    "candidatesTokenCount": 12,
                    "thoughtsTokenCount": 20,
                },
            }
        ),
        Said(120, 32, 100, 20),
    ),
    "Google, which leaves out what is 0": (
        row({"responseId": "x-1", "modelVersion": "m", "usageMetadata": {"promptTokenCount": 120}}),
        Said(120, 0),
    ),
}


@pytest.mark.parametrize(("content", "said"), CALLS.values(), ids=CALLS)
def test_the_usual_columns_of_calls_are_read(write: Write, content: str, said: Said) -> None:
    export = ProviderExport(write(content))
    assert export.by_call
    (call,) = export.calls()
    assert (call.ref, call.model, call.said) == ("x-1", "m", said)


def test_each_call_has_its_line(write: Write) -> None:
    export = ProviderExport(write("id,input_tokens,output_tokens\na,1,2\n\nb,3,4\n"))
    assert [(call.line, call.ref, call.said) for call in export.calls()] == [(2, "a", Said(1, 2)), (4, "b", Said(3, 4))]


def test_an_export_without_rows_has_none(write: Write) -> None:
    export = ProviderExport(write("id,input_tokens,output_tokens\n"))
    assert export.by_call and list(export.calls()) == []


# --- a provider's sums ---

DAYS = {
    "a day": ("date,model,input_tokens,output_tokens\n2026-11-27,m,100,20\n", date(2026, 11, 27)),
    "seconds": ("start_time,model,input_tokens,output_tokens\n1795737600,m,100,20\n", date(2026, 11, 27)),
    "a moment elsewhere": (
        row(
            {
                "starting_at": "2026-11-27T03:00:00+09:00",
                "model": "m",
                "uncached_input_tokens": 100,
                "output_tokens": 20,
            }
        ),
        date(2026, 11, 26),
    ),
    "a moment of UTC": (
        "start_time_iso,model,input_tokens,output_tokens\n2026-11-27T00:00:00Z,m,100,20\n",
        date(2026, 11, 27),
    ),
}


@pytest.mark.parametrize(("content", "day"), DAYS.values(), ids=DAYS)
def test_the_usual_columns_of_sums_are_read(write: Write, content: str, day: date) -> None:
    export = ProviderExport(write(content))
    assert not export.by_call
    (charged,) = export.days()
    assert (charged.day, charged.model, charged.said) == (day, "m", Said(100, 20))


def test_a_day_without_calls_needs_no_model(write: Write) -> None:
    head = "start_time,model,input_tokens,output_tokens\n"
    assert list(ProviderExport(write(f"{head}1795737600,,0,0\n")).days()) == []


# --- Core's events ---


def test_core_s_events_are_read_in_each_form(write: Write) -> None:
    whole = KeptEvent(2, "evt_1", 17, 3, "chat", Said(100, 20, 64), 120)
    head = "webhook-id,session_id,turn,purpose,prompt_tokens,completion_tokens,total_tokens,cached_tokens"
    assert list(read_core_export(write(f"{head}\nevt_1,17,3,chat,100,20,120,64\n"))) == [whole]
    payload = {"type": "usage", "session_id": "17", "turn": 3, "purpose": "chat", "prompt_tokens": 100}
    payload |= {"completion_tokens": 20, "total_tokens": 120, "cached_tokens": 64}
    other = row({"id": "evt_0", "payload": {"type": "message_response", "ai_message": "x"}})
    assert list(read_core_export(write(other + row({"id": "evt_1", "payload": payload})))) == [whole]
    adjusted = row({"event_id": "e", "session_id": 1, "turn": None, "prompt_tokens": -5, "completion_tokens": -1})
    assert list(read_core_export(write(adjusted))) == [KeptEvent(1, "e", 1, None, None, Said(-5, -1), None)]


def test_core_s_events_may_have_no_ids_at_all(write: Write) -> None:
    (event,) = read_core_export(write("session_id,prompt_tokens,completion_tokens\n17,100,20\n"))
    assert event.event_id is None


# --- bad files ---

HEAD = "id,model,input_tokens,output_tokens\n"
BAD_CALLS: dict[str, tuple[str | bytes, int | None, str]] = {
    "nothing": ("", None, "empty"),
    "blank lines": ("\n\n", None, "empty"),
    "an array": ('[{"id": 1}]', 1, "jq -c"),
    "no UTF-8": (HEAD.encode() + b"a,m\xff,1,2\n", 2, "UTF-8"),
    "UTF-16": (HEAD.encode("utf-16"), 1, "UTF-8"),
    "JSON that breaks off": (row({"id": "a", "input_tokens": 1, "output_tokens": 2}) + '{"id": "b", ', 2, "not JSON"),
    "deep JSON": ('{"a":' * 100_000, 1, "not JSON"),
    "JSON that is no object": (row({"id": "a", "input_tokens": 1, "output_tokens": 2}) + "[1]\n", 2, "no JSON object"),
    "a long line": (HEAD + "a" * 1_100_000, 2, "1 MiB"),
    "a quote that never ends": (HEAD + 'a,m,1,2\n"b,m,1,2\n' + "c,m,1,2\n" * 9, 12, "not CSV"),
    "too few fields": (HEAD + "a,m,1,2\nb,m,1\n", 3, "3 fields, and 4 columns"),
    "no figures": ("id,model\na,m\n", 2, "prompt_tokens, input_tokens"),
    "no output": ("id,model,input_tokens\na,m,1\n", 2, "completion_tokens, output_tokens"),
    "no number": (HEAD + "a,m,1,2\nb,m,many,2\n", 3, "input_tokens is no number"),
    "half a token": (HEAD + "a,m,1.5,2\n", 2, "input_tokens is no number"),
    "less than nothing": (HEAD + "a,m,1,-2\n", 2, "output_tokens is no number"),
    "more than can be": (HEAD + "a,m,1,1000000001\n", 2, "output_tokens is no number"),
    "a truth": (row({"id": "a", "input_tokens": True, "output_tokens": 2}), 1, "input_tokens is no number"),
    "more cached than sent": (
        row({"id": "a", "input_tokens": 1, "output_tokens": 2, "cached_tokens": 2}),
        1,
        "more tokens are cached",
    ),
    "a call without id": (HEAD + "a,m,1,2\n,m,1,2\n", 3, "no id"),
    "an id with a control character": (HEAD + "a,m,1,2\na\x00b,m,1,2\n", 3, "no id"),
    "an endless id": (HEAD + "a,m,1,2\n" + "b" * 201 + ",m,1,2\n", 3, "no id"),
    "no id and no day": ("model,input_tokens,output_tokens\nm,1,2\n", 2, "neither an id of a call nor a day"),
    "a day that is none": ("date,model,input_tokens,output_tokens\n27.11.2026,m,1,2\n", 2, "neither an id"),
    "a day beyond time": ("start_time,model,input_tokens,output_tokens\n99999999999999,m,1,2\n", 2, "neither an id"),
    "sums of no model": ("date,model,input_tokens,output_tokens\n2026-11-27,,1,2\n", 2, "no model"),
}


def read_all(path: Path) -> None:
    export = ProviderExport(path)
    list(export.calls() if export.by_call else export.days())


@pytest.mark.parametrize(("content", "line", "problem"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_bill_is_told_with_its_line(write: Write, content: str | bytes, line: int | None, problem: str) -> None:
    with pytest.raises(ExportError) as caught:
        read_all(path := write(content))
    assert caught.value.line == line
    assert problem in str(caught.value)
    assert caught.value.problem.startswith(str(path) if line is None else f"{path}, line {line}: ")


CORE_HEAD = "event_id,session_id,prompt_tokens,completion_tokens\n"
BAD_EVENTS = {
    "no session": ("event_id,prompt_tokens,completion_tokens\ne,1,2\n", 2, "no session_id"),
    "a session that is none": (CORE_HEAD + "e,x17,1,2\n", 2, "session_id is no number"),
    "no tokens": ("event_id,session_id,prompt_tokens\ne,1,2\n", 2, "no prompt_tokens and completion_tokens"),
    "an event without id": (CORE_HEAD + "e,1,1,2\n,1,1,2\n", 3, "has no id"),
    "one with, among others": (CORE_HEAD + ",1,1,2\ne,1,1,2\n", 3, "only some events"),
    "an endless turn": ("turn,session_id,prompt_tokens,completion_tokens\n2147483648,1,1,1\n", 2, "turn is no number"),
}


@pytest.mark.parametrize(("content", "line", "problem"), BAD_EVENTS.values(), ids=BAD_EVENTS)
def test_a_bad_event_is_told_with_its_line(write: Write, content: str, line: int, problem: str) -> None:
    with pytest.raises(ExportError) as caught:
        list(read_core_export(write(content)))
    assert (caught.value.line, problem in caught.value.problem) == (line, True), caught.value


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be read: No such file"):
        read_all(tmp_path / "none")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text('{}[]",:;\tidmoelnputksx01.-\n', max_size=200).map(str.encode))
def test_no_file_brings_anything_but_rows_or_an_export_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(content)
    for reader in (read_all, lambda file: list(read_core_export(file))):
        try:
            reader(path)
        except ExportError as error:
            assert str(path) in error.problem


@pytest.mark.slow
def test_a_big_file_is_not_held(write: Write) -> None:
    path = write(HEAD + "".join(f"chatcmpl-{number:030},gpt-4.1-mini,100,20\n" for number in range(50_000)))
    tracemalloc.start()
    count = sum(1 for _ in ProviderExport(path).calls())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 50_000
    assert most < 1_000_000 < path.stat().st_size
