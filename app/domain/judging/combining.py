"""From several independent judgements of one prompt to one: medians, a majority, and how far they are apart. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from app.domain.judging.tasks import Judgement, TurnJudgement
from app.domain.scoring import Criterion, Intent, ScorePolicy, Unscored


def combine(samples: Sequence[Judgement | Unscored], policy: ScorePolicy) -> TurnJudgement:
    """The median of each criterion over the samples that could be read; unscored where none could."""
    read = [sample for sample in samples if isinstance(sample, Judgement)]
    if not read:
        reasons = [sample.reason for sample in samples if isinstance(sample, Unscored)]
        nothing = Unscored(reasons[0] if reasons else "not judged")
        return TurnJudgement(None, dict.fromkeys(Criterion, nothing), nothing, 0, "", ())
    intent = _majority(read)
    marks: Mapping[Criterion, float | Unscored] = {
        criterion: float(median(sample.mark(criterion).score for sample in read)) for criterion in Criterion
    }
    verdict = policy.turn(intent, marks)
    return TurnJudgement(
        intent=intent,
        marks=marks,
        verdict=verdict,
        spread=spread(read, policy, intent),
        advice=_advice(read, marks),
        evidence=tuple(sample.marks for sample in read),
    )


def spread(samples: Sequence[Judgement], policy: ScorePolicy, intent: Intent | None = None) -> int:
    """The largest difference between two samples, in marks, in a criterion that counts for the intent."""
    if not samples:
        return 0
    counted = policy.criteria_for(intent or _majority(samples))
    scores = [[sample.mark(criterion).score for sample in samples] for criterion in counted]
    return max(max(of_one) - min(of_one) for of_one in scores)


def is_settled(samples: Sequence[Judgement | Unscored], of: int, policy: ScorePolicy) -> bool:
    """Whether further samples, up to ``of``, could change neither the intent nor a mark that counts."""
    read = [sample for sample in samples if isinstance(sample, Judgement)]
    agreed = len({sample.intent for sample in read}) == 1 and not spread(read, policy)
    return agreed and len(read) > of // 2


def _majority(samples: Sequence[Judgement]) -> Intent:
    """The intent most samples name; of equally frequent ones the first in the order of `Intent`."""
    counts = Counter(sample.intent for sample in samples)
    order = list(Intent)
    return min(counts, key=lambda intent: (-counts[intent], order.index(intent)))


def _advice(samples: Sequence[Judgement], marks: Mapping[Criterion, float | Unscored]) -> str:
    """The advice of the sample that is nearest to the medians; of equally near ones the first."""

    def distance(sample: Judgement) -> float:
        return sum(
            abs(mark.score - value) for mark in sample.marks if not isinstance(value := marks[mark.criterion], Unscored)
        )

    return min(samples, key=distance).advice
