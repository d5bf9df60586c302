"""The explanation of a submission's scores: evidence and what was published, read and put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.core.errors import ErrorCode, TurnstoneError
from app.domain.documents import content_hash
from app.domain.explained_prompts import TurnEvidence
from app.domain.explaining import Line, RawEvidence, explain
from app.domain.final_scores import COMPONENTS, Override
from app.domain.langgraph.submission_state import Outcomes
from app.domain.scoring import ScorePolicy
from app.domain.submission import Node
from app.infrastructure.persistence.models import Submission, SubmissionEvaluation
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.submission_claims import SubmissionClaims
from app.infrastructure.repositories.submission_evidence import SubmissionEvidence, measured
from app.infrastructure.repositories.submission_repository import SubmissionRepository


@dataclass(frozen=True, slots=True)
class Explanation:
    """Every number of one revision; ``policy_is_pinned``: its text still has the hash that names it."""

    submission: Submission
    evaluation: SubmissionEvaluation
    policy: ScorePolicy
    policy_is_pinned: bool
    lines: list[Line]

    @property
    def is_true(self) -> bool:
        """Whether everything that was published is what comes out of the evidence."""
        return self.policy_is_pinned and not any(line.differs for line in self.lines)


async def explain_scores(submission_id: str, revision: int | None = None) -> Explanation:
    """Make every published number of a submission again; the newest revision that was told of, where none is named.

    Raises:
        TurnstoneError: ``submission_not_found``, or ``not_scored``: there is no such revision, or no scores of it.
    """
    async with get_db_context() as db:
        submission, evaluation = await scored(db, submission_id, revision)
        came = await SubmissionClaims(db).steps(evaluation.id)
        pinned = came[Node.FREEZE].value["policy"]
        text = await DocumentRepository(db).content("policy", pinned)
        policy = ScorePolicy.parse(text)
        raw = await _raw(db, submission, evaluation, came)
        lines = explain(policy, came, raw, await _published(db, submission, evaluation, came))
    return Explanation(submission, evaluation, policy, content_hash(text) == pinned, lines)


async def scored(db: Transaction, submission_id: str, revision: int | None) -> tuple[Submission, SubmissionEvaluation]:
    """A submission, and its evaluation that has scores; held ones have them too, where they are asked for by number.

    Raises:
        TurnstoneError: ``submission_not_found`` or ``not_scored``.
    """
    submissions = SubmissionRepository(db)
    submission = await submissions.find(submission_id) if "\x00" not in submission_id else None
    if submission is None:
        raise TurnstoneError(ErrorCode.SUBMISSION_NOT_FOUND, "There is no such submission.")
    evaluations = (await submissions.evaluations([submission.id]))[submission.id]
    fitting = [
        each
        for each in evaluations
        if each.result is not None and (each.published if revision is None else each.revision == revision)
    ]
    if not fitting:
        which = "no scores yet" if revision is None else f"no scores of revision {revision}"
        raise TurnstoneError(ErrorCode.NOT_SCORED, f"The submission has {which}.")
    return submission, fitting[-1]


async def _raw(
    db: Transaction, submission: Submission, evaluation: SubmissionEvaluation, came: Outcomes
) -> RawEvidence:
    evidence = SubmissionEvidence(db)
    runs = await evidence.case_runs(evaluation.id)
    graded = [
        {
            "index": run.case_index,
            "name": run.case_name,
            "group": run.case_group,
            "weight": run.weight,
            "verdict": run.verdict,
            "cause": run.cause,
            "cpu_ms": run.cpu_ms,
            "memory_kb": run.memory_kb,
            "stdout_bytes": run.stdout_bytes,
            "stderr_bytes": run.stderr_bytes,
        }
        for run in runs
        if run.program == "candidate" and run.repetition == 0
    ]
    panel_id = ((came[Node.PANEL].evidence if Node.PANEL in came else None) or {}).get("run_id")
    panel = (await evidence.marks([panel_id])).get(panel_id, {}) if panel_id is not None else {}
    used = ((came[Node.AGGREGATE].evidence if Node.AGGREGATE in came else None) or {}).get("overrides") or {}
    rows = await evidence.component_overrides(list(used.values()))
    return RawEvidence(
        turns=await _turns(db, submission, came),
        panel=panel,
        cases=graded or None,
        measured=measured(runs),
        overrides={
            name: Override(rows[name].score, rows[name].reason, rows[name].person)
            for name in COMPONENTS
            if name in rows
        },
    )


async def _turns(db: Transaction, submission: Submission, came: Outcomes) -> dict[int, TurnEvidence]:
    entries = ((came[Node.TURNS].value if Node.TURNS in came else None) or {}).get("turns") or ()
    evidence = SubmissionEvidence(db)
    run_ids = [entry["run_id"] for entry in entries if entry["run_id"] is not None]
    runs, marks = await evidence.runs_of_judges(run_ids), await evidence.marks(run_ids)
    answers, intents = await evidence.answers(run_ids)
    overrides = await evidence.turn_overrides(submission.session_id)
    documents = DocumentRepository(db)
    hashes = {run.policy_hash for run in runs.values() if run.policy_hash is not None}
    policies = {key: ScorePolicy.parse(await documents.content("policy", key)) for key in hashes}
    found = {}
    for entry in entries:
        run = runs.get(entry["run_id"])
        set_by_people = overrides.get(entry["turn"], [])
        found[entry["turn"]] = TurnEvidence(
            policy=policies.get(run.policy_hash or "") if run is not None else None,
            marks=marks.get(entry["run_id"], {}),
            answers=answers.get(entry["run_id"], {}),
            intents=intents.get(entry["run_id"], {}),
            refused=run is not None and ((run.result or {}).get("components") or {}).get("guard") == "refused",
            # A later one may have been set since.
            override=_override(set_by_people, entry["override"]),
        )
    return found


def _override(set_by_people: list[float], used: float | None) -> float | None:
    """What was used, where a person has set it; else what people have set last."""
    return used if used in set_by_people else set_by_people[-1] if set_by_people else None


async def _published(
    db: Transaction, submission: Submission, evaluation: SubmissionEvaluation, came: Outcomes
) -> Mapping[str, Mapping[str, Any]]:
    """Every place where the scores stand."""
    places: dict[str, Mapping[str, Any]] = {}
    if Node.AGGREGATE in came:
        places["evaluation_steps"] = came[Node.AGGREGATE].value
    if evaluation.result is not None:
        places["submission_evaluations"] = evaluation.result
    told = await SubmissionEvidence(db).told(submission.session_id, submission.client_id, evaluation.revision)
    if told is not None:
        places["callbacks"] = told
    row = await SubmissionRepository(db).scores(evaluation.id)
    if row is not None:
        names = (
            "status",
            "prompt_score",
            "correctness_score",
            "performance_score",
            "total_score",
            "grade",
            "components",
        )
        places["scores"] = {"final_scores": {name: getattr(row, name) for name in names}}
    return places
