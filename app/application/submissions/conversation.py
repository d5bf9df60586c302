"""Turns: the judgements of the candidate's prompts, made during the chat; gaps are filled before all else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from app.application.submissions.work import Made, Work
from app.domain.conversation import TurnId
from app.domain.langgraph.submission_state import Outcomes
from app.domain.submission import Node, Outcome, PutOff
from app.domain.waiting import DAY_S
from app.infrastructure.persistence.models import EvaluationRun, PromptRoleEnum, RunStatusEnum, ScoreOverride
from app.infrastructure.persistence.session import Transaction, get_db_context
from app.infrastructure.repositories.evaluation_repository import EvaluationRepository, RunBasis
from app.infrastructure.repositories.review_repository import ReviewRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository

_PATIENCE_S = 2 * DAY_S
"""Longer than a judgement is tried for: mostly it ends by itself, with or without a score."""


async def gather_turns(work: Work, came: Outcomes) -> Made | PutOff:
    """The judgement that counts for each frozen turn, persons' scores with it; puts off while one is to be made.

    A prompt that has no judgement, since there was no judge when it was sent, gets one now. One that somebody asked for
    and has not published is none.
    """
    frozen = came[Node.FREEZE].value
    async with get_db_context() as db:
        await SessionRepository(db).lock_session(work.evaluation.session_id)
        entries, waiting, recorded = [], 0, 0
        turn_ids = await TurnRepository(db).client_ids(work.evaluation.session_id, set(frozen["turns"]))
        for turn in frozen["turns"]:
            found = await _judged(db, work, turn)
            if found.run is None and found.override is None and frozen["judge_model"] is not None:
                await EvaluationRepository(db).add_first_run(work.evaluation.session_id, turn, _basis(frozen))
                recorded += 1
                found = _Judged(None, None, waits=True)
            waiting += found.waits and found.override is None
            entries.append(_entry(turn, turn_ids[turn], found))
    if recorded:
        work.desk.on_told()
    if waiting:
        reason = "prompts are being judged"
        instead = Made(Outcome.missing(reason, {"turns": entries}))
        return PutOff(Node.TURNS, reason, patience_s=_PATIENCE_S, instead=instead)
    value = {"turns": entries}
    gaps = [entry for entry in entries if entry["score"] is None and not entry["left_out"]]
    if gaps:
        shown = ", ".join(f"turn {entry['turn']}: {entry['reason']}" for entry in gaps[:5])
        return Made(Outcome.missing(shown, value))
    return Made(Outcome("ok", value))


@dataclass(frozen=True, slots=True)
class _Judged:
    run: EvaluationRun | None
    override: ScoreOverride | None
    waits: bool = False


async def _judged(db: Transaction, work: Work, turn: int) -> _Judged:
    session_id = work.evaluation.session_id
    evaluations = EvaluationRepository(db)
    override = await ReviewRepository(db).latest_override(session_id, turn)
    told = await evaluations.told_run(session_id, turn)
    if told is not None:
        return _Judged(told, override)
    first = await evaluations.first_run(session_id, turn, known=True)
    return _Judged(first, override, waits=first is not None and first.status is RunStatusEnum.WAITING)


def _basis(frozen: dict[str, Any]) -> RunBasis:
    chosen = {"model": frozen["judge_model"], "samples": frozen["samples"]}
    settings = {name: value for name, value in chosen.items() if value is not None}
    return RunBasis(frozen["rubric"], frozen["judge_prompt"], frozen["policy"], settings)


def _entry(turn: int, turn_id: TurnId, judged: _Judged) -> dict[str, Any]:
    run = None if judged.waits else judged.run
    result = run.result if run is not None else None
    entry: dict[str, Any] = {
        "turn": turn,
        "turn_id": turn_id,
        "run_id": None if run is None else run.id,
        "revision": None if run is None else run.revision,
        "intent": None,
        "score": None,
        "left_out": False,
        "refused": False,
        "reason": "not judged",
        "marks": {},
        "withheld": [],
        "labels": [],
        "override": None,
    }
    if result is not None:
        refused = result["components"]["guard"] == "refused"
        entry |= {
            "intent": result["intent"],
            "score": result["score"],
            "left_out": refused and result["score"] is None,
            "refused": refused,
            "reason": result["reason"],
            "marks": {c["criterion"]: c["score"] for c in result["criteria"] if c["score"] is not None},
            "withheld": result["withheld"],
            "labels": result["labels"],
        }
    if judged.override is not None:
        # A person's word counts in every place, also where a policy would leave the prompt out.
        entry |= {
            "score": judged.override.score,
            "override": judged.override.score,
            "left_out": False,
            "reason": None,
        }
    return entry


@dataclass(frozen=True, slots=True)
class SaidTurn:
    """A turn's words; ``answer`` is empty where none came."""

    number: int
    prompt: str
    answer: str


async def read_conversation(db: Transaction, session_id: int, last_turn: int) -> list[SaidTurn]:
    """What was said up to and with a turn, in order."""
    texts: dict[int, dict[PromptRoleEnum, str]] = {}
    for message in await SessionRepository(db).messages_until(session_id, last_turn):
        texts.setdefault(message.turn, {})[message.role] = message.content
    return [
        SaidTurn(turn, said.get(PromptRoleEnum.USER, ""), said.get(PromptRoleEnum.ASSISTANT, ""))
        for turn, said in sorted(texts.items())
    ]
