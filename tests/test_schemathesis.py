"""Schemathesis on the whole HTTP interface: whatever is asked, the answer is a documented one, and none is our fault.

The examples are the same in every run. For a longer look, against a service that runs::

    schemathesis run http://127.0.0.1:8000/openapi.json --max-examples 500 \\
        --exclude-checks negative_data_rejection,positive_data_acceptance

(What the schema cannot say is refused with a documented 422, which those two checks take for a fault.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from app.domain.problem import Problem
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.problem_repository import ProblemRepository
from tests.support.chat import WAIT_S, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.problems import SUM
from tests.support.service import Service

KEY = "core-calls-with-this-key"
CHECKS: list[Any] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.unsupported_method,
]
MAY_BE_AWAY = {"PUT /api/problems/{spec_id}"}
"""What answers 503, as documented, where there is no code runner: here only what is stored already is taken."""
SCORED = {"/api/submissions/{submission_id}/appeal", "/api/submissions/{submission_id}/report"}
EXAMPLES = 8
"""For each operation: some valid, the others not."""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["open", "token"])
@pytest.mark.parametrize("profile", ["standard", "vibecode"])
def test_every_answer_is_documented(start: Callable[..., Service], core: FakeCore, profile: str, mode: str) -> None:
    auth = {"mode": mode, "api_key": KEY} if mode == "token" else {}
    url = core.url if profile == "vibecode" else core.callback_url
    service = start(callbacks={"profile": profile, "url": url}, auth=auth, runner={"backend": "none"})
    headers = {"Authorization": f"Bearer {KEY}"} if mode == "token" else {}
    known = _what_there_is(service, headers)
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    asked: dict[str, set[int]] = {}
    with requests.Session() as session:
        session.headers.update(headers)
        for result in schema.get_all_operations():
            operation = result.ok()
            asked[operation.label] = _ask(operation, session, known)
    assert len(asked) >= (22 if profile == "vibecode" else 20)
    reached = {label for label, statuses in asked.items() if min(statuses) < 300}
    assert reached >= set(asked), "what is never done is not tested"
    assert httpx.get(f"{service.url}/readyz", timeout=30).status_code == 200, "and it is well afterwards"


def _what_there_is(service: Service, headers: dict[str, str]) -> dict[str, Any]:
    """A session, a turn that has ended and a callback, for the requests to be about."""
    with httpx.Client(base_url=service.url, headers=headers, timeout=WAIT_S) as http:
        pair = new_pair()
        turn = http.post("/api/chat/message", json={"message": "hello", "turn_id": "t1", **pair}).json()
        http.put("/api/exams/1", json={"problem_text": "Sort."}).raise_for_status()
        service.call(_keep_problem())
        event = http.get("/api/callbacks").json()["items"][0]
        submission_id = _held_submission(http)
        _scored_submission(http)
    known = {"session_id": turn["session_id"], "turn_id": "t1", "event_id": event["id"], "item_id": 1, "spec_id": 1}
    known["submission_id"] = submission_id
    return {**pair, "exam_id": 1, **known}


def _held_submission(http: httpx.Client) -> str:
    """A submission of another exam, whose scores wait for a person."""
    http.put("/api/exams/2", json={"problem_text": "Sort.", "hold_scores": True}).raise_for_status()
    session = http.post("/api/sessions", json={"exam_id": 2, "participant_id": 1}).json()
    body = {"code": "print(1)", "language": "python", "submission_id": "held"}
    http.post(f"/api/sessions/{session['id']}/submissions", json=body).raise_for_status()
    wait_until(lambda: http.get("/api/submissions/held").json()["progress"]["stage"] == "held", 60)
    return "held"


async def _keep_problem() -> None:
    async with get_db_context() as db:
        await ProblemRepository(db).put(1, Problem.parse(SUM), {"references": []})


def _scored_submission(http: httpx.Client) -> None:
    """A submission whose scores are told, which is what people appeal against and read a report of."""
    session = http.post("/api/sessions", json={"exam_id": 3, "participant_id": 1}).json()
    body = {"code": "print(1)", "language": "python", "submission_id": "scored"}
    http.post(f"/api/sessions/{session['id']}/submissions", json=body).raise_for_status()
    wait_until(lambda: http.get("/api/submissions/scored").json()["status"] == "DONE", 60)


def _aim(case: schemathesis.Case, known: dict[str, Any]) -> None:
    """Let a request be about what there is, and be one that can be fulfilled where it is about a session."""
    for name in case.path_parameters:
        case.path_parameters[name] = known[name]
    path = case.operation.path
    if path == "/api/chat/message":
        case.body = {"message": "hello", "session_id": known["session_id"]}
    elif path == "/api/sessions/{session_id}/submissions" and case.method == "POST":
        case.body = {"code": "print(1)", "language": "python"}
    elif path == "/api/sessions/{session_id}/turns/{turn_id}/appeal":
        case.body = {"person": "Kim", "reason": "Look again."}
    elif path == "/api/submissions/{submission_id}/rerun":
        case.body = {"person": "Kim"}
    elif path == "/api/submissions/{submission_id}/steps":
        case.query = {}  # of hardly any revision that is drawn there is an evaluation
    elif path == "/api/problems/{spec_id}" and case.operation.method == "put":
        case.body = SUM
    elif path in SCORED:
        case.path_parameters["submission_id"] = "scored"
        case.query = {}
        case.body = {"person": "Kim", "reason": "Look again."} if case.method == "POST" else case.body
    elif path == "/api/session/submit":
        whose = {"examId": 5, "participantId": 6, "submissionId": 88001}
        case.body = {**whose, "finalCode": "print(1)", "language": "python3.11"}
    elif path == "/api/chat/messages":
        session = {"participantId": known["participant_id"], "context": {"examId": known["exam_id"]}}
        case.body = {**session, "turnId": 1, "role": "USER", "content": "hello"}


def _ask(
    operation: schemathesis.APIOperation[Any, Any, Any], session: requests.Session, known: dict[str, Any]
) -> set[int]:
    """Ask an operation in many ways; returns the statuses of the answers."""
    found: set[int] = set()
    cases = operation.as_strategy(GenerationMode.POSITIVE)
    if operation.body or list(operation.iter_parameters()):
        cases |= operation.as_strategy(GenerationMode.NEGATIVE)

    @seed(1)
    @hypothesis_settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
    )
    @given(case=cases, about_what_there_is=st.booleans())
    def any_request(case: schemathesis.Case, about_what_there_is: bool) -> None:
        if about_what_there_is:
            _aim(case, known)
        response = case.call(session=session, timeout=WAIT_S)
        found.add(response.status_code)
        also = [] if operation.label in MAY_BE_AWAY else [not_a_server_error]
        case.validate_response(response, checks=CHECKS + also)

    any_request()
    return found
