"""Judgements and what a re-run would change, as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from app.application.services.evaluation_service import Change
    from app.infrastructure.persistence.models import EvaluationRun

_SAME = 1e-9


def compare(change: Change) -> tuple[str, str]:
    """What kind of change it is, and the line that tells of it, empty where nothing changes."""
    run, before = change.run, change.before
    where = f"session {run.session_id} turn {run.turn}:"
    if run.result is None:
        return "waiting", ""
    old: dict[str, Any] = (before.result if before is not None else None) or {"score": None, "criteria": []}
    was, now = old["score"], run.result["score"]
    moved = ", ".join(_moved(old["criteria"], run.result["criteria"]))
    line = f"{where} {_points(was)} → {_points(now)}  {moved}".rstrip()
    if now is None:
        reason = f"{where} {_points(was)} → unscored: {run.result['reason']}"
        return ("the same", "") if was is None else ("without a score now", reason)
    if was is None:
        return "scored now", line
    if abs(now - was) <= _SAME:
        return "the same", line if moved else ""
    return ("higher" if now > was else "lower"), line


def _moved(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    marks = {entry["criterion"]: entry["score"] for entry in before}
    return [
        f"{entry['criterion']} {_mark(marks.get(entry['criterion']))} → {_mark(entry['score'])}"
        for entry in after
        if marks.get(entry["criterion"]) != entry["score"]
    ]


def _points(score: float | None) -> str:
    return "unscored" if score is None else f"{score:.1f}"


def _mark(mark: float | None) -> str:
    return "–" if mark is None else f"{mark:g}"


def show_run(run: EvaluationRun, *, whole: bool) -> None:
    """Print one run; ``whole``: with every criterion."""
    told = "" if run.published else "  not published"
    result = run.result or {"score": None, "status": "waiting", "reason": f"{run.tries} tries", "criteria": []}
    score = _points(result["score"]) if result["status"] == "scored" else f"{result['status']}: {result['reason']}"
    typer.secho(f"turn {run.turn} revision {run.revision} ({run.cause})  {score}{told}", bold=whole)
    if not whole:
        return
    for entry in result["criteria"]:
        counts = "" if entry.get("counts", True) else "  (does not count)"
        typer.echo(f"  {entry['criterion']} {_mark(entry['score'])}{counts}  {entry['reason']}")
        if entry.get("quote"):
            typer.echo(f"     “{entry['quote']}”")
    if result.get("advice"):
        typer.echo(f"  {result['advice']}")
