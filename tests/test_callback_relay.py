"""The delivery of callbacks: order, tries, fairness, and what happens when Core, the database or the process fails."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from app.application.services import callback_relay
from app.application.services.callback_relay import _CLAIM_S, CallbackRelay
from app.application.services.callback_service import CallbackService
from app.core.settings import CallbackSettings, Settings
from app.domain.circuit import CircuitState
from app.infrastructure.persistence.bell import CALLBACKS, CANCELS, Bell
from app.infrastructure.persistence.embedded.handle import EmbeddedPostgres
from app.infrastructure.persistence.migrate import migrate
from app.infrastructure.persistence.models import CallbackStatusEnum
from app.infrastructure.persistence.session import Database, Transaction, get_db_context
from app.infrastructure.repositories.callback_lanes import CallbackLanes, TryResult
from app.infrastructure.repositories.callback_repository import CallbackRepository
from app.infrastructure.repositories.session_repository import SessionRepository
from app.infrastructure.repositories.worker_repository import WorkerRepository
from tests.conftest import CORE_KEY, SECRET, Rows, change
from tests.support.chat import new_pair
from tests.support.core import Answer, Delivery, FakeCore
from tests.support.provider import Provider, Script
from tests.support.service import Service, ServiceProcess, running

WAIT_S = 30.0
HANG = Answer(action="hang")
pytestmark = pytest.mark.usefixtures("database")


async def until(holds: Callable[[], Any], timeout: float = WAIT_S) -> None:
    """Wait for a condition, which may look into the database."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)


async def new_session() -> int:
    async with get_db_context() as db:
        return (await SessionRepository(db).create_session(**new_pair())).id


async def record(session_id: int, events: int = 1, *, held: bool = False) -> None:
    """Record some events of a session in one transaction, as the end of a turn does."""
    async with get_db_context() as db:
        callbacks = CallbackService(db, held=held)
        for number in range(events):
            await callbacks.send_error(session_id, "internal", f"event {number}")


async def sessions_with(events: int, count: int) -> list[int]:
    """New sessions with so many events each."""
    sessions = [await new_session() for _ in range(count)]
    for session_id in sessions:
        await record(session_id, events)
    return sessions


async def new_worker() -> int:
    async with get_db_context() as db:
        return await WorkerRepository(db).register("test", 6)


@asynccontextmanager
async def relaying(settings: CallbackSettings, worker: Callable[[], int] | None = None) -> AsyncIterator[CallbackRelay]:
    """A relay that runs under a worker id of its own, or the one that ``worker`` gives."""
    token = await new_worker() if worker is None else 0
    relay = CallbackRelay(settings, worker or (lambda: token))
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def quick(settings: Settings) -> Callable[..., CallbackSettings]:
    """Settings of a relay with some changed. It gives no Core up that only stands still for a while."""

    def changed(**values: Any) -> CallbackSettings:
        return change(settings, callbacks={"timeout_s": 20, **values}).callbacks

    return changed


def seqs(deliveries: list[Delivery]) -> list[int | None]:
    return [delivery.seq for delivery in deliveries]


def states(rows: Rows, session_id: int) -> list[str]:
    found = rows("SELECT status FROM callbacks WHERE session_id = %s ORDER BY callback_seq", session_id)
    return [row["status"] for row in found]


def states_of_all(rows: Rows) -> set[str]:
    return {row["status"] for row in rows("SELECT DISTINCT status FROM callbacks")}


def somebody_waits_for_a_lock(rows: Rows) -> bool:
    return bool(rows("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"))


def lanes(rows: Rows) -> list[dict[str, Any]]:
    return rows("SELECT * FROM callback_lanes ORDER BY session_id")


# what becomes of an event


async def test_each_answer_of_core_gets_the_tries_it_deserves(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    elsewhere = (("Location", core.callback_url),)
    expected: dict[int, int] = {}
    for answer, tries in (
        *((Answer(status=status), 1) for status in (200, 201, 204, 299, 410)),
        *((Answer(status=status), 3) for status in (400, 413, 422)),
        *((Answer(status=status), 4) for status in (401, 404, 405, 409, 429, 500, 502, 503)),
        *((Answer(status=status, headers=elsewhere), 4) for status in (301, 302, 307, 308)),
        *((answer, 4) for answer in (Answer(action="reset"), Answer(action="close"))),
    ):
        session_id = await new_session()
        core.always(answer, session_id)
        expected[session_id] = tries
        await record(session_id)
    async with relaying(quick(retry_delays_s=(0.05, 0.05, 0.05), concurrency=32)):
        await until(lambda: not lanes(rows))
    assert {int(session): len(tries) for session, tries in core.by_session().items()} == expected
    for row in rows("SELECT * FROM callbacks"):
        posts = core.by_session()[str(row["session_id"])]
        assert row["attempts"] == len(posts)
        assert row["status"] == ("delivered" if posts[-1].accepted else "failed")
        assert (row["delivered_at"] is None) == (row["status"] == "failed")
        assert (row["last_error"] is None) == (row["status"] == "delivered")
        assert row["next_try_at"] is None
        assert {delivery.id for delivery in posts} == {row["event_id"]}


async def test_silence_of_core_ends_a_try_and_gets_as_many_as_a_fault(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    """By itself: so short a patience may end before Core has read a POST, and would end those of others, too."""
    (session_id,) = await sessions_with(1, 1)
    core.always(HANG)
    async with relaying(quick(retry_delays_s=(0.05, 0.05, 0.05), timeout_s=0.3)):
        await until(lambda: not lanes(rows))
    row = rows.one("SELECT * FROM callbacks")
    assert (row["session_id"], row["attempts"], row["status"]) == (session_id, 4, "failed")
    assert "timeout" in row["last_error"]
    assert len(core.deliveries) <= 4 and core.unique_ids() <= {row["event_id"]}


async def test_core_says_when_to_come_again_in_seconds_or_as_a_date(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    then = (datetime.now(UTC) + timedelta(seconds=2)).replace(microsecond=0)
    then_here = time.monotonic() + (then - datetime.now(UTC)).total_seconds()
    in_two_seconds = format_datetime(then, usegmt=True)
    sessions = {}
    for status, value in ((429, "1"), (503, in_two_seconds), (500, "30")):
        sessions[status] = await new_session()
        core.next(Answer(status=status, headers=(("Retry-After", value),)), session_id=sessions[status])
        await record(sessions[status])
    async with relaying(quick(retry_delays_s=(0.05, 0.05))):
        await core.reaches(3, WAIT_S)
    waited, again_at = {}, {}
    for status, session_id in sessions.items():
        first, second = core.by_session()[str(session_id)]
        waited[status], again_at[status] = second.at - first.at, second.at
    assert waited[429] >= 0.95
    assert again_at[503] >= then_here - 0.05
    assert waited[500] < 20, "Retry-After means nothing here"


async def test_tries_are_as_far_apart_as_the_delays_say(core: FakeCore, quick: Callable[..., CallbackSettings]) -> None:
    (session_id,) = await sessions_with(1, 1)
    core.next(Answer(status=500, times=3), session_id=session_id)
    async with relaying(quick(retry_delays_s=(0.1, 0.2, 0.4))):
        await core.reaches(1, WAIT_S)
    at = [delivery.at for delivery in core.deliveries]
    assert len(at) == 4
    for (earlier, later), delay in zip(itertools.pairwise(at), (0.1, 0.2, 0.4), strict=True):
        assert later - earlier >= delay * 0.95


async def test_complaint_26_a_sessions_events_arrive_in_order_whatever_goes_wrong_with_some(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    sessions = await sessions_with(0, 12)
    for number, session_id in enumerate(sessions):
        core.next(*[Answer(status=(500, 503, 429)[number % 3])] * (number % 4), session_id=session_id)
        core.next(Answer(), Answer(action="reset"), session_id=session_id)
    async with relaying(quick(retry_delays_s=(0.02,) * 8)) as relay:

        async def talk(session_id: int) -> None:
            for _ in range(6):
                await record(session_id, 2)
                relay.wake()

        await asyncio.gather(*map(talk, sessions))
        await core.reaches(12 * 12, WAIT_S)
        await until(lambda: not lanes(rows))
    for session_id in sessions:
        assert seqs(core.events(session_id)) == list(range(1, 13))


async def test_when_an_event_ran_out_of_tries_it_is_kept_and_those_behind_it_go_on(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (session_id,) = await sessions_with(3, 1)
    core.next(Answer(status=500, times=3), session_id=session_id)
    async with relaying(quick(retry_delays_s=(0.02, 0.02))):
        await core.reaches(2, WAIT_S)
        await until(lambda: not lanes(rows))
    assert seqs(core.deliveries.items) == [1, 1, 1, 2, 3]
    assert states(rows, session_id) == ["failed", "delivered", "delivered"]
    kept = rows.one("SELECT * FROM callbacks WHERE status = 'failed'")
    assert (kept["attempts"], kept["last_error"]) == (3, "HTTP 500")
    assert kept["payload"]["error_message"] == "event 0"


async def test_a_replayed_event_goes_out_with_its_id_and_number_and_all_its_tries(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (session_id,) = await sessions_with(2, 1)
    core.next(Answer(status=410), session_id=session_id)
    async with relaying(quick(retry_delays_s=(0.02,) * 3)) as relay:
        await until(lambda: states(rows, session_id) == ["failed", "delivered"])
        for row in rows("SELECT event_id FROM callbacks"):
            core.next(Answer(status=500, times=3), session_id=session_id)
            async with get_db_context() as db:
                replayed = await CallbackRepository(db).replay(row["event_id"])
            assert replayed is not None and replayed.attempts == 0
            relay.wake()
            await until(lambda: states(rows, session_id) == ["delivered", "delivered"] and not lanes(rows))
    assert seqs(core.deliveries.items) == [1, 2, 1, 1, 1, 1, 2, 2, 2, 2]
    assert [row["attempts"] for row in rows("SELECT attempts FROM callbacks")] == [4, 4]
    assert len(core.unique_ids()) == 2


async def test_a_replay_does_not_wait_for_the_next_look_of_a_session_that_waits(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (session_id,) = await sessions_with(1, 1)
    core.next(Answer(status=500), session_id=session_id)
    async with relaying(quick(retry_delays_s=(3600,))) as relay:
        await until(lambda: rows.one("SELECT attempts FROM callbacks")["attempts"] == 1)
        async with get_db_context() as db:
            await CallbackRepository(db).replay(rows.one("SELECT event_id FROM callbacks")["event_id"])
        relay.wake()
        await core.reaches(1, WAIT_S)


# nobody waits for anybody else


async def test_a_stuck_session_holds_up_no_other(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    stuck, *others = await sessions_with(3, 9)
    core.always(HANG, stuck)
    async with relaying(quick(timeout_s=60, concurrency=4)):
        await core.reaches(8 * 3, WAIT_S)
        await until(lambda: len(lanes(rows)) == 1)
        assert seqs(core.by_session()[str(stuck)]) == [1]
        for session_id in others:
            assert seqs(core.events(session_id)) == [1, 2, 3]
        core.stop()  # so that the end need not wait for the answer


async def test_many_more_stuck_sessions_than_places_do_not_keep_a_new_turns_callbacks_waiting(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    stuck = await sessions_with(1, 200)
    for session_id in stuck:
        core.always(HANG, session_id)
    rows("UPDATE callback_lanes SET failing = true")  # each has been tried before
    async with relaying(quick(concurrency=4, timeout_s=5, retry_delays_s=(0.01,) * 1000)) as relay:
        await core.reaches(lambda posts: len(posts) >= 3, WAIT_S)
        for _ in range(3):
            (session_id,) = await sessions_with(2, 1)
            relay.wake()
            await core.reaches(
                lambda posts, s=str(session_id): sum(p.accepted and p.session_id == s for p in posts) >= 2,  # type: ignore[misc]
                WAIT_S,
            )
        core.stop()
    tried = {delivery.session_id for delivery in core.deliveries}
    assert len(tried) < 100, "a queue in which all wait for their turn would have tried all 200"


async def test_sessions_that_core_keeps_waiting_make_room_for_others(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    stuck = await sessions_with(1, 9)
    for session_id in stuck:
        core.always(HANG, session_id)
    async with relaying(quick(concurrency=4, timeout_s=60)) as relay:
        await core.reaches(lambda posts: len(posts) >= 9, WAIT_S)  # more than there are places
        (session_id,) = await sessions_with(2, 1)
        relay.wake()
        await core.reaches(lambda posts: sum(p.session_id == str(session_id) for p in posts) >= 2, WAIT_S)
        core.stop()


async def test_many_new_turns_that_get_stuck_do_not_keep_a_retry_waiting(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    for session_id in await sessions_with(1, 200):
        core.always(HANG, session_id)
    (session_id,) = await sessions_with(1, 1)
    rows("UPDATE callback_lanes SET failing = true, due_at = now() WHERE session_id = %s", session_id)
    async with relaying(quick(concurrency=4, timeout_s=10, retry_delays_s=(3600,))):
        await core.reaches(1, WAIT_S)
        core.stop()
    assert len({delivery.session_id for delivery in core.deliveries}) < 100


async def test_a_session_with_a_long_backlog_takes_turns_with_others(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (long,) = await sessions_with(60, 1)
    core.always(Answer(delay_s=0.005), long)
    async with relaying(quick(concurrency=1)) as relay:
        await core.reaches(1, WAIT_S)
        (short,) = await sessions_with(1, 1)
        before = len(core.deliveries)
        relay.wake()
        await core.reaches(61, WAIT_S)
    order = [delivery.session_id for delivery in core.deliveries]
    assert order.index(str(short)) <= before + 2 * callback_relay._EVENTS_PER_CLAIM, "a claim that was made just then"
    assert seqs(core.events(long)) == list(range(1, 61))


async def test_no_more_posts_are_under_way_than_the_setting_allows(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_relay, "_PLACE_S", 60)  # who is kept waiting makes room, also by a busy machine
    sessions = await sessions_with(1, 30)
    rows("UPDATE callback_lanes SET failing = session_id %% 2 = 0")
    core.always(Answer(delay_s=0.05))
    async with relaying(quick(concurrency=5)):
        await core.reaches(len(sessions), WAIT_S)
    edges = sorted(edge for post in core.deliveries for edge in ((post.at, 1), (post.ended_at or 0.0, -1)))
    assert max(itertools.accumulate(step for _, step in edges)) <= 5


async def test_when_nobody_answers_one_goes_ahead_and_the_others_keep_their_tries(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callback_relay, "_PLACE_S", 60)  # who is kept waiting makes room, also by a busy machine
    sessions = await sessions_with(3, 60)
    core.always(Answer(status=503))
    async with relaying(quick(concurrency=4, retry_delays_s=(0.3,) * 100)) as relay:
        await core.reaches(lambda posts: len(posts) >= 12, WAIT_S)
        tries, passed = len(core.deliveries), time.monotonic() - core.deliveries[4].at
        most = 5 + 4 + passed / 0.3 + passed + 1
        assert tries <= most, "what was under way, one for each pause, and each second one that has not failed"
        assert rows("SELECT sum(attempts) AS tries FROM callbacks")[0]["tries"] <= tries
        core.always(Answer())
        await core.reaches(180, WAIT_S)
        await until(lambda: not lanes(rows))
        late = await new_session()
        await record(late)
        relay.wake()
        await core.reaches(181, WAIT_S)
    for session_id in sessions:
        assert seqs(core.events(session_id)) == [1, 2, 3]
    assert len({delivery.id for delivery in core.deliveries if delivery.accepted}) == 181


@pytest.mark.slow
async def test_many_stuck_sessions_beside_sparse_traffic_keep_no_live_session_waiting(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    for session_id in await sessions_with(1, 200):
        core.always(Answer(status=503), session_id)
    rows("UPDATE callback_lanes SET failing = true, due_at = now() + random() * interval '10 seconds'")
    waits = []
    async with relaying(quick(retry_delays_s=(1, 2, 4, 15, 60, 300))) as relay:
        await until(lambda: len(core.deliveries) > 6)
        for _ in range(4):
            (session_id,) = await sessions_with(2, 1)
            begun = time.monotonic()
            relay.wake()
            await core.reaches(
                lambda posts, s=str(session_id): sum(p.accepted and p.session_id == s for p in posts) >= 2,  # type: ignore[misc]
                WAIT_S,
            )
            waits.append(time.monotonic() - begun)
            await asyncio.sleep(2)
        core.stop()
    assert statistics.median(waits) < 10, waits  # it was 17 s for each


async def test_poison_events_of_many_sessions_are_no_dead_core(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    for session_id in await sessions_with(1, 30):
        core.always(Answer(action="reset") if session_id % 2 else Answer(status=500), session_id)
    with capture_logs() as logs:
        async with relaying(quick(concurrency=4, retry_delays_s=(0.05,))):
            await until(lambda: states_of_all(rows) == {"failed"})
    assert not [entry for entry in logs if entry["event"] == "core_does_not_answer"]
    assert rows("SELECT count(*) FROM callback_attempts")[0]["count"] == 60


# nothing is lost, nothing stands still, nothing spins


async def test_an_event_recorded_while_its_lane_is_being_emptied_is_not_forgotten(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    sessions = await sessions_with(0, 8)
    async with relaying(quick(concurrency=8)) as relay:

        async def talk(session_id: int) -> None:
            for number in range(25):
                await record(session_id)
                relay.wake()
                await asyncio.sleep(0.001 * (number % 7))

        await asyncio.gather(*map(talk, sessions))
        await core.reaches(8 * 25, WAIT_S)
        await until(lambda: not lanes(rows))
    for session_id in sessions:
        assert seqs(core.events(session_id)) == list(range(1, 26))
    assert len(core.deliveries) == 8 * 25, "and nothing is sent twice"


async def test_an_event_that_is_committed_while_its_lane_is_about_to_be_removed_keeps_the_lane(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (session_id,) = await sessions_with(1, 1)
    recorded = threading.Event()
    core.next(Answer(after=recorded))
    async with relaying(quick(timeout_s=60)):
        await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
        async with get_db_context() as db:
            await CallbackService(db).send_error(session_id, "internal", "not committed yet")
            recorded.set()
            await until(lambda: somebody_waits_for_a_lock(rows))
        await core.reaches(2, WAIT_S)


async def test_what_is_committed_by_a_transaction_that_was_open_for_long_is_found_without_a_wake_up(
    core: FakeCore, quick: Callable[..., CallbackSettings]
) -> None:
    (session_id,) = await sessions_with(1, 1)
    async with relaying(quick()):
        async with get_db_context() as db:
            await CallbackService(db).send_error(session_id, "internal", "late")
            await core.reaches(0, WAIT_S)
        await core.reaches(2, WAIT_S)


async def test_a_claim_that_nobody_knows_of_is_found_again(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    """A commit whose answer was lost leaves one."""
    token = await new_worker()
    (busy,) = await sessions_with(1, 1)
    core.always(HANG, busy)
    async with relaying(quick(timeout_s=60), lambda: token):
        await core.reaches(lambda posts: len(posts) == 1, WAIT_S)
        async with get_db_context() as db:
            lost = (await SessionRepository(db).create_session(**new_pair())).id
            await CallbackService(db).send_error(lost, "internal", "claimed in the moment in which it is recorded")
            await db.execute(text(f"UPDATE callback_lanes SET claimed_by = {token} WHERE session_id = {lost}"))
        await core.reaches(1, WAIT_S)
        assert core.events(lost)
        assert seqs(core.by_session()[str(busy)]) == [1], "what is being sent is left alone"
        core.stop()


async def test_a_lane_that_ends_by_a_bug_is_taken_up_again_and_the_others_do_not_notice(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    broken, sound = await sessions_with(1, 2)
    rows("UPDATE callbacks SET payload = '[]' WHERE session_id = %s", broken)  # no object, which nobody foresaw
    async with relaying(quick()):
        with capture_logs() as logs:
            await core.reaches(1, WAIT_S)
            await until(lambda: any(entry["event"] == "callback_lane_failed" for entry in logs))
        assert core.events(sound)
        rows("UPDATE callbacks SET payload = '{}' WHERE session_id = %s", broken)
        await core.reaches(2, WAIT_S)


async def test_a_fenced_workers_claims_are_freed_and_it_claims_nothing_more(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    dead = await new_worker()
    sessions = await sessions_with(2, 3)
    async with get_db_context() as db:
        claimed, _ = await CallbackLanes(db).claim(dead, fresh=10, failing=10, room=10)
        assert len(claimed) == 3
    async with relaying(quick()):
        async with get_db_context() as db:
            await WorkerRepository(db).fence(dead)
        await core.reaches(6, WAIT_S)
    await record(sessions[0])
    async with get_db_context() as db:
        claimed, _ = await CallbackLanes(db).claim(dead, fresh=10, failing=10, room=10)
        assert claimed == []
    assert [lane["claimed_by"] for lane in lanes(rows)] == [None]


async def test_core_may_answer_another_one_while_somebody_is_being_sent_ahead(
    core: FakeCore, quick: Callable[..., CallbackSettings], monkeypatch: pytest.MonkeyPatch, rows: Rows
) -> None:
    relay = CallbackRelay(quick(), lambda: 0)
    for session_id in range(5):
        relay._circuit.silent(session_id, 0.0, time.monotonic() - 3600, new=True)
    assert relay._circuit.state is CircuitState.OPEN
    asked = []

    async def meanwhile_it_answers(_sender: object, *, failing: bool) -> bool:
        asked.append(failing)
        if failing:
            relay._circuit.answered(time.monotonic(), new=True)
        return failing

    monkeypatch.setattr(relay, "_send_one", meanwhile_it_answers)
    async with asyncio.timeout(WAIT_S):
        await relay._send_ahead(object())  # type: ignore[arg-type]
    assert (asked, relay._circuit.state) == ([False, True], CircuitState.CLOSED)


async def test_a_commit_of_which_nobody_heard_is_not_repeated_over_a_new_claim(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would free the lane for others while its next events are being sent."""
    written, write_down = [], CallbackLanes.write_down

    async def unheard_at_first(lanes: CallbackLanes, lane: Any, results: Any) -> None:
        written.append(len(results))
        if len(written) > 1:
            await write_down(lanes, lane, results)
            return
        async with get_db_context() as db:
            await write_down(CallbackLanes(db), lane, results)
        await record(session_id)
        relay.wake()
        raise OperationalError("COMMIT", {}, ConnectionError("server closed the connection unexpectedly"))

    monkeypatch.setattr(CallbackLanes, "write_down", unheard_at_first)
    async with relaying(quick()) as relay:
        [session_id] = await sessions_with(1, 1)
        relay.wake()
        await until(lambda: states(rows, session_id) == ["delivered"] * 2)
    assert (written, seqs(core.deliveries)) == ([1, 1], [1, 2])


async def test_that_core_took_an_event_counts_whatever_others_have_written_meanwhile(rows: Rows) -> None:
    """As where its worker stood still during the POST, and another one found a result that was lost sight of."""
    [session_id] = await sessions_with(1, 1)
    worker = await new_worker()
    async with get_db_context() as db:
        [lane], _ = await CallbackLanes(db).claim(worker, fresh=10, failing=10, room=10)
    [event] = rows("UPDATE callbacks SET status = 'failed', attempts = 1 RETURNING id")
    for status in (CallbackStatusEnum.PENDING, CallbackStatusEnum.DELIVERED):
        async with get_db_context() as db:
            await CallbackLanes(db).write_down(lane, [TryResult(event["id"], 1, status)])
        assert states(rows, session_id) == ["failed" if status is CallbackStatusEnum.PENDING else "delivered"]


async def test_a_claim_made_while_its_worker_is_being_fenced_is_no_claim(rows: Rows) -> None:
    worker = await new_worker()
    await sessions_with(1, 1)

    async def claim() -> list[Any]:
        async with get_db_context() as db:
            claimed, _ = await CallbackLanes(db).claim(worker, fresh=10, failing=10, room=10)
            return list(claimed)

    async with get_db_context() as db:
        await WorkerRepository(db).fence(worker)
        claiming = asyncio.create_task(claim())
        await until(lambda: claiming.done() or somebody_waits_for_a_lock(rows))
    assert await claiming == []
    assert [lane["claimed_by"] for lane in lanes(rows)] == [None]


async def test_a_relay_that_lost_its_lease_begins_no_further_post_and_another_goes_on_in_order(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    old, none = await new_worker(), await new_worker()
    async with get_db_context() as db:
        await WorkerRepository(db).fence(none)  # so that it is the other that goes on
    current = old
    (session_id,) = await sessions_with(5, 1)
    delivered = threading.Event()
    core.next(Answer(after=delivered), session_id=session_id)
    async with relaying(quick(timeout_s=60), lambda: current) as lost:
        await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
        async with get_db_context() as db:
            await WorkerRepository(db).fence(old)
        current = none
        async with relaying(quick()):
            await until(lambda: states(rows, session_id) == ["delivered"] * 5)
        delivered.set()
        await core.reaches(lambda posts: all(post.accepted for post in posts), WAIT_S)
        await until(lambda: not lost._lanes)
    assert seqs(core.deliveries.items) == [1, 1, 2, 3, 4, 5]


async def test_two_relays_send_no_event_twice_and_a_sessions_events_one_after_the_other(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    sessions = await sessions_with(3, 20)
    core.always(Answer(delay_s=0.005))
    async with relaying(quick(concurrency=4)) as one, relaying(quick(concurrency=4)) as other:
        for session_id in sessions:
            await record(session_id, 2)
            one.wake()
            other.wake()
        await core.reaches(20 * 5, WAIT_S)
        await until(lambda: not lanes(rows))
    for session_id in sessions:
        posts = core.by_session()[str(session_id)]
        assert seqs(posts) == [1, 2, 3, 4, 5]
        for earlier, later in itertools.pairwise(posts):
            assert earlier.ended_at is not None and earlier.ended_at <= later.at
    assert len(core.deliveries) == 100


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[Any]]]:
    """The statements that go the short way from now on, each with the rows it brought."""
    seen: list[tuple[str, list[Any]]] = []
    run = Transaction.run

    async def noted(self: Transaction, statement: Any, values: Any) -> list[Any]:
        rows = await run(self, statement, values)
        seen.append((statement, rows))
        return rows

    monkeypatch.setattr(Transaction, "run", noted)
    return seen


async def count_claims(statements: list[tuple[str, list[Any]]], seconds: float) -> int:
    """How many claiming statements are sent within the next seconds."""
    before = len(statements)
    await asyncio.sleep(seconds)
    return sum("SKIP LOCKED" in statement for statement, _ in statements[before:])


async def test_a_thousand_sessions_that_wait_for_a_retry_cost_next_to_nothing(
    core: FakeCore, quick: Callable[..., CallbackSettings], statements: list[tuple[str, list[Any]]], rows: Rows
) -> None:
    rows("INSERT INTO prompt_sessions (exam_id, participant_id) SELECT 9, g FROM generate_series(1, 1000) AS g")
    rows(
        "INSERT INTO callbacks (event_id, session_id, callback_seq, type, status, attempts)"
        " SELECT 'evt_' || id, id, 1, 'error', 'pending', 5 FROM prompt_sessions WHERE exam_id = 9"
    )
    rows(
        "INSERT INTO callback_lanes (session_id, failing, due_at)"
        " SELECT id, true, now() + interval '1 hour' FROM prompt_sessions WHERE exam_id = 9"
    )
    async with relaying(quick()):
        (session_id,) = await sessions_with(1, 1)
        await core.reaches(1, WAIT_S)
        used = []
        while not used or (min(used) >= 0.5 and len(used) < 5):  # time in which the machine is stolen counts, too
            before = time.thread_time()
            assert await count_claims(statements, 2) <= 10
            used.append(time.thread_time() - before)
        assert min(used) < 0.5, used
    assert {delivery.session_id for delivery in core.deliveries} == {str(session_id)}


async def test_a_lane_that_nobody_can_claim_just_now_makes_no_busy_loop_and_holds_up_no_other(
    core: FakeCore, quick: Callable[..., CallbackSettings], statements: list[tuple[str, list[Any]]]
) -> None:
    (session_id,) = await sessions_with(1, 1)
    async with get_db_context() as db:
        await CallbackService(db).send_error(session_id, "internal", "holds the lane's row")
        async with relaying(quick()):
            assert await count_claims(statements, 1) <= 50
            assert len(core.deliveries) == 0
            await record(await new_session())
            await core.reaches(1, WAIT_S)


async def test_no_place_means_no_looking(
    core: FakeCore,
    quick: Callable[..., CallbackSettings],
    statements: list[tuple[str, list[Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(callback_relay, "_MOST_PER_PLACE", 1)
    await sessions_with(1, 6)
    core.always(HANG)
    async with relaying(quick(concurrency=2, timeout_s=60)):
        await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
        assert await count_claims(statements, 1) <= 6
        core.stop()


async def test_a_claim_reads_a_bounded_part_of_a_backlog(
    core: FakeCore, quick: Callable[..., CallbackSettings], statements: list[tuple[str, list[Any]]]
) -> None:
    await sessions_with(500, 1)
    core.always(HANG)
    async with relaying(quick(timeout_s=60)):
        await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
        core.stop()
    fetched = [len(rows) for statement, rows in statements if "event.payload, event.attempts" in statement]
    assert fetched and max(fetched) <= 10


async def test_stopping_waits_for_the_post_under_way_and_begins_no_other(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    (session_id,) = await sessions_with(50, 1)
    core.always(Answer(delay_s=0.2))
    async with relaying(quick()):
        await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
        before = len(core.deliveries)
    stopped_after = len(core.deliveries)
    assert stopped_after <= before + 2 < 50, "one that Core had not read, and one that began before it was told"
    assert states(rows, session_id).count("delivered") == stopped_after
    assert [lane["claimed_by"] for lane in lanes(rows)] == [None]


# held until there is somebody to tell


async def test_what_was_held_goes_out_in_order_once_a_receiver_is_set(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    sessions = [await new_session() for _ in range(3)]
    for session_id in sessions:
        await record(session_id, 2, held=True)
    async with relaying(quick(url=None)) as deaf:
        deaf.wake()
        assert states_of_all(rows) == {"held"}
        assert lanes(rows) == []
    async with relaying(quick()) as relay:
        for session_id in sessions:
            await record(session_id)
        relay.wake()
        await core.reaches(9, WAIT_S)
    for session_id in sessions:
        assert seqs(core.events(session_id)) == [1, 2, 3]


async def test_what_a_process_without_a_receiver_records_goes_out_by_one_that_has_one(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    async with relaying(quick()):
        (session_id,) = await sessions_with(1, 1)
        await core.reaches(1, WAIT_S)
        await record(session_id, 2, held=True)  # such as one that was started before the setting was made
        await core.reaches(3, WAIT_S)
    assert seqs(core.events(session_id)) == [1, 2, 3]


async def test_replaying_what_is_held_leaves_it_held(quick: Callable[..., CallbackSettings], rows: Rows) -> None:
    session_id = await new_session()
    await record(session_id, held=True)
    async with get_db_context() as db:
        replayed = await CallbackRepository(db).replay(rows.one("SELECT event_id FROM callbacks")["event_id"])
    assert replayed is not None
    assert states(rows, session_id) == ["held"]
    assert lanes(rows) == []


# the database


async def test_no_transaction_is_open_while_core_keeps_us_waiting(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    await sessions_with(2, 6)
    core.always(HANG)
    async with relaying(quick(timeout_s=60)):
        await core.reaches(lambda posts: len(posts) == 6, WAIT_S)
        hung_since = time.monotonic()
        await until(lambda: time.monotonic() - hung_since > 1.0)
        open_for_long = (
            "SELECT state, query FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
            " AND now() - xact_start > interval '0.7 seconds' AND pid <> pg_backend_pid()"
        )
        # One in which we stood still ends by and by; one that is held for a POST would never.
        await until(lambda: not rows(open_for_long))
        core.stop()


async def test_connections_that_break_while_delivering_lose_nothing(
    core: FakeCore, quick: Callable[..., CallbackSettings], rows: Rows
) -> None:
    sessions = await sessions_with(4, 10)
    core.always(Answer(delay_s=0.02))
    async with relaying(quick(concurrency=4)):
        for share in (5, 15, 25):
            await core.reaches(share, WAIT_S)
            rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        await core.reaches(40, WAIT_S)
        await until(lambda: not lanes(rows))
    for session_id in sessions:
        assert seqs(core.events(session_id)) == [1, 2, 3, 4]
    assert {row["attempts"] for row in rows("SELECT attempts FROM callbacks")} == {1}


async def test_delivery_goes_on_after_the_database_was_restarted(
    core: FakeCore, provider: Provider, start: Callable[..., Service], scratch: Path
) -> None:
    place = scratch / "restarted"
    server = await asyncio.to_thread(EmbeddedPostgres.open, place)
    await asyncio.to_thread(migrate, make_url(server.url).set(drivername="postgresql+psycopg"))
    core.next(Answer(delay_s=1.0))
    service = await asyncio.to_thread(start, database={"url": server.url})
    await asyncio.to_thread(say, service, "before")
    await core.reaches(lambda posts: len(posts) >= 1, WAIT_S)
    await asyncio.to_thread(server.close)
    server = await asyncio.to_thread(EmbeddedPostgres.open, place)
    try:
        await core.reaches(2, WAIT_S)
        await asyncio.to_thread(say, service, "after")
        await core.reaches(4, WAIT_S)
        for posts in core.by_session().values():
            assert seqs(posts)[:1] == [1]
    finally:
        await asyncio.to_thread(service.stop)
        await asyncio.to_thread(server.close)


# processes


def say(service: Service | ServiceProcess, message: str, **where: Any) -> dict[str, Any]:
    """One turn over REST."""
    answer = httpx.post(
        f"{service.url}/api/chat/message", json={"message": message, **(where or new_pair())}, timeout=WAIT_S
    )
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


@pytest.fixture
def env(settings: Settings, core: FakeCore, provider: Provider, scratch: Path) -> dict[str, str]:
    """The environment of processes among the other fixtures."""
    assert settings.database.url is not None
    return {
        "TURNSTONE_PORT": "0",
        "TURNSTONE_DATA_DIR": str(scratch / "process"),
        "TURNSTONE_LOG_LEVEL": "debug",
        "TURNSTONE_DATABASE__URL": settings.database.url,
        "TURNSTONE_LLM__MODEL": "openai:scripted",
        "TURNSTONE_LLM__BASE_URL": provider.base_url,
        "TURNSTONE_LLM__API_KEY": "sk-scripted",
        "TURNSTONE_CALLBACKS__URL": core.callback_url,
        "TURNSTONE_CALLBACKS__API_KEY": CORE_KEY,
        "TURNSTONE_CALLBACKS__SIGNING_SECRET": SECRET,
        "TURNSTONE_CALLBACKS__RETRY_DELAYS_S": "[0.1, 0.1, 0.2]",
    }


async def test_tries_are_counted_on_across_a_restart(core: FakeCore, start: Callable[..., Service], rows: Rows) -> None:
    delays = {"retry_delays_s": (0.05, 0.05, *(1.5,) * 10)}
    core.always(Answer(status=500))
    service = await asyncio.to_thread(start, callbacks=delays)
    await asyncio.to_thread(say, service, "hello")
    await until(lambda: rows("SELECT 1 FROM callbacks WHERE attempts >= 3"))
    await asyncio.to_thread(service.stop)
    before = len(core.deliveries)
    assert rows.one("SELECT attempts FROM callbacks WHERE callback_seq = 1")["attempts"] == before >= 3
    core.always(Answer())
    await asyncio.to_thread(start, callbacks=delays)
    await core.reaches(2, WAIT_S)
    await until(lambda: not lanes(rows))
    assert [row["attempts"] for row in rows("SELECT attempts FROM callbacks ORDER BY callback_seq")] == [before + 1, 1]


@pytest.mark.slow
async def test_a_process_killed_between_cores_answer_and_its_note_of_it_sends_the_same_event_again(
    core: FakeCore,
    provider: Provider,
    env: dict[str, str],
    database_url: str,
    rows: Rows,
    start: Callable[..., Service],
) -> None:
    prompt, answer = "a prompt that no log may show", "an answer that no log may show"
    provider.default = Script(pieces=(answer,))
    locked = threading.Event()
    core.next(Answer(status=500), Answer(after=locked))
    with running(ServiceProcess("serve", env=env)) as process:
        await asyncio.to_thread(process.wait_ready)
        await asyncio.to_thread(say, process, prompt)
        await core.reaches(lambda posts: len(posts) >= 2, WAIT_S)
        with psycopg.connect(database_url) as noting:
            # The note of a try cannot be written while somebody else writes to the event's row.
            noting.execute("SELECT id FROM callbacks FOR UPDATE")
            await asyncio.sleep(_CLAIM_S + 0.1)  # after that long no further event is sent before this one's note
            locked.set()
            await core.reaches(1, WAIT_S)
            process.kill()
    assert states_of_all(rows) == {"pending"}
    await asyncio.to_thread(start, lease_s=1)
    await until(lambda: states_of_all(rows) == {"delivered"})
    posts = core.deliveries.items
    assert seqs(posts) == [1, 1, 1, 2]
    assert [delivery.accepted for delivery in posts] == [False, True, True, True]
    assert len({delivery.id for delivery in posts[:3]}) == len({delivery.raw for delivery in posts[:3]}) == 1
    await asyncio.to_thread(process.wait_for_line, "callback_not_delivered")
    for private in (prompt, answer, SECRET, CORE_KEY, "sk-scripted"):
        assert private not in process.output


async def test_a_worker_process_delivers_and_is_told_of_each_commit(
    core: FakeCore, env: dict[str, str], rows: Rows, start: Callable[..., Service]
) -> None:
    service = await asyncio.to_thread(start, worker={"embedded": False})
    pair = new_pair()
    await asyncio.to_thread(say, service, "nobody delivers yet", **pair)
    assert states_of_all(rows) == {"pending"}
    with running(ServiceProcess("worker", env=env)) as worker:
        await asyncio.to_thread(worker.wait_for_line, "working")
        await core.reaches(2, WAIT_S)
        for turn in range(2, 11):
            await asyncio.to_thread(say, service, f"message {turn}", **pair)
            await core.reaches(2 * turn, WAIT_S)
        await until(lambda: not lanes(rows))
        told, last = {"NOTIFY turnstone_callbacks", "LISTEN turnstone_callbacks"}, "SELECT query FROM pg_stat_activity"
        await until(lambda: told <= {row["query"] for row in rows(f"{last} WHERE datname = current_database()")})
        assert worker.stop() == 0
    assert seqs(core.deliveries.items) == list(range(1, 21))


async def test_the_bell_is_heard_by_another_listener_and_survives_lost_connections(
    database: Database, rows: Rows
) -> None:
    heard: list[str] = []
    bell = Bell(database.dsn)
    listener = Bell(database.dsn).listen_forever({CALLBACKS: heard.append, CANCELS: heard.append})
    jobs = [asyncio.create_task(bell.send_forever()), asyncio.create_task(listener)]
    listening = f"query = 'LISTEN {CANCELS}' AND state = 'idle' AND pid <> pg_backend_pid()"  # which is said last
    try:
        await until(lambda: rows(f"SELECT 1 FROM pg_stat_activity WHERE {listening}"))
        bell.ring()
        await until(lambda: heard == [""])
        ends = f"({listening} OR query LIKE 'NOTIFY %%')"
        cut = rows(f"SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ends}")
        assert len(cut) == 2
        pids = [row["pid"] for row in cut]
        await until(lambda: rows(f"SELECT 1 FROM pg_stat_activity WHERE {listening} AND pid <> ALL(%s)", pids))
        bell.ring()
        await until(lambda: len(heard) >= 2)
        async with get_db_context() as db:
            await db.run("SELECT pg_notify(%(channel)s, '77')", {"channel": CANCELS})
        await until(lambda: heard[-1] == "77")
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
