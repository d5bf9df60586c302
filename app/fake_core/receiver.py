"""Reads one POST as Core does, and answers it, or not, as told."""

from __future__ import annotations

import asyncio
import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook, WebhookVerificationError

from app.fake_core.answer import Answer

LARGEST_BODY = 64 * 1024 * 1024
"""Bytes; a longer answer than any model gives, with room for all else."""


@dataclass(slots=True, eq=False)
class Delivery:
    """One POST as it came. ``at`` is ``time.monotonic()`` seconds.

    Attributes:
        headers: with names in lower case.
        body: the parsed JSON object; empty when it was none.
        signature: whether the Standard Webhooks signature fits; ``None`` when no secret is known.
        key: whether it bears the right ``X-API-Key``; ``None`` when none is asked for.
        status: what was answered; ``None`` while nothing was.
        ended_at: when the answer was sent or the connection ended.
    """

    headers: Mapping[str, str]
    raw: bytes
    body: dict[str, Any]
    at: float
    signature: bool | None
    key: bool | None
    status: int | None = None
    ended_at: float | None = None
    path: str = ""

    @property
    def id(self) -> str | None:
        """``webhook-id``, the same for every try of one event."""
        return self.headers.get("webhook-id")

    @property
    def session_id(self) -> str:
        """The session it belongs to, as text; empty when the body names none."""
        return str(self.body.get("session_id", ""))

    @property
    def seq(self) -> int | None:
        """``callback_seq``."""
        return self.body.get("callback_seq")

    @property
    def type(self) -> str | None:
        """The event's type."""
        return self.body.get("type")

    @property
    def accepted(self) -> bool:
        """Whether it was answered with a 2xx."""
        return self.status is not None and 200 <= self.status < 300

    @property
    def trusted(self) -> bool:
        """Whether neither signature nor key is wrong."""
        return self.signature is not False and self.key is not False


class Receiver:
    """Reads POSTs, and checks what Core is given to check them by.

    Args:
        secret: ``whsec_…``, of the signatures; ``None``: they are not looked at.
        api_key: that ``X-API-Key`` has to bear; ``None``: any.
    """

    def __init__(self, *, secret: str | None = None, api_key: str | None = None) -> None:
        self._webhook = Webhook(secret) if secret is not None else None
        self._api_key = api_key

    async def read(self, request: web.Request) -> Delivery:
        """The POST, read to its end."""
        at = time.monotonic()
        raw = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        key = None if self._api_key is None else headers.get("x-api-key") == self._api_key
        return Delivery(headers, raw, _parse(raw), at, self._verify(raw, headers), key, path=request.path)

    def _verify(self, raw: bytes, headers: dict[str, str]) -> bool | None:
        if self._webhook is None:
            return None
        try:
            self._webhook.verify(raw, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):  # ValueError: the header cannot be read at all
            return False
        return True


async def give(request: web.Request, delivery: Delivery, answer: Answer) -> web.Response:
    """Answer a POST, or do with its connection what stands in the place of an answer; notes it in ``delivery``."""
    try:
        if answer.action == "hang":
            await asyncio.sleep(math.inf)
        if answer.delay_s > 0:
            await asyncio.sleep(answer.delay_s)
        if answer.action == "reset":
            reset_connection(request.transport)
        elif answer.action == "close":
            close_connection(request.transport)
        else:
            delivery.status = answer.status
    finally:
        delivery.ended_at = time.monotonic()
    return web.Response(
        status=answer.status, headers=list(answer.headers), text=answer.body, content_type="application/json"
    )


def reset_connection(transport: asyncio.Transport | None) -> None:
    """Close with RST in the place of FIN; what was not sent yet is lost. Nothing happens where it has gone already."""
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def close_connection(transport: asyncio.Transport | None) -> None:
    """Close with FIN."""
    if transport is not None:
        transport.close()


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
