"""What the service counts about itself: every figure moves when its thing happens, and their number stays small."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from app.domain.submission import Node
from app.infrastructure.persistence.session import get_db_context
from tests.conftest import Rows
from tests.support.chat import connect, new_pair
from tests.support.core import Answer, FakeCore
from tests.support.provider import SCRIPTS, Provider, Script
from tests.support.service import Service

WAIT_S = 20.0
SLOW = Script(pieces=("one ", "two ", *("more ",) * 2000), piece_delay_s=0.02)

COUNTERS = {
    "turnstone_turns",
    "turnstone_tokens",
    "turnstone_callback_tries",
    "turnstone_leases_lost",
    "turnstone_job_failures",
    "turnstone_judge_calls",
    "turnstone_judgements",
    "turnstone_submissions",
    "turnstone_submission_steps",
}
GAUGES = {
    "turnstone_turns_running",
    "turnstone_sockets",
    "turnstone_callbacks_waiting",
    "turnstone_callback_age_seconds",
    "turnstone_callback_circuit_open",
    "turnstone_callbacks_failed",
    "turnstone_judgements_waiting",
    "turnstone_judgement_age_seconds",
    "turnstone_submissions_waiting",
    "turnstone_submission_age_seconds",
    "turnstone_submissions_held",
    "turnstone_database_connections_in_use",
    "turnstone_database_connections_max",
}
HISTOGRAMS = {
    "turnstone_first_token_seconds",
    "turnstone_turn_start_seconds",
    "turnstone_delta_lag_seconds",
    "turnstone_cancel_seconds",
    "turnstone_flush_seconds",
    "turnstone_callback_latency_seconds",
    "turnstone_judge_call_seconds",
    "turnstone_submission_step_seconds",
}
LABELS = {
    "status": {
        *("completed", "cancelled", "failed", "interrupted", "scored", "unscored"),
        *("ok", "missing", "skipped"),
    },
    "node": {node.value for node in Node},
    "kind": {"prompt", "completion"},
    "source": {"provider", "counted"},
    "outcome": {
        *("delivered", "refused", "unreachable", "skipped"),
        *("answered", "cached", "llm_unavailable", "llm_rejected", "llm_timeout"),
        *("scored", "pending_review", "held", "failed"),
    },
}


def scrape(service: Service) -> dict[str, Metric]:
    """Our metrics by name, as a scraper reads them."""
    response = httpx.get(f"{service.url}/metrics", timeout=WAIT_S)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(response.text)
    ours = [family for family in families if family.name.startswith("turnstone_")]
    return {family.name: family for family in ours if not family.name.endswith("_created")}


def figures(service: Service) -> dict[tuple[str, ...], float]:
    """Every sample by its name and its labels' values; a histogram's buckets are left out."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in scrape(service).values()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


async def until(service: Service, holds: Callable[[dict[tuple[str, ...], float]], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds(now := await asyncio.to_thread(figures, service)):
            await asyncio.sleep(0.02)
    assert now


class Watch:
    """What figures have grown by since the watch began: a process counts for as long as it lives."""

    def __init__(self, service: Service, before: dict[tuple[str, ...], float] | None = None) -> None:
        self._service = service
        self.before = figures(service) if before is None else before

    def by(self, *name: str) -> float:
        return figures(self._service).get(name, 0.0) - self.before.get(name, 0.0)

    async def sees(self, *name: str, by: float = 1) -> None:
        """Wait until a figure has grown by so much, and no more."""
        try:
            await until(self._service, lambda now: now.get(name, 0.0) - self.before.get(name, 0.0) >= by)
        except TimeoutError:
            raise AssertionError(f"{name} grew by {self.by(*name)}, not by {by}") from None
        assert self.by(*name) == by, name


@contextmanager
def core_down(core: FakeCore) -> Iterator[None]:
    core.stop()
    try:
        yield
    finally:
        core.start()


def test_names_and_help(service: Service) -> None:
    families = scrape(service)
    assert set(families) == COUNTERS | GAUGES | HISTOGRAMS
    for names, kind in ((COUNTERS, "counter"), (GAUGES, "gauge"), (HISTOGRAMS, "histogram")):
        assert {families[name].type for name in names} == {kind}
    for name, family in families.items():
        assert len(family.documentation) > 10, name
        assert family.documentation[0].isupper(), name


async def test_turn_moves_its_figures(service: Service, core: FakeCore) -> None:
    watch = Watch(service)
    async with connect(service.url) as chat:
        await watch.sees("turnstone_sockets")
        assert (await chat.ask("hello", **new_pair())).end["type"] == "done"
    await core.reaches(2)
    await watch.sees("turnstone_turns_total", "completed")
    await watch.sees("turnstone_tokens_total", "prompt", "provider", by=25)
    await watch.sees("turnstone_tokens_total", "completion", "provider", by=6)
    await watch.sees("turnstone_first_token_seconds_count")
    await watch.sees("turnstone_turn_start_seconds_count")
    await watch.sees("turnstone_callback_tries_total", "delivered", by=2)
    await watch.sees("turnstone_callback_latency_seconds_count", by=2)
    await until(service, lambda now: now[("turnstone_sockets",)] == 0)
    assert 0 < watch.by("turnstone_first_token_seconds_sum") < WAIT_S
    assert 0 < watch.by("turnstone_turn_start_seconds_sum") < WAIT_S
    assert 0 < watch.by("turnstone_callback_latency_seconds_sum") < WAIT_S
    assert watch.by("turnstone_cancel_seconds_count") == 0


async def test_cancelled_turn_moves_its_figures(service: Service, provider: Provider) -> None:
    provider.next(SLOW)
    watch = Watch(service)
    async with connect(service.url) as chat:
        await chat.send(message="go on", turn_id="t1", **new_pair())
        await chat.until("delta")
        assert figures(service)[("turnstone_turns_running",)] == 1
        await watch.sees("turnstone_turn_start_seconds_count")
        await until(service, lambda _: watch.by("turnstone_flush_seconds_count") > 0)
        await chat.send(type="cancel", turn_id="t1")
        usage = (await chat.until("cancelled"))["usage"]
    await watch.sees("turnstone_turns_total", "cancelled")
    await watch.sees("turnstone_cancel_seconds_count")
    await watch.sees("turnstone_tokens_total", "completion", "counted", by=usage["completion_tokens"])
    await watch.sees("turnstone_tokens_total", "prompt", "counted", by=usage["prompt_tokens"])
    assert usage["completion_tokens"] > 0
    await until(service, lambda now: now[("turnstone_turns_running",)] == 0)
    assert watch.by("turnstone_turns_total", "completed") == 0


async def test_failed_and_interrupted_turns_move_their_figures(
    start: Callable[..., Service], provider: Provider
) -> None:
    provider.next(SCRIPTS["status_400"], SLOW)
    service = start(shutdown_grace_s=0)
    watch = Watch(service)
    async with connect(service.url) as chat:
        assert (await chat.ask("hello", **new_pair())).end["code"] == "llm_rejected"
        await watch.sees("turnstone_turns_total", "failed")
        await chat.send(message="go on", turn_id="t2", **new_pair())
        await chat.until("delta")
        # The process stops; the figures are this process's, so another service shows them.
        await asyncio.to_thread(service.stop)
    await Watch(start(), watch.before).sees("turnstone_turns_total", "interrupted")


async def test_callbacks_that_do_not_arrive_move_their_figures(start: Callable[..., Service], core: FakeCore) -> None:
    service = start(callbacks={"retry_delays_s": (1.0,) * 20})
    watch = Watch(service)
    with core_down(core):
        async with connect(service.url) as chat:
            assert (await chat.ask("hello", **new_pair())).end["type"] == "done"
        await until(service, lambda _: watch.by("turnstone_callback_tries_total", "unreachable") > 0)
        assert figures(service)[("turnstone_callbacks_waiting",)] == 2
        await until(service, lambda now: now[("turnstone_callback_age_seconds",)] > 0.5)
        core.next(Answer(status=500))
    await watch.sees("turnstone_callback_tries_total", "refused")
    await watch.sees("turnstone_callback_tries_total", "delivered", by=2)
    await until(service, lambda now: now[("turnstone_callbacks_waiting",)] == 0)
    assert figures(service)[("turnstone_callback_age_seconds",)] == 0
    assert watch.by("turnstone_callback_latency_seconds_sum") > 0.5, "it tells of the whole wait"


async def test_connections_to_the_database_are_shown(start: Callable[..., Service]) -> None:
    service = start(database={"pool_size": 7})
    assert service.loop is not None
    enough = asyncio.Event()

    async def hold() -> None:
        async with get_db_context() as db:
            await db.connection()
            await enough.wait()

    holding = [asyncio.run_coroutine_threadsafe(hold(), service.loop) for _ in range(3)]
    try:
        await until(service, lambda now: now[("turnstone_database_connections_in_use",)] >= 3)
        assert figures(service)[("turnstone_database_connections_max",)] == 7
    finally:
        service.loop.call_soon_threadsafe(enough.set)
    for held in holding:
        await asyncio.to_thread(held.result, WAIT_S)
    await until(service, lambda now: now[("turnstone_database_connections_in_use",)] == 0)


async def test_lost_lease_is_counted(start: Callable[..., Service], rows: Rows) -> None:
    service = start(lease_s=0.4)
    watch = Watch(service)
    rows("UPDATE workers SET fenced_at = now()")
    await watch.sees("turnstone_leases_lost_total")


async def test_slow_reader_is_counted(service: Service, provider: Provider) -> None:
    provider.next(Script(pieces=("x" * 500_000,) * 8))
    watch = Watch(service)
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", service.port))
    async with connect(service.url, sock=narrow, max_queue=1) as slow:
        await slow.send(message="much", turn_id="t1", **new_pair())
        await until(service, lambda _: watch.by("turnstone_turns_total", "completed") == 1)
        turn = await slow.turn()
        assert len(turn.text) == 4_000_000
    assert watch.by("turnstone_delta_lag_seconds_count") >= 1


async def test_labels_are_few_whatever_clients_send(service: Service, provider: Provider, core: FakeCore) -> None:
    provider.next(*[SCRIPTS[name] for name in ("status_400", "no_usage", "length", "reset_midway")])
    async with connect(service.url) as chat:
        for number in range(12):
            await chat.ask(f"message {number}", f"turn-{number}", exam_id=number + 1, participant_id=number + 1)
    with httpx.Client(base_url=service.url, timeout=WAIT_S) as http:
        for path in ("/api/sessions/1", "/api/sessions/999", "/nowhere/at/all", "/api/exams/7"):
            http.get(path)
    await core.reaches(20)
    for family in scrape(service).values():
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert label == "le" or value in LABELS[label], (sample.name, label, value)


def test_metrics_hold_no_secret(service: Service) -> None:
    text = httpx.get(f"{service.url}/metrics", timeout=WAIT_S).text
    assert [secret for secret in ("sk-scripted", "core-receives", "whsec_", "postgresql") if secret in text] == []
