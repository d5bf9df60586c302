"""The profile ``vibecode``: a platform that speaks its own language is answered, and told, in it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from app.application.services.callback_relay import CallbackRelay
from app.application.services.callback_service import CallbackService
from app.application.services.callback_verdict import judge
from app.core.settings import CallbackSettings, Settings
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.profiles import Skipped
from app.infrastructure.repositories.callback_repository import CallbackRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.worker_repository import WorkerRepository
from app.infrastructure.webhook import Delivered, Refused, Unreachable, WebhookSender
from app.presentation.schemas.vibecode import SubmissionOfCore
from tests.conftest import Rows, change
from tests.support.chat import WAIT_S, connect, new_pair, wait_until
from tests.support.core import Answer, FakeCore
from tests.support.judge import ScriptedJudge
from tests.support.provider import Provider, Script
from tests.support.service import Service
from tests.support.submissions import RIGHT, SPEC, judge_settings, put_problem
from tests.test_profiles import SCORES
from tests.test_webhook import event_after

TOKENS = "/api/chat/tokens/update"


@pytest.fixture
def vibecode(start: Callable[..., Service], core: FakeCore) -> Service:
    return start(callbacks={"profile": "vibecode", "url": core.url})


@pytest.fixture
def http(vibecode: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=vibecode.url, timeout=WAIT_S) as client:
        yield client


def new_session(http: httpx.Client, **more: Any) -> dict[str, Any]:
    """A session as Core starts it, and what Core then says of it with each message."""
    pair = new_pair()
    session = http.post("/api/sessions", json={**pair, **more}).json()
    return {"sessionId": int(session["id"]), "participantId": pair["participant_id"], "role": "USER", "context": {}}


def ask(http: httpx.Client, content: str, turn_id: int, /, **fields: Any) -> httpx.Response:
    return http.post("/api/chat/messages", json={"content": content, "turnId": turn_id, **fields})


def answer(http: httpx.Client, content: str, turn_id: int, /, **fields: Any) -> dict[str, Any]:
    response = ask(http, content, turn_id, **fields)
    assert response.status_code == 200, response.text
    message: dict[str, Any] = response.json()["aiMessage"]
    return message


def refused(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json", response.text
    return response.status_code, response.json()["code"]


# what Core asks


def test_a_message_is_answered_in_the_words_of_the_platform(http: httpx.Client, provider: Provider) -> None:
    session = new_session(http)
    provider.next(Script(pieces=("Use ", "a heap.")))
    first = answer(http, "Which structure?", 1, **session)
    assert first["content"] == "Use a heap."
    assert (first["sessionId"], first["role"]) == (session["sessionId"], "AI")
    assert first["turn"] == 2, "the answer is the message that follows Core's own"
    assert first["tokenCount"] == first["totalToken"] > 0
    second = answer(http, "And then?", 3, **session)
    assert second["turn"] == 4
    assert second["totalToken"] == first["tokenCount"] + second["tokenCount"]
    shown = http.get(f"/api/sessions/{session['sessionId']}").json()
    assert shown["total_tokens"] == second["totalToken"]


def test_the_same_message_again_gets_the_same_answer_and_is_not_asked_again(
    http: httpx.Client, provider: Provider
) -> None:
    session = new_session(http)
    first = answer(http, "once", 1, **session)
    answer(http, "another", 3, **session)
    assert answer(http, "once", 1, **session) == first
    assert len(provider.requests) == 2


def test_the_same_message_at_the_same_time_is_one_turn(http: httpx.Client, provider: Provider) -> None:
    session = new_session(http)
    provider.next(Script(piece_delay_s=0.1))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: answer(http, "once", 1, **session), range(4)))
    assert all(one == answers[0] for one in answers)
    assert len(provider.requests) == 1


def test_another_message_under_an_answered_number_is_a_conflict(http: httpx.Client) -> None:
    session = new_session(http)
    answer(http, "once", 1, **session)
    assert refused(ask(http, "another", 1, **session)) == (409, "turn_id_conflict")


@pytest.mark.parametrize("content", ["broken", "something else"])
def test_a_number_whose_turn_failed_is_free_again(http: httpx.Client, provider: Provider, content: str) -> None:
    session = new_session(http)
    provider.next(*[Script(status=500)] * 4)  # two calls for each turn
    assert refused(ask(http, "broken", 1, **session))[1] == "llm_unavailable"
    assert refused(ask(http, "broken", 1, **session))[1] == "llm_unavailable"
    assert len(provider.requests) == 4
    good = answer(http, content, 1, **session)
    assert good["turn"] == 2
    assert answer(http, content, 1, **session) == good


def test_a_failure_that_would_come_again_is_answered_again_without_a_further_call(
    http: httpx.Client, provider: Provider
) -> None:
    session = new_session(http)
    provider.next(Script(status=400))
    assert refused(ask(http, "too long", 1, **session)) == (422, "llm_rejected")
    assert refused(ask(http, "too long", 1, **session)) == (422, "llm_rejected")
    assert len(provider.requests) == 1
    assert answer(http, "shorter", 1, **session)["turn"] == 2


def test_a_turn_of_the_platform_is_a_turn_like_any_other(http: httpx.Client, vibecode: Service) -> None:
    session = new_session(http)
    answer(http, "from Core", 1, **session)

    async def over_the_socket() -> str:
        async with connect(vibecode.url) as client:
            turn = await client.ask("from the candidate", "t-2", session_id=str(session["sessionId"]))
            return str(turn.end["type"])

    assert asyncio.run(over_the_socket()) == "done"
    messages = http.get(f"/api/sessions/{session['sessionId']}/messages").json()["items"]
    assert [message["content"] for message in messages[::2]] == ["from Core", "from the candidate"]


@pytest.mark.parametrize("role", ["AI", "ASSISTANT", "SYSTEM", ""])
def test_only_the_candidates_own_messages_are_answered(http: httpx.Client, role: str) -> None:
    session = {**new_session(http), "role": role}
    assert refused(ask(http, "hello", 1, **session)) == (422, "invalid_frame")
    assert http.get(f"/api/sessions/{session['sessionId']}/messages").json()["items"] == []


def test_what_is_no_message_is_refused(http: httpx.Client) -> None:
    session = new_session(http)
    for wrong in (
        {"turnId": 0},
        {"turnId": "1"},
        {"turnId": 2**31},
        {"content": " "},
        {"content": "a\x00b"},
        {"participantId": None},
        {"sessionId": 0},
        {"context": "exam 1"},
    ):
        response = http.post("/api/chat/messages", json={"content": "hello", "turnId": 1, **session, **wrong})
        assert refused(response) == (422, "invalid_frame"), wrong
    assert refused(ask(http, "x" * 32_001, 1, **session)) == (413, "message_too_large")


# whose session it is


def test_the_session_is_the_participants_own(http: httpx.Client) -> None:
    session = new_session(http)
    for wrong in (
        {"participantId": session["participantId"] + 1_000_000},
        {"sessionId": session["sessionId"] + 1_000_000},
        {"sessionId": None},
    ):
        response = ask(http, "hello", 1, **{**session, **wrong})
        assert refused(response) == (404, "session_not_found")
        assert "context.examId" in response.json()["detail"]
    assert http.get(f"/api/sessions/{session['sessionId']}/messages").json()["items"] == []


def test_an_ended_session_takes_no_message(http: httpx.Client) -> None:
    session = new_session(http)
    http.post(f"/api/sessions/{session['sessionId']}/end")
    assert refused(ask(http, "hello", 1, **session)) == (409, "session_ended")


def test_a_context_that_names_the_exam_finds_or_starts_the_session(http: httpx.Client) -> None:
    pair = new_pair()
    core_says = {
        "participantId": pair["participant_id"],
        "role": "USER",
        "context": {"problemId": 5, "specVersion": 9, "examId": pair["exam_id"], "anything": [1]},
    }
    first = answer(http, "hello", 1, **core_says)
    found = http.get("/api/sessions", params=pair).json()["items"]
    assert [(int(session["id"]), session["spec_id"]) for session in found] == [(first["sessionId"], 9)]

    core_says["context"] = {"examId": pair["exam_id"], "specVersion": 10}
    own_name = answer(http, "and on", 3, sessionId=123_456_789, **core_says)
    assert own_name["sessionId"] == 123_456_789, "what Core calls it comes back"
    assert own_name["totalToken"] > own_name["tokenCount"], "it is the same session"
    assert len(http.get("/api/sessions", params=pair).json()["items"]) == 1


def test_a_name_of_cores_that_is_also_one_of_ours_reaches_no_strangers_session(http: httpx.Client) -> None:
    stranger = new_session(http)
    pair = new_pair()
    mine = answer(
        http,
        "hello",
        1,
        sessionId=stranger["sessionId"],
        participantId=pair["participant_id"],
        role="USER",
        context={"examId": pair["exam_id"]},
    )
    assert mine["sessionId"] == stranger["sessionId"]
    assert http.get(f"/api/sessions/{stranger['sessionId']}/messages").json()["items"] == []


@pytest.mark.parametrize("context", [None, {}, {"examId": None}, {"examId": "x", "specVersion": -1}, {"specId": True}])
def test_a_context_that_says_nothing_is_no_fault(http: httpx.Client, context: dict[str, Any] | None) -> None:
    session = {**new_session(http), "context": context}
    assert answer(http, "hello", 1, **session)["turn"] == 2


# submissions


def submit(http: httpx.Client, **changed: Any) -> httpx.Response:
    body = {"examId": 7, "participantId": 42, "problemId": 1, "specId": SPEC, "finalCode": RIGHT}
    return http.post("/api/session/submit", json={**body, "language": "Python 3.11", "submissionId": 88001, **changed})


def results(core: FakeCore) -> list[dict[str, Any]]:
    return [post.body for post in core.deliveries if post.path.endswith("submissions/88001/result")]


@pytest.mark.slow
def test_a_submission_is_judged_and_its_result_told_once(
    start: Callable[..., Service], core: FakeCore, rows: Rows
) -> None:
    put_problem(rows)
    with ScriptedJudge() as judge:
        service = start(callbacks={"profile": "vibecode", "url": core.url}, judge=judge_settings(judge))
        with httpx.Client(base_url=service.url, timeout=WAIT_S) as http:
            asked = {"participantId": 42, "role": "USER", "context": {"examId": 7}}
            answer(http, "Write a function that adds two numbers of a thousand digits each.", 1, **asked)
            taken = submit(http)
            assert (taken.status_code, taken.json()) == (202, {"submissionId": 88001, "status": "QUEUED"})
            assert submit(http).status_code == 202, "Core got no answer, and sends it again"
            assert refused(submit(http, finalCode="print(2)")) == (409, "submission_id_conflict")
            assert refused(submit(http, participantId=43)) == (409, "submission_id_conflict")
            core.wait_for(lambda posts: any(post.path.endswith("/result") for post in posts), 60)
            assert submit(http).json()["status"] == "DONE", "also when the session has ended"
        stages = [post.body for post in core.deliveries if post.path.endswith("/ai/analysis")]
        assert stages == [{"submissionId": 88001, "status": status} for status in ("QUEUED", "RUNNING")]
        [result] = results(core)
        assert result["status"] == "DONE"
        assert {case["verdict"] for case in result["testCases"]} == {"AC"}
        assert (result["score"]["promptScore"], result["score"]["correctnessScore"]) == (80, 100)
        scores = json.loads(result["score"]["rubricJson"])
        assert scores["final_scores"]["components"]["prompt"]["status"] == "ok"
        assert scores["turn_scores"]["1"]["score"] == 80
        assert rows.one("SELECT count(*) AS n FROM submissions")["n"] == 1
        # a person's score is a further revision, of which Core takes none
        kim = {"component": "total", "score": 5, "person": "Kim", "reason": "Late."}
        httpx.post(f"{service.url}/api/submissions/88001/override", json=kim, timeout=30).raise_for_status()
        wait_until(lambda: httpx.get(f"{service.url}/api/submissions/88001", timeout=30).json()["revision"] == 2, 60)
        wait_until(lambda: rows("SELECT 1 FROM callbacks WHERE type = 'final_scores' AND last_error ~ 'had the first'"))
        assert len(results(core)) == 1


@pytest.mark.slow
def test_a_result_with_a_gap_has_failed_over_there(http: httpx.Client, core: FakeCore, rows: Rows) -> None:
    put_problem(rows)
    assert submit(http).status_code == 202, "also of somebody who never asked anything"
    core.wait_for(lambda posts: any(post.path.endswith("/result") for post in posts), 60)
    assert results(core) == [{"status": "FAILED", "testCases": [], "score": None}], "without a judge"
    assert http.get("/api/submissions/88001").json()["final_scores"]["status"] == "PENDING_REVIEW"
    assert rows.one("SELECT spec_id FROM prompt_sessions")["spec_id"] == SPEC


def test_what_is_no_submission_is_refused(http: httpx.Client) -> None:
    for wrong in ({"submissionId": "x"}, {"finalCode": ""}, {"language": "COBOL"}, {"examId": 0}):
        assert refused(submit(http, **wrong)) == (422, "invalid_frame"), wrong


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        *[("python3.11", "python"), ("Python 3", "python"), ("C++17", "cpp"), ("c11", "c"), ("Java 17", "java")],
        *[("node20", "javascript"), ("golang", "go"), ("javascript", "javascript"), ("Rust", "Rust"), ("17", "17")],
    ],
)
def test_a_language_is_known_by_the_platform_s_names(theirs: str, ours: str) -> None:
    body = {"examId": 1, "participantId": 1, "finalCode": "x", "language": theirs, "submissionId": 1}
    assert SubmissionOfCore.model_validate(body).our_language == ours


def test_the_standard_profile_has_none_of_these_paths(service: Service) -> None:
    paths = httpx.get(f"{service.url}/openapi.json", timeout=30).json()["paths"]
    assert not {"/api/chat/messages", "/api/session/submit"} & set(paths)
    assert httpx.post(f"{service.url}/api/chat/messages", json={}, timeout=30).status_code == 404


# what Core is told


def test_core_is_told_the_tokens_and_nothing_it_has_no_place_for(
    http: httpx.Client, core: FakeCore, provider: Provider, rows: Rows
) -> None:
    session = new_session(http)
    exam_id = http.get(f"/api/sessions/{session['sessionId']}").json()["exam_id"]
    told = answer(http, "first", 1, **session)
    provider.next(*[Script(status=500)] * 2)
    ask(http, "fails", 3, **session)
    again = answer(http, "last", 5, **session)
    core.wait_for(3)
    assert {delivery.path for delivery in core.deliveries} == {TOKENS}
    for body in (delivery.body for delivery in core.deliveries):
        assert (body["examId"], body["participantId"]) == (exam_id, session["participantId"])
    tokens = [delivery.body["tokens"] for delivery in core.deliveries]
    assert tokens == [told["tokenCount"], 0, again["tokenCount"]], "refused by the provider, a turn used nothing"
    assert core.deliveries[0].headers["x-api-key"]
    assert core.deliveries[0].signature is True

    wait_until(lambda: not rows("SELECT 1 FROM callbacks WHERE status = 'pending'"))
    items = http.get("/api/callbacks", params={"session_id": session["sessionId"]}).json()["items"]
    assert [item["callback_seq"] for item in items] == list(range(1, 8))
    notes = {item["type"]: (item["status"], item["last_error"]) for item in items}
    assert notes["usage"] == ("delivered", None)
    for kind in ("message_response", "error"):
        assert notes[kind] == ("delivered", "not sent: no endpoint of the profile takes it")
    feed = http.get("/api/callbacks/events", params={"limit": 1000}).json()["items"]
    mine = [item["payload"] for item in feed if item["payload"]["session_id"] == str(session["sessionId"])]
    assert [payload["type"] for payload in mine].count("message_response") == 3, "the feed has everything"


def test_tokens_wait_for_a_core_that_is_away_like_any_event(http: httpx.Client, core: FakeCore) -> None:
    session = new_session(http)
    core.next(Answer(status=500), Answer(action="reset"))
    told = answer(http, "hello", 1, **session)
    core.wait_for(1)
    assert [delivery.body["tokens"] for delivery in core.deliveries] == [told["tokenCount"]] * 3
    assert len(core.unique_ids()) == 1, "who remembers ids counts it once"


# a result, once


@pytest.fixture
def once(settings: Settings, core: FakeCore, database: Database) -> CallbackSettings:
    # What does not answer is given up for good, so a Core that stands still for a moment must not be taken for one.
    changed = {"profile": "vibecode", "url": core.url, "timeout_s": 4, "retry_delays_s": (0.05, 0.05)}
    return change(settings, callbacks=changed).callbacks


async def record_result(*, revision: int = 1, previous: int | None = None, submission_id: int = 88001) -> int:
    async with get_db_context() as db:
        session = await SessionRepository(db).create_session(**new_pair())
        await CallbackService(db).send_final_scores(
            session.id,
            session.exam_id,
            session.participant_id,
            submission_id,
            SCORES,
            {},
            revision=revision,
            previous_revision=previous,
        )
        return session.id


class Relaying:
    """A relay for as long as the block lasts."""

    def __init__(self, settings: CallbackSettings) -> None:
        self._settings = settings

    async def __aenter__(self) -> None:
        async with get_db_context() as db:
            worker = await WorkerRepository(db).register("test", 6)
        self._task = asyncio.create_task(CallbackRelay(self._settings, lambda: worker).run())

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def ended(rows: Rows) -> dict[str, Any]:
    query = "SELECT event_id, status, attempts, last_error FROM callbacks"
    await asyncio.to_thread(wait_until, lambda: rows.one(query)["status"] != "pending")
    return rows.one(query)


async def test_a_result_is_delivered_to_its_submission(once: CallbackSettings, core: FakeCore, rows: Rows) -> None:
    await record_result()
    async with Relaying(once):
        state = await ended(rows)
    assert (state["status"], state["last_error"]) == ("delivered", None)
    [delivery] = core.deliveries
    assert delivery.path == "/api/callbacks/ai/submissions/88001/result"
    assert delivery.body["status"] == "DONE"


@pytest.mark.parametrize("failure", [Answer(status=500), Answer(status=503), Answer(status=404), Answer(status=429)])
async def test_a_result_that_core_says_it_did_not_take_is_sent_again(
    once: CallbackSettings, core: FakeCore, rows: Rows, failure: Answer
) -> None:
    core.next(failure)
    await record_result()
    async with Relaying(once):
        state = await ended(rows)
    assert (state["status"], state["attempts"]) == ("delivered", 2)
    assert [delivery.status for delivery in core.deliveries] == [failure.status, 200]


@pytest.mark.parametrize(
    "silence",
    [Answer(action="hang"), Answer(action="reset"), Answer(action="close"), Answer(status=502), Answer(status=504)],
    ids=lambda answer: f"{answer.action} {answer.status}",
)
async def test_a_result_that_may_have_arrived_is_not_sent_again_and_the_operator_sees_why(
    once: CallbackSettings, core: FakeCore, rows: Rows, silence: Answer
) -> None:
    core.next(silence)
    await record_result()
    async with Relaying(once):
        state = await ended(rows)
        await asyncio.sleep(0.3)
        assert len(core.deliveries) == 1
        assert state["status"] == "failed"
        assert "may have arrived" in state["last_error"]
        async with get_db_context() as db:
            replayed = await CallbackRepository(db).replay(state["event_id"], once={"final_scores"})
        assert replayed is not None, "an operator who has looked may send it again"
        state = await ended(rows)
    assert state["status"] == "delivered"
    assert len(core.deliveries) == 2


async def test_a_result_whose_try_a_process_did_not_outlive_is_not_sent_again(
    once: CallbackSettings, core: FakeCore, rows: Rows
) -> None:
    await record_result()
    core.next(Answer(action="hang"))
    async with get_db_context() as db:
        worker = await WorkerRepository(db).register("to be killed", 6)
    relay = CallbackRelay(once.model_copy(update={"timeout_s": 60}), lambda: worker)
    task = asyncio.create_task(relay.run())
    await core.reaches(lambda deliveries: len(deliveries) == 1)
    for lane in list(relay._lanes):  # as kill -9 does, nothing is written down
        lane.cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    rows("UPDATE callback_lanes SET claimed_by = NULL")  # as whoever fences the dead worker does
    async with Relaying(once):
        state = await ended(rows)
    assert state["status"] == "failed"
    assert state["last_error"].startswith("interrupted while it was sent")
    assert len(core.deliveries) == 1


async def test_a_delivered_result_cannot_be_replayed(once: CallbackSettings, core: FakeCore, rows: Rows) -> None:
    await record_result()
    async with Relaying(once):
        event_id = (await ended(rows))["event_id"]
        async with get_db_context() as db:
            assert await CallbackRepository(db).replay(event_id, once={"final_scores"}) is None
        await asyncio.sleep(0.2)
    assert len(core.deliveries) == 1


async def test_a_later_revision_is_recorded_and_not_sent(once: CallbackSettings, core: FakeCore, rows: Rows) -> None:
    await record_result(revision=2, previous=1)
    async with Relaying(once):
        state = await ended(rows)
    assert state["status"] == "delivered"
    assert "one result for each submission" in state["last_error"]
    assert len(core.deliveries) == 0


USAGE_OF_NOBODY = {"exam_id": 1, "participant_id": 2, "total_tokens": 3, "purpose": "chat"}


async def test_a_result_is_sent_on_a_connection_of_its_own(once: CallbackSettings, core: FakeCore) -> None:
    """A connection that was idle may be closed by Core in the moment in which it is used: nobody would know more."""
    sender = WebhookSender(once)
    told = {"type": "usage", **USAGE_OF_NOBODY}
    for number in range(3):
        assert await sender.send(f"evt_{number}", told) == Delivered()
    await sender.close()
    assert [delivery.headers.get("connection") for delivery in core.deliveries] == ["close"] * 3


async def test_a_core_that_cannot_be_connected_to_has_seen_nothing(once: CallbackSettings) -> None:
    sender = WebhookSender(once.model_copy(update={"url": "http://127.0.0.1:1"}))
    outcome = await sender.send("evt_1", {"type": "usage", **USAGE_OF_NOBODY})
    await sender.close()
    assert isinstance(outcome, Unreachable)
    assert not outcome.connected
    assert judge(outcome, event_after(0), (1,), 0.0, once=True).status is CallbackStatusEnum.PENDING


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422, 429, 301, 500, 501, 503])
def test_what_core_itself_refused_has_not_arrived(status: int) -> None:
    for once in (True, False):
        assert "arrived" not in (judge(Refused(status), event_after(0), (1,), 0.0, once=once).error or "")


def test_what_was_skipped_holds_no_lane() -> None:
    result = judge(Skipped("no endpoint"), event_after(0), (1,), 0.0)
    assert result.status is CallbackStatusEnum.DELIVERED
    assert result.error == "not sent: no endpoint"


def test_a_replay_of_a_delivered_result_is_a_problem(http: httpx.Client, vibecode: Service, core: FakeCore) -> None:
    vibecode.call(record_result())
    vibecode.resources.wake_delivery()
    core.wait_for(1)
    [result] = http.get("/api/callbacks", params={"type": "final_scores"}).json()["items"]
    wait_until(lambda: http.get(f"/api/callbacks/{result['id']}").json()["status"] == "delivered")
    assert refused(http.post(f"/api/callbacks/{result['id']}/replay")) == (409, "not_replayable")
    assert refused(http.post("/api/callbacks/unknown/replay")) == (404, "not_found")
