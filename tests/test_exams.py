"""An exam's settings: what can be set, what is refused, which version a turn ran under."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.domain.documents import content_hash, shipped
from app.domain.exam_settings import ExamSettings
from app.domain.guard_policy import GuardAction, GuardRules
from app.domain.guarding import GuardLabel
from app.domain.prompting import system_prompt
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.exam_repository import ExamRepository
from tests.conftest import Rows
from tests.support.provider import Provider
from tests.support.service import Service
from tests.support.short_documents import store_short_documents
from tests.test_openapi import checked_client
from tests.test_rest import all_pages, problem, say

EXAM = "/api/exams/77"
STANDARD, JUDGE, JUDGE_KO, V2, COMPAT = (
    content_hash(shipped(kind, name))  # type: ignore[arg-type]  # each is a kind
    for kind, name in (
        ("rubric", "standard"),
        ("prompt", "judge.en"),
        ("prompt", "judge.ko"),
        ("policy", "v2"),
        ("policy", "compat-2026"),
    )
)
ALL_FLAGGED = dict.fromkeys(GuardLabel, "flag")


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    with checked_client(service) as opened:
        yield opened


def put(rest: httpx.Client, path: str = EXAM, **settings: Any) -> dict[str, Any]:
    response = rest.put(path, json={"problem_text": "Sort.", **settings})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def test_what_is_left_out_is_set_to_what_is_shipped(rest: httpx.Client, rows: Rows) -> None:
    exam = put(rest)
    updated_at = exam.pop("updated_at")
    assert exam == {
        "id": 77,
        "version": 1,
        "problem_text": "Sort.",
        "language": "en",
        "guard": None,
        "rubric": STANDARD,
        "judge_prompt": JUDGE,
        "score_policy": V2,
        "samples": None,
        "judge_model": None,
        "submissions": 1,
        "hold_scores": False,
    }
    assert rest.get(EXAM).json() == exam | {"updated_at": updated_at}
    kept = {row["hash"] for row in rows("SELECT hash FROM evaluation_documents")}
    assert kept >= {STANDARD, JUDGE, V2}, "what is pinned can be read for ever"


def test_names_are_resolved_to_hashes_and_a_whole_exam_can_be_put_back(rest: httpx.Client) -> None:
    guard = {"actions": {"JAILBREAK": "refuse", "OFF_TOPIC": "hint", "UNSAFE": "allow"}, "code": "hint"}
    exam = put(rest, language="ko", guard=guard, score_policy="compat-2026", samples=3, judge_model="openai:judge")
    assert (exam["judge_prompt"], exam["score_policy"], exam["samples"]) == (JUDGE_KO, COMPAT, 3)
    assert exam["guard"] == {
        "actions": ALL_FLAGGED | {"JAILBREAK": "refuse", "OFF_TOPIC": "hint", "UNSAFE": "allow"},
        "code": "hint",
        "ask_model": False,
    }
    settings = {name: value for name, value in exam.items() if name not in ("id", "version", "updated_at")}
    assert put(rest, **settings) == exam, "nothing has changed"


def test_a_version_comes_about_where_something_changed_alone(rest: httpx.Client) -> None:
    versions = [
        put(rest, **settings)["version"]
        for settings in (
            {},
            {},
            {"rubric": "standard", "language": "en"},  # the same, said aloud
            {"language": "ko"},
            {"language": "ko", "guard": {}},  # from now on its own, whatever the service is set to
            {"language": "ko", "guard": {"actions": {"JAILBREAK": "flag"}}},  # the default, said aloud
            {"language": "ko", "guard": {"ask_model": True}},
            {"problem_text": "Sort ", "language": "ko", "guard": {"ask_model": True}},
            {},  # what it was at first is new again
        )
    ]
    assert versions == [1, 1, 1, 2, 3, 3, 4, 5, 6]
    assert put(rest, "/api/exams/78", language="ko")["version"] == 1, "each exam counts by itself"
    listed = all_pages(rest, f"{EXAM}/versions", 4)
    assert [version["version"] for version in listed] == [1, 2, 3, 4, 5, 6]
    assert [version["language"] for version in listed] == ["en", "ko", "ko", "ko", "ko", "en"]
    own = {"version", "created_at"}
    assert {**listed[-1], **dict.fromkeys(own)} == {**listed[0], **dict.fromkeys(own)}
    newest = rest.get(EXAM).json()
    assert (newest["version"], newest["problem_text"]) == (6, "Sort.")


def test_versions_of_an_exam_that_nobody_told_of_are_not_found(rest: httpx.Client) -> None:
    problem(rest.get(f"{EXAM}/versions"), 404, "not_found")
    put(rest)
    assert rest.get(f"{EXAM}/versions", params={"cursor": 2**63 - 1}).json() == {"items": [], "next": None}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rubric": "nice"}, "There is no rubric 'nice'"),
    ({"rubric": JUDGE}, "There is no rubric"),  # there is, but of another kind
    ({"rubric": "0" * 64}, "There is no rubric"),
    ({"judge_prompt": "judge"}, "There is no prompt 'judge'"),
    ({"judge_prompt": "review.en"}, "is for the review, and here one for the judge is needed"),
    ({"score_policy": "v3"}, "There is no policy 'v3'"),
    ({"score_policy": ""}, "score_policy"),
    ({"rubric": "a\x00b"}, "NUL"),
    ({"problem_text": "a\x00b"}, "NUL"),
    ({"problem_text": "x" * 100_001}, "problem_text"),
    ({"language": "tlh"}, "language"),
    ({"samples": 0}, "samples"),
    ({"samples": 10}, "samples"),
    ({"samples": "3"}, "samples"),
    ({"guard": {"actions": {"NICE": "flag"}}}, "NICE"),
    ({"guard": {"actions": {"JAILBREAK": "punish"}}}, "JAILBREAK"),
    ({"guard": {"code": "refuse"}}, "code"),
    ({"guard": {"ask_model": "yes"}}, "ask_model"),
    ({"guard": {"colour": "red"}}, "colour"),
    ({"colour": "red"}, "colour"),
    ({"judge_model": "gpt-4"}, "is no judge: it is local, or provider:model"),
    ({"judge_model": ":gpt-4"}, "is no judge"),
    ({"judge_model": "openai:"}, "is no judge"),
]


def test_what_cannot_be_set_is_refused_and_changes_nothing(rest: httpx.Client) -> None:
    before = put(rest)
    for wrong, said in WRONG:
        answer = rest.put(EXAM, json={"problem_text": "Sort.", "language": "ko", **wrong})
        assert said in problem(answer, 422, "invalid_frame"), wrong
        assert rest.get(EXAM).json() == before, wrong


def test_a_rubric_has_to_have_the_exams_language(rest: httpx.Client, service: Service) -> None:
    rubric = service.call(store_short_documents())["rubric"]
    before = put(rest, rubric=rubric)
    answer = rest.put(EXAM, json={"problem_text": "Sort.", "language": "ko", "rubric": rubric})
    assert "The rubric short has no text in ko, only in en" in problem(answer, 422, "invalid_frame")
    assert rest.get(EXAM).json() == before


def test_many_at_once_make_versions_without_a_gap(rest: httpx.Client, rows: Rows) -> None:
    texts = [f"text {number % 8}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: put(rest, problem_text=text), texts))
    stored = rows("SELECT version, problem_text FROM exam_versions ORDER BY version")
    assert [row["version"] for row in stored] == list(range(1, len(stored) + 1))
    texts_of = {row["version"]: row["problem_text"] for row in stored}
    assert all(texts_of[exam["version"]] == exam["problem_text"] for exam in found)
    newest = rest.get(EXAM).json()
    assert (newest["version"], newest["problem_text"]) == (len(stored), texts_of[len(stored)])


def test_a_turn_says_which_version_it_ran_under(rest: httpx.Client, provider: Provider, rows: Rows) -> None:
    told = {"exam_id": 77, "participant_id": 1}
    session = say(rest, **told, turn_id="a").json()["session_id"]
    put(rest)
    say(rest, **told, turn_id="b")
    put(rest, guard={"code": "hint"})
    say(rest, **told, turn_id="c")
    stored = rows("SELECT exam_version FROM prompt_turns ORDER BY turn")
    assert [row["exam_version"] for row in stored] == [None, 1, 2]
    answers = [m for m in rest.get(f"/api/sessions/{session}/messages").json()["items"] if m["role"] == "ASSISTANT"]
    assert [answer["meta"].get("exam_version") for answer in answers] == [None, 1, 2]
    turn = rest.post(f"/api/sessions/{session}/turns/c/cancel").json()  # it has ended, so this only shows it
    assert (turn["exam_version"], turn["labels"]) == (2, [])
    prompts = [request.messages[0]["content"] for request in provider.requests]
    assert prompts == [system_prompt(None), system_prompt("Sort."), system_prompt("Sort.", hints_only=True)]
    assert "no code" in prompts[2] and "no code" not in prompts[1]


def test_an_exam_older_than_its_settings_keeps_its_text_and_gets_a_first_version(
    rest: httpx.Client, provider: Provider, rows: Rows
) -> None:
    rows("INSERT INTO exams (id, problem_text) VALUES (77, 'from before')")
    exam = rest.get(EXAM).json()
    assert (exam["version"], exam["problem_text"], exam["rubric"]) == (None, "from before", STANDARD)
    say(rest, exam_id=77, participant_id=1)
    assert "from before" in provider.requests[0].messages[0]["content"]
    assert rows.one("SELECT exam_version FROM prompt_turns")["exam_version"] is None
    assert rest.get(f"{EXAM}/versions").json()["items"] == []
    assert put(rest, problem_text="from before")["version"] == 1


# ---------------------------------------------------------------- the repository


async def test_settings_of_a_version_stay_what_they_were(database: Database) -> None:
    async with get_db_context() as db:
        for kind, name in (("rubric", "standard"), ("prompt", "judge.en"), ("policy", "v2")):
            await DocumentRepository(db).pin(kind, name)  # type: ignore[arg-type]  # each is a kind
    rules = GuardRules({GuardLabel.UNSAFE: GuardAction.REFUSE}, GuardAction.HINT, ask_model=True)
    first = ExamSettings("one", STANDARD, JUDGE, V2, "ko", rules, 5, "openai:x")
    second = ExamSettings.default("two")
    async with get_db_context() as db:
        assert [await ExamRepository(db).put(7, settings) for settings in (first, second)] == [1, 2]
    async with get_db_context() as db:
        exams = ExamRepository(db)
        found = await exams.settings_of(7, 1)
        assert found is not None and found.guard is not None
        assert found.content_hash == first.content_hash
        assert found.guard.decide(frozenset({GuardLabel.UNSAFE})).refused
        assert await exams.settings_of(7, 2) == await exams.settings_of(7, None) == second
        assert await exams.settings_of(8, None) is None
        assert (await exams.get(8), await exams.get_version(7, 3)) == (None, None)
