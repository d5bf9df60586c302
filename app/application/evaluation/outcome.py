"""What a judgement says to Core, to people and to the record. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.application.evaluation.subject import Subject
from app.domain.judging import Judgement, Mark, TurnJudgement
from app.domain.scoring import Score, Unscored, Verdict
from app.infrastructure.persistence.models import ReviewReasonEnum, ScoreOverride
from app.infrastructure.repositories.evaluation_runs import KeptScore, Reading

ATTACKS = {"PROMPT_EXFILTRATION", "JUDGE_MANIPULATION", "JAILBREAK", "UNSAFE"}
"""Labels of the guard that ask for a person's eyes; the others are no attack."""

UNAVAILABLE, REJECTS = "judge unavailable", "the judge rejects the request"
"""Why a turn is unscored that waited for its judge for as long as it may."""


def turn_log(subject: Subject, judgement: TurnJudgement) -> dict[str, Any]:
    """The judgement as it is stored (a run's ``result``) and told (``turn_log``); a person's score is added later."""
    verdict = judgement.verdict
    return {
        "turn_id": subject.turn_id,
        "status": "scored" if isinstance(verdict, Score) else "unscored",
        "reason": verdict.reason if isinstance(verdict, Unscored) else None,
        "score": score_of(verdict),
        "intent": judgement.intent,
        "criteria": _criteria(subject, judgement),
        "advice": judgement.advice,
        "spread": judgement.spread,
        "labels": list(subject.labels),
        "withheld": [list(span) for span in judgement.withheld],
        "versions": {
            "rubric": subject.run.rubric_hash,
            "prompt": subject.run.prompt_hash,
            "policy": subject.run.policy_hash,
            "judge_model": subject.model,
            "exam_version": subject.exam_version,
        },
        "components": {"guard": "refused" if subject.refused else "passed", "judge": _judge_status(judgement)},
    }


def score_of(verdict: Verdict) -> float | None:
    """The number, where there is one."""
    return verdict.value if isinstance(verdict, Score) else None


def told(result: Mapping[str, Any], override: ScoreOverride | None) -> tuple[dict[str, Any], float | None]:
    """A run's result as `turn_evaluation` tells it: ``turn_log`` and ``turn_score``.

    A person's score is the one that counts; the machine's stays in the log beside it.
    """
    if override is None:
        return dict(result), result["score"]
    said = {
        "score": override.score,
        "reason": override.reason,
        "person": override.person,
        "created_at": override.created_at.isoformat(),
    }
    return {**result, "override": said}, override.score


def details(result: Mapping[str, Any]) -> dict[str, Any]:
    """The row of `prompt_evaluations`: the result, and in ``analysis`` what a person reads of it."""
    return {**result, "analysis": result["advice"] or result["reason"] or ""}


def kept_scores(judgement: TurnJudgement) -> list[KeptScore]:
    """Every mark of every sample that could be read."""
    return [
        KeptScore(call.sample, mark.criterion, mark.score, mark.quote, mark.start, mark.end, mark.reason)
        for call in judgement.calls
        if call.purpose == "judge" and call.judgement is not None
        for mark in call.judgement.marks
    ]


def readings(judgement: TurnJudgement) -> list[Reading]:
    """What was read in each answer. An empty one is none: a judge that says nothing is asked again next time."""
    counted: dict[int, int] = {}
    found = []
    for call in judgement.calls:
        if not call.answer.raw:
            continue
        place = counted.get(call.sample, 0)
        counted[call.sample] = place + 1
        found.append(Reading(call.sample, place, _parsed(call.judgement), call.error))
    return found


def review_reasons(subject: Subject, judgement: TurnJudgement) -> dict[ReviewReasonEnum, dict[str, Any]]:
    """Why people should look at the turn, with what they want to know first. What the guard found never costs points.

    A score is near a grade's edge only where the samples were not of one mind: that 4 of 5 is an edge by itself tells
    nothing.
    """
    found: dict[ReviewReasonEnum, dict[str, Any]] = {}
    verdict = judgement.verdict
    if subject.refused:
        found[ReviewReasonEnum.REFUSED] = {"labels": list(subject.labels)}
    elif isinstance(verdict, Unscored):
        found[ReviewReasonEnum.UNSCORED] = {"reason": verdict.reason}
    if attacks := sorted(ATTACKS.intersection(subject.labels)):
        found[ReviewReasonEnum.ATTACK_FLAGGED] = {"labels": attacks}
    if judgement.is_suspicious:
        spans = [list(span) for span in judgement.withheld]
        found.setdefault(ReviewReasonEnum.ATTACK_FLAGGED, {})["withheld"] = spans
    if subject.task is None:
        return found
    policy = subject.task.policy
    if judgement.spread >= policy.another_sample_at_spread:
        found[ReviewReasonEnum.SAMPLES_DIFFER] = {"spread": judgement.spread}
    if isinstance(verdict, Score) and judgement.spread and policy.near_grade_edge(verdict):
        found[ReviewReasonEnum.NEAR_GRADE_EDGE] = {"score": verdict.value}
    return found


def _judge_status(judgement: TurnJudgement) -> str:
    if not judgement.calls:
        reason = judgement.verdict.reason if isinstance(judgement.verdict, Unscored) else None
        return "unavailable" if reason in (UNAVAILABLE, REJECTS) else "not_asked"
    return "unreadable" if isinstance(judgement.verdict, Unscored) else "answered"


def _criteria(subject: Subject, judgement: TurnJudgement) -> list[dict[str, Any]]:
    """Each criterion with the mark that counts, and the words of the first sample that is nearest to it."""
    if judgement.intent is None or subject.task is None:
        return []
    texts = subject.task.rubric.text(subject.task.language).criteria
    weighed = subject.task.policy.criteria_for(judgement.intent)
    told_marks = []
    for criterion, value in judgement.marks.items():
        if isinstance(value, Unscored):
            told_marks.append(
                {"criterion": criterion, "counts": criterion in weighed, "score": None, "reason": value.reason}
            )
            continue
        mark = _nearest(criterion, value, judgement)
        told_marks.append(
            {
                "criterion": criterion,
                "title": texts[criterion].title,
                "counts": criterion in weighed,
                "score": value,
                "reason": mark.reason,
                "quote": mark.quote,
                "start": mark.start,
                "end": mark.end,
                "anchor": texts[criterion].anchors[mark.score - 1],
            }
        )
    return told_marks


def _nearest(criterion: str, value: float, judgement: TurnJudgement) -> Mark:
    marks = [mark for sample in judgement.evidence for mark in sample if mark.criterion == criterion]
    return min(marks, key=lambda mark: abs(mark.score - value))


def _parsed(judgement: Judgement | None) -> dict[str, Any] | None:
    if judgement is None:
        return None
    return {
        "intent": judgement.intent,
        "advice": judgement.advice,
        "criteria": {
            mark.criterion: {
                "score": mark.score,
                "quote": mark.quote,
                "start": mark.start,
                "end": mark.end,
                "reason": mark.reason,
            }
            for mark in judgement.marks
        },
    }
