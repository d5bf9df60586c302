"""What Core has to serve, in the OpenAPI document: one webhook for each type of callback, all at Core's one address."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header
from pydantic.json_schema import SkipJsonSchema

from app.presentation.schemas.callbacks import CALLBACKS

_WEBHOOK_ID = Header(
    description="names the event: the same for every try of it. Who remembers it takes each event once"
)
_WEBHOOK_TIMESTAMP = Header(
    description="seconds since 1970 of this try. One that is more than five minutes off is to be refused",
    pattern="^[0-9]+$",
)
_WEBHOOK_SIGNATURE = Header(
    description="Standard Webhooks: `v1,` and the base64 HMAC-SHA256 of `<webhook-id>.<webhook-timestamp>.<raw body>`. "
    "There where TURNSTONE_CALLBACKS__SIGNING_SECRET is set; while secrets are changed there are several, separated by "
    "spaces, of which one that fits is enough"
)
_API_KEY = Header(alias="X-API-Key", description="there where TURNSTONE_CALLBACKS__API_KEY is set")

_RETRY_AFTER = {
    "Retry-After": {"description": "seconds until the next try, or its date", "schema": {"type": "string"}},
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    "2XX": {"description": "Any other 2xx says the same as 204. It has to come within 15 s, and its body is not read."},
    400: {"description": "Cannot be taken as it is: given up after three tries. So are 413 and 422."},
    410: {"description": "Given up at once; those behind it go on."},
    413: {"description": "As 400."},
    422: {"description": "As 400."},
    429: {
        "description": "Not now: tried again at the time of `Retry-After`, and without one as by default.",
        "headers": _RETRY_AFTER,
    },
    503: {"description": "As 429.", "headers": _RETRY_AFTER},
    "default": {
        "description": "Anything else, a redirect too, and no answer: tried again after the configured delays, the "
        "session's later events behind it. Out of tries it is kept as `failed` and can be replayed."
    },
}


def describe(app: FastAPI) -> None:
    """Add the webhooks to the application's document. They are not served here."""
    for name, model in CALLBACKS.items():
        app.webhooks.add_api_route(
            name,
            _receiver_of(model),
            methods=["POST"],
            status_code=204,
            response_description="Taken.",
            responses=_RESPONSES,
            tags=["webhooks"],
            summary=name,
            operation_id=f"receive_{name}",
            description=model.__doc__,
        )


def _receiver_of(model: Any) -> Any:
    """A function whose signature says what comes; nobody calls it."""

    def receive(
        body: Any,
        webhook_id: Annotated[str, _WEBHOOK_ID],
        webhook_timestamp: Annotated[str, _WEBHOOK_TIMESTAMP],
        webhook_signature: Annotated[str | SkipJsonSchema[None], _WEBHOOK_SIGNATURE] = None,
        x_api_key: Annotated[str | SkipJsonSchema[None], _API_KEY] = None,
    ) -> None: ...

    receive.__annotations__["body"] = model
    return receive
