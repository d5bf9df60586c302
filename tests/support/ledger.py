"""A ledger to look at: turns that ended with given calls, and the command that looks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.application.turns.ending import FinalTurn, sum_usage
from app.application.turns.running import TurnRef
from app.application.turns.settlement import settle
from app.core.settings import Settings
from app.domain.conversation import FinishReason, TurnStatus, Usage
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.session_repository import NewTurn, SessionRepository
from app.infrastructure.repositories.turn_repository import CallRecord, TurnEnding
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.support.chat import Command, environment, new_pair

MODEL = "openai:gpt-scripted"


def call(prompt: int, completion: int, cached: int = 0, *, ref: str | None = None, **more: Any) -> CallRecord:
    """A call with the provider's figures, unless told otherwise."""
    source = more.pop("source", "provider")
    usage = Usage(prompt, completion, cached, more.pop("reasoning", 0), source)
    return CallRecord(more.pop("model", MODEL), usage, more.pop("outcome", "completed"), provider_ref=ref, **more)


async def session_with(*turns: Sequence[CallRecord], pair: Mapping[str, int] | None = None) -> int:
    """A session whose turns made these calls, each turn's settled as the service settles it; returns its id."""
    async with get_db_context() as db:
        owner = await WorkerRepository(db).register("test", 6)
        session = await SessionRepository(db).create_session(**(pair or new_pair()))
    for number, calls in enumerate(turns, 1):
        new = NewTurn(session.id, f"t{number}", turn_id_is_int=False, owner=owner, model=MODEL, message="why?")
        async with get_db_context() as db:
            started = await SessionRepository(db).start_turn(new, token_budget=0)
        assert started is not None
        chat = sum_usage([call for call in calls if call.purpose == "chat"])
        row = TurnEnding(TurnStatus.COMPLETED, chat, finish_reason=FinishReason.STOP, lengths=[6])
        ref = TurnRef(started.pk, session.id, started.turn, f"t{number}", owner)
        await settle(ref, FinalTurn("answer", row, list(calls), calls[-1].usage.completion_tokens), held=False)
    return session.id


@dataclass
class Usages:
    """``turnstone usage`` on a test's database."""

    settings: Settings
    directory: Path

    async def run(self, *arguments: str, code: int = 0) -> str:
        """What it prints; it has to end with ``code``."""
        command = Command("usage", *arguments, env=environment(self.settings))
        ended, output = await asyncio.to_thread(command.ended)
        assert ended == code, output
        assert "Traceback" not in output
        return output

    async def lines(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        """The JSON objects that it prints."""
        return [json.loads(line) for line in (await self.run(*arguments, "--json", code=code)).splitlines()]

    def file(self, name: str, content: str | bytes) -> str:
        """A file's path."""
        path = self.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def json_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
        """A file of JSON Lines."""
        return self.file(name, "".join(f"{json.dumps(row)}\n" for row in rows))

    async def reconcile(self, *arguments: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The differences that it finds, and its summary; the exit code has to fit."""
        command = Command("usage", "reconcile", *arguments, "--json", env=environment(self.settings))
        ended, output = await asyncio.to_thread(command.ended)
        assert "Traceback" not in output
        *found, summary = [json.loads(line) for line in output.splitlines()]
        assert (summary["kind"], summary["differences"]) == ("summary", len(found)), output
        assert ended == (1 if found else 0)
        return found, summary
