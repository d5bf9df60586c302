"""What people say of a submission's scores: overrides beside the machine's, and appeals; over REST and the shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.application.submissions.explaining import explain_scores
from tests.conftest import Rows
from tests.support.chat import wait_until
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, ScriptedJudge
from tests.support.service import Service
from tests.support.submissions import RIGHT
from tests.test_rest import problem
from tests.test_score_explain import judge, rest, service, turnstone
from tests.test_submission_flow import talked
from tests.test_submissions import ended, show, taken

__all__ = ["judge", "rest", "service", "turnstone"]
KIM = {"person": "Kim", "reason": "The limits are named in the second sentence."}


def override(rest: httpx.Client, component: str, score: float, submission_id: str = "s-1") -> httpx.Response:
    return rest.post(f"/api/submissions/{submission_id}/override", json={"component": component, "score": score, **KIM})


def at_revision(rest: httpx.Client, revision: int) -> dict[str, Any]:
    wait_until(lambda: show(rest, "s-1")["revision"] == revision, 60)
    return show(rest, "s-1")


@pytest.mark.slow
async def test_a_person_s_score_counts_and_the_machine_s_stays_beside_it(
    service: Service,
    rest: httpx.Client,
    core: FakeCore,
    judge: ScriptedJudge,
    rows: Rows,
    turnstone: Callable[..., Any],
) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    first = ended(rest, "s-1")["final_scores"]
    asked = len(judge.calls)
    response = override(rest, "prompt", 95)
    assert response.status_code == 202, response.text
    assert response.json().items() >= {"component": "prompt", "turn": None, "score": 95, "revision": 2, **KIM}.items()
    second = at_revision(rest, 2)["final_scores"]
    said = {"status": "overridden", "score": 95, "machine_score": first["prompt_score"]}
    assert second["components"]["prompt"] == said | KIM
    assert second["prompt"] == first["prompt"]
    gain = 0.4 * (95 - first["prompt_score"])
    assert second["total_score"] == pytest.approx(first["total_score"] + gain)
    code, output = await turnstone("score", "override", "s-1", "total", "61.5", "--person", "Lee", "--reason", "Late.")
    assert code == 0 and "total of s-1 is 61.5 from revision 3 on" in output
    third = at_revision(rest, 3)["final_scores"]
    assert (third["total_score"], third["grade"], third["prompt_score"]) == (61.5, "D", 95)
    assert third["components"]["total"]["machine_score"] == pytest.approx(second["total_score"])
    assert len(judge.calls) == asked, "nothing is judged again"
    core.wait_for(lambda posts: sum(post.type == "final_scores" for post in posts) == 3, 30)
    told = [event for event in core.events() if event.type == "final_scores"]
    assert [(event.body["revision"], event.body["final_scores"]) for event in told] == [
        (1, first),
        (2, second),
        (3, third),
    ]
    for revision in (1, 2, 3):
        assert service.call(explain_scores("s-1", revision)).is_true, revision
    rows("UPDATE score_overrides SET score = 99 WHERE component = 'prompt'")
    assert not service.call(explain_scores("s-1")).is_true
    for wrong in ({"component": "style", "score": 5}, {"component": "prompt", "score": 101}, {"component": "total"}):
        assert rest.post("/api/submissions/s-1/override", json={**wrong, **KIM}).status_code == 422
    problem(override(rest, "prompt", 5, "s-2"), 404, "submission_not_found")


SET_MEANWHILE = """
    CREATE FUNCTION set_meanwhile() RETURNS trigger AS $$
    BEGIN
        INSERT INTO score_overrides (session_id, submission_id, component, score, reason, person)
        SELECT session_id, id, 'performance', 10, 'Seen late.', 'Lee' FROM submissions;
        RETURN NULL;
    END $$ LANGUAGE plpgsql;
    CREATE TRIGGER set_meanwhile AFTER INSERT ON evaluation_steps
    FOR EACH ROW WHEN (NEW.node = 'aggregate' AND NEW.evaluation_id = {evaluation}) EXECUTE FUNCTION set_meanwhile()
    """


@pytest.mark.slow
def test_what_is_set_while_it_is_evaluated_is_told_too(
    service: Service, rest: httpx.Client, core: FakeCore, judge: ScriptedJudge, rows: Rows
) -> None:
    rows(SET_MEANWHILE.format(evaluation=1))  # when the scores are made already, and not told yet
    judge.holding = True  # so that they are not told before the override comes
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    assert override(rest, "correctness", 50).json()["revision"] == 1
    judge.holding = False
    ended(rest, "s-1")
    second = at_revision(rest, 2)["final_scores"]["components"]
    assert (second["correctness"]["score"], second["correctness"]["machine_score"]) == (50, 100)
    assert (second["performance"]["score"], second["performance"]["person"]) == (10, "Lee")
    assert service.call(explain_scores("s-1", 1)).is_true and service.call(explain_scores("s-1", 2)).is_true


@pytest.mark.slow
def test_an_appeal_is_heard_by_more_judges_and_told_when_a_person_releases_it(
    service: Service, rest: httpx.Client, core: FakeCore, judge: ScriptedJudge, rows: Rows
) -> None:
    session_id = talked(rest)
    judge.marks = lambda seen: {"R1": 3 if seen.seed < 3 else 5} if seen.kind == "panel" else {}
    taken(rest, session_id, code=RIGHT, submission_id="s-1")
    problem(rest.post("/api/submissions/s-9/appeal", json=KIM), 404, "submission_not_found")
    first = ended(rest, "s-1")["final_scores"]
    response = rest.post("/api/submissions/s-1/appeal", json=KIM)
    assert (response.status_code, response.json()["revision"]) == (202, 2), response.text
    assert rest.post("/api/submissions/s-1/appeal", json=KIM).json() == response.json(), "it is open already"
    wait_until(lambda: show(rest, "s-1")["evaluations"][-1]["status"] == "held", 60)
    shown = show(rest, "s-1")
    assert (shown["revision"], shown["final_scores"]) == (1, first), "nobody is told yet"
    assert [each["cause"] for each in shown["evaluations"]] == ["submission", "appeal"]
    [item] = rest.get("/api/reviews", params={"reason": "appeal"}).json()["items"]
    assert (item["id"], item["details"]["reason"]) == (response.json()["review_id"], KIM["reason"])
    panel = rows.one("SELECT outcome FROM evaluation_steps WHERE node = 'panel' ORDER BY evaluation_id DESC LIMIT 1")
    assert len(panel["outcome"]["value"]["judges"]) >= 7
    rest.post("/api/submissions/s-1/release", json={"person": "Kim"}).raise_for_status()
    second = at_revision(rest, 2)["final_scores"]
    assert second["prompt"]["holistic"] > first["prompt"]["holistic"]
    assert service.call(explain_scores("s-1", 2)).is_true


@pytest.mark.slow
def test_what_is_set_while_an_appeal_is_heard_is_told_at_once(
    service: Service, rest: httpx.Client, judge: ScriptedJudge, rows: Rows
) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    ended(rest, "s-1")
    judge.reply = lambda seen: JudgeReply(status=503) if seen.kind == "panel" else None  # so that it takes its time
    rest.post("/api/submissions/s-1/appeal", json=KIM).raise_for_status()
    assert override(rest, "correctness", 50).json()["revision"] == 3
    told = at_revision(rest, 3)["final_scores"]["components"]["correctness"]
    assert (told["score"], told["machine_score"]) == (50, 100)
    assert show(rest, "s-1")["evaluations"][1]["status"] == "waiting"


RELEASED_LATER = """
    CREATE FUNCTION later() RETURNS trigger AS $$
    BEGIN
        NEW.due_at := now() + interval '1 hour';
        RETURN NEW;
    END $$ LANGUAGE plpgsql;
    CREATE TRIGGER later BEFORE UPDATE ON submission_evaluations
    FOR EACH ROW WHEN (OLD.status = 'held' AND NEW.status = 'waiting') EXECUTE FUNCTION later()
    """


@pytest.mark.slow
def test_what_is_set_while_a_released_appeal_is_told_leaves_the_appeal_the_last_word(
    service: Service, rest: httpx.Client, judge: ScriptedJudge, rows: Rows
) -> None:
    judge.marks = lambda seen: {"R1": 3 if seen.seed < 3 else 5} if seen.kind == "panel" else {}
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    first = ended(rest, "s-1")["final_scores"]
    rest.post("/api/submissions/s-1/appeal", json=KIM).raise_for_status()
    wait_until(lambda: show(rest, "s-1")["evaluations"][-1]["status"] == "held", 60)
    rows(RELEASED_LATER)
    rest.post("/api/submissions/s-1/release", json={"person": "Kim"}).raise_for_status()
    assert override(rest, "correctness", 50).json()["revision"] == 2
    rows("UPDATE submission_evaluations SET due_at = now()")
    told = at_revision(rest, 2)["final_scores"]
    assert told["components"]["correctness"]["score"] == 50
    assert told["prompt"]["holistic"] > first["prompt"]["holistic"], "by the larger panel"
    assert len(show(rest, "s-1")["evaluations"]) == 2


@pytest.mark.slow
def test_what_is_set_while_a_rerun_is_made_is_told_though_that_one_is_held(
    service: Service, rest: httpx.Client, core: FakeCore, rows: Rows
) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    ended(rest, "s-1")
    rest.put("/api/exams/1", json={"problem_text": "Sum.", "hold_scores": True}).raise_for_status()
    rows(SET_MEANWHILE.format(evaluation=2))
    rest.post("/api/submissions/s-1/rerun", json={"person": "Kim", "as_set_now": True}).raise_for_status()
    third = at_revision(rest, 3)["final_scores"]["components"]["performance"]
    assert (third["score"], third["person"]) == (10, "Lee")
    assert show(rest, "s-1")["evaluations"][1]["status"] == "held"


@pytest.mark.slow
def test_an_appeal_counts_when_it_is_released_whatever_was_told_meanwhile(
    service: Service, rest: httpx.Client, core: FakeCore, judge: ScriptedJudge, rows: Rows
) -> None:
    judge.marks = lambda seen: {"R1": 3 if seen.seed < 3 else 5} if seen.kind == "panel" else {}
    taken(rest, talked(rest), code=RIGHT, submission_id="s-1")
    first = ended(rest, "s-1")["final_scores"]
    appeal = rest.post("/api/submissions/s-1/appeal", json=KIM).json()
    wait_until(lambda: show(rest, "s-1")["evaluations"][-1]["status"] == "held", 60)
    override(rest, "correctness", 50).raise_for_status()
    at_revision(rest, 3)
    again = {"person": "Kim", "again": "scores"}
    rest.post("/api/submissions/s-1/rerun", json=again).raise_for_status()
    fourth = at_revision(rest, 4)["final_scores"]
    assert fourth["prompt"] == first["prompt"], "what the appeal found is not known yet"
    rows("UPDATE submission_runs SET cpu_ms = 40 * cpu_ms WHERE evaluation_id = 2 AND program = 'candidate'")
    for revision in (1, 3, 4):
        assert service.call(explain_scores("s-1", revision)).is_true, "by what was run for it, not for the appeal"
    assert rest.post("/api/submissions/s-1/appeal", json=KIM).json() == appeal, "it is still open"
    rest.post("/api/submissions/s-1/release", json={"person": "Kim"}).raise_for_status()
    fifth = at_revision(rest, 5)["final_scores"]
    assert fifth["prompt"]["holistic"] > first["prompt"]["holistic"]
    assert fifth["components"]["correctness"]["score"] == 50
    core.wait_for(lambda posts: sum(post.type == "final_scores" for post in posts) == 4, 30)
    told = [event.body["revision"] for event in core.events() if event.type == "final_scores"]
    assert told == [1, 3, 4, 5]
    assert not service.call(explain_scores("s-1", 5)).is_true, "which were changed"
