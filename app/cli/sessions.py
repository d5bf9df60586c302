"""``turnstone sessions``: the conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.console import ALL, LARGEST_ID, AsJson, Limit, SessionId, no_such, when, with_database
from app.core.errors import StartupError

cli = typer.Typer(help="Sessions and their conversations.", no_args_is_help=True)


@cli.command("list")
def list_sessions(
    exam: Annotated[int | None, typer.Option(max=LARGEST_ID, help="Only this exam's.")] = None,
    participant: Annotated[int | None, typer.Option(max=LARGEST_ID, help="Only this participant's.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List sessions, oldest first."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.session_repository import SessionRepository

        async with get_db_context() as db:
            found = await SessionRepository(db).list_sessions(exam, participant, limit=limit)
        if as_json:
            from app.presentation.schemas.bodies import SessionBody

            for session in found:
                typer.echo(SessionBody.of(session).model_dump_json())
            return
        for session in found:
            who = f"exam {session.exam_id} participant {session.participant_id}"
            ended = f"ended {when(session.ended_at)}" if session.ended_at else "active"
            turns = f"{session.last_turn} turns, {session.total_tokens} tokens"
            typer.echo(f"{session.id}  {who}  {turns}  started {when(session.started_at)}  {ended}")

    with_database(show)


@cli.command("show")
def show_session(session_id: SessionId) -> None:
    """Show a session's conversation."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.session_repository import SessionRepository

        async with get_db_context() as db:
            session = await SessionRepository(db).get_session(session_id)
            if session is None:
                raise no_such("session", session_id)
            messages = await SessionRepository(db).list_messages(session_id, limit=ALL)
        typer.secho(f"session {session_id}, exam {session.exam_id}", bold=True)
        for message in messages:
            typer.secho(f"\n[{message.turn}] {message.role.value.lower()}", bold=True)
            typer.echo(message.content)

    with_database(show)


@cli.command("export")
def export_session(
    session_id: SessionId,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file; standard output without it.")] = None,
) -> None:
    """Write a session with all its messages and callbacks as one JSON document."""

    async def export() -> None:
        document = json.dumps(await _export(session_id), ensure_ascii=False, indent=2)
        if output is None:
            typer.echo(document)
            return
        try:
            output.write_text(f"{document}\n", encoding="utf-8")
        except OSError as error:
            raise StartupError(f"{output} cannot be written: {error.strerror}.", "Choose another file.") from None

    with_database(export)


async def _export(session_id: int) -> dict[str, Any]:
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.callback_repository import CallbackEvent, CallbackFilter, CallbackRepository
    from app.infrastructure.repositories.session_repository import SessionRepository
    from app.infrastructure.repositories.turn_repository import TurnRepository
    from app.presentation.schemas.bodies import MessageBody, SessionBody

    async with get_db_context() as db:
        sessions = SessionRepository(db)
        session = await sessions.get_session(session_id)
        if session is None:
            raise no_such("session", session_id)
        messages = await sessions.list_messages(session_id, limit=ALL)
        turn_ids = await TurnRepository(db).client_ids(session_id, {message.turn for message in messages})
        callbacks = await CallbackRepository(db).list_callbacks(CallbackFilter(session_id=session_id), limit=ALL)
    return {
        "session": SessionBody.of(session).model_dump(mode="json"),
        "messages": [MessageBody.of(m, turn_ids.get(m.turn)).model_dump(mode="json") for m in messages],
        "callbacks": [CallbackEvent.of(*found).body() for found in callbacks],
    }
