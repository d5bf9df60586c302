"""What stands in paths."""

from __future__ import annotations

from starlette.convertors import Convertor, register_url_convertor

ANY_TEXT = "any_text"


class _AnyText(Convertor[str]):
    """What clients may call a turn: slashes, as with ``path``, and line breaks."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor(ANY_TEXT, _AnyText())
