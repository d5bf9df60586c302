"""Static analysis end to end: figures by hand, hostile code, and an analyser that is away or breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.domain.code_patterns import ANALYSED_LANGUAGES, PatternError, read_patterns
from app.infrastructure.analysis import child, tools
from app.infrastructure.analysis.analyser import LONGEST_CODE, TIMEOUT_S, analyse, check_patterns
from app.infrastructure.analysis.errors import AnalyserUnavailableError, AnalysisError, AnalysisFailedError
from tests.support.hidden import PROGRAMS

# Each function with its cyclomatic complexity, counted by hand.
MEASURED = {
    "python": (
        "def f(a, b):\n    if a and b:\n        return 1\n    for x in a:\n        while x:\n            x -= 1\n"
        "    return 0\n"
        "\n\ndef g():\n    return [y for y in range(3) if y]\n\n\nprint(f(1, 2), g())\n",
        {"f": 5, "g": 3},
    ),
    "javascript": (
        "function f(a) { if (a > 1 || a < 0) { return 1; } return a ? 2 : 3; }\n"
        "const g = (b) => { for (const x of b) { f(x); } };\ng([]);\n",
        {"f": 4, "g": 2},
    ),
    "java": (
        "class Main {\n  static int f(int a) { if (a > 1 && a < 5) return 1; return 0; }\n"
        "  public static void main(String[] s) { for (int i = 0; i < 3; i++) { f(i); } }\n}\n",
        {"Main::f": 3, "Main::main": 2},
    ),
    "c": (
        "int f(int a) { switch (a) { case 1: return 1; case 2: return 2; default: return 0; } }\n"
        "int main(void) { while (f(1)) { if (f(2)) break; } return 0; }\n",
        {"f": 3, "main": 3},
    ),
    "cpp": (
        "template <class T> T best(T a, T b) { return a > b ? a : b; }\n"
        "int main() { for (int x : {1, 2}) { if (x) best(x, 1); } }\n",
        {"best": 2, "main": 3},
    ),
    "go": (
        "package main\n\nfunc f(a int) int {\n\tif a > 1 && a < 5 {\n\t\treturn 1\n\t}\n\treturn 0\n}\n\n"
        "func main() {\n\tfor i := range 3 {\n\t\tf(i)\n\t}\n}\n",
        {"f": 3, "main": 2},
    ),
}


@pytest.mark.parametrize("language", MEASURED)
async def test_figures_are_those_counted_by_hand(language: str) -> None:
    code, complexities = MEASURED[language]
    found = await analyse(language, code)
    assert found["syntax_ok"] is True
    assert {each["name"]: each["complexity"] for each in found["functions"]} == complexities
    assert found["mean_complexity"] == sum(complexities.values()) / len(complexities)
    assert found["complexity_reason"] is None
    assert found["lines"]["total"] == code.count("\n")
    assert found["gaps"] == []
    assert found["tools"] == {**tools.installed(language), "turnstone": tools.OWN_VERSION}
    assert json.loads(json.dumps(found)) == found


async def test_the_same_code_has_the_same_result() -> None:
    assert await analyse("cpp", PROGRAMS["cpp"]) == await analyse("cpp", PROGRAMS["cpp"])


async def test_code_outside_of_functions_counts_where_it_is_all_there_is_or_branches() -> None:
    script = await analyse("python", "for i in range(3):\n    if i:\n        print(i)\n")
    assert [(each["name"], each["complexity"]) for each in script["functions"]] == [("<module>", 3)]
    mixed = await analyse("python", "def f():\n    return 1\n\nfor i in range(3):\n    print(f())\n")
    assert [(each["name"], each["complexity"]) for each in mixed["functions"]] == [("f", 1), ("<module>", 2)]
    for nothing in ("", "\n# only a comment\n"):
        found = await analyse("python", nothing)
        assert (found["mean_complexity"], found["complexity_reason"]) == (None, "there is no code")


async def test_a_comment_hides_no_function() -> None:
    code = "def f(a):\n    # #lizard forgives\n    # complexipy: ignore\n    if a:  # noqa\n        return a == None\n"
    found = await analyse("python", code)
    assert [(each["name"], each["complexity"]) for each in found["functions"]] == [("f", 2)]
    assert [each["name"] for each in found["cognitive"]["functions"]] == ["f"]
    assert {message["rule"] for message in found["lint"]} == {"E711", "RET503"}


@pytest.mark.parametrize(
    ("language", "code", "line"),
    [
        ("python", "x = 1\ndef f(:\n    pass\n", 2),
        ("javascript", "let a = 1;\nfunction f( {\n", 2),
        ("java", "class A {\n int f() { return ; }}}\n", 2),
        ("c", "int main(void) {\n  return 0\n}\n", 2),
        ("cpp", "int main() {\n  return 0\n}\n", 2),
        ("go", "package main\nfunc main( {}\n", 2),
    ],
)
async def test_a_syntax_error_is_a_value_and_leaves_no_mean(language: str, code: str, line: int) -> None:
    found = await analyse(language, code)
    assert found["syntax_ok"] is False
    assert found["syntax_problems"][0]["line"] == line
    assert found["syntax_reason"] == found["complexity_reason"] == f"syntax error in line {line}"
    assert found["mean_complexity"] is None


async def test_new_syntax_that_the_grammar_does_not_know_is_no_error() -> None:
    code = "type Pair[T] = tuple[T, T]\n\ndef f[T](x: T) -> str:\n    return f\"{x!r:>{len('a')}} {'b'}\"\n"
    assert (await analyse("python", code))["syntax_ok"] is True


async def test_macros_make_syntax_the_compilers_to_tell() -> None:
    code = "#define rep(i, n) for (int i = 0; i < n; i++)\nint main() { int s = 0; rep(i, 3) s += i; }\n"
    found = await analyse("cpp", code)
    assert found["syntax_ok"] is None
    assert "macros" in found["syntax_reason"]
    assert found["mean_complexity"] == 1.0


async def test_copied_code_is_found_and_a_table_of_numbers_is_not() -> None:
    copied = (
        "    total = 0\n    for value in values:\n        if value % 2 == 0 and value > low:\n"
        "            total += value * 3\n"
    )
    code = f"def f(values, low):\n{copied}    return total\n\n\ndef g(values, low):\n{copied}    return -total\n"
    found = (await analyse("python", code))["duplication"]
    assert found["share"] > 0.7
    [block] = found["blocks"]
    assert block["lines"][0] == 9
    assert block["like"][0] == 1
    table = "T = [" + ", ".join(str(number) for number in range(300)) + "]\n"
    assert (await analyse("python", table))["duplication"]["share"] == 0.0


async def test_the_difference_to_an_earlier_version() -> None:
    before = "def f(a):\n    return a\n\n\ndef old():\n    return 1\n"
    after = "def new(b):\n    if b:\n        return 2\n    return 3\n\n\ndef f(a):\n    return a\n"
    found = (await analyse("python", after, before))["difference"]
    assert found == {
        "lines_before": 4,
        "lines_after": 6,
        "kept": 2,
        "added": 4,
        "removed": 2,
        "similarity": 0.4,
        "functions_added": ["new"],
        "functions_removed": ["old"],
        "mean_complexity_before": 1.0,
        "mean_complexity_after": 1.5,
    }
    assert (await analyse("python", after))["difference"] is None


PATTERNS = read_patterns(
    [
        {"id": "sorts", "language": "python", "message": "sorts", "rule": {"pattern": "sorted($A)"}},
        {"id": "loop-in-loop", "language": "python", "severity": "warning"}
        | {"rule": {"kind": "for_statement", "inside": {"kind": "for_statement", "stopBy": "end"}}},
        {"id": "sorts", "language": "go", "rule": {"pattern": "sort.Ints($A)"}},
    ]
)


async def test_a_problems_patterns_are_looked_for_in_their_language() -> None:
    await check_patterns(PATTERNS)
    found = (await analyse("python", "for a in b:\n    for c in sorted(a):\n        pass\n", None, PATTERNS))[
        "patterns"
    ]
    assert [(each["id"], each["severity"], each["count"]) for each in found] == [
        ("sorts", "info", 1),
        ("loop-in-loop", "warning", 1),
    ]
    assert found[0]["matches"] == [{"line": 2, "column": 14, "text": "sorted(a)"}]
    assert found[0]["message"] == "sorts"


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ({"kind": "for_loop"}, "patterns[0].rule: ast-grep says: Kind `for_loop` is invalid."),
        ({"regex": "("}, "patterns[0].rule: ast-grep says:"),
        ({"all": [{"matches": "nowhere"}]}, "patterns[0].rule: ast-grep says:"),
        ({"pattern": "f($A)", "nthChild": []}, "patterns[0].rule: ast-grep says:"),
    ],
)
async def test_a_pattern_that_ast_grep_refuses_is_told_before_it_is_kept(rule: dict[str, Any], told: str) -> None:
    with pytest.raises(PatternError) as caught:
        await check_patterns(read_patterns([{"id": "x", "language": "python", "rule": rule}]))
    assert str(caught.value.problems[0]).startswith(told)
    assert "backtrace" not in caught.value.message


# ---------------------------------------------------------------- hostile code

CHANCE = random.Random(7)
HOSTILE = {
    "parentheses": "x = " + "(" * 100_000,
    "closed": "x = " + "(" * 20_000 + "1" + ")" * 20_000 + ";",
    "braces": "{" * 20_000,
    "one long line": "x = 1; " * 5_000,
    "one long word": "a" * 1_000_000,
    "open string": '"' + "a" * 200_000,
    "open comment": "/*" + "a" * 200_000,
    "bytes": CHANCE.randbytes(8_000).decode("latin-1"),
    "any characters": "".join(chr(CHANCE.randrange(0x110000)) for _ in range(2_000)),
    "half characters": "x = '\ud800' # \udfff\n" * 50,
    "nul": "int x\x00 = 1;\x00\n" * 50,
    "carriage returns": "x = 1\r\n\ty = 2\r\r\n" * 50,
    "order mark": "\ufeffx = 1\n",
    "korean": "값 = 1\n합계 = 값 + 값\n" * 50,
    "minus": "x = " + "-" * 20_000 + "1",
    "dots": "a" + ".b" * 5_000,
}


async def ended(what: Awaitable[dict[str, Any]]) -> dict[str, Any] | AnalysisError:
    try:
        return await what
    except AnalysisFailedError as error:
        assert not error.transient
        return error


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_code_ends_with_a_value_or_an_error_that_says_it_stays(name: str) -> None:
    language = ANALYSED_LANGUAGES[list(HOSTILE).index(name) % len(ANALYSED_LANGUAGES)]
    found = await ended(analyse(language, HOSTILE[name], timeout=200))
    if isinstance(found, AnalysisFailedError):
        assert name in ("parentheses", "closed", "braces", "minus")
        assert found.remedy
    else:
        assert "\\u0000" not in json.dumps(found), "no database takes that"
        json.dumps(found, ensure_ascii=False).encode()
        assert found["mean_complexity"] is None or found["mean_complexity"] >= 1


async def test_what_nests_too_deeply_for_the_metrics_is_sanitised_still() -> None:
    code = "function f() { return " + "function () { return " * 3_000 + "1" + "}" * 3_001
    with pytest.raises(AnalysisFailedError, match="nests too deeply") as caught:
        await analyse("javascript", code)
    assert caught.value.stage == "functions"
    assert caught.value.partial["sanitised"]["code"].startswith("function f()")
    assert code[:40] not in str(caught.value), "an error quotes no code"


async def test_a_lesser_tool_that_breaks_leaves_a_gap_and_no_zero() -> None:
    found = await analyse("python", "x = " + "-" * 20_000 + "1\n")
    assert [gap["part"] for gap in found["gaps"]] == ["lint"]
    assert found["lint"] is None
    assert found["mean_complexity"] == 1.0


async def test_code_too_long_to_be_analysed_is_an_error_and_no_result() -> None:
    with pytest.raises(AnalysisFailedError, match="longer than"):
        await analyse("c", "x" * (LONGEST_CODE + 1))
    with pytest.raises(ValueError, match="language must be one of"):
        await analyse("cobol", "x")


# ---------------------------------------------------------------- an analyser that is away


def children() -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # others, such as the database's, come and go meanwhile
            if "app.infrastructure.analysis" in each.cmdline():
                found.append(each)
    return found


async def until_started() -> psutil.Process:
    async with asyncio.timeout(30):
        while not (found := children()):
            await asyncio.sleep(0.01)
    return found[0]


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Processes wait for what they are to analyse until this is set: none ends before a test has looked at it."""
    asked, ask = asyncio.Event(), child._ask

    async def ask_later(process: asyncio.subprocess.Process, request: bytes) -> None:
        await asked.wait()
        await ask(process, request)

    monkeypatch.setattr(child, "_ask", ask_later)
    return asked


async def test_a_process_that_is_killed_from_outside_is_tried_again() -> None:
    for _ in range(20):
        running = asyncio.create_task(analyse("python", "x = 1; " * 20_000))
        process = await until_started()
        await asyncio.sleep(0.2)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
        try:
            await running
        except AnalyserUnavailableError as error:
            assert error.transient
            return
        # we stood still for longer than the analysis took
    pytest.fail("no process was killed before it ended")


async def test_time_that_is_up_is_the_machines_fault_and_nothing_is_left_running() -> None:
    begun = time.monotonic()
    with pytest.raises(AnalyserUnavailableError, match="too busy"):
        await analyse("python", "x = 1; " * 20_000, timeout=0.5)
    assert time.monotonic() - begun < TIMEOUT_S / 2
    assert children() == []


@pytest.mark.usefixtures("unasked")
async def test_an_analysis_that_is_cancelled_ends_its_process() -> None:
    running = asyncio.create_task(analyse("python", "x = 1; " * 20_000))
    process = await until_started()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    async with asyncio.timeout(30):  # uvloop has killed a process whose start is cancelled, and does not wait for it
        while process.is_running():
            await asyncio.sleep(0.01)
    assert children() == []


async def test_the_process_is_bound_and_knows_no_secret(
    monkeypatch: pytest.MonkeyPatch, unasked: asyncio.Event
) -> None:
    monkeypatch.setenv("TURNSTONE_AUTH__API_KEY", "no parser has to know this")
    running = asyncio.create_task(analyse("python", "x = 1; " * 20_000))
    process = await until_started()
    async with asyncio.timeout(30):  # it binds itself before it reads what it is asked, and lowers its priority last
        while process.nice() != 10:
            await asyncio.sleep(0.01)
    environment, place = process.environ(), Path(f"/proc/{process.pid}")
    limits = (place / "limits").read_text()
    niceness, group = process.nice(), os.getpgid(process.pid)
    unasked.set()
    await running
    assert "no parser has to know this" not in environment.values()
    assert set(environment) <= {"PATH", "LD_LIBRARY_PATH", "LANG", "RAYON_NUM_THREADS"}
    for row in ("Max cpu time              20", "Max file size             0", "Max core file size        0"):
        assert row in limits
    assert "Max address space         1073741824" in limits
    assert niceness == 10
    assert group == process.pid


async def test_packages_that_are_missing_are_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "GRAMMARS", {**tools.GRAMMARS, "go": "tree-sitter-nowhere"})
    with pytest.raises(AnalyserUnavailableError, match=r"lacks tree-sitter-nowhere. pip install 'turnstone\[judge\]'"):
        await analyse("go", "package main\n")
    assert (await analyse("c", "int a;\n"))["syntax_ok"], "the others go on"


async def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child.sys, "executable", "/nowhere/python")
    with pytest.raises(AnalyserUnavailableError, match="cannot be started"):
        await analyse("c", "int a;\n")
    monkeypatch.setattr(child.sys, "executable", "/bin/false")
    with pytest.raises(AnalyserUnavailableError, match="does not start"):
        await analyse("c", "int a;\n")
