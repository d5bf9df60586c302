"""Checks: why people should look at a submission; and whether its scores wait until somebody has."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, Final

from app.application.evaluation.outcome import ATTACKS
from app.application.submissions.conversation import SaidTurn, read_conversation
from app.application.submissions.work import Made, Work
from app.domain.final_scores import aggregate as scores_of
from app.domain.langgraph.submission_state import Outcomes
from app.domain.scoring import Score, ScorePolicy
from app.domain.submission import COMPONENTS, Node, Outcome
from app.infrastructure.persistence.models import ReviewReasonEnum
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.document_repository import DocumentRepository
from app.infrastructure.repositories.submission_repository import SubmissionRepository

_LIKE_ENOUGH: Final = 0.3
"""What share of the handed-in lines has to stand in some code of the conversation; below it, a person looks."""
_FEWEST_LINES: Final = 8
"""Shorter code than this is like anything, or like nothing, by chance."""
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)


async def check(work: Work, came: Outcomes) -> Made:
    """Find what a person should see. No reason changes a score."""
    frozen = came[Node.FREEZE].value
    async with get_db_context() as db:
        policy = ScorePolicy.parse(await DocumentRepository(db).content("policy", frozen["policy"]))
        conversation = await read_conversation(db, work.evaluation.session_id, frozen["last_turn"])
        submission = await SubmissionRepository(db).find(str(work.evaluation.client_id))
    assert submission is not None, "an evaluation has a submission"
    found = _reasons(came, policy)
    likeness = likeness_to_conversation(submission.code, conversation)
    if likeness is not None and likeness < _LIKE_ENOUGH:
        found[ReviewReasonEnum.UNLIKE_CONVERSATION] = {"likeness": round(likeness, 3)}
    reasons = [{"reason": reason.value, "details": details} for reason, details in found.items()]
    return Made(Outcome("ok", {"reasons": reasons}, evidence={"likeness": likeness}))


async def hold(_work: Work, came: Outcomes) -> Made:
    """Whether the scores are told only when a person has released them: the exam's word."""
    return Made(Outcome("ok", {"held": bool(came[Node.FREEZE].value["hold_scores"])}))


def _reasons(came: Outcomes, policy: ScorePolicy) -> dict[ReviewReasonEnum, dict[str, Any]]:
    found: dict[ReviewReasonEnum, dict[str, Any]] = {}
    missing = {node.value: came[node].reason for node in COMPONENTS if came[node].status == "missing"}
    total = scores_of(policy, came)["final_scores"]
    if missing or total["status"] != "SCORED":
        unscored = {name: part["reason"] for name, part in total["components"].items() if part["score"] is None}
        found[ReviewReasonEnum.COMPONENT_MISSING] = {"missing": missing, "unscored": unscored}
    elif policy.near_grade_edge(Score(total["total_score"])):
        found[ReviewReasonEnum.NEAR_GRADE_EDGE] = {"score": total["total_score"], "grade": total["grade"]}
    panel = came[Node.PANEL].value or {}
    if panel.get("spread", 0) >= policy.another_sample_at_spread:
        found[ReviewReasonEnum.SAMPLES_DIFFER] = {"spread": panel["spread"]}
    if panel.get("judges") and panel.get("reason"):
        found[ReviewReasonEnum.EVIDENCE_MISSING] = {"reason": panel["reason"]}
    turns = (came[Node.TURNS].value or {}).get("turns", [])
    attacked = {
        str(turn["turn"]): sorted(ATTACKS.intersection(turn["labels"]))
        for turn in turns
        if ATTACKS.intersection(turn["labels"]) or turn["withheld"]
    }
    if attacked or panel.get("suspicious"):
        found[ReviewReasonEnum.ATTACK_FLAGGED] = {"turns": attacked, "panel": bool(panel.get("suspicious"))}
    return found


def likeness_to_conversation(code: str, conversation: Iterable[SaidTurn]) -> float | None:
    """How much of the code's lines stand in some code of the conversation, in order: 0 to 1; the best counts.

    ``None`` where nothing can be said: the code is short, or the conversation holds none.
    """
    lines = _lines(code)
    if len(lines) < _FEWEST_LINES:
        return None
    blocks = [_lines(block) for turn in conversation for text in (turn.prompt, turn.answer) for block in _blocks(text)]
    shares = [_share(lines, block) for block in blocks if block]
    return max(shares, default=None)


def _blocks(text: str) -> list[str]:
    return _BLOCK.findall(text)


def _lines(code: str) -> list[str]:
    return [stripped for line in code.splitlines() if (stripped := "".join(line.split()))]


def _share(lines: list[str], block: list[str]) -> float:
    matcher = difflib.SequenceMatcher(None, lines, block, autojunk=False)
    return sum(match.size for match in matcher.get_matching_blocks()) / len(lines)
