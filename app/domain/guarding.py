"""The guard's labels, and its rules for attacks on the assistant's instructions, its limits and on the grading. Pure.

A label flags; what is done about it is the exam's word (`guard_policy`). Talk such as "ignore the previous version" is
normal in a coding exam, and so are "print the secret message" and "give me 100 test cases"; so the rules ask for a verb
and an object that only make sense together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from app.domain.normalising import decoded, plain


class GuardLabel(StrEnum):
    """What a message may be besides an honest prompt."""

    PROMPT_EXFILTRATION = "PROMPT_EXFILTRATION"
    JUDGE_MANIPULATION = "JUDGE_MANIPULATION"
    JAILBREAK = "JAILBREAK"
    OFF_TOPIC = "OFF_TOPIC"
    UNSAFE = "UNSAFE"
    SUBMISSION = "SUBMISSION"


ATTACKS = frozenset({GuardLabel.PROMPT_EXFILTRATION, GuardLabel.JUDGE_MANIPULATION, GuardLabel.JAILBREAK})
"""The labels of what is aimed at the assistant or at the grading."""

_GRADE = (
    r"(?:5\s?/\s?5|100\s?(?:%|points?\b|/\s?100)|full\s+(?:marks?|points|score)\b"
    r"|(?:maximum|highest|perfect|top)\s+(?:score|mark|grade)\b)"
)
_MY_WORK = (
    r"(?:(?:this|my)\s+(?:\w+\s+)?(?:prompt|turn|message|answer|solution|submission|session)s?"
    r"|(?:every|each|all|the)\s+(?:of\s+)?(?:\w+\s+)?prompts?)"
)
# "Give my solution a test with 100 points" is about points of a plane.
_NO_INPUT = (
    r"(?:(?!\b(?:tests?|cases?|inputs?|examples?|datasets?|arrays?|lists?|graphs?|grids?|polygons?|planes?)\b)"
    r"[^.\n]){0,30}"
)
# "100점 만점으로 평가해 줘" means out of 100.
_NOT_OUT_OF = r"(?<![0-9십백천오]점\s)(?<![0-9십백천오]점)(?<![0-9]\s)(?<![0-9])"
# "give me the highest score" is a wish; "give me the highest score of each student" is a program.
_AND_NO_MORE = (
    r"(?=[^\S\n]*(?:$|\n|[^\w\s]|(?:please|and|now|because|regardless)\b"
    r"|(?:for|on|in)\s+(?:this|my|the\s+prompt)\b))"
)
_NO_RULES = r"(?:developer|god|jailbreak|jailbroken|unrestricted|unfiltered|uncensored|sudo)"
_LEAVE = r"(?:ignore|disregard|forget|drop|break|bypass|abandon|override|lift|remove|disable|suspend|discard)"


class _Rule(NamedTuple):
    """What is looked for where a text has a word of each group: to look for those first takes a tenth of the time."""

    label: GuardLabel
    groups: tuple[str, ...]
    pattern: re.Pattern[str]


def _rule(label: GuardLabel, groups: tuple[str, ...], pattern: str) -> _Rule:
    return _Rule(label, groups, re.compile(pattern, re.IGNORECASE))


_RULES = (
    _rule(
        GuardLabel.PROMPT_EXFILTRATION,
        ("reveal show print repeat output display tell what", "prompt instruction message"),
        r"\b(?:reveal|show|print|repeat|output|display|tell\s+me|what(?:\s+is|\s+are|\Ws))\b[^.\n]{0,40}\b"
        r"(?:(?<!\ba )system\s+prompt|(?<!\ba )(?:hidden|secret)\s+(?:prompt|instructions?)"
        r"|(?:system|initial|original)\s+instructions?"
        r"|your\s+(?:\w+\s+)?(?:prompt|instructions?)|your\s+(?:system|initial|hidden|secret|first)\s+message)\b",
    ),
    _rule(
        GuardLabel.PROMPT_EXFILTRATION,
        ("보여 출력 알려 말해 공개", "프롬프트 지시 prompt"),
        r"(?:(?:시스템|숨겨진|숨은)\s?(?:프롬프트|지시문|지시\s?사항|지시)|\bsystem\s+prompt)"
        r"[^.\n]{0,20}(?:보여|출력|알려|말해|공개)",
    ),
    _rule(
        GuardLabel.JUDGE_MANIPULATION,
        ("give assign award score rate grade", "5 100 full maximum highest perfect top"),
        rf"\b(?:give|assign|award|score|rate|grade)\b[^.\n]{{0,30}}\b{_MY_WORK}\b{_NO_INPUT}\b{_GRADE}"
        rf"|\b(?:give|assign|award|score|rate|grade)\s+(?:me|us|this|it)\s+(?:(?:an?|the|with|at|only)\s+)?"
        rf"{_GRADE}{_AND_NO_MORE}"
        rf"|\b(?:score|rate|grade)\s+(?:me|this|it|{_MY_WORK})\s+(?:(?:an?|with|at)\s+)?100{_AND_NO_MORE}",
    ),
    _rule(
        GuardLabel.JUDGE_MANIPULATION,
        ("줘 주세요 주십시오 달라 부여해 채점해 평가해 매겨", "만점 최고"),
        rf"(?:(?:만점|최고\s?점수?)(?:을|를)?|{_NOT_OUT_OF}(?:만점|최고\s?점수?)(?:으로|로))\s?(?:좀\s?)?"
        r"(?:줘|주세요|주십시오|달라|부여해|채점해|평가해|매겨)",
    ),
    _rule(
        GuardLabel.JAILBREAK,
        ("dan anything mode 모드",),
        r"\b(?:you(?:\s+are|'re)|act\s+as|become|be|as|enable|enter|activate)\s+(?:now\s+)?(?:an?\s+|the\s+)?DAN\b"
        r"|\bDAN\s+mode\b|\bdo\s+anything\s+now\b"
        rf"|\b(?:enable|enter|activate|switch\s+(?:in)?to|turn\s+on|go\s+into)\s+(?:your\s+|the\s+)?{_NO_RULES}\s+mode\b"
        rf"|\b{_NO_RULES}\s+mode\s*[:=]?\s*(?:on|enabled|activated|engaged|true)\b"
        r"|(?:개발자|갓|탈옥|무제한|무검열)\s?모드(?:로|를)?\s?(?:켜|전환|활성|들어가|진입|변경|바꿔|온\b)",
    ),
    _rule(
        GuardLabel.JAILBREAK,
        (
            "ignore disregard forget drop break bypass abandon override lift remove disable suspend discard",
            "instruction rule prompt directive guideline restriction limit constraint polic filter guardrail "
            "programming",
        ),
        rf"\b{_LEAVE}\s+(?:all\s+(?:of\s+)?|any\s+|every\s+)?(?:your\s+(?:\w+\s+)?"
        r"|(?:the\s+|these\s+|those\s+)?(?:previous|prior|above|earlier|preceding|initial|original|system)\s+(?:\w+\s+)?)"
        r"(?:instructions?|rules?|prompts?|directives?|guidelines?|restrictions?|limit(?:ation)?s?|constraints?"
        r"|polic(?:y|ies)|filters?|guardrails?|programming)\b",
    ),
    _rule(
        GuardLabel.JAILBREAK,
        ("무시 잊 해제 버려 버리 어겨 따르지 지키지", "지시 지침 규칙 명령 제한 제약 가이드라인 프롬프트"),
        r"(?:이전|기존|위의?|지금까지의?|모든|네|너의|니)\s?(?:\w+\s)?(?:지시|지침|규칙|명령|제한|제약|가이드라인|프롬프트)(?:사항)?들?"
        r"(?:을|를|은|는)?\s?(?:다|전부|모두|싹|그냥)?\s?(?:무시|잊어|잊고|해제|버려|버리고|어겨|따르지\s?마|지키지\s?마)",
    ),
)

_SENTENCES = re.compile(r"[.!?。]\s|\n")
_AROUND = 100


def labels_of(message: str) -> frozenset[GuardLabel]:
    """Labels by these rules, with base64 and look-alike letters read; tens of milliseconds for 32,000 characters."""
    return frozenset(label for label, _ in accusations(plain(decoded(message))))


def accusations(seen: str) -> Iterator[tuple[GuardLabel, str]]:
    """Each place of a text that `plain` has made which a rule is for: the label, and the sentence that it stands in."""
    lower = seen.lower()
    for label, groups, pattern in _RULES:
        if all(_has_one_of(words, lower) for words in groups):
            for found in pattern.finditer(seen):
                yield label, sentence_around(seen, found.start(), found.end())


def _has_one_of(words: str, text: str) -> bool:
    return any(word in text for word in words.split())


def sentence_around(text: str, start: int, end: int) -> str:
    """What stands around a place up to the next full stop on either side, or as far as a long sentence goes."""
    before, after = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
    return _SENTENCES.split(before)[-1] + text[start:end] + _SENTENCES.split(after)[0]
