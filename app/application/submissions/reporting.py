"""What a candidate's report is made of: read once, and without anything that is not the candidate's to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.application.submissions.conversation import read_conversation
from app.application.submissions.explaining import scored
from app.domain.langgraph.submission_state import Outcomes
from app.domain.problem import Problem
from app.domain.rubric import CriterionText, Language, Rubric
from app.domain.scoring import HIGHEST_SCORE, Criterion, ScorePolicy
from app.domain.submission import Node
from app.infrastructure.persistence.models import Submission, SubmissionEvaluation
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.problem_repository import ProblemRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.submission_claims import SubmissionClaims
from app.infrastructure.repositories.submission_evidence import SubmissionEvidence


@dataclass(frozen=True, slots=True)
class Remark:
    """What was said of one criterion: the mark (1 to 5), what earns it, the candidate's own words, and the reason.

    ``turn`` is where those words stand; ``counts``: the criterion is part of the score.
    """

    title: str
    mark: float
    anchor: str
    quote: str
    reason: str
    turn: int
    counts: bool = True


@dataclass(frozen=True, slots=True)
class ReportedTurn:
    """One prompt. ``status`` is that of `turn_scores`; ``spans`` are where the quotes stand in ``prompt``."""

    number: int
    prompt: str
    intent: str | None
    score: float | None
    status: str
    remarks: Sequence[Remark]
    spans: Sequence[tuple[int, int]]
    advice: str


@dataclass(frozen=True, slots=True)
class SampleCase:
    """A test case that candidates may see whole."""

    name: str
    input: str
    output: str
    verdict: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything of a report. ``final`` is `final_scores` as Core was told it; ``versions`` are for the last line.

    ``speed`` has ``ratio``, ``language`` and ``factor`` of the complexity; ``analysis`` and ``review`` are those nodes'
    values, where there are any; ``compile_error`` is the compiler's text.
    """

    submission_id: str
    exam_id: int
    language: str
    revision: int
    moment: datetime
    final: Mapping[str, Any]
    weights: Mapping[str, float]
    prompt_shares: Mapping[str, float]
    turns: Sequence[ReportedTurn]
    session: Sequence[Remark]
    samples: Sequence[SampleCase]
    groups: Mapping[str, Mapping[str, int]]
    compile_error: str | None
    speed: Mapping[str, Any]
    analysis: Mapping[str, Any] | None
    review: Mapping[str, Any] | None
    versions: Mapping[str, str]


async def read_report(submission_id: str, language: Language, revision: int | None = None) -> Report:
    """Read what a report in a language says; of the newest revision that was told of, where none is named.

    What judges have written stays in the exam's language, and so does a rubric that has no text in the report's.

    Raises:
        TurnstoneError: ``submission_not_found`` or ``not_scored``.
    """
    async with get_db_context() as db:
        submission, evaluation = await scored(db, submission_id, revision)
        session = await SessionRepository(db).get_session(submission.session_id)
        assert session is not None and evaluation.result is not None, "a submission has a session, and this one scores"
        came = await SubmissionClaims(db).steps(evaluation.id)
        frozen = came[Node.FREEZE].value
        documents = DocumentRepository(db)
        policy = ScorePolicy.parse(await documents.content("policy", frozen["policy"]))
        rubric = Rubric.parse(await documents.content("rubric", frozen["rubric"]))
        version = frozen["problem_version"]
        known = session.spec_id is not None and version is not None
        problem = await ProblemRepository(db).problem(session.spec_id or 0, version) if known else None
        spoken: Language = frozen["spoken"]
        criteria = rubric.text(language if language in rubric.texts else spoken).criteria
        words = _translated(rubric.text(spoken).criteria, criteria)
        turns = await _turns(db, submission, evaluation, came, words)
    final, tests = evaluation.result["final_scores"], _value(came, Node.TESTS)
    return Report(
        submission_id=submission.client_id,
        exam_id=session.exam_id,
        language=submission.language,
        revision=evaluation.revision,
        moment=evaluation.ended_at or evaluation.created_at,
        final=final,
        weights=policy.total_weights,
        prompt_shares=_prompt_shares(policy),
        turns=turns,
        session=_session(came, criteria),
        samples=_samples(problem, tests),
        groups=_groups(tests),
        compile_error=_compile_error(tests),
        speed=_speed(came, policy),
        analysis=_value(came, Node.ANALYSIS) or None,
        review=came[Node.REVIEW].value if _is_there(came, Node.REVIEW) else None,
        versions={"policy": policy.name, "rubric": rubric.name, "problem": str(version or "–")},
    )


def _prompt_shares(policy: ScorePolicy) -> dict[str, float]:
    """Of the prompt score, what each of its parts makes up."""
    conversation = policy.prompt_weights["conversation"]
    return {
        "holistic_share": conversation * policy.conversation_weights["holistic"],
        "turns_share": conversation * policy.conversation_weights["turns"],
        "r4_share": policy.prompt_weights["session_r4"],
    }


async def _turns(
    db: Transaction,
    submission: Submission,
    evaluation: SubmissionEvaluation,
    came: Outcomes,
    words: Mapping[str, str],
) -> list[ReportedTurn]:
    entries = _value(came, Node.TURNS).get("turns") or ()
    said = await read_conversation(db, submission.session_id, submission.last_turn)
    prompts = {turn.number: turn.prompt for turn in said}
    run_ids = [entry["run_id"] for entry in entries if entry["run_id"] is not None]
    runs = await SubmissionEvidence(db).runs_of_judges(run_ids)
    scores = (evaluation.result or {})["turn_scores"]
    found = []
    for entry in entries:
        number = entry["turn"]
        result = (runs[entry["run_id"]].result if entry["run_id"] in runs else None) or {}
        criteria = [each for each in result.get("criteria") or () if each.get("score") is not None]
        prompt, told = prompts.get(number, ""), scores.get(str(number)) or {}
        found.append(
            ReportedTurn(
                number,
                prompt,
                entry["intent"],
                told.get("score"),
                told.get("status", "missing"),
                [_remark(each, number, words) for each in criteria],
                _spans(prompt, [each for each in criteria if each["counts"]]),
                result.get("advice") or "",
            )
        )
    return found


def _translated(spoken: Mapping[Criterion, CriterionText], shown: Mapping[Criterion, CriterionText]) -> dict[str, str]:
    """A rubric's words as they were written down with the marks, and the same in the report's language."""
    return {
        written: word
        for criterion in Criterion
        for written, word in zip(
            (spoken[criterion].title, *spoken[criterion].anchors),
            (shown[criterion].title, *shown[criterion].anchors),
            strict=True,
        )
    }


def _remark(told: Mapping[str, Any], turn: int, words: Mapping[str, str]) -> Remark:
    title, anchor = (words.get(told[name], told[name]) for name in ("title", "anchor"))
    return Remark(title, told["score"], anchor, told["quote"], told["reason"], turn, counts=bool(told["counts"]))


def _spans(prompt: str, criteria: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """Where quotes stand, in order and apart; one that does not stand where it should is looked for."""
    found = []
    for told in criteria:
        quote, start = told["quote"], told["start"]
        if not quote or prompt[start : start + len(quote)] != quote:
            start = prompt.find(quote) if quote else -1
        if start >= 0:
            found.append((start, start + len(quote)))
    merged: list[tuple[int, int]] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _session(came: Outcomes, texts: Mapping[Criterion, CriterionText]) -> list[Remark]:
    """For each criterion the median, with the words of the judge that is nearest to it."""
    value = _value(came, Node.PANEL)
    judges, marks = value.get("judges") or (), value.get("marks") or {}
    remarks = []
    for criterion in Criterion:
        said = [judge["marks"][criterion] for judge in judges if criterion in judge["marks"]]
        median = marks.get(criterion)
        if median is None or not said:
            continue
        nearest = min(said, key=lambda mark: abs(mark["score"] - median))
        text = texts[criterion]
        anchor = text.anchors[nearest["score"] - 1]
        remarks.append(Remark(text.title, median, anchor, nearest["quote"], nearest["reason"], nearest["turn"]))
    return remarks


def _samples(problem: Problem | None, tests: Mapping[str, Any]) -> list[SampleCase]:
    """Sample cases whole; of others nothing leaves this module but how many passed."""
    if problem is None:
        return []
    verdicts = {case["index"]: case["verdict"] for case in tests.get("cases") or ()}
    return [
        SampleCase(case.name, case.input, case.output, verdicts[index])
        for index, case in enumerate(problem.cases)
        if case.group.value == "SAMPLE" and index in verdicts
    ]


def _groups(tests: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for case in tests.get("cases") or ():
        of_group = counts.setdefault(case["group"], {})
        of_group[case["verdict"]] = of_group.get(case["verdict"], 0) + 1
    return counts


def _compile_error(tests: Mapping[str, Any]) -> str | None:
    compiled = tests.get("compile") or {}
    return str(compiled.get("message") or "") if compiled.get("status") == "failed" else None


def _speed(came: Outcomes, policy: ScorePolicy) -> dict[str, Any]:
    measured = _value(came, Node.TESTS).get("performance") or {}
    complexity = _value(came, Node.ANALYSIS).get("mean_complexity")
    factor = None
    if complexity is not None and measured.get("ratio") is not None:
        points = policy.running_time(0)
        weighed = policy.performance(points, complexity, points)
        factor = getattr(weighed, "value", HIGHEST_SCORE) / HIGHEST_SCORE
    return {"ratio": measured.get("ratio"), "language": measured.get("reference_language"), "factor": factor}


def _is_there(came: Outcomes, node: Node) -> bool:
    return node in came and came[node].status == "ok"


def _value(came: Outcomes, node: Node) -> Mapping[str, Any]:
    return (came[node].value if node in came else None) or {}
