"""The demo: the service, and a small receiver that plays Core and shows what it was told."""

from __future__ import annotations

import base64
import itertools
import secrets
from collections import deque
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.bootstrap import Say
from app.core.settings import Settings
from app.main import create_app
from app.server import Stopping, listen, serve, serving

_KEPT = 500
_EVENTS = "/demo/core/events"


class DemoCore:
    """A receiver of callbacks that checks signatures and remembers what came."""

    def __init__(self, secret: str) -> None:
        self._webhook = Webhook(secret)
        self._events: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._numbers = itertools.count(1)
        # The numbers begin anew with each start; by this a page that was open before it notices.
        self._epoch = secrets.token_hex(8)

    def receive(self, body: bytes, headers: dict[str, str]) -> bool:
        """Take one callback; ``False`` when its signature is wrong."""
        try:
            event = self._webhook.verify(body, headers)
        except WebhookVerificationError:
            return False
        shown = {name: headers[name] for name in ("webhook-id", "webhook-timestamp") if name in headers}
        self._events.append(
            {
                "n": next(self._numbers),
                "received_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "headers": shown,
                "body": event,
            }
        )
        return True

    def events(self, after: int) -> dict[str, Any]:
        """What came after number ``after``; ``epoch`` names the run whose numbers these are."""
        items = [event for event in self._events if event["n"] > after]
        return {"epoch": self._epoch, "items": items, "next": items[-1]["n"] if items else after}

    def app(self) -> FastAPI:
        """The receiver as an application of its own."""
        app = FastAPI(title="Demo Core", openapi_url=None)

        @app.post("/callbacks")
        async def callbacks(request: Request) -> Response:
            accepted = self.receive(await request.body(), dict(request.headers))
            return Response(status_code=204 if accepted else 401)

        return app


async def demo(settings: Settings, stopping: Stopping, *, say: Say) -> None:
    """Run the demo until a signal.

    Raises:
        StartupError: something cannot be used, and what to do about it.
    """
    listener, core_listener = listen(settings.host, settings.port), listen("127.0.0.1", 0)
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
    core = DemoCore(secret)
    port, core_port = listener.getsockname()[1], core_listener.getsockname()[1]
    callbacks = settings.callbacks.model_copy(
        update={"url": f"http://127.0.0.1:{core_port}/callbacks", "signing_secret": SecretStr(secret)}
    )
    settings = settings.model_copy(update={"callbacks": callbacks})
    app = create_app(settings, say=say)

    app.state.core_events = _EVENTS  # the page is told where to look

    @app.get(_EVENTS, include_in_schema=False)
    async def events(after: int = 0) -> JSONResponse:
        return JSONResponse(core.events(after))

    # Core goes last, so that it hears of what ended last.
    async with serving(core.app(), settings, core_listener), app.router.lifespan_context(app):
        say("ready")
        say(f"  chat page      http://127.0.0.1:{port}/")
        say(f"  OpenAPI        http://127.0.0.1:{port}/openapi.json")
        say(f"  WebSocket      ws://127.0.0.1:{port}/chat")
        say(f"  Core receiver  http://127.0.0.1:{core_port}/callbacks (shown beside the chat)")
        say("Ctrl-C stops all of it")
        await serve(app, settings, listener, stopping)
