"""What each event becomes for Core, in each profile: path and body, or nothing and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.infrastructure.profiles import PROFILES, CoreRequest, Skipped

COMMON = {
    "session_id": "17",
    "exam_id": 3,
    "participant_id": 42,
    "occurred_at": "2026-11-22T09:30:00Z",
    "callback_seq": 1,
}
USAGE = {"turn": 1, "turn_id": 1, "prompt_tokens": 31, "completion_tokens": 9, "total_tokens": 40, "purpose": "chat"}
CASE = {
    "index": 0,
    "group": "SAMPLE",
    "verdict": "AC",
    "time_ms": 12,
    "memory_kb": 900,
    "stdout_bytes": 3,
    "stderr_bytes": 0,
}
SCORES = {"prompt_score": 81.256, "performance_score": 70, "correctness_score": 66.67, "test_cases": [CASE]}
FAILED = {"status": "FAILED", "testCases": [], "score": None}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **COMMON, **fields}


def final(**changed: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"submission_id": 88001, "final_scores": SCORES, "turn_scores": {"1": 80}, "revision": 1}
    return event("final_scores", **{**fields, **changed})


def sent(told: dict[str, Any]) -> CoreRequest:
    """What the older platform gets of an event."""
    request = PROFILES["vibecode"].request_for(told)
    assert isinstance(request, CoreRequest), request
    return request


def test_the_standard_sends_every_event_as_it_is_to_the_address_that_is_set() -> None:
    for told in (event("usage", **USAGE), event("error"), final(revision=4), event("whatever comes")):
        assert PROFILES["standard"].request_for(told) == CoreRequest("", told)


def test_tokens_of_a_turn_are_told_with_exam_and_participant() -> None:
    request = sent(event("usage", **USAGE))
    assert request.path == "/api/chat/tokens/update"
    assert request.body == {"examId": 3, "participantId": 42, "tokens": 40}


def test_a_correction_is_told_as_a_difference_that_may_be_negative() -> None:
    request = sent(event("usage_adjusted", **{**USAGE, "total_tokens": -12}, reason="late figures"))
    assert request.body == {"examId": 3, "participantId": 42, "tokens": -12}


def test_tokens_of_judging_are_not_taken_from_the_candidate() -> None:
    for kind in ("usage", "usage_adjusted"):
        told = event(kind, **{**USAGE, "purpose": "evaluation"})
        assert isinstance(PROFILES["vibecode"].request_for(told), Skipped)


@pytest.mark.parametrize("kind", ["message_response", "turn_evaluation", "error", "of a later version"])
def test_what_has_no_endpoint_there_is_not_sent(kind: str) -> None:
    assert PROFILES["vibecode"].request_for(event(kind)) == Skipped("no endpoint of the profile takes it")


@pytest.mark.parametrize(("status", "word"), [("queued", "QUEUED"), ("running", "RUNNING"), ("failed", "FAILED")])
def test_a_submissions_stages_go_to_the_analysis(status: str, word: str) -> None:
    request = sent(event("submission_status", submission_id="88001", status=status))
    assert request.path == "/api/callbacks/ai/analysis"
    assert request.body == {"submissionId": 88001, "status": word}


def test_that_a_submission_is_done_is_told_by_its_result_alone() -> None:
    told = event("submission_status", submission_id="88001", status="done")
    assert isinstance(PROFILES["vibecode"].request_for(told), Skipped)


def test_a_result_has_its_cases_its_scores_and_all_that_is_known_as_a_string() -> None:
    request = sent(final())
    assert request.path == "/api/callbacks/ai/submissions/88001/result"
    score = request.body["score"]
    rubric = json.loads(score.pop("rubricJson"))
    assert request.body == {
        "status": "DONE",
        "testCases": [
            {
                "caseIndex": 0,
                "group": "SAMPLE",
                "verdict": "AC",
                "timeMs": 12,
                "memKb": 900,
                "stdoutBytes": 3,
                "stderrBytes": 0,
            }
        ],
        "score": {"promptScore": 81.26, "perfScore": 70.0, "correctnessScore": 66.67},
    }
    assert rubric == {"final_scores": SCORES, "turn_scores": {"1": 80}}


def test_every_verdict_has_one_of_cores_and_a_compile_error_is_a_run_time_error() -> None:
    cases = [{**CASE, "index": i, "verdict": v} for i, v in enumerate(["AC", "WA", "TLE", "MLE", "RE", "CE"])]
    request = sent(final(final_scores={**SCORES, "test_cases": cases}))
    assert [case["verdict"] for case in request.body["testCases"]] == ["AC", "WA", "TLE", "MLE", "RE", "RE"]


@pytest.mark.parametrize(
    "scores",
    [
        {**SCORES, "test_cases": []},
        {**SCORES, "test_cases": [CASE, {**CASE, "index": 1, "verdict": None}]},
        {**SCORES, "test_cases": [{**CASE, "verdict": "runner is away"}]},
        {**SCORES, "test_cases": [{**CASE, "group": "sample"}]},
        {**SCORES, "prompt_score": None},
        {**SCORES, "correctness_score": None},
        {},
    ],
)
def test_a_result_with_a_gap_is_a_failed_one_and_never_a_zero(scores: dict[str, Any]) -> None:
    assert sent(final(final_scores=scores)).body == FAILED


def test_a_zero_that_was_earned_stays_one() -> None:
    scores = {**SCORES, "performance_score": 0, "correctness_score": 0}
    assert sent(final(final_scores=scores)).body["score"]["correctnessScore"] == 0


@pytest.mark.parametrize("later", [{"revision": 2, "previous_revision": 1}, {"revision": 2, "previous_revision": 3}])
def test_a_further_revision_of_a_result_is_not_sent(later: dict[str, int]) -> None:
    assert isinstance(PROFILES["vibecode"].request_for(final(**later)), Skipped)


def test_the_first_result_that_is_told_is_sent_whatever_its_revision() -> None:
    assert sent(final(revision=2, previous_revision=None)).body["status"] == "DONE"


@pytest.mark.parametrize("revision", [2, 3])
def test_an_event_from_before_it_said_what_was_told_goes_by_its_revision(revision: int) -> None:
    assert isinstance(PROFILES["vibecode"].request_for(final(revision=revision)), Skipped)
    assert sent(final(revision=1)).body["status"] == "DONE"


@pytest.mark.parametrize("submission_id", ["", "s-1", "1/../2", "-1", 0, "٣", "9" * 19, "9" * 400, 2**63])
def test_a_submission_that_core_cannot_have_named_so_is_not_sent(submission_id: str | int) -> None:
    assert isinstance(PROFILES["vibecode"].request_for(final(submission_id=submission_id)), Skipped)
