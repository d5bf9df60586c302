"""One try of one callback: sign, POST, and say what became of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from standardwebhooks.webhooks import Webhook

from app.core.http import parse_retry_after
from app.core.settings import CallbackSettings
from app.infrastructure.profiles import PROFILES, Skipped


@dataclass(frozen=True, slots=True)
class Delivered:
    """Core answered 2xx."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Core answered something else. ``retry_after_s`` is set where it said when to come again."""

    status: int
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer: no connection, or none in time. ``reason`` is the kind of the fault.

    ``connected`` is off where there certainly was no connection, so that Core has not seen the event.
    """

    reason: str
    connected: bool = True


class WebhookSender:
    """POSTs events to Core over kept-alive connections."""

    def __init__(self, settings: CallbackSettings) -> None:
        assert settings.url is not None, "there is somebody to tell"
        self._profile = PROFILES[settings.profile]
        self._url = settings.url if settings.profile == "standard" else settings.url.rstrip("/")
        self._headers = {"content-type": "application/json", "user-agent": "turnstone"}
        if settings.api_key is not None:
            self._headers["x-api-key"] = settings.api_key.get_secret_value()
        secret = settings.signing_secret
        self._signer = Webhook(secret.get_secret_value()) if secret is not None else None
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not self._profile.keeps_connections),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    def sends_once(self, kind: str) -> bool:
        """Whether an event of this type must not be sent again where it may have arrived."""
        return kind in self._profile.once

    async def send(self, event_id: str, body: dict[str, Any]) -> Delivered | Refused | Unreachable | Skipped:
        """Make one try; every failure is a value."""
        request = self._profile.request_for(body)
        if isinstance(request, Skipped):
            return request
        data = json.dumps(request.body, ensure_ascii=False, separators=(",", ":"))
        now = datetime.now(UTC)
        headers = {
            **self._headers,
            "webhook-id": event_id,
            "webhook-timestamp": str(int(now.timestamp())),
        }
        if self._signer is not None:
            headers["webhook-signature"] = self._signer.sign(event_id, now, data)
        try:
            url = self._url + request.path
            async with self._client.post(
                url, data=data.encode(), headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return Delivered()
                return Refused(response.status, parse_retry_after(response.headers.get("retry-after")))
        except aiohttp.ClientConnectorError as error:
            return Unreachable(type(error).__name__, connected=False)
        except TimeoutError:
            return Unreachable("timeout")
        except (aiohttp.ClientError, OSError) as error:
            return Unreachable(type(error).__name__)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
