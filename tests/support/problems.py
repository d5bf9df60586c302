"""Problems and programs that tests grade."""

from __future__ import annotations

from typing import Any

SUM: dict[str, Any] = {
    "title": "Sum",
    "statement": {"en": "Print the sum of the two numbers.", "ko": "두 수의 합을 출력하세요."},
    "languages": ["python"],
    "cases": [
        {"name": "1", "group": "SAMPLE", "input": "1 2\n", "output": "3\n"},
        {"name": "2", "group": "PUBLIC", "input": "10 -4\n", "output": "6\n", "weight": 2},
        {"name": "3", "group": "PRIVATE", "input": "1000000000000 1\n", "output": "1000000000001\n", "weight": 3},
    ],
    "references": [{"language": "python", "source": "print(sum(map(int, input().split())))\n"}],
}
"""The least there is to a problem."""
