"""Redis as this service uses it: small, optional, and never waited for long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from app.core.errors import StartupError

log = structlog.get_logger()

_REST_AFTER_FAULT_S = 1.0
_FAULTS = (RedisError, OSError, TimeoutError, RuntimeError)
"""uvloop raises the last one where a connection that was reset while it was idle is written to."""


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """Fields to append to a stream that expires ``ttl_s`` seconds after its last entry.

    ``begins``: whatever the stream held before goes. Without fields nothing is appended.
    """

    key: str
    ttl_s: int
    fields: dict[str, bytes | str | int] = field(default_factory=dict)
    begins: bool = False


class RedisClient:
    """Streams with an expiry. Redis may vanish at any time: every call then says so by its result, and none raises.

    After a fault Redis is left alone for a second, so that its absence costs nothing.

    Args:
        url: ``redis://…``
        timeout_s: longest wait for one command.

    Raises:
        StartupError: the URL cannot be read.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        try:
            self._redis: Redis = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                decode_responses=False,
            )
        except ValueError:  # its text may quote the password
            raise StartupError(
                "TURNSTONE_REDIS__URL is not an address of Redis.", "Write it as redis://[user:password@]host:port/0."
            ) from None
        self._resting_until = 0.0
        self._down = False

    @property
    def resting(self) -> bool:
        """Whether Redis is left alone just now, because it failed a moment ago."""
        return time.monotonic() < self._resting_until

    async def write(self, entries: Sequence[StreamEntry], *, remove: Iterable[str] = ()) -> bool:
        """Append entries to their streams and remove other streams, in one round trip.

        ``False`` where Redis was not there; what was written then is not known.
        """
        if self.resting:
            return False
        pipeline = self._redis.pipeline(transaction=False)
        for key in remove:
            pipeline.unlink(key)
        for entry in entries:
            if entry.begins:
                pipeline.unlink(entry.key)
            if entry.fields:
                pipeline.xadd(entry.key, entry.fields)  # type: ignore[arg-type]  # its alias is narrower than it takes
                pipeline.expire(entry.key, entry.ttl_s)
        try:
            await pipeline.execute()
        except _FAULTS as error:
            self._note_fault(error)
            return False
        self._note_success()
        return True

    async def entries(self, key: str, *, since: str = "-") -> list[tuple[str, dict[bytes, bytes]]] | None:
        """A stream's entries with their ids, from the id ``since`` on, oldest first.

        Empty where there are none, ``None`` where Redis was not there.
        """
        if self.resting:
            return None
        try:
            found: Any = await self._redis.xrange(key, min=since)
        except _FAULTS as error:
            self._note_fault(error)
            return None
        self._note_success()
        return [(entry_id.decode(), fields) for entry_id, fields in found]

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            await self._redis.ping()
        except _FAULTS:
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _note_fault(self, error: Exception) -> None:
        self._resting_until = time.monotonic() + _REST_AFTER_FAULT_S
        if not self._down:
            log.warning("redis_unavailable", error=type(error).__name__)
        self._down = True

    def _note_success(self) -> None:
        if self._down:
            log.info("redis_available_again")
        self._down = False
