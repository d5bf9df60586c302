"""``turnstone callbacks``: what Core was told."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from app.cli.console import LARGEST_ID, AsJson, Limit, is_text, no_such, print_json, with_database
from app.core.errors import StartupError

cli = typer.Typer(help="What Core was told, and what it still has to be told.", no_args_is_help=True)

Status = Literal["held", "pending", "delivered", "failed"]
"""As `CallbackStatusEnum` has them, which comes with the database's driver."""


@cli.command("list")
def list_callbacks(
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Only this type, such as usage.")] = None,
    session: Annotated[int | None, typer.Option(max=LARGEST_ID, help="Only this session's.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List callbacks, oldest first."""

    async def show() -> None:
        from app.infrastructure.persistence.models import CallbackStatusEnum
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository

        if kind is not None and not is_text(kind):
            return
        async with get_db_context() as db:
            found = await CallbackRepository(db).list_callbacks(
                status=CallbackStatusEnum(status) if status else None, kind=kind, session_id=session, limit=limit
            )
        if as_json:
            from app.presentation.schemas.bodies import CallbackBody

            for entry in found:
                typer.echo(CallbackBody.of(*entry).model_dump_json())
            return
        for callback, _ in found:
            tries = f"{callback.attempts:>3} {'try  ' if callback.attempts == 1 else 'tries'}"
            state = f"{callback.status.value:<9} {tries}"
            place = f"session {callback.session_id} #{callback.callback_seq}"
            typer.echo(f"{callback.event_id}  {state}  {place:<20}  {callback.type}  {callback.last_error or ''}")

    with_database(show)


@cli.command("show")
def show_callback(event_id: Annotated[str, typer.Argument(help="Its webhook-id.")]) -> None:
    """Show one callback with the body that Core receives."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository
        from app.presentation.schemas.bodies import CallbackBody

        async with get_db_context() as db:
            found = await CallbackRepository(db).get(event_id) if is_text(event_id) else None
        if found is None:
            raise no_such("callback", event_id)
        print_json(CallbackBody.of(*found).model_dump(mode="json"))

    with_database(show)


def _taken_once(event_id: str) -> StartupError:
    return StartupError(
        f"{event_id} is a result, which Core takes once, and it has not failed.",
        "`turnstone callbacks show` says where it stands; Core can read it from GET /api/callbacks/events.",
    )


@cli.command("replay")
def replay_callback(event_ids: Annotated[list[str], typer.Argument(help="Their webhook-ids.")]) -> None:
    """Send callbacks once more, with all their tries; their ids stay the same. A running service delivers them."""

    async def replay() -> None:
        from app.core.settings import load_settings
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.profiles import PROFILES
        from app.infrastructure.repositories.callback_repository import CallbackRepository

        once = PROFILES[load_settings().callbacks.profile].once
        for event_id in event_ids:
            async with get_db_context() as db:
                callbacks = CallbackRepository(db)
                callback = await callbacks.replay(event_id, once=once) if is_text(event_id) else None
                if callback is None:
                    there = is_text(event_id) and await callbacks.get(event_id) is not None
                    raise _taken_once(event_id) if there else no_such("callback", event_id)
            typer.echo(f"{event_id}  {callback.status.value}")

    with_database(replay)
