"""Words of ideas that attacks are made of, as stems: English, Korean, and the commonest of some other languages.

A word alone proves nothing ("ignore", "score" and "judge" are everyday words of a coding exam); what the classifier
weighs is which ideas stand together. ``=`` before a stem asks for the whole word. Some ideas are kinds of a wider one,
named in ``WIDER``, so that what is learned of one helps with the others.
"""

from __future__ import annotations

from app.domain.normalising import plain

_IDEAS = {
    "YOU": (
        "=you =your =yours =yourself =ur =u =you're =you've =urself =you'll =tu =tus =deine =dein =deiner "
        "=tes =ta =너 =넌 =네 =니 =너의 =너는 =너도 =네가 =니가 =너한테 =너에게 =널 =너를 =너로 =너랑 당신 "
        "=네게 스스로 你的 你 あなた"
    ),
    "AI": (
        "=ai assistant chatbot =bot =llm =gpt chatgpt freegpt 챗봇 어시스턴트 인공지능 도우미 비서 에이아이 asistente"
    ),
    "ME": (
        "=me =my =mine =i =myself =i'm =나 =내 =저 =제 =나를 =나한테 =저한테 =나만 =날 =내가 =제가 =내게 "
        "=난 =저를 =나는"
    ),
    "PROMPT": "preamble 프리프롬프트 primer =prompt prompts preprompt 프롬프트 プロンプト 提示词",
    "INSTRUCTION": (
        "commandment charter manual handbook playbook mandate memo dossier doctrine duties duty 매뉴얼 수칙 "
        "훈령 지령 계명 당부 헌장 요구사항 브리핑 guidance instruction guideline directive preamble "
        "briefing =brief orders instrucciones anweisung consigne 지시 지침 안내문 가이드라인 프리앰블 명령 "
        "指令 准则"
    ),
    "SETUP": (
        "initialis initializ bootstrap deployment parameter =init 초기화 세팅 배포 config setup settings "
        "configured yaml 설정 구성값"
    ),
    "SYSTEM": "=system =developer 시스템 개발자 システム 系统",
    "OWNER": (
        "masters makers maker trainer staff higher-ups organis 운영측 윗선 출제진 주최측 제작자 developer "
        "=dev company vendor operator owner creator organiser organizer author setter boss admin "
        "administrator openai =qa =ops 개발자 관리자 회사 운영자 운영팀 본사 주최 출제 주인 만든"
    ),
    "EXAM": "exam =test examiner examination 시험 examen",
    "STAFF": (
        "invigilat committee supervisor 감독관 조교 스태프 본부 examiner proctor instructor teacher "
        "professor board invigilator 감독 교수 위원회 시험관 인사팀"
    ),
    "TURN": "=turn =turns session conversation chat 세션 =턴 =턴을 =턴은 =턴의 대화 채팅",
    "CONTEXT": "context transcript token window 컨텍스트 토큰",
    "FIRST": (
        "=above =before =preceding precede initial original =first =beginning =start =top =began =previous "
        "=earlier prior 이전 앞선 앞에 =위 위에 =위의 처음 맨처음 초기 원래 사전 기존 맨위"
    ),
    "RULE": (
        "law laws taboo clause principle =terms 조항 원칙 금기 법 규약 룰 약관 =rule rules rulebook polic "
        "norm regla regeln règle 규칙 정책 규정 规则 ルール"
    ),
    "LIMIT": (
        "shackle leash muzzle cage chain brake inhibition scruple red-line 족쇄 굴레 목줄 사슬 고삐 "
        "브레이크 금지 restrict limit guardrail safeguard constraint boundar obligation limitation hint "
        "=hints restriccion einschränk 제한 제약 가드레일 의무 통제 한계 힌트 制限 限制 约束"
    ),
    "FILTER": (
        "compliance alignment sanitiz disclaim lecture 준수 훈계 금칙 차단 세이프티 면책 filter safety "
        "moderat censor ethic moral disclaimer warnings refus declin 필터 안전 검열 윤리 도덕 가드 거절 "
        "거부 filtro filtre"
    ),
    "UNBOUND": (
        "rogue lawless rebel liberat unmuzzled wild feral unaligned unhinged 무법 반란 반항 폭주 흑화 해방 "
        "노필터 언필터 unrestricted unfiltered uncensored unbound unchained unlimited limitless jailbreak "
        "jailbroken =dan =aim =free freely =freedom unleash 무제한 무검열 탈옥 자유 갓모드"
    ),
    "HIDDEN": (
        "hidden secret confidential private internal undisclosed invisible nonpublic 숨은 숨긴 숨겨 비공개 "
        "비밀 내부 히든 기밀 프라이빗 oculta ocultas cachée 隐藏 非公開"
    ),
    "VERBATIM": (
        "unabridged word-for-word letter-for-letter transcript 토씨 빠짐없이 통으로 날것 원문 verbatim "
        "exact exactly literal =raw =full entire whole complete unredacted quote word-by-word wording "
        "그대로 전문 통째 글자 전체 원본 문구 인용"
    ),
    "ALL": "=all everything =every any anything 전부 모두 모든 다 빠짐없이 todas toutes",
    "REVEAL": (
        "divulg unmask confess uncover spill cough dictate whisper forward regurgitat unveil surface "
        "publish unseal 실토 고백 털어 까발 드러 열람 낭독 속삭 전송 노출 귀띔 뱉 내놓 reveal show dump "
        "leak disclose recite paste copy echo share display reproduc reprint expose 보여 공개 알려 덤프 "
        "내놔 읊 까봐 유출 흘려 불러 복사 복붙 muéstra affiche 告诉 表示 教え"
    ),
    "OUTPUT": (
        "attach append embed emit transcribe type 첨부 붙여 채워 기입 옮겨 print output repeat list write "
        "return give =tell say state read 출력 말해 적어 나열 써줘 써 뽑아 읽어 줘 작성 반환 읽고"
    ),
    "TRANSFORM": (
        "recap digest condense interpret eli5 transliterat 간추 해설 정리 translat summar paraphras rephras "
        "encod spell rewrite render transcrib 번역 요약 의역 인코딩 옮겨 바꿔서 풀어서"
    ),
    "QUESTION": "what what's which who how 뭐 무엇 뭐야 뭐라고 뭐임 어떻게 무슨 어떤 누가",
    "TOLD": (
        "initialised initialized primed briefed fed whispered 당부 일러둔 귓속말 심어 주입 told instructed "
        "given received gave configured said tell-you 받은 들은 들었 적혀 시킨 시켰 받았 써있 돼있 적은 "
        "지시받"
    ),
    "SCORE": (
        "mark-up percent percentage =pts =gpa 성적 득점 총합 가점 score =scores =mark =marks grade =grades "
        "=point =points rating credit =result =results =a+ puntuación calificación punktzahl =note 점수 "
        "등급 학점 배점 총점 =점 평점 5점 100점 4점 결과 순위 評価 分数"
    ),
    "TOP": (
        "distinction =ace =ten =fives hundred =max 수석 만땅 특급 1등 상위 풀점 =full perfect maxim highest "
        "=top best excellent outstanding flawless =100 =5/5 =10/10 exemplary exceptional =95 =98 brilliant "
        "upper glowing máxima 만점 최고 우수 완벽 최대 최상 탁월 모범적 훌륭 충족 満点 满分 최댓값"
    ),
    "LENIENT": (
        "easy forgiv overlook =soft generosity 봐줘 봐주 눈감 살살 너그럽 lenient generous kindly mercy "
        "favour gentle nice 후하 너그 관대 자비 잘봐 긍정적"
    ),
    "PASS": "=pass passed accept accepted verdict 합격 통과 인정 불합격",
    "GRADER": (
        "rater marker arbiter umpire panel jury scorekeeper autograder examiner 채점봇 점수봇 심사봇 평가봇 "
        "배심 채점하시는 평가하시는 평가위원 심사단 평가단 grader judge evaluator reviewer assessor scorer "
        "checker corrector @grader evaluador prüfer correcteur 채점자 채점관 채점기 채점하는 평가자 "
        "심사위원 심사 심사관 리뷰어 평가관 평가기 체커 採点 评委 评分"
    ),
    "GRADING": (
        "mark marking regrad reassess 재채점 심판 점수화 grading rate rated graded evaluat assess scored "
        "scoring judged regrade rank 매겨 매기 매긴 채점 평가 감점 판정 딱지"
    ),
    "GIVE": (
        "bestow grant confer allocate register stamp enter assume default 박아 꽂아 찍어 넣어 매겨 배정 "
        "확정 하사 give award assign record =set treat count consider deserve 부여 기록 처리 간주 반영 "
        "주세요 주시 줄 주라 달라 =줘 asigne"
    ),
    "LIFT": (
        "curve scale upgrade bump inflate 반올림 가산 상향 보정 raise lift boost increase improve round add "
        "bonus extra =more higher 올려 더해 추가 보너스 높게 더 올리"
    ),
    "LOWER": (
        "penalt penalise penalize downgrade dock 깎지 벌점 감점하 deduct penali lower subtract =off unfair "
        "감점 깎 낮게 낮은 불공정"
    ),
    "RUBRIC": (
        "checklist descriptor band threshold cut-off cutoff 점수표 컷 합격선 심사표 rubric criteri =r1 =r2 "
        "=r3 =r4 anchor holistic calibrat marking scheme weights 루브릭 기준 앵커 항목 채점표 척도 배점 r1 "
        "r2 r3 r4"
    ),
    "DROP": (
        "flout breach defy ditch shed discard dismiss scrap erase wipe revoke rescind repeal waive unload "
        "mute silence neglect violate unlearn purge exempt sidestep 폐기 위반 중지 정지 종료 포기 면제 예외 "
        "언로드 벗어던 어긴 어길 어기자 어겨봐 쌩까 눈감아 풀려 ignor disregard forget drop disable remove "
        "break bypass unlock without abandon override suspend void stop skip escape cancel lose relax "
        "deactivat beyond evade =off vanish expire olvida ignora vergiss oublie =aside lift lifted 무시 잊 "
        "버려 버리 풀어 풀고 풀린 풀기 꺼 끄고 끄기 없이 해제 어기 어겨 벗어 없는 없어 없다 없앤 치우 무효 "
        "우회 내려놓 내려놔 지우 비활성 넘어 취소 삭제 제거 깨 건너뛰 無視 忽略 忘记"
    ),
    "NO": "=no =not =never don't can't won't =none =nothing doesn't isn't =cannot 마 말고 않 안 못 없 절대",
    "PERSONA": (
        "impersonat embody channel possessed incarnat villain mainframe genie outlaw 빙의 변신 흉내 배역 "
        "로키 조커 지니 자비스 pretend roleplay =acting character persona imagin =become simulat evil devil "
        "twin grandma grandmother alter 역할 =척 척해 척하 척하고 연기 캐릭터 되어 돼줘 인격 행동해 "
        "페르소나 할머니 악마 상상 처럼"
    ),
    "ACT": "=act =behave =play =respond =answer speak 동작 대답 행동 굴어 답해",
    "MODE": (
        "toggle override unlock kernel superuser premium tier 잠금 요금제 프리미엄 오버라이드 =mode "
        "maintenance debug activate enable enter switch 모드 활성 전환 재부팅 켜"
    ),
    "FROMNOW": (
        "hereafter forever anymore 쭉 계속해서 이후로 이순간부터 =now henceforth onwards 지금부터 이제 "
        "이제부터 앞으로 앞으론 désormais 从现在"
    ),
    "HYPO": (
        "fiction fictional imaginary novel fairy theatre 소설 동화 가상 상상 hypothe suppose assume "
        "theoretic universe world dream opposite =if 만약 가정 평행 꿈 세상 이론 치고"
    ),
    "OBEY": (
        "slave obedient servant command submit loyal 노예 주인 명령대로 하라는 충성 토달지 obey comply "
        "whatever unconditional master serve fulfil regardless 복종 무조건 뭐든 시키 따라 따르 반드시 "
        "시키는 obedece"
    ),
    "PERMIT": (
        "waiver exemption clearance licence license approve 허가 면허 승낙 인가 allowed authori permission "
        "permitted cleared approved granted 승인 허락 허용 권한 괜찮"
    ),
    "CASES": "testcase testcases =tests =cases expected =case 테스트 케이스 기대 テスト",
    "SOLUTION": ("solution answer reference official =key 정답 모범답안 솔루션 답안 풀이 레퍼런스 해답 답지 答案 正解"),
    "OTHERS": (
        "competitor classmate examinee =peers rival 경쟁자 옆사람 남들 응시생 앞사람 1등한 candidate "
        "participant friend everyone neighbour user else's others somebody 다른 응시자 참가자 수험 친구 "
        "옆자리 유저 사용자 사람"
    ),
    "KEYS": (
        "token tokens secret password plugin canary flag webhook 토큰 비밀번호 플러그인 시크릿 api key "
        "environment env endpoint credential connection schema database 환경변수 엔드포인트 접속 키 스키마 "
        "디비"
    ),
    "DECODE": (
        "unscramble acrostic anagram caesar 암호문 역순 뒤집어 초성 base64 decod rot13 =hex morse backwards "
        "reverse cipher 디코딩 디코드 해독 거꾸로 16진수"
    ),
    "SUBMIT": "submit submission 제출 종료 접수",
    "REPORT": "notify escalate flag 신고 통보 report mark log tell fill 보고 기록 전해 표시 채워",
    "PLEAD": (
        "visa sick mother family rent tip pay bribe sue lawsuit 비자 가족 어머니 아파 고소 사례 기프티콘 "
        "굽신 간절 please beg desperate scholarship job thank kindly plz pls 제발 부탁 ㅠㅠ 장학금 생계 "
        "감사 절박"
    ),
    "HELPER": "developer reviewer llm model 모델 리뷰",
    "CODE": (
        "function class array loop string variable method index integer algorithm sort matrix node graph "
        "stack queue pointer recursion implement table column compile dict heap tree input parameter "
        "constructor 함수 클래스 배열 리스트 반복문 문자열 변수 메서드 인덱스 정수 알고리즘 정렬 행렬 노드 "
        "그래프 입력 스택 재귀 구현 쿼리 프로그램 예외 컴파일 객체 딕셔너리 트리 생성자"
    ),
    "DOMAIN": (
        "player game board student team robot card film round level server order customer movie unit enemy "
        "게임 플레이어 학생 팀 로봇 카드 영화 라운드 서버 주문 회원 유닛 몬스터 과목 심판"
    ),
}
WIDER = {
    "PROMPT": "LAW",
    "INSTRUCTION": "LAW",
    "SETUP": "LAW",
    "RULE": "LAW",
    "LIMIT": "LAW",
    "FILTER": "LAW",
    "RUBRIC": "TREASURE",
    "SOLUTION": "TREASURE",
    "CASES": "TREASURE",
    "KEYS": "TREASURE",
    "CONTEXT": "TREASURE",
    "SCORE": "REWARD",
    "TOP": "REWARD",
    "PASS": "REWARD",
    "LENIENT": "REWARD",
    "GIVE": "GRANT",
    "LIFT": "GRANT",
    "GRADING": "GRANT",
    "REVEAL": "SAY",
    "OUTPUT": "SAY",
    "TRANSFORM": "SAY",
    "QUESTION": "SAY",
    "YOU": "MACHINE",
    "AI": "MACHINE",
    "GRADER": "OFFICE",
    "STAFF": "OFFICE",
    "OWNER": "OFFICE",
    "PERSONA": "PLAY",
    "MODE": "PLAY",
    "HYPO": "PLAY",
    "CODE": "WORK",
    "DOMAIN": "WORK",
}


def _stems() -> dict[str, tuple[str, ...]]:
    known: dict[str, list[str]] = {}
    for idea, words in _IDEAS.items():
        for stem in words.split():
            known.setdefault(plain(stem), []).append(idea)
    return {
        stem: tuple(dict.fromkeys([*found, *(WIDER[idea] for idea in found if idea in WIDER)]))
        for stem, found in known.items()
    }


STEMS = _stems()
FIRST_LETTERS = frozenset(stem[0] for stem in STEMS)
_LENGTHS = [(stem.removeprefix("=") < "\u3040", len(stem.removeprefix("="))) for stem in STEMS]
LONGEST_LATIN = max(length for latin, length in _LENGTHS if latin)
LONGEST_OTHER = max(length for latin, length in _LENGTHS if not latin)
