"""Real PostgreSQL, a scripted provider over HTTP, a fake Core, and the service among them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import psycopg
import pytest
import structlog
import uvloop
from psycopg.rows import dict_row
from sqlalchemy import make_url

from app.core.settings import Settings
from app.infrastructure.persistence.embedded import cluster
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import migrate
from app.infrastructure.persistence.session import Database, bind
from tests.support.core import FakeCore
from tests.support.provider import Provider
from tests.support.service import Service

# How long an example takes says more of the machine than of the code; speed is the benchmarks' matter.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")

SECRET = "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CORE_KEY = "core-receives-with-this-key"
_databases = itertools.count(1)


ON_UVLOOP = {"test_analysis", "test_bubblewrap", "test_code_runner", "test_hostile_programs", "test_remote_runners"}


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests that start sandboxes or analyses have the service's loop, which starts processes in a way of its own."""
    on_uvloop = item.path.stem in ON_UVLOOP
    return {"uvloop": uvloop.new_event_loop} if on_uvloop else {"asyncio": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def logs_where_pytest_looks() -> Iterator[None]:
    """A command that a test runs in this process sets the log up for its own streams, which are closed after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("TURNSTONE_"):
            monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", None)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A short-lived directory that the database's own user can enter, which pytest's is not."""
    path = Path(tempfile.mkdtemp(prefix="turnstone-tests-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(scratch: Path) -> Iterator[str]:
    """A real PostgreSQL; the address of its maintenance database."""
    with pytest.MonkeyPatch.context() as patch:
        # A database is made and dropped for every test; that it outlives the machine is worth nothing here.
        patch.setattr(cluster, "SERVER_SETTINGS", {**cluster.SERVER_SETTINGS, "fsync": "off"})
        server = EmbeddedPostgres.open(scratch / "data")
    with server:
        yield server.url


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """A migrated database that is cloned for each test."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE template_for_tests")
    migrate(make_url(postgres).set(drivername="postgresql+psycopg", database="template_for_tests"))
    return "template_for_tests"


@pytest.fixture
def database_url(postgres: str, template: str) -> Iterator[str]:
    """A database of the test's own."""
    name = f"test_{next(_databases)}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield make_url(postgres).set(database=name).render_as_string(hide_password=False)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The test's database, bound for ``get_db_context``."""
    opened = Database(database_url, pool_size=10, timeout_s=30)
    bind(opened)
    yield opened
    await opened.close()


class Rows:
    """Looks into the database from outside of the service."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self._url, autocommit=True, row_factory=dict_row) as connection:
            cursor = connection.execute(query, parameters)  # type: ignore[arg-type]  # queries are literals here
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *parameters: Any) -> dict[str, Any]:
        found = self(query, *parameters)
        assert len(found) == 1, found
        return found[0]


@pytest.fixture
def rows(database_url: str) -> Rows:
    """Queries against the test's database."""
    return Rows(database_url)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """The scripted provider."""
    with Provider() as running:
        yield running


@pytest.fixture
def core() -> Iterator[FakeCore]:
    """The receiver of callbacks."""
    with FakeCore(secret=SECRET, api_key=CORE_KEY) as running:
        yield running


@pytest.fixture
def settings(database_url: str, provider: Provider, core: FakeCore, scratch: Path) -> Settings:
    """Settings of a service among the other fixtures; quick where waiting shows nothing."""
    return Settings(
        data_dir=scratch / "service",
        shutdown_grace_s=5,
        log_level="warning",
        database={"url": database_url, "timeout_s": 30},
        llm={"model": "openai:scripted", "base_url": provider.base_url, "api_key": "sk-scripted", "timeout_s": 30},
        callbacks={
            "url": core.callback_url,
            "api_key": CORE_KEY,
            "signing_secret": SECRET,
            "retry_delays_s": (0.1, 0.1, 0.2, 0.2),
        },
    )


def change(settings: Settings, **sections: Any) -> Settings:
    """Settings with some changed: a section is given as a dict of what changes in it."""
    values = settings.model_dump()
    for name, value in sections.items():
        values[name] = {**values[name], **value} if isinstance(value, dict) else value
    return Settings(**values)


@pytest.fixture
def start(settings: Settings) -> Iterator[Callable[..., Service]]:
    """Starts services with changed settings; they are stopped at the end."""
    with ExitStack() as stack:
        yield lambda **sections: stack.enter_context(Service(change(settings, **sections)))


@pytest.fixture
def service(start: Callable[..., Service]) -> Service:
    """The service."""
    return start()
