"""``python -m bench.running_times``: how well running times are told apart, on this machine, with and without load.

A program is graded against itself, and against one that does the same once or three times more. What comes out should
be 1, 2 and 4, and by how much it is not is the figure. ``--load`` keeps so many processes busy meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
from collections.abc import Iterator
from contextlib import contextmanager

from app.application.submissions.grading import grade
from app.domain.code_runner import SourceProgram
from app.domain.problem import Problem
from app.infrastructure.runner.bubblewrap.runner import BubblewrapRunner

PROGRAMS = {
    "python": "total = 0\nfor n in range(int(input()) * {times}):\n    total ^= n * n\nprint('done')\n",
    "c": """
#include <stdio.h>
int main(void) {{
    long n; volatile long total = 0;
    if (scanf("%ld", &n) != 1) return 1;
    for (long i = 0; i < n * {times}; i++) total ^= i * i;
    puts("done");
}}
""",
    "cpp": """
#include <iostream>
int main() {{
    long n; volatile long total = 0;
    if (!(std::cin >> n)) return 1;
    for (long i = 0; i < n * {times}; i++) total ^= i * i;
    std::cout << "done\\n";
}}
""",
    "go": """
package main

import "fmt"

var total int64

func main() {{
    var n int64
    fmt.Scan(&n)
    for i := int64(0); i < n*{times}; i++ {{
        total ^= i * i
    }}
    fmt.Println("done")
}}
""",
    "javascript": """
const n = Number(require("fs").readFileSync(0, "utf8")) * {times};
let total = 0;
for (let i = 0; i < n; i++) total ^= i * i;
console.log(total === -1 ? "never" : "done");
""",
    "java": """
import java.util.Scanner;
public class Main {{
    static volatile long total;
    public static void main(String[] arguments) {{
        long n = new Scanner(System.in).nextLong() * {times};
        for (long i = 0; i < n; i++) total ^= i * i;
        System.out.println("done");
    }}
}}
""",
}
SIZES = {
    "python": 400_000,
    "c": 40_000_000,
    "cpp": 40_000_000,
    "go": 60_000_000,
    "javascript": 30_000_000,
    "java": 20_000_000,
}
"""Inputs with which a run takes 30 to 100 ms of CPU besides starting up."""
TIMES = (1, 2, 4)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.running_times", description=__doc__)
    parser.add_argument("--languages", default=",".join(PROGRAMS), help="of %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="gradings of each program (%(default)s)")
    parser.add_argument("--cases", type=int, default=3, help="test cases (%(default)s)")
    parser.add_argument("--load", type=int, default=0, help="busy processes meanwhile (%(default)s)")
    parser.add_argument("--short", action="store_true", help="programs that do nothing: all ratios should be 1")
    options = parser.parse_args()
    with busy(options.load):
        asyncio.run(_measure(options))


async def _measure(options: argparse.Namespace) -> None:
    runner = BubblewrapRunner(1)
    isolation = await runner.self_test()
    print(f"{options.cases} cases, {options.rounds} gradings each, {options.load} busy processes, {isolation.level}")
    print("| language | work | ratio, median | smallest | largest | CPU of a pass, ms | start-up, ms | floor, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for language in options.languages.split(","):
        problem = _problem(language, options)
        for times in TIMES:
            program = SourceProgram(language, PROGRAMS[language].format(times=times))
            found = [
                (await grade(runner, problem, program, isolation=isolation)).performance for _ in range(options.rounds)
            ]
            ratios = [one.ratio for one in found if one.ratio is not None]
            if len(ratios) != len(found):
                print(f"| {language} | {times} | {found[0].reason} | | | | | |")
                continue
            cpu = statistics.median(statistics.median(one.candidate_cpu_ms) for one in found)
            startup = statistics.median(statistics.median(one.candidate_startup_ms) for one in found)
            floor = statistics.median(one.floor_ms for one in found)
            figures = f"{statistics.median(ratios):.3f} | {min(ratios):.3f} | {max(ratios):.3f}"
            print(f"| {language} | {times}× | {figures} | {cpu:.0f} | {startup:.1f} | {floor:.1f} |", flush=True)
    await runner.close()


def _problem(language: str, options: argparse.Namespace) -> Problem:
    size = 1 if options.short else SIZES[language]
    return Problem.parse(
        {
            "title": "Count",
            "statement": {"en": "Count."},
            "languages": [language],
            "limits": {"cpu_s": 20},
            "cases": [{"name": f"{n}", "input": f"{size}\n", "output": "done\n"} for n in range(options.cases)],
            "references": [{"language": language, "source": PROGRAMS[language].format(times=1)}],
        }
    )


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes computing."""
    started = [multiprocessing.Process(target=_compute, daemon=True) for _ in range(processes)]
    for process in started:
        process.start()
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.join()


def _compute() -> None:
    number = 0
    while True:
        number = (number * 31 + 7) % 1_000_003


if __name__ == "__main__":
    main()
