"""The live-turn store: the logs of turns that run now, found by session and turn id.

A turn's log lives in the process that runs it. With Redis it is mirrored into a stream, from which other processes
read; without, this process is the only one that needs it. PostgreSQL stays the truth: whatever is lost here is there.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from app.domain.turn_log import TurnLog
from app.infrastructure.cache.redis_client import RedisClient, StreamEntry
from app.infrastructure.repositories.turn_repository import StoredText, pack_lengths, unpack_lengths

_TTL_S = 3600
"""A stream is removed when its turn ends; this is for those whose process could not."""
_MIRROR_INTERVAL_S = 0.05


class TurnKey(NamedTuple):
    """A turn as clients name it; ``turn_id`` is the client's id as text."""

    session_id: int
    turn_id: str


class StateRepository:
    """Logs of running turns.

    Args:
        redis: where to mirror them; ``None`` keeps them in this process.
    """

    def __init__(self, redis: RedisClient | None = None) -> None:
        self._redis = redis
        self._logs: dict[TurnKey, TurnLog] = {}
        self._mirrored: dict[TurnKey, int] = {}
        self._ended: list[TurnKey] = []

    def __len__(self) -> int:
        """How many turns run in this process."""
        return len(self._logs)

    def open(self, key: TurnKey) -> TurnLog:
        """Begin the log of a turn that this process runs."""
        log = self._logs[key] = TurnLog()
        return log

    def get(self, key: TurnKey) -> TurnLog | None:
        """The log of a turn that this process runs."""
        return self._logs.get(key)

    def close(self, key: TurnKey) -> None:
        """The turn has ended: what readers still need they hold, and everybody else finds it in the database."""
        if self._logs.pop(key, None) is not None and self._redis is not None:
            self._ended.append(key)

    async def read(self, key: TurnKey) -> StoredText | None:
        """Text of a running turn, this process's or another's; ``None`` where the store knows nothing of it."""
        log = self._logs.get(key)
        if log is not None:
            return StoredText(log.text, log.lengths)
        if self._redis is None:
            return None
        entries = await self._redis.entries(_stream(key))
        if not entries:
            return None
        lengths = unpack_lengths(b"".join(entry[b"lengths"] for entry in entries))
        if int(entries[0][b"first_seq"]) != 1 or int(entries[-1][b"last_seq"]) != len(lengths):
            return None  # Redis has lost a part; the database has not
        return StoredText(b"".join(entry[b"content"] for entry in entries).decode(), lengths)

    async def mirror(self) -> None:
        """Copy new deltas to Redis; does nothing without it.

        After a fault nobody knows what Redis still holds, so every stream is begun anew.
        """
        if self._redis is None or self._redis.resting:
            return
        ended, self._ended = self._ended, []
        reached = {key: log.last_seq for key, log in self._logs.items() if self._mirrored.get(key) != log.last_seq}
        if not reached and not ended:
            return
        entries = [self._entry(key) for key in reached]
        if await self._redis.write(entries, remove=[_stream(key) for key in ended]):
            self._mirrored.update(reached)
        else:
            self._mirrored.clear()
        for key in ended:
            self._mirrored.pop(key, None)

    async def run(self) -> None:
        """Mirror until cancelled."""
        if self._redis is None:
            return
        try:
            while True:
                await asyncio.sleep(_MIRROR_INTERVAL_S)
                await self.mirror()
        finally:
            await self.mirror()  # the streams of the last turns go too

    def _entry(self, key: TurnKey) -> StreamEntry:
        """What Redis has not got of a log yet. A stream is begun before there is text, so that it holds no other's."""
        log, copied = self._logs[key], self._mirrored.get(key)
        piece = log.since(copied or 0)
        fields: dict[str, bytes | str | int] = {}
        if piece is not None:
            lengths = [len(content) for content in log.contents[piece.first_seq - 1 : piece.last_seq]]
            fields = {
                "first_seq": piece.first_seq,
                "last_seq": piece.last_seq,
                "content": piece.content.encode(),
                "lengths": pack_lengths(lengths),
            }
        return StreamEntry(_stream(key), _TTL_S, fields, begins=copied is None)


def _stream(key: TurnKey) -> str:
    return f"turnstone:turn:{key.session_id}:{key.turn_id}"
