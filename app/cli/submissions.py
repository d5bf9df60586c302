"""``turnstone submissions``: code that was handed in, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli.console import LARGEST_ID, AsJson, Limit, is_text, print_json, when, with_database
from app.core.errors import StartupError
from app.domain.judge_names import JUDGES, is_judge

if TYPE_CHECKING:
    from app.application.services.submission_service import Seen, SubmissionService

cli = typer.Typer(help="Submissions and their evaluations.", no_args_is_help=True)

SubmissionId = Annotated[str, typer.Argument(help="The submission's id.")]
Person = Annotated[str, typer.Option(help="Who says so.")]


@cli.command("list")
def list_submissions(
    session: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="Only this session's.")] = None,
    exam: Annotated[int | None, typer.Option(min=1, max=LARGEST_ID, help="Only this exam's.")] = None,
    status: Annotated[
        Literal["QUEUED", "RUNNING", "DONE", "FAILED"] | None, typer.Option(help="Only these.", case_sensitive=False)
    ] = None,
    limit: Limit = 100,
    as_json: AsJson = False,
) -> None:
    """List submissions, oldest first."""

    async def show(service: SubmissionService) -> None:
        from app.infrastructure.persistence.models import SubmissionStatusEnum
        from app.presentation.schemas.submission_bodies import SubmissionBody

        found = await service.list_submissions(
            session_id=session,
            exam_id=exam,
            status=None if status is None else SubmissionStatusEnum(status),
            limit=limit,
        )
        for seen in found:
            typer.echo(SubmissionBody.of(seen).model_dump_json(exclude_unset=True) if as_json else _line(seen))

    _with_service(show)


@cli.command("show")
def show_submission(submission_id: SubmissionId) -> None:
    """Show a submission: its state, every evaluation with its steps, and the scores that count."""

    async def show(service: SubmissionService) -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.submission_claims import SubmissionClaims
        from app.presentation.schemas.submission_bodies import SubmissionBody

        seen = await service.get(submission_id)
        body: dict[str, Any] = SubmissionBody.of(seen).model_dump(mode="json", exclude_unset=True)
        async with get_db_context() as db:
            for evaluation, told in zip(seen.evaluations, body["evaluations"], strict=True):
                steps = await SubmissionClaims(db).steps(evaluation.id)
                told["steps"] = {
                    node.value: {"status": step.status, "reason": step.reason, "cost": step.to_json()["cost"]}
                    for node, step in steps.items()
                }
                if evaluation.status.value == "held" and evaluation.result is not None:
                    told["held_scores"] = evaluation.result["final_scores"]
        print_json(body)

    _with_service(show)


@cli.command("rerun")
def rerun(
    submission_id: SubmissionId,
    person: Person,
    again: Annotated[
        Literal["all", "missing", "scores"],
        typer.Option(help="Everything; what was missing; or the scores alone, from what was found."),
    ] = "all",
    rubric: Annotated[str | None, typer.Option(help="A rubric, by name or hash.")] = None,
    policy: Annotated[str | None, typer.Option(help="A score policy, by name or hash.")] = None,
    model: Annotated[str | None, typer.Option(help="Another judge, provider:model.")] = None,
    as_set_now: Annotated[bool, typer.Option(help="Go by the exam's settings as they are now.")] = False,
) -> None:
    """Evaluate a submission once more; Core is told under the next revision. A running service or worker does it."""
    if model is not None and not (is_text(model) and is_judge(model)):
        raise StartupError(f"{model} is no judge.", f"It is {JUDGES}.")

    async def order(service: SubmissionService) -> None:
        from app.application.services.submission_service import RerunOrder

        seen = await service.rerun(
            submission_id,
            RerunOrder(
                person=_said(person),
                again=again,
                rubric=rubric,
                score_policy=policy,
                judge_model=model,
                as_set_now=as_set_now,
            ),
        )
        typer.echo(f"{submission_id} is evaluated again as revision {seen.evaluations[-1].revision}")

    _with_service(order)


@cli.command("release")
def release(submission_id: SubmissionId, person: Person) -> None:
    """Let scores be told that wait for a person. A running service or worker tells them."""

    async def let_go(service: SubmissionService) -> None:
        await service.release(submission_id, _said(person))
        typer.echo(f"{submission_id} is released")

    _with_service(let_go)


def _with_service(action: Callable[[SubmissionService], Awaitable[None]]) -> None:
    async def act() -> None:
        from app.application.services.submission_service import SubmissionService
        from app.core.errors import TurnstoneError
        from app.core.settings import load_settings

        settings = load_settings()
        service = SubmissionService(
            settings.limits.code_chars,
            held=settings.callbacks.url is None,
            tells_stages=settings.callbacks.profile == "vibecode",
        )
        try:
            await action(service)
        except TurnstoneError as error:
            raise StartupError(error.message, "`turnstone submissions list` shows which there are.") from None

    with_database(act)


def _said(person: str) -> str:
    if not is_text(person) or not person.strip() or "\x00" in person:
        raise typer.BadParameter("--person has to say who.")
    return person


def _line(seen: Seen) -> str:
    submission, told = seen.submission, seen.told
    line = f"{submission.told_id}  {when(submission.created_at)}  session {submission.session_id}"
    line += f"  {submission.language}  {submission.status.value}"
    held = [each for each in seen.evaluations if each.status.value == "held"]
    if told is not None and told.result is not None:
        scores = told.result["final_scores"]
        total = "–" if scores["total_score"] is None else f"{scores['total_score']:.2f} {scores['grade']}"
        line += f"  revision {told.revision}: {scores['status']} {total}"
    return line + (f"  revision {held[-1].revision} is held" if held else "")
