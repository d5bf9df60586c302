"""What pyproject.toml promises to work with is what the suite is run with."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements/dev.txt").read_text()
# Where the lock has several versions of one, each for some Pythons, the oldest comes last here, and stays.
LOCKED = dict(
    sorted(
        ((found[1], Version(found[2])) for found in re.finditer(r"^([a-z0-9-]+)==([^\s;]+)", LOCK, re.MULTILINE)),
        reverse=True,
    )
)
DIRECT = [
    Requirement(line)
    for lines in (
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        *PROJECT["dependency-groups"].values(),
    )
    for line in lines
]


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_a_dependency_s_floor_is_the_minor_release_that_is_tested(requirement: Requirement) -> None:
    [floor] = requirement.specifier
    assert floor.operator == ">="
    tested, promised = LOCKED[requirement.name].release[:2], Version(floor.version).release[:2]
    assert promised + (0,) * (2 - len(promised)) == tested, f"say >={tested[0]}.{tested[1]} in pyproject.toml"
