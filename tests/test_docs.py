"""Every example and table of the documentation, held against the running service."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
import yaml
from pydantic import TypeAdapter

from app.core.settings import Settings
from app.domain.code_runner import CaseVerdict
from app.domain.documents import shipped
from app.domain.guard_policy import GuardAction
from app.domain.guarding import GuardLabel
from app.domain.judge_prompt import PLACEHOLDERS, REVIEW_PLACEHOLDERS
from app.domain.problem import Problem
from app.domain.problem_parts import CHECKERS, Checker, ProblemLimits
from app.domain.submission import Node
from app.fake_core.chaos import WORDS, Chaos
from app.infrastructure.analysis.analyser import analyse
from app.infrastructure.persistence.models import ReviewReasonEnum
from app.infrastructure.profiles import PROFILES, CoreRequest
from app.presentation.schemas.callbacks import FinalScoresCallback
from app.presentation.schemas.exam_bodies import ExamRequest
from app.presentation.schemas.frames import parse
from tests.conftest import CORE_KEY, SECRET, Rows
from tests.support.chat import WAIT_S, ChatClient, Command, connect, environment, new_pair
from tests.support.core import Delivery, FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service, running
from tests.test_profiles import SCORES

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for place in ("README.md", "CHANGELOG.md", "judge_bench/data/README.md", "docs", "examples")
    for path in ([ROOT / place] if place.endswith(".md") else (ROOT / place).rglob("*.md"))
)


def blocks(page: str, info: str) -> list[str]:
    """The fenced blocks of a page that carry this info string."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{re.escape(info)}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def json_lines(page: str, info: str) -> list[dict[str, Any]]:
    return [json.loads(line) for block in blocks(page, info) for line in block.splitlines()]


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, env={**os.environ, "PATH": path, **env}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_files_named_in_the_architecture_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page[page.index("## From symptom to file") :]
    named = re.findall(r"`([a-z_/]+\.(?:py|js))`", table)
    assert len(named) > 20
    folders = ("app", "tests", "torture", "judge_bench", "hostile_programs", "bench")
    files = [str(path) for folder in folders for path in (ROOT / folder).rglob("*.*")]
    for name in named:
        assert any(path.endswith(f"/{name}") for path in files), name


def test_make_targets_named_in_the_readme_exist() -> None:
    for target in set(re.findall(r"^make ([a-z-]+)", "\n".join(blocks("README.md", "sh")), re.MULTILINE)):
        assert run(["make", "-n", "-C", str(ROOT), target]).returncode == 0, target


def test_settings_of_the_readme_are_settings() -> None:
    known = set(documented_settings())
    for name in re.findall(r"TURNSTONE_[A-Z_]+", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert name in known | {"TURNSTONE_WS"}, name


def documented_settings() -> dict[str, str]:
    """Every variable of the operations page with its default as written there; ``…__X`` continues the one before."""
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for row in re.findall(r"^\| (`(?:TURNSTONE|…).*)\|$", page, re.MULTILINE):
        names, _, default = [cell.strip() for cell in row.split(" | ")]
        defaults = [part.strip("` ") for part in default.split("`, `")]
        previous = ""
        for index, name in enumerate(re.findall(r"`([^`]+)`", names)):
            full = name if name.startswith("TURNSTONE") else previous.rsplit("__", 1)[0] + name.removeprefix("…")
            previous = full
            found[full] = defaults[index] if len(defaults) > 1 else defaults[0]
    return found


def test_the_settings_table_is_complete_and_its_defaults_are_true() -> None:
    actual: dict[str, Any] = {}
    defaults = Settings()
    for name, field in Settings.model_fields.items():
        value = getattr(defaults, name)
        if hasattr(field.annotation, "model_fields"):
            for inner in type(value).model_fields:
                actual[f"TURNSTONE_{name}__{inner}".upper()] = getattr(value, inner)
        else:
            actual[f"TURNSTONE_{name}".upper()] = value
    documented = documented_settings()
    assert set(documented) == set(actual)
    for name, written in documented.items():
        value = actual[name]
        if value is None:
            assert written == "unset", name
        elif isinstance(value, tuple):
            assert json.loads(written) == list(value), name
        elif isinstance(value, bool):
            assert written == str(value).lower(), name
        elif isinstance(value, int | float):
            assert float(written) == value, name
        else:
            assert written == str(value), name


async def test_the_readme_client_talks_to_the_service(service: Service) -> None:
    [example] = blocks("README.md", "python")
    done = run([sys.executable, "-c", example], TURNSTONE_WS=f"{service.url.replace('http', 'ws')}/chat")
    assert done.returncode == 0, done.stderr
    assert "'type': 'done'" in done.stdout


def test_client_frames_of_the_protocol_page_are_accepted() -> None:
    frames = json_lines("docs/protocol.md", "json client")
    assert len(frames) == 6
    for frame in frames:
        parse(json.dumps(frame))


async def test_server_frames_of_the_protocol_page_have_the_fields_that_are_sent(
    start: Callable[..., Service], provider: Provider
) -> None:
    hasty, service = start(llm={"timeout_s": 1}, worker={"embedded": False}), start()
    async with connect(service.url) as client, connect(hasty.url) as falls_silent:
        sent = await _one_of_each(client, falls_silent, provider)
        path = f"{service.url}/api/sessions/{sent[('started', False, False)]['session_id']}/submissions"
        await asyncio.to_thread(httpx.post, path, json={"code": "print(1)", "language": "python"}, timeout=WAIT_S)
        sent["submission", False, False] = await client.until("submission")
    documented = json_lines("docs/protocol.md", "json server")
    assert len(documented) == 9
    for frame in documented:
        kind = (frame["type"], "first_seq" in frame, "last_seq" in frame)
        assert kind in sent, kind
        assert set(frame) == set(sent[kind]), kind
        if "usage" in frame:
            assert set(frame["usage"]) == set(sent[kind]["usage"])


async def _one_of_each(
    client: ChatClient, falls_silent: ChatClient, provider: Provider
) -> dict[tuple[str, bool, bool], dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not any("first_seq" in frame for frame in seen):  # pieces that come in one read are one delta, and no several
        provider.next(Script(pieces=("one ", "and ", "another"), piece_delay_s=0.05))
        turn = await client.ask("finish", "t1", **(pair := new_pair()))
        seen += turn.frames
        await client.send(type="resume", session_id=turn.started["session_id"], turn_id="t1", after_seq=0)
        seen += (await client.turn()).frames
    provider.next(Script(ending="hang", ending_at=1), Script(ending="hang", ending_at=1))
    await client.send(message="stop me", turn_id="t2", **pair)
    seen.append(await client.until("delta"))  # one alone, however slow the machine is
    await client.send(type="cancel", turn_id="t2")
    seen.append(await client.until("cancelled"))
    seen += (await falls_silent.ask("fall silent", "t3", **pair)).frames
    await client.send_raw("not JSON")
    seen.append(await client.until("error"))
    await client.send(type="ping")
    seen.append(await client.until("pong"))
    return {(frame["type"], "first_seq" in frame, "last_seq" in frame): frame for frame in seen}


def test_the_problem_document_is_what_is_sent(service: Service) -> None:
    [documented] = json_lines("docs/protocol.md", "json problem")
    done = run(["curl", "-s", f"{service.url}/api/sessions/999"])
    assert json.loads(done.stdout) == documented


def test_curl_examples_work(service: Service) -> None:
    [example] = blocks("docs/protocol.md", "sh")
    commands = example.replace("\\\n", " ").strip().splitlines()
    assert len(commands) == 6
    for command in commands:
        done = run(["bash", "-c", command], TURNSTONE=service.url)
        answer = json.loads(done.stdout)
        assert "code" not in answer, answer


def test_examples_of_exams_work(service: Service) -> None:
    for page, versions in (("docs/protocol.md", [1, 1, None]), ("docs/evaluation.md", [1])):
        [example] = blocks(page, "sh exams")
        answers = [
            json.loads(run(["bash", "-c", command], TURNSTONE=service.url).stdout)
            for command in re.split(r"\n(?=curl )", example)
        ]
        assert [answer.get("version") for answer in answers] == versions, answers


def test_examples_of_submissions_work(service: Service, settings: Settings, tmp_path: Path) -> None:
    httpx.post(f"{service.url}/api/sessions", json=new_pair(), timeout=WAIT_S).raise_for_status()
    [example] = blocks("docs/submissions.md", "sh submissions")
    commands = example.replace("\\\n", " ").strip().splitlines()
    answers = [json.loads(run(["bash", "-c", command], TURNSTONE=service.url).stdout) for command in commands]
    assert answers[0]["submission_id"] == answers[1]["submission_id"] == "s-1"
    assert answers[2]["revision"] == 1
    assert [item["submission_id"] for item in answers[3]["items"]] == ["s-1"]
    env = {"TURNSTONE_DATABASE__URL": str(settings.database.url), "TURNSTONE_DATA_DIR": str(tmp_path)}
    for command in "\n".join(blocks("docs/submissions.md", "sh")).splitlines():
        done = run(["bash", "-c", command], **env)
        assert done.returncode == 0, (command, done.stderr)
    page = (ROOT / "docs/submissions.md").read_text(encoding="utf-8")
    told = page[page.index("| step | what it does") : page.index("`turns`, `tests` and `analysis` are")]
    assert re.findall(r"^\| `([a-z]+)` \|", told, re.MULTILINE) == [node.value for node in Node]
    reasons = page[page.index("Reasons for which") : page.index("None changes a score")]
    told_reasons = set(re.findall(r"^\| `([a-z_]+)` \|", reasons, re.MULTILINE))
    assert told_reasons == set(ReviewReasonEnum) - {"refused"}


def test_the_table_of_an_exam_s_settings_is_complete() -> None:
    page = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
    table = page[page.index("| field | meaning | left out |") : page.index("A PUT sets everything")]
    named = [
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert named == list(ExamRequest.model_fields)


def test_labels_and_actions_of_the_guard_are_all_there_are() -> None:
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    page = page[page.index("## The guard") : page.index("## The judge")]
    assert re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE) == [label.value for label in GuardLabel]
    assert re.findall(r"^\| `([a-z]+)`", page, re.MULTILINE) == [action.value for action in GuardAction]


def test_the_vibecode_page_is_true(start: Callable[..., Service], core: FakeCore) -> None:
    [env] = blocks("docs/vibecode.md", "env")
    assert set(re.findall(r"TURNSTONE_[A-Z_]+", env)) <= set(documented_settings())
    service = start(callbacks={"profile": "vibecode", "url": core.url})
    [example] = blocks("docs/vibecode.md", "sh")
    session, answered = (
        json.loads(run(["bash", "-c", command], TURNSTONE=service.url).stdout)
        for command in example.replace("\\\n", " ").strip().splitlines()
    )
    assert (session["id"], session["spec_id"]) == ("1", 9)
    [request] = json_lines("docs/vibecode.md", "json request")
    again = httpx.post(f"{service.url}/api/chat/messages", json=request, timeout=WAIT_S).json()
    assert again == answered, "the same message again"
    [documented] = json_lines("docs/vibecode.md", "json answer")
    assert set(again["aiMessage"]) == set(documented["aiMessage"])
    assert all(again["aiMessage"][name] == documented["aiMessage"][name] for name in ("sessionId", "turn", "role"))
    [submission], [taken] = (json_lines("docs/vibecode.md", name) for name in ("json submission", "json taken"))
    assert httpx.post(f"{service.url}/api/session/submit", json=submission, timeout=WAIT_S).json() == taken

    common = {"exam_id": 3, "participant_id": 42, "submission_id": 88001}
    result = {"final_scores": SCORES, "turn_scores": {}, "revision": 1}
    events: list[dict[str, Any]] = [
        {"type": "usage", "total_tokens": 40, "purpose": "chat"},
        {"type": "submission_status", "status": "running"},
        {"type": "final_scores", **result},
        {"type": "final_scores", **result, "final_scores": {}},
    ]
    sent = [PROFILES["vibecode"].request_for({**common, **event}) for event in events]
    bodies = [dict(request.body) for request in sent if isinstance(request, CoreRequest)]
    written = json_lines("docs/vibecode.md", "json sent")
    for body in (bodies[2], written[2]):
        assert isinstance(body["score"].pop("rubricJson"), str)
    assert bodies == written


async def test_the_callback_and_its_receiver_are_as_documented(service: Service, core: FakeCore) -> None:
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    [usage, _] = await core.reaches(2)
    [documented] = json_lines("docs/protocol.md", "json callback")
    assert usage.type == "usage"
    assert set(json.loads(usage.raw)) == set(documented)

    [example] = blocks("docs/protocol.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "docs/protocol.md", "exec"), names)
    seen: set[str] = set()
    headers = {name.lower(): value for name, value in usage.headers.items()}
    assert names["receive"](SECRET, headers, usage.raw, seen) == json.loads(usage.raw)
    assert names["receive"](SECRET, headers, usage.raw, seen) is None
    assert headers["x-api-key"] == CORE_KEY


def test_the_scores_of_the_protocol_page_are_what_their_model_says() -> None:
    for page in ("docs/protocol.md", "docs/core-guide.md"):
        for documented in json_lines(page, "json scores"):
            model = FinalScoresCallback.model_validate_json(json.dumps(documented), strict=True)
            known = model.model_dump(mode="json", exclude_unset=True) | {"occurred_at": documented["occurred_at"]}
            assert known == documented, "a field that there is not"
            missing = [part for part in documented["final_scores"]["components"].values() if part["score"] is None]
            assert (documented["final_scores"]["status"] == "PENDING_REVIEW") == bool(missing)


async def test_the_receiver_of_the_guide_takes_each_event_once_and_in_order(
    service: Service, core: FakeCore, settings: Settings
) -> None:
    pairs = [new_pair(), new_pair()]
    async with connect(service.url) as client:
        for number, pair in enumerate(pairs * 2):
            await client.ask("hello", f"t{number}", **pair)
    deliveries = await core.reaches(8)
    [tables], [example] = blocks("docs/core-guide.md", "sql tables"), blocks("docs/core-guide.md", "python")
    names: dict[str, Any] = {}
    exec(compile(example, "docs/core-guide.md", "exec"), names)
    secrets = ["whsec_" + "b3RoZXIgc2VjcmV0IG9mIGEgY2hhbmdl", SECRET]

    def receive(delivery: Delivery, raw: bytes) -> int:
        with psycopg.connect(str(settings.database.url), autocommit=True) as db:
            return int(names["receive"](db, secrets, dict(delivery.headers), raw))

    with psycopg.connect(str(settings.database.url), autocommit=True) as db:
        db.execute(tables)
        assert receive(deliveries[0], deliveries[0].raw + b" ") == 401
        in_turn = sorted(deliveries, key=lambda delivery: (delivery.session_id, delivery.seq))
        *others, third, fourth = in_turn
        for delivery in reversed(others):
            copies = [asyncio.to_thread(receive, delivery, delivery.raw) for _ in range(3)]
            assert await asyncio.gather(*copies) == [204] * 3
        with db.transaction():  # holds up both, as far as they go before one has to wait for the other
            db.execute("SELECT 1 FROM turnstone_sessions FOR UPDATE")
            both = [asyncio.create_task(asyncio.to_thread(receive, event, event.raw)) for event in (third, fourth)]
            await asyncio.sleep(0.5)
        assert await asyncio.gather(*both) == [204, 204]
        [bill] = blocks("docs/core-guide.md", "sql bill")
        billed = {row[:3]: int(row[3]) for row in db.execute(bill)}
        totals = db.execute("SELECT exam_id, participant_id, 'chat', total_tokens FROM prompt_sessions")
        assert billed == {row[:3]: row[3] for row in totals}
        assert {row[0] for row in db.execute("SELECT next_seq FROM turnstone_sessions")} == {5}
        for event_id, seq, revision in (("a", 5, 2), ("b", 7, 1), ("c", 6, 3)):
            judged = {"type": "turn_evaluation", "turn": 1, "turn_score": revision, "revision": revision}
            names["take"](db, event_id, {"session_id": "1", "callback_seq": seq, **judged})
        assert db.execute("SELECT * FROM turnstone_scores").fetchall() == [("1", 1, 3, 3.0)]
        pending, scored = json_lines("docs/core-guide.md", "json scores")
        for event_id, seq, event in (("d", 8, pending), ("e", 9, scored), ("f", 10, pending)):
            names["take"](db, event_id, {**event, "session_id": "1", "callback_seq": seq})
            known = db.execute("SELECT revision, status, total, grade FROM turnstone_results").fetchall()
            assert known == [(1, "PENDING_REVIEW", None, None) if seq == 8 else (2, "SCORED", 90.4, "A")]


def test_the_feed_of_the_guide_is_read_as_it_says(service: Service) -> None:
    [command] = blocks("docs/core-guide.md", "sh")
    done = run(["bash", "-c", command], TURNSTONE=service.url)
    assert json.loads(done.stdout) == {"items": [], "next": None}


async def test_the_query_of_the_protocol_page_shows_the_conversation(service: Service, rows: Rows) -> None:
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    [query] = blocks("docs/protocol.md", "sql")
    assert [row["role"] for row in rows(query)] == ["USER", "ASSISTANT"]


@pytest.mark.slow
async def test_commands_of_the_operations_page_work(
    service: Service, core: FakeCore, settings: Settings, tmp_path: Path
) -> None:
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    await core.reaches(2)
    env = {
        "TURNSTONE_DATABASE__URL": str(settings.database.url),
        "TURNSTONE_DATA_DIR": str(tmp_path),
        "TURNSTONE_PORT": "0",
        "TURNSTONE_LLM__MODEL": settings.llm.model,
        "TURNSTONE_LLM__BASE_URL": str(settings.llm.base_url),
    }
    for command in filter(None, "\n".join(blocks("docs/operations.md", "sh")).splitlines()):
        done = run(["bash", "-c", f"cd {tmp_path} && {command}"], **env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    exported = json.loads((tmp_path / "session-1.json").read_text(encoding="utf-8"))
    assert [message["role"] for message in exported["messages"]] == ["USER", "ASSISTANT"]


@pytest.mark.slow
async def test_commands_of_the_usage_page_work(
    service: Service, core: FakeCore, provider: Provider, settings: Settings, tmp_path: Path
) -> None:
    async with connect(service.url) as client:
        await client.ask("hello", **new_pair())
    [usage, _] = await core.reaches(2)
    [bill] = blocks("docs/usage.md", "csv bill")
    [event] = json_lines("docs/usage.md", "json core")
    assert bill.splitlines()[1].startswith(provider.requests[0].answer_id)
    (tmp_path / "bill.csv").write_text(bill)
    fields = set(event) - {"webhook_id"}
    assert fields < set(usage.body)

    def export(events: list[Delivery]) -> None:
        rows = [{"webhook_id": e.id, **{name: e.body.get(name) for name in fields}} for e in events]
        (tmp_path / "core.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    async def ends(command: str, code: int) -> str:
        words = shlex.split(command)
        assert words[0] == "turnstone"
        ended, output = await asyncio.to_thread(Command(*words[1:], env=environment(settings), cwd=tmp_path).ended)
        assert ended == code, (command, output)
        return output

    for command in "".join(blocks("docs/usage.md", "sh usage")).strip().splitlines():
        await ends(command, 0)
    export(core.events())  # Core has the answer's own event only, while two corrections were made
    *before, last = "".join(blocks("docs/usage.md", "sh usage reconcile")).strip().splitlines()
    for command in before:
        assert "provider_figures_differ" in await ends(command, 1)
    await core.reaches(5)
    export(core.events())
    assert await ends(last, 0) == "no difference\n"


@pytest.mark.slow
def test_the_fake_core_of_the_operations_page_starts_and_its_words_are_all_told(tmp_path: Path) -> None:
    [example] = blocks("docs/operations.md", "sh core")
    program, *arguments = shlex.split(example)
    assert program == "turnstone"
    with running(Command(*arguments, "--port", "0", env={}, cwd=tmp_path)) as core:
        core.wait_for_line("http://127.0.0.1:")
    assert (tmp_path / "core.jsonl").exists()
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    told = re.findall(r"`([a-z-]+|\d{3})(?:=\d+)?:0\.1`", page[page.index("## A Core to try it with") :])
    assert {word for word in told if not word.isdigit()} == set(WORDS) - {"NNN"}
    for word in set(told):
        Chaos(f"{word}:0.1")
    for phases in re.findall(r"`(down \d+s then [^`]+)`", page):
        Chaos(phases)


def test_metrics_of_the_operations_page_exist(service: Service) -> None:
    exposed = run(["curl", "-s", f"{service.url}/metrics"]).stdout
    page = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(turnstone_[a-z_]+)", page)) - {"turnstone_callbacks"}
    assert len(named) > 10
    for name in named:
        assert re.search(rf"^# TYPE {name.removesuffix('_total')}", exposed, re.MULTILINE), name


def test_alerts_ask_for_metrics_that_exist_and_say_what_to_do(service: Service) -> None:
    exposed = run(["curl", "-s", f"{service.url}/metrics"]).stdout
    [group] = yaml.safe_load((ROOT / "deploy/prometheus-alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert rule["annotations"]["summary"] and rule["annotations"]["remedy"], rule["alert"]
        names = re.findall(r"turnstone_[a-z_]+", rule["expr"])
        assert names, rule["alert"]
        for name in names:
            assert re.search(rf"^# TYPE {name.removesuffix('_total')}", exposed, re.MULTILINE), name


def test_deployments_set_what_there_is_to_set() -> None:
    known = documented_settings()
    composed = sorted((ROOT / "deploy").glob("compose*.yaml"))
    files = [ROOT / "deploy/Dockerfile", *composed, *(ROOT / "deploy/kubernetes").iterdir()]
    for file in files:
        names = set(re.findall(r"TURNSTONE_[A-Z_]+", file.read_text()))
        assert names and names <= set(known), file.name
        if file.suffix == ".yaml":
            assert all(isinstance(part, dict) for part in yaml.safe_load_all(file.read_text()))


@pytest.mark.slow
def test_commands_and_examples_of_the_evaluation_page_work(settings: Settings, tmp_path: Path) -> None:
    env = {"TURNSTONE_DATABASE__URL": str(settings.database.url), "TURNSTONE_DATA_DIR": str(tmp_path)}
    said = {}
    for command in filter(None, "\n".join(blocks("docs/evaluation.md", "sh")).splitlines()):
        done = run(["bash", "-c", f"cd {tmp_path} && {command}"], **env)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said[command] = done.stdout
    [example] = blocks("docs/evaluation.md", "python")
    done = run([sys.executable, "-c", example])
    assert done.returncode == 0, done.stderr
    assert [said["turnstone rubric diff compat-2026 v2"], done.stdout] == blocks("docs/evaluation.md", "text")
    assert said["turnstone rubric diff v2 mine.yaml"] == "grades.A: at_least 90 → at_least 92\n"


@pytest.mark.slow
def test_the_example_of_the_problems_page_works(service: Service, settings: Settings, tmp_path: Path) -> None:
    [example] = blocks("docs/problems.md", "json problem")
    (tmp_path / "problem.json").write_text(example, encoding="utf-8")
    commands = "\n".join(blocks("docs/problems.md", "sh problems") + blocks("docs/problems.md", "sh")).splitlines()
    env = {"TURNSTONE_DATABASE__URL": str(settings.database.url), "TURNSTONE": service.url}
    said = []
    for command in filter(None, commands):
        done = run(["bash", "-c", f"cd {tmp_path} && {command}"], **env)
        if "runner_unavailable" in done.stdout:
            pytest.skip("no sandboxes here")
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        said.append(done.stdout)
    assert json.loads(said[1])["verification"]["references"][0]["cases"] == 3
    assert json.loads(said[2])["title"] == "Longest run"
    assert [entry["version"] for entry in json.loads(said[3])["items"]] == [1]
    assert said[5].startswith("python passes 3 cases")


def test_the_tables_of_the_problems_page_are_complete() -> None:
    page = (ROOT / "docs/problems.md").read_text(encoding="utf-8")

    def named(heading: str) -> list[str]:
        rows = page[page.index(heading) :].partition("\n\n")[0].splitlines()[2:]
        return [name for row in rows for name in re.findall(r"`(\w+)`", row.split(" | ")[0])]

    assert named("| field | meaning |") == list(Problem.model_fields)
    assert named("| limit | of one run |") == list(ProblemLimits.model_fields)
    assert set(named("| verdict | |")) == set(CaseVerdict)
    written = [
        json.loads(found)
        for found in re.findall(r"^\| `(\{\"kind\": (?:\"exact|\"tokens|\"floats).*?\})`", page, re.MULTILINE)
    ]
    checker: TypeAdapter[Any] = TypeAdapter(Checker)
    assert [checker.validate_python(one).kind for one in written] == list(CHECKERS[:3])


def test_keys_and_places_of_the_evaluation_page_are_all_there_are() -> None:
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    table = page[page.index("| key of a policy |") : page.index("## A rubric of your own")]
    named = [
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert named == list(yaml.safe_load(shipped("policy", "v2")))
    assert set(re.findall(r"`\{\{(\w+)\}\}`", page)) == {*PLACEHOLDERS, *REVIEW_PLACEHOLDERS}


async def test_the_table_of_an_analysis_is_complete() -> None:
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    table = page[page.index("| key of an analysis |") : page.index("### Languages")]
    named = [
        name for row in re.findall(r"^\| (`[^|]+) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    ]
    assert named == list(await analyse("python", "x = 1\n"))
