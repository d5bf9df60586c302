"""A package's statement as Markdown. Of LaTeX, what statements usually consist of is rewritten; formulas stay."""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.infrastructure.packages.files import PackageFiles
from app.infrastructure.packages.findings import Findings
from app.infrastructure.packages.metadata import Metadata

_FOLDERS = ("statement", "problem_statement")
_LANGUAGES = ("en", "ko")
_FILE = re.compile(r"(?:statement|problem_statement)/problem(?:\.([A-Za-z-]+))?\.(md|tex|pdf)")
_SAMPLES = re.compile(r"\{\{(?:nextsample|remainingsamples)\}\}|\\(?:nextsample|remainingsamples)\b")
_NAME = re.compile(r"\\problemname\s*\{([^{}]*)\}")
_FIGURE = re.compile(
    r"\\(?:illustration\s*\{[^{}]*\}\s*\{[^{}]*\}\s*\{(?:[^{}]|\{[^{}]*\})*\}|includegraphics(?:\[[^\]]*\])?\s*\{[^{}]*\})"
)
_PLAIN = re.compile(r"^%%\s*plainproblemname:\s*(.+)$", re.MULTILINE)
_STYLES = {
    **dict.fromkeys(("textbf", "bf"), "**"),
    **dict.fromkeys(("textit", "emph", "it", "textsl"), "*"),
    **dict.fromkeys(("texttt", "tt", "t"), "`"),
    **dict.fromkeys(("textsc", "underline", "textrm", "mbox"), ""),
}
_SPACES = {"~": " ", r"\,": " ", r"\ ": " ", r"\noindent": "", r"\ldots": "…", r"\dots": "…", r"\textellipsis": "…"}
_SIGNS = {r"\%": "%", r"\&": "&", r"\#": "#", r"\_": "_", r"\$": r"\$", "``": "“", "''": "”", "---": "—", "--": "–"}
_LEFT = re.compile(r"\\[A-Za-z]+")


def read_statements(files: PackageFiles, metadata: Metadata, findings: Findings) -> tuple[dict[str, str], str | None]:
    """Statements by language, and the name that one of them gives to the problem."""
    found: dict[str, str] = {}
    name = None
    passed_over = []
    for path in [path for folder in _FOLDERS for path in files.under(folder)]:
        match = _FILE.fullmatch(path)
        if match is None:
            continue
        language, kind = match[1] or "en", match[2]
        if language not in _LANGUAGES or kind == "pdf":
            passed_over.append(path)
            continue
        if language in found and kind == "tex":
            continue  # the same in Markdown
        text = findings.text(files, path)
        if kind == "tex":
            name = _name_in(text) or name
            text = _markdown(text, path, findings)
        found[language] = metadata.filled_in(_SAMPLES.sub("", text)).strip() + "\n"
    for path in passed_over:
        findings.warn(path, "is not imported: statements are Markdown or LaTeX, in English or Korean")
    if not found:
        findings.fault(_FOLDERS[metadata.newer is False], "has no problem.en.md, .ko.md, .en.tex or .ko.tex")
    return found, name


def title_of(names: Mapping[str, str], of_statement: str | None, of_package: str) -> str:
    """The problem's name: in English if there is one, else in Korean, else what there is."""
    for language in ("en", "", "ko"):
        if names.get(language):
            return names[language]
    return next(iter(names.values()), None) or of_statement or of_package


def _name_in(text: str) -> str | None:
    found = _PLAIN.search(text) or _NAME.search(text)
    return found[1].strip() or None if found else None


def _markdown(text: str, path: str, findings: Findings) -> str:
    text, verbatim = _set_aside(
        _without_comments(text), r"\\begin\{(verbatim|lstlisting)\}(?:\[[^\]]*\])?\n?(.*?)\\end\{\1\}"
    )
    text, formulas = _set_aside(text, r"(\$\$|\$)(?!\$)((?:\\.|[^$\\])+?)\1")
    text = _NAME.sub("", text)
    text, figures = _FIGURE.subn("", text)
    if figures:
        findings.warn(path, f"{figures} pictures are not imported")
    text = re.sub(r"\\(?:sub)*section\*?\s*\{([^{}]*)\}", r"\n## \1\n", text)
    text = re.sub(r"\\begin\{(Input|Output|Interaction)\}", r"\n## \1\n", text)
    text = re.sub(
        r"\\end\{(?:Input|Output|Interaction|center|figure|quote)\}|\\begin\{(?:center|figure|quote)\}(?:\[[^\]]*\])?",
        "",
        text,
    )
    text = _lists(text)
    for _ in range(3):  # one within another
        text = re.sub(r"\\([a-z]+)\s*\{([^{}\\]*)\}", _styled, text)
    text = re.sub(r"\\(?:url)\s*\{([^{}]*)\}", r"<\1>", text)
    text = re.sub(r"\\href\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"[\2](\1)", text)
    for before, after in {r"\\": "\n", **_SIGNS, **_SPACES}.items():
        text = text.replace(before, after)
    if left := sorted(set(_LEFT.findall(text))):
        findings.warn(path, f"commands that stay as they are: {', '.join(left[:10])}; look at the statement")
    for place, formula in enumerate(formulas):
        text = text.replace(_mark("f", place), formula)
    for place, block in enumerate(verbatim):
        text = text.replace(_mark("v", place), block)
    return re.sub(r"\n{3,}", "\n\n", text)


def _without_comments(text: str) -> str:
    return re.sub(r"(?m)(?<!\\)%.*$\n?", "", text)


def _mark(kind: str, place: int) -> str:
    return f"\x02{kind}{place}\x03"


def _set_aside(text: str, pattern: str) -> tuple[str, list[str]]:
    """What must stay as it is, taken out and marked: formulas as they are, listings as Markdown's."""
    kept: list[str] = []

    def keep(found: re.Match[str]) -> str:
        formula = found[1].startswith("$")
        kept.append(found[0] if formula else f"\n```\n{found[2].rstrip()}\n```\n")
        return _mark("f" if formula else "v", len(kept) - 1)

    return re.sub(pattern, keep, text, flags=re.DOTALL), kept


def _styled(found: re.Match[str]) -> str:
    sign = _STYLES.get(found[1])
    return found[0] if sign is None else f"{sign}{found[2]}{sign}"


def _lists(text: str) -> str:
    lines: list[str] = []
    kinds: list[str] = []
    for line in text.split("\n"):
        for environment in re.findall(r"\\(?:begin|end)\{(?:itemize|enumerate)\}", line):
            if environment.startswith("\\begin"):
                kinds.append("1." if "enumerate" in environment else "-")
            elif kinds:
                kinds.pop()
        item = re.sub(r"\\(?:begin|end)\{(?:itemize|enumerate)\}(?:\[[^\]]*\])?", "", line)
        sign = "  " * max(0, len(kinds) - 1) + (kinds[-1] if kinds else "-")
        lines.append(re.sub(r"^\s*\\item\b\s*", f"{sign} ", item))
    return "\n".join(lines)
