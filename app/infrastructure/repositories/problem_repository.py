"""Problems: as they are, and every version that they once were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import distinct_on

from app.domain.problem import Problem
from app.infrastructure.persistence.models import ProblemVersion
from app.infrastructure.persistence.session import Transaction

_LARGEST_VERSION = 2**31 - 1
_LOCK = "problem"


@dataclass(frozen=True, slots=True)
class ProblemEntry:
    """A version without its content: for lists."""

    spec_id: int
    version: int
    title: str
    cases: int
    content_hash: str
    verification: Mapping[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, version: ProblemVersion) -> ProblemEntry:
        """A version, without its content."""
        content = version.content
        return cls(
            version.spec_id,
            version.version,
            content["title"],
            len(content["cases"]),
            version.content_hash,
            version.verification,
            version.created_at,
        )


class ProblemRepository:
    """Reads and writes problems within the transaction at hand. No version is ever changed or removed."""

    def __init__(self, db: Transaction) -> None:
        self._db = db

    async def put(self, spec_id: int, problem: Problem, verification: Mapping[str, Any]) -> tuple[ProblemVersion, bool]:
        """Make this the problem; returns its version, and whether that is new: only where something has changed.

        Args:
            spec_id: as Core names the problem.
            problem: what it is from now on.
            verification: what came of running its references; kept with a new version.
        """
        lock = text("SELECT pg_advisory_xact_lock(hashtext(:kind), hashtext(:id))")
        await self._db.execute(lock, {"kind": _LOCK, "id": str(spec_id)})
        newest = await self.get(spec_id)
        if newest is not None and newest.content_hash == problem.content_hash:
            return newest, False
        version = ProblemVersion(
            spec_id=spec_id,
            version=1 if newest is None else newest.version + 1,
            content=problem.to_json(),
            content_hash=problem.content_hash,
            verification=dict(verification),
        )
        self._db.add(version)
        await self._db.flush()
        await self._db.refresh(version)
        return version, True

    async def get(self, spec_id: int, version: int | None = None) -> ProblemVersion | None:
        """A version of a problem; the newest one where none is named."""
        statement = select(ProblemVersion).where(ProblemVersion.spec_id == spec_id)
        if version is not None:
            statement = statement.where(ProblemVersion.version == min(version, _LARGEST_VERSION))
        return (await self._db.scalars(statement.order_by(ProblemVersion.version.desc()).limit(1))).first()

    async def problem(self, spec_id: int, version: int | None = None) -> Problem | None:
        """The same as what it says."""
        found = await self.get(spec_id, version)
        return None if found is None else Problem.parse(found.content)

    async def newest_hash(self, spec_id: int) -> str | None:
        """The hash of a problem as it is, without reading it whole."""
        statement = select(ProblemVersion.content_hash).where(ProblemVersion.spec_id == spec_id)
        return (await self._db.scalars(statement.order_by(ProblemVersion.version.desc()).limit(1))).first()

    async def list_versions(self, spec_id: int, *, after: int = 0, limit: int = 100) -> Sequence[ProblemEntry]:
        """Versions of a problem above ``after``, oldest first."""
        statement = (
            _entries()
            .where(ProblemVersion.spec_id == spec_id, ProblemVersion.version > min(after, _LARGEST_VERSION))
            .order_by(ProblemVersion.version)
        )
        return [ProblemEntry(*row) for row in await self._db.execute(statement.limit(limit))]

    async def list_problems(self, *, after: int = 0, limit: int = 100) -> Sequence[ProblemEntry]:
        """The newest version of every problem with an id above ``after``, by id."""
        statement = (
            _entries()
            .where(ProblemVersion.spec_id > after)
            .ext(distinct_on(ProblemVersion.spec_id))
            .order_by(ProblemVersion.spec_id, ProblemVersion.version.desc())
        )
        return [ProblemEntry(*row) for row in await self._db.execute(statement.limit(limit))]


def _entries() -> Any:
    return select(
        ProblemVersion.spec_id,
        ProblemVersion.version,
        ProblemVersion.content["title"].astext,
        func.jsonb_array_length(ProblemVersion.content["cases"]),
        ProblemVersion.content_hash,
        ProblemVersion.verification,
        ProblemVersion.created_at,
    )
