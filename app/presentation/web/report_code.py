"""The report's sections of code: test cases, running time, measures, and the review."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from app.application.submissions.reporting import Report
from app.presentation.web.html import Html, el, joined

_LONGEST: Final = 4_000
"""Characters of one text of a test case or a compiler."""
_MOST: Final = 50
"""Functions and findings; the first ones."""

Texts = Mapping[str, Any]


def code_sections(report: Report, t: Texts) -> Iterator[Html]:
    """Everything about the code."""
    yield el("h2", t["tests_title"])
    yield from _tests(report, t)
    yield el("h2", t["speed_title"])
    ratio = report.speed["ratio"]
    if ratio is None:
        yield el("p", t["speed_none"])
    else:
        yield el("p", t["speed"].format(ratio=f"{ratio:.2f}", language=report.speed["language"]))
    yield el("h2", t["code_title"])
    yield from _measures(report.analysis, t)
    yield el("h2", t["review_title"])
    yield from _review(report.review, t)


def _tests(report: Report, t: Texts) -> Iterator[Html]:
    if report.compile_error is not None:
        yield el("p", t["compile_failed"])
        yield el("pre", _cut(report.compile_error))
    if not report.groups:
        yield el("p", t["no_cases"])
        return
    if report.samples:
        yield el("h3", t["sample_title"])
    for case in report.samples:
        yield el("h4", f"{t['case'].format(name=case.name)} · {t['verdicts'][case.verdict]}")
        yield el(
            "div",
            el("div", el("p", t["input"], class_="quiet small"), el("pre", _cut(case.input))),
            el("div", el("p", t["expected"], class_="quiet small"), el("pre", _cut(case.output))),
            class_="cases",
        )
    others = {group: counts for group, counts in report.groups.items() if group != "SAMPLE" or not report.samples}
    if others:
        yield el("h3", t["others_title"])
        rows = [
            (t["groups"][group], t["verdicts"][verdict], str(count))
            for group, counts in others.items()
            for verdict, count in counts.items()
        ]
        yield _table(t["others_title"], (t["group"], t["verdict"], t["number"]), rows, numbers=(2,))


def _measures(analysis: Mapping[str, Any] | None, t: Texts) -> Iterator[Html]:
    if analysis is None:
        yield el("p", t["no_analysis"])
        return
    functions = analysis.get("functions") or []
    if analysis.get("mean_complexity") is not None:
        count = analysis.get("function_count") or len(functions)
        yield el("p", t["complexity"].format(mean=f"{analysis['mean_complexity']:.2f}", count=count))
    lines = analysis.get("lines")
    if isinstance(lines, Mapping):
        yield el("p", t["lines"].format(**{name: lines.get(name) for name in ("total", "code", "comments")}))
    changed = analysis.get("difference")
    if changed is not None:
        figures = {name: changed[name] for name in ("added", "removed", "kept")}
        yield el("p", t["difference"].format(before=changed["lines_before"], **figures))
    if functions:
        rows = [(each["name"], f"{each['start']}–{each['end']}", str(each["complexity"])) for each in functions[:_MOST]]
        yield _table(t["code_title"], (t["function"], t["line"], t["complexity_short"]), rows, numbers=(1, 2))
    findings = _findings(analysis, t)
    yield el("h3", t["findings"])
    if findings:
        yield _table(t["findings"], (t["line"], t["finding"]), findings[:_MOST], numbers=(0,))
    else:
        yield el("p", t["no_findings"])


def _findings(analysis: Mapping[str, Any], t: Texts) -> list[tuple[str, str]]:
    """Line and message of everything that was found: the problem's patterns where they match, and lint."""
    patterns = [
        (match["line"], pattern["message"] or pattern["id"])
        for pattern in analysis.get("patterns") or ()
        for match in pattern["matches"]
    ]
    lint = [(found["line"], t["lint"].get(found["rule"], found["message"])) for found in analysis.get("lint") or ()]
    return [(str(line), str(message)) for line, message in sorted(patterns) + lint]


def _review(review: Mapping[str, Any] | None, t: Texts) -> Iterator[Html]:
    if review is None:
        yield el("p", t["no_review"])
        return
    yield el("p", t["review_help"], class_="quiet")
    yield el("p", review["summary"], dir="auto")
    for name in ("strengths", "weaknesses"):
        if review[name]:
            yield el("h3", t[name])
            yield el("ul", *(_said(remark, t) for remark in review[name]))
    if review["advice"]:
        yield el("h3", t["advice"])
        yield el("ul", *(el("li", advice, dir="auto") for advice in review["advice"]))


def _said(remark: Mapping[str, Any], t: Texts) -> Html:
    place = t["line_n"].format(line=remark["line"])
    quote = (
        joined(el("span", place, class_="quiet small"), " ", el("code", remark["quote"])) if remark["quote"] else None
    )
    return el("li", el("span", remark["text"], dir="auto"), " ", quote)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int]) -> Html:
    def cells(tag: str, values: Sequence[str], **attributes: str) -> Iterator[Html]:
        for place, value in enumerate(values):
            yield el(tag, value, **attributes, **({"class_": "n"} if place in numbers else {}))

    return el(
        "table",
        el("caption", caption),
        el("thead", el("tr", *cells("th", columns, scope="col"))),
        el("tbody", *(el("tr", *cells("td", row)) for row in rows)),
    )


def _cut(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
