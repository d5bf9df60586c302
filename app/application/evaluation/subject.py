"""What a run is about: everything that is read before a judge is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from app.domain.conversation import TurnId
from app.domain.documents import DocumentError
from app.domain.guard_policy import GuardAction
from app.domain.judging import JudgeTask
from app.domain.judging.tasks import Trials
from app.domain.model_client import ChatMessage
from app.domain.rubric import LANGUAGES, Language, Rubric
from app.domain.scoring import ScorePolicy
from app.infrastructure.persistence.models import EvaluationRun, PromptRoleEnum, PromptTurn
from app.infrastructure.persistence.session import Transaction
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository
from app.infrastructure.repositories.exam_repository import ExamRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository

_CONTEXT_TOKENS = 6_000
"""Of the conversation before the prompt; what is older says little of it and costs each time."""

_CACHED_DOCUMENTS = 32


@dataclass(frozen=True, slots=True)
class Subject:
    """A prompt to be judged, and by what.

    Attributes:
        run: as it was recorded.
        turn_id: the client's id of the turn.
        refused: the guard stood in the prompt's way.
        labels: what the guard found in it.
        exam_version: of the exam's settings that the turn ran under, where it has any.
        model: the judge, ``provider:model``; ``None`` where nobody has named one.
        trials: when the judge is tried; ``None`` where the run does not say.
        task: what the judge is asked; ``None`` where it cannot be put together, for the reason ``fault``.
    """

    run: EvaluationRun
    turn_id: TurnId
    refused: bool
    labels: tuple[str, ...]
    exam_version: int | None
    model: str | None
    trials: Trials | None
    task: JudgeTask | None
    fault: str | None = None


async def read_outline(db: Transaction, run_id: int) -> Subject:
    """Read as much as it takes to end a run that cannot be judged; it has no ``task``."""
    return (await _outline(db, run_id))[0]


async def read_subject(db: Transaction, run_id: int) -> Subject:
    """Read what a run is about."""
    sessions, turns, exams = SessionRepository(db), TurnRepository(db), ExamRepository(db)
    subject, turn = await _outline(db, run_id)
    run, version = subject.run, subject.exam_version
    session = await sessions.get_session(run.session_id)
    assert session is not None, "a turn has one"
    exam = await exams.get_version(session.exam_id, version) if version is not None else None
    known = exam or await exams.get(session.exam_id)
    history = await sessions.history(run.session_id, before_turn=run.judged_turn, token_budget=_CONTEXT_TOKENS)
    context = [
        ChatMessage("user" if message.role is PromptRoleEnum.USER else "assistant", message.content)
        for message in sorted(history, key=lambda message: (message.turn, message.role is PromptRoleEnum.ASSISTANT))
    ]
    try:
        judged_by = await _judged_by(db, run, language=_language(exam.settings if exam is not None else {}))
    except DocumentError as error:
        return replace(subject, fault=error.message)
    message = await turns.user_message(turn) or ""
    problem_text = known.problem_text if known is not None else None
    task = replace(
        judged_by,
        message=message,
        context=tuple(context),
        problem_text=problem_text or None,
        earlier=run.judged_turn - 1,
    )
    return replace(subject, task=task)


async def _outline(db: Transaction, run_id: int) -> tuple[Subject, PromptTurn]:
    evaluations = EvaluationRepository(db)
    run = await evaluations.get_run(run_id)
    assert run is not None, "it was claimed, and runs are not removed but with their session"
    turn = await evaluations.turn(run.session_id, run.judged_turn)
    assert turn is not None, "a run is recorded with its turn"
    subject = Subject(
        run=run,
        turn_id=int(turn.client_turn_id) if turn.turn_id_is_int else turn.client_turn_id,
        # A provider whose own filter stepped in says the same word; that is none of the candidate's doing.
        refused=await SessionRepository(db).guard_action(run.session_id, run.judged_turn) is GuardAction.REFUSE,
        labels=tuple(sorted(turn.labels or ())),
        exam_version=turn.exam_version,
        model=run.settings.get("model"),
        trials=_trials(run),
        task=None,
    )
    return subject, turn


async def _judged_by(db: Transaction, run: EvaluationRun, *, language: Language) -> JudgeTask:
    if run.rubric_hash is None or run.prompt_hash is None or run.policy_hash is None:
        raise DocumentError("The run does not say what it is judged by")
    documents = DocumentRepository(db)
    policy = _policy(await documents.content("policy", run.policy_hash))
    samples = run.settings.get("samples")
    return JudgeTask(
        message="",
        context=(),
        problem_text=None,
        language=language,
        rubric=_rubric(await documents.content("rubric", run.rubric_hash)),
        policy=policy.with_samples(samples) if samples else policy,
        prompt=await documents.content("prompt", run.prompt_hash),
        trials=_trials(run) or Trials.SUSPICIOUS,
    )


# Reading them takes 25 ms together, in the process that may serve the chat, and a document never changes.
_rubric = lru_cache(_CACHED_DOCUMENTS)(Rubric.parse)
_policy = lru_cache(_CACHED_DOCUMENTS)(ScorePolicy.parse)


def _trials(run: EvaluationRun) -> Trials | None:
    return next((one for one in Trials if one == run.settings.get("trials")), None)


def _language(settings: dict[str, object]) -> Language:
    return next((language for language in LANGUAGES if language == settings.get("language")), "en")
