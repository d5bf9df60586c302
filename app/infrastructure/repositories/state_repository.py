"""The live-turn store: the logs of turns that run now, found by session and turn id.

A turn's log lives in the process that runs it. With Redis it is mirrored into a stream, from which other processes
read; without, this process is the only one that needs it. PostgreSQL stays the truth: whatever is lost here is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Place:
    """How far somebody has read: the last delta, and the stream's entry that held it."""

    seq: int
    entry: str = "-"


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

    async def read(self, key: TurnKey, place: Place | None = None) -> tuple[StoredText, Place] | None:
        """Text of a running turn, this process's or another's, and the place behind it.

        Args:
            key: the turn.
            place: what an earlier read returned; then only what came since, or all of it where that cannot be told.

        Returns:
            ``None`` where the store knows nothing of the turn, or not all.
        """
        log = self._logs.get(key)
        if log is not None:
            first = place.seq if place is not None else 0
            piece = log.since(first)
            contents = log.contents[first:]
            text = StoredText("" if piece is None else piece.content, [len(part) for part in contents], first + 1)
            return text, Place(log.last_seq)
        if self._redis is None:
            return None
        if place is None:
            return _text_of(await self._redis.entries(_stream(key)), Place(0))
        # The last entry that was read is read again: where it is gone, the stream is another one by now.
        entries = await self._redis.entries(_stream(key), since=place.entry)
        if not entries or entries[0][0] != place.entry:
            return await self.read(key)
        return _text_of(entries[1:], place)

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


def _text_of(
    entries: Sequence[tuple[str, Mapping[bytes, bytes]]] | None, place: Place
) -> tuple[StoredText, Place] | None:
    """The text of a stream's entries behind ``place``; ``None`` where a part of it is missing."""
    if not entries:
        return (StoredText("", [], place.seq + 1), place) if place.seq else None
    lengths = unpack_lengths(b"".join(fields[b"lengths"] for _, fields in entries))
    last_entry, last = entries[-1]
    last_seq = int(last[b"last_seq"])
    if int(entries[0][1][b"first_seq"]) != place.seq + 1 or last_seq != place.seq + len(lengths):
        return None  # Redis has lost a part; the database has not
    content = b"".join(fields[b"content"] for _, fields in entries).decode()
    return StoredText(content, lengths, place.seq + 1), Place(last_seq, last_entry)


def _stream(key: TurnKey) -> str:
    return f"turnstone:turn:{key.session_id}:{key.turn_id}"
