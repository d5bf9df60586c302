"""``turnstone callbacks``: what Core was told."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

import typer

from app.cli.console import LARGEST_ID, MOMENTS, AsJson, Limit, is_text, no_such, print_json, say, utc, with_database
from app.core.errors import StartupError

cli = typer.Typer(help="What Core was told, and what it still has to be told.", no_args_is_help=True)

Status = Literal["held", "pending", "delivered", "failed"]
"""As `CallbackStatusEnum` has them, which comes with the database's driver."""
Replayable = Literal["pending", "delivered", "failed"]


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
        from app.infrastructure.repositories.callback_repository import CallbackFilter, CallbackRepository

        if kind is not None and not is_text(kind):
            return
        async with get_db_context() as db:
            which = CallbackFilter(status=CallbackStatusEnum(status) if status else None, kind=kind, session_id=session)
            found = await CallbackRepository(db).list_callbacks(which, limit=limit)
        if as_json:
            from app.presentation.schemas.callback_bodies import CallbackBody

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
    """Show one callback with the body that Core receives, and every try."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.callback_repository import CallbackRepository
        from app.presentation.schemas.callback_bodies import CallbackWithTries

        async with get_db_context() as db:
            callbacks = CallbackRepository(db)
            found = await callbacks.get(event_id) if is_text(event_id) else None
            if found is None:
                raise no_such("callback", event_id)
            tries = await callbacks.tries(found[0])
        print_json(CallbackWithTries.with_tries(*found, tries).model_dump(mode="json"))

    with_database(show)


def _taken_once(event_id: str) -> StartupError:
    return StartupError(
        f"{event_id} is a result, which Core takes once, and it has not failed.",
        "`turnstone callbacks show` says where it stands; Core can read it from GET /api/callbacks/events.",
    )


@cli.command("replay")
def replay_callbacks(
    event_ids: Annotated[list[str] | None, typer.Argument(help="Their webhook-ids; or say which by options.")] = None,
    status: Annotated[
        Replayable | None, typer.Option(help="Those that stand so; failed ones, if only others are said.")
    ] = None,
    kind: Annotated[str | None, typer.Option("--type", help="Those of this type, such as usage.")] = None,
    session: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="This session's.")] = None,
    exam: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="This exam's.")] = None,
    since: Annotated[
        datetime | None, typer.Option(formats=MOMENTS, metavar="MOMENT", help="Recorded at or after this (UTC).")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(formats=MOMENTS, metavar="MOMENT", help="Recorded before this (UTC).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many there are.")] = False,
) -> None:
    """Send callbacks once more, with all their tries; their ids stay the same. A running service delivers them."""
    by_options = (status, kind, session, exam, since, until)
    chosen = any(option is not None for option in by_options)
    if bool(event_ids) == chosen or (event_ids and dry_run):
        raise typer.BadParameter("give either webhook-ids or options that say which, such as --status failed")
    if event_ids:
        with_database(lambda: _replay_these(event_ids))
    elif kind is None or is_text(kind):
        with_database(lambda: _replay_chosen(status or "failed", kind, session, exam, since, until, dry_run=dry_run))


async def _replay_these(event_ids: list[str]) -> None:
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


async def _replay_chosen(
    status: str,
    kind: str | None,
    session: int | None,
    exam: int | None,
    since: datetime | None,
    until: datetime | None,
    *,
    dry_run: bool,
) -> None:
    from app.core.settings import load_settings
    from app.infrastructure.persistence.models import CallbackStatusEnum
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.profiles import PROFILES
    from app.infrastructure.repositories.callback_repository import CallbackFilter, CallbackRepository, replay_each

    which = CallbackFilter(
        status=CallbackStatusEnum(status),
        kind=kind,
        session_id=session,
        exam_id=exam,
        since=utc(since),
        until=utc(until),
        once=PROFILES[load_settings().callbacks.profile].once,
    )
    async with get_db_context() as db:
        count = await CallbackRepository(db).count(which)
    if dry_run:
        typer.echo(f"{count} callbacks would be sent once more")
        return
    done = 0
    async for part in replay_each(which):
        done += len(part)
        say(f"{done} of {count}")
    typer.echo(f"{done} callbacks are on their way again")
