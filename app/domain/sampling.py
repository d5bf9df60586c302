"""How often a prompt is judged: once, and by all samples where a doubt says that it matters. Pure."""

from __future__ import annotations

from enum import StrEnum


class Doubt(StrEnum):
    """Why one sample is not enough.

    ``ACTED_ON``: the judge was moved by something in the prompt. ``ASKED_AGAIN``: its first answer could not be used.
    ``GRADE_EDGE``: a little more or less would be another grade, and more than one criterion counts. ``FAR_APART``: the
    criteria that count are as far apart as two samples that differ.
    """

    ACTED_ON = "acted_on"
    ASKED_AGAIN = "asked_again"
    GRADE_EDGE = "grade_edge"
    FAR_APART = "far_apart"
