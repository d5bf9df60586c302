"""Usage: whose figures they are, that every turn has them once, and that all books agree."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from app.domain.model_client import ChatMessage
from app.infrastructure.llm.tokens import TokenCounter
from tests.conftest import Rows
from tests.support.chat import TurnSeen, connect, new_pair
from tests.support.core import FakeCore
from tests.support.provider import Figures, Provider, ProviderRequest, Script
from tests.support.service import Service

Start = Callable[..., Service]
PIECES = ("A turnstone ", "turns ", "stones ", "over.")
HANGS = Script(pieces=PIECES, ending="hang", ending_at=2)
COUNTER = TokenCounter("openai:scripted")


class Books:
    """The places where usage is written down."""

    def __init__(self, core: FakeCore, rows: Rows) -> None:
        self.core, self.rows = core, rows

    async def usages(self, session_id: int, count: int, turns: int) -> list[dict[str, Any]]:
        """The session's usage callbacks, once the answers of all its turns have been reported."""

        def bodies(kind: str) -> list[dict[str, Any]]:
            return [delivery.body for delivery in self.core.events(session_id) if delivery.type == kind]

        await self.core.reaches(lambda _: len(bodies("message_response")) >= turns, 30)
        found = bodies("usage")
        assert len(found) == count, found
        return found

    def turn(self, session_id: int, turn: int = 1) -> dict[str, Any]:
        return self.rows.one("SELECT * FROM prompt_turns WHERE session_id = %s AND turn = %s", session_id, turn)

    def calls(self, session_id: int, turn: int = 1) -> list[dict[str, Any]]:
        query = "SELECT * FROM provider_calls WHERE session_id = %s AND turn = %s ORDER BY id"
        return self.rows(query, session_id, turn)

    def answer(self, session_id: int, turn: int = 1) -> dict[str, Any]:
        query = "SELECT * FROM prompt_messages WHERE session_id = %s AND turn = %s AND role = 'ASSISTANT'"
        return self.rows.one(query, session_id, turn)

    async def agree(self, seen: TurnSeen) -> dict[str, Any]:
        """Check that wire, callback, turn, calls and session say the same of a session's only turn; returns it."""
        (reported,) = await self.usages(seen.session_id, 1, 1)
        turn, calls, wire = self.turn(seen.session_id), self.calls(seen.session_id), seen.end["usage"]
        for name in ("prompt_tokens", "completion_tokens"):
            assert reported[name] == wire[name] == turn[name] == sum(call[name] for call in calls), name
        assert reported["total_tokens"] == wire["total_tokens"] == wire["prompt_tokens"] + wire["completion_tokens"]
        assert reported["cached_tokens"] == turn["cached_tokens"]
        assert reported["source"] == wire["source"] == turn["usage_source"]
        assert (reported["turn"], reported["purpose"], reported["model"]) == (1, "chat", turn["model"])
        total = self.rows.one("SELECT total_tokens FROM prompt_sessions WHERE id = %s", seen.session_id)
        assert total["total_tokens"] == wire["total_tokens"]
        return reported


@pytest.fixture
def books(core: FakeCore, rows: Rows) -> Books:
    return Books(core, rows)


async def asked(service: Service, message: str = "hello") -> TurnSeen:
    async with connect(service.url) as client:
        return await client.ask(message, **new_pair())


def prompt_tokens(request: ProviderRequest) -> int:
    return COUNTER.count_messages([ChatMessage(**message) for message in request.messages]).tokens


# --- the provider's own figures ---


async def test_complaint_18_20_streamed_figures_are_the_provider_s_and_no_part_counts_twice(
    service: Service, provider: Provider, books: Books
) -> None:
    provider.next(Script(usage=Figures(prompt_tokens=100, completion_tokens=30, cached_tokens=64, reasoning_tokens=12)))
    seen = await asked(service)
    assert seen.end["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 30,
        "total_tokens": 130,
        "source": "provider",
    }
    assert (await books.agree(seen))["cached_tokens"] == 64
    (call,) = books.calls(seen.session_id)
    assert (call["cached_tokens"], call["reasoning_tokens"], call["outcome"]) == (64, 12, "completed")
    assert (call["source"], call["tokenizer"], call["approximate"]) == ("provider", None, False)
    answer = books.answer(seen.session_id)
    assert answer["token_count"] == 18  # the answer's own text, without the thinking
    assert "tokenizer" not in answer["meta"]


async def test_complaint_19_of_growing_figures_the_last_counts_and_thinking_is_in(
    service: Service, provider: Provider, books: Books
) -> None:
    growing = Script(usage_in="every", reasoning=("hm", "well"), usage=Figures(completion_tokens=40))
    left_out = Script(usage=Figures(prompt_tokens=100, completion_tokens=20, total_tokens=150))
    provider.next(growing, left_out)
    seen = await asked(service)
    assert (seen.end["usage"]["completion_tokens"], seen.end["usage"]["source"]) == (40, "provider")
    await books.agree(seen)
    seen = await asked(service)
    assert (seen.end["usage"]["total_tokens"], seen.end["usage"]["source"]) == (150, "provider")
    await books.agree(seen)
    assert books.answer(seen.session_id)["token_count"] == 20


# --- a provider that is silent, or says what cannot be meant ---

STRANGE = {
    "none": None,
    "null fields": '{"prompt_tokens": null, "completion_tokens": null, "total_tokens": null}',
    "negative": '{"prompt_tokens": -7, "completion_tokens": -3}',
    "strings": '{"prompt_tokens": "25", "completion_tokens": "6"}',
    "beyond integer": '{"prompt_tokens": 2147483648, "completion_tokens": 2147483648}',
    "beyond bigint": '{"prompt_tokens": 100000000000000000000, "completion_tokens": 1}',
    "beyond float": '{"prompt_tokens": 25, "completion_tokens": 6.5}',
    "nothing for a prompt": '{"prompt_tokens": 0, "completion_tokens": 0}',
    "a list": "[1, 2, 3]",
}


async def test_complaint_16_without_usable_figures_the_turn_is_counted_and_says_by_what(
    service: Service, provider: Provider, books: Books
) -> None:
    for name, usage in STRANGE.items():
        provider.named[name] = Script(pieces=PIECES, usage=None, usage_json=usage)
        message = f"hello [[script:{name}]]"
        seen = await asked(service, message)
        assert (seen.end["type"], seen.text) == ("done", "".join(PIECES)), name
        request = next(request for request in provider.requests if request.last_user_text == message)
        expected = (prompt_tokens(request), COUNTER.count(seen.text).tokens)
        usage_said = seen.end["usage"]
        assert (usage_said["prompt_tokens"], usage_said["completion_tokens"]) == expected, name
        assert usage_said["source"] == "counted", name
        await books.agree(seen)
        (call,) = books.calls(seen.session_id)
        # the vocabulary of this model is not known, and that is said
        assert (call["tokenizer"], call["approximate"], call["source"]) == ("o200k_base", True, "counted"), name
        answer = books.answer(seen.session_id)
        assert (answer["meta"]["tokenizer"], answer["meta"]["approximate"]) == ("o200k_base", True), name
        assert answer["token_count"] == expected[1], name


async def test_the_largest_figures_that_are_believed_can_be_stored(
    service: Service, provider: Provider, books: Books
) -> None:
    provider.next(Script(usage=Figures(prompt_tokens=10**9, completion_tokens=10**9, cached_tokens=10**9)))
    seen = await asked(service)
    assert seen.end["usage"]["total_tokens"] == 2 * 10**9
    await books.agree(seen)


async def test_with_the_model_s_own_tokenizer_counts_are_as_good_as_billed(
    start: Start, provider: Provider, books: Books
) -> None:
    service = start(llm={"model": "openai:gpt-4.1-mini"})
    words = "hello" + " world hello" * 49 + " world"  # 100 tokens of o200k_base, one per word
    provider.default = Script(pieces=(words,), usage=None)
    one, many = await asked(service, "hello"), await asked(service, words)
    assert many.end["usage"]["prompt_tokens"] - one.end["usage"]["prompt_tokens"] == 99
    billed = 100 + 1  # and the token that ends an answer
    assert abs(many.end["usage"]["completion_tokens"] - billed) <= 0.05 * billed
    await books.agree(many)
    (call,) = books.calls(many.session_id)
    assert (call["tokenizer"], call["approximate"], call["model"]) == ("o200k_base", False, "openai:gpt-4.1-mini")
    meta = books.answer(many.session_id)["meta"]
    assert meta["tokenizer"] == "o200k_base"
    assert "approximate" not in meta
    (stored,) = books.rows("SELECT * FROM prompt_messages WHERE role = 'USER' AND session_id = %s", many.session_id)
    assert (stored["token_count"], stored["meta"]["tokenizer"]) == (100, "o200k_base")


# --- turns that end early ---


@pytest.mark.parametrize(
    ("script", "text", "prompt_said", "completion_least"),
    [
        (Script(pieces=PIECES, ending="hang", ending_at=-1), "", None, 0),
        (Script(pieces=PIECES, ending="hang", ending_at=0), "", None, 0),
        (HANGS, "".join(PIECES[:2]), None, 0),
        (
            Script(
                pieces=PIECES,
                reasoning=("hm",) * 4,
                usage_in="every",
                usage=Figures(prompt_tokens=777, completion_tokens=400),
                ending="hang",
                ending_at=2,
            ),
            "".join(PIECES[:2]),
            777,
            300,
        ),
    ],
    ids=["before the headers", "before text", "in the middle", "with partial figures"],
)
async def test_complaint_15_a_cancelled_turn_is_counted(
    start: Start,
    provider: Provider,
    books: Books,
    script: Script,
    text: str,
    prompt_said: int | None,
    completion_least: int,
) -> None:
    service = start(llm={"timeout_s": 60})
    provider.next(script)
    async with connect(service.url) as client:
        seen = await client.start("hello", text=text, **new_pair())
        await provider.requests_reach(1)
        await client.send(type="cancel", turn_id="t1")
        await client.turn(seen=seen)
    assert (seen.end["type"], seen.text) == ("cancelled", text)
    usage = seen.end["usage"]
    assert usage["prompt_tokens"] == (prompt_said or prompt_tokens(provider.requests[0]))
    assert usage["completion_tokens"] == (completion_least or COUNTER.count(text).tokens)
    assert usage["source"] == "counted"
    await books.agree(seen)
    (call,) = books.calls(seen.session_id)
    assert (call["outcome"], call["tokenizer"]) == ("cancelled", "o200k_base")
    if text:
        assert books.answer(seen.session_id)["meta"]["tokenizer"] == "o200k_base"


async def test_complaint_16_nothing_is_lost_when_the_candidate_goes_away(
    service: Service, provider: Provider, books: Books
) -> None:
    provider.next(Script(pieces=PIECES * 10, piece_delay_s=0.02, usage=Figures(prompt_tokens=50)))
    async with connect(service.url) as client:
        seen = await client.start("hello", text="A", **new_pair())
    (reported,) = await books.usages(seen.session_id, 1, 1)
    assert (reported["prompt_tokens"], reported["completion_tokens"], reported["source"]) == (50, 40, "provider")
    assert books.answer(seen.session_id)["content"] == "".join(PIECES * 10)


async def test_complaint_17_usage_is_reported_once_however_often_the_end_is_asked_for(
    service: Service, provider: Provider, books: Books
) -> None:
    provider.next(HANGS)
    async with connect(service.url) as client:
        seen = await client.start("hello", text="turns", **new_pair())
        for _ in range(5):
            await client.send(type="cancel", turn_id="t1")
        await client.turn(seen=seen)
        for again in ("cancel", "resume", "cancel"):
            await client.send(type=again, turn_id="t1", session_id=str(seen.session_id))
        await client.send(type="message", message="hello", turn_id="t1", session_id=str(seen.session_id))
        await client.until("started")
        await client.until("cancelled")
        next_turn = await client.ask("go on", 2, session_id=str(seen.session_id))
    assert next_turn.end["type"] == "done"
    first, second = await books.usages(seen.session_id, 2, 2)
    assert (first["turn"], second["turn"]) == (1, 2)
    assert len(provider.requests) == 2


# --- several calls ---


async def test_a_repetition_sums_its_calls_and_keeps_whose_figures_they_are(
    service: Service, provider: Provider, books: Books
) -> None:
    good = Script(pieces=PIECES, usage=Figures(prompt_tokens=100, completion_tokens=9, cached_tokens=30))
    thinks_and_breaks = Script(pieces=PIECES, ending="close", ending_at=0)
    provider.next(Script(status=503), good, thinks_and_breaks, good)
    refused_once, broken_once = await asked(service), await asked(service)

    assert refused_once.end["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 9,
        "total_tokens": 109,
        "source": "provider",  # the call that was refused used nothing
    }
    await books.agree(refused_once)
    used = [(call["outcome"], call["prompt_tokens"]) for call in books.calls(refused_once.session_id)]
    assert used == [("llm_unavailable", 0), ("completed", 100)]

    counted = prompt_tokens(provider.requests[2])
    assert broken_once.end["usage"] == {
        "prompt_tokens": 100 + counted,
        "completion_tokens": 9,
        "total_tokens": 109 + counted,
        "source": "counted",  # half of it is ours
    }
    assert (await books.agree(broken_once))["cached_tokens"] == 30
    calls = books.calls(broken_once.session_id)
    assert [call["source"] for call in calls] == ["counted", "provider"]
    assert [call["tokenizer"] for call in calls] == ["o200k_base", None]
    assert books.answer(broken_once.session_id)["token_count"] == 9


async def test_a_session_s_total_is_the_sum_of_its_usage_callbacks(
    service: Service, provider: Provider, books: Books
) -> None:
    scripts = ["cached", "status_400", "close_midway", "no_usage", "status_503", "reasoning", "error_event_first"]
    ends = []
    async with connect(service.url) as client:
        pair = new_pair()
        for number, script in enumerate(scripts, 1):
            seen = await client.ask(f"[[script:{script}]]", number, **pair)
            ends.append(seen.end["usage"]["total_tokens"])
        hanging = await client.start("[[script:hang_midway]]", "last", text="A turnstone", **pair)
        await client.send(type="cancel", turn_id="last")
        cancelled = await client.turn(seen=hanging)
        ends.append(cancelled.end["usage"]["total_tokens"])
    count = len(scripts) + 1
    reported = await books.usages(cancelled.session_id, count, count)
    assert [usage["total_tokens"] for usage in reported] == ends
    total = books.rows.one("SELECT total_tokens FROM prompt_sessions")["total_tokens"]
    assert total == sum(ends)
    ledger = books.rows.one("SELECT sum(prompt_tokens + completion_tokens) AS total FROM provider_calls")
    assert ledger["total"] == total


async def test_sessions_side_by_side_keep_their_own_books(service: Service, provider: Provider, books: Books) -> None:
    provider.default = Script(pieces=PIECES, usage=None, piece_delay_s=0.01)
    turns = await asyncio.gather(*(asked(service, "word " * number) for number in range(1, 21)))
    for seen in turns:
        await books.agree(seen)
    assert len({seen.end["usage"]["prompt_tokens"] for seen in turns}) >= 19
