"""Markdown of a model's answer to HTML that is safe to put into a page.

Three walls, each enough by itself: the parser passes no HTML through, its result is cleaned against a list of
what may stay, and the page's Content-Security-Policy runs no inline script.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

MAX_CHARS = 100_000
"""A longer text is shown as it is, unparsed. An answer of 16,000 tokens has about 64,000."""

CPU_BUDGET_S = 0.5
"""CPU time that parsing one text may take. Ordinary text of ``MAX_CHARS`` takes half of it."""

_HIGHEST_HEADING = 3
"""An answer stands in a page that has its own title and parts; its ``#`` begins below them."""

_TASK = re.compile(r"\[([ xX])\][ \t]+")
_LINK_SCHEME = re.compile(r"(?:https?://|mailto:)", re.IGNORECASE)
_LANGUAGE_CLASS = re.compile(r"language-[\w+#.-]{1,32}", re.ASCII)
_ALIGNMENT_CLASSES = {
    "text-align:left": "align-left",
    "text-align:center": "align-center",
    "text-align:right": "align-right",
}


class _BudgetSpentError(Exception):
    """The text costs more CPU time than an answer is worth."""


def render_markdown(text: str) -> str:
    """Render the Markdown of an answer, finished or still growing.

    Pure CPU: about 2 ms for 1,000 characters of ordinary text, never much over ``CPU_BUDGET_S``. Call it from
    a thread where an event loop must not wait.

    Args:
        text: CommonMark with tables, strikethrough and task lists; a line break is kept as one.

    Returns:
        An HTML fragment without scripts, styles, images or relative links; links open in a new tab and tell
        nobody where they came from. Headings begin at ``<h3>``. A text that is too long or too costly comes
        back escaped, as one ``<p class="plain">``.
    """
    if len(text) > MAX_CHARS:
        return _plain(text)
    try:
        fragment = _PARSER.render(text, {"deadline": time.thread_time() + CPU_BUDGET_S})
    except _BudgetSpentError:
        return _plain(text)
    return _CLEANER.clean(fragment)


def _plain(text: str) -> str:
    return f'<p class="plain">{html.escape(text)}</p>'


class _Parser(MarkdownIt):
    """The parser, with our word on which addresses become links."""

    def validateLink(self, url: str) -> bool:  # noqa: N802 - the name is the library's
        """Absolute web addresses and mail only: a relative one would lead into this server."""
        return _LINK_SCHEME.match(url) is not None


def _check_inline(state: StateInline, _silent: bool) -> bool:
    return _check_budget(state.env)


def _check_block(state: StateBlock, _start: int, _end: int, _silent: bool) -> bool:
    return _check_budget(state.env)


def _check_budget(env: MutableMapping[str, Any]) -> bool:
    """A rule that never matches: the parser asks it at every step, also where hostile text makes it circle."""
    if time.thread_time() > env["deadline"]:
        raise _BudgetSpentError
    return False


def _align_by_class(state: StateCore) -> None:
    """A table cell's alignment as a class: the page's policy allows no style attributes."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open"):
            style = token.attrs.pop("style", None)
            if style in _ALIGNMENT_CLASSES:
                token.attrs["class"] = _ALIGNMENT_CLASSES[str(style)]


def _lower_headings(state: StateCore) -> None:
    """``#`` becomes ``<h3>``, ``##`` becomes ``<h4>`` … so that an answer does not look like a page of its own."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _HIGHEST_HEADING - 1, 6)}"


def _mark_tasks(state: StateCore) -> None:
    """``- [x]`` of a task list as a box: a sign and no form element, as there is nothing to tick."""
    for item, paragraph, inline in zip(state.tokens, state.tokens[1:], state.tokens[2:], strict=False):
        if item.type != "list_item_open" or paragraph.type != "paragraph_open" or not inline.children:
            continue
        first = inline.children[0]
        if first.type == "text" and (task := _TASK.match(first.content)):
            item.attrs["class"] = "task"
            first.content = ("☐ " if task[1] == " " else "☑ ") + first.content[task.end() :]


def _image_as_text(
    renderer: RendererHTML,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    env: MutableMapping[str, Any],
) -> str:
    """The words of an image instead of the image: loading one would tell its host who reads."""
    words = renderer.renderInlineAsText(tokens[index].children, options, env)
    return f'<span class="image-alt">{html.escape(words or "image")}</span>'


def _make_parser() -> MarkdownIt:
    parser = _Parser("commonmark", {"html": False, "breaks": True, "maxNesting": 40})
    parser.enable(["table", "strikethrough"]).disable(["html_block", "html_inline"])
    parser.inline.ruler.before("text", "budget", _check_inline)
    parser.block.ruler.before("table", "budget", _check_block)
    parser.core.ruler.push("align_by_class", _align_by_class)
    parser.core.ruler.push("lower_headings", _lower_headings)
    parser.core.ruler.push("mark_tasks", _mark_tasks)
    parser.add_render_rule("image", _image_as_text)
    return parser


def _keep_attribute(tag: str, name: str, value: str) -> str | None:
    if tag == "code" and name == "class":
        return value if _LANGUAGE_CLASS.fullmatch(value) else None
    return value


def _make_cleaner() -> nh3.Cleaner:
    blocks = {"blockquote", "hr", "li", "ol", "p", "pre", "ul", "h1", "h2", "h3", "h4", "h5", "h6"}
    inline = {"a", "br", "code", "em", "s", "span", "strong"}
    table = {"table", "tbody", "td", "th", "thead", "tr"}
    alignments = set(_ALIGNMENT_CLASSES.values())
    return nh3.Cleaner(
        tags=blocks | inline | table,
        attributes={"a": {"href", "title"}, "ol": {"start"}, "code": {"class"}},
        attribute_filter=_keep_attribute,
        allowed_classes={"span": {"image-alt"}, "td": alignments, "th": alignments, "li": {"task"}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        url_schemes={"http", "https", "mailto"},
        url_relative="deny",
        link_rel="noopener noreferrer nofollow",
    )


_PARSER = _make_parser()
_CLEANER = _make_cleaner()
