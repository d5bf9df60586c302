"""The shape of the code: layers, docstrings, names, and what no file may say."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "app").rglob("*.py"))
BUDGET_LINES = 300
FAR_TOO_LONG_LINES = 1000

# Written in parts, so that this file does not name them either.
REGISTRIES = [
    ".".join(parts)
    for parts in [
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("yarnpkg", "com"),
        ("proxy", "golang", "org"),
        ("huggingface", "co"),
        ("crates", "io"),
        ("rubygems", "org"),
        ("anaconda", "org"),
    ]
]


def name_of(module: Path) -> str:
    return str(module.relative_to(ROOT))


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """The import contracts over the ``app`` in ``root``."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    return subprocess.run(
        [*command, "--no-cache", "--config", str(ROOT / ".importlinter")],
        cwd=root,
        env={"PYTHONPATH": str(root), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_imports_go_down_through_the_layers_only() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code that a test may spoil."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "app", root / "app", ignore=shutil.ignore_patterns("__pycache__", "*.js", "*.css"))
    return root


SPOILT = [
    ("app/domain/scratch.py", "from app.infrastructure import webhook", "Each layer imports only"),
    ("app/domain/scratch.py", "import socket", "The domain does no input or output"),
    ("app/application/scratch.py", "import starlette.requests", "FastAPI and Starlette stay"),
    ("app/presentation/scratch.py", "import psycopg", "Only the infrastructure speaks"),
    ("app/scratch.py", "", "Each layer imports only"),  # a place that no layer names
]


@pytest.mark.parametrize(("path", "line", "contract"), SPOILT)
def test_a_contract_breaks_where_it_is_broken(copy: Path, path: str, line: str, contract: str) -> None:
    module = copy / path
    module.write_text(f'"""Spoilt."""\n{line}\n')
    try:
        result = lint(copy)
    finally:
        module.unlink()
    assert result.returncode == 1, result.stdout + result.stderr
    broken = [shown for shown in result.stdout.splitlines() if shown.endswith("BROKEN")]
    assert [shown for shown in broken if shown.startswith(contract)], broken


def test_every_module_says_what_it_is_for() -> None:
    packages = {module for module in MODULES if module.name == "__init__.py" and not module.read_text().strip()}
    silent = [
        name_of(module)
        for module in MODULES
        if module not in packages and not ast.get_docstring(ast.parse(module.read_text()))
    ]
    assert silent == []
    assert len(MODULES) - len(packages) > 50, "the code was found"


def test_no_module_is_a_drawer_for_everything() -> None:
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [name_of(module) for module in MODULES if module.name in drawers] == []


def test_no_module_is_far_too_long() -> None:
    sizes = {name_of(module): len(module.read_text().splitlines()) for module in MODULES}
    for name, lines in sorted(sizes.items(), key=lambda item: -item[1]):
        if lines > BUDGET_LINES:  # worth a look, and no fault
            warnings.warn(f"{name} has {lines} lines", stacklevel=1)
    assert {name: lines for name, lines in sizes.items() if lines > FAR_TOO_LONG_LINES} == {}


def tracked_texts() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # not a text


def test_no_file_names_a_registry() -> None:
    texts = dict(tracked_texts())
    assert len(texts) > 100, "the files were found"
    named = [(name, host) for name, text in texts.items() for host in REGISTRIES if host in text]
    assert named == []


def test_code_does_not_print_but_at_the_command_line() -> None:
    printing = [
        f"{name_of(module)}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []
