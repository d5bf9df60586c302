"""What a submission's evaluation is made of: its nodes, what came of each, and how far it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, Literal

from app.domain.waiting import DAY_S

SubmissionId = str | int
"""As Core has it; 7 and "7" are the same one, and it comes back with its JSON type."""


class Node(StrEnum):
    """The evaluation's steps; docs/submissions.md says what each does."""

    FREEZE = "freeze"
    TURNS = "turns"
    TESTS = "tests"
    ANALYSIS = "analysis"
    REVIEW = "review"
    PANEL = "panel"
    CHECKS = "checks"
    HOLD = "hold"
    AGGREGATE = "aggregate"
    TELL = "tell"


CAN_BE_MISSING: Final = frozenset({Node.TURNS, Node.TESTS, Node.ANALYSIS, Node.REVIEW, Node.PANEL})
"""Without what these bring there is a result, which people have to look at; without the others there is none."""
COMPONENTS: Final = (Node.TURNS, Node.TESTS, Node.ANALYSIS, Node.PANEL)
"""Nodes that scores are made of; the review is text."""

StepStatus = Literal["ok", "missing", "skipped"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step took: calls to a judge with their tokens, and milliseconds in all."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    ms: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a node; it is stored once and never changed.

    ``missing``: it cannot be had, for ``reason``. ``skipped``: there was nothing to do.
    """

    status: StepStatus
    value: Any = None
    reason: str | None = None
    evidence: Any = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    cost: Cost = Cost()

    @classmethod
    def missing(cls, reason: str, value: Any = None) -> Outcome:
        """There is none, and why."""
        return cls("missing", value, reason)

    @classmethod
    def skipped(cls, reason: str) -> Outcome:
        """Nothing was to be done, and why."""
        return cls("skipped", None, reason)

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return {
            "status": self.status,
            "reason": self.reason,
            "value": self.value,
            "evidence": self.evidence,
            "versions": dict(self.versions),
            "cost": asdict(self.cost),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Outcome:
        """The inverse of `to_json`."""
        return cls(
            stored["status"],
            stored["value"],
            stored["reason"],
            stored["evidence"],
            stored["versions"],
            Cost(**stored["cost"]),
        )


@dataclass(frozen=True, slots=True)
class PutOff:
    """A node cannot be done now, though later it may be: what it needs is away. It is no outcome.

    Attributes:
        node: which.
        reason: in our words, for the log and for a result that has to do without it in the end.
        after_s: seconds that whoever is away asks for.
        patience_s: for how long it is tried; see `Wait`.
        instead: what is made of the node then, where it is not simply missing.
        shared: others may have to wait for the same.
    """

    node: Node
    reason: str
    after_s: float | None = None
    patience_s: float = DAY_S
    instead: Any = None
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an evaluation is: ``percent`` of 100, and how many test cases of how many have been run."""

    stage: str = "queued"
    percent: int = 0
    cases_done: int = 0
    cases_total: int = 0

    @classmethod
    def at(cls, node: Node) -> Progress:
        """When a node begins."""
        return cls(node.value, _BEGINS_AT[node])

    def after(self, before: Progress) -> Progress:
        """The same, with the test cases that had been run before it."""
        if self.cases_total:
            return self
        return replace(self, cases_done=before.cases_done, cases_total=before.cases_total)

    @classmethod
    def of_cases(cls, done: int, total: int) -> Progress:
        """While test cases are run."""
        begin, end = _BEGINS_AT[Node.TESTS], _BEGINS_AT[Node.REVIEW]
        share = done / total if total else 0.0
        return cls(Node.TESTS.value, begin + int((end - begin) * min(share, 1.0)), done, total)

    def to_json(self) -> dict[str, Any]:
        """As it is stored and told."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Progress:
        """The inverse of `to_json`; of nothing it is the beginning."""
        return cls(**stored) if stored else cls()


_BEGINS_AT: Final[Mapping[Node, int]] = {
    Node.FREEZE: 1,
    Node.TURNS: 3,
    Node.TESTS: 3,
    Node.ANALYSIS: 3,
    Node.REVIEW: 65,
    Node.PANEL: 75,
    Node.CHECKS: 92,
    Node.HOLD: 94,
    Node.AGGREGATE: 96,
    Node.TELL: 98,
}
HELD: Final = Progress("held", 98)
"""The result waits for a person."""
DONE: Final = Progress("done", 100)
FAILED: Final = Progress("failed", 100)


@dataclass(frozen=True, slots=True)
class SubmissionNews:
    """How far a submission is, as those who follow its session are told; never a score."""

    session_id: int
    submission_id: SubmissionId
    status: str
    progress: Progress

    def to_json(self) -> dict[str, Any]:
        """As it goes from process to process, and to clients."""
        return {
            "session_id": str(self.session_id),
            "submission_id": self.submission_id,
            "status": self.status,
            **self.progress.to_json(),
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> SubmissionNews:
        """The inverse of `to_json`."""
        names = ("stage", "percent", "cases_done", "cases_total")
        progress = Progress(**{name: told[name] for name in names})
        return cls(int(told["session_id"]), told["submission_id"], told["status"], progress)
