"""Train the guard's classifier, write it where the service reads it, and say how well it does on the held-out side."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from app.domain.guard_classifier import ARTEFACT, GuardClassifier
from app.domain.guarding import labels_of
from guard_training.data import ATTACKS, Example, Label, load


def main() -> None:
    """Train and report; exit code 0, and 1 where ``--check`` finds another model."""
    parser = argparse.ArgumentParser(prog="python -m guard_training", description=__doc__)
    parser.add_argument("--out", type=Path, default=ARTEFACT, help="where the model is written (default: %(default)s)")
    parser.add_argument(
        "--false-alarms",
        type=float,
        metavar="SHARE",
        help="share of harmless messages that may be flagged in cross-validation (default: the one in train.py)",
    )
    parser.add_argument("--report-only", action="store_true", help="judge the model that is there; train nothing")
    parser.add_argument(
        "--check",
        action="store_true",
        help="train, write nothing, and fail where the model that is there is another one",
    )
    parser.add_argument("--mistakes", action="store_true", help="list what was missed or flagged wrongly, by id")
    options = parser.parse_args()
    if options.false_alarms is not None and not 0 < options.false_alarms < 1:
        parser.error("--false-alarms is a share, such as 0.005")
    examples = load()
    if not options.report_only:
        from guard_training.train import FALSE_ALARMS, trained

        made = trained(examples, options.false_alarms or FALSE_ALARMS)
        if options.check:
            if made != options.out.read_bytes():
                raise SystemExit(f"{options.out} is not what training makes: run python -m guard_training")
            print(f"{options.out} is what training makes")
            return
        options.out.write_bytes(made)
        print(f"wrote {options.out}, {options.out.stat().st_size / 1000:.0f} kB")
    classifier = GuardClassifier(options.out.read_bytes())
    held_out = [example for example in examples if example.split == "held_out"]
    report(classifier, [example for example in held_out if example.author == "A"], mistakes=options.mistakes)
    print("\nby authors who saw nothing of the training, the lexicon or each other:")
    report(classifier, [example for example in held_out if example.author != "A"], mistakes=options.mistakes)


def report(classifier: GuardClassifier, examples: Sequence[Example], *, mistakes: bool) -> None:
    """Print, for each label of the held-out side, how many the classifier and today's rules flag."""
    judged = [(example, classifier.judge(example.text)) for example in examples]
    print(f"{'held out':22}{'messages':>9}{'flagged':>9}{'as such':>9}{'by rules':>9}{'by either':>10}")
    for label in Label:
        here = [(example, found) for example, found in judged if example.label is label]
        if not here:
            continue
        rules = [bool(labels_of(example.text)) for example, _ in here]
        flagged = sum(found.label is not None for _, found in here)
        named = sum(found.label == label for _, found in here)
        either = sum(rule or found.label is not None for rule, (_, found) in zip(rules, here, strict=True))
        shares = [f"{count / len(here):9.3f}" for count in (flagged, named, sum(rules))]
        print(f"{label.value:22}{len(here):9}{''.join(shares)}{either / len(here):10.3f}")
    if mistakes:
        wrong = [
            (e, found)
            for e, found in judged
            if (found.label is not None) != (e.label in ATTACKS) and e.label is not Label.UNSAFE
        ]
        for example, found in sorted(wrong, key=lambda pair: -abs(pair[1].score - classifier.threshold)):
            print(f"{found.score - classifier.threshold:+.2f} {example.id} {example.label} {example.technique or ''}")
        print(Counter(example.technique for example, _ in wrong if example.technique).most_common(10))


if __name__ == "__main__":
    main()
