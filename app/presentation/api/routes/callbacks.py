"""What Core was told, and the same as a feed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from pydantic import AfterValidator

from app.application.resources import Resources
from app.core.errors import ErrorCode, TurnstoneError
from app.infrastructure.persistence.models import Callback, CallbackStatusEnum, PromptSession
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.profiles import PROFILES
from app.infrastructure.repositories.callback_repository import (
    CallbackEvent,
    CallbackFilter,
    CallbackRepository,
    replay_each,
)
from app.presentation.api.paging import EMPTY_IS_NONE, Cursor, Limit, page
from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import Page
from app.presentation.schemas.callback_bodies import CallbackBody, CallbackWithTries, FeedItem, Replayed, ReplayRequest
from app.presentation.schemas.frames import session_id_of

FeedCursor = Annotated[str, Query(pattern=r"^[0-9]{1,18}(-[0-9]{1,18})?$", description="the last item's `cursor`")]


def _no_nul(event_id: str) -> str:
    if "\x00" in event_id:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "There is no such callback.")
    return event_id


EventId = Annotated[str, Path(max_length=64), AfterValidator(_no_nul)]

router = APIRouter(prefix="/api/callbacks", responses=PROBLEMS, tags=["callbacks"])


@router.get("")
async def list_callbacks(
    status: Annotated[CallbackStatusEnum | None, EMPTY_IS_NONE] = None,
    kind: Annotated[str | None, Query(alias="type", max_length=32, pattern="^[a-z_]*$"), EMPTY_IS_NONE] = None,
    session_id: Annotated[str | None, Query(max_length=64), EMPTY_IS_NONE] = None,
    cursor: Cursor = 0,
    limit: Limit = 100,
) -> Page[CallbackBody]:
    """Callbacks, oldest first."""
    which = CallbackFilter(
        status=status, kind=kind, session_id=None if session_id is None else session_id_of(session_id)
    )
    async with get_db_context() as db:
        found = await CallbackRepository(db).list_callbacks(which, after=cursor, limit=limit + 1)
    return page(found, limit, lambda row: CallbackBody.of(*row), lambda row: row[0].id)


@router.get("/events")
async def feed(after: FeedCursor = "0-0", limit: Limit = 100) -> Page[FeedItem]:
    """Every event in order, delivered or not, so that Core can catch up by itself.

    Go on with the last item's ``cursor``, also when ``next`` is null: that only says that there is no more just now.
    """
    transaction, _, key = after.partition("-")
    async with get_db_context() as db:
        found = await CallbackRepository(db).committed_events(after=(int(transaction), int(key or 0)), limit=limit + 1)
    items = [
        FeedItem(
            cursor=f"{callback.recorded_in}-{callback.id}",
            id=callback.event_id,
            payload=CallbackEvent.of(callback, session).body(),
        )
        for callback, session in found
    ]
    return Page(items=items[:limit], next=items[limit - 1].cursor if len(items) > limit else None)


@router.post("/replay", status_code=202)
async def replay_all(which: ReplayRequest, request: Request) -> Replayed:
    """Send all callbacks that fit once more, oldest first, with all their tries; their ids stay the same.

    Nothing is undone where this ends half-way: ask again.
    """
    if not which.model_fields_set:
        raise TurnstoneError(ErrorCode.INVALID_FRAME, "Say which: status, type, session_id, exam_id, since or until.")
    chosen = CallbackFilter(
        status=CallbackStatusEnum(which.status),
        kind=which.type,
        session_id=None if which.session_id is None else session_id_of(which.session_id),
        exam_id=which.exam_id,
        since=which.since,
        until=which.until,
        once=PROFILES[request.app.state.resources.settings.callbacks.profile].once,
    )
    count = 0
    async for part in replay_each(chosen):
        count += len(part)
        request.app.state.resources.wake_delivery()
    return Replayed(replayed=count)


@router.get("/{event_id}")
async def show_callback(event_id: EventId) -> CallbackWithTries:
    """One callback, with every try."""
    async with get_db_context() as db:
        callbacks = CallbackRepository(db)
        callback, session = _found(await callbacks.get(event_id))
        return CallbackWithTries.with_tries(callback, session, await callbacks.tries(callback))


@router.post("/{event_id}/replay", status_code=202)
async def replay(event_id: EventId, request: Request) -> CallbackBody:
    """Send a callback once more, with all its tries, whatever became of it; its id stays the same.

    What Core takes only once (see the profile ``vibecode``) is sent again only if it failed.
    """
    resources: Resources = request.app.state.resources
    async with get_db_context() as db:
        callbacks = CallbackRepository(db)
        replayed = await callbacks.replay(event_id, once=PROFILES[resources.settings.callbacks.profile].once)
        found = _found(await callbacks.get(event_id))
    if replayed is None:
        raise TurnstoneError(ErrorCode.NOT_REPLAYABLE, "Core takes this once, and it has not failed.")
    resources.wake_delivery()
    return CallbackBody.of(*found)


def _found(callback: tuple[Callback, PromptSession] | None) -> tuple[Callback, PromptSession]:
    if callback is None:
        raise TurnstoneError(ErrorCode.NOT_FOUND, "There is no such callback.")
    return callback
