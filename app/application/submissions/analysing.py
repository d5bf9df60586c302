"""Analysis: what can be said of the code without running it, in a process of its own."""

from __future__ import annotations

from app.application.submissions.conversation import read_conversation
from app.application.submissions.work import Made, Work
from app.domain.code_blocks import first_version
from app.domain.code_patterns import read_patterns
from app.domain.langgraph.submission_state import Outcomes
from app.domain.model_client import ChatMessage
from app.domain.submission import Node, Outcome
from app.infrastructure.analysis.analyser import analyse as analyse_code
from app.infrastructure.analysis.errors import AnalysisFailedError
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.problem_repository import ProblemRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository


async def analyse(work: Work, came: Outcomes) -> Made:
    """Analyse the code, beside the first code of its language in the conversation.

    Raises:
        AnalyserUnavailableError: it cannot be done now.
    """
    frozen, evaluation = came[Node.FREEZE].value, work.evaluation
    async with get_db_context() as db:
        submission = await SubmissionRepository(db).find(str(evaluation.client_id))
        assert submission is not None, "an evaluation has a submission"
        said = await read_conversation(db, evaluation.session_id, frozen["last_turn"])
        problem = (
            await ProblemRepository(db).problem(evaluation.spec_id, frozen["problem_version"])
            if evaluation.spec_id is not None and frozen["problem_version"] is not None
            else None
        )
    messages = [
        message
        for turn in said
        for message in (ChatMessage("user", turn.prompt), ChatMessage("assistant", turn.answer))
    ]
    try:
        value = await analyse_code(
            submission.language,
            submission.code,
            first_version(messages, submission.language),
            read_patterns(problem.patterns) if problem is not None else (),
        )
    except AnalysisFailedError as error:
        return Made(Outcome.missing(error.problem, dict(error.partial)))
    return Made(Outcome("ok", value, versions=value["tools"]))
