"""What a model writes becomes HTML that is useful, and can do nothing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.presentation.web.markdown import CPU_BUDGET_S, MAX_CHARS, render_markdown

ALLOWED = {
    "a": {"href", "title", "target", "rel"},
    "code": {"class"},
    "li": {"class"},
    "ol": {"start"},
    "p": {"class"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
} | {
    tag: set()
    for tag in (
        *("blockquote", "br", "em", "h3", "h4", "h5", "h6", "hr", "pre", "s", "strong"),
        *("table", "tbody", "thead", "tr", "ul"),
    )
}


class Parsed(HTMLParser):
    """Elements and text of a fragment, as a browser would see them."""

    def __init__(self, fragment: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(fragment)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment got through: {data!r}")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parse_harmless(markdown: str) -> Parsed:
    """Render, and check every element and attribute against what may be there."""
    parsed = Parsed(render_markdown(markdown))
    for tag, attributes in parsed.elements:
        assert tag in ALLOWED, f"<{tag}> from {markdown!r}"
        assert set(attributes) <= ALLOWED[tag], f"{attributes} on <{tag}> from {markdown!r}"
    for link in parsed.all("a"):
        if "href" in link:  # without one it leads nowhere
            assert str(link["href"]).lower().startswith(("http://", "https://", "mailto:")), link
        assert link["rel"] == "noopener noreferrer nofollow"
        assert link["target"] == "_blank"
    return parsed


ATTACKS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "text <img src=x onerror=alert(1)> text",
    "<svg onload=alert(1)><animate onbegin=alert(1) attributeName=x dur=1s>",
    "<svg><script>alert&#40;1&#41;</script></svg>",
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<a href='javascript:alert(1)'>x</a>",
    "<style>*{background:url(//evil.example)}</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>go</button></form>",
    "<div style='position:fixed;inset:0' onclick=alert(1)>x</div>",
    "<!-- comment --><p onmouseover=alert(1)>x</p>",
    "<?php echo 1 ?><![CDATA[<script>alert(1)</script>]]>",
    "<noscript><p title='</noscript><img src=x onerror=alert(1)>'>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\tscript:alert(1))",
    "[x](javascript&colon;alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](&#x6A&#x61&#x76&#x61script:alert(1))",
    "[x](%6aavascript:alert(1))",
    "[x](\x01javascript:alert(1))",
    "[x](vbscript:msgbox(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "[x](file:///etc/passwd)",
    "[x](blob:http://a/b)",
    "[x](/api/sessions/1/end)",
    "[x](//evil.example)",
    "[x](\\\\evil.example)",
    "[x](#token=stolen)",
    "[x]()",
    "<javascript:alert(1)>",
    "<data:text/html,x>",
    "[x]: javascript:alert(1)\n\n[x]",
    "[x](http://a.example 'onmouseover=\"alert(1)')",
    '[x](http://a.example/"onmouseover="alert(1))',
    "[x](http://a.example/'><script>alert(1)</script>)",
    "![x](http://evil.example/pixel.png)",
    "![x](javascript:alert(1))",
    '![x"onerror="alert(1)](y)',
    "![<img src=x onerror=alert(1)>](http://evil.example/a.png)",
    "[![x](http://evil.example/pixel.png)](https://a.example)",
    "```<script>alert(1)</script>\ncode\n```",
    '```"><script>alert(1)</script>\ncode\n```',
    "```js onload=alert(1) class=evil\n</code></pre><script>alert(1)</script>\n```",
    "`<script>alert(1)</script>`",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&amp;lt;script&amp;gt;",
    "> - <script>alert(1)</script>\n>   1. <img src=x onerror=alert(1)>",
    "| <script>alert(1)</script> | [x](javascript:alert(1)) |\n|---|---|\n| <img src=x onerror=alert(1)> | y |",
    "# <script>alert(1)</script>",
    "**<b onclick=alert(1)>x</b>**",
    "[<script>alert(1)</script>](https://a.example)",
    "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "<<script>script>alert(1)",
    "\x00<script>\x00alert(1)</script>",
    "\u202e<script>alert(1)</script>",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_does_nothing(attack: str) -> None:
    parse_harmless(attack)


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_inside_other_markup_does_nothing(attack: str) -> None:
    parse_harmless(f"- a\n\n  > {attack}\n\n| h |\n|---|\n| {attack} |\n\n**{attack}** [{attack}](https://a.example)")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*"<>&\"'`*_[]()!|\n ~#:", "script", "onerror=", "javascript:", "img", "http://a"])))
def test_no_mixture_of_signs_gets_through(parts: list[str]) -> None:
    parse_harmless("".join(parts))


def test_html_is_shown_as_the_text_it_is() -> None:
    attack = "<script>alert(1)</script> <img src=x onerror=alert(1)>"
    assert parse_harmless(attack).text.strip() == attack


def test_links() -> None:
    parsed = parse_harmless("[a](https://a.example/?q=1&r=2 'the title') <mailto:x@y.example> <http://b.example>")
    assert [link["href"] for link in parsed.all("a")] == [
        "https://a.example/?q=1&r=2",
        "mailto:x@y.example",
        "http://b.example",
    ]
    assert parsed.all("a")[0]["title"] == "the title"


def test_code_keeps_its_language_and_every_sign() -> None:
    code = 'if (a < b && c > "d") { /* 한국어 */ }\n\tindent\n'
    parsed = parse_harmless(f"```c++\n{code}```")
    assert parsed.all("code") == [{"class": "language-c++"}]
    assert parsed.text.startswith(code)


def test_unfinished_code_block_is_code_already() -> None:
    parsed = parse_harmless("Look:\n\n```python\nprint(1")
    assert parsed.all("code") == [{"class": "language-python"}]
    assert "print(1" in parsed.text


def test_image_is_words_and_loads_nothing() -> None:
    parsed = parse_harmless("![a *red* box](https://evil.example/pixel.png)")
    assert parsed.all("span") == [{"class": "image-alt"}]
    assert parsed.text.strip() == "a red box"
    assert "evil.example" not in render_markdown("![a](https://evil.example/pixel.png)")


def test_table_aligns_by_class() -> None:
    parsed = parse_harmless("|a|b|c|\n|:-|:-:|-:|\n|1|2|3|")
    assert [cell.get("class") for cell in parsed.all("td")] == ["align-left", "align-center", "align-right"]


def test_ordinary_markup() -> None:
    parsed = parse_harmless("# T\n\n3. **b** *i* ~~s~~\n\n- x\n\n> q\n\n---\na\nb")
    tags = {tag for tag, _ in parsed.elements}
    assert {"h3", "ol", "strong", "em", "s", "ul", "li", "blockquote", "hr", "br"} <= tags
    assert parsed.all("ol") == [{"start": "3"}]


def test_headings_stand_below_those_of_the_page() -> None:
    parsed = parse_harmless("\n".join(f"{'#' * level} {level}" for level in range(1, 7)) + "\n\nsetext\n===\n")
    assert [tag for tag, _ in parsed.elements] == ["h3", "h4", "h5", "h6", "h6", "h6", "h3"]


def test_task_list_has_boxes_and_nothing_to_tick() -> None:
    parsed = parse_harmless("- [ ] one\n- [x] **two**\n\n1. [X] `three`\n- [ ]\n- [x](https://a.example)\n\n[ ] four")
    assert [item.get("class") for item in parsed.all("li")] == ["task", "task", "task", None, None]
    assert [line.strip() for line in parsed.text.splitlines() if line.strip()] == [
        "☐ one", "☑ two", "☑ three", "[ ]", "x", "[ ] four",
    ]  # fmt: skip


def test_empty() -> None:
    assert render_markdown("") == ""


def _repeat(part: str) -> str:
    return (part * (MAX_CHARS // len(part) + 1))[:MAX_CHARS]


HOSTILE = {
    "brackets": _repeat("["),
    "images": _repeat("!["),
    "links": _repeat("[a]("),
    "emphasis": _repeat("*a_ "),
    "mixed emphasis": _repeat("*a**a"),
    "quotes": _repeat(">" * 200 + "\n"),
    "nested lists": "".join("  " * depth + "- a\n" for depth in range(300)),
    "quotes and lists": _repeat("> - > - 1. a\n"),
    "entities": _repeat("&a"),
    "references": _repeat("[a]: b\n"),
    "backticks": "".join("`" * length + " " for length in range(1, 440)),
    "wide table": "|" + "a|" * 500 + "\n|" + "-|" * 500 + "\n" + "x\n" * 10_000,
    "nested links": "[" * 19_000 + "a" + "](b)" * 19_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_costs_bounded_time(text: str) -> None:
    assert len(text) <= MAX_CHARS
    begun = time.thread_time()
    assert render_markdown(text)
    spent = time.thread_time() - begun
    # the parser's share is CPU_BUDGET_S; the rest is rendering and cleaning what was parsed within it
    assert spent < 4 * CPU_BUDGET_S, f"{spent:.2f} s"


def test_too_long_text_is_shown_as_it_is() -> None:
    text = "**<b>** " * (200_000 // 8)
    begun = time.thread_time()
    parsed = parse_harmless(text)
    assert parsed.elements == [("p", {"class": "plain"})]
    assert parsed.text == text
    assert time.thread_time() - begun < CPU_BUDGET_S


def test_threads_do_not_disturb_each_other() -> None:
    texts = [
        f"# {number}\n\n```python\nprint({number})\n```\n\n- [a](https://a.example/{number})" for number in range(64)
    ]
    expected = [render_markdown(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(render_markdown, texts)) == expected
