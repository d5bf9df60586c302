"""``turnstone review``: turns and submissions that a person is to look at."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from app.cli.console import LARGEST_ID, AsJson, Limit, is_text, when, with_database
from app.core.errors import StartupError

cli = typer.Typer(help="Turns and submissions that a person is to look at.", no_args_is_help=True)

Reason = Literal[
    "samples_differ",
    "attack_flagged",
    "refused",
    "near_grade_edge",
    "unscored",
    "appeal",
    "component_missing",
    "held_for_review",
    "evidence_missing",
    "unlike_conversation",
]
"""As `ReviewReasonEnum` has them, which comes with the database's driver."""


@cli.command("list")
def list_reviews(
    status: Annotated[Literal["open", "resolved"], typer.Option(help="Only these.")] = "open",
    reason: Annotated[Reason | None, typer.Option(help="Only for this reason.")] = None,
    exam: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="Only this exam's.")] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List turns and submissions that people are to look at, oldest first."""

    async def show() -> None:
        from app.infrastructure.persistence.models import ReviewReasonEnum
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.review_repository import ReviewRepository
        from app.presentation.schemas.evaluation_bodies import ReviewBody

        async with get_db_context() as db:
            found = await ReviewRepository(db).list_items(
                is_open=status == "open",
                reason=ReviewReasonEnum(reason) if reason else None,
                exam_id=exam,
                limit=limit,
            )
        for item, exam_id in found:
            if as_json:
                typer.echo(ReviewBody.of(item, exam_id).model_dump_json())
                continue
            what = f"turn {item.turn}" if item.turn is not None else f"submission {item.details.get('submission_id')}"
            place = f"exam {exam_id} session {item.session_id} {what}"
            said = f"  {item.resolved_by}: {item.resolution}" if item.resolved_at is not None else ""
            typer.echo(f"{item.id}  {when(item.created_at)}  {item.reason.value:<19} {place}{said}")

    with_database(show)


@cli.command("resolve")
def resolve_review(
    item_id: Annotated[int, typer.Argument(min=1, max=LARGEST_ID, help="The item's id.")],
    person: Annotated[str, typer.Option(help="Who has looked.")],
    resolution: Annotated[str, typer.Option(help="What came of it.")],
) -> None:
    """Say what came of a review."""
    if not all(is_text(said) and said.strip() for said in (person, resolution)):
        raise typer.BadParameter("--person and --resolution have to say something.")

    async def resolve() -> None:
        from app.application.services.evaluation_service import resolve_review_item
        from app.core.errors import TurnstoneError

        try:
            await resolve_review_item(item_id, person, resolution)
        except TurnstoneError as error:
            raise StartupError(error.message, "`turnstone review list` shows which are open.") from None
        typer.echo(f"{item_id} is resolved")

    with_database(resolve)
