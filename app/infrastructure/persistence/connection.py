"""Connections to a database that may vanish without a word: every wait for it ends.

Where a host is gone, or a network drops what is sent, nothing ever comes back, not even an error. Three things notice:

* the kernel, by TCP's own means (`patient_url`), where the other end acknowledges nothing any more;
* the server (`BoundedConnection.limit`), where it is there and a statement takes too long, or where *we* are gone in
  the middle of a transaction whose locks others wait for;
* this process (`BoundedConnection.wait`), where something in between acknowledges what never arrives.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import URL

T = TypeVar("T")

_TCP = {
    "keepalives_idle": "5",
    "keepalives_interval": "3",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""Seconds, and milliseconds: silence is noticed after 14 s, and what nobody acknowledges after 10."""


def patient_url(url: URL, timeout_s: float) -> URL:
    """``url`` with limits on how long to wait for a connection and for a network; what it says itself stays.

    Over a unix socket TCP's are passed over.
    """
    defaults = {**_TCP, "connect_timeout": str(max(1, round(timeout_s))), "application_name": "turnstone"}
    return url.update_query_dict({name: value for name, value in defaults.items() if name not in url.query})


class BoundedConnection(psycopg.AsyncConnection[Any]):
    """A connection that is cut off when an answer takes longer than ``patience_s``.

    The waiting statement then raises ``OperationalError``, as where the server has closed the connection. Not for
    ``LISTEN``, where to wait is the purpose.
    """

    patience_s: float = 30.0

    async def limit(self, statement_s: float, patience_s: float) -> None:
        """Let the server end statements after ``statement_s``, and the connection be cut after ``patience_s``.

        Also let the server end a transaction in which it has heard nothing of us for ``patience_s``.
        """
        self.patience_s = patience_s
        await self.execute(
            "SELECT set_config('statement_timeout', %s, false),"
            " set_config('idle_in_transaction_session_timeout', %s, false)",
            [f"{round(seconds * 1000)}ms" for seconds in (statement_s, patience_s)],
        )
        await self.commit()

    async def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        """See psycopg: everything that waits for the server comes through here."""
        fuse = asyncio.get_running_loop().call_later(self.patience_s, self._cut)
        try:
            return await super().wait(gen, *args, **options)
        finally:
            fuse.cancel()

    def _cut(self) -> None:
        """Let the connection look closed to libpq, which then says so to whoever waits."""
        if self.closed:
            return
        with socket.socket(fileno=os.dup(self.pgconn.socket)) as line:
            line.shutdown(socket.SHUT_RDWR)
