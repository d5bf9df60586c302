"""What reaches the provider: the system prompt, the history that fits, the new message."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import httpx
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from langsmith import utils
from langsmith.run_trees import get_cached_client

from app.application.turns.input import past_turns
from app.domain.model_client import ChatMessage
from app.domain.prompting import CUT_OFF, PastTurn, build_messages, prompt, system_prompt
from app.infrastructure.llm.tokens import TokenCounter
from app.infrastructure.persistence.models import PromptRoleEnum
from app.infrastructure.repositories.session_repository import HistoryMessage
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.provider import Figures, Provider, Script
from tests.support.servers import AppThread, Journal
from tests.support.service import Service

Start = Callable[..., Service]
SYSTEM = prompt("system")

past = st.builds(
    PastTurn,
    message=st.text(min_size=1, max_size=5),
    answer=st.text(max_size=5),
    partial=st.booleans(),
    tokens=st.integers(0, 200),
)


@given(st.lists(past, max_size=12), st.integers(0, 600))
@settings(max_examples=300, deadline=None)
def test_the_newest_whole_turns_that_fit_are_sent_in_order(turns: list[PastTurn], budget: int) -> None:
    messages = build_messages("be brief", turns, "now", token_budget=budget)
    first, *between, last = messages
    assert (first, last) == (ChatMessage("system", "be brief"), ChatMessage("user", "now"))
    assert [message.role for message in between] == ["user", "assistant"] * (len(between) // 2)
    answered = [turn for turn in turns if turn.answer]
    kept = answered[len(answered) - len(between) // 2 :]
    for turn, user, assistant in zip(kept, between[::2], between[1::2], strict=True):
        assert user.content == turn.message
        assert assistant.content == (f"{turn.answer}\n\n{CUT_OFF}" if turn.partial else turn.answer)
    assert sum(turn.tokens for turn in kept) <= budget
    if len(kept) < len(answered):
        assert sum(turn.tokens for turn in answered[-len(kept) - 1 :]) > budget, "one more would have fitted"


def test_a_past_too_long_never_displaces_prompt_and_message() -> None:
    huge = PastTurn("x" * 1000, "y" * 1000, partial=False, tokens=10**6)
    assert build_messages("s", [huge], "m", token_budget=0) == [ChatMessage("system", "s"), ChatMessage("user", "m")]


def test_a_stored_turn_of_which_only_half_was_read_is_left_out() -> None:
    def stored(turn: int, role: PromptRoleEnum, tokens: int | None, *, partial: bool = False) -> HistoryMessage:
        return HistoryMessage(turn, role, f"{role.value} {turn}", tokens, partial)

    user, assistant = PromptRoleEnum.USER, PromptRoleEnum.ASSISTANT
    newest_first = [
        stored(3, user, 2),
        stored(3, assistant, 5, partial=True),
        stored(2, user, 3),
        stored(1, user, None),  # its answer was beyond the limit
    ]
    turns = past_turns(newest_first)
    assert turns == [
        PastTurn("USER 1", "", partial=False, tokens=3),
        PastTurn("USER 2", "", partial=False, tokens=3),
        PastTurn("USER 3", "ASSISTANT 3", partial=True, tokens=7),
    ]
    sent = build_messages("s", turns, "m", token_budget=100)
    assert [message.content for message in sent] == ["s", "USER 3", f"ASSISTANT 3\n\n{CUT_OFF}", "m"]


def test_without_a_problem_the_system_prompt_speaks_of_none() -> None:
    assert system_prompt(None) == system_prompt("") == SYSTEM
    assert "{" not in SYSTEM
    assert "<problem>" not in SYSTEM


@pytest.mark.parametrize(
    "problem",
    [
        "Add two numbers.",
        "int main() { return 0; } // {x} {} {{}} {0} %s \\1 \\g<0> $x",
        "The placeholder is {problem_text} and stays.",
        "문제: 가장 긴 증가 부분 수열 🐦\n\n- 입력: {n}\n",
    ],
)
def test_the_problem_stands_in_the_system_prompt_as_it_was_written(problem: str) -> None:
    whole = system_prompt(problem)
    assert whole.startswith(SYSTEM)
    assert f"<problem>\n{problem.strip()}\n</problem>" in whole
    assert whole.count("{problem_text}") == problem.count("{problem_text}")


# --- through the service ---


def contents(provider: Provider, number: int) -> list[str]:
    return [message["content"] for message in provider.requests[number].messages]


async def test_turns_that_were_cut_off_are_marked_and_turns_without_answer_left_out(
    service: Service, provider: Provider
) -> None:
    answers = ("Turn ", "stones ", "over.")
    whole, half = "".join(answers), "".join(answers[:2])
    hang = Script(pieces=answers, ending="hang", ending_at=2)
    fine = Script(pieces=answers)
    async with connect(service.url) as client:
        pair = new_pair()

        async def cancelled(turn: str, text: str) -> None:
            so_far = len(provider.requests)
            seen = await client.start(turn, turn, text=text, **pair)
            await provider.requests_reach(so_far + 1)
            await client.send(type="cancel", turn_id=turn)
            assert (await client.turn(seen=seen)).end["type"] == "cancelled"

        provider.next(fine, hang, Script(pieces=answers, ending="close", ending_at=1), Script(status=400))
        await client.ask("whole", "whole", **pair)
        await cancelled("cancelled", half)
        await client.ask("broke off", "broke off", **pair)
        await client.ask("rejected", "rejected", **pair)
        provider.next(Script(pieces=()), Script(pieces=answers, ending="hang", ending_at=0))
        await client.ask("empty", "empty", **pair)
        await cancelled("cancelled at once", "")
        provider.next(Script(pieces=answers, finish_reason="length"), fine)
        await client.ask("too long", "too long", **pair)
        await client.ask("last", "last", **pair)

    last = provider.requests[-1]
    assert [message["role"] for message in last.messages] == ["system", *["user", "assistant"] * 4, "user"]
    assert [message["content"] for message in last.messages] == [
        SYSTEM,
        *("whole", whole),
        *("cancelled", f"{half}\n\n{CUT_OFF}"),
        *("broke off", f"{answers[0]}\n\n{CUT_OFF}"),
        *("too long", whole),
        "last",
    ]
    for request in provider.requests:
        roles = [message["role"] for message in request.messages]
        assert roles[0] == "system"
        assert roles[-1] == "user"
        assert all(before != after for before, after in pairwise(roles)), roles


async def test_history_is_cut_to_the_budget_by_whole_turns(start: Start, provider: Provider, rows: Rows) -> None:
    service = start(llm={"history_tokens": 300})
    answer = "word " * 40
    provider.default = Script(pieces=(answer,), usage=None)
    async with connect(service.url) as client:
        pair = new_pair()
        for number in range(8):
            await client.ask(f"question {number} " + "why " * 40, number, **pair)
    counter = TokenCounter("openai:scripted")
    for number, request in enumerate(provider.requests):
        past_sent = request.messages[1:-1]
        numbers = [int(message["content"].split()[1]) for message in past_sent[::2]]
        assert numbers == list(range(number - len(numbers), number))
        assert all(message["content"] == answer for message in past_sent[1::2])
        assert sum(counter.count(message["content"]).tokens for message in past_sent) <= 300
    assert [len(request.messages) // 2 for request in provider.requests] == [1, 2, 3, 4, 4, 4, 4, 4]
    stored = rows.one("SELECT count(*) AS count FROM prompt_messages")
    assert stored["count"] == 16, "what is not sent is still stored"


async def test_a_count_that_a_provider_made_up_does_not_burst_the_budget(start: Start, provider: Provider) -> None:
    service = start(llm={"history_tokens": 300})
    provider.default = Script(pieces=("word " * 4_000,), usage=Figures(prompt_tokens=1, completion_tokens=1))
    async with connect(service.url) as client:
        pair = new_pair()
        await client.ask("first", 1, **pair)
        await client.ask("second", 2, **pair)
    assert contents(provider, 1) == [SYSTEM, "second"]


async def test_sessions_do_not_see_each_other(service: Service, provider: Provider) -> None:
    async with connect(service.url) as client:
        one, other = new_pair(), new_pair()
        await client.ask("my secret", 1, **one)
        await client.ask("hello", 1, **other)
        ended = await client.ask("again", 2, **one)
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
            await rest.post(f"/api/sessions/{ended.session_id}/end")
        await client.ask("a new session", 1, **one)
    assert contents(provider, 1) == [SYSTEM, "hello"]
    assert contents(provider, 2)[1] == "my secret"
    assert contents(provider, 3) == [SYSTEM, "a new session"]


async def test_an_exam_s_problem_is_in_the_system_prompt_from_the_next_turn_on(
    service: Service, provider: Provider
) -> None:
    pair = {**new_pair(), "exam_id": 4_321}
    problems = ["Sum {a} and {b}: {problem_text}\n\\1 가나다", "Now multiply."]
    async with connect(service.url) as client, httpx.AsyncClient(base_url=service.url, timeout=30) as rest:
        await client.ask("one", 1, **pair)
        for number, problem in enumerate(problems, 2):
            answer = await rest.put("/api/exams/4321", json={"problem_text": problem})
            assert answer.status_code == 200, answer.text
            await client.ask("next", number, **pair)
        await client.ask("another exam", 1, **new_pair())
    assert [contents(provider, number)[0] for number in range(4)] == [
        SYSTEM,
        system_prompt(problems[0]),
        system_prompt(problems[1]),
        SYSTEM,
    ]
    assert problems[0] in contents(provider, 1)[0]
    assert contents(provider, 2)[1:] == ["one", Script().text, "next", Script().text, "next"]


async def test_the_candidate_s_text_arrives_as_it_was_written(service: Service, provider: Provider) -> None:
    texts = [
        "  spaces around \n",
        "{x} {{}} %s \\u0041",
        "한글 🐦‍⬛ \u200b\u202e",
        '"quotes" \\ \t',
        "</problem> system:",
    ]
    async with connect(service.url) as client:
        pair: dict[str, Any] = new_pair()
        for number, text in enumerate(texts):
            await client.ask(text, number, **pair)
    assert contents(provider, -1)[1::2] == texts


async def test_the_cap_of_an_answer_is_sent_along(start: Start, provider: Provider) -> None:
    service = start(llm={"max_output_tokens": 123})
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    assert provider.requests[0].body["max_tokens"] == 123


async def test_tracing_by_environment_sends_the_conversation_nowhere_else(
    service: Service, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: Journal[str] = Journal()

    async def note(request: web.Request) -> web.Response:
        told.add(f"{request.method} {request.path}")
        return web.json_response({})

    def build() -> web.Application:
        app = web.Application(client_max_size=2**30)
        app.router.add_route("*", "/{path:.*}", note)
        return app

    with AppThread(build) as tracer:
        monkeypatch.setenv("LANGSMITH_TRACING", "true")
        monkeypatch.setenv("LANGSMITH_ENDPOINT", tracer.url)
        monkeypatch.setenv("LANGSMITH_API_KEY", "ls-key")
        utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # an lru_cache behind overloads
        try:
            assert utils.tracing_is_enabled(), "the environment asks for it"
            async with connect(service.url) as client:
                assert (await client.ask("hello", **new_pair())).end["type"] == "done"
            get_cached_client().flush()  # the tracer sends in the background
        finally:
            monkeypatch.undo()
            utils.get_env_var.cache_clear()  # type: ignore[attr-defined]  # as above
        assert [line for line in told if line.startswith("POST")] == []


async def test_a_turn_without_answer_takes_no_room_in_the_history(start: Start, provider: Provider) -> None:
    service = start(llm={"history_tokens": 300})
    async with connect(service.url) as client:
        pair = new_pair()
        await client.ask("one", 1, **pair)
        provider.next(Script(status=400))
        await client.ask("word " * 1000, 2, **pair)
        await client.ask("three", 3, **pair)
    assert contents(provider, -1)[1:] == ["one", Script().text, "three"]
