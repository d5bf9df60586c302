"""One client's WebSocket: an outbox that never makes a turn wait, and the turns the client reads.

A delta goes from the provider's read to the socket's buffer in one tick, without a task switch: the ASGI ``send`` is
driven by hand, and as long as the socket takes data it finishes at once. Only when the client is slow it does not; then
a task waits for room, and what has come meanwhile is joined into one frame.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol

import structlog
from starlette.websockets import WebSocketDisconnect

from app.application.submissions.followers import Followers
from app.application.turns.exchange import AttachedTurn
from app.core import metrics
from app.domain.submission import SubmissionId, SubmissionNews
from app.domain.turn_log import Ending, TurnLog
from app.presentation.schemas.frames import TurnFrames, submission_frame

log = structlog.get_logger()

Send = Callable[[dict[str, Any]], Coroutine[Any, Any, None]]

_MOST_WAITING = 32
"""Answers that may wait for a client before nothing more is read from it."""
_STATUS_ORDER = ("QUEUED", "RUNNING", "FAILED", "DONE")
_MOST_FOLLOWED = 256
"""Sessions whose submissions one connection is told of."""


class Source(Protocol):
    """Something that has frames to send, and makes each one only when there is room for it."""

    def next_frame(self) -> str | None:
        """The next frame; ``None`` where there is none for now."""


class _Rest:
    """Awaits the rest of a coroutine that was begun by hand and has yielded ``waiting_for``."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], waiting_for: Any) -> None:
        self._coroutine = coroutine
        self._waiting_for = waiting_for

    def __await__(self) -> Generator[Any, Any, None]:
        while True:
            try:
                value = yield self._waiting_for
            except BaseException as error:  # noqa: BLE001  # it is passed on to where it belongs
                step: Callable[[], Any] = lambda error=error: self._coroutine.throw(error)  # type: ignore[misc]  # noqa: E731
            else:
                step = lambda value=value: self._coroutine.send(value)  # type: ignore[misc]  # noqa: E731
            try:
                self._waiting_for = step()
            except StopIteration:
                return


class Outbox:
    """Sends frames to one client, in order for each source.

    Args:
        send: the connection's ASGI send.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._backlog: deque[Source] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._blocked_at = 0.0
        self.closed = False

    def say(self, frame: str) -> None:
        """Send one frame, after what waits already."""
        self.offer(_Once(frame))

    def offer(self, source: Source) -> None:
        """Send what ``source`` has: now, where the client takes it, or as soon as it does."""
        if self.closed:
            return
        if self._pump is not None:
            if source not in self._backlog:
                self._backlog.append(source)
            return
        while (frame := source.next_frame()) is not None:
            rest = self._begin(frame)
            if rest is not None:
                self._blocked_at = time.monotonic()
                self._backlog.append(source)
                self._pump = asyncio.create_task(self._catch_up(rest), name="outbox")
                return
            if self.closed:
                return

    async def room(self) -> None:
        """Wait until there is room for more answers.

        Who asks and asks and does not read is not read from either; but who is only slow can still stop a turn.
        """
        while self._pump is not None and len(self._backlog) >= _MOST_WAITING:
            await asyncio.wait([self._pump])

    async def close(self) -> None:
        """Send nothing any more."""
        self.closed = True
        self._backlog.clear()
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])

    def _begin(self, frame: str) -> Awaitable[None] | None:
        """Begin to send; returns what is left to await, or ``None`` when the frame is in the socket's buffer."""
        coroutine = self._send({"type": "websocket.send", "text": frame})
        try:
            waiting_for = coroutine.send(None)
        except StopIteration:
            return None
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.closed = True  # the reading side notices too, and tidies up
            return None
        return _Rest(coroutine, waiting_for)

    async def _catch_up(self, rest: Awaitable[None]) -> None:
        try:
            await rest
            metrics.DELTA_LAG.observe(time.monotonic() - self._blocked_at)
            while self._backlog and not self.closed:
                source = self._backlog.popleft()
                frame = source.next_frame()
                if frame is not None:
                    self._backlog.append(source)  # behind the others: a fast turn does not keep them waiting
                    await self._send({"type": "websocket.send", "text": frame})
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.closed = True
        finally:
            self._pump = None


class _Once:
    """A source of one frame."""

    __slots__ = ("_frame",)

    def __init__(self, frame: str) -> None:
        self._frame: str | None = frame

    def next_frame(self) -> str | None:
        frame, self._frame = self._frame, None
        return frame


class SocketReader:
    """Reads one turn for one client: its deltas after ``after_seq``, then its ending."""

    __slots__ = ("_cursor", "_frames", "_log", "_on_end", "_outbox", "_stopped")

    def __init__(
        self, attached: AttachedTurn, outbox: Outbox, *, after_seq: int, on_end: Callable[[Ending], None]
    ) -> None:
        self._log: TurnLog = attached.log
        self._frames = TurnFrames(attached.started)
        self._outbox = outbox
        self._cursor = after_seq
        self._on_end = on_end
        self._stopped = False

    @classmethod
    def of_ending(cls, attached: AttachedTurn, outbox: Outbox, *, on_end: Callable[[Ending], None]) -> SocketReader:
        """A reader that shows nothing but the ending."""
        return cls(attached, outbox, after_seq=2**31, on_end=on_end)

    def start(self) -> None:
        """Read from now on; what is there already is sent at once."""
        self._log.attach(self)
        self.wake()

    def stop(self) -> None:
        """Read no more; what waits in the outbox is not sent either."""
        self._stopped = True
        self._log.detach(self)

    def wake(self) -> None:
        """See `app.domain.turn_log.TurnReader.wake`."""
        self._outbox.offer(self)

    def next_frame(self) -> str | None:
        """See `Source.next_frame`."""
        if self._stopped:
            return None
        piece = self._log.since(self._cursor)
        if piece is not None:
            self._cursor = piece.last_seq
            return self._frames.delta(piece)
        ending = self._log.ending
        if ending is None:
            return None
        self.stop()
        self._on_end(ending)
        return self._frames.ending(ending)


class SubmissionReader:
    """Tells one client how far the submissions of its sessions are: of each the newest, whenever there is room."""

    def __init__(self, followers: Followers, outbox: Outbox) -> None:
        self._followers = followers
        self._outbox = outbox
        self._sessions: dict[int, None] = {}
        self._waiting: dict[SubmissionId, SubmissionNews] = {}
        self._furthest: dict[SubmissionId, tuple[int, int, int]] = {}

    def follow(self, session_id: int) -> None:
        """Tell of this session too. A client of very many is told of those that it has named last."""
        if session_id in self._sessions:
            return
        if len(self._sessions) >= _MOST_FOLLOWED:
            oldest = next(iter(self._sessions))
            del self._sessions[oldest]
            self._followers.leave(oldest, self.tell)
        self._sessions[session_id] = None
        self._followers.follow(session_id, self.tell)

    def tell(self, news: SubmissionNews) -> None:
        """Send what is new, in the place of what waits of the same submission. It never goes back for a reader."""
        progress = news.progress
        place = (_STATUS_ORDER.index(news.status), progress.percent, progress.cases_done)
        if place < self._furthest.get(news.submission_id, place):
            return
        self._furthest[news.submission_id] = place
        self._waiting[news.submission_id] = news
        self._outbox.offer(self)

    def stop(self) -> None:
        """Tell nothing any more."""
        for session_id in self._sessions:
            self._followers.leave(session_id, self.tell)
        self._sessions.clear()
        self._waiting.clear()

    def next_frame(self) -> str | None:
        """See `Source.next_frame`."""
        if not self._waiting:
            return None
        return submission_frame(self._waiting.pop(next(iter(self._waiting))))
