"""What was recorded against what Core has: by push, and by the feed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torture.check import Finding

Events = Sequence[tuple[str, dict[str, Any]]]
"""Events with their ids, in the order in which somebody has them."""


@dataclass
class Told:
    """Everything there is to compare.

    Attributes:
        recorded: the service's table, by session and number; bodies without ``occurred_at``.
        states: how many events ended in each status.
        totals: each session's tokens, as the service has them.
        pushed, fed: Core's tables, one filled by POSTs alone and one by the feed alone.
    """

    recorded: Events
    states: Mapping[str, int]
    totals: Mapping[str, int]
    pushed: Events
    fed: Events


@dataclass
class Met:
    """What the service had to bear. ``planned`` of each has to have happened, or nothing was proved.

    Attributes:
        kills: of the worker; ``while_sending``: with sessions in its hands.
        faults: of Core, by their words.
        away_s: for how long Core was away.
    """

    kills: int = 0
    while_sending: int = 0
    away_s: float = 0.0
    duplicates: int = 0
    read_again: int = 0
    faults: Counter[str] = field(default_factory=Counter)


def check_delivery(told: Told) -> list[Finding]:
    """All promises about callbacks, for both ways by which Core learns of them."""
    given_up = Finding("every event was delivered, and none given up")
    for status, count in told.states.items():
        given_up.tested += count
        if status != "delivered":
            given_up.broken += [status] * count
    return [*_same("push", told, told.pushed), *_same("feed", told, told.fed), given_up]


def check_met(met: Met, *, kills: int, faults: Iterable[str]) -> list[Finding]:
    """That what was to happen has happened."""
    killed = Finding(f"put to the test: the worker was killed -9, {met.while_sending} times with events in its hands")
    killed.tested = met.kills
    if met.kills < kills or not met.while_sending:
        killed.broken.append(f"{met.kills} of {kills} kills")
    faulty = Finding(
        f"put to the test: Core was away for {met.away_s:.0f} s, then "
        + ", ".join(f"{count} × {word}" for word, count in sorted(met.faults.items()))
    )
    for word in faults:
        faulty.tested += met.faults[word]
        if not met.faults[word]:
            faulty.broken.append(f"never {word}")
    again = Finding("put to the test: events came again, by push or by the feed, and were known by their id")
    again.tested = met.duplicates + met.read_again
    if not met.duplicates or not met.read_again:
        again.broken.append(f"{met.duplicates} by push, {met.read_again} by the feed")
    return [killed, faulty, again]


def _same(way: str, told: Told, table: Events) -> list[Finding]:
    whole = Finding(f"{way}: every recorded event has arrived, with the body that is stored")
    nothing_else = Finding(f"{way}: and nothing else, nor anything twice")
    ordered = Finding(f"{way}: in each session in order, 1, 2, 3 … without a gap")
    sums = Finding(f"{way}: usage adds up to each session's total")
    arrived = dict(table)
    for event_id, body in told.recorded:
        came = {name: value for name, value in arrived.get(event_id, {}).items() if name != "occurred_at"}
        whole.hold(came == body, f"{event_id}, {body['session_id']}/{body['callback_seq']}: {came or 'missing'}")
    known = dict(told.recorded)
    for event_id, times in Counter(event_id for event_id, _ in table).items():
        nothing_else.hold(times == 1 and event_id in known, f"{event_id}: {times} times, known: {event_id in known}")
    seqs: defaultdict[str, list[int]] = defaultdict(list)
    used: Counter[str] = Counter()
    for _, body in table:
        seqs[body["session_id"]].append(body["callback_seq"])
        used[body["session_id"]] += body["total_tokens"] if body["type"] == "usage" else 0
    for session_id, numbers in seqs.items():
        ordered.hold(numbers == list(range(1, len(numbers) + 1)), f"session {session_id}: {numbers[:30]}")
    for session_id, total in told.totals.items():
        sums.hold(used[session_id] == total, f"session {session_id}: {used[session_id]} told, {total} stored")
    return [whole, nothing_else, ordered, sums]
