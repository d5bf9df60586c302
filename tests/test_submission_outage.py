"""Parts of an evaluation that are away: it waits for them, ends when they are back, and nobody gets a zero for it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import psutil
import pytest

from tests.conftest import Rows
from tests.support.chat import wait_until
from tests.support.core import FakeCore
from tests.support.judge import JudgeReply, JudgeSeen, ScriptedJudge
from tests.support.service import Service
from tests.support.submissions import ONE_CASE, RIGHT, everything_once, judge_settings, put_problem, steps
from tests.test_openapi import checked_client
from tests.test_rest import say
from tests.test_submission_flow import all_told, talked
from tests.test_submissions import ended, show, taken

Start = Callable[..., Service]
WAITED_LONG = """
    UPDATE submission_evaluations SET due_at = now(), waits = (
        SELECT jsonb_object_agg(key, value || '{"since": 0, "cause_since": 0}') FROM jsonb_each(waits)
    ) WHERE owner IS NULL AND status = 'waiting' AND waits ? %s RETURNING id
    """


@pytest.fixture
def judge() -> Iterator[ScriptedJudge]:
    with ScriptedJudge() as running:
        yield running


@pytest.fixture
def rest(start: Start, judge: ScriptedJudge, rows: Rows) -> Iterator[httpx.Client]:
    put_problem(rows, **ONE_CASE)
    with checked_client(start(judge=judge_settings(judge))) as opened:
        yield opened


def away_for(judge: ScriptedJudge, *kinds: str, times: int = 1_000_000) -> Counter[str]:
    """The judge fails so many calls of each of these kinds; counts them."""
    failed: Counter[str] = Counter()

    def reply(seen: JudgeSeen) -> JudgeReply | None:
        if seen.kind not in kinds or failed[seen.kind] >= times:
            return None
        failed[seen.kind] += 1
        return JudgeReply(status=503)

    judge.reply = reply
    return failed


def waited_long(rows: Rows, node: str) -> None:
    """The evaluation has been tried, and waited for days for this node and others; it is due."""
    wait_until(lambda: rows(WAITED_LONG, node), 60)


@contextlib.contextmanager
def runner_away() -> Iterator[None]:
    """The process that starts sandboxes is killed whenever it comes up."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for child in psutil.Process().children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    if any("bubblewrap.warden" in word for word in child.cmdline()):
                        child.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        yield
    finally:
        over.set()
        killing.join()


@pytest.mark.slow
def test_a_judge_and_a_runner_that_come_back(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    session_id = talked(rest)
    failed = away_for(judge, "review", "panel", times=2)
    with runner_away():
        taken(rest, session_id, code=RIGHT, submission_id="waits")
        wait_until(lambda: rows.one("SELECT tries FROM submission_evaluations")["tries"] > 0, 60)
        assert "tests" not in steps(rows) and show(rest, "waits")["status"] == "RUNNING"
    scores = ended(rest, "waits", 90)["final_scores"]
    assert (scores["status"], scores["prompt_score"], scores["correctness_score"]) == ("SCORED", 80, 100)
    assert failed == {"review": 2, "panel": 2}
    everything_once(rows, all_told(core, rows), 1)


@pytest.mark.slow
def test_a_judge_that_stays_away_leaves_a_gap_and_no_zero(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    session_id = talked(rest)
    away_for(judge, "review", "panel")
    taken(rest, session_id, code=RIGHT, submission_id="gap")
    waited_long(rows, "review")  # the panel, whom the same judge keeps waiting, has no day of its own
    scores = ended(rest, "gap")["final_scores"]
    assert (scores["status"], scores["prompt_score"], scores["total_score"]) == ("PENDING_REVIEW", None, None)
    assert scores["correctness_score"] == 100
    found = steps(rows)
    assert {found[node]["reason"] for node in ("review", "panel")} == {"judge unavailable"}
    assert {row["status"] for row in rows("SELECT status FROM evaluation_runs")} == {"done"}
    judge.reply = lambda _: None
    rest.post("/api/submissions/gap/rerun", json={"person": "Kim", "again": "missing"}).raise_for_status()
    wait_until(lambda: show(rest, "gap")["revision"] == 2, 60)
    assert show(rest, "gap")["final_scores"]["prompt_score"] == 80
    everything_once(rows, all_told(core, rows), 2)


@pytest.mark.slow
def test_what_cannot_be_evaluated_at_all_is_failed_and_may_be_handed_in_again(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    session_id = talked(rest)
    away_for(judge, "panel")
    taken(rest, session_id, code=RIGHT, submission_id="broken")
    wait_until(lambda: "review" in steps(rows), 60)
    freeze = "UPDATE evaluation_steps SET outcome = jsonb_set(outcome, '{value,policy}', %s) WHERE node = 'freeze'"
    rows(freeze, f'"{"0" * 64}"')
    for node in ("panel", "checks"):
        waited_long(rows, node)
    body = ended(rest, "broken")
    assert (body["status"], body["final_scores"], body["revision"]) == ("FAILED", None, None)
    events = all_told(core, rows)
    [error] = [event for event in events if event["type"] == "error"]
    assert error["metadata"] == {"submission_id": "broken", "retryable": False}
    assert [event for event in events if event["type"] == "final_scores"] == rows("SELECT 1 FROM scores") == []
    [item] = rest.get("/api/reviews", params={"reason": "unscored"}).json()["items"]
    assert item["submission_id"] == "broken"
    judge.reply = lambda _: None
    taken(rest, session_id, code=RIGHT, submission_id="instead")
    assert ended(rest, "instead")["final_scores"]["status"] == "SCORED"


@pytest.mark.slow
def test_prompts_that_nobody_judged_in_time_take_nothing_from_the_others(
    rest: httpx.Client, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    session_id = talked(rest)
    wait_until(lambda: rows("SELECT 1 FROM evaluation_runs WHERE status = 'done'"), 60)
    away_for(judge, "turn")
    say(rest, "Now let it take negative numbers too, for example -4 and 10.", session_id=session_id)
    taken(rest, session_id, code=RIGHT, submission_id="late")
    waited_long(rows, "turns")
    body = ended(rest, "late")
    assert (body["turn_scores"]["1"]["score"], body["turn_scores"]["2"]["score"]) == (80, None)
    scores = body["final_scores"]
    assert (scores["status"], scores["prompt_score"], scores["prompt"]["holistic"]) == ("PENDING_REVIEW", None, 80)
    assert steps(rows)["panel"]["status"] == "ok", "what was said is marked all the same"
    judge.reply = lambda _: None
    hasten = "UPDATE evaluation_runs SET due_at = now() WHERE status = 'waiting' AND owner IS NULL"

    def all_judged() -> bool:
        rows(hasten)  # again, where a call of before has failed meanwhile
        return not rows("SELECT 1 FROM evaluation_runs WHERE status = 'waiting'")

    wait_until(all_judged, 60)
    rest.post("/api/submissions/late/rerun", json={"person": "Kim", "again": "missing"}).raise_for_status()
    wait_until(lambda: show(rest, "late")["revision"] == 2, 60)
    assert show(rest, "late")["final_scores"]["status"] == "SCORED"
    everything_once(rows, all_told(core, rows), 2)


@pytest.mark.slow
def test_a_running_time_that_cannot_be_measured_is_waited_for_and_filled_later(
    start: Start, judge: ScriptedJudge, core: FakeCore, rows: Rows
) -> None:
    """The reference ran when the problem was accepted; something that it needs is gone from this machine since."""
    put_problem(rows, **ONE_CASE, references=[{"language": "python", "source": "import gone\n"}])
    with checked_client(start(judge=judge_settings(judge))) as rest:
        taken(rest, talked(rest), code=RIGHT, submission_id="slow")
        wait_until(lambda: show(rest, "slow")["evaluations"][0]["waits_for"], 60)
        [waits] = show(rest, "slow")["evaluations"][0]["waits_for"]
        assert (waits["step"], "tests" in steps(rows)) == ("tests", False)
        assert waits["reason"].endswith("no test case could be run again on both sides")
        waited_long(rows, "tests")
        scores = ended(rest, "slow")["final_scores"]
        assert (scores["status"], scores["correctness_score"]) == ("PENDING_REVIEW", 100)
        assert scores["components"]["performance"] == {
            "status": "missing",
            "score": None,
            "reason": "running time: no test case could be run again on both sides",
        }
        assert show(rest, "slow")["evaluations"][0]["waits_for"] == []
        assert {row["program"] for row in rows("SELECT program FROM submission_runs")} == {"candidate"}
        reference = json.dumps([{"language": "python", "source": RIGHT}])
        rows("UPDATE problem_versions SET content = jsonb_set(content, '{references}', %s)", reference)
        rest.post("/api/submissions/slow/rerun", json={"person": "Kim", "again": "missing"}).raise_for_status()
        wait_until(lambda: show(rest, "slow")["revision"] == 2, 60)
        scores = show(rest, "slow")["final_scores"]
        assert (scores["status"], scores["components"]["performance"]["status"]) == ("SCORED", "ok")
        everything_once(rows, all_told(core, rows), 2)
