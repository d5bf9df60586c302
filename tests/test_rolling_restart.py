"""Two processes are replaced one after the other while candidates go on talking: nobody's answer fails."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

import app
from app.core.settings import Settings
from app.infrastructure.persistence.migrate import wanted_version
from tests.conftest import Rows, change
from tests.support.chat import TERMINAL, Command, TurnSeen, connect, environment, new_pair
from tests.support.core import FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import ServiceProcess, running

APP = Path(app.__file__).parent
CANDIDATES = 200
SCRIPT = Script(pieces=[f"낱말{i} " for i in range(30)], piece_delay_s=0.15)


async def talk(urls: list[str], number: int, stop: asyncio.Event) -> Counter[str]:
    """Ask again and again at whichever process takes it; returns how the turns ended."""
    ends: Counter[str] = Counter()
    pair, where = new_pair(), itertools.count(number)
    for turn_id in itertools.count(1):
        if stop.is_set():
            return ends
        seen = TurnSeen()
        while not seen.frames or seen.frames[-1]["type"] not in TERMINAL:
            try:
                async with connect(urls[next(where) % 2], open_timeout=5) as chat:
                    await ask(chat.send, seen, turn_id, pair)
                    while not seen.frames or seen.frames[-1]["type"] not in TERMINAL:
                        frame = await chat.receive()
                        if frame.get("code") == "overloaded":
                            raise ConnectionResetError  # it is going: the other one takes it
                        seen.frames.append(frame)
            except (OSError, websockets.WebSocketException):
                await asyncio.sleep(0.05)
        assert seen.text == SCRIPT.text, seen.frames[-3:]
        ends[seen.end.get("code", seen.end["type"])] += 1
    raise AssertionError("it counts for ever")


async def ask(send: Callable[..., object], seen: TurnSeen, turn_id: int, pair: dict[str, int]) -> None:
    if seen.frames:
        where = {"session_id": seen.frames[0]["session_id"], "after_seq": seen.last_seq}
        await send(type="resume", turn_id=turn_id, **where)  # type: ignore[misc]
    else:
        await send(message="hello", turn_id=turn_id, **pair)  # type: ignore[misc]


def a_newer_program(place: Path) -> str:
    """A copy of this program that brings one more migration, as its next version would; returns its PYTHONPATH."""
    shutil.copytree(APP, place / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "app/infrastructure/persistence/migrations/versions/m9999_next.py").write_text(
        f"""
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", "{wanted_version()}"


def upgrade() -> None:
    op.add_column("prompt_turns", sa.Column("colour", sa.Text()))
    op.add_column("prompt_sessions", sa.Column("shade", sa.Integer(), server_default="7", nullable=False))
    op.create_table("paints", sa.Column("turn", sa.BigInteger(), sa.ForeignKey("prompt_turns.id")))
"""
    )
    return str(place)


@pytest.mark.slow
async def test_old_and_new_run_side_by_side_over_a_migration(
    settings: Settings, provider: Provider, core: FakeCore, rows: Rows, tmp_path: Path
) -> None:
    provider.default = SCRIPT
    env = environment(change(settings, shutdown_grace_s=40, lease_s=15), TURNSTONE_PORT="0")
    newer = {**env, "PYTHONPATH": a_newer_program(tmp_path)}
    stop = asyncio.Event()
    with ExitStack() as stack:

        async def serve(env: dict[str, str], **options: Any) -> ServiceProcess:
            process = stack.enter_context(running(ServiceProcess("serve", env=env, **options)))
            return await asyncio.to_thread(process.wait_ready)

        old = [await serve(env), await serve(env)]
        urls = [process.url for process in old]
        talking = [asyncio.create_task(talk(urls, number, stop)) for number in range(20)]
        await asyncio.sleep(2)
        new = await serve(newer, cwd=tmp_path)
        assert "the database's tables are made" in new.output
        assert rows.one("SELECT version_num FROM alembic_version")["version_num"] == "9999"
        urls[0] = new.url
        assert await asyncio.to_thread(old[0].stop) == 0
        await asyncio.sleep(2)
        back = await serve(env)  # somebody thought better of it
        assert "tables_of_a_later_program" in back.output
        async with httpx.AsyncClient(timeout=30) as http:
            for process in (old[1], new, back):
                assert (await http.get(f"{process.url}/readyz")).json()["checks"]["migrations"] is True
        urls[0] = back.url
        assert await asyncio.to_thread(new.stop) == 0
        await asyncio.sleep(2)
        stop.set()
        ends = sum(await asyncio.gather(*talking), Counter[str]())
        await core.reaches(2 * ends.total(), 60)
    assert set(ends) == {"done"}, ends
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"completed"}
    assert len(provider.requests) == ends.total()


@pytest.mark.slow
async def test_a_rolling_restart_under_load_fails_no_turn(
    settings: Settings, provider: Provider, core: FakeCore, rows: Rows
) -> None:
    provider.default = SCRIPT
    env = environment(change(settings, shutdown_grace_s=40, lease_s=15), TURNSTONE_PORT="0")
    stop = asyncio.Event()
    with ExitStack() as stack:

        async def serve() -> Command:
            process = stack.enter_context(running(Command("serve", env=env)))
            await asyncio.to_thread(process.wait_ready)
            assert isinstance(process, Command)
            return process

        processes = [await serve(), await serve()]
        urls = [process.url for process in processes]
        talking = [asyncio.create_task(talk(urls, number, stop)) for number in range(CANDIDATES)]
        await asyncio.sleep(1)
        for place in (0, 1, 0):
            heir = await serve()
            old, processes[place], urls[place] = processes[place], heir, heir.url
            assert await asyncio.to_thread(old.stop) == 0, old.output
            assert "turn_interrupted" not in old.output
        stop.set()
        ends = sum(await asyncio.gather(*talking), Counter[str]())
        await core.reaches(2 * ends.total(), 60)
    assert set(ends) == {"done"}, ends
    assert ends.total() > CANDIDATES
    assert {row["status"] for row in rows("SELECT status FROM prompt_turns")} == {"completed"}
    usages = Counter((event.session_id, event.body["turn"]) for event in core.events() if event.type == "usage")
    assert set(usages.values()) == {1} and len(usages) == ends.total()
    assert len(provider.requests) == ends.total()
