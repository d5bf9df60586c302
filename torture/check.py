"""Reads what the candidates, the database, the provider and Core have seen, and holds it against the contract."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torture.candidate import PIECE_S, Candidate, TurnLog
from torture.scene import Scene

MOST_LOST_MS = 400.0


@dataclass
class Finding:
    """One promise: how often it was put to the test, and what broke it."""

    promise: str
    tested: int = 0
    broken: list[str] = field(default_factory=list)

    def hold(self, kept: bool, what: str) -> None:
        """Note one test of it."""
        self.tested += 1
        if not kept:
            self.broken.append(what)


@dataclass
class Turn:
    """A turn as it is stored."""

    session_id: str
    number: int
    turn_id: str
    status: str
    message: str | None
    answer: str | None


def check(scene: Scene, candidates: Iterable[Candidate]) -> list[Finding]:
    """All promises, in the order of the contract."""
    logs = [turn for candidate in candidates for turn in candidate.turns]
    turns = _stored(scene)
    return [
        _told_once(logs),
        _message_kept(logs, turns),
        _ended(logs, turns),
        _in_order(logs),
        _text_kept(logs, turns),
        _lost_little(logs),
        *_asked_once(scene, logs, turns),
        _cancelled_first(scene, logs),
        *_told_core(scene, turns),
    ]


def _stored(scene: Scene) -> dict[str, Turn]:
    rows = scene.rows(
        "SELECT t.session_id, t.turn, t.client_turn_id, t.status, said.content, answer.content FROM prompt_turns AS t"
        " LEFT JOIN prompt_messages AS said ON said.session_id = t.session_id AND said.turn = t.turn"
        " AND said.role = 'USER'"
        " LEFT JOIN prompt_messages AS answer ON answer.session_id = t.session_id AND answer.turn = t.turn"
        " AND answer.role = 'ASSISTANT'"
    )
    turns = [Turn(str(row[0]), int(str(row[1])), str(row[2]), str(row[3]), *row[4:6]) for row in rows]  # type: ignore[arg-type]
    return {turn.turn_id: turn for turn in turns}


def _told_once(logs: list[TurnLog]) -> Finding:
    found = Finding("1. a turn that was started is told one end on every connection, and everywhere the same")
    for log in logs:
        if log.started:
            kinds = {(end["type"], end.get("code"), end.get("finish_reason")) for end in log.ends}
            found.hold(len(kinds) == 1 and not log.unanswered, f"{log.turn_id}: {kinds or 'no end'}")
            found.hold(len(log.started) == 1, f"{log.turn_id}: started as {log.started}")
    return found


def _message_kept(logs: list[TurnLog], turns: dict[str, Turn]) -> Finding:
    found = Finding("2. the message of a turn that was started is stored")
    for log in logs:
        if log.started:
            stored = turns.get(log.turn_id)
            found.hold(stored is not None and stored.message == log.message, log.turn_id)
    return found


def _ended(logs: list[TurnLog], turns: dict[str, Turn]) -> Finding:
    found = Finding("9. every turn has an end in the database, the one that was told")
    told = {"done": "completed", "cancelled": "cancelled", "error": ("failed", "interrupted")}
    for turn in turns.values():
        found.hold(turn.status != "running", f"{turn.turn_id} is running")
    for log in logs:
        for end in log.ends:
            status = turns[log.turn_id].status
            found.hold(status in told[end["type"]], f"{log.turn_id}: {end['type']}, stored as {status}")
    return found


def _in_order(logs: list[TurnLog]) -> Finding:
    found = Finding("5. deltas come without gap or repetition, over all connections of a candidate")
    for log in logs:
        found.hold(not log.view.faults, f"{log.turn_id}: {log.view.faults[:3]}")
    return found


def _text_kept(logs: list[TurnLog], turns: dict[str, Turn]) -> Finding:
    found = Finding("3. what a candidate holds is what is stored (after `interrupted`: cut back to `last_seq`)")
    for log in logs:
        if not log.ends or log.view.faults:
            continue
        held, stored = log.view.text, turns[log.turn_id].answer or ""
        same = held.startswith(stored) if log.view.cut_unknown else held == stored
        found.hold(same, f"{log.turn_id}: {held[-40:]!r}, {stored[-40:]!r}, {log.lost_deltas} lost, {log.ends}")
    return found


def _lost_little(logs: list[TurnLog]) -> Finding:
    lost = sorted(log.lost_deltas * PIECE_S * 1000 for log in logs if any(_interrupted(end) for end in log.ends))
    worst = lost[int(len(lost) * 0.95)] if lost else 0.0
    found = Finding(f"   text lost by a kill: p95 {worst:.0f} ms of at most {MOST_LOST_MS:.0f}", tested=len(lost))
    if worst > MOST_LOST_MS:
        found.broken.append(f"p95 {worst:.0f} ms")
    return found


def _interrupted(end: dict[str, Any]) -> bool:
    return end["type"] == "error" and end["code"] == "interrupted"


def _asked_once(scene: Scene, logs: list[TurnLog], turns: dict[str, Turn]) -> list[Finding]:
    """A call is repeated once where none of its text had come; whatever else is a turn that ran twice."""
    once = Finding("6. a turn is run once, however often its frame is sent")
    stored = Finding("   and a message is one turn")
    answered: Counter[str] = Counter()
    for request in scene.provider.requests:
        if request.script.status < 400:
            answered[request.messages[-1]["content"].split()[0]] += 1
    for log in logs:
        name = log.message.split()[0]
        once.hold(answered[name] <= 1, f"{log.turn_id}: {answered[name]} calls")
    for message, count in Counter(turn.message for turn in turns.values()).items():
        stored.hold(count == 1, f"{count} turns say {message}")
    return [once, stored]


def _cancelled_first(scene: Scene, logs: list[TurnLog]) -> Finding:
    found = Finding("4. the provider's connection is closed when `cancelled` is told")
    closed = {r.messages[-1]["content"].split()[0]: r for r in scene.provider.requests}
    for log in logs:
        request = closed.get(log.message.split()[0])
        if log.told_cancelled_at is not None and request is not None:
            # The provider hears of it by its own event loop, which shares the processor with all of this.
            early = request.ended_at is not None and request.ended_at <= log.told_cancelled_at + 0.25
            found.hold(early, f"{log.turn_id}: {request.ended_at} after {log.told_cancelled_at}")
    return found


def _told_core(scene: Scene, turns: dict[str, Turn]) -> list[Finding]:
    reached = Finding("   every recorded callback reached Core")
    usage = Finding("   usage of a turn is told once (by webhook-id), and of every turn that has any")
    numbers = Finding("   callback_seq is 1, 2, 3 … in each session, and delivered in that order")
    totals = Finding("   a session's total is the sum of what was told")
    events = scene.core.events()
    recorded = scene.rows("SELECT event_id, session_id, callback_seq FROM callbacks ORDER BY session_id, callback_seq")
    ids = {event.id for event in events}
    for event_id, *_ in recorded:
        reached.hold(event_id in ids, str(event_id))
    told = Counter((event.session_id, event.body["turn"]) for event in events if event.type == "usage")
    calls = scene.rows("SELECT DISTINCT session_id, turn FROM provider_calls")
    for session_id, turn in calls:
        usage.hold(told[str(session_id), turn] == 1, f"{session_id}/{turn}: {told[str(session_id), turn]} times")
    known = {(turn.session_id, turn.number) for turn in turns.values()}
    for key in told:
        usage.hold(key in known, f"{key} is no turn")
    by_session: defaultdict[str, list[int]] = defaultdict(list)
    for event in events:
        by_session[event.session_id].append(event.seq or 0)
    for session_id, seqs in by_session.items():
        numbers.hold(seqs == list(range(1, len(seqs) + 1)), f"session {session_id}: {seqs[:20]}")
    for session_id, total in scene.rows("SELECT id, total_tokens FROM prompt_sessions"):
        spent = sum(e.body["total_tokens"] for e in events if e.type == "usage" and e.session_id == str(session_id))
        totals.hold(spent == total, f"session {session_id}: {spent} told, {total} stored")
    return [reached, usage, numbers, totals]
