"""Code that is handed in, and what comes of it. For Core alone: candidates see no score while an exam runs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from app.application.resources import Resources
from app.application.services.score_service import appeal_scores, override_component
from app.application.submissions.reporting import read_report
from app.core.errors import ErrorCode, TurnstoneError
from app.domain.rubric import Language
from app.infrastructure.persistence.models import SubmissionStatusEnum
from app.presentation.api.paging import EMPTY_IS_NONE, Cursor, Limit, page
from app.presentation.api.paths import ANY_TEXT
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import Page
from app.presentation.schemas.evaluation_bodies import AppealRequest, OverrideBody
from app.presentation.schemas.frames import session_id_of
from app.presentation.schemas.submission_bodies import (
    ReleaseRequest,
    RerunRequest,
    ScoreAppealBody,
    ScoreOverrideRequest,
    StepsBody,
    SubmissionBody,
    SubmissionRequest,
)
from app.presentation.web.report import content_security_policy, render_report

_PAGE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The report; or the submission whose own id is `…/report`",
        "content": {
            "text/html": {"schema": {"type": "string"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/SubmissionBody"}},
        },
    }
}

_AS_TOLD: dict[str, Any] = {"response_model_exclude_unset": True}

router = APIRouter(prefix="/api", responses=PROBLEMS, tags=["submissions"])

Revision = Annotated[int | None, Query(ge=1, le=2**31 - 1), EMPTY_IS_NONE]
SessionId = Annotated[str, Path(max_length=64)]


@router.post("/sessions/{session_id}/submissions", status_code=202, **_AS_TOLD)
async def submit(session_id: SessionId, body: SubmissionRequest, request: Request) -> SubmissionBody:
    """Take code, to be evaluated with the conversation as it is. The same again is the same submission."""
    resources: Resources = request.app.state.resources
    seen = await resources.submissions.submit(session_id_of(session_id), body.code, body.language, body.submission_id)
    resources.wake_delivery()
    return SubmissionBody.of(seen)


@router.get("/sessions/{session_id}/submissions", **_AS_TOLD)
async def list_of_session(
    session_id: SessionId, request: Request, cursor: Cursor = 0, limit: Limit = 100
) -> Page[SubmissionBody]:
    """A session's submissions, oldest first."""
    resources: Resources = request.app.state.resources
    found = await resources.submissions.list_submissions(
        session_id=session_id_of(session_id), after=cursor, limit=limit + 1
    )
    return page(found, limit, SubmissionBody.of, lambda seen: seen.submission.id)


@router.get("/submissions", **_AS_TOLD)
async def list_submissions(
    request: Request,
    exam_id: Annotated[int | None, Query(gt=0, le=2**63 - 1), EMPTY_IS_NONE] = None,
    status: Annotated[Literal["QUEUED", "RUNNING", "DONE", "FAILED"] | None, EMPTY_IS_NONE] = None,
    cursor: Cursor = 0,
    limit: Limit = 100,
) -> Page[SubmissionBody]:
    """Submissions, oldest first."""
    resources: Resources = request.app.state.resources
    found = await resources.submissions.list_submissions(
        exam_id=exam_id,
        status=None if status is None else SubmissionStatusEnum(status),
        after=cursor,
        limit=limit + 1,
    )
    return page(found, limit, SubmissionBody.of, lambda seen: seen.submission.id)


# These first: an id may hold slashes, so the path of one submission matches theirs too. One that ends like a report's
# path is looked for there.
@router.post(f"/submissions/{{submission_id:{ANY_TEXT}}}/rerun", status_code=202, **_AS_TOLD)
async def rerun(submission_id: str, body: RerunRequest, request: Request) -> SubmissionBody:
    """Evaluate once more, beside what is known; Core is told under the next revision."""
    resources: Resources = request.app.state.resources
    seen = await resources.submissions.rerun(_checked(submission_id), body.order())
    resources.wake_delivery()
    return SubmissionBody.of(seen)


@router.post(f"/submissions/{{submission_id:{ANY_TEXT}}}/release", status_code=202, **_AS_TOLD)
async def release(submission_id: str, body: ReleaseRequest, request: Request) -> SubmissionBody:
    """Let scores be told that wait for a person."""
    resources: Resources = request.app.state.resources
    seen = await resources.submissions.release(_checked(submission_id), body.person)
    resources.wake_delivery()
    return SubmissionBody.of(seen)


@router.post(f"/submissions/{{submission_id:{ANY_TEXT}}}/override", status_code=202)
async def override_score(submission_id: str, body: ScoreOverrideRequest, request: Request) -> OverrideBody:
    """Set a person's score of a part. The machine's stays beside it; Core is told under the next revision."""
    resources: Resources = request.app.state.resources
    override = await override_component(_checked(submission_id), body.component, body.override())
    resources.wake_delivery()
    return OverrideBody.of(override)


@router.post(f"/submissions/{{submission_id:{ANY_TEXT}}}/appeal", status_code=202)
async def appeal(submission_id: str, body: AppealRequest, request: Request) -> ScoreAppealBody:
    """Have it all done once more, by a larger panel, for people to look at. Core is told when they release it."""
    resources: Resources = request.app.state.resources
    item_id, evaluation = await appeal_scores(_checked(submission_id), body.reason, body.person)
    resources.wake_delivery()
    return ScoreAppealBody(review_id=str(item_id), revision=evaluation.revision)


@router.get(f"/submissions/{{submission_id:{ANY_TEXT}}}/steps", **_AS_TOLD)
async def steps(submission_id: str, request: Request, revision: Revision = None) -> StepsBody | SubmissionBody:
    """What each step of an evaluation has found, by what, and what it took; of the newest, where none is named.

    Or the submission whose own id is `…/steps`.
    """
    resources: Resources = request.app.state.resources
    if (named_so := await resources.submissions.find(f"{submission_id}/steps")) is not None:
        return SubmissionBody.of(named_so)
    return StepsBody.of(*await resources.submissions.steps(_checked(submission_id), revision))


@router.get(f"/submissions/{{submission_id:{ANY_TEXT}}}/report", response_class=Response, responses=_PAGE)
async def report(
    submission_id: str,
    request: Request,
    language: Annotated[Language, Query(description="of the report")] = "en",
    revision: Revision = None,
) -> Response:
    """What a candidate may read of a submission: scores, evidence, advice. Core shows it once the exam is over."""
    resources: Resources = request.app.state.resources
    if (named_so := await resources.submissions.find(f"{submission_id}/report")) is not None:
        return JSONResponse(SubmissionBody.of(named_so).model_dump(mode="json", exclude_unset=True))
    read = await read_report(_checked(submission_id), language, revision)
    page = await to_thread.run_sync(render_report, read, language)
    return HTMLResponse(
        page,
        headers={
            "content-security-policy": f"{content_security_policy()}; frame-ancestors 'none'; sandbox",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        },
    )


@router.get(f"/submissions/{{submission_id:{ANY_TEXT}}}", **_AS_TOLD)
async def show_submission(submission_id: str, request: Request) -> SubmissionBody:
    """How far a submission is, and what has come of it."""
    resources: Resources = request.app.state.resources
    return SubmissionBody.of(await resources.submissions.get(_checked(submission_id)))


def _checked(submission_id: str) -> str:
    if not 0 < len(submission_id) <= 128:
        raise TurnstoneError(ErrorCode.SUBMISSION_NOT_FOUND, "There is no such submission.")
    return submission_id
