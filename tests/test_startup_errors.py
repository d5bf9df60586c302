"""What cannot work is said at the start: one clear line, what to do about it, exit code 1, and no secret."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from aiohttp import web
from sqlalchemy import make_url

from tests.support.chat import Command
from tests.support.core import FakeCore
from tests.support.provider import Provider
from tests.support.servers import AppThread
from tests.support.service import running

HIDDEN = "hunter2-must-not-be-shown"


@pytest.fixture(scope="module")
def working(postgres: str, template: str, scratch: Path) -> Iterator[dict[str, str]]:
    """A process with these variables starts."""
    with (
        Provider() as provider,
        FakeCore() as core,
        psycopg.connect(postgres, autocommit=True) as connection,
    ):
        connection.execute(f"CREATE DATABASE startup TEMPLATE {template}")
        yield {
            "TURNSTONE_PORT": "0",
            "TURNSTONE_DATA_DIR": str(scratch / "startup"),
            "TURNSTONE_DATABASE__URL": make_url(postgres).set(database="startup").render_as_string(hide_password=False),
            "TURNSTONE_LLM__MODEL": "openai:scripted",
            "TURNSTONE_LLM__BASE_URL": provider.base_url,
            "TURNSTONE_LLM__API_KEY": "sk-scripted",
            "TURNSTONE_CALLBACKS__URL": core.callback_url,
        }


@pytest.fixture
def env(working: dict[str, str]) -> dict[str, str]:
    """Variables to break."""
    return dict(working)


@pytest.fixture(scope="module")
def taken() -> Iterator[str]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def password_url(postgres: str, scratch: Path) -> Iterator[str]:
    """A user's address with a password that is wrong, on a server that asks for it."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        found = connection.execute("SHOW hba_file").fetchone()
        assert found is not None
        rules = Path(found[0])
        before = rules.read_text()
        connection.execute("CREATE ROLE asked LOGIN PASSWORD 'another'")
        rules.write_text(f"local all asked scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
        yield make_url(postgres).set(username="asked", password=HIDDEN).render_as_string(hide_password=False)
        rules.write_text(before)
        connection.execute("SELECT pg_reload_conf()")
        connection.execute("DROP ROLE asked")


def refused(command: str, env: dict[str, str], cwd: Path | None = None) -> str:
    """What ``command`` says when it ends with exit code 1, in one line and a remedy."""
    with running(Command(command, env=env, cwd=cwd)) as process:
        assert isinstance(process, Command)
        code, output = process.ended()
    assert code == 1, output
    assert "Traceback" not in output
    assert HIDDEN not in output
    lines = output.splitlines()
    assert lines[-2].startswith("turnstone: "), output
    assert lines[-1].startswith("  "), output
    return output


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE__URL", f"postgresql://me:{HIDDEN}@127.0.0.1:1/db", "Connection refused"),
        ("DATABASE__URL", f"postgresql://127.0.0.1:1/db?password={HIDDEN}", "Connection refused"),
        ("DATABASE__URL", f"postgresql://127.0.0.1:1/db?nonsense={HIDDEN}", "nonsense"),
        ("DATABASE__URL", f"postgresql://me:{HIDDEN}@127.0.0.1:port/db", "TURNSTONE_DATABASE__URL: is not a URL"),
        ("DATABASE__URL", f"mysql://me:{HIDDEN}@127.0.0.1/db", "TURNSTONE_DATABASE__URL: must start with postgresql"),
        ("REDIS__URL", "http://127.0.0.1", "TURNSTONE_REDIS__URL: must start with redis://"),
        ("REDIS__URL", "redis://127.0.0.1:port", "TURNSTONE_REDIS__URL: is not a URL"),
        ("LLM__BASE_URL", "ftp://127.0.0.1", "TURNSTONE_LLM__BASE_URL: must start with http"),
        ("LLM__BASE_URL", "http://", "TURNSTONE_LLM__BASE_URL: names no host"),
        ("LLM__BASE_URL", "http://127.0.0.1:port", "TURNSTONE_LLM__BASE_URL: is not a URL"),
        ("LLM__MODEL", "nonsense", "TURNSTONE_LLM__MODEL=nonsense is not a model's name"),
        ("LLM__MODEL", "openai:", "TURNSTONE_LLM__MODEL=openai: is not a model's name"),
        ("LLM__MODEL", "foo:bar", "foo:bar"),
        ("LLM__API_KEY", f"{HIDDEN}\n", "TURNSTONE_LLM__API_KEY: must be of printable"),
        ("LLM__TIMEOUT_S", "inf", "TURNSTONE_LLM__TIMEOUT_S"),
        ("LLM__MODLE", "local", "TURNSTONE_LLM__MODLE is not a setting; TURNSTONE_LLM__MODEL is meant"),
        ("LLM_MODEL", "local", "TURNSTONE_LLM_MODEL is not a setting; TURNSTONE_LLM__MODEL is meant"),
        ("CALLBACK_URL", HIDDEN, "TURNSTONE_CALLBACK_URL is not a setting; TURNSTONE_CALLBACKS__URL is meant"),
        ("LLM", '{"modle": "local"}', "TURNSTONE_LLM__MODLE: is not a setting"),
        ("CALLBACKS__URL", "core.example", "TURNSTONE_CALLBACKS__URL: must start with http"),
        ("CALLBACKS__URL", "http://:80/", "TURNSTONE_CALLBACKS__URL: names no host"),
        ("CALLBACKS__RETRY_DELAYS_S", "[1,", "TURNSTONE_CALLBACKS__RETRY_DELAYS_S: must be a JSON list"),
        ("CALLBACKS__RETRY_DELAYS_S", "1,2", "TURNSTONE_CALLBACKS__RETRY_DELAYS_S: must be a JSON list"),
        ("CALLBACKS__RETRY_DELAYS_S", "[-1]", "TURNSTONE_CALLBACKS__RETRY_DELAYS_S"),
        ("CALLBACKS__RETRY_DELAYS_S", "[1e999]", "TURNSTONE_CALLBACKS__RETRY_DELAYS_S"),
        ("CALLBACKS__SIGNING_SECRET", HIDDEN, "TURNSTONE_CALLBACKS__SIGNING_SECRET: must be a Standard Webhooks"),
        ("CALLBACKS__SIGNING_SECRET", f"whsec_!{HIDDEN}", "TURNSTONE_CALLBACKS__SIGNING_SECRET: must be a Standard"),
        ("CALLBACKS__SIGNING_SECRET", "whsec_", "TURNSTONE_CALLBACKS__SIGNING_SECRET: must be a Standard Webhooks"),
        ("CALLBACKS", HIDDEN, "TURNSTONE_CALLBACKS"),
        ("GUARD__REFUSE", HIDDEN, 'TURNSTONE_GUARD__REFUSE: must be a JSON list, such as ["PROMPT_EXFILTRATION"'),
        ("GUARD__REFUSE", '{"a": 1}', "TURNSTONE_GUARD__REFUSE: must be a JSON list, such as"),
        (
            "GUARD__REFUSE",
            f'["{HIDDEN}"]',
            "TURNSTONE_GUARD__REFUSE: must be 'PROMPT_EXFILTRATION', 'JUDGE_MANIPULATION'",
        ),
        ("AUTH__MODE", "token", "TURNSTONE_AUTH__MODE=token needs TURNSTONE_AUTH__API_KEY"),
        ("HOST", "0.0.0.0", "TURNSTONE_AUTH__MODE=open"),
        ("HOST", "::", "TURNSTONE_AUTH__MODE=open"),
        ("LOG_LEVEL", "loud", "TURNSTONE_LOG_LEVEL"),
    ],
)
def test_a_setting_that_cannot_work_is_named_and_nothing_starts(
    env: dict[str, str], name: str, value: str, said: str
) -> None:
    env[f"TURNSTONE_{name}"] = value
    assert said in refused("serve", env)


def test_a_misspelt_variable_in_the_env_file_is_named_too(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"EDITOR=vi\nTURNSTONE_LLM_API_KEY={HIDDEN}\nTURNSTONE_DATADIR=/x\n")
    said = refused("serve", env, tmp_path)
    assert "TURNSTONE_LLM_API_KEY is not a setting; TURNSTONE_LLM__API_KEY is meant" in said
    assert "TURNSTONE_DATADIR is not a setting; TURNSTONE_DATA_DIR is meant" in said


def test_variables_of_others_are_none_of_ours(env: dict[str, str]) -> None:
    env["TURNSTONE_WS"] = "ws://127.0.0.1:8000/chat"  # the README's example
    env["TURNSTONE_CHROMIUM"] = "/usr/bin/chromium"  # the browser's tests
    env["TURNSTONE_EMPTY"] = ""
    for service in ("TURNSTONE", "TURNSTONE_DB"):  # what Kubernetes tells each pod of services with such names
        env |= {f"{service}_SERVICE_HOST": "10.0.0.7", f"{service}_SERVICE_PORT_HTTP": "80"}
        env |= {f"{service}_PORT_80_TCP_PROTO": "tcp", f"{service}_PORT_80_TCP": "tcp://10.0.0.7:80"}
    env["TURNSTONE_DB_PORT"] = "tcp://10.0.0.7:80"
    code, output = Command("migrate", env=env).ended()
    assert code == 0, output
    assert "variables_are_no_settings" in output and "TURNSTONE_CHROMIUM" in output
    assert "TURNSTONE_EMPTY" not in output and "10.0.0.7" not in output


@pytest.mark.parametrize("port", ["http", "70000", "-1"])
def test_a_port_that_is_none_is_named(env: dict[str, str], port: str) -> None:
    with running(Command("serve", env={**env, "TURNSTONE_HOST": "127.0.0.1"} | {"turnstone_port": port})) as process:
        assert isinstance(process, Command)
        code, output = process.ended()
    assert code == 1
    assert "TURNSTONE_PORT" in output


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "demo", "doctor"])
def test_a_port_that_is_taken_is_told_before_anything_starts(env: dict[str, str], taken: str, command: str) -> None:
    env["TURNSTONE_PORT"] = taken
    with running(Command(command, env=env)) as process:
        assert isinstance(process, Command)
        code, output = process.ended()
    assert code == 1
    assert f"127.0.0.1:{taken} is taken" in output
    assert "TURNSTONE_PORT" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("command", ["serve", "worker", "demo", "migrate"])
def test_a_data_directory_that_cannot_be_written_is_told(env: dict[str, str], tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("in the way")
    del env["TURNSTONE_DATABASE__URL"]
    env["TURNSTONE_DATA_DIR"] = str(tmp_path / "file" / "data")
    assert "TURNSTONE_DATA_DIR" in refused(command, env)


def test_the_local_model_tells_of_a_data_directory_that_cannot_be_written(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    env["TURNSTONE_DATA_DIR"] = str(tmp_path / "file" / "data")
    env["TURNSTONE_LLM__MODEL"] = "local"
    assert str(tmp_path / "file") in refused("serve", env)


@pytest.mark.parametrize("command", ["serve", "worker", "migrate"])
def test_a_wrong_password_is_told_and_not_repeated(env: dict[str, str], password_url: str, command: str) -> None:
    env["TURNSTONE_DATABASE__URL"] = password_url
    assert "password authentication failed" in refused(command, env)


def test_a_database_that_does_not_exist_is_named(env: dict[str, str], postgres: str) -> None:
    env["TURNSTONE_DATABASE__URL"] = make_url(postgres).set(database="nosuch").render_as_string(hide_password=False)
    assert '"nosuch" does not exist' in refused("serve", env)


def test_a_user_who_may_not_make_tables_is_told_so(env: dict[str, str], postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE ROLE guest LOGIN")
        connection.execute("CREATE DATABASE guarded")
        try:
            url = make_url(postgres).set(username="guest", database="guarded")
            env["TURNSTONE_DATABASE__URL"] = url.render_as_string(hide_password=False)
            assert "permission denied" in refused("serve", env)
        finally:
            connection.execute("DROP DATABASE guarded WITH (FORCE)")
            connection.execute("DROP ROLE guest")


def test_a_hosted_model_without_a_key_is_told(env: dict[str, str]) -> None:
    del env["TURNSTONE_LLM__API_KEY"], env["TURNSTONE_LLM__BASE_URL"]
    env["TURNSTONE_LLM__MODEL"] = "openai:gpt-4.1-mini"
    assert "TURNSTONE_LLM__API_KEY" in refused("serve", env)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["serve", "demo"])
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nonsense", "TURNSTONE_LLM__MODEL=nonsense is not a model's name"),
        ("openia:gpt-4", "LangChain cannot make the model openia:gpt-4"),
        ("openai:gpt-4.1-mini", "TURNSTONE_LLM__API_KEY"),
    ],
)
def test_a_model_that_cannot_be_is_told_before_a_database_is_made(
    env: dict[str, str], tmp_path: Path, command: str, model: str, said: str
) -> None:
    del env["TURNSTONE_DATABASE__URL"], env["TURNSTONE_LLM__BASE_URL"], env["TURNSTONE_LLM__API_KEY"]
    env["TURNSTONE_DATA_DIR"] = str(tmp_path / "data")
    env["TURNSTONE_LLM__MODEL"] = model
    assert said in refused(command, env)
    assert list(tmp_path.iterdir()) == []
    code, output = Command("doctor", env=env).ended()
    assert code == 1, output
    assert said in output


def test_an_address_that_nobody_knows_is_told_as_no_network(env: dict[str, str]) -> None:
    env["TURNSTONE_LLM__BASE_URL"] = "http://nosuch.invalid/v1"
    assert "http://nosuch.invalid/v1 cannot be found: there is no network" in refused("serve", env)


@pytest.fixture
def gateway() -> Iterator[str]:
    """An endpoint that guards its list of models."""

    async def refuse(_request: web.Request) -> web.Response:
        return web.Response(status=403)

    def build() -> web.Application:
        app = web.Application()
        app.router.add_get("/v1/models", refuse)
        return app

    with AppThread(build) as server:
        yield f"{server.url}/v1"


@pytest.mark.slow
def test_a_gateway_that_guards_its_list_of_models_is_taken_with_a_warning(env: dict[str, str], gateway: str) -> None:
    env["TURNSTONE_LLM__BASE_URL"] = gateway
    with running(Command("serve", env=env)) as process:
        process.wait_for_line("listening on")
        assert process.stop() == 0
    assert "model_unreachable" in process.output
    assert f"{gateway} refuses the key (HTTP 403) for its list of models" in process.output
    code, output = Command("doctor", env=env).ended()
    assert code == 1
    assert f"FAIL  model: {gateway} refuses the key (HTTP 403)" in output


def test_an_empty_key_is_no_key(env: dict[str, str]) -> None:
    env["TURNSTONE_AUTH__MODE"] = "token"
    env["TURNSTONE_AUTH__API_KEY"] = ""
    assert "needs TURNSTONE_AUTH__API_KEY" in refused("serve", env)


def test_an_empty_variable_is_as_good_as_none(env: dict[str, str]) -> None:
    for name in ("REDIS__URL", "CALLBACKS__URL", "CALLBACKS__SIGNING_SECRET", "LOG_FORMAT"):
        env[f"TURNSTONE_{name}"] = ""
    with running(Command("serve", env=env)) as process:
        process.wait_ready()
        assert process.stop() == 0


def test_a_redis_that_does_not_answer_is_told_and_done_without(env: dict[str, str]) -> None:
    env["TURNSTONE_REDIS__URL"] = "redis://127.0.0.1:1"
    with running(Command("serve", env=env)) as process:
        process.wait_ready()
        assert process.stop() == 0
    assert "redis_unavailable" in process.output


@pytest.mark.slow
def test_doctor_finds_everything_well(env: dict[str, str]) -> None:
    code, output = Command("doctor", env=env).ended()
    assert code == 0, output
    assert output.count("ok  ") == 8
    assert re.search(r"ok +code analyser: lizard [\d.]+, tree-sitter [\d.]+", output)
    assert "FAIL" not in output


@pytest.mark.slow
def test_doctor_tells_of_every_fault_at_once(env: dict[str, str], tmp_path: Path, taken: str) -> None:
    (tmp_path / "file").write_text("in the way")
    env["TURNSTONE_PORT"] = taken
    env["TURNSTONE_DATA_DIR"] = str(tmp_path / "file" / "data")
    env["TURNSTONE_DATABASE__URL"] = f"postgresql://me:{HIDDEN}@127.0.0.1:1/db"
    env["TURNSTONE_REDIS__URL"] = "redis://127.0.0.1:1"
    env["TURNSTONE_LLM__BASE_URL"] = f"http://me:{HIDDEN}@127.0.0.1:1"
    env["TURNSTONE_CALLBACKS__URL"] = f"http://me:{HIDDEN}@127.0.0.1:1/callbacks?key={HIDDEN}"
    code, output = Command("doctor", env=env).ended()
    assert code == 1
    assert output.count("FAIL") == 5, output
    for remedy in ("PORT", "DATA_DIR", "DATABASE__URL", "REDIS__URL", "LLM__BASE_URL"):
        assert f"TURNSTONE_{remedy}" in output
    assert "FAIL  database: The database postgresql://me:***@127.0.0.1:1/db cannot be used: " in output
    assert "Connection refused" in output
    assert "FAIL  model: http://127.0.0.1:1 cannot be reached now" in output
    assert "ok    callbacks: go to http://127.0.0.1:1/callbacks, not signed" in output
    assert HIDDEN not in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_doctor_looks_and_changes_nothing(env: dict[str, str], postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE untouched")
        try:
            url = make_url(postgres).set(database="untouched").render_as_string(hide_password=False)
            env["TURNSTONE_DATABASE__URL"] = url
            code, output = Command("doctor", env=env).ended()
            assert code == 0, output
            assert "tables at version none" in output
            with psycopg.connect(url) as looked:
                assert looked.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
            env["TURNSTONE_DATABASE__MIGRATE"] = "false"
            code, output = Command("doctor", env=env).ended()
            assert code == 1
            assert "turnstone migrate" in output
        finally:
            connection.execute("DROP DATABASE untouched WITH (FORCE)")


@pytest.mark.slow
def test_doctor_finds_the_service_that_has_the_port(env: dict[str, str]) -> None:
    with running(Command("serve", env=env)) as process:
        process.wait_ready()
        env["TURNSTONE_PORT"] = str(process.port)
        for host in ("127.0.0.1", "localhost"):
            code, output = Command("doctor", env={**env, "TURNSTONE_HOST": host}).ended()
            assert code == 0, output
            assert f"ok    port: {host}:{process.port}, a service runs there (ready)" in output


@pytest.mark.slow
def test_doctor_does_not_take_another_program_for_the_service(env: dict[str, str]) -> None:
    async def fine(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    def build() -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", fine)
        return app

    with AppThread(build) as other:
        env["TURNSTONE_PORT"] = str(other.port)
        code, output = Command("doctor", env=env).ended()
    assert code == 1
    assert f"FAIL  port: 127.0.0.1:{other.port} is taken by another program." in output


@pytest.mark.slow
def test_doctor_makes_nothing_in_an_empty_folder(tmp_path: Path) -> None:
    code, output = Command("doctor", env={"TURNSTONE_PORT": "0"}, cwd=tmp_path).ended()
    assert code == 0, output
    assert f"ok    data directory: {tmp_path}/.turnstone is not there yet; `serve` will make it" in output
    assert f"ok    database: there is none in {tmp_path}/.turnstone yet; `serve` will make" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_doctor_tells_where_no_data_directory_can_be_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, output = Command("doctor", env={"TURNSTONE_PORT": "0"}, cwd=tmp_path).ended()
    tmp_path.chmod(0o700)
    assert code == 1
    assert f"FAIL  data directory: {tmp_path}/.turnstone cannot be made in {tmp_path}" in output


def test_commands_that_look_do_not_make_tables_either(env: dict[str, str], postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE looked_at")
        try:
            url = make_url(postgres).set(database="looked_at").render_as_string(hide_password=False)
            env["TURNSTONE_DATABASE__URL"] = url
            code, output = Command("sessions", "list", env=env).ended()
            assert code == 1
            assert "Run `turnstone migrate`." in output
            with psycopg.connect(url) as looked:
                assert looked.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
        finally:
            connection.execute("DROP DATABASE looked_at WITH (FORCE)")


def test_a_folder_that_was_moved_installs_anew(tmp_path: Path) -> None:
    """The programs in .venv name the old place, where nothing is."""
    folder = tmp_path / "a clone"
    for needed in ("requirements/uv.txt", "requirements/runtime.txt", "pyproject.toml", ".uv/bin/uv", ".venv/.ready"):
        (folder / needed).parent.mkdir(parents=True, exist_ok=True)
        (folder / needed).touch()
    shutil.copy(Path(__file__).parents[1] / "Makefile", folder)

    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}

    def plan() -> str:
        return subprocess.run(
            ["make", "-n", "demo"], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    (folder / ".venv/.ready").write_text(f"{folder}\n")
    assert plan() == "exec .venv/bin/turnstone demo\n"
    (folder / ".venv/.ready").write_text("/where/it/was\n")
    assert "rm -rf .venv\n" in plan()
    assert "uv pip sync" in plan()
    assert plan().endswith("exec .venv/bin/turnstone demo\n")
