"""One try of one callback: sign, POST, and say what became of it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiohttp
from standardwebhooks.webhooks import Webhook

from app.core.http import parse_retry_after
from app.core.settings import CallbackSettings
from app.infrastructure.profiles import PROFILES, Skipped

_BODY_START_BYTES = 500
"""Read of an answer that is no success, for whoever looks into it later; the rest stays where it is."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """Core answered 2xx."""

    status: int = 200


@dataclass(frozen=True, slots=True)
class Refused:
    """Core answered something else.

    ``retry_after_s`` is set where it said when to come again; ``body_start`` holds the first bytes of what else it
    said, as text.
    """

    status: int
    retry_after_s: float | None = None
    body_start: str = ""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """No answer. ``reason`` is the kind of the fault.

    ``connected`` is off where there certainly was no connection, so that Core has not seen the event. ``nobody``: there
    was none, or silence until the time was up; else somebody was there and broke off, perhaps over this very event.
    """

    reason: str
    connected: bool = True
    nobody: bool = True


class WebhookSender:
    """POSTs events to Core over kept-alive connections."""

    def __init__(self, settings: CallbackSettings) -> None:
        assert settings.url is not None, "there is somebody to tell"
        self._profile = PROFILES[settings.profile]
        self._url = settings.url if settings.profile == "standard" else settings.url.rstrip("/")
        self._headers = {"content-type": "application/json", "user-agent": "turnstone", "accept-encoding": "identity"}
        if settings.api_key is not None:
            self._headers["x-api-key"] = settings.api_key.get_secret_value()
        secrets = (settings.signing_secret, settings.previous_secret)
        self._signers = [Webhook(secret.get_secret_value()) for secret in secrets if secret is not None]
        self._secrets = [key.get_secret_value() for key in (settings.api_key, *secrets) if key is not None]
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout_s)
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=not self._profile.keeps_connections),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # a few bytes may unpack to gigabytes
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
        if self._signers:
            headers["webhook-signature"] = " ".join(signer.sign(event_id, now, data) for signer in self._signers)
        try:
            url = self._url + request.path
            async with self._client.post(
                url, data=data.encode(), headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                if 200 <= response.status < 300:
                    return Delivered(response.status)
                retry_after_s = parse_retry_after(response.headers.get("retry-after"))
                return Refused(response.status, retry_after_s, await self._start_of(response))
        except TimeoutError:
            return Unreachable("timeout")
        except aiohttp.ClientConnectorError as error:
            return Unreachable(type(error).__name__, connected=False)
        except (aiohttp.ClientError, OSError) as error:
            return Unreachable(type(error).__name__, nobody=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _start_of(self, response: aiohttp.ClientResponse) -> str:
        """The first bytes of an answer's body; whether they come does not change what the answer was.

        It is kept and shown, so where Core quotes what it was sent, the secrets are left out.
        """
        start = b""
        with suppress(TimeoutError, aiohttp.ClientError, OSError):
            while len(start) < _BODY_START_BYTES and (
                more := await response.content.read(_BODY_START_BYTES - len(start))
            ):
                start += more
        said = start.decode("utf-8", "replace").replace("\x00", "\ufffd")
        for secret in self._secrets:
            said = said.replace(secret, "[secret]")
        return said
