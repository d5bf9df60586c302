"""The guard's rules for what is no attack on it and yet no business of an exam's chat. Pure.

They know the plainest wordings alone: a message that a rule passes over is answered like any other, whereas one that is
labelled wrongly may be refused. So each asks for words that a programming task hardly puts together, and one about the
rest of an exam's day (a weather station, a travel planner, a grader) is not enough.
"""

from __future__ import annotations

import re

from app.domain.guarding import GuardLabel, sentence_around

_CODE = re.compile(
    r"\b(?:code|function|program|class|method|script|algorithm|array|list|string|input|output|simulat\w*|parse\w*|api|app"
    r"|test\s?case|database|table|struct|json|csv|regex|loop|variable|implement\w*|python|java|c\+\+|sql|query|game|page"
    r"|website|calculator|bot|planner|tracker|complexity|sort\w*|heap|stack|queue|tree|graph|recurs\w*|iterative|memoiz\w*"
    r"|bugs?|debug\w*|error|compil\w*|off\s?by\s?one)\b"
    r"|코드|함수|프로그램|클래스|메서드|스크립트|알고리즘|배열|리스트|문자열|입력|출력|구현|시뮬레이|파싱|테스트|변수"
    r"|복잡도|정렬|스택|트리|그래프|재귀|버그|디버그|에러|오류|컴파일|인덱스|예제|지문|힙이|힙을|문제(?:야|인데|에서|입니다|의)"
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
    r"|(?:여행|관광)\s?(?:코스|계획|일정)\s?(?:좀\s?)?(?:짜|추천)|비행기표|레시피\s?(?:좀\s?)?(?:알려|추천|줘)|뭐\s?먹을까|밥\s?먹었|잡담|외롭"
    r"|농담\s?(?:이나\s?|좀\s?|하나만?\s?)*(?:해|하자|들려|따먹)|심심(?:하|한|해)[^.\n]{0,8}(?:놀|얘기|이야기|수다|대화|재밌|재미|말\s?걸)"
    r"|심심(?:하|해)[가-힣]{0,2}[\s.!~ㅋᄏㅠᅲ]*$"
    r"|(?:노래|음악|영화|드라마|맛집|노트북|핸드폰|선물)\s?(?:좀\s?)?추천|가사\s?(?:좀\s?)?써|이름\s?(?:좀\s?)?지어"
    r"|운동\s?루틴|인생의\s?의미|(?:오늘|요즘)\s?뉴스|대통령[^.\n]{0,6}(?:누구|누가|누굴|뽑)|(?:화학|물리|생물|역사|국어|영어)\s?(?:숙제|과제|에세이)",
    re.IGNORECASE,
)
_UNSAFE = re.compile(
    r"\b(?:(?:create|write|build|code|make|develop|give\s+me)\b[^.\n]{0,40}"
    r"\b(?:ransomware|malware|keylogger|trojan|spyware|botnet)"
    r"|(?:fake|forged?)\s+(?:bank|id|passport)\b|phishing\s+(?:mail|page|site|message|kit)"
    r"|(?:hack(?:\s+into)?|break\s+into|crack)\s+"
    r"(?:my|his|her|someone(?:'?s)?|the\s+exam|this\s+exam|a\s+company'?s?)\s+"
    r"(?:\S+\s+){0,2}(?:server|account|wifi|wi-fi|phone|instagram|facebook|e?mail|password)"
    r"|steals?\s+(?:\S+\s+){0,3}(?:passwords?|cookies|credentials|(?:credit|bank)\s+cards?|card\s+(?:numbers?|details))"
    r"|(?:credit\s+)?card\s+numbers?\s+with\s+cvv"
    r"|(?:build|make|assemble)\s+(?:a|an)\s+(?:\S+\s+)?(?:bomb|explosive|weapon)\b"
    r"|(?:hurt|kill|poison|stab)\s+(?:my\s+boss|(?:my|a|the)\s+(?:classmate|neighbou?r|wife|husband|teacher|colleague|ex))\b"
    r"|(?:hide|evade|bypass|fool)\w*\s+(?:from\s+)?(?:the\s+)?proctor|fakes?\s+(?:my\s+|the\s+)?webcam)"
    r"|랜섬웨어|악성\s?(?:코드|앱)"
    r"(?:(?!탐지|감지|차단|판별|분류|검사|분석|제거|방지|막는|찾|걸러)[^.\n]"
    r"|(?:탐지|감지|차단)(?=\S*\s?(?:안|못|우회|회피|피하))){0,20}(?:만들|짜|작성)|키로거|트로이\s?목마|피싱\s?(?:문자|메일|사이트|페이지)"
    r"|(?:계정|서버|인스타|카톡|와이파이|비번)[^.\n]{0,12}(?:해킹|뚫|침입|훔쳐|빼내|몰래)|위조\s?(?:신분증|여권)"
    r"|(?:폭탄|폭발물|마약)[^.\n]{0,10}(?:만드는|제조)|살해[^.\n]{0,12}(?:싶|방법)"
    r"|(?:사람|친구|선생|교수|감독관|상사|사장|남편|아내|엄마|아빠|부모|형|누나|언니|오빠|동생|이웃|옆집|애인|놈|걔)[^.\n]{0,8}"
    r"(?:죽이|해치)[^.\n]{0,8}(?:싶|방법|는\s?법)"
    r"|감독\s?(?:프로그램|관)?[^.\n]{0,12}(?:피하|안\s?걸리|속이)|야한\s?(?:소설|글)|비하하는\s?글",
    re.IGNORECASE,
)
_AGAINST_IT = re.compile(
    r"\b(?:detect|block|prevent|stop|flag|filter|find|identif|recogni[sz]|classif|remov|scan|analy[sz]|protect|defend"
    r"|report)(?:s|es|y|ies|e|ing|ying)?\s+"
    r"(?:(?!and\b|then\b|to\b|writ|creat|build|code|develop|mak|giv|us(?:e|ing)\b|spread)\S+\s+){0,5}\S*$",
    re.IGNORECASE,
)
"""Before what is harmful, up to its last word: somebody who wants to keep it out."""
_KEPT_OUT = re.compile(
    r"\s+(?:(?!evad|avoid|bypass|escap|without|hid|that)\w+\s+){0,2}(?:detect\w*|scanner|filter\w*|classif\w*|analy\w*|signatures?|removal|blocker|checker|dataset"
    r"|samples?)\b(?!\s+(?:bypass|evasion))|\s+or\s+not\b"
    r"|[가-힣]{0,2}지\s?(?:않|못)"
    r"|(?:(?!만들|만드|작성|짜|써|해서|하고|하는\s?(?:법|방법))[^.\n]){0,14}"
    r"(?:탐지|감지|차단|판별|분류|방지|예방|방어|막(?:는|아|기|을|고)|걸러|필터|찾|감염|복구|대응|당하|당했|시도(?!\s?해)|검사|분석"
    r"|신고|란\s?(?:무엇|뭐)|(?:이|가)\s?(?:무엇|뭐))(?!(?:을|를|에|도)?\s?(?:안|못|우회|회피|피하|피해|되지|걸리지))",
    re.IGNORECASE,
)
"""After it: a tool against it, a record of it, or that it shall not be."""
_PLAYED = re.compile(
    r"\b(?:games?|hp|players?|levels?|enem\w+|npcs?|sprites?|rpg|simulat\w*|quests?|damage|defus\w*|inventory|unit\s+tests?|mocks?"
    r"|fixtures?|stubs?)\b|게임|아이템|캐릭터|플레이어|몬스터|지뢰|테스트\s?데이터",
    re.IGNORECASE,
)
"""Words of games and of test data, with which nobody is harmed by a bomb, a weapon, a theft or a fake identity."""
_OF_PLAY = re.compile(r"bomb|explosive|weapon|kill|hurt|poison|stab|fake|forge|폭탄|폭발|죽이|해치", re.IGNORECASE)
_WORK = r"(?:code|solution|answer|exam|test|work|assignment|program|problem|question|task|files?|prompt)"
_NO_FORM = (
    r"(?![^.\n]{0,40}\b(?:forms?|jobs?|request|pool|executor|queue|threads?|workers?|scheduler|server|api|endpoint|fetch|ajax"
    r"|cluster|function|method|button)\b)"
)
_SUBMISSION = re.compile(
    r"(?:^|[.!,;\n]|\b(?:and|please|now|can\s+you|could\s+you|i(?:'m|\s+am)\s+done)\b|//)[^\S\n]*"
    rf"(?:please\s+|then\s+|now\s+|just\s+|just\s+go\s+and\s+)?(?:submit|(?:hand|turn)\s+(?:it\s+)?in)\b{_NO_FORM}"
    r"(?:\s+(?:my|this|it|the|our|all|everything|now|for|please|whatever|what|question|task|problem)\b[^.\n]{0,40})?"
    r"[^\S\n]*(?:[.!?\n]|$)"
    r"|\b(?:i\s+(?:want|would\s+like)\s+to|i'd\s+like\s+to|i'll|let\s+me|is\s+what\s+i\s+want\s+to)\s+(?:submit|hand\s+in)\b"
    rf"{_NO_FORM}"
    rf"|\b(?:how|where)\s+(?:do|can|should|to)\s+(?:i\s+)?(?:submit|hand\s+in)\b{_NO_FORM}"
    rf"(?=\s*(?:[?.!,\n]|$|(?:it|this|now|here|everything)\b|(?:my|the|our)\s+(?:\w+\s+)?{_WORK}\b))"
    r"|(?:where(?:'s|\s+is)|(?:can't|cannot|can\s+not|don't)\s+(?:find|see))\s+(?:the\s+|a\s+)?submit\s+button\b"
    r"|(?:press|click|hit|push)\s+(?:the\s+)?submit\s+button\s+for\s+me\b"
    r"|(?:my|the)\s+final\s+(?:answer|solution|version)\b[^.\n]{0,20}\b(?:submit|hand\s|send|grad(?:e|ing)\b)"
    r"|\b(?:end|finish)\s+(?:the|my)\s+(?:exam|test|session)\b"
    r"(?!\s*(?:case|suite|runner|class|file|function|data|object|for\s+(?:every|all|each)))"
    r"|\bclose\s+(?:(?:the|my)\s+(?:exam|test)(?!\s+(?:case|file))|my\s+session)\b"
    r"|(?:has|did|was)\s+(?:my|you\s+receive\s+my)\s+(?:submission|final\s+code)"
    r"|제출(?:해(?!\s?(?:도|야|서|보|봤|본|봐도|봐야|놓|둔|버|주는|온|오는|왔|지))"
    r"|하고\s?(?:싶|종료|다음\s?문)|할게|할래|하겠|\s?부탁|\s?ㄱㄱ|까지\s?해|\s?처리\s?(?:해|부탁|좀))"
    r"(?!\s?(?:야|는\s?(?:함수|프로그램|코드|시스템|학생)))"
    r"|이걸로\s?제출|상태로\s?제출|제출은\s?(?:어디|어떻게|어케|언제|이걸로)|제출\s?버튼(?:은|이)?\s?(?:어디|어딨|안\s?보|못\s?찾)"
    r"|제출\s?방법(?:은|이|을|좀)?\s?(?:뭐|무엇|어떻게|알려|$|\?)|제출\s?됐나"
    r"|(?:시험|테스트)(?:을|를)?\s?(?:종료(?:해(?!\s?(?:도|야|서|보|봤|주는|버))|하고\s?싶|할게|할래|하겠|하자|합니다\s*[.!]?\s*$)|마치겠|끝낼게)",
    re.IGNORECASE,
)
_BEFORE = 60
_ENDS_AN_EXAM = re.compile(r"end|finish|close", re.IGNORECASE)
_OF_OTHERS = re.compile(
    r"\b(?:when|if|once|after|before|until|while|students?|users?|candidates?|teachers?|server|function|that|who)\b[^.\n]{0,25}$",
    re.IGNORECASE,
)
"""Before the end of an exam: it is that of a program."""


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
    if any(word in lower for word in _OF_UNSAFE) and any(_harms(seen, place) for place in _UNSAFE.finditer(seen)):
        found.add(GuardLabel.UNSAFE)
    if any(word in lower for word in _OF_SUBMISSION) and any(_hands_in(seen, at) for at in _SUBMISSION.finditer(seen)):
        found.add(GuardLabel.SUBMISSION)
    if not _CODE.search(seen) and _OFF_TOPIC.search(seen):
        found.add(GuardLabel.OFF_TOPIC)
    return frozenset(found)


def _harms(seen: str, place: re.Match[str]) -> bool:
    """Whether what `_UNSAFE` found is wanted, and not kept out or played."""
    start, end = place.span()
    sentence = sentence_around(seen, start, end)
    if _OF_PLAY.search(place.group()) and _PLAYED.search(sentence):
        return False
    before = seen[max(0, start - _BEFORE) : end].rpartition("\n")[2]
    return not _AGAINST_IT.search(before) and not _KEPT_OUT.match(seen, end)


def _hands_in(seen: str, place: re.Match[str]) -> bool:
    """Whether it is the candidate who hands in or ends the exam, and not somebody of a task's."""
    before = seen[max(0, place.start() - _BEFORE) : place.start()]
    return not (_ENDS_AN_EXAM.match(place.group()) and _OF_OTHERS.search(before))
