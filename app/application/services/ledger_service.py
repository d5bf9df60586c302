"""Corrections of the ledger: the row, the session's total and what Core is told of it, in one transaction."""

from __future__ import annotations

from app.application.services.callback_service import CallbackService
from app.core.errors import StartupError
from app.domain.conversation import UsageSource
from app.domain.ledger import Said, Tokens, purpose_for_core
from app.infrastructure.persistence.session import get_db_context
from app.infrastructure.repositories.ledger_repository import LedgerEntry, LedgerRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.turn_repository import TurnRepository


async def find_call(session_id: int, turn: int | None, purpose: str) -> int:
    """The one call that a turn (``None``: work on the whole session) made for a purpose.

    Raises:
        StartupError: it made none, or several.
    """
    async with get_db_context() as db:
        entries = await LedgerRepository(db).entries(session_id, purpose=purpose)
    found = [entry for entry in entries if entry.turn == turn]
    if len(found) == 1:
        return found[0].id
    where = f"session {session_id}" if turn is None else f"turn {turn} of session {session_id}"
    if not found:
        raise StartupError(
            f"There is no {purpose} call in {where}.", f"`turnstone usage calls {session_id}` shows which there are."
        )
    raise StartupError(
        f"There are {len(found)} {purpose} calls in {where}.",
        f"Say which with --call: {', '.join(str(entry.id) for entry in found[:20])}.",
    )


async def adjust_call(
    call_id: int, said: Said, reason: str, *, source: UsageSource = "provider", held: bool
) -> tuple[LedgerEntry, Tokens]:
    """Correct a call to the figures that it should have, and tell Core of the difference.

    Doing so again, or twice at once, changes nothing: what the call has by now is read under its session's lock.

    Args:
        call_id: the call, which is no correction itself.
        said: what it should have; figures that are ``None`` stay.
        reason: why, for Core and for whoever reads the ledger.
        source: whose figures they are.
        held: callbacks wait, because no receiver is set.

    Returns:
        The call as it was, and the difference that was written; a difference of nothing where nothing was.

    Raises:
        StartupError: there is no such call.
    """
    async with get_db_context() as db:
        ledger = LedgerRepository(db)
        session_id = await ledger.session_of(call_id)
        if session_id is None:
            raise StartupError(
                f"There is no call {call_id} that could be corrected.",
                "`turnstone usage calls SESSION` shows which there are; of a correction, name the call.",
            )
        await SessionRepository(db).lock_session(session_id)
        [entry] = await ledger.entries(session_id, call_id=call_id)
        difference = said.over(entry.used) - entry.used
        if difference:
            await ledger.add_correction(entry, difference, reason, source)
        if difference.total or difference.prompt or difference.cached:  # of reasoning Core was never told
            turn_ids = {} if entry.turn is None else await TurnRepository(db).client_ids(session_id, {entry.turn})
            await CallbackService(db, held=held).send_usage_adjusted(
                session_id,
                entry.turn,
                difference,
                reason,
                turn_id=turn_ids.get(entry.turn or 0),
                model=entry.model,
                source=source,
                purpose=purpose_for_core(entry.purpose),
            )
    return entry, difference
