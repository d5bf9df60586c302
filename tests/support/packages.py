"""Problem packages of the common format, made for tests: a small one of each form, to be changed file by file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

LEGACY: Mapping[str, str] = {
    "problem.yaml": """
# the older form
name: Nearest Pair
author: A. Author
license: cc0
limits:
  memory: 512
  output: 4
validator_flags: float_tolerance 1e-6
""",
    ".timelimit": "3\n",
    "problem_statement/problem.en.tex": r"""
\problemname{Nearest Pair}
% a comment, which is nobody's business
You are given $n$ points. Print the \emph{smallest} distance, with an error of \textbf{at most} $10^{-6}$.
\section*{Input}
\begin{itemize}
  \item The number $n$ (50\% of the cases have $n \le 10$).
  \item Then $n$ lines with \texttt{x y}.
\end{itemize}
\begin{verbatim}
2
0 0
\end{verbatim}
\section*{Output}
One number.
\illustration{0.3}{pair.png}{A picture}
""",
    "problem_statement/problem.ko.md": "가장 가까운 두 점의 거리를 출력하세요.\n",
    "problem_statement/problem.sv.md": "Skriv ut avståndet.\n",
    "data/sample/1.in": "2\n0 0\n3 4\n",
    "data/sample/1.ans": "5.0\n",
    "data/secret/01.in": "3\n0 0\n0 2\n5 5\n",
    "data/secret/01.ans": "2.0\n",
    "data/secret/large/02.in": "2\n-1 -1\n-1 -1\n",
    "data/secret/large/02.ans": "0.0\n",
    "data/secret/large/02.desc": "the same point twice\n",
    "submissions/accepted/pair.py": """
import math
n, *rest = map(float, open(0).read().split())
points = list(zip(rest[::2], rest[1::2]))
print(min(math.dist(a, b) for i, a in enumerate(points) for b in points[:i]))
""",
    "submissions/accepted/pair.hs": "main = interact id\n",
    "submissions/wrong_answer/zero.py": "print(0)\n",
    "input_validators/validate.py": "import sys\nsys.exit(42)\n",
}
"""Tolerances, a Haskell solution that is left out, a folder within the secret data, LaTeX."""

NEWER: Mapping[str, str] = {
    "problem.yaml": """
problem_format_version: 2023-07-draft
type: [scoring]
name: {en: Any Order, ko: 아무 순서}
uuid: 7f0b5c34-27b5-4a14-a53c-7c7b1b7a5c20
limits: {time_limit: 1.5, memory: 256}
languages: [python3, cpp, haskell]
constants: {most: 100}
""",
    "statement/problem.en.md": "Print the numbers 1 to $n$ (at most {{most}}) in any order.\n\n{{nextsample}}\n",
    "data/sample/1.in": "2\n",
    "data/sample/1.ans": "\n",
    "data/secret/test_group.yaml": "max_score: 100\nscore_aggregation: sum\n",
    "data/secret/small/test_group.yaml": "max_score: 30\nscore_aggregation: sum\n",
    "data/secret/small/1.in": "3\n",
    "data/secret/small/1.ans": "\n",
    "data/secret/small/2.in": "4\n",
    "data/secret/small/2.ans": "\n",
    "data/secret/small/3.in": "1\n",
    "data/secret/small/3.ans": "\n",
    "data/secret/large/test_group.yaml": "max_score: 70\nscore_aggregation: min\n",
    "data/secret/large/1.in": "100\n",
    "data/secret/large/1.ans": "\n",
    "output_validator/validate.cpp": """
#include <fstream>
#include <iostream>
#include <set>
#include "codes.h"
int main(int argc, char** argv) {
    std::ifstream input(argv[1]);
    int n, value;
    input >> n;
    std::set<int> seen;
    while (std::cin >> value) {
        if (value < 1 || value > n || !seen.insert(value).second) return REFUSE;
    }
    std::ofstream(std::string(argv[3]) + "judgemessage.txt") << seen.size();
    return (int)seen.size() == n ? ACCEPT : REFUSE;
}
""",
    "output_validator/codes.h": "#define ACCEPT 42\n#define REFUSE 43\n",
    "submissions/accepted/down.py": "n = int(input())\nprint(*range(n, 0, -1))\n",
    "submissions/accepted/up.cpp": """
#include <iostream>
int main() { int n; std::cin >> n; for (int i = 1; i <= n && i <= {{most}}; i++) std::cout << i << "\\n"; }
""",
}
"""Points, groups, a checker of two files, constants, and a language that is not supported."""


def changed(files: Mapping[str, str], **changes: str | None) -> dict[str, str]:
    """The files with others in their places; ``None`` takes one away."""
    return {path: text for path, text in {**files, **changes}.items() if text is not None}


def write_folder(root: Path, files: Mapping[str, str]) -> Path:
    """Write a package as a folder."""
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def write_zip(path: Path, files: Mapping[str, str], *, top: str = "") -> Path:
    """Write a package as an archive, in a folder ``top`` or without one."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(f"{top}{name}", text)
    return path
