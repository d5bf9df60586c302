"""Bodies of the profile ``vibecode``: camelCase, as the platform of docs/vibecode.md writes and reads them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.presentation.schemas.bodies import PositiveId, Said, Text

_BIGGEST_ID = 2**63 - 1
_LANGUAGES = {
    **dict.fromkeys(("python", "py", "pypy", "cpython"), "python"),
    **dict.fromkeys(("javascript", "js", "node", "nodejs"), "javascript"),
    **dict.fromkeys(("cpp", "c++", "g++"), "cpp"),
    **dict.fromkeys(("c", "gcc"), "c"),
    **dict.fromkeys(("go", "golang"), "go"),
    "java": "java",
}
"""By the letters that a name begins with."""

MessageNumber = Annotated[int, Field(ge=1, le=2**31 - 2, strict=True)]


class _Asked(BaseModel):
    """What the platform sends may hold more than is used here."""

    model_config = ConfigDict(extra="ignore")


class MessageOfCore(_Asked):
    """A candidate's message as Core passes it on.

    ``turnId`` is the number that Core gave the message among all messages of its session. ``context`` may say of which
    exam the session is (``examId``) and which version of the problem it has (``specId``, or ``specVersion``).
    """

    sessionId: PositiveId | None = None  # noqa: N815
    participantId: PositiveId  # noqa: N815
    turnId: MessageNumber  # noqa: N815
    role: Annotated[str, StringConstraints(max_length=20), Field(json_schema_extra={"pattern": "^(USER|user)$"})]
    content: Said
    context: dict[str, Any] | None = None

    @property
    def exam_id(self) -> int | None:
        """The exam, where the context names it."""
        return self._named("examId", "exam_id")

    @property
    def spec_id(self) -> int | None:
        """The problem's version, where the context names it."""
        return self._named("specId", "spec_id", "specVersion")

    def _named(self, *names: str) -> int | None:
        """The first id under one of these names; what is none is passed over, for the context is Core's own."""
        for name in names:
            value = (self.context or {}).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _BIGGEST_ID:
                return value
        return None


class AiMessage(BaseModel):
    """An answer. ``turn`` is its number among the session's messages: the one after the candidate's.

    ``tokenCount``: what this turn used, prompt and answer. ``totalToken``: the same of the session's turns so far.
    """

    sessionId: int  # noqa: N815
    turn: int
    role: Literal["AI"] = "AI"
    content: str
    tokenCount: int  # noqa: N815
    totalToken: int  # noqa: N815


class AnswerForCore(BaseModel):
    """The answer to a message."""

    aiMessage: AiMessage  # noqa: N815


class SubmissionOfCore(_Asked):
    """A candidate's final code."""

    examId: PositiveId  # noqa: N815
    participantId: PositiveId  # noqa: N815
    problemId: PositiveId | None = None  # noqa: N815
    specId: PositiveId | None = None  # noqa: N815
    finalCode: Text  # noqa: N815
    language: Annotated[Text, StringConstraints(min_length=1, max_length=64)]
    submissionId: PositiveId  # noqa: N815

    @property
    def our_language(self) -> str:
        """The language by our name: the platform writes ``Python 3.11`` and ``C++17``; what is unknown stays."""
        word = re.match(r"[a-z+#]*", self.language.strip().lower())
        return _LANGUAGES.get(word.group() if word else "", self.language)


class SubmissionForCore(BaseModel):
    """A submission that was taken."""

    submissionId: int  # noqa: N815
    status: Literal["QUEUED", "RUNNING", "DONE", "FAILED"]
