"""The demo: the service, and a small receiver that plays Core and shows what it was told."""

from __future__ import annotations

import base64
import secrets

from fastapi.responses import JSONResponse
from pydantic import SecretStr

from app.bootstrap import Say
from app.core.settings import Settings
from app.fake_core.chaos import Chaos
from app.fake_core.ledger import Ledger
from app.fake_core.receiver import Receiver
from app.fake_core.server import PATH, CoreServer, serving
from app.main import create_app
from app.server import Stopping, listen, serve

_KEPT = 500
_EVENTS = "/demo/core/events"


async def demo(settings: Settings, stopping: Stopping, *, say: Say) -> None:
    """Run the demo until a signal.

    Raises:
        StartupError: something cannot be used, and what to do about it.
    """
    listener, core_listener = listen(settings.host, settings.port), listen("127.0.0.1", 0)
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
    # It knows no event again, so that a replay is seen to arrive.
    core = CoreServer(Receiver(secret=secret), Chaos("forget:1"), Ledger(keep=_KEPT))
    port, core_port = listener.getsockname()[1], core_listener.getsockname()[1]
    callbacks = settings.callbacks.model_copy(
        update={"url": f"http://127.0.0.1:{core_port}{PATH}", "signing_secret": SecretStr(secret)}
    )
    settings = settings.model_copy(update={"callbacks": callbacks})
    app = create_app(settings, say=say)

    app.state.core_events = _EVENTS  # the page is told where to look

    @app.get(_EVENTS, include_in_schema=False)
    async def events(after: int = 0) -> JSONResponse:
        return JSONResponse(core.ledger.events(after=after))

    # Core goes last, so that it hears of what ended last.
    async with serving(core.application(), core_listener), app.router.lifespan_context(app):
        say("ready")
        say(f"  chat page      http://127.0.0.1:{port}/")
        say(f"  OpenAPI        http://127.0.0.1:{port}/openapi.json")
        say(f"  WebSocket      ws://127.0.0.1:{port}/chat")
        say(f"  Core receiver  http://127.0.0.1:{core_port}{PATH} (shown beside the chat)")
        say("Ctrl-C stops all of it")
        await serve(app, settings, listener, stopping)
