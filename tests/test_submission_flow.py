"""A submission's evaluation as a whole: every step, what is written and told, and what people do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.core.settings import Settings
from app.domain.submission import Node
from tests.conftest import Rows
from tests.support.chat import Command, environment, wait_until
from tests.support.core import FakeCore
from tests.support.judge import ScriptedJudge
from tests.support.problems import SUM
from tests.support.service import Service
from tests.support.submissions import (
    PROMPT,
    RIGHT,
    SPEC,
    WRONG,
    everything_once,
    judge_settings,
    put_problem,
    steps,
)
from tests.test_openapi import checked_client
from tests.test_rest import problem, say
from tests.test_submissions import ended, new_session, show, taken

Start = Callable[..., Service]


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running:
        yield running


@pytest.fixture
def rest(start: Start, judge: ScriptedJudge, rows: Rows) -> Iterator[httpx.Client]:
    """A service with a judge, a runner and a problem."""
    put_problem(rows)
    with checked_client(start(judge=judge_settings(judge))) as opened:
        yield opened


def talked(rest: httpx.Client, *prompts: str) -> str:
    """A session in which this was said."""
    session_id = new_session(rest, spec_id=SPEC)
    for prompt in prompts or (PROMPT,):
        assert say(rest, prompt, session_id=session_id).status_code == 200
    return session_id


@pytest.mark.slow
def test_a_judgement_that_nobody_has_published_is_in_no_score(
    rest: httpx.Client, judge: ScriptedJudge, rows: Rows
) -> None:
    session_id = talked(rest)
    wait_until(lambda: rows("SELECT 1 FROM evaluation_runs WHERE status = 'done'"))
    rows(
        "UPDATE evaluation_runs SET cause = 'rerun', batch = 'rerun_x', published = false,"
        " result = jsonb_set(result, '{score}', '20')"
    )
    taken(rest, session_id, code=RIGHT, submission_id="s-1")
    ended(rest, "s-1")
    [turn] = steps(rows)["turns"]["value"]["turns"]
    assert (turn["score"], turn["revision"]) == (80, 2)
    first = rows.one("SELECT cause, published, revision FROM evaluation_runs WHERE turn = 1 ORDER BY id DESC LIMIT 1")
    assert first == {"cause": "turn", "published": True, "revision": 2}


def test_a_submission_is_evaluated_and_everything_of_it_is_written_and_told(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    session_id = talked(rest, PROMPT, "Now let it take negative numbers too, for example -4 and 10.")
    taken(rest, session_id, code=RIGHT, submission_id=88001)
    body = ended(rest, 88001)
    found = steps(rows)
    assert {node: step["status"] for node, step in found.items()} == dict.fromkeys(
        ("freeze", "turns", "tests", "analysis", "review", "panel", "checks", "hold", "aggregate"), "ok"
    )
    assert found["freeze"]["value"]["turns"] == [1, 2] and found["freeze"]["value"]["problem_version"] == 1
    assert [turn["score"] for turn in found["turns"]["value"]["turns"]] == [80, 80]
    assert [case["verdict"] for case in found["tests"]["value"]["cases"]] == ["AC", "AC", "AC"]
    assert found["review"]["value"]["strengths"][0]["quote"] == "def add(a, b):"
    assert found["panel"]["cost"]["calls"] == len([call for call in judge.calls if call.kind == "panel"])
    made_by = {"freeze": set(), "hold": set()}  # of an exam without settings
    made_by |= {
        "turns": {"rubric", "judge_prompt", "policy", "judge_model"},
        "review": {"review_prompt", "judge_model"},
    }
    made_by |= {"panel": {"rubric", "panel_prompt", "policy", "judge_model"}, "analysis": {"problem_version", "lizard"}}
    made_by |= {"tests": {"problem_version", "isolation", "level", "toolchains"}}
    made_by |= {"checks": {"policy"}, "aggregate": {"policy"}}
    assert {node: names for node, names in made_by.items() if not names <= set(found[node]["versions"])} == {}
    assert found["tests"]["versions"]["toolchains"]["python"].startswith("3.")
    told = rest.get("/api/submissions/88001/steps").json()
    assert (told["revision"], told["status"]) == (1, "done")
    assert [step["step"] for step in told["steps"]] == list(Node)[:-1]
    assert {step.pop("step"): step for step in told["steps"]} == found
    problem(rest.get("/api/submissions/88001/steps", params={"revision": 2}), 404, "submission_not_found")
    scores = body["final_scores"]
    assert (scores["status"], scores["prompt_score"], scores["correctness_score"]) == ("SCORED", 80, 100)
    assert body["turn_scores"]["2"]["score"] == 80 and body["revision"] == 1 and body["progress"]["percent"] == 100
    assert (body["progress"]["cases_done"], body["progress"]["cases_total"]) == (3, 3)
    assert {case["cause"] for case in scores["test_cases"]} == {"as expected"}
    assert rows.one("SELECT ended_at FROM prompt_sessions")["ended_at"] is not None
    problem(say(rest, "more", session_id=session_id), 409, "session_ended")
    events = all_told(core, rows)
    everything_once(rows, events, 1)
    final = next(event for event in events if event["type"] == "final_scores")
    assert (final["submission_id"], final["revision"]) == (88001, 1)
    assert (final["final_scores"], final["turn_scores"]) == (scores, body["turn_scores"])
    assert "submission_status" not in {event["type"] for event in events}, "this profile has no place for it"
    row = rows.one("SELECT * FROM scores")
    assert (row["status"], row["total_score"], row["grade"]) == ("SCORED", scores["total_score"], scores["grade"])
    runs = Counter((run["program"], run["repetition"]) for run in rows("SELECT * FROM submission_runs"))
    assert runs[("candidate", 0)] == 3 and runs[("reference", 1)] == 3
    holistic = rows.one("SELECT turn, details FROM prompt_evaluations WHERE evaluation_type = 'HOLISTIC_FLOW'")
    assert (holistic["turn"], holistic["details"]["score"]) == (None, 80)
    assert holistic["details"]["analysis"] == "The work was led well."
    marks = rows("SELECT turn FROM criterion_scores WHERE run_id = %s", found["panel"]["evidence"]["run_id"])
    assert len(marks) == 12 and {mark["turn"] for mark in marks} == {1}
    assert {row["cause"] for row in rows("SELECT cause FROM evaluation_runs WHERE turn IS NULL")} == {"panel", "review"}


def test_what_a_problem_looks_for_in_code_is_found_there_and_shown(rest: httpx.Client, rows: Rows) -> None:
    looked_for = {"id": "maps", "language": "python", "message": "numbers through map", "rule": {"pattern": "map($$$)"}}
    body = {**SUM, "patterns": [looked_for, {**looked_for, "language": "c"}]}
    assert rest.put("/api/problems/72", json=body).status_code == 201
    unknown = {**looked_for, "rule": {"kind": "no_such"}}
    refused = rest.put("/api/problems/72", json={**body, "patterns": [unknown]})
    assert "patterns[0].rule" in refused.text and refused.status_code == 422
    session_id = new_session(rest, spec_id=72)
    assert say(rest, PROMPT, session_id=session_id).status_code == 200
    taken(rest, session_id, code=RIGHT, submission_id="looked at")
    assert ended(rest, "looked at")["final_scores"]["status"] == "SCORED"
    [found] = steps(rows)["analysis"]["value"]["patterns"]
    assert (found["id"], found["count"]) == ("maps", 1)
    assert found["matches"] == [{"line": 5, "column": 12, "text": "map(int, input().split())"}]
    report = rest.get("/api/submissions/looked%20at/report")
    assert report.status_code == 200 and "numbers through map" in report.text


def all_told(core: FakeCore, rows: Rows) -> list[dict[str, Any]]:
    """Every event there is, as Core has it."""
    recorded = {row["event_id"] for row in rows("SELECT event_id FROM callbacks")}
    core.wait_for(lambda posts: recorded <= {post.id for post in posts if post.accepted}, 30)
    return [event.body for event in core.events()]


def test_what_is_wrong_is_zero_and_what_is_missing_is_not(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    taken(rest, talked(rest), code=WRONG, submission_id="wrong")
    scores = ended(rest, "wrong")["final_scores"]
    assert (scores["status"], scores["correctness_score"], scores["performance_score"]) == ("SCORED", 0, 0)
    # no problem is known for this session, so nothing can be run
    session_id = new_session(rest)
    say(rest, PROMPT, session_id=session_id)
    taken(rest, session_id, code=RIGHT, submission_id="unknown")
    body = ended(rest, "unknown")
    scores = body["final_scores"]
    assert (scores["status"], scores["total_score"], scores["grade"]) == ("PENDING_REVIEW", None, None)
    assert (scores["correctness_score"], scores["performance_score"], scores["prompt_score"]) == (None, None, 80)
    assert "no problem is set" in scores["components"]["correctness"]["reason"]
    [item] = rest.get("/api/reviews", params={"reason": "component_missing"}).json()["items"]
    assert (item["turn"], item["submission_id"], item["revision"]) == (None, "unknown", 1)
    assert item["details"]["missing"] == {"tests": "no problem is set"}
    # it becomes known, and what was missing is filled: the judges are not asked again
    rows("UPDATE prompt_sessions SET spec_id = %s WHERE id = %s", SPEC, int(session_id))
    asked = len(judge.calls)
    again = rest.post("/api/submissions/unknown/rerun", json={"person": "Kim", "again": "missing", "as_set_now": True})
    assert again.status_code == 202 and [each["revision"] for each in again.json()["evaluations"]] == [1, 2]
    assert again.json()["revision"] == 1, "what is known stays known until then"
    wait_until(lambda: show(rest, "unknown")["revision"] == 2, 60)
    assert show(rest, "unknown")["final_scores"]["status"] == "SCORED"
    assert len(judge.calls) == asked
    everything_once(rows, all_told(core, rows), 3)


def test_scores_that_are_held_are_told_when_a_person_releases_them(
    rest: httpx.Client, core: FakeCore, rows: Rows
) -> None:
    rest.put("/api/exams/1", json={"problem_text": "Sum.", "hold_scores": True}).raise_for_status()
    session_id = talked(rest)
    taken(rest, session_id, code=RIGHT, submission_id="held")
    wait_until(lambda: show(rest, "held")["progress"]["stage"] == "held", 60)
    body = show(rest, "held")
    assert (body["status"], body["final_scores"], body["revision"]) == ("RUNNING", None, None)
    assert body["evaluations"][0]["status"] == "held"
    assert rows("SELECT 1 FROM scores") == rows("SELECT 1 FROM callbacks WHERE type = 'final_scores'") == []
    assert rows.one("SELECT ended_at FROM prompt_sessions")["ended_at"] is not None
    [item] = rest.get("/api/reviews", params={"reason": "held_for_review"}).json()["items"]
    assert item["details"]["status"] == "SCORED" and item["submission_id"] == "held"
    # a person sets a turn's score meanwhile, and that is what is told
    override = {"score": 100, "reason": "It names every limit.", "person": "Kim"}
    turn_id = rows.one("SELECT client_turn_id FROM prompt_turns")["client_turn_id"]
    rest.post(f"/api/sessions/{session_id}/turns/{turn_id}/override", json=override).raise_for_status()
    released = rest.post("/api/submissions/held/release", json={"person": "Kim"})
    assert released.status_code == 202, released.text
    body = ended(rest, "held")
    assert body["turn_scores"]["1"]["score"] == 100 and body["final_scores"]["prompt_score"] == pytest.approx(86.4)
    problem(rest.post("/api/submissions/held/release", json={"person": "Kim"}), 409, "not_held")
    [item] = rest.get("/api/reviews", params={"reason": "held_for_review"}).json()["items"]
    assert (item["status"], item["resolved_by"], item["resolution"]) == ("resolved", "Kim", "released")
    everything_once(rows, all_told(core, rows), 1)


@pytest.mark.slow
def test_a_rerun_by_another_policy_is_told_under_the_next_revision(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="again")
    first = ended(rest, "again")
    asked = len(judge.calls)
    order = {"person": "Kim", "again": "scores", "score_policy": "compat-2026"}
    rest.post("/api/submissions/again/rerun", json=order).raise_for_status()
    wait_until(lambda: show(rest, "again")["revision"] == 2, 60)
    second = show(rest, "again")
    assert second["final_scores"]["policy"]["name"] == "compat-2026" != first["final_scores"]["policy"]["name"]
    assert second["final_scores"]["total_score"] == first["final_scores"]["total_score"]
    assert second["evaluations"][1]["asked_by"] == "Kim" and second["ended_at"] == first["ended_at"]
    assert len(judge.calls) == asked
    rest.post("/api/submissions/again/rerun", json={"person": "Kim"}).raise_for_status()
    wait_until(lambda: show(rest, "again")["revision"] == 3, 60)
    assert len(judge.calls) == asked, "the same is answered from what is kept"
    assert show(rest, "again")["final_scores"]["prompt_score"] == first["final_scores"]["prompt_score"]
    everything_once(rows, all_told(core, rows), 3)
    for bad in ({"rubric": "nothing"}, {"judge_model": "gpt-4.1"}, {"judge_model": "openai:"}):
        problem(rest.post("/api/submissions/again/rerun", json={"person": "Kim", **bad}), 422, "invalid_frame")
    assert len(show(rest, "again")["evaluations"]) == 3


@pytest.mark.slow
def test_people_are_asked_to_look_for_a_reason(rest: httpx.Client, judge: ScriptedJudge, rows: Rows) -> None:
    code = "\n".join(f"value_{n} = {n} * {n}" for n in range(12)) + "\nprint(sum(map(int, input().split())))\n"
    other = "\n".join(f"def other_{n}(x): return x" for n in range(12))
    judge.marks = lambda seen: {"R1": 1 + 3 * (seen.seed == 0)} if seen.kind == "panel" else {}
    taken(rest, talked(rest, f"Explain this: ```python\n{other}\n```"), code=code, submission_id="look")
    body = ended(rest, "look")
    found = {item["reason"]: item["details"] for item in rest.get("/api/reviews").json()["items"]}
    assert {"samples_differ", "unlike_conversation"} <= set(found)
    assert found["samples_differ"]["spread"] == 3 and found["unlike_conversation"]["likeness"] < 0.3
    assert len({call.seed for call in judge.calls if call.kind == "panel" and call.seed < 100}) == 4
    assert body["final_scores"]["status"] == "SCORED", "no reason changes a score"


def test_without_a_judge_nothing_of_the_prompts_is_zero(start: Start, core: FakeCore, rows: Rows) -> None:
    put_problem(rows)
    with checked_client(start()) as rest:
        taken(rest, talked(rest), code=RIGHT, submission_id="unjudged")
        scores = ended(rest, "unjudged")["final_scores"]
    assert (scores["status"], scores["prompt_score"], scores["correctness_score"]) == ("PENDING_REVIEW", None, 100)
    assert rows("SELECT 1 FROM evaluation_runs") == []


@pytest.mark.slow
def test_a_prompt_that_was_not_judged_is_judged_now(
    start: Start, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    put_problem(rows)
    without = start()
    with checked_client(without) as unjudged:
        session_id = talked(unjudged)
    without.stop()
    with checked_client(start(judge=judge_settings(judge))) as rest:
        taken(rest, session_id, code=RIGHT, submission_id="late")
        scores = ended(rest, "late")["final_scores"]
    assert (scores["status"], scores["prompt_score"]) == ("SCORED", 80)
    assert rows.one("SELECT cause, revision FROM evaluation_runs WHERE turn = 1") == {"cause": "turn", "revision": 1}


@pytest.mark.slow
def test_the_older_platform_is_told_each_stage_once(
    start: Start, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    put_problem(rows)
    profile = {"profile": "vibecode", "url": core.url}
    with checked_client(start(judge=judge_settings(judge), callbacks=profile)) as rest:
        taken(rest, talked(rest), code=RIGHT, submission_id=88001)
        ended(rest, 88001)
        told = "SELECT payload FROM callbacks WHERE type = 'submission_status' ORDER BY id"
        assert [row["payload"]["status"] for row in rows(told)] == ["queued", "running"]
        core.wait_for(lambda posts: sum("submissions/88001/result" in post.path for post in posts) == 1, 20)
        stages = [post.body["status"] for post in core.deliveries if post.path.endswith("/ai/analysis")]
    assert stages == ["QUEUED", "RUNNING"]


FAILS_ONCE = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fail_once() RETURNS trigger AS $$
    BEGIN
        IF nextval('tries') = 1 THEN RAISE EXCEPTION 'once'; END IF;
        RETURN NEW;
    END $$ LANGUAGE plpgsql;
    CREATE TRIGGER fail_once BEFORE INSERT ON scores FOR EACH ROW EXECUTE FUNCTION fail_once()
    """


@pytest.mark.slow
def test_scores_that_were_held_for_days_survive_a_fault_when_they_are_told(
    rest: httpx.Client, core: FakeCore, rows: Rows
) -> None:
    rest.put("/api/exams/1", json={"problem_text": "Sum.", "hold_scores": True}).raise_for_status()
    taken(rest, talked(rest), code=RIGHT, submission_id="held")
    wait_until(lambda: show(rest, "held")["progress"]["stage"] == "held", 60)
    rows("UPDATE submission_evaluations SET created_at = now() - interval '3 days'")
    rows(FAILS_ONCE)
    rest.post("/api/submissions/held/release", json={"person": "Kim"}).raise_for_status()
    assert ended(rest, "held")["final_scores"]["status"] == "SCORED"
    assert rows.one("SELECT last_value FROM tries")["last_value"] == 2


@pytest.mark.slow
def test_the_command_lists_shows_evaluates_again_and_releases(
    rest: httpx.Client, settings: Settings, tmp_path: Path, rows: Rows
) -> None:
    env = environment(settings, TURNSTONE_DATA_DIR=str(tmp_path))

    def turnstone(*arguments: str, code: int = 0) -> str:
        ended_with, said = Command("submissions", *arguments, env=env).ended()
        assert ended_with == code, said
        return said

    rest.put("/api/exams/1", json={"problem_text": "Sum.", "hold_scores": True}).raise_for_status()
    taken(rest, talked(rest), code=RIGHT, submission_id="held")
    try:
        wait_until(lambda: show(rest, "held")["progress"]["stage"] == "held", 150)
    except AssertionError:
        raise AssertionError(show(rest, "held")) from None  # what it waits for
    assert "held" in turnstone("list") and "revision 1 is held" in turnstone("list", "--status", "RUNNING")
    shown = json.loads(turnstone("show", "held"))
    assert shown["evaluations"][0]["held_scores"]["status"] == "SCORED"
    assert shown["evaluations"][0]["steps"]["panel"]["cost"]["calls"] >= 3
    assert "is released" in turnstone("release", "held", "--person", "Kim")
    ended(rest, "held")
    assert "No scores" in turnstone("release", "held", "--person", "Kim", code=1)
    assert "revision 2" in turnstone("rerun", "held", "--person", "Kim", "--again", "scores")
    assert "is no judge" in turnstone("rerun", "held", "--person", "Kim", "--model", "gpt-4.1", code=1)
    assert "no such submission" in turnstone("show", "nothing", code=1)
    turnstone("release", "held", "--person", " ", code=2)
