"""Redis as this service uses it: small, optional, and never waited for long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

log = structlog.get_logger()

_REST_AFTER_FAULT_S = 1.0


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """Fields to append to a stream that expires ``ttl_s`` seconds after its last entry."""

    key: str
    fields: dict[str, bytes | str | int]
    ttl_s: int


class RedisClient:
    """Streams with an expiry. Redis may vanish at any time: every call then says so by its result, and none raises.

    After a fault Redis is left alone for a second, so that its absence costs nothing.

    Args:
        url: ``redis://…``
        timeout_s: longest wait for one command.
    """

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._resting_until = 0.0
        self._down = False

    async def append(self, entries: Sequence[StreamEntry]) -> bool:
        """Append entries to their streams in one round trip; ``False`` where Redis was not there."""
        if not entries or not self._try_now():
            return not entries
        pipeline = self._redis.pipeline(transaction=False)
        for entry in entries:
            pipeline.xadd(entry.key, entry.fields)  # type: ignore[arg-type]  # its own alias is narrower than it takes
            pipeline.expire(entry.key, entry.ttl_s)
        try:
            await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._note_fault(error)
            return False
        self._note_success()
        return True

    async def entries(self, key: str) -> list[dict[bytes, bytes]] | None:
        """All entries of a stream, oldest first; empty where it does not exist, ``None`` where Redis was not there."""
        if not self._try_now():
            return None
        try:
            found: Any = await self._redis.xrange(key)
        except (RedisError, OSError, TimeoutError) as error:
            self._note_fault(error)
            return None
        self._note_success()
        return [fields for _, fields in found]

    async def ping(self) -> bool:
        """Whether Redis answers now."""
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def _try_now(self) -> bool:
        return time.monotonic() >= self._resting_until

    def _note_fault(self, error: Exception) -> None:
        self._resting_until = time.monotonic() + _REST_AFTER_FAULT_S
        if not self._down:
            log.warning("redis_unavailable", error=type(error).__name__)
        self._down = True

    def _note_success(self) -> None:
        if self._down:
            log.info("redis_available_again")
        self._down = False
