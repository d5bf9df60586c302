"""The background jobs alone: ``turnstone worker``."""

from __future__ import annotations

from app.bootstrap import Say, open_worker
from app.core.cpus import beside_chats, keep_to, leave_none_to_chats
from app.core.settings import Settings
from app.server import Stopping


async def work(settings: Settings, stopping: Stopping, *, say: Say) -> None:
    """Run the background jobs until a signal.

    Raises:
        StartupError: something cannot be used, and what to do about it.
    """
    if settings.worker.alone:
        leave_none_to_chats()
    keep_to(beside_chats())
    async with open_worker(settings, say=say) as relay:
        stopping.wait_instead(hurry=relay.hurry)
        say("working; Ctrl-C ends it")
        await stopping.asked.wait()
