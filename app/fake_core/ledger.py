"""What Core has taken: once per id, in the order in which it came, counted."""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from app.fake_core.receiver import Delivery

_SHOWN_HEADERS = ("webhook-id", "webhook-timestamp")

Item = dict[str, Any]
"""One event as it was taken: ``n`` (1, 2, 3 …), ``received_at`` (RFC 3339), ``headers``, ``body``."""


class Ledger:
    """Takes events, and knows their ids again.

    Args:
        keep: how many of the last ones are kept to be shown; ``None``: all. Counts and ids are of all.
    """

    def __init__(self, *, keep: int | None = None) -> None:
        self.taken = 0
        self.duplicates = 0
        self.out_of_order = 0
        self.types: Counter[str] = Counter()
        # Numbers begin anew with each start; by this a reader notices.
        self._epoch = secrets.token_hex(8)
        self._items: deque[Item] = deque(maxlen=keep)
        self._ids: set[str] = set()
        self._seqs: defaultdict[str, set[int]] = defaultdict(set)
        self._highest: dict[str, int] = {}
        self._results: dict[str, tuple[int, str]] = {}

    def new(self, delivery: Delivery) -> Item | None:
        """An event as it is to be added; ``None`` where its id is known: then it is counted as a duplicate."""
        assert delivery.id is not None, "an event without an id is refused"
        if delivery.id in self._ids:
            self.duplicates += 1
            return None
        return {
            "n": self.taken + 1,
            "received_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "headers": {name: delivery.headers[name] for name in _SHOWN_HEADERS if name in delivery.headers},
            "body": delivery.body,
        }

    def add(self, item: Item) -> None:
        """Add an event, of now or from an earlier process."""
        body = item["body"]
        self.taken += 1
        self.types[str(body.get("type"))] += 1
        self._items.append({**item, "n": self.taken})
        self._ids.add(item["headers"]["webhook-id"])
        session_id, seq = str(body.get("session_id", "")), body.get("callback_seq")
        if isinstance(seq, int):
            self.out_of_order += seq < self._highest.get(session_id, 0)
            self._highest[session_id] = max(seq, self._highest.get(session_id, 0))
            self._seqs[session_id].add(seq)

        if body.get("type") == "final_scores":
            self._note_result(body)

    def _note_result(self, body: Mapping[str, Any]) -> None:
        """Of each submission the highest revision counts, in whatever order they come."""
        submission, revision, final = str(body.get("submission_id")), body.get("revision"), body.get("final_scores")
        if not isinstance(revision, int) or not isinstance(final, dict):
            return
        if revision > self._results.get(submission, (0, ""))[0]:
            self._results[submission] = (revision, str(final.get("status")))

    def forget_ids(self) -> None:
        """Know no id any more; what was taken stays."""
        self._ids.clear()

    def counts(self) -> Mapping[str, Any]:
        """Figures of all that was taken.

        ``out_of_order``: came behind a later one of their session. ``missing``: numbers of a session below its highest
        that never came. ``submissions`` are counted by the status of the revision that counts.
        """
        missing = sum(highest - len(self._seqs[session]) for session, highest in self._highest.items())
        return {
            "taken": self.taken,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "missing": missing,
            "sessions": len(self._highest),
            "types": dict(self.types),
            "submissions": dict(Counter(status for _, status in self._results.values())),
        }

    def events(self, *, after: int = 0, session_id: str | None = None, limit: int | None = None) -> dict[str, Any]:
        """What was taken after number ``after``, in order; ``epoch`` names the run whose numbers these are."""
        first = self._items[0]["n"] if self._items else 1
        found = (
            item
            for item in islice(self._items, max(after - first + 1, 0), None)
            if session_id is None or str(item["body"].get("session_id", "")) == session_id
        )
        items = list(islice(found, limit))
        return {"epoch": self._epoch, "items": items, "next": items[-1]["n"] if items else after}
