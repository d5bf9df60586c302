"""What a turn sends to the provider: the stored conversation, cut to the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from app.domain.exam_settings import ExamTerms
from app.domain.model_client import ChatMessage
from app.domain.prompting import PastTurn, build_messages, system_prompt
from app.infrastructure.persistence.models import PromptRoleEnum
from app.infrastructure.repositories.session_repository import HistoryMessage


@dataclass(frozen=True, slots=True)
class TurnInput:
    """What a turn starts from: the candidate's message, all messages to send, that one last, and the exam's terms."""

    message: str
    messages: Sequence[ChatMessage]
    exam: ExamTerms


def input_of(message: str, history: Sequence[HistoryMessage], *, exam: ExamTerms, history_tokens: int) -> TurnInput:
    """The input of a turn: the exam's problem, the conversation before the turn, and its message."""
    system = system_prompt(exam.problem_text, hints_only=exam.hints_only)
    messages = build_messages(system, past_turns(history), message, token_budget=history_tokens)
    return TurnInput(message, messages, exam)


def past_turns(history: Sequence[HistoryMessage]) -> list[PastTurn]:
    """Turns, oldest first, from messages, newest turn first; a turn that was cut off by the limit is left out."""
    turns: list[PastTurn] = []
    answers: dict[int, HistoryMessage] = {m.turn: m for m in history if m.role is PromptRoleEnum.ASSISTANT}
    for message in history:
        if message.role is PromptRoleEnum.USER:
            answer = answers.get(message.turn)
            tokens = _tokens(message) + (_tokens(answer) if answer else 0)
            if answer is None:
                turns.append(PastTurn(message.content, "", partial=False, tokens=tokens))
            else:
                turns.append(PastTurn(message.content, answer.content, answer.partial, tokens, answer.guard))
    return turns[::-1]


def _tokens(message: HistoryMessage) -> int:
    """What a message weighs, as `SessionRepository.history` has it."""
    counted = len(message.content) // 2 if message.token_count is None else message.token_count
    return max(counted, len(message.content) // 16)
