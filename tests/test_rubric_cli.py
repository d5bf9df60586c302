"""``turnstone rubric``: what it says, where, and how it ends; with a database only where one is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from app.domain.documents import content_hash, shipped
from tests.conftest import Rows
from tests.support.chat import Command

POLICY = shipped("policy", "v2")
Run = Callable[..., str]


@pytest.fixture
def turnstone(tmp_path: Path) -> Run:
    """Runs a command that must need neither a database nor settings; returns all it said."""

    def run(*arguments: str, code: int = 0, **env: str) -> str:
        nowhere = {"TURNSTONE_DATA_DIR": str(tmp_path / "none"), "TURNSTONE_LEASE_S": "no number"}
        ended, output = Command("rubric", *arguments, env={**nowhere, **env}).ended()
        assert ended == code, output
        assert "Traceback" not in output
        return str(output)

    return run


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> dict[str, str]:
    """The environment of a command beside a database."""
    url = make_url(database_url).render_as_string(hide_password=False)
    return {"TURNSTONE_DATABASE__URL": url, "TURNSTONE_DATA_DIR": str(tmp_path), "TURNSTONE_LEASE_S": "6"}


def test_what_is_shipped_is_listed_and_shown(turnstone: Run) -> None:
    listed = turnstone("list")
    for kind, name in [
        ("rubric", "standard"),
        ("prompt", "judge.ko"),
        ("prompt", "review.ko"),
        ("policy", "compat-2026"),
    ]:
        assert f"{content_hash(shipped(kind, name))}  {kind:<6}  {name}" in listed  # type: ignore[arg-type]
    assert [json.loads(line)["name"] for line in turnstone("list", "--kind", "policy", "--json").splitlines()] == [
        "compat-2026",
        "v2",
    ]
    for which in ("v2", content_hash(POLICY), content_hash(POLICY)[:8]):
        shown = json.loads(turnstone("show", which, "--json"))
        assert shown == {"kind": "policy", "name": "v2", "hash": content_hash(POLICY), "content": POLICY}
    assert f"turnstone: policy v2, {content_hash(POLICY)}" in turnstone("show", "v2")
    assert "프롬프트" in turnstone("show", "judge.ko")


def test_a_file_without_faults(turnstone: Run, tmp_path: Path) -> None:
    for kind, name, ending in [
        ("policy", "v2", "yaml"),
        ("rubric", "standard", "yaml"),
        ("prompt", "judge.en", "md"),
        ("prompt", "review.ko", "md"),
    ]:
        file = tmp_path / f"mine.{ending}"
        file.write_bytes(shipped(kind, name).replace("\n", "\r\n").encode())  # type: ignore[arg-type]
        title = "mine" if kind == "prompt" else name
        key = content_hash(file.read_bytes().decode())
        assert f"a {kind} without faults, {title}, {key}" in turnstone("lint", str(file))
        assert turnstone("lint", str(file), "--kind", kind)


def test_every_fault_of_a_file_is_told_with_its_line(turnstone: Run, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(POLICY.replace("samples: 3", "samples: 0").replace("R2: 2", "R9: 2"), encoding="utf-8")
    told = turnstone("lint", str(file), code=1)
    assert f"{file}:8: samples: must be from 1 to 9, and is 0\n" in told
    assert f"{file}:21: criteria.DEBUGGING.R9: is not known here; there is R1, R2, R3, R4\n" in told
    assert f"turnstone: {file} has 2 problems." in told
    for command in (["show", str(file)], ["diff", "v2", str(file)], ["store", str(file)]):
        assert "has 2 problems" in turnstone(*command, code=1)


def test_what_is_no_document_is_told_plainly(turnstone: Run, tmp_path: Path) -> None:
    file = tmp_path / "strange.yaml"
    for content, told in [
        (b"", "is empty"),
        (b"name: x\n", "kind: must say `kind: rubric` or `kind: policy`"),
        (b"[1, 2]", "must be a mapping"),
        (b"\xff\xfe", "no text in UTF-8"),
        (b"kind: [", "is not YAML"),
        (b"x" * 1_000_000, "has more than 200000 characters"),
    ]:
        file.write_bytes(content)
        assert told in turnstone("lint", str(file), code=1)
    file.write_text(POLICY, encoding="utf-8")
    assert "kind: must be rubric" in turnstone("lint", str(file), "--kind", "rubric", code=1)
    assert "is none of rubric, prompt, policy" in turnstone("lint", str(file), "--kind", "poem", code=2)
    assert "does not exist" in turnstone("lint", str(tmp_path / "none.yaml"), code=2)
    assert "is neither a shipped document nor a hash nor a file" in turnstone("show", "v3", code=1)
    assert "names no file that can be read: File name too long" in turnstone("show", "x" * 300, code=1)


def test_differences_are_told_by_meaning(turnstone: Run, tmp_path: Path) -> None:
    told = turnstone("diff", "compat-2026", "v2")
    assert told.splitlines() == ["refused: 0 → left_out", "rounding.turn: 2 → –", "rounding.total: 2 → –"]
    [first, *_] = [json.loads(line) for line in turnstone("diff", "v2", "compat-2026", "--json").splitlines()]
    assert first == {"path": "refused", "before": "left_out", "after": "0"}
    mine = tmp_path / "mine.yaml"
    mine.write_text(shipped("rubric", "standard").replace("It cannot be told what", "Nobody can tell what"))
    assert turnstone("diff", "standard", str(mine)).splitlines() == [
        "en.criteria.R2.anchors.1:",
        "  - It cannot be told what is wanted.",
        "  + Nobody can tell what is wanted.",
    ]
    mine.write_text(POLICY.replace("name: v2", "name: mine"))
    assert "no difference in meaning" in turnstone("diff", "v2", str(mine))
    assert "the same document" in turnstone("diff", "v2", content_hash(POLICY))
    assert "they cannot be compared" in turnstone("diff", "v2", "standard", code=2).replace("\n", " ")


def test_ones_own_is_stored_and_found_by_its_hash(
    turnstone: Run, place: dict[str, str], rows: Rows, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    mine = POLICY.replace("name: v2", "name: mine").replace("pasted_problem: 30", "pasted_problem: 20")
    file.write_text(mine, encoding="utf-8")
    key = content_hash(mine)
    for _ in range(2):
        assert turnstone("store", str(file), **place).strip() == key
    assert rows.one("SELECT hash, kind, name, content FROM evaluation_documents") == {
        "hash": key,
        "kind": "policy",
        "name": "mine",
        "content": mine,
    }
    assert json.loads(turnstone("show", key, "--json", **place))["content"] == mine
    assert turnstone("diff", "v2", key[:8], **place).splitlines() == ["pasted_problem: 30 → 20"]
    assert f"{key}  policy  mine  stored 20" in turnstone("list", "--stored", **place)
    assert turnstone("list", "--stored", "--kind", "rubric", **place) == ""
    assert "No stored document has the hash 00000000" in turnstone("show", "00000000", code=1, **place)
    named = tmp_path / "My prompt.md"
    named.write_text(shipped("prompt", "judge.en"), encoding="utf-8")
    assert "name: must look like" in turnstone("store", str(named), code=1, **place)


def test_a_hash_needs_a_database(turnstone: Run, tmp_path: Path) -> None:
    env = {"TURNSTONE_LEASE_S": "6"}
    assert "There is no database in" in turnstone("show", "0" * 64, code=1, **env)
