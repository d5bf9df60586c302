"""All kinds of documents alike: reading one, telling its kind, and what two of them differ in by meaning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from app.domain.documents import (
    KINDS,
    DocumentError,
    DocumentKind,
    DocumentProblem,
    content_hash,
    shipped,
    shipped_names,
)
from app.domain.judge_prompt import SYSTEM_LINE, USER_LINE, JudgePrompt
from app.domain.rubric import Rubric
from app.domain.scoring import ScorePolicy
from app.domain.strict_yaml import declared_kind

Document = Rubric | JudgePrompt | ScorePolicy
_Key = TypeVar("_Key", bound=str)


@dataclass(frozen=True, slots=True)
class Difference:
    """What stands at ``path`` in two documents; ``None`` where it is not there."""

    path: str
    before: str | None
    after: str | None


def read_document(kind: DocumentKind, text: str) -> Document:
    """Read a document of a kind.

    Raises:
        DocumentError: with every problem and where it is.
    """
    if kind == "rubric":
        return Rubric.parse(text)
    return JudgePrompt.parse(text) if kind == "prompt" else ScorePolicy.parse(text)


def kind_of(text: str) -> DocumentKind:
    """The kind that a document says it is of: a prompt by the lines above its parts, the others by ``kind:``.

    Raises:
        DocumentError: it does not say.
    """
    if any(line.strip() in (SYSTEM_LINE, USER_LINE) for line in text.split("\n")):
        return "prompt"
    declared = declared_kind(text)
    for kind in KINDS:
        if declared == kind and kind != "prompt":
            return kind
    what = f"must say `kind: rubric` or `kind: policy`, or have the line {SYSTEM_LINE!r} of a judge's prompt"
    raise DocumentError("It cannot be told what kind of document this is", (DocumentProblem("kind", what),))


def name_of(document: Document) -> str | None:
    """The name that a document gives itself; a prompt gives itself none."""
    return None if isinstance(document, JudgePrompt) else document.name


def find_shipped(name_or_hash: str) -> tuple[DocumentKind, str, str] | None:
    """Kind, name and text of what comes with the program under a name, or under a hash or its first 8 signs or more."""
    for kind in KINDS:
        for name in shipped_names(kind):
            text = shipped(kind, name)
            if name == name_or_hash or (len(name_or_hash) >= 8 and content_hash(text).startswith(name_or_hash)):
                return kind, name, text
    return None


def differences(before: Document, after: Document) -> list[Difference]:
    """What two documents differ in, in the order of the first one; comments, layout and names are no difference.

    Raises:
        ValueError: they are of two kinds.
    """
    if type(before) is not type(after):
        raise ValueError("documents of two kinds cannot be compared")
    old, new = _facts(before), _facts(after)
    paths = [*old, *(path for path in new if path not in old)]
    return [Difference(path, old.get(path), new.get(path)) for path in paths if old.get(path) != new.get(path)]


def _facts(document: Document) -> dict[str, str]:
    """All that a document says, by path."""
    if isinstance(document, ScorePolicy):
        return _facts_of_policy(document)
    if isinstance(document, JudgePrompt):
        return {"system": document.system, "user": document.user}
    facts = {}
    for language, text in document.texts.items():
        for criterion, of_criterion in text.criteria.items():
            path = f"{language}.criteria.{criterion}"
            facts[f"{path}.title"] = of_criterion.title
            facts[f"{path}.question"] = of_criterion.question
            for mark, anchor in enumerate(of_criterion.anchors, start=1):
                facts[f"{path}.anchors.{mark}"] = anchor
        facts |= {f"{language}.hints.{intent}": hint for intent, hint in text.hints.items()}
    return facts


def _facts_of_policy(policy: ScorePolicy) -> dict[str, str]:
    facts = {
        "samples": f"{policy.samples}",
        "another_sample_at_spread": f"{policy.another_sample_at_spread}",
        "all_samples_where": _doubts(policy),
        "panel_judges": f"{policy.panel_judges}",
    }
    for intent, weights in policy.criteria.items():
        facts |= _numbers(f"criteria.{intent}", weights)
    facts["points_per_mark"] = _exact(policy.points_per_mark)
    facts["refused"] = "left_out" if policy.refused_points is None else _exact(policy.refused_points)
    facts["pasted_problem"] = _exact(policy.pasted_problem_points)
    facts |= _numbers("holistic", policy.holistic_weights)
    facts |= _numbers("conversation", policy.conversation_weights)
    facts |= _numbers("prompt", policy.prompt_weights)
    facts |= _numbers("total", policy.total_weights)
    facts |= _numbers("correctness", policy.case_weights)
    facts["performance.full_until"] = _exact(policy.speed.full_until)
    facts["performance.none_from"] = _exact(policy.speed.none_from)
    for step in policy.complexity:
        place = "above" if math.isinf(step.at_most) else f"at_most {_exact(step.at_most)}"
        facts[f"complexity[{place}]"] = _exact(step.factor)
    facts |= {f"grades.{grade.name}": f"at_least {_exact(grade.at_least)}" for grade in policy.grades}
    facts["grade_edge"] = _exact(policy.grade_edge_points)
    return facts | _numbers("rounding", policy.rounding)


def _doubts(policy: ScorePolicy) -> str:
    if policy.all_samples_where is None:
        return "always"
    return ", ".join(sorted(policy.all_samples_where)) or "never"


def _numbers(path: str, values: Mapping[_Key, float]) -> dict[str, str]:
    return {f"{path}.{key}": _exact(value) for key, value in values.items()}


def _exact(number: float) -> str:
    """Not to all digits: the same proportions may be written in two ways."""
    return f"{number:.12g}"
