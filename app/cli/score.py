"""``turnstone score``: how scores of submissions came about, for people who have to answer for them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.console import is_text, with_database
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.application.submissions.explaining import Explanation
    from app.domain.explaining import Line, Value

cli = typer.Typer(help="Scores of submissions: how they came about, and what people say of them.", no_args_is_help=True)

SubmissionId = Annotated[str, typer.Argument(help="The submission's id.")]
Revision = Annotated[int | None, typer.Option(min=1, max=2**31 - 1, help="Of which evaluation; the one that counts.")]


@cli.command("explain")
def explain(
    submission_id: SubmissionId,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for other programs.")] = False,
) -> None:
    """Make every published number again from stored evidence, with its arithmetic. Exit code 1 where one differs."""

    async def show() -> None:
        from app.application.submissions.explaining import explain_scores

        explanation = await explain_scores(submission_id, revision)
        typer.echo(_json(explanation) if as_json else _text(explanation))
        if not explanation.is_true:
            raise typer.Exit(1)

    _of_submission(submission_id, show)


@cli.command("report")
def report(
    submission_id: SubmissionId,
    language: Annotated[Literal["en", "ko"], typer.Option(help="Of the report.")] = "en",
    revision: Revision = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", dir_okay=False, help="The file; standard output without one.")
    ] = None,
) -> None:
    """Write what a candidate may read of a submission: a page of HTML that needs nothing but itself."""

    async def write() -> None:
        from app.application.submissions.reporting import read_report
        from app.presentation.web.report import render_report

        page = render_report(await read_report(submission_id, language, revision), language)
        if output is None:
            typer.echo(page, nl=False)
            return
        try:
            output.write_text(page, encoding="utf-8")
        except OSError as error:
            raise StartupError(f"{output} cannot be written: {error.strerror}.", "Choose another file.") from None
        typer.echo(output)

    _of_submission(submission_id, write)


@cli.command("override")
def override(
    submission_id: SubmissionId,
    component: Annotated[Literal["prompt", "correctness", "performance", "total"], typer.Argument(help="Which part.")],
    score: Annotated[float, typer.Argument(min=0, max=100, help="0 to 100.")],
    reason: Annotated[str, typer.Option(help="Why; Core is told.")],
    person: Annotated[str, typer.Option(help="Who says so.")],
) -> None:
    """Set a person's score of a part. The machine's stays beside it; Core is told under the next revision."""
    _check_said(reason, person)

    async def set_it() -> None:
        from app.application.services.score_service import override_component
        from app.domain.final_scores import Override

        row = await override_component(submission_id, component, Override(score, reason, person))
        typer.echo(f"{component} of {submission_id} is {score:g} from revision {row.revision} on")

    _of_submission(submission_id, set_it)


@cli.command("appeal")
def appeal(
    submission_id: SubmissionId,
    reason: Annotated[str, typer.Option(help="Why it should be looked at again.")],
    person: Annotated[str, typer.Option(help="Who asks.")],
) -> None:
    """Have it all done once more, by a larger panel, for people to look at; `submissions release` tells Core."""
    _check_said(reason, person)

    async def ask() -> None:
        from app.application.services.score_service import appeal_scores

        item_id, evaluation = await appeal_scores(submission_id, reason, person)
        typer.echo(f"{submission_id} is evaluated again as revision {evaluation.revision}; review {item_id} is open")

    _of_submission(submission_id, ask)


def _check_said(reason: str, person: str) -> None:
    if not all(is_text(said) and said.strip() and "\x00" not in said for said in (reason, person)):
        raise typer.BadParameter("--reason and --person have to say something.")


def _of_submission(submission_id: str, action: Callable[[], Awaitable[None]]) -> None:
    if not is_text(submission_id):
        raise typer.BadParameter("The submission's id is no text.")

    async def act() -> None:
        from app.core.errors import TurnstoneError

        try:
            await action()
        except TurnstoneError as error:
            raise StartupError(error.message, "`turnstone submissions show ID` says how far it is.") from None

    with_database(act)


def _json(explanation: Explanation) -> str:
    policy = explanation.policy
    told = {
        "submission_id": explanation.submission.told_id,
        "revision": explanation.evaluation.revision,
        "policy": {"name": policy.name, "hash": policy.hash, "pinned": explanation.policy_is_pinned},
        "lines": [
            {
                "name": line.name,
                "arithmetic": line.arithmetic,
                "value": line.value,
                "published": dict(line.published),
                "equal": not line.differs,
            }
            for line in explanation.lines
        ],
        "equal": explanation.is_true,
    }
    return json.dumps(told, ensure_ascii=False)


def _text(explanation: Explanation) -> str:
    submission, policy = explanation.submission, explanation.policy
    lines = [
        f"submission {submission.told_id} revision {explanation.evaluation.revision}",
        f"policy {policy.name} {policy.hash[:12]}" + ("" if explanation.policy_is_pinned else "  WAS CHANGED"),
    ]
    for line in explanation.lines:
        lines += _of_line(line)
    differing = sum(bool(line.differs) for line in explanation.lines)
    count = len(explanation.lines)
    lines.append(f"{count} numbers, all as published" if not differing else f"{differing} of {count} differ")
    return "\n".join(lines)


def _of_line(line: Line) -> list[str]:
    told = [f"{'✗' if line.differs else '✓'} {line.name}: {_shown(line.value)}", f"    {line.arithmetic}"]
    return told + [f"    DIFFERS: {place} has {_shown(line.published[place])}" for place in line.differs]


def _shown(value: Value) -> str:
    from app.domain.explained_prompts import number

    return value if isinstance(value, str) else number(value)
