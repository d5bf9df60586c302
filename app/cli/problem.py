"""``turnstone problem``: problems checked, imported, looked at, and their references run again."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from app.cli.console import (
    LARGEST_ID,
    AsJson,
    Limit,
    fail,
    loading,
    no_such,
    print_json,
    read_settings,
    say,
    when,
    with_database,
)
from app.core.errors import StartupError, TurnstoneError

if TYPE_CHECKING:
    from app.application.services.problem_service import Verified
    from app.core.settings import Settings
    from app.domain.problem import Problem, ProblemError
    from app.infrastructure.persistence.models import ProblemVersion

cli = typer.Typer(help="Problems: check, import from packages, show, run their references again.", no_args_is_help=True)

Spec = Annotated[int, typer.Argument(metavar="SPEC", min=1, max=LARGEST_ID, help="The problem's id, Core's spec_id.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="As it once was; otherwise as it is.")]
_LONGEST_SHOWN = 200


@cli.command("lint")
def lint(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="A problem as JSON.")],
) -> None:
    """Check a problem's JSON without running anything: every fault with its place. Exit code 1 if there is any."""
    problem = _read_json(file)
    typer.echo(f"{file}: a problem without faults, {_summary(problem)}, {problem.content_hash}")


@cli.command("import")
def import_package(
    package: Annotated[Path, typer.Argument(exists=True, readable=True, metavar="DIR|ZIP", help="With problem.yaml.")],
    spec_id: Annotated[
        int | None, typer.Option("--spec-id", min=1, max=LARGEST_ID, help="Store it as this problem.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read it and run its references, but store nothing.")
    ] = False,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=0.1, max=60, help="CPU seconds of a run, above the package's.")
    ] = None,
) -> None:
    """Import a package of the common format (problem.yaml). Without --spec-id its problem is printed as JSON.

    A problem is stored only where its references pass every test case.
    """
    with loading():
        from app.domain.problem import ProblemError
        from app.infrastructure.packages.package import read_package
    try:
        found = read_package(package, time_limit_s=time_limit)
    except ProblemError as error:
        _tell_faults(str(package), error)
    for warning in found.warnings:
        say(f"warning: {warning}")
    if dry_run:
        _tell_verified(_verified(read_settings(quiet=True), found.problem), False)
    elif spec_id is None:
        print_json(found.problem.to_json())
    else:
        _store(spec_id, found.problem)


@cli.command("show")
def show_problem(spec: Spec, version: Version = None, as_json: AsJson = False) -> None:
    """Print a problem: what it is made of, or with --json all of it, also what candidates must not see."""

    async def show() -> None:
        from app.domain.problem import Problem

        found = await _found(spec, version)
        problem = Problem.parse(found.content)
        if as_json:
            typer.echo(json.dumps(problem.to_json(), ensure_ascii=False))
            return
        typer.echo(f"problem {spec}, version {found.version} of {when(found.created_at)}: {_summary(problem)}")
        limits = problem.limits
        typer.echo(f"limits: {limits.cpu_s:g} s of CPU, {limits.memory_mb} MiB; checker: {problem.checker.kind}")
        for place, case in enumerate(problem.cases):
            sizes = f"{len(case.input)} characters in, {len(case.output)} out"
            typer.echo(f"  {place}  {case.group:<7}  {case.weight:g}  {case.name}  {sizes}")
        for figures in found.verification.get("references", ()):
            typer.echo("reference in {language}: {cpu_ms} ms of CPU in all, {slowest_cpu_ms} at most".format(**figures))

    with_database(show)


@cli.command("list")
def list_problems(limit: Limit = 100, as_json: AsJson = False) -> None:
    """List problems: id, version, when it was set, number of test cases, title."""

    async def show() -> None:
        from app.infrastructure.persistence.session import get_db_context
        from app.infrastructure.repositories.problem_repository import ProblemRepository

        async with get_db_context() as db:
            found = await ProblemRepository(db).list_problems(limit=limit)
        for entry in found:
            if as_json:
                members: dict[str, Any] = {
                    "spec_id": entry.spec_id,
                    "version": entry.version,
                    "title": entry.title,
                    "cases": entry.cases,
                    "hash": entry.content_hash,
                    "created_at": entry.created_at.isoformat(),
                }
                typer.echo(json.dumps(members, ensure_ascii=False))
            else:
                cases = f"{entry.cases} cases"
                typer.echo(f"{entry.spec_id}  v{entry.version}  {when(entry.created_at)}  {cases:>9}  {entry.title}")

    with_database(show)


@cli.command("verify")
def verify_problem(spec: Spec, version: Version = None, as_json: AsJson = False) -> None:
    """Run a stored problem's references again, as after a new toolchain. Exit code 1 if one fails; changes nothing."""
    settings = read_settings(quiet=True)
    problems: list[Problem] = []

    async def look() -> None:
        from app.domain.problem import Problem

        problems.append(Problem.parse((await _found(spec, version)).content))

    with_database(look)
    _tell_verified(_verified(settings, problems[0]), as_json)


async def _found(spec: int, version: int | None) -> ProblemVersion:
    from app.infrastructure.persistence.session import get_db_context
    from app.infrastructure.repositories.problem_repository import ProblemRepository

    async with get_db_context() as db:
        found = await ProblemRepository(db).get(spec, version)
    if found is None:
        raise no_such("problem", spec if version is None else f"{spec} in version {version}")
    return found


def _store(spec_id: int, problem: Problem) -> None:
    with loading():
        from app.application.services.problem_service import ProblemService
        from app.infrastructure.runner.opening import open_runner
    settings = read_settings(quiet=True)

    async def store() -> None:
        say(f"running {_runs(problem)}")
        async with AsyncExitStack() as stack:
            service = ProblemService(await open_runner(settings.runner, stack))
            version, is_new = await service.put(spec_id, problem)
        typer.echo(f"problem {spec_id}, version {version.version}{'' if is_new else ', which it was already'}")

    try:
        with_database(store)
    except TurnstoneError as error:
        _refused(error)


def _verified(settings: Settings, problem: Problem) -> Verified:
    with loading():
        from app.application.services.problem_service import verify
        from app.infrastructure.runner.opening import open_runner

    async def run() -> Verified:
        say(f"running {_runs(problem)}")
        async with AsyncExitStack() as stack:
            return await verify(await open_runner(settings.runner, stack), problem)

    try:
        return asyncio.run(run())
    except TurnstoneError as error:
        _refused(error)


def _tell_verified(verified: Verified, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(verified.to_json(), ensure_ascii=False))
        return
    for figures in verified.to_json()["references"]:
        line = "{language} passes {cases} cases: {cpu_ms} ms of CPU, {slowest_cpu_ms} at most, {most_memory_kb} KiB"
        typer.echo(line.format(**figures))


def _refused(error: TurnstoneError) -> NoReturn:
    with loading():
        from app.application.services.problem_service import ReferenceFailedError
    if not isinstance(error, ReferenceFailedError):
        fail(StartupError(error.message, "`turnstone doctor` says what is there; nothing was stored."))
    for failure in error.failures:
        typer.echo(failure)
    fail(
        StartupError(
            "The references do not pass; nothing was stored.",
            "Mend the solution, the test case, or the limits (a language may have a factor of its own).",
        )
    )


def _read_json(file: Path) -> Problem:
    with loading():
        from app.domain.problem import LARGEST_PROBLEM, Problem, ProblemError
    try:
        with file.open("rb") as opened:
            value = json.loads(opened.read(2 * LARGEST_PROBLEM + 1))
    except OSError as error:
        raise StartupError(f"{file} cannot be read: {error.strerror}.", "Choose another file.") from None
    except (ValueError, RecursionError):
        raise StartupError(f"{file} is not JSON, or too large.", "docs/problems.md has an example.") from None
    try:
        return Problem.parse(value)
    except ProblemError as error:
        _tell_faults(str(file), error)


def _tell_faults(source: str, error: ProblemError) -> NoReturn:
    for fault in error.faults:
        typer.echo(f"{source}: {fault}")
    count = "one fault" if len(error.faults) == 1 else f"{len(error.faults)} faults"
    fail(StartupError(f"{source} has {count}.", "docs/problems.md explains what a problem has, and what is imported."))


def _summary(problem: Problem) -> str:
    cases = "one test case" if len(problem.cases) == 1 else f"{len(problem.cases)} test cases"
    return f"“{problem.title[:_LONGEST_SHOWN]}”, {cases}, in {', '.join(problem.languages)}"


def _runs(problem: Problem) -> str:
    references = ", ".join(program.language for program in problem.references)
    return f"references ({references}) on {len(problem.cases)} test cases"
