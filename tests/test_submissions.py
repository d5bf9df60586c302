"""Submissions over HTTP: taken once, refused with a reason, told of as they go, and shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import Rows
from tests.support.chat import connect, new_pair, wait_until
from tests.support.core import FakeCore
from tests.support.service import Service
from tests.test_openapi import checked_client
from tests.test_rest import problem, say

Start = Callable[..., Service]
CODE = "print(sum(map(int, input().split())))\n"


@pytest.fixture
def rest(service: Service) -> Iterator[httpx.Client]:
    with checked_client(service) as opened:
        yield opened


def new_session(rest: httpx.Client, **more: Any) -> str:
    response = rest.post("/api/sessions", json={**new_pair(), **more})
    session_id: str = response.json()["id"]
    return session_id


def submit(rest: httpx.Client, session_id: str, **fields: Any) -> httpx.Response:
    body = {"code": CODE, "language": "python", **fields}
    return rest.post(f"/api/sessions/{session_id}/submissions", json=body)


def ended(rest: httpx.Client, submission_id: str | int, timeout: float = 20.0) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = rest.get(f"/api/submissions/{submission_id}").json()
        return body if body["status"] in {"DONE", "FAILED"} else None

    found: dict[str, Any] = wait_until(look, timeout)
    return found


def test_first(rest, core):
    sid = new_session(rest)
    say(rest, session_id=sid)
    r = submit(rest, sid, submission_id=7)
    print(r.status_code, r.json())
    print(ended(rest, 7))
    print(core.wait_for(3)[-1].body)
