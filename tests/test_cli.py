"""The command line, beside a service that runs on the embedded database."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app import __version__
from app.cli import cli
from tests.support.chat import Command, connect, new_pair, processes_of, wait_until
from tests.support.core import Answer, FakeCore
from tests.support.provider import Provider
from tests.support.service import ServiceProcess, running

SAID = "한글 says \x1b[31mred"


@dataclass
class Place:
    """A service on an embedded database, with one session of two turns whose callbacks Core refuses for good."""

    env: dict[str, str]
    data_dir: Path
    core: FakeCore
    process: ServiceProcess
    session_id: str

    def run(self, *arguments: str, code: int = 0) -> str:
        ended, output = Command(*arguments, env=self.env).ended()
        assert ended == code, output
        assert "Traceback" not in output
        return output

    def lines(self, *arguments: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(*arguments, "--json").splitlines()]


@pytest.fixture(scope="module")
def place(scratch: Path) -> Iterator[Place]:
    data_dir = scratch / "cli"
    with Provider() as provider, FakeCore() as core:
        core.always(Answer(status=410))
        env = {
            "TURNSTONE_DATA_DIR": str(data_dir),
            "TURNSTONE_PORT": "0",
            "TURNSTONE_LLM__MODEL": "openai:scripted",
            "TURNSTONE_LLM__BASE_URL": provider.base_url,
            "TURNSTONE_CALLBACKS__URL": core.callback_url,
        }
        with running(Command("serve", env=env)) as process:
            process.wait_ready()
            session_id = asyncio.run(_talk(process.url))
            core.wait_for(lambda posts: len(posts) == 4)
            opened = Place(env, data_dir, core, process, session_id)
            wait_until(lambda: len(opened.lines("callbacks", "list", "--status", "failed")) == 4)
            yield opened
            assert process.stop() == 0
    assert processes_of(data_dir) == []


async def _talk(url: str) -> str:
    pair = new_pair()
    async with connect(url) as chat:
        first = await chat.ask(SAID, "t1", **pair)
        await chat.ask("And then?", 2, **pair)
    session_id: str = first.started["session_id"]
    return session_id


def test_sessions_are_listed_for_people_and_for_programs(place: Place) -> None:
    assert f"{place.session_id}  exam 1 participant" in place.run("sessions", "list")
    (session,) = place.lines("sessions", "list")
    assert (session["id"], session["exam_id"], session["ended_at"]) == (place.session_id, 1, None)
    assert session["total_tokens"] > 0
    assert place.lines("sessions", "list", "--exam", "2") == []
    assert place.lines("sessions", "list", "--exam", "1", "--participant", str(session["participant_id"])) == [session]


def test_a_session_is_shown(place: Place) -> None:
    shown = place.run("sessions", "show", place.session_id)
    assert "한글 says" in shown
    assert "[2] user" in shown
    assert "[2] assistant" in shown
    assert "A turnstone turns stones over: 작은 새 🐦." in shown


def test_a_session_is_exported_whole(place: Place, tmp_path: Path) -> None:
    exported = json.loads(place.run("sessions", "export", place.session_id))
    assert exported["session"]["id"] == place.session_id
    assert [(m["turn"], m["turn_id"], m["role"]) for m in exported["messages"]] == [
        (1, "t1", "USER"),
        (1, "t1", "ASSISTANT"),
        (2, 2, "USER"),
        (2, 2, "ASSISTANT"),
    ]
    assert exported["messages"][0]["content"] == SAID
    assert [event["callback_seq"] for event in exported["callbacks"]] == [1, 2, 3, 4]
    file = tmp_path / "session.json"
    assert place.run("sessions", "export", place.session_id, "--output", str(file)) == ""
    assert json.loads(file.read_text(encoding="utf-8")) == exported
    assert "cannot be written" in place.run("sessions", "export", place.session_id, "-o", str(tmp_path), code=1)


def test_callbacks_are_listed_and_shown(place: Place) -> None:
    listed = place.lines("callbacks", "list", "--type", "usage")
    assert [(c["type"], c["callback_seq"]) for c in listed] == [("usage", 1), ("usage", 3)]
    shown = json.loads(place.run("callbacks", "show", listed[0]["id"]))
    assert shown == listed[0]
    assert shown["payload"]["session_id"] == place.session_id
    line = place.run("callbacks", "list", "--session", place.session_id, "--limit", "1")
    assert listed[0]["id"] in line
    assert len(line.splitlines()) == 1


def test_a_replayed_callback_is_delivered_by_the_running_service_under_its_old_id(place: Place) -> None:
    (event, *_) = place.lines("callbacks", "list", "--type", "message_response")
    place.core.deliveries.clear()
    place.core.always(Answer())
    assert event["id"] in place.run("callbacks", "replay", event["id"])
    (delivery,) = place.core.wait_for(1)
    assert (delivery.id, delivery.seq) == (event["id"], event["callback_seq"])
    wait_until(lambda: json.loads(place.run("callbacks", "show", event["id"]))["status"] == "delivered")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sessions", "show", "123456"),
        ("sessions", "export", "123456"),
        ("callbacks", "show", "evt_none"),
        ("callbacks", "replay", "evt_none"),
    ],
)
def test_what_does_not_exist_is_told_with_the_way_to_find_it(place: Place, arguments: tuple[str, ...]) -> None:
    output = place.run(*arguments, code=1)
    assert f"There is no {arguments[0].rstrip('s')} {arguments[-1]}." in output
    assert f"turnstone {arguments[0]} list" in output


def test_migrate_may_run_beside_the_service(place: Place) -> None:
    assert "up to date" in place.run("migrate")


def test_no_command_stops_the_database_of_the_running_service(place: Place) -> None:
    before = {process.pid for process in processes_of(place.data_dir)}
    place.run("sessions", "list")
    after = {process.pid for process in processes_of(place.data_dir)}
    assert place.process.process.pid in before & after
    assert len(before & after) > 2
    assert place.process.process.poll() is None


COMMANDS = [
    (),
    ("serve",),
    ("worker",),
    ("demo",),
    ("migrate",),
    ("doctor",),
    ("version",),
    ("sessions",),
    ("sessions", "list"),
    ("sessions", "show"),
    ("sessions", "export"),
    ("callbacks",),
    ("callbacks", "list"),
    ("callbacks", "show"),
    ("callbacks", "replay"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_refuses_what_it_does_not_know(command: tuple[str, ...]) -> None:
    explained = CliRunner().invoke(cli, [*command, "--help"])
    assert explained.exit_code == 0
    assert "Usage:" in explained.output
    assert CliRunner().invoke(cli, [*command, "--nonsense"]).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("serve", "--port", "70000"),
        ("sessions", "show"),
        ("sessions", "show", "one"),
        ("sessions", "show", str(2**63)),
        ("sessions", "list", "--exam", str(2**63)),
        ("callbacks", "list", "--status", "lost"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, arguments).exit_code == 2


def test_the_installed_command_prints_its_version() -> None:
    script = Path(sys.executable).with_name("turnstone")
    printed = subprocess.run([script, "version"], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.strip() == __version__
