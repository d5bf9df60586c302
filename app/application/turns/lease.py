"""This process's lease, and a watch over everybody else's.

A lease is one row whose ``beats`` grow. Its owner owns turns and callback lanes under the row's id, the fencing token.
Whoever sees another's beats stand still for a whole lease length, by its own monotonic clock and without a database
error or a long silence meanwhile, fences it: from then on the old owner can write nothing. So an outage or a stall of
the database, in which nobody can renew, fences nobody. Where two processes are set to different lengths the longer one
counts, for a process renews as often as its own length demands.

To renew waits for nothing else: neither for a connection that turns have, nor for the end of what is done about others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from app.core import metrics
from app.core.ids import process_name
from app.infrastructure.persistence.session import DATABASE_DOWN, fault, get_db_context
from app.infrastructure.repositories.worker_repository import WorkerRepository

log = structlog.get_logger()


class Lease:
    """The lease of one process.

    Args:
        length_s: a lease unrenewed for this long is dead.
        on_fenced: called after another process was fenced, to settle what it leaves.
        on_lost: called when this process itself was fenced, with the old token; a new lease is held by then.
    """

    def __init__(
        self,
        length_s: float,
        *,
        on_fenced: Callable[[], Awaitable[object]],
        on_lost: Callable[[int], None],
    ) -> None:
        self._length_s = length_s
        self._on_fenced = on_fenced
        self._on_lost = on_lost
        self._token = 0
        self._seen: dict[int, tuple[int, float]] = {}
        self._looked_at = 0.0
        self._renewal_begun: float | None = None
        self._to_settle = False

    @property
    def token(self) -> int:
        """The fencing token held now."""
        return self._token

    async def take(self) -> None:
        """Take a lease; each one has a larger token than all before."""
        async with get_db_context(vital=True) as db:
            self._token = await WorkerRepository(db).register(process_name(), self._length_s)

    async def give_back(self) -> None:
        """End the lease, so that nobody has to wait for it to run out."""
        async with get_db_context(vital=True) as db:
            await WorkerRepository(db).fence(self._token)

    async def renew_forever(self) -> None:
        """Renew until cancelled."""
        await self._repeat(self.renew)

    async def watch_forever(self) -> None:
        """Watch over the others until cancelled."""
        await self._repeat(lambda: self.watch(time.monotonic()))

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self._length_s / 4)
            try:
                await step()
            except DATABASE_DOWN as error:
                self._seen.clear()  # what was seen before an outage proves nothing after it
                log.warning("lease_waits_for_database", error=fault(error))

    async def renew(self) -> None:
        """Renew the lease; take a new one where it was lost."""
        self._renewal_begun = time.monotonic()
        try:
            async with get_db_context(vital=True) as db:
                alive = await WorkerRepository(db).beat(self._token)
        finally:
            self._renewal_begun = None
        if not alive:
            lost = self._token
            metrics.LEASE_LOST.inc()
            log.error("lease_lost", token=lost)
            try:
                await self.take()
            finally:
                self._on_lost(lost)  # whether there is a new one or not: what ran under this one is others' by now

    async def watch(self, now: float) -> None:
        """Fence every lease that has stood still for its whole length; ``now`` is monotonic seconds.

        Who has not looked for half a length begins anew: the database hung, or this process did, and perhaps the owners
        with it. So does who cannot renew, for perhaps nobody can.
        """
        if now - self._looked_at > self._length_s / 2 or self._cannot_renew:
            self._seen.clear()
        self._looked_at = now
        async with get_db_context(vital=True) as db:
            others = await WorkerRepository(db).others(self._token)
        if self._cannot_renew:
            self._seen.clear()
            return
        still = {o.id: self._seen[o.id] for o in others if o.id in self._seen and self._seen[o.id][0] == o.beats}
        self._seen = {other.id: (other.beats, now) for other in others} | still
        dead = [other for other in others if now - self._seen[other.id][1] >= max(self._length_s, other.lease_s)]
        for other in dead:
            async with get_db_context(vital=True) as db:
                fenced = await WorkerRepository(db).fence(other.id, seen_beats=other.beats)
            if fenced:
                log.warning("lease_taken_from_dead_process", token=other.id)
                self._to_settle = True
        if self._to_settle:
            await self._on_fenced()
            self._to_settle = False  # otherwise it is tried again: who is fenced is seen by nobody any more

    @property
    def _cannot_renew(self) -> bool:
        begun = self._renewal_begun
        return begun is not None and time.monotonic() - begun > self._length_s / 4
