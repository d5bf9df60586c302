"""Makes text of a provider's pieces that can be stored, sent and put together again. Pure."""

from __future__ import annotations


class WholeText:
    """What a provider says in pieces, without halves of characters and without NUL.

    JSON can hold half a character (a lone surrogate), also at a piece's end where the next piece has the other half.
    PostgreSQL can store neither that nor NUL, and what is shown has to equal what is stored. So halves are put
    together, and what has no other half becomes U+FFFD, as NUL does.
    """

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def take(self, piece: str) -> str:
        """The text of the next piece; may be empty, and a first half at its end is kept back."""
        if self._half or not piece.isascii():
            piece = self._whole_characters(piece)
        return piece.replace("\x00", "\N{REPLACEMENT CHARACTER}") if "\x00" in piece else piece

    def rest(self) -> str:
        """The pieces are over: what stands for a first half whose second never came."""
        half, self._half = self._half, ""
        return "\N{REPLACEMENT CHARACTER}" if half else ""

    def _whole_characters(self, text: str) -> str:
        text = self._half + text
        self._half = ""
        try:
            text.encode()
        except UnicodeEncodeError:
            if "\ud800" <= text[-1] <= "\udbff":
                text, self._half = text[:-1], text[-1]
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text
