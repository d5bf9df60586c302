"""How events become requests to Core: as the protocol has them, or as an older platform takes them. Pure.

``standard`` is docs/protocol.md. ``vibecode`` is the interface of the platform that workers of this kind were first
written for (docs/vibecode.md): a path for each matter, camelCase, one result for each submission, and no place for the
rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]
"""An event's body as docs/protocol.md has it: the common fields and those of its type."""


@dataclass(frozen=True, slots=True)
class CoreRequest:
    """What is POSTed for an event: ``path`` is appended to the address of the settings."""

    path: str
    body: Event


@dataclass(frozen=True, slots=True)
class Skipped:
    """Nothing is sent for an event, and why. It stays recorded: in the feed, and for the operator."""

    reason: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One way to tell Core.

    ``once``: types of which Core bears no second one, so that what may have arrived is not sent again.
    ``keeps_connections``: off where a repeated request does harm. A connection that Core closed while it was idle would
    leave open whether the request on it was taken.
    """

    request_for: Callable[[Event], CoreRequest | Skipped]
    once: frozenset[str] = frozenset()
    keeps_connections: bool = True


def _standard(event: Event) -> CoreRequest:
    return CoreRequest("", event)


def _vibecode(event: Event) -> CoreRequest | Skipped:
    mapping = _VIBECODE.get(event["type"])
    return Skipped("no endpoint of the profile takes it") if mapping is None else mapping(event)


def _tokens(event: Event) -> CoreRequest | Skipped:
    """The tokens of a turn, or by how many they were corrected; Core adds them to what the candidate has used.

    It holds the sum against the candidate's limit, so what judging used is not part of it.
    """
    if event["purpose"] != "chat":
        return Skipped("tokens of judging are not the candidate's")
    body = {"examId": event["exam_id"], "participantId": event["participant_id"], "tokens": event["total_tokens"]}
    return CoreRequest("/api/chat/tokens/update", body)


_NO_NUMBER = "submission_id is not a number of Core's"
_STAGES = {"queued": "QUEUED", "running": "RUNNING", "failed": "FAILED"}


def _stage(event: Event) -> CoreRequest | Skipped:
    """How far a submission is. Its end is told by its result alone."""
    submission_id, status = _number(event["submission_id"]), _STAGES.get(event["status"])
    if submission_id is None or status is None:
        return Skipped(_NO_NUMBER if submission_id is None else "the result tells of it")
    return CoreRequest("/api/callbacks/ai/analysis", {"submissionId": submission_id, "status": status})


_GROUPS = {"SAMPLE", "PUBLIC", "PRIVATE"}
_VERDICTS = {name: name for name in ("AC", "WA", "TLE", "MLE", "RE")} | {"CE": "RE"}
"""Core knows no compile error; its own worker called it a run-time error."""


def _result(event: Event) -> CoreRequest | Skipped:
    """A submission's scores, once. A result with a gap is ``FAILED``: Core would store a missing score as 0."""
    submission_id = _number(event["submission_id"])
    if submission_id is None:
        return Skipped(_NO_NUMBER)
    # Events from before this field existed were told under revision 1 first.
    if event.get("previous_revision", 1 if event["revision"] > 1 else None) is not None:
        return Skipped("Core takes one result for each submission, and had the first one")
    cases = [_case(case) for case in event["final_scores"].get("test_cases") or ()]
    score = _score(event)
    body: dict[str, Any] = {"status": "FAILED", "testCases": [], "score": None}
    if cases and all(cases) and score is not None:
        body = {"status": "DONE", "testCases": cases, "score": score}
    return CoreRequest(f"/api/callbacks/ai/submissions/{submission_id}/result", body)


def _case(case: Mapping[str, Any]) -> dict[str, Any] | None:
    """A test case's outcome; ``None`` where there is none, as when the runner failed."""
    verdict = _VERDICTS.get(case.get("verdict") or "")
    if verdict is None or case.get("group") not in _GROUPS:
        return None
    return {
        "caseIndex": case["index"],
        "group": case["group"],
        "verdict": verdict,
        "timeMs": case.get("time_ms"),
        "memKb": case.get("memory_kb"),
        "stdoutBytes": case.get("stdout_bytes"),
        "stderrBytes": case.get("stderr_bytes"),
    }


def _score(event: Event) -> dict[str, Any] | None:
    """The three scores (0–100, two digits behind the point), with all that is known of them as JSON in a string.

    ``None`` where one of them is missing.
    """
    scores = dict(event["final_scores"])
    parts = [scores.get(name) for name in ("prompt_score", "performance_score", "correctness_score")]
    prompt, performance, correctness = (None if part is None else round(float(part), 2) for part in parts)
    if prompt is None or performance is None or correctness is None:
        return None
    rubric = {"final_scores": scores, "turn_scores": event["turn_scores"]}
    return {
        "promptScore": prompt,
        "perfScore": performance,
        "correctnessScore": correctness,
        "rubricJson": json.dumps(rubric, ensure_ascii=False, separators=(",", ":")),
    }


def _number(submission_id: str | int) -> int | None:
    """Core's own id of a submission: a positive number of 64 bits; ``None`` for what it cannot have named so."""
    text = str(submission_id)
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        return None
    return int(text) if 0 < int(text) < 2**63 else None


_VIBECODE: dict[str, Callable[[Event], CoreRequest | Skipped]] = {
    "usage": _tokens,
    "usage_adjusted": _tokens,
    "submission_status": _stage,
    "final_scores": _result,
}

PROFILES = {
    "standard": Profile(_standard),
    "vibecode": Profile(_vibecode, once=frozenset({"final_scores"}), keeps_connections=False),
}
