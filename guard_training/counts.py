"""The table of counts in the data card: ``python -m guard_training.counts`` prints it anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from guard_training.data import Example, Label, load


def table(examples: Sequence[Example]) -> str:
    """A Markdown table of how many messages there are for each label, by side and language."""
    lines = ["| what | train en | train ko | train other | held out en | held out ko | held out other | all |"]
    lines.append("|---|" + "---:|" * 7)
    kinds = [
        (f"`{label}`", [e for e in examples if e.label is label]) for label in Label if label is not Label.HARMLESS
    ]
    harmless = [e for e in examples if e.label is Label.HARMLESS]
    kinds.insert(0, ("`HARMLESS`, by others", [e for e in harmless if e.author != "A"]))
    kinds.insert(0, ("`HARMLESS`, ordinary", [e for e in harmless if not e.triggers and e.author == "A"]))
    kinds.insert(0, ("`HARMLESS`, with trigger words", [e for e in harmless if e.triggers]))
    for name, found in [*kinds, ("all", list(examples))]:
        counts = Counter((e.split, e.language if e.language in ("en", "ko") else "other") for e in found)
        cells = [str(counts[split, language]) for split in ("train", "held_out") for language in ("en", "ko", "other")]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(found)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(load()))
