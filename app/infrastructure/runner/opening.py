"""Which backend runs candidates' programs, as the settings say."""

from __future__ import annotations

from contextlib import AsyncExitStack

import structlog

from app.core.cpus import beside_chats
from app.core.errors import StartupError
from app.core.settings import RunnerSettings
from app.domain.code_runner import CodeRunner

log = structlog.get_logger(__name__)

_AWAY_AT_ONCE = 4
"""How much another service is asked for at once where nobody has said; its cores cannot be counted from here."""


async def open_runner(settings: RunnerSettings, stack: AsyncExitStack) -> CodeRunner | None:
    """Open the backend; ``stack`` closes it. ``None`` where the settings want none.

    It opens also where nothing can be run: the service serves its chats, and each run is refused until its cause is
    gone.

    Raises:
        StartupError: the settings do not fit each other.
    """
    match settings.backend:
        case "none":
            return None
        case "auto" | "bubblewrap":
            from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner

            level = None if settings.isolation == "best" else settings.isolation
            concurrency = settings.concurrency or len(beside_chats()) or 1
            runner = BubblewrapRunner(concurrency, delegated=settings.cgroup, level=level)
            stack.push_async_callback(runner.close)
            return runner
        case "go-judge":
            from app.infrastructure.runner.go_judge.runner import GoJudgeRunner

            go_judge = GoJudgeRunner(_url(settings), settings.api_key, settings.concurrency or _AWAY_AT_ONCE)
            stack.push_async_callback(go_judge.close)
            return go_judge
        case "judge0":
            from app.infrastructure.runner.judge0.runner import Judge0Runner

            judge0 = Judge0Runner(_url(settings), settings.api_key, settings.concurrency or _AWAY_AT_ONCE)
            stack.push_async_callback(judge0.close)
            return judge0


def _url(settings: RunnerSettings) -> str:
    if settings.url is None:
        raise StartupError(
            f"Nothing says where the code runner {settings.backend} is.",
            "Set TURNSTONE_RUNNER__URL, or TURNSTONE_RUNNER__BACKEND to bubblewrap or none.",
        )
    return settings.url
