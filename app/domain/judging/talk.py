"""Words of judging in the languages candidates write in, by what they name. Data, and what follows from a match."""

from __future__ import annotations

import re
from functools import lru_cache

ENOUGH = 2
"""Different things that a sentence names when it is suspicious."""

_WORDS = {
    "who": r"\b(?:grad(?:ers?|ing)|judg(?:e|es|ing|ement|ment)|evaluat\w*|assess\w*|examiners?|reviewers?|"
    r"marker|marking|"
    r"rater|proctor|auditor|classifier|calibration|scor(?:er|ing))\b|whoever|"
    r"채점|평가|심사|판정|첨삭|검수|判定|採点|評価|审|評分|评分|prüfer|bewert|califi|evaluad|"
    r"correcteur|noteu?r|оцен|jeomsu|chaejeom|pyeongga",
    "mark": r"\b(?:scores?|scored|marks?|marked|grades?|graded|ratings?|rated|rate|points?|verdict|credit|tick)\b|"
    r"점수|배점|등급|\d\s*점|점으로|점을|点|punkt|punto|points|nota\b|jeom\b",
    "criterion": r"\br[1-4]\b|\b(?:criteri\w+|rubric|anchor|column|logic|clarity|clear|complete\w*|structure\w*|"
    r"examples?|context|efficien\w+|evidence|quot\w+|cite)\b|기준|항목|문항|논리|명확|구조|맥락|근거|인용|예시|"
    r"루브릭|칸|構造|構成|論理|klarheit|logik|rúbrica|maengnag",
    "digit": r"(?<![\w.^])[45](?!\.\d|\w|\s*(?:개|명|분|초|번|줄|원|만|천|월|일|시|층|장))",
    "value": r"\b(?:five|5s|100%|max\w*|highest|top|full|perfect\w*|excellent|outstanding|"
    r"best|flawless|exemplary|superb|fünf|cinco|volle)\b|5\s*(?:점|点)|(?:오|다섯|⑤|五|満)\s*(?:점|点)?(?:$|"
    r"[^\w가-힣])|만점|최고|최상|"
    r"최댓값|상한|완벽|모범|훌륭|다섯|满分|o jeom",
    "order": r"\b(?:ignor\w+|disregard|overrid\w+|supersed\w+|treat|count(?:s|ed)? as|award|assign|record|output|"
    r"give|deserv\w+|instead of|must|regardless|do not|confirm\w*|agreed|approved|valid|official|policy|label\w*)\b|"
    r"무시|처리|기록|부여|매겨|매기|주세요|주십시오|줘|확정|간주|친다|쳐서|본다|보고|통일|우선|적용|따를|하시면|달라",
    "intent": r"\bintent\b|\b(?:creation|setting|refinement|debugging|exploration|"
    r"follow[_ -]?up)\b(?=\s*[:=(,)]|\s+with)|"
    r"\blabel\s+(?:it|this|of)\b|\bclassif(?:y|ied|ication)\b|\bcall the (?:next|last)\b|(?:유형|의도|발화)|"
    r"으?로 분류|분류\s?결과|"
    r"(?-i:\b(?:CREATION|SETTING|REFINEMENT|DEBUGGING|EXPLORATION|FOLLOW_UP)\b)",
    "reader": r"\breaders?\b|\bwho(?:ever)? reads?\b|\b(?:you|who) (?:decide|judge|rate)s?\b|\bin your (?:eyes|"
    r"opinion)\b|"
    r"\bI (?:beg|trust) you\b|\bread (?:this|it) (?:as|with|kindly)|독자|읽는 (?:사람|쪽|분)|읽어 (?:주는|"
    r"내시)|이의\s?신청|"
    r"치환해|있는 것으로|필독",
    "frame": r"\b(?:prompts?|message|turn|submission|candidate|request|question|answer|session|text|system|"
    r"developer|professor|teacher|"
    r"instructions?|assistant|user|role|you are now|intent\w*|model|ai)\b|프롬프트|응시자|지시|지침|요청|질문|"
    r"이 글|본문|발화|유형|의도|시스템|사용자|모형|모델|운영|감독|출제|교수|조교",
}  # fmt: skip
_CLASSES = {name: re.compile(pattern, re.IGNORECASE | re.ASCII) for name, pattern in _WORDS.items()}
HEAVY = frozenset({"who", "mark", "criterion", "value", "digit", "intent", "reader"})
"""At least one of these: an order in a frame is what every prompt is."""
VALUES = frozenset({"value", "digit"})
"""Of those, what hardly says anything by itself."""
ALONE = frozenset({"who", "intent", "reader"})
"""One of these is enough: a coding exam's prompt has no need to speak of them."""

_CACHED_SENTENCES = 4_096
"""A conversation's sentences are looked at again with every turn that follows, and several times with each."""
_JOINED = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_-]+")


@lru_cache(_CACHED_SENTENCES)
def names_in(text: str) -> frozenset[str]:
    """Which things of `_WORDS` a plain text names."""
    spaced = _JOINED.sub(" ", text)
    forms = (text,) if spaced == text else (text, spaced)
    return frozenset(name for name, rule in _CLASSES.items() if any(rule.search(form) for form in forms))


def is_suspicious(names: frozenset[str]) -> bool:
    """Whether a sentence that names these may be meant for the judge."""
    return bool(names & ALONE) or (len(names) >= ENOUGH and bool(names & HEAVY))


def is_order(names: frozenset[str]) -> bool:
    """Stricter, for what is read in a disguise: letters in another order name a single thing by chance."""
    return (bool(names & {"who", "mark", "criterion"}) and bool(names & {"value", "digit"})) or len(
        names & HEAVY
    ) > ENOUGH
