"""Rubrics: what each criterion asks of a prompt, and what every mark looks like, in the exam's language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from app.domain.documents import NAME, DocumentError, content_hash
from app.domain.scoring import HIGHEST_MARK, LOWEST_MARK, Criterion, Intent
from app.domain.strict_yaml import Section, read_yaml

Language = Literal["en", "ko"]
LANGUAGES: tuple[Language, ...] = ("en", "ko")

_MARKS = range(LOWEST_MARK, HIGHEST_MARK + 1)


@dataclass(frozen=True, slots=True)
class CriterionText:
    """One criterion for a judge to read. ``anchors`` says what a prompt is like that earns a 1, a 2 … a 5."""

    title: str
    question: str
    anchors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RubricText:
    """A rubric in one language: every criterion, and for every intent how to read them there."""

    criteria: Mapping[Criterion, CriterionText]
    hints: Mapping[Intent, str]

    def markdown(self, order: Iterable[Criterion] = tuple(Criterion), *, hints: bool = True) -> str:
        """The criteria in this order and then the hints by intent, as a judge's prompt holds them."""
        parts = []
        for criterion in order:
            text = self.criteria[criterion]
            anchors = [f"- {mark}: {anchor}" for mark, anchor in zip(_MARKS, text.anchors, strict=True)]
            parts.append("\n".join([f"### {criterion} · {text.title}", text.question, *anchors]))
        if hints:
            parts.append("\n".join(f"- {intent}: {hint}" for intent, hint in self.hints.items()))
        return "\n\n".join(parts)


@dataclass(frozen=True, slots=True)
class Rubric:
    """A rubric in one language or more. ``hash`` names it; ``name`` is for people."""

    name: str
    hash: str
    texts: Mapping[Language, RubricText]

    @classmethod
    def parse(cls, text: str) -> Rubric:
        """Read a rubric's YAML.

        Raises:
            DocumentError: with every problem and where it is.
        """
        what = "The rubric cannot be used"
        top = read_yaml(text, what, ("kind", "name"), LANGUAGES)
        if "kind" in top and not top.is_word("kind", "rubric"):
            top.problem("kind", "must be rubric")
        name = top.text("name", pattern=NAME)
        texts = {
            language: _read_text(top.section(language, ("criteria", "hints")))
            for language in LANGUAGES
            if language in top
        }
        if not texts:
            top.problem("", f"must have a text in one language at least: {', '.join(LANGUAGES)}")
        top.finish(what)
        return cls(name, content_hash(text), texts)

    def text(self, language: Language) -> RubricText:
        """The rubric in a language.

        Raises:
            DocumentError: it has none in that language.
        """
        if language not in self.texts:
            raise DocumentError(f"The rubric {self.name} has no text in {language}, only in {', '.join(self.texts)}")
        return self.texts[language]


def _read_text(section: Section) -> RubricText:
    criteria = section.section("criteria", list(Criterion))
    hints = section.section("hints", list(Intent))
    return RubricText(
        {
            criterion: _read_criterion(criteria.section(criterion, ("title", "question", "anchors")))
            for criterion in Criterion
        },
        {intent: hints.text(intent) for intent in Intent},
    )


def _read_criterion(section: Section) -> CriterionText:
    written = section.section("anchors", [str(mark) for mark in _MARKS])
    anchors = tuple(written.text(str(mark)) for mark in _MARKS)
    for place, anchor in enumerate(anchors):
        if anchor and anchor in anchors[:place]:
            same = anchors.index(anchor) + 1
            written.problem(str(place + 1), f"says the same as {same}, so that no judge can tell them apart")
    return CriterionText(section.text("title"), section.text("question"), anchors)
