"""Problems over HTTP and by command: accepted only once their own solutions pass, versions, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.application.services import problem_service
from app.core.errors import ErrorCode, TurnstoneError
from app.core.settings import Settings
from app.domain.problem import Problem
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.problem_repository import ProblemRepository
from tests.conftest import Rows
from tests.support.chat import Command, environment
from tests.support.packages import LEGACY, changed, write_folder
from tests.support.problems import SUM
from tests.support.service import Service
from tests.test_openapi import checked_client

PATH = "/api/problems/7"
WRONG = {"language": "python", "source": "a, b = map(int, input().split())\nprint(abs(a) + abs(b))\n"}
LARGE = {"name": "large", "input": "1 1\n", "output": "2\n" + " " * 4_000_000}


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    """Where references are run."""
    with checked_client(service) as opened:
        if opened.put("/api/problems/1", json=SUM).json().get("code") == "runner_unavailable":
            pytest.skip("no sandboxes here")
        yield opened


@pytest.fixture
def unrun(start: Callable[..., Service]) -> Iterator[httpx.Client]:
    """Where nothing can be run."""
    with checked_client(start(runner={"backend": "none"})) as opened:
        yield opened


def stored(rows: Rows) -> list[tuple[int, int]]:
    found = rows("SELECT spec_id, version FROM problem_versions WHERE spec_id <> 1 ORDER BY spec_id, version")
    return [(row["spec_id"], row["version"]) for row in found]


def test_a_problem_is_put_shown_and_changed_and_only_what_is_new_is_run(
    rest: httpx.Client, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rest.put(PATH, json=SUM)
    assert first.status_code == 201, first.text
    accepted = first.json()
    assert {name: accepted[name] for name in ("spec_id", "version", "title", "cases")} == {
        "spec_id": 7,
        "version": 1,
        "title": "Sum",
        "cases": 3,
    }
    assert accepted["hash"] == Problem.parse(SUM).content_hash
    [figures] = accepted["verification"]["references"]
    assert (figures["language"], figures["cases"]) == ("python", 3) and figures["cpu_ms"] > 0
    assert accepted["verification"]["isolation"]["backend"] == "bubblewrap"

    changed_one = {**SUM, "title": "Sums"}
    second = rest.put(PATH, json=changed_one)
    assert (second.status_code, second.json()["version"]) == (200, 2)
    shown = rest.get(PATH).json()
    assert {name: shown[name] for name in ("spec_id", "version", "title")} == {
        "spec_id": 7,
        "version": 2,
        "title": "Sums",
    }
    assert {name: shown[name] for name in Problem.model_fields} == Problem.parse(changed_one).to_json()
    assert rest.get(PATH, params={"version": 1}).json()["title"] == "Sum"
    assert [entry["version"] for entry in rest.get(f"{PATH}/versions").json()["items"]] == [1, 2]
    part = rest.get(f"{PATH}/versions", params={"limit": 1}).json()
    assert ([entry["version"] for entry in part["items"]], part["next"]) == ([1], "1")
    assert stored(rows) == [(7, 1), (7, 2)]

    asked: list[Problem] = []
    real = problem_service.verify

    async def watched(runner: Any, problem: Problem, isolation: Any) -> Any:
        asked.append(problem)
        return await real(runner, problem, isolation)

    monkeypatch.setattr(problem_service, "verify", watched)
    again = rest.put("/api/problems/1", json={**SUM, "limits": {"cpu_s": 2.0}})
    assert (again.status_code, again.json()["version"]) == (200, 1)
    assert asked == []
    assert rest.put(PATH, json=SUM).json()["version"] == 3, "what it was once is not what it is"
    assert len(asked) == 1


@pytest.mark.slow
def test_a_reference_that_does_not_pass_is_told_case_by_case(rest: httpx.Client, rows: Rows) -> None:
    response = rest.put(PATH, json={**SUM, "references": [*SUM["references"], WRONG]})
    assert response.status_code == 422
    problem = response.json()
    assert (problem["code"], problem["retryable"]) == ("reference_failed", False)
    assert problem["detail"].startswith(
        "A reference has to pass every test case: references[1] (python), case 2: WA, token 1 differs ("
    )
    assert "case 1" not in problem["detail"] and "case 3" not in problem["detail"]
    slow = {"language": "python", "source": "while True: pass\n"}
    tight = {"cpu_s": 0.2}
    problem = rest.put(PATH, json={**SUM, "references": [slow], "limits": tight}).json()
    assert problem["detail"].count("TLE") == 3
    broken = {"language": "python", "source": "print(\n"}
    problem = rest.put(PATH, json={**SUM, "references": [broken]}).json()
    assert problem["code"] == "reference_failed" and "references[0] (python): " in problem["detail"]
    many = [{"name": f"c{n}", "input": f"{-n} 1\n", "output": f"{1 - n}\n"} for n in range(1, 20)]
    problem = rest.put(PATH, json={**SUM, "cases": many, "references": [WRONG]}).json()
    assert problem["detail"].endswith("; and 9 more") and len(problem["detail"]) < 2_000
    # and there is no way round
    refused = {**SUM, "references": [WRONG]}
    for query in ("verify=false", "verify=0", "dry_run=true", "force=1"):
        assert rest.put(f"{PATH}?{query}", json=refused).status_code == 422
    for member in ("verify", "verification", "version", "spec_id"):
        assert rest.put(PATH, json={**refused, member: False}).status_code == 422
    assert stored(rows) == []


def test_a_problem_with_faults_is_refused_with_their_places(unrun: httpx.Client, rows: Rows) -> None:
    response = unrun.put(
        PATH, json={**SUM, "cases": [{"name": "a", "input": "1"}], "title": "", "languages": ["cobol"]}
    )
    assert response.status_code == 422
    for place in ("body.cases.0.output: ", "body.title: ", "body.languages.0: "):
        assert place in response.json()["detail"]
    response = unrun.put(PATH, json={**SUM, "starter_code": {"go": "x"}})
    assert "starter_code.go: go is none of the problem's languages" in response.json()["detail"]
    for odd in (b"[]", b"{", b'{"cases": [{"input": "\\ud800"}]}', b"null"):
        assert unrun.put(PATH, content=odd, headers={"Content-Type": "application/json"}).status_code == 422
    assert stored(rows) == []


def test_what_is_not_there_and_odd_numbers_are_told(unrun: httpx.Client) -> None:
    for path in ("/api/problems/99", "/api/problems/99/versions", "/api/problems/99?version=2"):
        assert unrun.get(path).status_code == 404, path
    for path in ("/api/problems/0", "/api/problems/x", f"/api/problems/{2**63}", "/api/problems/1?version=0"):
        assert unrun.get(path).status_code == 422, path


def test_without_a_runner_nothing_is_accepted_and_it_may_be_tried_again(unrun: httpx.Client, rows: Rows) -> None:
    response = unrun.put(PATH, json=SUM)
    assert response.status_code == 503
    assert (response.json()["code"], response.json()["retryable"]) == ("runner_unavailable", True)
    assert int(response.headers["retry-after"]) >= 1
    assert stored(rows) == []


def test_a_large_problem_has_a_limit_of_its_own(start: Callable[..., Service]) -> None:
    service = start(runner={"backend": "none"}, limits={"frame_bytes": 100_000, "problem_bytes": 5_000_000})
    with checked_client(service) as http:
        large = {**SUM, "cases": [LARGE]}
        assert http.put(PATH, json=large).json()["code"] == "runner_unavailable", "it was read"
        assert http.put(PATH, json={**SUM, "cases": [LARGE, LARGE]}).status_code == 413
        assert http.put("/api/exams/1", json={"problem_text": "x" * 200_000}).status_code == 413


async def test_two_at_once_make_one_version_of_the_same_and_two_of_two(database: Database) -> None:
    import asyncio

    async def put(title: str) -> int:
        async with get_db_context() as db:
            version, _ = await ProblemRepository(db).put(5, Problem.parse({**SUM, "title": title}), {"references": []})
            await asyncio.sleep(0.05)
            return version.version

    assert await asyncio.gather(put("a"), put("a"), put("a")) == [1, 1, 1]
    assert sorted(await asyncio.gather(put("b"), put("c"))) == [2, 3]
    assert await put("a") == 4, "what it was before is a new version"
    async with get_db_context() as db:
        found = await ProblemRepository(db).problem(5, 1)
        assert found == Problem.parse({**SUM, "title": "a"})
        assert [entry.version for entry in await ProblemRepository(db).list_versions(5, after=1)] == [2, 3, 4]
        [listed] = await ProblemRepository(db).list_problems()
        assert (listed.spec_id, listed.version, listed.title) == (5, 4, "a")


async def test_patterns_that_cannot_be_used_are_named_before_anything_runs(database: Database) -> None:
    patterns = [
        {"id": "no-loop", "language": "python", "message": "It has to recur.", "rule": {"kind": "for_statement"}},
        {"id": "no-such", "language": "python", "message": "", "rule": {"kind": "no_such_kind"}},
    ]
    problem = Problem.parse({**SUM, "patterns": patterns})
    with pytest.raises(TurnstoneError, match=r"patterns\[1\]") as raised:
        await problem_service.ProblemService(None).put(1, problem)
    assert raised.value.code is ErrorCode.INVALID_FRAME


# ---------------------------------------------------------------- commands


def turnstone(*words: str, settings: Settings, cwd: Path, **env: str) -> tuple[int, str]:
    return Command(*words, env={**environment(settings), **env}, cwd=cwd).ended()


@pytest.mark.slow
def test_commands_lint_import_show_list_and_verify(service: Service, settings: Settings, tmp_path: Path) -> None:
    def run(*words: str, **env: str) -> tuple[int, str]:
        return turnstone("problem", *words, settings=settings, cwd=tmp_path, **env)

    write_folder(tmp_path / "pair", LEGACY)
    write_folder(tmp_path / "wrong", changed(LEGACY, **{"data/secret/01.ans": "7\n"}))
    write_folder(tmp_path / "broken", changed(LEGACY, **{"data/secret/01.ans": None}))
    code, told = run("import", "pair", "--spec-id", "3")
    if "cannot be run now" in told:
        pytest.skip("no sandboxes here")
    assert code == 0, told
    assert "problem 3, version 1" in told and "warning: submissions/accepted/pair.hs: is not imported" in told
    code, told = run("import", "wrong", "--spec-id", "4")
    assert code == 1, told
    assert "references[0] (python), case secret/01: WA, token 1 differs" in told and "nothing was stored" in told
    code, told = run("import", "broken")
    assert code == 1 and "broken: data/secret/01.ans: is missing" in told and "one fault" in told
    code, told = run("import", "pair", "--dry-run")
    assert code == 0 and "python passes 3 cases" in told
    code, told = run("import", "pair", "--spec-id", "5", TURNSTONE_RUNNER__BACKEND="none")
    assert code == 1 and "nothing was stored" in told
    assert run("list")[1].splitlines()[-1].startswith("3  v1  ")
    code, told = run("show", "3")
    assert code == 0 and "“Nearest Pair”, 3 test cases" in told and "secret/large/02" in told
    code, told = run("show", "3", "--json")
    (tmp_path / "problem.json").write_text(told.splitlines()[-1])
    code, told = run("lint", "problem.json")
    assert code == 0 and "a problem without faults" in told
    (tmp_path / "bad.json").write_text(json.dumps({**SUM, "title": "", "more": 1}))
    code, told = run("lint", "bad.json")
    assert code == 1 and "bad.json: title: " in told and "bad.json: more: is not known here" in told
    code, told = run("verify", "3")
    assert code == 0 and "python passes 3 cases" in told
    code, told = run("show", "99")
    assert code == 1 and "There is no problem 99." in told
