"""The command line, beside a service that runs on the embedded database."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from app import __version__
from app.application.services.callback_service import CallbackService
from app.cli import cli
from app.cli.callbacks import Status
from app.core.settings import Settings
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import Database, get_db_context
from app.infrastructure.repositories.session_repository import SessionRepository
from tests.support.chat import Command, connect, environment, new_pair, processes_of, wait_until
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
            core.wait_for(lambda posts: len(posts) >= 4)
            opened = Place(env, data_dir, core, process, session_id)
            wait_until(lambda: len(opened.lines("callbacks", "list", "--status", "failed")) == 4, 60)
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
    assert [(one["number"], one["status"]) for one in shown.pop("tries")] == [(1, 410)]
    assert shown == listed[0]
    assert shown["payload"]["session_id"] == place.session_id
    line = place.run("callbacks", "list", "--session", place.session_id, "--limit", "1")
    assert listed[0]["id"] in line
    assert "  1 try  " in line
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


@pytest.mark.parametrize("command", ["show", "replay"])
def test_an_argument_that_is_no_text_is_not_found(place: Place, command: str) -> None:
    """What a shell makes of $'a\\x80b'."""
    assert r"There is no callback a\udc80b." in place.run("callbacks", command, "a\udc80b", code=1)
    assert place.run("callbacks", "list", "--type", "a\udc80b") == ""


async def test_a_replayed_callback_that_is_held_stays_so_and_says_so(database: Database, settings: Settings) -> None:
    async with get_db_context() as db:
        session_id = (await SessionRepository(db).create_session(**new_pair())).id
        await CallbackService(db, held=True).send_error(session_id, "internal", "held")
    env = environment(settings)
    _, listed = await asyncio.to_thread(Command("callbacks", "list", "--json", env=env).ended)
    event_id = json.loads(listed)["id"]
    code, output = await asyncio.to_thread(Command("callbacks", "replay", event_id, env=env).ended)
    assert (code, output) == (0, f"{event_id}  held\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("sessions", "list"),
        ("sessions", "show", "1"),
        ("sessions", "export", "1"),
        ("callbacks", "list"),
        ("callbacks", "show", "evt_none"),
        ("callbacks", "replay", "evt_none"),
        ("usage", "report"),
        ("usage", "calls", "1"),
        ("usage", "adjust", "--call", "1", "--prompt-tokens", "1", "--reason", "r"),
        ("usage", "reconcile", "--core-export", "none.csv"),
    ],
)
def test_a_command_that_looks_makes_no_database(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    code, output = Command(*arguments, env={}, cwd=tmp_path).ended()
    assert code == 1
    assert f"There is no database in {tmp_path}/.turnstone." in output
    for way in ("TURNSTONE_DATA_DIR", "TURNSTONE_DATABASE__URL", "turnstone serve"):
        assert way in output
    assert list(tmp_path.iterdir()) == []


def test_what_a_terminal_cannot_show_is_no_failure(place: Place) -> None:
    script = Path(sys.executable).with_name("turnstone")
    shown = subprocess.run(
        [script, "sessions", "show", place.session_id],
        env={**place.env, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert rb"\ud55c\uae00 says" in shown.stdout


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
    ("usage",),
    ("usage", "report"),
    ("usage", "calls"),
    ("usage", "adjust"),
    ("usage", "reconcile"),
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


MODULES = """
import sys
from app.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
print("modules", *sys.modules)
"""


def loaded_by(*arguments: str, env: dict[str, str] | None = None) -> set[str]:
    """The packages that a command has loaded when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", MODULES, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split("modules ")[-1].split()}


SLOW = {"langgraph", "langchain_core", "openai", "fastapi", "uvicorn", "aiohttp"}


@pytest.mark.parametrize("arguments", [("--help",), ("version",), ("serve", "--help"), ("callbacks", "list", "--help")])
def test_a_command_that_runs_nothing_loads_nothing(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & {*SLOW, "sqlalchemy", "psycopg", "pydantic_settings", "structlog"}


@pytest.mark.parametrize("what", [("sessions", "list"), ("callbacks", "list"), ("usage", "report")])
def test_a_list_is_shown_without_loading_the_service(place: Place, what: tuple[str, str]) -> None:
    loaded = loaded_by(*what, env=place.env)
    assert "sqlalchemy" in loaded
    assert not loaded & SLOW


def test_the_states_of_callbacks_are_those_of_the_database() -> None:
    assert get_args(Status) == tuple(CallbackStatusEnum)


def test_the_installed_command_prints_its_version() -> None:
    script = Path(sys.executable).with_name("turnstone")
    printed = subprocess.run([script, "version"], capture_output=True, text=True, timeout=60, check=True)
    assert printed.stdout.strip() == __version__
