"""The OpenAPI document is true: what the service answers is what it says it answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # its stubs are another package

from tests.support.chat import WAIT_S, new_pair
from tests.support.service import Service

FAULTS_OF_ANY_PATH = {401, 403, 404, 405, 413}
"""Statuses that also requests may get which the document knows nothing of."""


class Document:
    """A service's OpenAPI document, as a judge of its answers."""

    def __init__(self, url: str) -> None:
        self.content: dict[str, Any] = httpx.get(f"{url}/openapi.json", timeout=WAIT_S).json()
        self.answers: dict[tuple[str, str], set[int]] = {}
        self._paths = [(_pattern(path), path) for path in self.content["paths"]]

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Method, path and description of everything that can be called."""
        for path, operations in self.content["paths"].items():
            for method, operation in operations.items():
                yield method.upper(), path, operation

    def validator(self, schema: dict[str, Any]) -> Draft202012Validator:
        """Checks values against a schema of the document."""
        whole = {**schema, "components": self.content["components"]}
        return Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER)

    def find(self, method: str, path: str) -> tuple[str, dict[str, Any]] | None:
        """The operation that a request is for, and its path's template."""
        exact = self.content["paths"].get(path)
        matches = [path] if exact else [template for regex, template in self._paths if regex.fullmatch(path)]
        for template in matches:
            operation = self.content["paths"][template].get(method.lower())
            if operation is not None:
                return template, operation
        return None

    def check(self, response: httpx.Response) -> None:
        """Assert that a response is one that the document announces."""
        response.read()
        request = response.request
        method, path = request.method, unquote(request.url.raw_path.decode().partition("?")[0])
        media_type = response.headers.get("content-type", "").partition(";")[0]
        what = f"{method} {path}: {response.status_code} {media_type} {response.text[:300]}"
        if response.status_code >= 400:
            assert media_type == "application/problem+json", what
            check_problem(response)
        found = self.find(method, path)
        if found is None:
            assert response.status_code in FAULTS_OF_ANY_PATH or not path.startswith("/api/"), what
            return
        template, operation = found
        self.answers.setdefault((method, template), set()).add(response.status_code)
        announced = operation["responses"].get(str(response.status_code))
        assert announced is not None, f"undocumented status of {template}: {what}"
        assert media_type in announced["content"], f"undocumented media type of {template}: {what}"
        schema = announced["content"][media_type].get("schema", {})
        if media_type.endswith("json"):
            self.validator(schema).validate(response.json())


def _pattern(template: str) -> re.Pattern[str]:
    """What a path's template matches: a turn's or a submission's id may hold anything, the others no slash."""
    pattern = template.replace("{turn_id}", "(.*)").replace("{submission_id}", "(.*)")
    return re.compile(re.sub(r"\{\w+\}", "([^/]+)", pattern), re.DOTALL)


def check_problem(response: httpx.Response) -> None:
    """Assert that an answer is a problem document that says the same as its status line, and in words of ours."""
    problem = response.json()
    more = {"checks"} if response.request.url.path == "/readyz" else set()
    assert set(problem) == {"type", "title", "status", "detail", "code", "retryable"} | more
    assert problem["status"] == response.status_code
    assert problem["type"] == "about:blank"
    assert problem["title"]
    assert problem["detail"]
    assert isinstance(problem["retryable"], bool)
    assert re.fullmatch("[a-z_]+", problem["code"])


def checked_client(service: Service, **options: Any) -> httpx.Client:
    """A client that checks every answer."""
    document = Document(service.url)
    return httpx.Client(base_url=service.url, timeout=WAIT_S, event_hooks={"response": [document.check]}, **options)


# ---------------------------------------------------------------- the document itself


def test_document_knows_every_call_of_the_contract(service: Service) -> None:
    known = {(method, path) for method, path, _ in Document(service.url).operations()}
    assert known >= {
        ("POST", "/api/chat/message"),
        ("POST", "/api/sessions"),
        ("GET", "/api/sessions"),
        ("GET", "/api/sessions/{session_id}"),
        ("GET", "/api/sessions/{session_id}/messages"),
        ("POST", "/api/sessions/{session_id}/turns/{turn_id}/cancel"),
        ("GET", "/api/sessions/{session_id}/turns/{turn_id}/events"),
        ("POST", "/api/sessions/{session_id}/end"),
        ("POST", "/api/sessions/{session_id}/submissions"),
        ("GET", "/api/sessions/{session_id}/submissions"),
        ("GET", "/api/submissions"),
        ("GET", "/api/submissions/{submission_id}"),
        ("POST", "/api/submissions/{submission_id}/rerun"),
        ("POST", "/api/submissions/{submission_id}/release"),
        ("POST", "/api/submissions/{submission_id}/override"),
        ("POST", "/api/submissions/{submission_id}/appeal"),
        ("GET", "/api/submissions/{submission_id}/report"),
        ("GET", "/api/submissions/{submission_id}/steps"),
        ("PUT", "/api/exams/{exam_id}"),
        ("GET", "/api/exams/{exam_id}"),
        ("GET", "/api/sessions/{session_id}/evaluations"),
        ("POST", "/api/sessions/{session_id}/turns/{turn_id}/override"),
        ("POST", "/api/sessions/{session_id}/turns/{turn_id}/appeal"),
        ("GET", "/api/reviews"),
        ("POST", "/api/reviews/{item_id}/resolve"),
        ("GET", "/api/exams/{exam_id}/versions"),
        ("PUT", "/api/problems/{spec_id}"),
        ("GET", "/api/problems/{spec_id}"),
        ("GET", "/api/problems/{spec_id}/versions"),
        ("GET", "/api/callbacks"),
        ("GET", "/api/callbacks/{event_id}"),
        ("POST", "/api/callbacks/{event_id}/replay"),
        ("GET", "/api/callbacks/events"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }


def test_document_describes_every_call_and_its_problems(service: Service) -> None:
    document = Document(service.url)
    assert document.content["openapi"].startswith("3.1")
    for schema in document.content["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for method, path, operation in document.operations():
        assert operation.get("description"), f"{method} {path} says nothing of itself"
        for status, response in operation["responses"].items():
            if int(status) >= 400 and path.startswith("/api/"):
                assert list(response["content"]) == ["application/problem+json"], (method, path, status)
    assert "HTTPValidationError" not in document.content["components"]["schemas"], "no route answers so"


# ---------------------------------------------------------------- generated requests

ODD_TEXT = st.text(max_size=20) | st.sampled_from(
    ["", " ", "\x00", "a\x00b", "\n", "7", "-1", "007", "1e3", "a/b c%", "%2F", "..", "한국어", "👩‍💻", "' OR 1=1 --"]
)
ODD_NUMBER = st.sampled_from([0, 1, 2, -1, 2**31, 2**63 - 1, 2**63, -(2**63) - 1, 10**40]) | st.integers()
ODD_VALUE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    ODD_NUMBER,
    st.floats(allow_nan=False, allow_infinity=False),
    ODD_TEXT,
    st.just([]),
    st.just({"a": [1]}),
)
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "session_id": st.sampled_from(["1", 1]),
    "exam_id": st.sampled_from([1, 2]),
    "participant_id": st.sampled_from([1, 2]),
    "turn_id": st.sampled_from(["t1", 7]),
    "event_id": st.just("evt_1"),
    "spec_id": st.sampled_from([1, 2]),
    "cursor": st.sampled_from([0, 5]),
    "limit": st.sampled_from([1, 1000]),
    "after": st.sampled_from(["0", "0-0"]),
    "status": st.sampled_from(["held", "pending", "delivered", "failed"]),
    "type": st.just("usage"),
}
ODD_BODY = st.sampled_from(
    [b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"{}", b'{"message": "\\ud800"}', b"[" * 5000, b'{"a":1e999}']
)


def value_of(name: str) -> st.SearchStrategy[Any]:
    return LIKELY.get(name, ODD_TEXT) | ODD_VALUE


@st.composite
def requests(draw: st.DrawFn, operations: list[tuple[str, str, dict[str, Any]]], content: Any) -> dict[str, Any]:
    """A request for one of the operations: each part what is wanted, or anything else."""
    method, path, operation = draw(st.sampled_from(operations))
    query: dict[str, str] = {}
    for parameter in operation.get("parameters", []):
        name = parameter["name"]
        text = str(draw(value_of(name))).encode("utf-8", "replace").decode()
        if parameter["in"] == "path":
            path = path.replace(f"{{{name}}}", quote(text, safe=""))
        elif parameter["in"] == "query" and draw(st.booleans()):
            query[name] = text
    request: dict[str, Any] = {"method": method, "url": path, "params": query}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        properties = content["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"]
        fields = draw(st.sets(st.sampled_from(sorted(properties))))
        wanted = {name: draw(value_of(name)) for name in sorted(fields)}
        body = draw(st.just(None) | st.just(None) | ODD_BODY)
        request |= {"json": wanted} if body is None else {"content": body}
        if body is not None and draw(st.booleans()):
            request["headers"] = {"Content-Type": "application/json"}
    return request


def test_no_request_brings_an_undocumented_answer(service: Service) -> None:
    document = Document(service.url)
    operations = list(document.operations())
    with checked_client(service) as http:
        assert http.post("/api/chat/message", json={"message": "hello", "turn_id": "t1", **new_pair()}).is_success

        @settings(
            max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
        )
        @given(request=requests(operations, document.content))
        def any_request(request: dict[str, Any]) -> None:
            response = http.request(**request)
            assert response.status_code < 500, f"{request}: {response.text}"

        any_request()
        assert http.get("/readyz").status_code == 200, "and it is well afterwards"


def test_unknown_path_is_a_problem(service: Service) -> None:
    with checked_client(service) as http:
        for path in ("/api/unknown", "/api", "/api/sessions/1/unknown", "/api/sessions/", "/unknown", "/static/x.js"):
            response = http.get(path)
            assert response.status_code == 404, path
            assert response.json()["code"] == "not_found"


def test_wrong_method_is_a_problem_that_names_the_right_ones(service: Service) -> None:
    with checked_client(service) as http:
        for method, path, allowed in [
            ("DELETE", "/api/sessions/1", "GET"),
            ("DELETE", "/api/sessions", "GET, POST"),
            ("GET", "/api/chat/message", "POST"),
            ("PATCH", "/api/exams/1", "GET, PUT"),
            ("POST", "/healthz", "GET"),
            ("POST", "/static/page.js", "GET, HEAD"),
        ]:
            response = http.request(method, path)
            assert response.status_code == 405
            assert response.headers["allow"] == allowed
            assert response.json()["retryable"] is False
