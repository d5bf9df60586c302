"""Tasks for judges with the shipped documents, and judges that answer by a script."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from app.domain.documents import shipped
from app.domain.judging import JudgeAnswer, JudgeRequest, JudgeTask
from app.domain.rubric import Rubric
from app.domain.scoring import Criterion, ScorePolicy

RUBRIC = Rubric.parse(shipped("rubric", "standard"))
POLICY = replace(ScorePolicy.parse(shipped("policy", "v2")), samples=1)


def task(message: str, **fields: Any) -> JudgeTask:
    language = fields.pop("language", "en")
    given = {"context": (), "problem_text": None, "rubric": RUBRIC, "policy": POLICY, **fields}
    return JudgeTask(message=message, language=language, prompt=shipped("prompt", f"judge.{language}"), **given)


def answer(quote: str, marks: Sequence[int] = (3, 3, 3, 3), **changes: Any) -> str:
    criteria = {
        name: {"reason": "because", "quote": quote, "score": mark} for name, mark in zip(Criterion, marks, strict=True)
    }
    return json.dumps({"intent": "CREATION", "criteria": criteria, "advice": "more", **changes}, ensure_ascii=False)


class ScriptedJudge:
    """Answers what ``say`` makes of a request, and keeps the requests."""

    model = "scripted"

    def __init__(self, say: Callable[[JudgeRequest], str]) -> None:
        self.say = say
        self.requests: list[JudgeRequest] = []

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        self.requests.append(request)
        return JudgeAnswer(self.say(request), None, 1)

    async def aclose(self) -> None:
        pass
