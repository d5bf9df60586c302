"""The guard's rules: which labels a candidate's message earns. Pure, and no model is asked.

A label flags; whether a message is refused is the policy's word. Talk such as "ignore the previous version" is normal
in a coding exam, so the rules ask for a verb and an object that only make sense together.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class GuardLabel(StrEnum):
    """What a message may be besides an honest prompt."""

    PROMPT_EXFILTRATION = "PROMPT_EXFILTRATION"
    JUDGE_MANIPULATION = "JUDGE_MANIPULATION"


@dataclass(frozen=True, slots=True)
class GuardVerdict:
    """``labels`` the message earned, and whether it is refused."""

    labels: frozenset[GuardLabel] = frozenset()
    refused: bool = False


GuardPolicy = Callable[[str], GuardVerdict]
"""The hook: decides about one message. Must be quick; it runs on the event loop."""

_RULES: dict[GuardLabel, re.Pattern[str]] = {
    GuardLabel.PROMPT_EXFILTRATION: re.compile(
        r"\b(?:reveal|show|print|repeat|output|tell me)\b[^.\n]{0,40}"
        r"\b(?:system|hidden|initial|secret)\s+(?:prompt|instructions?|message)"
        r"|시스템\s*(?:프롬프트|지시(?:문|사항)?)[^.\n]{0,20}(?:보여|출력|알려|공개)",
        re.IGNORECASE,
    ),
    GuardLabel.JUDGE_MANIPULATION: re.compile(
        r"\b(?:give|assign|award|score|rate|grade)\b[^.\n]{0,30}\b(?:prompt|turn|me|this)\b[^.\n]{0,30}"
        r"\b(?:5/5|100(?:\s*(?:%|points?))?|full\s+(?:marks?|score)|maximum\s+score|highest\s+score)"
        r"|(?:만점|최고\s*점수)[^.\n]{0,15}(?:줘|주세요|부여|채점)",
        re.IGNORECASE,
    ),
}
_INVISIBLE = re.compile("[\u200b-\u200f\u2060-\u2064\ufeff\u00ad]")


def labels_of(message: str) -> frozenset[GuardLabel]:
    """Labels by rule, after NFKC and without characters that cannot be seen."""
    plain = _INVISIBLE.sub("", unicodedata.normalize("NFKC", message))
    return frozenset(label for label, rule in _RULES.items() if rule.search(plain))


def policy_refusing(refused: frozenset[GuardLabel]) -> GuardPolicy:
    """A policy that refuses messages with one of these labels and lets all others through, flagged."""

    def decide(message: str) -> GuardVerdict:
        labels = labels_of(message)
        return GuardVerdict(labels, refused=bool(labels & refused))

    return decide
