"""Submissions: handed in, looked at, evaluated again, and released by people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from app.application.services.callback_service import CallbackService
from app.core.errors import ErrorCode, TurnstoneError
from app.core.ids import new_submission_id
from app.domain.code_runner import LANGUAGES
from app.domain.documents import content_hash
from app.domain.grading import GradingOutcome
from app.domain.submission import Node, Outcome, Progress, SubmissionId, SubmissionNews
from app.infrastructure.persistence.models import (
    PromptSession,
    RevisionStatusEnum,
    Submission,
    SubmissionEvaluation,
    SubmissionStatusEnum,
)
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import SubmissionClaims
from app.infrastructure.repositories.submission_repository import NewSubmission, SubmissionRepository

Again = Literal["all", "missing", "scores"]
_TAKEN_OVER: Final = (Node.TESTS, Node.ANALYSIS, Node.REVIEW, Node.PANEL)
"""What a further evaluation may take from the one before; turns are read anew, for a person's score counts at once."""
_AFTER_RELEASE: Final = (Node.TURNS, Node.AGGREGATE)
"""What is made anew when scores are released: what people have set meanwhile counts."""
_PINNED: Final = ("rubric", "policy", "panel_prompt", "review_prompt", "judge_prompt", "judge_model", "samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class RerunOrder:
    """Who wants a submission evaluated again, and what to change; what is ``None`` stays as it was.

    ``again`` says what is done: ``all``; what was ``missing``; or the ``scores`` alone, from what was found. With
    ``as_set_now`` the exam's settings of today count in the place of those that were pinned.
    """

    person: str
    again: Again = "all"
    rubric: str | None = None
    score_policy: str | None = None
    judge_model: str | None = None
    as_set_now: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """A submission with every evaluation of it, by revision."""

    submission: Submission
    evaluations: Sequence[SubmissionEvaluation]

    @property
    def told(self) -> SubmissionEvaluation | None:
        """The one that counts: of those that are known, that with the highest revision."""
        return next((each for each in reversed(self.evaluations) if each.published), None)


class SubmissionService:
    """Use cases of submissions. Each call is one transaction, with the session's row locked first where it writes.

    Args:
        code_chars: the longest code.
        held: callbacks wait, because no receiver is set.
        tells_stages: Core is told of a submission's stages too.
    """

    def __init__(self, code_chars: int, *, held: bool, tells_stages: bool) -> None:
        self._code_chars = code_chars
        self._held = held
        self._tells_stages = tells_stages

    async def submit(
        self, session_id: int, code: str, language: str, submission_id: SubmissionId | None = None
    ) -> Seen:
        """Take code. The same id with the same code, language and session is the same submission.

        Ended sessions take submissions as well. What is judged with it is the conversation up to the last turn that has
        ended: one that runs goes on, and does not count.

        Raises:
            TurnstoneError: ``session_not_found``, ``invalid_frame``, ``message_too_large``, ``submission_id_conflict``
                or ``submissions_exhausted``.
        """
        self._check(code)
        named = new_submission_id() if submission_id is None else submission_id
        if not _can_be_stored(str(named)):
            raise TurnstoneError(ErrorCode.INVALID_FRAME, "The submission_id holds a NUL character.")
        async with get_db_context() as db:
            session = await SessionRepository(db).lock_session(session_id)
            if session is None:
                raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
            submissions = SubmissionRepository(db)
            known = await submissions.find(str(named))
            if known is None:
                await self._check_terms(db, session, language)
                new = NewSubmission(
                    session_id=session_id,
                    client_id=str(named),
                    client_id_is_int=isinstance(named, int),
                    language=language,
                    code=code,
                    code_hash=content_hash(code),
                    last_turn=await submissions.last_ended_turn(session_id),
                )
                created = await submissions.create(new)
                if created is not None:
                    await self._tell_queued(db, session_id, named)
                    return await _seen(db, created)
                known = await submissions.find(str(named))  # another session's came in between
            if known is None or (known.session_id, known.code, known.language) != (session_id, code, language):
                raise TurnstoneError(
                    ErrorCode.SUBMISSION_ID_CONFLICT,
                    "This submission_id was used with another code, language or session.",
                )
            return await _seen(db, known)

    def _check(self, code: str) -> None:
        if len(code) > self._code_chars:
            raise TurnstoneError(
                ErrorCode.MESSAGE_TOO_LARGE, f"The code has {len(code)} characters; the limit is {self._code_chars}."
            )
        if not code.strip():
            raise TurnstoneError(ErrorCode.INVALID_FRAME, "The code is empty.")
        if "\x00" in code:
            raise TurnstoneError(ErrorCode.INVALID_FRAME, "The code holds a NUL character.")

    async def _check_terms(self, db: Transaction, session: PromptSession, language: str) -> None:
        submissions = SubmissionRepository(db)
        languages = await submissions.languages_of(session.spec_id) or LANGUAGES
        if language not in languages:
            raise TurnstoneError(
                ErrorCode.INVALID_FRAME, f"The language cannot be handed in; it is one of {', '.join(languages)}."
            )
        exam = await ExamRepository(db).settings_of(session.exam_id, None)
        allowed = 1 if exam is None else exam.submissions
        if await submissions.count_of_session(session.id) >= allowed:
            raise TurnstoneError(
                ErrorCode.SUBMISSIONS_EXHAUSTED,
                f"The exam takes {allowed} submission{'' if allowed == 1 else 's'} of a session, and has them.",
            )

    async def _tell_queued(self, db: Transaction, session_id: int, named: SubmissionId) -> None:
        news = SubmissionNews(session_id, named, SubmissionStatusEnum.QUEUED.value, Progress())
        await SubmissionClaims(db).tell(news)
        if self._tells_stages:
            await CallbackService(db, held=self._held).send_submission_status(session_id, named, "queued")

    async def get(self, submission_id: str) -> Seen:
        """A submission by its id as text.

        Raises:
            TurnstoneError: ``submission_not_found``.
        """
        async with get_db_context() as db:
            return await _seen(db, await _found(db, submission_id))

    async def find(self, submission_id: str) -> Seen | None:
        """A submission by its id as text; ``None`` where there is none."""
        async with get_db_context() as db:
            found = await SubmissionRepository(db).find(submission_id) if _can_be_stored(submission_id) else None
            return None if found is None else await _seen(db, found)

    async def steps(
        self, submission_id: str, revision: int | None
    ) -> tuple[SubmissionEvaluation, Mapping[Node, Outcome]]:
        """An evaluation, the newest where none is named, with what has come of its nodes so far.

        Raises:
            TurnstoneError: ``submission_not_found``: no such submission, or none with this revision.
        """
        async with get_db_context() as db:
            seen = await _seen(db, await _found(db, submission_id))
            fitting = [each for each in seen.evaluations if revision in (None, each.revision)]
            if not fitting:
                raise TurnstoneError(ErrorCode.SUBMISSION_NOT_FOUND, f"The submission has no revision {revision}.")
            return fitting[-1], await SubmissionClaims(db).steps(fitting[-1].id)

    async def list_submissions(
        self,
        *,
        session_id: int | None = None,
        exam_id: int | None = None,
        status: SubmissionStatusEnum | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[Seen]:
        """Submissions with a key above ``after`` that fit all that is set, oldest first.

        Raises:
            TurnstoneError: ``session_not_found``.
        """
        async with get_db_context() as db:
            if session_id is not None and await SessionRepository(db).get_session(session_id) is None:
                raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
            submissions = SubmissionRepository(db)
            found = await submissions.list_submissions(
                session_id=session_id, exam_id=exam_id, status=status, after=after, limit=limit
            )
            evaluations = await submissions.evaluations([each.id for each in found])
        return [Seen(each, evaluations[each.id]) for each in found]

    async def news(self, session_id: int) -> SubmissionNews | None:
        """How far the session's newest submission is; ``None`` where it has none.

        Raises:
            TurnstoneError: ``session_not_found``.
        """
        async with get_db_context() as db:
            if await SessionRepository(db).get_session(session_id) is None:
                raise TurnstoneError(ErrorCode.SESSION_NOT_FOUND, "There is no such session.")
            newest = await SubmissionRepository(db).newest_of_session(session_id)
        if newest is None:
            return None
        return SubmissionNews(session_id, newest.told_id, newest.status.value, Progress.from_json(newest.progress))

    async def rerun(self, submission_id: str, order: RerunOrder) -> Seen:
        """Evaluate once more, under the next revision; what is known stays known until that one is told.

        Raises:
            TurnstoneError: ``submission_not_found``, or a document that there is not.
        """
        async with get_db_context() as db:
            submission = await _found(db, submission_id)
            await SessionRepository(db).lock_session(submission.session_id)
            submissions, documents = SubmissionRepository(db), DocumentRepository(db)
            evaluations = (await submissions.evaluations([submission.id]))[submission.id]
            # What an appeal finds is known when a person says so.
            last = next(each for each in reversed(evaluations) if each.published or each.cause != "appeal")
            steps = await SubmissionClaims(db).steps(last.id)
            pinned: dict[str, Any] = {}
            if not order.as_set_now and Node.FREEZE in steps:
                frozen = steps[Node.FREEZE].value
                pinned = {name: frozen[name] for name in _PINNED if frozen.get(name) is not None}
            if order.rubric is not None:
                pinned["rubric"] = await documents.pin("rubric", order.rubric)
            if order.score_policy is not None:
                pinned["policy"] = await documents.pin("policy", order.score_policy)
            if order.judge_model is not None:
                pinned["judge_model"] = order.judge_model
            further = await submissions.add_evaluation(
                submission.id, cause="rerun", asked_by=order.person, basis=pinned
            )
            kept = [
                node.value
                for node in _TAKEN_OVER
                if order.again == "scores"
                or (order.again == "missing" and node in steps and _is_whole(node, steps[node]))
            ]
            await submissions.copy_steps(last.id, further.id, kept)
            return await _seen(db, submission)

    async def release(self, submission_id: str, person: str) -> Seen:
        """Let held scores be told, with what people have set meanwhile.

        Raises:
            TurnstoneError: ``submission_not_found``, or ``not_held``.
        """
        async with get_db_context() as db:
            submission = await _found(db, submission_id)
            await SessionRepository(db).lock_session(submission.session_id)
            submissions = SubmissionRepository(db)
            evaluations = (await submissions.evaluations([submission.id]))[submission.id]
            held = next((each for each in reversed(evaluations) if each.status is RevisionStatusEnum.HELD), None)
            if held is None:
                raise TurnstoneError(ErrorCode.NOT_HELD, "No scores of this submission wait for a person.")
            # It is told last, so it counts: its number is above what was told while it was held.
            highest = evaluations[-1].revision
            revision = held.revision if held.revision == highest else highest + 1
            anew = [node.value for node in _AFTER_RELEASE]
            await submissions.release(held.id, person, revision=revision, anew=anew)
            return await _seen(db, submission)


def _is_whole(node: Node, outcome: Outcome) -> bool:
    if outcome.status == "missing":
        return False
    return node is not Node.TESTS or GradingOutcome.from_json(outcome.value).is_whole


async def _found(db: Transaction, submission_id: str) -> Submission:
    found = await SubmissionRepository(db).find(submission_id) if _can_be_stored(submission_id) else None
    if found is None:
        raise TurnstoneError(ErrorCode.SUBMISSION_NOT_FOUND, "There is no such submission.")
    return found


def _can_be_stored(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


async def _seen(db: Transaction, submission: Submission) -> Seen:
    evaluations = await SubmissionRepository(db).evaluations([submission.id])
    return Seen(submission, evaluations[submission.id])
