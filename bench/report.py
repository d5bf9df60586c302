"""The figures as a table, and what they are held to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Figures = Mapping[str, Any]
_QUIET_PERCENT = 25.0


@dataclass(frozen=True)
class Goal:
    """One figure and its bounds. ``at_least``: more is better; otherwise less is.

    Attributes:
        part: the measurement it comes from.
        read: finds the figure in the part's result; ``None`` where this run did not go far enough to tell.
        must, aim: bounds; a missed ``must`` fails the run where that is asked for. ``None``: a figure to know.
        compared: the other side's figure, where there is one.
    """

    part: str
    what: str
    unit: str
    read: Callable[[Figures], float | None]
    must: float | None = None
    aim: float | None = None
    at_least: bool = False
    compared: Callable[[Figures], str] = lambda _: ""

    def verdict(self, figure: float | None) -> str:
        """What the figure means."""
        if figure is None:
            return "not tried"
        if self.must is None:
            return ""
        if self.aim is not None and self._within(figure, self.aim):
            return "aim"
        return "must" if self._within(figure, self.must) else "MISSED"

    def _within(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.at_least else figure <= bound

    def bound(self, value: float | None) -> str:
        """A bound as the table shows it."""
        return "" if value is None else f"{'≥' if self.at_least else '≤'} {value:g}"


def _held(figures: Figures) -> float | None:
    """Streams held; unknown where the last level tried was held and lies below the goal."""
    held = float(figures["held_streams"])
    return None if held == figures["highest_tried"] < 400 else held


GOALS = (
    Goal(
        "memory", "an idle connection", "kB", lambda f: f["ours"]["idle_kb"], must=40, aim=30,
        compared=lambda f: f"usual {f['usual']['idle_kb']:.0f}" if "usual" in f else "",
    ),
    Goal(
        "memory", "a running turn, besides", "kB", lambda f: f["ours"]["turn_kb"], must=60, aim=45,
        compared=lambda f: f"usual {f['usual']['turn_kb']:.0f}" if "usual" in f else "",
    ),
    Goal(
        "relay", "CPU per relayed delta", "µs", lambda f: f["ours_us"],
        compared=lambda f: f"usual {f['usual_us']:.0f}",
    ),
    Goal("relay", "… times below the usual way", "×", lambda f: f["ratio"], must=4, aim=6, at_least=True),
    Goal("relay", "… PostgreSQL's CPU per delta besides", "µs", lambda f: f["ours_postgres_us"]),
    Goal(
        "relay", "… times below, PostgreSQL counted as ours", "×", lambda f: f["ratio_with_postgres"], at_least=True
    ),
    Goal(
        "relay", "added latency per delta, p99", "ms", lambda f: f["ours_lag"]["p99_ms"],
        compared=lambda f: f"usual {f['usual_lag']['p99_ms']:.1f}",
    ),
    Goal(
        "first-token", "added time to first token, p50", "ms", lambda f: f["single"]["ours"]["p50_ms"],
        compared=lambda f: f"usual {f['single']['usual']['p50_ms']:.2f}",
    ),
    Goal(
        "first-token", "… p95", "ms", lambda f: f["single"]["ours"]["p95_ms"],
        compared=lambda f: f"usual {f['single']['usual']['p95_ms']:.2f}",
    ),
    Goal(
        "first-token", "… over a bare commit (median of pairs)", "ms", lambda f: f["single"]["over_bare_commit_ms"],
        must=4, compared=lambda f: f"commit {f['single']['bare_commit']['p50_ms']:.2f}",
    ),
    Goal(
        "first-token", "… against the usual way (median of pairs)", "×", lambda f: f["single"]["ratio_to_usual"],
        must=1,
    ),
    Goal(
        "first-token", "the same at 20 new turns/s, p50", "ms", lambda f: f["arriving"]["ours"]["p50_ms"],
        compared=lambda f: f"usual {f['arriving']['usual']['p50_ms']:.2f}",
    ),
    Goal(
        "first-token", "… p95", "ms", lambda f: f["arriving"]["ours"]["p95_ms"],
        compared=lambda f: f"usual {f['arriving']['usual']['p95_ms']:.2f}",
    ),
    Goal(
        "first-token", "… against the usual way (median of pairs)", "×", lambda f: f["arriving"]["ratio_to_usual"],
        must=1,
    ),
    Goal("latency", "streams held with p99 < 50 ms", "", _held, must=400, aim=500, at_least=True),
    Goal("turns", "turns stored", "/s", lambda f: f["turns_per_s"], must=150, aim=300, at_least=True),
    Goal(
        "turns",
        "… CPU of a turn and its callbacks, PostgreSQL's included",
        "ms",
        lambda f: f["cpu_ms_per_turn"]["server"] + f["cpu_ms_per_turn"]["postgres"],
    ),
    Goal("turns", "callbacks delivered", "/s", lambda f: f["callbacks_per_s"], must=60, aim=300, at_least=True),
    Goal(
        "callbacks", "both callbacks of a turn at Core, when idle, p50", "ms", lambda f: f["quiet"]["told"]["p50_ms"],
        must=150, aim=20, compared=lambda f: f"p95 {f['quiet']['told']['p95_ms']:.0f}",
    ),
    Goal(
        "callbacks", "deliveries of a backlog", "/s", lambda f: f["quiet"]["deliveries_per_s"],
        must=60, aim=300, at_least=True,
    ),
    Goal(
        "callbacks", "… to other sessions while 40,000 events of dead ones wait, p50 (median of pairs)", "× slower",
        lambda f: f["slower"]["told"], must=1.5, compared=lambda f: f"{f['waiting']['told']['p50_ms']:.1f} ms",
    ),
    Goal(
        "callbacks", "… a backlog of theirs then (median of pairs)", "× slower", lambda f: f["slower"]["deliveries"],
        must=1.5, compared=lambda f: f"{f['waiting']['deliveries_per_s']:.0f}/s",
    ),
    Goal(
        "callbacks", "… a turn's own transaction then (median of pairs)", "× slower",
        lambda f: f["slower"]["turn_end"], must=1.2, compared=lambda f: f"{f['waiting']['turn_end']['p50_ms']:.1f} ms",
    ),
    Goal("cancel", "cancel → provider closed, p50", "ms", lambda f: f["provider_closed"]["p50_ms"]),
    Goal("cancel", "… p99", "ms", lambda f: f["provider_closed"]["p99_ms"], must=250),
    Goal("elsewhere", "cancel on another process → closed, p99", "ms", lambda f: f["redis_up"]["p99_ms"], must=500),
    Goal("elsewhere", "… while Redis is away, p99", "ms", lambda f: f["redis_down"]["p99_ms"], must=500),
    Goal(
        "submissions", "streams' p99 beside submissions that are evaluated", "× slower", lambda f: f["slower"], must=2,
        compared=lambda f: f"{f['busy']['p99_ms']:.1f} ms, {f['quiet']['p99_ms']:.1f} without",
    ),
    Goal(
        "submissions", "… runs of candidates' programs then", "/s", lambda f: f["runs_per_s"], must=15, at_least=True,
        compared=lambda f: f"{f['scored']} scored in {f['took_s']:.0f} s",
    ),
    Goal(
        "judging", "added time to first token while every prompt is judged, p50", "ms",
        lambda f: f["judged"]["p50_ms"], compared=lambda f: f"not judged {f['plain']['p50_ms']:.2f}",
    ),
    Goal(
        "judging", "… against prompts that are not judged (median of rounds)", "×", lambda f: f["ratio"], must=1.25,
        aim=1.1, compared=lambda f: f"{f['judged_turns']} turns judged meanwhile",
    ),
    Goal("judging", "… CPU of a judgement, without PostgreSQL's", "ms", lambda f: f["cpu_ms_per_judgement"]),
    Goal(
        "soak", "memory after minutes of turns", "MB", lambda f: f["end_mb"],
        compared=lambda f: f"after the warm-up {f['warm_mb']:.1f}",
    ),
    Goal("soak", "… growth by a turn", "bytes", lambda f: f["slope_bytes_per_turn"]),
)  # fmt: skip


def missed(results: Mapping[str, Figures]) -> list[str]:
    """What fell short of a ``must``."""
    return [
        f"{goal.what}: {goal.read(results[goal.part]):.4g} {goal.unit} ({goal.bound(goal.must)})"
        for goal in GOALS
        if goal.part in results and goal.verdict(goal.read(results[goal.part])) == "MISSED"
    ]


def markdown(results: Mapping[str, Figures], machine: Mapping[str, Any]) -> str:
    """The report."""
    lines = [
        f"Measured on {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, "
        f"load {machine['load_before']:.1f} before the run. Server, provider, database, receiver and client share the "
        "cores; so ratios inside the run say more than any figure alone.",
        "",
        "| | figure | beside it | must | aim | reached |",
        "|---|---:|---|---|---|---|",
    ]
    for goal in GOALS:
        if goal.part in results:
            figures = results[goal.part]
            figure = goal.read(figures)
            shown = "–" if figure is None else f"{_number(figure)} {goal.unit}".rstrip()
            lines.append(
                f"| {goal.what} | {shown} | {goal.compared(figures)} | {goal.bound(goal.must)} | "
                f"{goal.bound(goal.aim)} | {goal.verdict(figure)} |"
            )
    if "latency" in results:
        lines += _levels(results["latency"])
    lines += _shares(results)
    return "\n".join(lines)


def _levels(figures: Figures) -> list[str]:
    lines = [
        "",
        "Added latency per delta. The lines *without it* are the provider's streams read directly: what the benchmark "
        "itself is late.",
        "",
        "| streams | p50 ms | p99 ms | max ms | of the rate | CPU µs a delta | PostgreSQL µs |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {level['streams']} | {level['p50_ms']:.1f} | {level['p99_ms']:.1f} | {level['max_ms']:.1f} | "
        f"{level['held']:.0%} | {level['server_us']:.0f} | {level['postgres_us']:.0f} |"
        for level in figures["levels"]
    ]
    lines += [
        f"| {level['streams']} without it | {level['p50_ms']:.1f} | {level['p99_ms']:.1f} | "
        f"{level['max_ms']:.1f} | {level['held']:.0%} | | |"
        for level in figures["direct"]
    ]
    return lines


def _shares(results: Mapping[str, Figures]) -> list[str]:
    """Who used the cores: shows whether the benchmark's own parts were the bottleneck."""
    rows: list[tuple[str, Mapping[str, float]]] = []
    if "relay" in results:
        figures = results["relay"]
        where = f"{figures['streams']} streams × {figures['rate']:g}/s"
        rows = [(where, figures["ours_cpu_percent"]), (f"{where}, usual way", figures["usual_cpu_percent"])]
    if "latency" in results:
        rows += [(f"{level['streams']} streams", level["cpu_percent"]) for level in results["latency"]["levels"]]
    if not rows:
        return []
    busiest = max(shares["others"] for _, shares in rows)
    names = ("server", "postgres", "provider", "client", "others")
    lines = ["", f"| % of one core | {' | '.join(names)} |", "|---|" + "---:|" * len(names)]
    lines += [f"| {where} | {' | '.join(f'{shares[name]:.0f}' for name in names)} |" for where, shares in rows]
    if busiest > _QUIET_PERCENT:
        lines += ["", f"Others used up to {busiest:.0f} % of a core: what is limited by time alone came out too low."]
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
