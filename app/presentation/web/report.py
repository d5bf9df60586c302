"""A candidate's report: one page of HTML without scripts, which needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

from app.application.submissions.reporting import Remark, Report, ReportedTurn
from app.domain.rubric import Language
from app.presentation.web.html import Html, el, joined, text
from app.presentation.web.report_code import code_sections

HERE: Final = Path(__file__).parent
_COMPONENTS: Final = ("prompt", "correctness", "performance")

Texts = Mapping[str, Any]


@cache
def texts_of(language: Language) -> Texts:
    """What a report says in a language."""
    texts, lint = (
        yaml.safe_load((HERE / name).read_text(encoding="utf-8")) for name in ("report_texts.yaml", "report_lint.yaml")
    )
    return {**texts[language], "lint": lint.get(language, {})}


@cache
def style() -> str:
    """The style sheet that stands in every report."""
    return (HERE / "report.css").read_text(encoding="utf-8")


@cache
def content_security_policy() -> str:
    """Nothing is loaded, nothing runs, and no style counts but our own."""
    digest = base64.b64encode(hashlib.sha256(style().encode()).digest()).decode()
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def render_report(report: Report, language: Language) -> str:
    """The whole page."""
    t = texts_of(language)
    title = t["title"].format(submission=report.submission_id)
    head = joined(
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{text(content_security_policy())}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="robots" content="noindex">'),
        el("title", title),
        Html(f"<style>{style()}</style>"),
    )
    body = joined(
        el("header", el("h1", title), el("p", _facts(report, t), class_="quiet"), _total(report, t)),
        el("main", *_sections(report, t)),
        el("footer", el("p", _versions(report, t), class_="quiet small")),
    )
    return f'<!DOCTYPE html>\n<html lang="{language}"><head>{head}</head><body>{body}</body></html>\n'


def points(score: float | None, t: Texts) -> str:
    """A score for people: two digits at most."""
    return t["open"] if score is None else plain(score, 2)


def plain(value: float, digits: int) -> str:
    """A number without needless zeros."""
    shown = f"{value:.{digits}f}"
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _facts(report: Report, t: Texts) -> str:
    facts: str = t["facts"].format(exam=report.exam_id, language=report.language, revision=report.revision)
    return facts


def _versions(report: Report, t: Texts) -> str:
    moment = report.moment.strftime("%Y-%m-%d %H:%M")
    line: str = t["versions"].format(**report.versions, revision=report.revision, moment=moment)
    return line


def _total(report: Report, t: Texts) -> Html:
    final = report.final
    if final["total_score"] is None:
        missing = [name for name in (*_COMPONENTS, "total") if final["components"][name]["score"] is None]
        reasons = el("ul", *(el("li", t["missing"][name]) for name in missing))
        notice = (el("h2", t["pending_title"]), el("p", t["pending"]), el("h3", t["missing_title"]), reasons)
        return el("section", *notice, class_="notice")
    total = el("span", t["total"], " ", el("strong", points(final["total_score"], t)), " ", t["of_hundred"])
    grade = el("span", t["grade"], " ", el("strong", final["grade"]))
    return joined(el("p", total, grade, class_="total"), _by_person(final["components"]["total"], t))


def _sections(report: Report, t: Texts) -> Iterator[Html]:
    yield el("h2", t["parts_title"])
    yield _parts(report, t)
    yield el("h2", t["prompts_title"])
    yield el("p", t["prompts_help"], class_="quiet")
    for turn in report.turns:
        yield _turn(turn, t)
    if report.session:
        yield el("h2", t["session_title"])
        yield _remarks(report.session, t["session_title"], t, with_turn=True)
    yield from code_sections(report, t)


def _parts(report: Report, t: Texts) -> Html:
    rows = []
    for name in _COMPONENTS:
        part = report.final["components"][name]
        rows.append(
            el(
                "tr",
                el("th", t["parts"][name], scope="row", role="rowheader"),
                el("td", points(part["score"], t), class_="n", role="cell", data_label=t["score"]),
                el("td", f"{plain(100 * report.weights[name], 1)} %", class_="n", role="cell", data_label=t["weight"]),
                el("td", _made(report, name, t), _by_person(part, t), role="cell", data_label=t["consists"]),
                role="row",
            )
        )
    return table(t["parts_title"], (t["part"], t["score"], t["weight"], t["consists"]), rows)


def table(caption: str, columns: Sequence[str], rows: Sequence[Html]) -> Html:
    """A table whose rows become blocks on a narrow screen; the roles keep it a table for those who hear it."""
    heads = el("tr", *(el("th", name, scope="col", role="columnheader") for name in columns), role="row")
    return el(
        "table",
        el("caption", caption),
        el("thead", heads, role="rowgroup"),
        el("tbody", *rows, role="rowgroup"),
        class_="wide",
        role="table",
    )


def _made(report: Report, name: str, t: Texts) -> str:
    final, made = report.final, ""
    if final["components"][name]["status"] == "missing":
        made = t["missing"][name]
    elif name == "prompt":
        made = _prompt_made(report, t)
    elif name == "correctness":
        counts = [case["verdict"] for case in final["test_cases"]]
        made = t["correctness_made"].format(passed=counts.count("AC"), total=len(counts))
    elif not final["correctness_score"]:
        made = t["performance_zero"]
    elif report.speed["factor"] is None:
        made = t["performance_open"]
    else:
        ratio, factor = plain(report.speed["ratio"], 2), plain(report.speed["factor"], 2)
        made = t["performance_made"].format(ratio=ratio, factor=factor)
    return made


def _prompt_made(report: Report, t: Texts) -> str:
    parts = report.final["prompt"]
    shares = {name: f"{plain(100 * share, 1)} %" for name, share in report.prompt_shares.items()}
    made: str = t["prompt_made"].format(
        holistic=points(parts["holistic"], t),
        turns=points(parts["turn_mean"], t),
        r4=points(parts["session_r4"], t),
        **shares,
    )
    return made


def _by_person(part: Mapping[str, Any], t: Texts) -> Html | None:
    if part["status"] != "overridden":
        return None
    said = [t["set_by_person"].format(reason=part["reason"])]
    if part["machine_score"] is not None:
        said.append(t["machine"].format(score=points(part["machine_score"], t)))
    return el("p", " ".join(said), class_="quiet")


def _turn(turn: ReportedTurn, t: Texts) -> Html:
    name = t["prompt_n"].format(number=turn.number)
    intent = f" · {t['intents'][turn.intent]}" if turn.intent in t["intents"] else ""
    score = f" · {points(turn.score, t)}" if turn.score is not None else ""
    note = {"left_out": t["not_counted"], "missing": t["turn_open"], "overridden": t["turn_person"]}.get(turn.status)
    if note is None and not turn.remarks:
        note = t["turn_plain"]
    return el(
        "section",
        el("h3", f"{name}{intent}{score}"),
        el("blockquote", *_marked(turn.prompt, turn.spans), dir="auto"),
        el("p", note) if note else None,
        _remarks(turn.remarks, name, t) if turn.remarks else None,
        el("p", el("strong", t["advice"]), ": ", el("span", turn.advice, dir="auto")) if turn.advice else None,
    )


def _marked(prompt: str, spans: Sequence[tuple[int, int]]) -> Iterator[Html | str]:
    end = 0
    for start, stop in spans:
        yield prompt[end:start]
        yield el("mark", prompt[start:stop])
        end = stop
    yield prompt[end:]


def _remarks(remarks: Sequence[Remark], caption: str, t: Texts, *, with_turn: bool = False) -> Html:
    rows = []
    for remark in remarks:
        where = f" ({t['said_where'].format(turn=remark.turn)})" if with_turn else ""
        quote = el("q", remark.quote, dir="auto") if remark.quote else None
        aside = None if remark.counts else el("span", f" ({t['counts_not']})", class_="quiet small")
        rows.append(
            el(
                "tr",
                el("th", remark.title, aside, scope="row", role="rowheader"),
                el("td", f"{plain(remark.mark, 1)} / 5", class_="n", role="cell", data_label=t["mark"]),
                el("td", quote, el("span", remark.reason, dir="auto"), where, role="cell", data_label=t["why"]),
                el("td", remark.anchor, role="cell", data_label=t["looks_like"]),
                role="row",
            )
        )
    return table(caption, (t["criterion"], t["mark"], t["why"], t["looks_like"]), rows)
