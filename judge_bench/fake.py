"""Judges that need no model and no key: an honest one, one that obeys whatever it reads, and one that is not sure.

They see what a model would see, the rendered request, and answer as one would, in raw text.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from app.domain.conversation import Usage
from app.domain.judging import JudgeAnswer, JudgeRequest
from app.domain.scoring import Criterion, Intent

_TIME: ContextVar[int] = ContextVar("time", default=0)
_FENCE = re.compile(r"^⟦(?P<nonce>[0-9a-f]{16})\n(?P<text>.*?)\n?^(?P=nonce)⟧$", re.M | re.S)
_HOLES = re.compile(r"⟦[^⟧\n]*⟧|…")
_LABEL = re.compile(r"^⟦#(\d+)⟧\n", re.M)
_WORD = re.compile(r"[A-Za-z_][\w.]*|[가-힣]+|\d[\d.,^·*]*")
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]*")

_LIMITS = re.compile(
    r"\bn\b|\d\s*(?:\^|·|\*\*)\s*\d|up to|at most|limit|\b(?:O|Θ)\(|≤|<=|>=|too (?:slow|many)|memory|\bMB\b|"
    r"\bGB\b|seconds?\b|"
    r"이하|이상|최대|까지|제한|시간\s?초과|메모리|\d+만|복잡도|초 |개까지|\d\s*ms|stateless|재귀",
    re.IGNORECASE,
)
_REASONS = re.compile(
    r"\bbecause\b|\bso\b|\bsince\b|would\b|instead|therefore|\bnot\b.{0,20}\bbut\b|without|why|avoid|rather|needs?\b|"
    r"때문|니까|므로|라서|이라|하면|대신|말고|않고|지 않|위해|어서|아서|써서|면 ",
    re.IGNORECASE,
)
_WHAT = re.compile(
    r"return|takes?\b|input|output|result|raises?|error|exception|function|class|method|format|print|expected?|"
    r"must|should|"
    r"반환|출력|입력|결과|함수|클래스|메서드|예외|오류|에러|형식|돌려|받아|받는|기대|나와야|찍혀|나옴|로그",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(
    r"e\.g\.|example|→|->|=>|==|for instance|such as|\bgives\b|예:|예\)|예시|예를|가령|이면|입력 \d", re.IGNORECASE
)
_LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s+\S", re.M)
_BACK = re.compile(
    r"\b(?:your|you (?:gave|said|wrote|used)|the (?:same|previous|first|second|last|code|function|version)|"
    r"that|it|keep|still|"
    r"before|earlier|above|now)\b|아까|방금|앞|위에|그|주신|이전|기존|그대로|말고|지금|말씀",
    re.IGNORECASE,
)
_INTENTS = (
    (
        Intent.DEBUGGING,
        r"error|exception|crash|fail|wrong|traceback|why does|bug|hang|에러|오류|안 돼|안됨|틀렸|왜 .*(?:죠|"
        r"지)|초과|예외",
    ),
    (Intent.SETTING, r"from now on|always|you are|use (?:python|java|go|c\+\+)|앞으로|항상|답변은|언어는|기준으로"),
    (Intent.REFINEMENT, r"\b(?:change|make it|instead|rename|refactor|extend|replace|add)\b|바꿔|고쳐|추가|수정|개선"),
    (Intent.EXPLORATION, r"\b(?:difference|compare|when is|which|explain|why is)\b|차이|뭐가|무엇|어떤|비교"),
    (Intent.CREATION, r"\b(?:write|implement|create|build|class|function|make)\b|만들|구현|작성|짜"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request shows: the conversation before, the prompt, and the order of the criteria.

    ``turns``: of a whole session, each prompt by its number; then ``prompt`` is all of them.
    """

    conversation: str
    prompt: str
    order: tuple[Criterion, ...]
    turns: tuple[tuple[int, str], ...] = ()


def seen(request: JudgeRequest) -> Seen:
    """Read a rendered request as a model does: fences by their marks, the criteria by the schema."""
    fenced = [found["text"] for found in _FENCE.finditer(request.messages[-1].content)]
    criteria = request.schema["properties"]["criteria"]["properties"]
    order = tuple(map(Criterion, criteria))
    prompt = fenced[-1]
    turns: tuple[tuple[int, str], ...] = ()
    if "turn" in criteria[order[0]]["properties"]:
        _, *pieces = _LABEL.split(prompt)
        turns = tuple((int(number), text) for number, text in zip(pieces[::2], pieces[1::2], strict=True))
    return Seen("\n".join(fenced[:-1]), prompt, order, turns)


class FakeJudge:
    """Marks by what can be counted: limits, reasons, results named, examples, words in common with the conversation."""

    def __init__(self, model: str = "fake:honest") -> None:
        self.model = model
        self.calls = 0

    async def complete(self, request: JudgeRequest) -> JudgeAnswer:
        """Answer at once."""
        self.calls += 1
        await asyncio.sleep(0)
        raw = self.answer(request)
        size = sum(len(message.content) for message in request.messages)
        return JudgeAnswer(raw, Usage(size // 3, len(raw) // 3, source="counted"), 0)

    async def aclose(self) -> None:
        """Nothing is open."""

    def answer(self, request: JudgeRequest) -> str:
        """The raw answer."""
        what = seen(request)
        return rendered(what, intent_of(what), marks_of(what))


@contextmanager
def again() -> Iterator[None]:
    """What is judged in here is judged once more."""
    token = _TIME.set(_TIME.get() + 1)
    try:
        yield
    finally:
        _TIME.reset(token)


class NoisyJudge(FakeJudge):
    """Like the honest one, but a criterion is one mark off with a chance of ``noise``.

    The noise of a call follows from ``seed``, the request, and whether it is asked `again`. So it is another when a
    prompt is judged again, and a run with the same seed is the same, whatever is judged beside it.
    """

    def __init__(self, noise: float = 0.2, seed: int = 0) -> None:
        super().__init__("fake:noisy")
        self._noise = noise
        self._seed = seed

    def answer(self, request: JudgeRequest) -> str:
        """The raw answer."""
        what = seen(request)
        chance = random.Random(f"{self._seed}{request.input_hash}{_TIME.get()}")  # noqa: S311 - noise
        marks = {
            name: min(5, max(1, mark + (chance.choice((-1, 1)) if chance.random() < self._noise else 0)))
            for name, mark in marks_of(what).items()
        }
        return rendered(what, intent_of(what), marks)


def marks_of(what: Seen) -> dict[Criterion, int]:
    """The honest marks; a session's are the means of its prompts'."""
    if what.turns:
        before = what.conversation
        each = []
        for _, text in what.turns:
            each.append(_marks_of_prompt(Seen(before, text, what.order)))
            before += f"\n{text}"
        return {name: round(fmean(marks[name] for marks in each)) for name in Criterion}
    return _marks_of_prompt(what)


def _marks_of_prompt(what: Seen) -> dict[Criterion, int]:
    text = _HOLES.sub(" ", what.prompt)
    words = _WORD.findall(text)
    solid = [
        word
        for word in words
        if any(sign.isdigit() or sign in "_." for sign in word) or re.match("[A-Za-z]*[a-z][A-Z]", word)
    ]
    limits, reasons = len(set(_LIMITS.findall(text))), len(set(_REASONS.findall(text)))
    results, examples = len(set(_WHAT.findall(text))), len(_EXAMPLE.findall(text))
    lines = len(_LIST.findall(text))
    calls = len(re.findall(r"\w+\([^)]*\)|`[^`]+`|```", text))
    r1 = 1 + min(2, limits) + (limits > 0 and reasons > 0) + (limits > 1 and reasons > 1)
    r2 = 1 + (len(words) > 3) + (results > 0) + (results > 1 and len(solid) > 1) + (len(set(solid)) > 4 and results > 1)
    r3 = 1 + (calls > 0) + (examples > 0) + (examples > 1 or (lines > 1 and examples > 0)) + (lines > 2 or examples > 2)
    return {
        Criterion.R1: min(5, int(r1)),
        Criterion.R2: min(5, int(r2)),
        Criterion.R3: min(5, int(r3)),
        Criterion.R4: _context_mark(what.conversation, text, words, solid),
    }


def _context_mark(conversation: str, text: str, words: Sequence[str], solid: Sequence[str]) -> int:
    before = set(_stems(conversation))
    shared = {stem for stem in _stems(text) if stem in before}
    back = len(set(_BACK.findall(text)))
    return min(
        5,
        1
        + (back > 0)
        + (len(shared) > 1)
        + (len(shared) > 4)
        + (len(shared) > 2 and len(words) > 12 and len(solid) > 0),
    )


def _stems(text: str) -> list[str]:
    return [word.casefold()[:6] if word.isascii() else word[:2] for word in _WORD.findall(text) if len(word) > 1]


def intent_of(what: Seen) -> Intent:
    """The honest intent, by telling words."""
    found = next((intent for intent, rule in _INTENTS if re.search(rule, what.prompt, re.IGNORECASE)), None)
    if (
        found in {Intent.CREATION, Intent.EXPLORATION}
        and len(_WORD.findall(what.prompt)) < 7
        and len(what.conversation) > 20
    ):
        return Intent.FOLLOW_UP
    return found or (Intent.FOLLOW_UP if len(what.conversation) > 20 else Intent.EXPLORATION)


def quote_of(prompt: str) -> str:
    """Some words of the prompt, none of those that stand for what was left out."""
    pieces = [piece.strip() for piece in re.split(rf"{_HOLES.pattern}|\n", prompt)]
    return max(pieces, key=lambda piece: sum(sign.isalnum() for sign in piece[:80]))[:80].strip() or prompt


def rendered(what: Seen, intent: Intent, marks: Mapping[Criterion, int], quote: str | None = None) -> str:
    """An answer by the schema."""
    if what.turns:
        return _rendered_panel(what, marks, quote)
    said = quote_of(what.prompt) if quote is None else quote
    criteria: dict[str, Any] = {
        name: {"reason": f"{name} by what can be counted.", "quote": said, "score": marks[name]} for name in what.order
    }
    return json.dumps({"intent": intent, "criteria": criteria, "advice": "Name the limits."}, ensure_ascii=False)


def _rendered_panel(what: Seen, marks: Mapping[Criterion, int], quote: str | None) -> str:
    number, text = max(what.turns, key=lambda turn: sum(sign.isalnum() for sign in quote_of(turn[1])))
    said = quote_of(text) if quote is None else quote
    criteria = {
        name: {"reason": f"{name} by what can be counted.", "turn": number, "quote": said, "score": marks[name]}
        for name in what.order
    }
    return json.dumps({"criteria": criteria, "analysis": "The limits come late."}, ensure_ascii=False)
