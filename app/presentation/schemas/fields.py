"""How a field of a body is described."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def absent(description: str) -> Any:
    """A field that may be missing, and is never null."""
    return Field(None, description=description, json_schema_extra=_without_default)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)
