"""What a provider charged for and what Core keeps, read from their exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from pathlib import Path

from app.core.errors import ExportError
from app.domain.ledger import LARGEST_FIGURE, Said
from app.infrastructure.exports.files import REMEDY, Row, read_rows
from app.infrastructure.llm.figures import reference

_LARGEST_SUM = 10**15
_LARGEST_ID = 2**63 - 1
_LARGEST_TURN = 2**31 - 1
_LONGEST_NAME = 200
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.0+)?")

# Each list in the order in which its columns are looked at; docs/usage.md has them.
_REF = ("provider_ref", "response_id", "generation_id", "responseid", "id", "request_id")
_MODEL = ("model", "snapshot_id", "model_version", "modelversion")
_DAY = ("day", "date", "start_time_iso", "start_time", "starting_at")
_PROMPT = ("prompt_tokens", "input_tokens", "uncached_input_tokens", "prompttokencount", "n_context_tokens_total")
_COMPLETION = ("completion_tokens", "output_tokens", "candidatestokencount", "n_generated_tokens_total")
_CACHED = ("cached_tokens", "input_cached_tokens", "cached_input_tokens", "cachedcontenttokencount")
_REASONING = ("reasoning_tokens", "output_reasoning_tokens")
# These are left out of the input or output that they stand beside.
_CACHE_READ = ("cache_read_input_tokens",)
_CACHE_WRITTEN = ("cache_creation_input_tokens",)
_CACHE_WRITTEN_PARTS = (("ephemeral_5m_input_tokens",), ("ephemeral_1h_input_tokens",))
_TOOL_PROMPT = ("tooluseprompttokencount",)
_THOUGHTS = ("thoughtstokencount",)

_EVENT_ID = ("webhook_id", "event_id", "id")
_TYPES = frozenset({"usage", "usage_adjusted"})


@dataclass(frozen=True, slots=True)
class ChargedCall:
    """One call of a provider's export."""

    line: int
    ref: str
    model: str
    said: Said


@dataclass(frozen=True, slots=True)
class ChargedDay:
    """What a provider charged for a model on a day; several rows of one model and day add up."""

    line: int
    day: date
    model: str
    said: Said


@dataclass(frozen=True, slots=True)
class KeptEvent:
    """A ``usage`` or ``usage_adjusted`` event as Core has it; ``event_id`` is ``None`` where the export has no ids."""

    line: int
    event_id: str | None
    session_id: int
    turn: int | None
    purpose: str | None
    said: Said
    total: int | None


class ProviderExport:
    """A provider's export; ``by_call`` says which of the two forms it has, told by its first row.

    Raises:
        ExportError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        rows = read_rows(path)
        first = next(rows, None)
        self.by_call = first is None or _text(first[1], _REF) is not None
        self._rows = rows if first is None else chain([first], rows)

    def calls(self) -> Iterator[ChargedCall]:
        """The rows of an export that has one for each call.

        Raises:
            ExportError: a row cannot be taken.
        """
        for line, row in self._rows:
            place = _Place(self._path, line, row)
            ref = reference(_text(row, _REF))
            if ref is None:
                raise place.error("the call has no id, or none that can be one, while the first row has.")
            yield ChargedCall(line, ref, _name(row, _MODEL) or "", place.figures(LARGEST_FIGURE))

    def days(self) -> Iterator[ChargedDay]:
        """The rows of an export that has sums of a model and day.

        Raises:
            ExportError: a row cannot be taken.
        """
        for line, row in self._rows:
            place = _Place(self._path, line, row)
            said = place.figures(_LARGEST_SUM)
            if not (said.prompt or said.completion):
                continue  # a day without calls has no model either
            model = _name(row, _MODEL)
            if model is None:
                raise place.error("there is no model.")
            yield ChargedDay(line, place.day(), model, said)


def read_core_export(path: Path) -> Iterator[KeptEvent]:
    """Core's events of usage, in the order of the file; events of other types are passed over.

    Raises:
        ExportError: the file or a row cannot be taken.
    """
    with_ids: bool | None = None
    for line, row in read_rows(path):
        if (kind := _text(row, ("type",))) is not None and kind not in _TYPES:
            continue
        place = _Place(path, line, row)
        event_id = _text(row, _EVENT_ID)
        if with_ids is None:
            with_ids = event_id is not None
        if with_ids != (event_id is not None) or (with_ids and reference(event_id) is None):
            raise place.error("the event has no id, while others have." if with_ids else "only some events have ids.")
        session_id = place.number(("session_id",), most=_LARGEST_ID)
        if session_id is None:
            raise place.error("there is no session_id.")
        figures = Said(
            place.number(("prompt_tokens",), least=-_LARGEST_SUM),
            place.number(("completion_tokens",), least=-_LARGEST_SUM),
            place.number(("cached_tokens",), least=-_LARGEST_SUM),
        )
        if figures.prompt is None or figures.completion is None:
            raise place.error("there are no prompt_tokens and completion_tokens.")
        total = place.number(("total_tokens",), least=-_LARGEST_SUM)
        turn = place.number(("turn",), most=_LARGEST_TURN)
        yield KeptEvent(line, event_id, session_id, turn, _name(row, ("purpose",)), figures, total)


@dataclass(frozen=True, slots=True)
class _Place:
    """A row and where it stands."""

    path: Path
    line: int
    row: Row

    def error(self, problem: str) -> ExportError:
        return ExportError(self.path, self.line, problem, REMEDY)

    def figures(self, most: int) -> Said:
        """A provider's figures in our reading: the cache within the prompt, thinking within the completion.

        Raises:
            ExportError: they cannot be read, or the prompt or completion is missing.
        """
        prompt, completion = self.number(_PROMPT, most=most), self.number(_COMPLETION, most=most)
        read, thoughts = self.number(_CACHE_READ, most=most), self.number(_THOUGHTS, most=most)
        if completion is None and "prompttokencount" in self.row:
            completion = 0  # Google leaves out what is 0
        if prompt is None or completion is None:
            missing, columns = ("prompt", _PROMPT) if prompt is None else ("completion", _COMPLETION)
            raise self.error(f"there are no {missing} tokens; they are looked for in {', '.join(columns)}.")
        written = self.number(_CACHE_WRITTEN, most=most)
        if written is None:
            written = sum(self.number(part, most=most) or 0 for part in _CACHE_WRITTEN_PARTS)
        beside = (read or 0) + written + (self.number(_TOOL_PROMPT, most=most) or 0)
        said = Said(
            prompt + beside,
            completion + (thoughts or 0),
            self.number(_CACHED, most=most) if read is None else read,
            self.number(_REASONING, most=most) if thoughts is None else thoughts,
        )
        if prompt + beside > most or completion + (thoughts or 0) > most:
            raise self.error("these are more tokens than there can be.")
        if (said.cached or 0) > prompt + beside or (said.reasoning or 0) > completion + (thoughts or 0):
            raise self.error("more tokens are cached than sent, or more were thought than answered.")
        return said

    def number(self, names: Sequence[str], *, least: int = 0, most: int = _LARGEST_SUM) -> int | None:
        """A whole number; ``None`` where the row has none.

        Raises:
            ExportError: there is something that is none, or none that can be meant.
        """
        for name in names:
            value = self.row.get(name)
            if value is None or (isinstance(value, str) and not value.strip()):
                continue
            if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
                value = int(value.strip().partition(".")[0])
            elif isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise self.error(f"{name} is no number between {least} and {most}.")
            return value
        return None

    def day(self) -> date:
        """The day, in UTC.

        Raises:
            ExportError: there is none.
        """
        said = next((self.row[name] for name in _DAY if self.row.get(name) not in (None, "")), None)
        try:
            if isinstance(said, int) or (isinstance(said, str) and said.strip().isdecimal()):
                return datetime.fromtimestamp(int(said), UTC).date()
            moment = datetime.fromisoformat(str(said).strip())
        except (ValueError, OverflowError, OSError):
            raise self.error(
                "there is neither an id of a call nor a day (as 2026-11-27, or in seconds since 1970)."
            ) from None
        return moment.astimezone(UTC).date() if moment.tzinfo is not None else moment.date()


def _text(row: Row, names: Sequence[str]) -> str | None:
    """The first of these fields that says something, as text."""
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
    return None


def _name(row: Row, names: Sequence[str]) -> str | None:
    """As `_text`, of what is only shown and compared: cut, and with a sign for what cannot be stored."""
    said = _text(row, names)
    if said is None or said.isprintable():
        return said and said[:_LONGEST_NAME]
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in said[:_LONGEST_NAME])
