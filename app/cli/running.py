"""The commands that run the service, and those that get its place ready."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from app import __version__
from app.cli.console import loading, read_settings, say

if TYPE_CHECKING:
    from app.core.settings import DatabaseSettings, Settings
    from app.server import Stopping

cli = typer.Typer()


@cli.command("serve")
def serve_command(
    host: Annotated[str | None, typer.Option(help="Where to listen [TURNSTONE_HOST].")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any [TURNSTONE_PORT].")] = None,
) -> None:
    """Run the service: REST, WebSocket and, unless TURNSTONE_WORKER__EMBEDDED=false, the background jobs."""
    with loading("starting the service"):
        settings = read_settings(host=host, port=port)
        from app.main import create_app
        from app.server import listen, run, serve

    async def main(stopping: Stopping) -> None:
        listener = listen(settings.host, settings.port)
        app = create_app(settings, say=say)
        async with app.router.lifespan_context(app):
            say(f"listening on http://{settings.host}:{listener.getsockname()[1]}/ ; Ctrl-C ends it")
            await serve(app, settings, listener, stopping)

    run(main, say)


@cli.command("worker")
def worker_command() -> None:
    """Run the background jobs alone: callbacks are delivered, prompts judged, and turns of dead processes settled."""
    with loading("starting the background jobs"):
        settings = read_settings()
        from app.server import run
        from app.worker import work

    async def main(stopping: Stopping) -> None:
        await work(settings, stopping, say=say)

    run(main, say)


@cli.command("demo")
def demo_command(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; 0: any [TURNSTONE_PORT].")] = None,
) -> None:
    """Try it out: the service, a small receiver that plays Core, and the chat page. Needs nothing else."""
    with loading("starting the demo"):
        settings = read_settings(port=port, quiet=True)
        from app.demo import demo
        from app.server import run

    async def main(stopping: Stopping) -> None:
        await demo(settings, stopping, say=say)

    run(main, say)


@cli.command("migrate")
def migrate_command() -> None:
    """Bring the database's tables to this version. Safe to run at any time and from several places at once."""
    with loading():
        settings = read_settings()
        from app.bootstrap import open_database

    async def main() -> None:
        async with open_database(settings.model_copy(update={"database": _migrating(settings)})):
            typer.echo("The database is up to date.")

    asyncio.run(main())


@cli.command("doctor")
def doctor_command() -> None:
    """Check everything the service needs, and say what to do about what is missing."""
    with loading():
        settings = read_settings(quiet=True)
        from app.doctor import examine

    failed = 0
    for finding in asyncio.run(examine(settings)):
        failed += not finding.ok
        typer.secho(
            f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}: {finding.found}", fg=None if finding.ok else "red"
        )
        if finding.remedy:
            typer.echo(f"      {finding.remedy}")
    raise typer.Exit(1 if failed else 0)


@cli.command("version")
def version_command() -> None:
    """Print the version."""
    typer.echo(__version__)


def _migrating(settings: Settings) -> DatabaseSettings:
    return settings.database.model_copy(update={"migrate": True})
