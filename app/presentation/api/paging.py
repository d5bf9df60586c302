"""Lists in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query
from pydantic import BeforeValidator

from app.presentation.schemas.bodies import Page

Row = TypeVar("Row")
Item = TypeVar("Item")


EMPTY_IS_NONE = BeforeValidator(lambda value: None if value == "" else value)
"""A filter without a value, ``?name=``, is none."""
Cursor = Annotated[int, Query(ge=0, le=2**63 - 1, description="`next` of the part before")]
Limit = Annotated[int, Query(ge=1, le=1000)]


def page(rows: Sequence[Row], limit: int, item: Callable[[Row], Item], key: Callable[[Row], int]) -> Page[Item]:
    """One part of a list, made of ``limit`` rows and, where there are more, one beyond."""
    shown = rows[:limit]
    return Page(items=[item(row) for row in shown], next=str(key(shown[-1])) if len(rows) > limit else None)
