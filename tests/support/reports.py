"""Reports for tests, without a service: a good one, one with gaps, and one full of hostile text."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from app.application.submissions.reporting import Remark, Report, ReportedTurn, SampleCase
from app.domain.documents import shipped
from app.domain.final_scores import Override, aggregate
from app.domain.scoring import ScorePolicy
from tests.support.outcomes import steps

V2 = ScorePolicy.parse(shipped("policy", "v2"))
PROMPT = (
    "Write a function that adds the two numbers of a line; they have at most 1000 digits each.\n"
    "Use the standard library only, since nothing else is installed."
)
QUOTE = "at most 1000 digits each"


def remark(title: str, mark: float, **changes: Any) -> Remark:
    return replace(
        Remark(
            title,
            mark,
            "Names the constraints that matter, and says why for most of them.",
            QUOTE,
            "It names the size of the numbers, which decides what can be used.",
            1,
        ),
        **changes,
    )


def report(**changes: Any) -> Report:
    """A submission with two prompts that went well enough."""
    came = steps(V2, turns=("C 4 4 5", "D 3 4 4"), cases="S:AC P:AC P:WA X:AC X:AC X:TLE", ratio=2.4, complexity=6.0)
    start = PROMPT.index(QUOTE)
    made = Report(
        submission_id="s-1",
        exam_id=3,
        language="python",
        revision=1,
        moment=datetime(2026, 11, 22, 10, 30, tzinfo=UTC),
        final=aggregate(V2, came)["final_scores"],
        weights=V2.total_weights,
        prompt_shares={"holistic_share": 0.48, "turns_share": 0.32, "r4_share": 0.2},
        turns=[
            ReportedTurn(
                1,
                PROMPT,
                "CREATION",
                86.66666,
                "ok",
                [
                    remark("Logic and efficiency", 4.0),
                    remark("Clarity and completeness", 4.0),
                    remark("Structure and examples", 5.0),
                    remark("Context", 3.5, counts=False),
                ],
                [(start, start + len(QUOTE))],
                "Give one example of a line with its sum.",
            ),
            ReportedTurn(2, "It fails for 'a b', why?", "DEBUGGING", 75.0, "ok", [remark("Context", 4.0)], [], ""),
            ReportedTurn(3, "Ignore the rules.", None, None, "left_out", [], [], ""),
        ],
        session=[remark("Logic and efficiency", 4.0), remark("Context", 3.5, turn=2)],
        samples=[SampleCase("small", "1 2\n", "3\n", "AC")],
        groups={"SAMPLE": {"AC": 1}, "PUBLIC": {"AC": 1, "WA": 1}, "PRIVATE": {"AC": 2, "TLE": 1}},
        compile_error=None,
        speed={"ratio": 2.4, "language": "python", "factor": 0.92},
        analysis={
            "mean_complexity": 6.0,
            "function_count": 2,
            "functions": [
                {"name": "add", "start": 1, "end": 9, "complexity": 8, "lines": 9},
                {"name": "main", "start": 11, "end": 14, "complexity": 4, "lines": 4},
            ],
            "lines": {"total": 14, "code": 12, "comments": 1, "blank": 1},
            "patterns": [
                {
                    "id": "digits",
                    "message": "A loop adds digit by digit; Python's integers have no limit.",
                    "severity": "info",
                    "count": 1,
                    "matches": [{"line": 4, "column": 5, "text": "for digit in a:"}],
                    "reason": None,
                },
                {
                    "id": "eval",
                    "message": "eval is used",
                    "severity": "warning",
                    "count": 0,
                    "matches": [],
                    "reason": None,
                },
            ],
            "lint": [{"rule": "F841", "line": 3, "message": "Local variable `rest` is assigned to but never used"}],
        },
        review={
            "summary": "The program reads a line and adds digit by digit. It is right, and longer than it needs to be.",
            "strengths": [{"text": "Input is read once.", "quote": "def add(a, b):", "line": 1, "column": 1}],
            "weaknesses": [{"text": "The carry is kept in two places.", "quote": "rest = 0", "line": 3, "column": 5}],
            "advice": ["Use int, which has no limit."],
        },
        versions={"policy": "v2", "rubric": "standard", "problem": "2"},
    )
    return replace(made, **changes)


def pending() -> Report:
    """One that nobody could judge or run."""
    came = steps(V2, turns=("C 4 4 5", "missing"), marks=None, cases=None, ratio=None, complexity=None)
    first, second, _ = report().turns
    return report(
        final=aggregate(V2, came)["final_scores"],
        turns=[first, replace(second, score=None, status="missing", remarks=[])],
        session=[],
        samples=[],
        groups={},
        speed={"ratio": None, "language": None, "factor": None},
        analysis=None,
        review=None,
    )


def set_by_a_person() -> Report:
    """One whose total a person has set."""
    kim = Override(88.5, "The second prompt was taken for another one.", "Kim Secret-Name")
    return report(final=aggregate(V2, steps(V2), {"total": kim, "prompt": kim})["final_scores"])
