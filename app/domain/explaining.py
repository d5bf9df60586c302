"""How every published number of a submission came about: made again from raw evidence, and held against what was told.

The evidence is what single judges, runs and functions left behind; what the nodes of the evaluation made of it, and
what was published, are only compared with. So a figure that was changed anywhere does not go unseen. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from app.domain.explained_prompts import TurnEvidence, explain_marks, explain_turn, number
from app.domain.final_scores import COMPONENTS, Component, Override, aggregate, evidence_of
from app.domain.grading import MeasuredRun, compare
from app.domain.scoring import CaseGroup, CasesPassed, Criterion, ScorePolicy, Unscored
from app.domain.submission import Node, Outcome

_CLOSE = 1e-9
_NOWHERE = "\x00"
Value = float | str | None


@dataclass(frozen=True, slots=True)
class Line:
    """One number (or word), how it is made, and what was published of it, by where that was."""

    name: str
    arithmetic: str
    value: Value
    published: Mapping[str, Value]

    @property
    def differs(self) -> list[str]:
        """Where something else was published."""
        return [place for place, told in self.published.items() if not _same(self.value, told)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvidence:
    """What an evaluation rests on.

    Attributes:
        turns: by the turn's number.
        panel: each judge's marks, by sample.
        cases: the candidate's run of each test case that was graded; ``None`` where there is none.
        measured: the runs that count for running time.
        overrides: what people had set when it was aggregated.
    """

    turns: Mapping[int, TurnEvidence]
    panel: Mapping[int, Mapping[Criterion, int]]
    cases: Sequence[Mapping[str, Any]] | None
    measured: Sequence[MeasuredRun]
    overrides: Mapping[Component, Override]


def explain(
    policy: ScorePolicy, steps: Mapping[Node, Outcome], raw: RawEvidence, published: Mapping[str, Mapping[str, Any]]
) -> list[Line]:
    """Every number, in the order in which they build on each other.

    Args:
        policy: the pinned one.
        steps: what came of the evaluation's nodes.
        raw: what they came of.
        published: ``final_scores`` and ``turn_scores`` by where they stand; a place may hold a part of them.
    """
    again, lines = dict(steps), []
    finals = {place: told["final_scores"] for place, told in published.items()}
    turns = {place: told["turn_scores"] for place, told in published.items() if "turn_scores" in told}
    if (entries := _entries(steps)) is not None:
        again[Node.TURNS], told = _turns(steps[Node.TURNS], entries, raw)
        lines += [_with(line, {p: each.get(name, {}).get("score") for p, each in turns.items()}) for name, line in told]
    # What is missing is missing: a single judge that could be read, say, makes no marks.
    if raw.panel and any(mark is not None for mark in (steps[Node.PANEL].value or {}).get("marks", {}).values()):
        again[Node.PANEL], line = _panel(steps[Node.PANEL], raw.panel)
        lines.append(line)
    if raw.cases is not None:
        again[Node.TESTS] = _tests(steps[Node.TESTS], raw)
    if Node.ANALYSIS in steps:
        again[Node.ANALYSIS] = _analysis(steps[Node.ANALYSIS])
    result = aggregate(policy, again, raw.overrides)
    return lines + list(_results(policy, again, result, raw, finals))


def _with(line: Line, published: Mapping[str, Value]) -> Line:
    return replace(line, published={**line.published, **published})


def _entries(steps: Mapping[Node, Outcome]) -> Sequence[Mapping[str, Any]] | None:
    return ((steps[Node.TURNS].value if Node.TURNS in steps else None) or {}).get("turns")


def _turns(
    outcome: Outcome, entries: Sequence[Mapping[str, Any]], raw: RawEvidence
) -> tuple[Outcome, list[tuple[str, Line]]]:
    """The prompts' scores once more, with a line for each by the turn's number."""
    made, lines = [], []
    for entry in entries:
        explained = explain_turn(entry, raw.turns.get(entry["turn"], TurnEvidence()))
        counts = explained.value is not None or entry["score"] is None
        made.append(
            {**entry, "score": explained.value} if counts else {**entry, "score": None, "reason": "no evidence"}
        )
        line = Line(
            f"turn {entry['turn']}", explained.arithmetic, explained.value, {"evaluation_steps.turns": entry["score"]}
        )
        if explained.misread:
            line = _with(line, {"judge_calls": f"says {explained.misread}"})
        lines.append((str(entry["turn"]), line))
    return replace(outcome, value={**outcome.value, "turns": made}), lines


def _panel(outcome: Outcome, judges: Mapping[int, Mapping[Criterion, int]]) -> tuple[Outcome, Line]:
    marks = {c.value: float(median(marks[c] for marks in judges.values())) for c in Criterion}
    said = {"evaluation_steps.panel": _words((outcome.value or {}).get("marks") or {})}
    line = Line("panel's medians", explain_marks(judges), _words(marks), said)
    return replace(outcome, value={**(outcome.value or {}), "marks": marks}), line


def _words(marks: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {'–' if mark is None else number(mark)}" for name, mark in sorted(marks.items()))


def _tests(outcome: Outcome, raw: RawEvidence) -> Outcome:
    stored = outcome.value or {}
    measured = stored.get("performance") or {}
    if raw.measured and measured.get("ratio") is not None:
        again = compare(
            raw.measured,
            reference_language=measured["reference_language"],
            candidate_startup_ms=measured["candidate_startup_ms"],
            reference_startup_ms=measured["reference_startup_ms"],
        )
        measured = {**measured, "ratio": again.ratio, "floor_ms": again.floor_ms, "told_ratio": measured["ratio"]}
    return replace(outcome, value={**stored, "cases": list(raw.cases or ()), "performance": measured})


def _analysis(outcome: Outcome) -> Outcome:
    stored = outcome.value or {}
    functions = stored.get("functions") or []
    if stored.get("mean_complexity") is None or len(functions) != stored.get("function_count"):
        return outcome
    mean = math.fsum(function["complexity"] for function in functions) / len(functions)
    return replace(outcome, value={**stored, "mean_complexity": mean})


def _results(
    policy: ScorePolicy,
    steps: Mapping[Node, Outcome],
    result: Mapping[str, Any],
    raw: RawEvidence,
    told: Mapping[str, Mapping[str, Any]],
) -> Iterator[Line]:
    final, parts = result["final_scores"], result["final_scores"]["prompt"]

    def line(name: str, arithmetic: str, value: Value, *path: str) -> Line:
        return Line(name, arithmetic, value, _where(told, path))

    def score(component: Component, arithmetic: str) -> Line:
        override = raw.overrides.get(component)
        if override is not None:
            machine = final["components"][component]["machine_score"]
            arithmetic = (
                f"set by {override.person} ({override.reason}); the machine's: {arithmetic} = {number(machine)}"
            )
        found = line(component, arithmetic, final[f"{component}_score"], f"{component}_score")
        again = _where(told, ("components", component, "score"))
        return _with(found, {f"{place}.components": value for place, value in again.items()})

    holistic, conversation, prompt = policy.holistic_weights, policy.conversation_weights, policy.prompt_weights
    marks = evidence_of(steps).marks
    summed = " + ".join(f"{number(w)} · {c} {_mark(marks[c])}" for c, w in holistic.items())
    per_mark = number(policy.points_per_mark)
    yield line("holistic", f"({summed}) · {per_mark}", parts["holistic"], "prompt", "holistic")
    yield line("turns", _mean_of(result["turn_scores"]), parts["turn_mean"], "prompt", "turn_mean")
    yield line("session R4", f"{_mark(marks[Criterion.R4])} · {per_mark}", parts["session_r4"], "prompt", "session_r4")
    yield score(
        "prompt",
        f"{number(prompt['conversation'])} · ({number(conversation['holistic'])} · {number(parts['holistic'])}"
        f" + {number(conversation['turns'])} · {number(parts['turn_mean'])})"
        f" + {number(prompt['session_r4'])} · {number(parts['session_r4'])}",
    )
    yield line("test cases", _verdicts(final["test_cases"]), _list(final["test_cases"]), "test_cases")
    yield score("correctness", _correctness(policy, steps))
    yield from _ratio_lines(steps, raw)
    yield score("performance", _performance(policy, steps, final["correctness_score"]))
    weights = policy.total_weights
    summed = " + ".join(f"{number(weights[n])} · {number(final[f'{n}_score'])}" for n in COMPONENTS if n in weights)
    yield score("total", summed)
    edges = ", ".join(f"{grade.name} from {number(grade.at_least)}" for grade in policy.grades)
    yield line("grade", edges, final["grade"], "grade")
    yield line("status", "PENDING_REVIEW where there is no total", final["status"], "status")


def _where(told: Mapping[str, Mapping[str, Any]], path: Sequence[str]) -> dict[str, Value]:
    """What stands under a path, by place; not every place has all of it."""
    found = {place: _at(scores, path) for place, scores in told.items()}
    return {place: value for place, value in found.items() if value != _NOWHERE}


def _at(scores: Mapping[str, Any], path: Sequence[str]) -> Value:
    found: Any = scores
    for name in path:
        if name not in found:
            return _NOWHERE
        found = found[name]
    return _list(found) if path[-1] == "test_cases" else found


def _mark(mark: float | Unscored) -> str:
    return "–" if isinstance(mark, Unscored) else number(mark)


def _mean_of(turns: Mapping[str, Mapping[str, Any]]) -> str:
    counted = [turn for turn in turns.values() if turn["status"] != "left_out"]
    if not counted:
        return "there is no prompt that counts"
    summed = " + ".join(number(turn["score"]) for turn in counted)
    left_out = len(turns) - len(counted)
    return f"({summed}) / {len(counted)}" + (f"; {left_out} left out" if left_out else "")


def _verdicts(cases: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(case["verdict"] for case in cases)
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "none"


def _list(cases: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(f"{case['index']}:{case['group']}:{case['verdict']}" for case in cases)


def _correctness(policy: ScorePolicy, steps: Mapping[Node, Outcome]) -> str:
    cases = evidence_of(steps).cases
    missing = [f"{group}: {found.reason}" for group, found in cases.items() if isinstance(found, Unscored)]
    known = {group: found for group, found in cases.items() if isinstance(found, CasesPassed)}
    if missing or not known:
        return "; ".join(missing) or "there is no test case"

    def summed(which: str) -> str:
        weighed: Mapping[CaseGroup, float] = policy.case_weights
        return " + ".join(
            f"{number(weighed[group])} · {number(getattr(found, which))} {group}" for group, found in known.items()
        )

    return f"100 · ({summed('passed')}) / ({summed('total')})"


def _ratio_lines(steps: Mapping[Node, Outcome], raw: RawEvidence) -> Iterator[Line]:
    measured = ((steps[Node.TESTS].value if Node.TESTS in steps else None) or {}).get("performance") or {}
    if "told_ratio" not in measured:
        return
    sides = {}
    for side in ("candidate", "reference"):
        sums: dict[int, float] = {}
        for run in raw.measured:
            if run.program == side:
                sums[run.repetition] = sums.get(run.repetition, 0.0) + run.cpu_ms
        startup = len({run.index for run in raw.measured}) * median(measured[f"{side}_startup_ms"])
        listed = ", ".join(number(sums[repetition], 3) for repetition in sorted(sums))
        sides[side] = f"{side} median({listed}) − {number(startup, 3)} ms of start-up"
    floor = number(measured["floor_ms"], 3)
    arithmetic = f"({sides['candidate']}) / ({sides['reference']}), each no less than {floor} ms"
    yield Line("ratio", arithmetic, measured["ratio"], {"evaluation_steps.tests": measured["told_ratio"]})


def _performance(policy: ScorePolicy, steps: Mapping[Node, Outcome], correctness: float | None) -> str:
    evidence = evidence_of(steps)
    if correctness == 0:
        return "correctness is 0"
    ratio, complexity, speed = evidence.ratio, evidence.complexity, policy.speed
    if isinstance(ratio, Unscored):
        return f"not measured: {ratio.reason}"
    if isinstance(complexity, Unscored):
        return f"no complexity: {complexity.reason}"
    points = policy.running_time(ratio).value
    factor = next(step.factor for step in policy.complexity if complexity <= step.at_most + _CLOSE)
    scale = f"ratio {number(ratio)} from {number(speed.full_until)} to {number(speed.none_from)} → {number(points)}"
    return f"{scale}; · {number(factor)} for a mean complexity of {number(complexity)}"


def _same(value: Value, told: Value) -> bool:
    if isinstance(value, int | float) and isinstance(told, int | float):
        return math.isclose(value, told, rel_tol=0, abs_tol=_CLOSE)
    return value == told
