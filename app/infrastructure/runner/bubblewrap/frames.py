"""Messages between the service and its warden: a JSON header and any number of byte strings, over a pipe."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

_SIZES = struct.Struct("!II")
"""Bytes of the header, number of byte strings; then each one's size (4 bytes), the header, and they."""


class Frame(NamedTuple):
    """One message."""

    header: dict[str, Any]
    parts: list[bytes]


class _Source(Protocol):
    async def readexactly(self, n: int, /) -> bytes:
        """``n`` bytes, or `asyncio.IncompleteReadError` at the end."""


def write_frame(header: dict[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    """The bytes of one message."""
    text = json.dumps(header, separators=(",", ":")).encode()
    sizes = struct.pack(f"!{len(parts)}I", *map(len, parts))
    return b"".join([_SIZES.pack(len(text), len(parts)), sizes, text, *parts])


async def read_frame(source: _Source) -> Frame:
    """The next message.

    Raises:
        asyncio.IncompleteReadError: the other side is gone.
    """
    length, count = _SIZES.unpack(await source.readexactly(_SIZES.size))
    sizes = struct.unpack(f"!{count}I", await source.readexactly(4 * count))
    header = json.loads(await source.readexactly(length))
    return Frame(header, [await source.readexactly(size) for size in sizes])
