"""HTML that is put together from elements; text in it is always text."""

from __future__ import annotations

import re
from html import escape

_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Signs that show nothing and may turn the order of others: a report shows that there was one."""


class Html(str):
    """HTML that is safe to put in. Nothing but this module's functions makes any."""

    __slots__ = ()


def text(value: str) -> Html:
    """Text, whatever stands in it."""
    return Html(escape(_UNSEEN.sub("\ufffd", value), quote=True))


def joined(*parts: Html | str | None) -> Html:
    """Parts one after the other; what is no `Html` is text, and ``None`` is nothing."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts if part is not None))


def el(tag: str, *children: Html | str | None, **attributes: str) -> Html:
    """An element. A trailing ``_`` of an attribute's name goes, other ``_`` become ``-``."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    opening = "".join(f' {name}="{text(value)}"' for name, value in names.items())
    return Html(f"<{tag}{opening}>{joined(*children)}</{tag}>")
