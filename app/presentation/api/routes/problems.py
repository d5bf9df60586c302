"""Problems with their test cases, limits and references, and every version that they were. For Core alone."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.application.resources import Resources
from app.core.errors import ErrorCode, TurnstoneError
from app.infrastructure.persistence.models import ProblemVersion
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.problem_repository import ProblemEntry, ProblemRepository
from app.presentation.api.paging import EMPTY_IS_NONE, Cursor, Limit, page
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import Page
from app.presentation.schemas.problem_bodies import ProblemBody, ProblemRequest, ProblemVersionBody

router = APIRouter(prefix="/api/problems", responses=PROBLEMS, tags=["problems"])

SpecId = Annotated[int, Path(gt=0, le=2**63 - 1)]
Version = Annotated[int | None, EMPTY_IS_NONE, Query(gt=0, le=2**31 - 1, description="the newest where it is left out")]


@router.put("/{spec_id}", responses={201: {"model": ProblemVersionBody, "description": "It is a new problem"}})
async def put_problem(
    spec_id: SpecId, body: ProblemRequest, request: Request, response: Response
) -> ProblemVersionBody:
    """Set a problem, once its references have passed every test case; that takes as long as they run.

    A new version comes about where something has changed; the same again is answered at once.
    """
    resources: Resources = request.app.state.resources
    version, is_new = await resources.problems.put(spec_id, body)
    if is_new and version.version == 1:
        response.status_code = 201
    return ProblemVersionBody.of(ProblemEntry.of(version))


@router.get("/{spec_id}")
async def show_problem(spec_id: SpecId, version: Version = None) -> ProblemBody:
    """A problem with all its test cases, as it is or as it once was."""
    async with get_db_context() as db:
        return ProblemBody.of(_known(await ProblemRepository(db).get(spec_id, version)))


@router.get("/{spec_id}/versions")
async def list_problem_versions(spec_id: SpecId, cursor: Cursor = 0, limit: Limit = 100) -> Page[ProblemVersionBody]:
    """All that the problem ever was, oldest first."""
    async with get_db_context() as db:
        problems = ProblemRepository(db)
        if await problems.newest_hash(spec_id) is None:
            _known(None)
        found = await problems.list_versions(spec_id, after=cursor, limit=limit + 1)
    return page(found, limit, ProblemVersionBody.of, lambda entry: entry.version)


def _known(version: ProblemVersion | None) -> ProblemVersion:
    if version is None:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "There is no such problem, or no such version of it.")
    return version
