"""The guard's rules for what is no attack on it and yet no business of an exam's chat. Pure.

They know the plainest wordings alone: a message that a rule passes over is answered like any other, whereas one that is
labelled wrongly may be refused. So each asks for words that a programming task hardly puts together, and one about the
rest of an exam's day (a weather station, a travel planner, a grader) is not enough.
"""

from __future__ import annotations

import re

from app.domain.guarding import GuardLabel

_CODE = re.compile(
    r"\b(?:code|function|program|class|method|script|algorithm|array|list|string|input|output|simulat\w*|parse\w*|api|app"
    r"|test\s?case|database|table|struct|json|csv|regex|loop|variable|implement\w*|python|java|c\+\+|sql|query|game|page"
    r"|website|calculator|bot|planner|tracker)\b"
    r"|코드|함수|프로그램|클래스|메서드|스크립트|알고리즘|배열|리스트|문자열|입력|출력|구현|시뮬레이|파싱|테스트|변수"
    r"|자료\s?구조|파이썬|자바|계산|로직|게임|사이트|페이지|테이블|쿼리|앱",
    re.IGNORECASE,
)
"""Words of programming: with one of them, talk of the weather is a task."""

_OFF_TOPIC = re.compile(
    r"\b(?:what(?:'s|\s+is)\s+the\s+weather|my\s+(?:girl|boy)friend|my\s+(?:horoscope|zodiac)|(?:workout|diet)\s+plan"
    r"|plan\s+(?:a|my|our)\s+(?:\S+\s+){0,3}(?:trip|vacation|holiday)|book\s+me\s+a"
    r"|(?:which\s+party|who)\s+should\s+i\s+vote|(?:birthday|love)\s+(?:song|poem)|tell\s+me\s+a\s+joke|recipe\s+for"
    r"|what\s+should\s+i\s+(?:eat|cook|wear)|how\s+was\s+your\s+day|do\s+you\s+(?:ever\s+)?(?:feel|love|dream|sleep)"
    r"|are\s+you\s+(?:lonely|single|happy)|did\s+you\s+(?:sleep|eat)|your\s+favou?rite\s+(?:colou?r|food|movie|song|band)"
    r"|homework\s+for\s+(?:my|the)|life\s+after\s+death|meaning\s+of\s+life|(?:in|on)\s+the\s+news\s+today)\b"
    r"|날씨\s?(?:어때|알려|어떻)|여친|남친|여자\s?친구|남자\s?친구|소개팅|운세\s?(?:봐|알려)|mbti|다이어트\s?식단"
    r"|(?:여행|관광)\s?(?:코스|계획|일정)\s?(?:좀\s?)?(?:짜|추천)|비행기표|레시피|뭐\s?먹을까|밥\s?먹었|잡담|농담|심심|외롭"
    r"|(?:노래|음악|영화|드라마|맛집|노트북|핸드폰|선물)\s?(?:좀\s?)?추천|가사\s?(?:좀\s?)?써|이름\s?(?:좀\s?)?지어"
    r"|운동\s?루틴|인생의\s?의미|(?:오늘|요즘)\s?뉴스|대통령|(?:화학|물리|생물|역사|국어|영어)\s?(?:숙제|과제|에세이)",
    re.IGNORECASE,
)
_UNSAFE = re.compile(
    r"\b(?:(?:create|write|build|code|make|develop|give\s+me)\b[^.\n]{0,40}"
    r"\b(?:ransomware|malware|keylogger|trojan|spyware|botnet)"
    r"|(?:fake|forged?)\s+(?:bank|id|passport)\b|phishing\s+(?:mail|page|site|message|kit)"
    r"|(?:hack|break|crack)\s+(?:into\s+)?(?:my|his|her|someone(?:'?s)?|the\s+exam|this\s+exam|a\s+company'?s?)\s+"
    r"(?:\S+\s+){0,2}(?:server|account|wifi|wi-fi|phone|instagram|facebook|e?mail|password)"
    r"|steals?\s+(?:\S+\s+){0,3}(?:passwords?|cookies|credentials|card)|(?:credit\s+)?card\s+numbers?\s+with\s+cvv"
    r"|(?:build|make|assemble)\s+(?:a|an)\s+(?:\S+\s+)?(?:bomb|explosive|weapon)"
    r"|(?:hurt|kill|poison|stab)\s+(?:my|a|the)\s+(?:classmate|neighbou?r|boss|wife|husband|teacher|colleague|ex)\b"
    r"|(?:hide|evade|bypass|fool)\w*\s+(?:from\s+)?(?:the\s+)?proctor|fakes?\s+(?:my\s+|the\s+)?webcam)"
    r"|랜섬웨어|악성\s?(?:코드|앱)[^.\n]{0,20}(?:만들|짜|작성)|키로거|트로이\s?목마|피싱\s?(?:문자|메일|사이트|페이지)"
    r"|(?:계정|서버|인스타|카톡|와이파이|비번)[^.\n]{0,12}(?:해킹|뚫|침입|훔쳐|빼내|몰래)|위조\s?(?:신분증|여권)"
    r"|(?:폭탄|폭발물|마약)[^.\n]{0,10}(?:만드는|제조)|(?:죽이|살해|해치)[^.\n]{0,12}(?:싶|방법)"
    r"|감독\s?(?:프로그램|관)?[^.\n]{0,12}(?:피하|안\s?걸리|속이)|야한\s?(?:소설|글)|비하하는\s?글",
    re.IGNORECASE,
)
_SUBMISSION = re.compile(
    r"(?:^|[.!,;\n]|\b(?:and|please|now|can\s+you|could\s+you|i(?:'m|\s+am)\s+done)\b|//)[^\S\n]*"
    r"(?:please\s+|then\s+|now\s+|just\s+|just\s+go\s+and\s+)?(?:submit|(?:hand|turn)\s+(?:it\s+)?in)"
    r"(?:\s+(?:my|this|it|the|our|all|everything|now|for|please|whatever|what|question|task|problem)\b[^.\n]{0,40})?"
    r"[^\S\n]*(?:[.!?\n]|$)"
    r"|\b(?:i\s+(?:want|would\s+like)\s+to|i'd\s+like\s+to|i'll|let\s+me|is\s+what\s+i\s+want\s+to)\s+(?:submit|hand\s+in)\b"
    r"|\b(?:how|where)\s+(?:do|can|should|to)\s+(?:i\s+)?(?:submit|hand\s+in)\b|submit\s+button\b"
    r"|(?:my|the)\s+final\s+(?:answer|solution|version)\b[^.\n]{0,20}(?:submit|hand|send|grad)"
    r"|\b(?:end|finish|close)\s+(?:the|my)\s+(?:exam|test|session)\b"
    r"(?!\s*(?:case|suite|runner|class|file|function|data|object))"
    r"|(?:has|did|was)\s+(?:my|you\s+receive\s+my)\s+(?:submission|final\s+code)"
    r"|제출(?:해(?!도)|하고\s?(?:싶|종료|다음)|할게|할래|하겠|\s?부탁|\s?ㄱㄱ|까지\s?해|\s?처리)"
    r"(?!\s?(?:야|는\s?(?:함수|프로그램|코드|시스템|학생)))"
    r"|이걸로\s?제출|상태로\s?제출|제출(?:은|\s?버튼|\s?방법|\s?됐나)|(?:시험|테스트)(?:을|를)?\s?(?:종료(?:해|하)|마치겠|끝낼게)",
    re.IGNORECASE,
)


_OF_UNSAFE = [
    "ransomware", "malware", "keylog", "trojan", "spyware", "botnet", "fake", "forge", "phish", "hack", "break",
    "crack", "steal", "cvv", "bomb", "explosive", "weapon", "hurt", "kill", "poison", "stab", "proctor", "webcam",
    "랜섬", "악성", "키로거", "트로이", "피싱", "해킹", "뚫", "침입", "훔쳐", "빼내", "몰래", "위조", "폭탄", "폭발",
    "마약", "죽이", "살해", "해치", "감독", "야한", "비하",
]  # fmt: skip
_OF_SUBMISSION = [
    "submi", "hand", "final", "exam", "session", "제출", "시험", "테스트", "turn i", "turn\tin", " test",
]  # fmt: skip
"""A rule matches no text that has none of its words in lower case; to look for those takes a hundredth of the time."""


def topics_of(seen: str) -> frozenset[GuardLabel]:
    """Labels by these rules of a text that `plain` has made."""
    lower = seen.lower()
    found = set()
    if any(word in lower for word in _OF_UNSAFE) and _UNSAFE.search(seen):
        found.add(GuardLabel.UNSAFE)
    if any(word in lower for word in _OF_SUBMISSION) and _SUBMISSION.search(seen):
        found.add(GuardLabel.SUBMISSION)
    if not _CODE.search(seen) and _OFF_TOPIC.search(seen):
        found.add(GuardLabel.OFF_TOPIC)
    return frozenset(found)
