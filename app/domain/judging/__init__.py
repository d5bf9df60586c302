"""Judging a candidate's prompts: what a judge is shown and asked, how its answer is read, and what follows. No I/O.

``turn.judge_turn`` (one prompt) and ``panel.judge_panel`` (a whole session) are the ways in. ``shown``, ``session``,
``code`` and ``suspicion`` decide what a judge sees, ``requests`` and ``panel_requests`` ask, ``asking`` asks again,
``answers`` reads, ``combining`` makes one verdict of several.
"""

from app.domain.judging.answers import read_answer
from app.domain.judging.asking import ATTEMPTS
from app.domain.judging.combining import combine
from app.domain.judging.panel import PanelJudgement, PanelTask, PanelTurn, judge_panel
from app.domain.judging.pasted import is_pasted_problem
from app.domain.judging.requests import build_request
from app.domain.judging.tasks import (
    JudgeAnswer,
    JudgeCall,
    JudgeClient,
    Judgement,
    JudgeRequest,
    JudgeTask,
    Mark,
    TurnJudgement,
    UnreadableAnswerError,
)
from app.domain.judging.turn import judge_turn

__all__ = [
    "ATTEMPTS",
    "JudgeAnswer",
    "JudgeCall",
    "JudgeClient",
    "JudgeRequest",
    "JudgeTask",
    "Judgement",
    "Mark",
    "PanelJudgement",
    "PanelTask",
    "PanelTurn",
    "TurnJudgement",
    "UnreadableAnswerError",
    "build_request",
    "combine",
    "is_pasted_problem",
    "judge_panel",
    "judge_turn",
    "read_answer",
]
