"""A candidate's report: what it says, what it keeps to itself, and that hostile text stays text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from playwright.async_api import ConsoleMessage

from app.domain.code_runner import LANGUAGES as LANGUAGES_OF_CODE
from app.domain.documents import shipped
from app.domain.rubric import LANGUAGES, Language, Rubric
from app.domain.scoring import Criterion
from app.infrastructure.analysis.lint import own_rules
from app.presentation.web.html import el, joined
from app.presentation.web.report import HERE, content_security_policy, render_report, style, texts_of
from tests.conftest import Rows
from tests.support.browser import open_browser
from tests.support.core import FakeCore
from tests.support.judge import ScriptedJudge
from tests.support.reports import PROMPT, QUOTE, pending, report, set_by_a_person
from tests.support.submissions import RIGHT
from tests.test_rest import problem
from tests.test_score_explain import judge, rest, service, turnstone
from tests.test_submission_flow import talked
from tests.test_submissions import ended, taken

__all__ = ["judge", "rest", "service", "turnstone"]
IN_BOTH = pytest.mark.parametrize("language", LANGUAGES)
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "h1", "h2", "h3", "h4"),
    *("p", "strong", "span", "mark", "blockquote", "q", "pre", "code", "ul", "li", "div"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"lang", "charset", "name", "content", "http-equiv", "class", "scope", "role", "dir", "data-label"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title><svg onload=alert(1)>",
    "</pre></blockquote><a href='javascript:alert(1)'>x</a>",
    "{0.__class__} {reason} %s ${x} {{7*7}}",
    "\u202egnp.exe\u2066\x00\x1b[31m",
    "&lt;b&gt; &amp;amp; ]]> <!-- ",
]


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.headings: list[str] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        self.text += data if self.open and self.open[-1] != "style" else ""


def poisoned(value: Any, poison: str) -> Any:
    """The same with this in the place of every text that is somebody else's."""
    if is_dataclass(value) and not isinstance(value, type):
        kept = {"verdict", "status", "intent", "moment", "weights", "groups", "versions"}
        return replace(
            value, **{f.name: poisoned(getattr(value, f.name), poison) for f in fields(value) if f.name not in kept}
        )
    if isinstance(value, str):
        return poison
    if isinstance(value, list):
        return [poisoned(each, poison) for each in value]
    if isinstance(value, dict):
        kept = {"status", "verdict", "group", "grade", "policy", "versions"}
        return {name: each if name in kept else poisoned(each, poison) for name, each in value.items()}
    return value


@IN_BOTH
@pytest.mark.parametrize("poison", HOSTILE)
@pytest.mark.parametrize("made", [report, pending, set_by_a_person])
def test_hostile_text_stays_text(made: Callable[[], Any], poison: str, language: Language) -> None:
    html = render_report(poisoned(made(), poison), language)
    page = Page(html)
    assert page.tags <= TAGS, page.tags - TAGS
    assert page.attributes <= ATTRIBUTES, page.attributes - ATTRIBUTES
    assert html.count("<style>") == html.count("</style>") == 1 and page.open == []
    seen = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", "\ufffd", poison)
    assert page.text.count(seen) >= 3, "and is shown as what it is"
    assert not re.search("[\x00\x1b\u202e\u2066]", html)


def test_elements_take_text_for_text() -> None:
    assert el("p", "<b>", el("b", "&"), data_label='"') == '<p data-label="&quot;">&lt;b&gt;<b>&amp;</b></p>'
    assert joined("<", None, el("i", "x")) == "&lt;<i>x</i>"


@IN_BOTH
def test_a_report_says_what_a_score_consists_of_and_on_what_it_rests(language: Language) -> None:
    html, t = render_report(report(), language), texts_of(language)
    text = Page(html).text
    for said in ("72.61", "80.27", "66.67", "69.21", "40 %", "4 / 5", "3.5 / 5", PROMPT, "Give one example of a line"):
        assert said in text, said
    assert f"<mark>{QUOTE}</mark>" in html, "the quote is marked where it stands"
    for said in ("not_counted", "counts_not", "no_findings", "open"):
        assert (t[said] in text) == (said in {"not_counted", "counts_not"}), said
    assert t["groups"]["PRIVATE"] in text and t["verdicts"]["TLE"] in text
    assert "1 2\n" in text and "A loop adds digit by digit" in text and "eval is used" not in text
    assert re.search(r"\{\w*\}", text) is None, "every name is filled in"


@IN_BOTH
def test_what_is_missing_is_said_in_plain_words_and_is_no_zero(language: Language) -> None:
    t, text = texts_of(language), Page(render_report(pending(), language)).text
    for said in (
        t["pending_title"],
        t["pending"],
        *t["missing"].values(),
        t["turn_open"],
        t["no_cases"],
        t["no_review"],
    ):
        assert said in text, said
    assert t["open"] in text and t["grade"] not in text
    for internal in ("is away", "unavailable", "a gap", "PENDING"):
        assert internal not in text


@IN_BOTH
def test_a_report_has_nothing_of_the_inside(language: Language) -> None:
    for made in (report(), pending(), set_by_a_person()):
        html = render_report(made, language)
        assert not re.search("[0-9a-f]{40,}", html.replace(style(), "")), "no hashes"
        for inside in ("scripted", "Secret-Name", "bubblewrap", "cgroup", "Traceback"):
            assert inside not in html, inside
    person = Page(render_report(set_by_a_person(), language)).text
    assert "The second prompt was taken for another one." in person and "88.5" in person
    assert texts_of(language)["machine"].format(score="80") in person


def test_languages_say_the_same() -> None:
    texts = yaml.safe_load((HERE / "report_texts.yaml").read_text(encoding="utf-8"))
    assert set(texts) == set(LANGUAGES)

    def shape(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: shape(inner) for name, inner in value.items()}
        return sorted(re.findall(r"\{(\w+)\}", value))

    assert shape(texts["en"]) == shape(texts["ko"])


def test_what_a_linter_says_is_said_in_korean_too() -> None:
    texts = texts_of("ko")["lint"]
    ours = {rule["id"] for language in LANGUAGES_OF_CODE for rule in own_rules(language)}
    assert len(ours) > 15 and ours <= set(texts)
    for rule, said in texts.items():
        assert rule in ours or re.fullmatch(r"[A-Z]+\d+|invalid-syntax", rule), rule
        assert re.search("[가-힣]", said), rule
    found = {
        **(report().analysis or {}),
        "lint": [{"rule": "loose-equality", "line": 3, "column": 1, "message": "== converts …"}],
    }
    made = replace(report(), analysis=found)
    assert texts["loose-equality"] in Page(render_report(made, "ko")).text
    assert "== converts …" in Page(render_report(made, "en")).text
    unknown = {**found, "lint": [{"rule": "PLE0101", "line": 3, "column": 1, "message": "Explicit return"}]}
    assert "Explicit return" in Page(render_report(replace(report(), analysis=unknown), "ko")).text


def test_a_report_says_how_far_the_code_is_from_its_first_version() -> None:
    changed = {"lines_before": 9, "added": 7, "removed": 2, "kept": 31}
    made = replace(report(), analysis={**(report().analysis or {}), "difference": changed})
    assert "(9 lines): 7 added, 2 removed, 31 kept" in Page(render_report(made, "en")).text
    assert "7줄 추가, 2줄 삭제, 31줄 유지" in Page(render_report(made, "ko")).text


def test_headings_go_down_one_step_at_a_time() -> None:
    for made in (report(), pending()):
        levels = [int(tag[1]) for tag in Page(render_report(made, "en")).headings]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels)), levels


LOOK = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const pale = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim())) continue;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) pale.push(node.outerHTML);
  }
  return {
    pale,
    wider: document.documentElement.scrollWidth - innerWidth,
    scripts: document.scripts.length,
    styled: getComputedStyle(document.body).maxWidth,
    bare: [...document.querySelectorAll('table')].filter((t) => !t.caption || !t.querySelector('th[scope=col]')).length,
    lang: document.documentElement.lang,
    title: document.title,
  };
}"""


def _note(errors: list[str], message: ConsoleMessage) -> None:
    errors.append(message.text)


@pytest.mark.slow
async def test_a_browser_shows_it_wide_narrow_and_on_paper(tmp_path: Path) -> None:
    long = poisoned(report(), "x" * 300)
    async with open_browser() as browser:
        for name, made in (("good", report()), ("pending", pending()), ("long", long)):
            file = tmp_path / f"{name}.html"
            file.write_text(render_report(made, "ko"), encoding="utf-8")
            page = await browser.new_page()
            errors: list[str] = []
            page.on("console", partial(_note, errors))
            for width in (360, 1280):
                await page.set_viewport_size({"width": width, "height": 900})
                await page.goto(file.as_uri())
                seen = await page.evaluate(LOOK)
                assert seen["pale"] == [] and seen["wider"] <= 0 and seen["bare"] == 0, (name, width, seen)
                assert (seen["scripts"], seen["lang"]) == (0, "ko") and seen["title"]
                assert seen["styled"] != "none", "its own policy lets its style through"
            assert errors == []
            assert (await page.pdf(format="A4")).startswith(b"%PDF")
            await page.close()


@pytest.mark.slow
async def test_core_gets_the_report_of_a_real_submission(
    rest: httpx.Client, core: FakeCore, rows: Rows, turnstone: Callable[..., Any], tmp_path: Path, judge: ScriptedJudge
) -> None:
    taken(rest, talked(rest), code=RIGHT, submission_id="s/1")
    problem(rest.get("/api/submissions/s/1/report"), 409, "not_scored")
    ended(rest, "s/1")
    for language in LANGUAGES:
        answer = rest.get("/api/submissions/s/1/report", params={"language": language})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-security-policy"].startswith(content_security_policy())
        assert answer.headers["cache-control"] == "no-store"
        text = Page(answer.text).text
        assert texts_of(language)["total"] in text and "def add(a, b):" in text
        assert texts_of(language)["verdicts"]["AC"] in text
        in_other = Rubric.parse(shipped("rubric", "standard")).text("en" if language == "ko" else "ko").criteria
        criteria = Rubric.parse(shipped("rubric", "standard")).text(language).criteria
        assert criteria[Criterion.R1].title in text and criteria[Criterion.R1].anchors[3] in text, "what a 4 is"
        assert in_other[Criterion.R1].title not in text
    hidden = rows.one("SELECT content->'cases' AS cases FROM problem_versions")["cases"]
    secret = [case for case in hidden if case["group"] != "SAMPLE"]
    assert secret
    for case in secret:
        assert case["input"] not in answer.text
    model = rows.one("SELECT model FROM judge_calls LIMIT 1")["model"]
    assert model not in answer.text
    file = tmp_path / "report.html"
    code, output = await turnstone("score", "report", "s/1", "--language", "ko", "-o", str(file))
    assert (code, file.read_text(encoding="utf-8")) == (0, answer.text), output
    problem(rest.get("/api/submissions/none/report"), 404, "submission_not_found")
    assert rest.get("/api/submissions/s/1/report", params={"language": "de"}).status_code == 422
