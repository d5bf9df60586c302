"""``turnstone fake-core``: a Core that misbehaves on order."""

from __future__ import annotations

import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.console import loading, read_settings, say
from app.core.errors import StartupError

if TYPE_CHECKING:
    from app.fake_core.chaos import Chaos
    from app.server import Stopping

cli = typer.Typer()

_INTRODUCTION = """Play Core: take callbacks, show what came, and misbehave on order.

\b
It listens on this machine only, checks signatures, takes each webhook-id
once, and keeps what it took in order. GET / shows counts,
GET /events?after=0&session_id=1 what it took. Point
TURNSTONE_CALLBACKS__URL at the address that it prints.

\b
--chaos takes words with probabilities, between commas:
  turnstone fake-core --chaos "500:0.1,hang:0.02,lost-answer:0.05" --seed 7
and times, one after the other; after the last one all is well:
  turnstone fake-core --chaos "down 20s then 503=2:0.5,reset:0.1 5m"
"""


def _language() -> str:
    from app.fake_core.chaos import PHASES, WORDS

    entries = {**{f"{word}:P": meaning for word, meaning in WORDS.items()}, **PHASES}
    lines = (
        textwrap.fill(meaning, width=72, initial_indent=f"  {name:<15}", subsequent_indent=" " * 17)
        for name, meaning in entries.items()
    )
    return "\n".join(lines)


def _read_chaos(text: str, seed: int) -> Chaos:
    from app.fake_core.chaos import Chaos, ChaosError

    try:
        return Chaos(text, seed)
    except ChaosError as error:
        raise typer.BadParameter(f"{error}\n\n{_language()}", param_hint="--chaos") from None


@cli.command("fake-core", help=f"{_INTRODUCTION}\n\b\n{_language()}")
def fake_core_command(
    chaos: Annotated[str, typer.Option(help="How to misbehave; nothing: not at all.")] = "",
    seed: Annotated[int, typer.Option(help="Of what chance decides; the same one, the same faults.")] = 0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any.")] = 8001,
    secret: Annotated[
        str | None, typer.Option(help="whsec_… to check signatures by [TURNSTONE_CALLBACKS__SIGNING_SECRET].")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Keep what was taken in this file too (JSON Lines), and go on from what it holds."),
    ] = None,
) -> None:
    """Run it until a signal."""
    decided = _read_chaos(chaos, seed)
    with loading():
        settings = read_settings(quiet=True, **({"callbacks": {"signing_secret": secret}} if secret else {}))
        from app.fake_core.ledger import Ledger
        from app.fake_core.receiver import Receiver
        from app.fake_core.server import PATH, CoreServer, serving
        from app.fake_core.store import Store
        from app.server import listen, run

    known = settings.callbacks.signing_secret, settings.callbacks.api_key
    signing_secret, api_key = (key.get_secret_value() if key is not None else None for key in known)

    async def main(stopping: Stopping) -> None:
        with ExitStack() as stack:
            kept = Store(store) if store is not None else None
            if kept is not None:
                stack.callback(kept.close)
            core = CoreServer(Receiver(secret=signing_secret, api_key=api_key), decided, Ledger(), kept)
            try:
                listener = listen("127.0.0.1", port)
            except StartupError as error:
                raise StartupError(error.problem, "End it, or choose another port with --port.") from None
            async with serving(core.application(), listener):
                stopping.wait_instead(hurry=lambda: None)
                if core.ledger.taken:
                    say(f"{core.ledger.taken} events were taken before")
                say(f"Core listens on http://127.0.0.1:{listener.getsockname()[1]}{PATH} ; Ctrl-C ends it")
                await stopping.asked.wait()

    run(main, say)
