"""Bodies of problems: as Core puts them, and as they are kept."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from app.domain.problem import Problem
from app.infrastructure.persistence.models import ProblemVersion
from app.infrastructure.repositories.problem_repository import ProblemEntry


class ProblemRequest(Problem):
    """A problem, complete. Its references are run on its test cases, and have to pass all of them."""


class ProblemVersionBody(BaseModel):
    """A version of a problem without its content."""

    spec_id: int
    version: int
    title: str
    cases: int = Field(description="how many test cases it has")
    hash: str = Field(description="SHA-256 of its content")
    verification: dict[str, Any] = Field(description="what came of its references: time and memory, and the isolation")
    created_at: datetime

    @classmethod
    def of(cls, entry: ProblemEntry) -> ProblemVersionBody:
        """The stored version as a body."""
        return cls(
            hash=entry.content_hash, **{name: getattr(entry, name) for name in cls.model_fields if name != "hash"}
        )


class ProblemBody(Problem):
    """A problem with everything there is to it, also what candidates must not see. For Core alone."""

    spec_id: int
    version: int
    hash: str
    verification: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, version: ProblemVersion) -> ProblemBody:
        """The stored version as a body."""
        own = {name: getattr(version, name) for name in ("spec_id", "version", "verification", "created_at")}
        return cls.model_validate({**version.content, **own, "hash": version.content_hash})
