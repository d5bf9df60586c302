"""Locks in the database that a test holds, so that whoever needs them waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg


@asynccontextmanager
async def locked(url: str, statement: str) -> AsyncIterator[psycopg.AsyncConnection]:
    """Hold what ``statement`` locks."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(statement)
        yield connection
        await connection.rollback()


def waiting(url: str) -> int:
    """How many connections to the database wait for a lock."""
    with psycopg.connect(url) as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])
