"""What Core knows from Turnstone's events: each taken once, those of a session in order.

The same holds for PostgreSQL, with one thing more: SQLite lets in one writer at a time, PostgreSQL many, so there a
transaction first locks the session's row (`SELECT … FOR UPDATE`).
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("core")

SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    id TEXT PRIMARY KEY,  -- webhook-id
    session_id TEXT NOT NULL,
    callback_seq INTEGER NOT NULL,
    body TEXT NOT NULL,
    in_feed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (session_id, callback_seq)
);
CREATE TABLE IF NOT EXISTS sessions (
    session_id TEXT PRIMARY KEY,
    next_seq INTEGER NOT NULL DEFAULT 1  -- what is below it has had its effect
);
CREATE TABLE IF NOT EXISTS usage (
    event_id TEXT PRIMARY KEY REFERENCES events,
    exam_id INTEGER NOT NULL,
    participant_id INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    turn INTEGER,
    purpose TEXT NOT NULL,
    model TEXT,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    total_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    reason TEXT  -- of a correction, whose figures are differences
);
CREATE TABLE IF NOT EXISTS answers (
    session_id TEXT NOT NULL,
    turn INTEGER NOT NULL,
    status TEXT NOT NULL,
    ai_message TEXT NOT NULL,
    PRIMARY KEY (session_id, turn)
);
CREATE TABLE IF NOT EXISTS scores (
    session_id TEXT NOT NULL,
    subject TEXT NOT NULL,  -- a turn
    revision INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (session_id, subject)
);
CREATE TABLE IF NOT EXISTS results (
    submission_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    status TEXT NOT NULL,  -- SCORED, or PENDING_REVIEW: people look at it, and a later revision has the total
    total REAL,            -- NULL is none yet, which is not 0
    grade TEXT,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS feed (place INTEGER PRIMARY KEY CHECK (place = 1), cursor TEXT NOT NULL);
"""
FIGURES = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")


class Ledger:
    """Core's tables, in the SQLite file ``path``. May be used by several threads, and the file by several processes."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
        self._db.executescript(SCHEMA)

    def take(self, event_id: str, event: dict[str, Any]) -> bool:
        """Take an event that was POSTed; returns whether its session waits for an earlier one.

        When this returns, event and effect are safe, and Core may answer 204. An event that was taken before changes
        nothing.
        """
        with self._transaction():
            self._take(event_id, event)
            return bool(self._gaps(event["session_id"]))

    def take_part_of_feed(self, items: list[dict[str, Any]]) -> None:
        """Take a part of the feed, and remember in the same transaction that it was read."""
        with self._transaction():
            for item in items:
                self._take(item["id"], item["payload"])
                self._db.execute("UPDATE events SET in_feed = 1 WHERE id = ?", (item["id"],))
            if items:
                self._db.execute("INSERT OR REPLACE INTO feed VALUES (1, ?)", (items[-1]["cursor"],))

    def cursor(self) -> str:
        """Where to go on in the feed."""
        with self._lock:
            row = self._db.execute("SELECT cursor FROM feed").fetchone()
        return "0-0" if row is None else str(row[0])

    def give_up_gaps(self) -> None:
        """Go on behind events that do not exist any more. Call this when the feed has been read to its end.

        The feed shows a session's earlier events before it ends. So what is missing is gone for good only if the event
        behind the gap has been seen in the feed itself, which may be a moment behind the POSTs.
        """
        with self._transaction():
            for session_id, missing, behind, in_feed in self._gaps():
                if in_feed:
                    log.warning("session %s: %s to %s are gone", session_id, missing, behind - 1)
                    self._db.execute("UPDATE sessions SET next_seq = ? WHERE session_id = ?", (behind, session_id))
                    self._go_on(session_id)

    def results(self) -> list[tuple[str, int, str, float | None, str | None]]:
        """Of each submission what counts now: id, revision, status, total (``None``: open) and grade."""
        with self._db:
            query = "SELECT submission_id, revision, status, total, grade FROM results ORDER BY submission_id"
            return self._db.execute(query).fetchall()

    def bill(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """By exam and participant: prompt, completion, total and cached tokens, corrections included."""
        sums = ", ".join(f"SUM({name})" for name in FIGURES)
        rows = self._db.execute(f"SELECT exam_id, participant_id, {sums} FROM usage GROUP BY 1, 2 ORDER BY 1, 2")  # noqa: S608
        return {(row[0], row[1]): tuple(row[2:]) for row in rows}

    def ids(self) -> set[str]:
        """The ids of all events."""
        return {row[0] for row in self._db.execute("SELECT id FROM events")}

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")  # the one writer from the first statement on
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _take(self, event_id: str, event: dict[str, Any]) -> None:
        session_id, seq = event["session_id"], event["callback_seq"]
        new = self._db.execute(
            "INSERT INTO events (id, session_id, callback_seq, body) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (event_id, session_id, seq, json.dumps(event, ensure_ascii=False)),
        ).rowcount
        if not new:
            if self._db.execute("SELECT 1 FROM events WHERE id = ?", (event_id,)).fetchone() is None:
                # Turnstone's database was brought back from a backup, and this number given anew. A human has to look.
                log.error("session %s has another event %s than %s; it was not taken", session_id, seq, event_id)
            return
        self._db.execute("INSERT INTO sessions (session_id) VALUES (?) ON CONFLICT DO NOTHING", (session_id,))
        if seq < self._next_seq(session_id):
            self._apply(event_id, event)  # came when it had been given up
        else:
            self._go_on(session_id)

    def _next_seq(self, session_id: str) -> int:
        return int(self._db.execute("SELECT next_seq FROM sessions WHERE session_id = ?", (session_id,)).fetchone()[0])

    def _go_on(self, session_id: str) -> None:
        """Let every event take effect whose turn it is."""
        seq = self._next_seq(session_id)
        of_session = "SELECT id, body FROM events WHERE session_id = ? AND callback_seq = ?"
        while (row := self._db.execute(of_session, (session_id, seq)).fetchone()) is not None:
            self._apply(row[0], json.loads(row[1]))
            seq += 1
        self._db.execute("UPDATE sessions SET next_seq = ? WHERE session_id = ?", (seq, session_id))

    def _gaps(self, session_id: str | None = None) -> list[tuple[str, int, int, bool]]:
        """Session, number that it waits for, next number that is there, and whether that one was in the feed.

        SQLite takes `in_feed` from the row that has the minimum.
        """
        return self._db.execute(
            "SELECT session.session_id, next_seq, MIN(callback_seq), in_feed FROM sessions AS session"
            " JOIN events AS event ON event.session_id = session.session_id AND callback_seq > next_seq"
            " WHERE session.session_id = ?1 OR ?1 IS NULL GROUP BY session.session_id",
            (session_id,),
        ).fetchall()

    def _apply(self, event_id: str, event: dict[str, Any]) -> None:
        """The effect. What takes long, or reaches outside, is a job that is stored here and done later."""
        session_id = event["session_id"]
        match event["type"]:
            case "usage" | "usage_adjusted":
                values = (event["exam_id"], event["participant_id"], session_id, event["turn"], event["purpose"])
                values += (event["model"], *(event[name] for name in FIGURES), event.get("reason"))
                self._db.execute(f"INSERT INTO usage VALUES (?{', ?' * len(values)})", (event_id, *values))  # noqa: S608
            case "message_response":
                self._db.execute(
                    "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
                    (session_id, event["turn"], event["metadata"]["status"], event["ai_message"]),
                )
            case "turn_evaluation":
                self._score(session_id, f"turn {event['turn']}", event)
            case "final_scores":
                self._result(session_id, event)
            case _:
                pass  # `error` needs nothing here; nor do types that came after this was written

    def _result(self, session_id: str, event: dict[str, Any]) -> None:
        """The highest revision counts; a lower one that comes later (a replay) changes nothing."""
        final = event["final_scores"]
        values = (str(event["submission_id"]), session_id, event["revision"], final["status"], final["total_score"])
        self._db.execute(
            "INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (submission_id) DO UPDATE SET"
            " revision = excluded.revision, status = excluded.status, total = excluded.total, grade = excluded.grade,"
            " body = excluded.body WHERE excluded.revision > revision",
            (*values, final["grade"], json.dumps(event, ensure_ascii=False)),
        )

    def _score(self, session_id: str, subject: str, event: dict[str, Any]) -> None:
        self._db.execute(
            "INSERT INTO scores VALUES (?, ?, ?, ?) ON CONFLICT (session_id, subject)"
            " DO UPDATE SET revision = excluded.revision, body = excluded.body WHERE excluded.revision > revision",
            (session_id, subject, event["revision"], json.dumps(event, ensure_ascii=False)),
        )
