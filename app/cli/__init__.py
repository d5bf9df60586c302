"""The command ``turnstone``. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 ended by Ctrl-C."""

from __future__ import annotations

import io
import sys
from contextlib import suppress

import typer

from app.cli import (
    callbacks,
    evaluate,
    fake_core,
    guard,
    problem,
    review,
    rubric,
    running,
    score,
    sessions,
    submissions,
    usage,
)
from app.cli.console import database_down, fail
from app.cli.exam_cost import exam_cost
from app.cli.reconcile import reconcile
from app.core.errors import StartupError

cli = typer.Typer(
    name="turnstone",
    help="The AI worker of AI-assisted coding exams. Settings are environment variables, see docs/operations.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
cli.add_typer(running.cli)
cli.add_typer(fake_core.cli)
cli.add_typer(callbacks.cli, name="callbacks")
cli.add_typer(sessions.cli, name="sessions")
cli.add_typer(submissions.cli, name="submissions")
cli.add_typer(score.cli, name="score")
cli.add_typer(guard.cli, name="guard")
usage.cli.command("reconcile")(reconcile)
usage.cli.command("exam")(exam_cost)
cli.add_typer(usage.cli, name="usage")
cli.add_typer(rubric.cli, name="rubric")
cli.add_typer(problem.cli, name="problem")
cli.add_typer(evaluate.cli, name="evaluate")
cli.add_typer(review.cli, name="review")


def main() -> None:
    """Entry point: expected failures become one clear line and exit code 1."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        with suppress(OSError):  # what stands behind it was exchanged
            sys.stdout.reconfigure(errors="backslashreplace")  # a sign that a terminal cannot show is no failure
    try:
        cli()
    except StartupError as error:
        fail(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except SystemExit:
        raise  # how every command ends; to look below whether it is a database's error would load the driver
    except database_down():
        fail(StartupError("The database does not answer.", "Try `turnstone doctor`."))
