"""Who in this process follows a session's submissions. What is told came from whichever process evaluates."""

from __future__ import annotations

import json
from collections.abc import Callable

import structlog

from app.domain.submission import SubmissionNews

log = structlog.get_logger()

Follower = Callable[[SubmissionNews], None]
"""Takes news at once, and never waits."""


class Followers:
    """Passes news of submissions on to the connections that have addressed their session."""

    def __init__(self) -> None:
        self._by_session: dict[int, set[Follower]] = {}

    def follow(self, session_id: int, follower: Follower) -> None:
        """Tell ``follower`` of the session's submissions from now on; once, however often it asks."""
        self._by_session.setdefault(session_id, set()).add(follower)

    def leave(self, session_id: int, follower: Follower) -> None:
        """Tell it no more."""
        followers = self._by_session.get(session_id)
        if followers is not None:
            followers.discard(follower)
            if not followers:
                del self._by_session[session_id]

    def tell(self, payload: str) -> None:
        """Pass on what another process, or this one, has told of; what cannot be read is of a later program."""
        try:
            news = SubmissionNews.from_json(json.loads(payload))
        except (ValueError, KeyError, TypeError):
            log.warning("submission_news_not_understood")
            return
        for follower in tuple(self._by_session.get(news.session_id, ())):
            follower(news)
