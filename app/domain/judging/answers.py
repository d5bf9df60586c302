"""A judge's answer, read strictly: what is not exactly as asked for is refused, and nothing else is sought in it."""

from __future__ import annotations

import json
from typing import Any, Final

from app.domain.judging.requests import shown_message
from app.domain.judging.tasks import Judgement, JudgeTask, Mark, UnreadableAnswerError
from app.domain.scoring import Criterion, Intent

LONGEST_ANSWER: Final = 20_000
LONGEST_FIELD: Final = 2_000
"""Characters of a reason or of the advice."""


def read_answer(raw: str, task: JudgeTask) -> Judgement:
    """Read and check one answer.

    Raises:
        UnreadableAnswerError: it is no JSON object and nothing else, a key is missing, twice or strange, a value is of
            another kind or out of range, or a quote is no verbatim part of what the judge was shown of the message.
    """
    answer = read_object(read_json(raw), "the answer", ("intent", "criteria", "advice"))
    intent = answer["intent"]
    if not isinstance(intent, str) or intent not in set(Intent):
        raise UnreadableAnswerError(f"intent must be one of {', '.join(Intent)}")
    criteria = read_object(answer["criteria"], "criteria", tuple(Criterion))
    entries = {name: read_object(criteria[name], name, ("reason", "quote", "score")) for name in Criterion}
    scores = {name: read_score(name, entry["score"]) for name, entry in entries.items()}
    reasons = {name: read_text(f"{name}.reason", entry["reason"]) for name, entry in entries.items()}
    advice = read_text("advice", answer["advice"])
    visible = shown_message(task)
    marks = []
    for name, entry in entries.items():
        place = visible.locate(read_text(f"{name}.quote", entry["quote"]))
        if place is None:
            raise UnreadableAnswerError(
                f"{name}.quote must be copied word for word from the candidate's prompt, some words of it",
                no_evidence=True,
            )
        marks.append(Mark(name, scores[name], task.message[slice(*place)], *place, reasons[name]))
    return Judgement(Intent(intent), tuple(marks), advice)


def read_json(raw: str) -> Any:
    """All of an answer as JSON."""
    if len(raw) > LONGEST_ANSWER:
        raise UnreadableAnswerError(f"the answer is longer than {LONGEST_ANSWER} characters")
    try:
        return json.loads(raw, object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except UnreadableAnswerError:
        raise
    except (ValueError, RecursionError):
        raise UnreadableAnswerError("the answer must be one JSON object and nothing before or after it") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise UnreadableAnswerError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise UnreadableAnswerError(f"{name} is no JSON")


def read_object(value: Any, name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """An object with these keys and no other."""
    if not isinstance(value, dict) or set(value) != set(keys):
        raise UnreadableAnswerError(f"{name} must be an object with exactly the keys {', '.join(keys)}")
    return value


def read_score(name: str, value: Any) -> int:
    """A mark."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 5:
        raise UnreadableAnswerError(f"{name}.score must be an integer from 1 to 5")
    return value


def read_text(name: str, value: Any) -> str:
    """A text that is short enough, without characters that no text has."""
    if not isinstance(value, str) or len(value) > LONGEST_FIELD:
        raise UnreadableAnswerError(f"{name} must be a text of at most {LONGEST_FIELD} characters")
    if any((character < " " and character not in "\n\t\r") or "\ud800" <= character <= "\udfff" for character in value):
        raise UnreadableAnswerError(f"{name} has characters that no text has")
    return value
