"""The tables: made by migrations, equal to the models, and holding what the contract promises."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.errors import CheckViolation, UniqueViolation
from sqlalchemy import URL, Connection, create_engine, inspect, make_url, text

from app.core.errors import StartupError
from app.infrastructure.persistence.migrate import alembic_config, migrate, schema_state, wanted_version
from app.infrastructure.persistence.models import Base
from tests.conftest import Rows
from tests.support.chat import Command
from tests.support.service import running


@pytest.fixture
def empty(postgres: str) -> Iterator[URL]:
    """A database without tables."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE empty")
        yield make_url(postgres).set(drivername="postgresql+psycopg", database="empty")
        connection.execute("DROP DATABASE empty WITH (FORCE)")


@pytest.fixture
def connection(empty: URL) -> Iterator[Connection]:
    """A connection to the database without tables."""
    engine = create_engine(empty)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def differences(connection: Connection) -> list[object]:
    """What a new migration would have to do."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, Base.metadata))


def steps(connection: Connection, to: str) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    (command.downgrade if to == "base" else command.upgrade)(config, to)
    connection.commit()


def test_migrations_make_what_the_models_say(empty: URL, connection: Connection) -> None:
    assert differences(connection)
    connection.rollback()
    found = migrate(empty)
    assert (found.current, found.up_to_date) == (None, False)
    assert differences(connection) == []


def test_a_second_run_changes_nothing(empty: URL) -> None:
    migrate(empty)
    found = migrate(empty)
    assert found.up_to_date
    assert schema_state(empty) == found


def test_down_and_up_again_gives_the_same_tables(connection: Connection) -> None:
    steps(connection, "head")
    steps(connection, "base")
    assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
    connection.commit()
    steps(connection, "head")
    assert differences(connection) == []


def test_refusals_that_are_there_are_told_from_a_provider_s_filter(connection: Connection) -> None:
    steps(connection, "0007")
    connection.execute(text("INSERT INTO prompt_sessions (id, exam_id, participant_id) VALUES (1, 1, 1)"))
    for turn, finish_reason in enumerate(("refused", "refused", "stop"), start=1):
        connection.execute(
            text(
                "INSERT INTO prompt_turns (session_id, turn, client_turn_id, turn_id_is_int, status, owner, model,"
                " finish_reason) VALUES (1, :turn, :name, false, 'completed', 1, 'm', :finish_reason)"
            ),
            {"turn": turn, "name": f"t{turn}", "finish_reason": finish_reason},
        )
        said = "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (1, :turn, :role, 'x')"
        connection.execute(text(said), [{"turn": turn, "role": role} for role in ("USER", "ASSISTANT")])
    connection.execute(
        text(
            "INSERT INTO provider_calls (session_id, turn, purpose, model, prompt_tokens, completion_tokens,"
            " cached_tokens, reasoning_tokens, source, outcome)"
            " VALUES (1, 2, 'chat', 'm', 1, 1, 0, 0, 'provider', 'completed')"
        )
    )
    connection.commit()
    steps(connection, "head")
    done = connection.execute(text("SELECT turn, role, meta ->> 'guard' FROM prompt_messages WHERE meta ? 'guard'"))
    assert [tuple(row) for row in done] == [(1, "ASSISTANT", "refuse")]


def test_three_processes_may_migrate_at_once(empty: URL, connection: Connection) -> None:
    url = empty.set(drivername="postgresql").render_as_string(hide_password=False)
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        begun = [
            stack.enter_context(running(Command("migrate", env={"TURNSTONE_DATABASE__URL": url}))) for _ in range(3)
        ]
        ends = list(pool.map(lambda process: (process.process.wait(60), process.output), begun))
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert differences(connection) == []
    assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == [wanted_version()]


def test_tables_of_a_later_program_are_left_alone(empty: URL, connection: Connection) -> None:
    migrate(empty)
    connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    connection.execute(text("UPDATE schema_reach SET oldest_program = '9998'"))
    connection.commit()
    with pytest.raises(StartupError, match="at version 9999") as raised:
        migrate(empty)
    assert "later program" in raised.value.remedy


def test_tables_of_a_later_program_that_still_serve_this_one_are_used_as_they_are(
    empty: URL, connection: Connection
) -> None:
    migrate(empty)
    connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    connection.commit()
    found = migrate(empty)
    assert (found.usable, found.up_to_date, found.known) == (True, False, False)
    assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"


def test_the_tables_of_the_contract_have_their_columns(rows: Rows) -> None:
    contract = {
        "prompt_sessions": "id exam_id participant_id spec_id started_at ended_at total_tokens",
        "prompt_messages": "id session_id turn role content token_count meta created_at",
        "prompt_evaluations": "id session_id turn evaluation_type details created_at",
    }
    for table, columns in contract.items():
        found = rows("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s", table)
        types = {row["column_name"]: row["data_type"] for row in found}
        assert types.keys() >= set(columns.split())
        assert {types[name] for name in ("meta", "details") if name in types} <= {"jsonb"}


def test_a_pair_has_one_active_session_and_any_number_of_ended_ones(rows: Rows) -> None:
    insert = "INSERT INTO prompt_sessions (exam_id, participant_id, ended_at) VALUES (1, 2, {})"
    rows(insert.format("now()"))
    rows(insert.format("now()"))
    rows(insert.format("NULL"))
    with pytest.raises(UniqueViolation):
        rows(insert.format("NULL"))
    with pytest.raises(UniqueViolation):
        rows("UPDATE prompt_sessions SET ended_at = NULL")


@pytest.mark.parametrize("ids", ["0, 1, 1", "1, -1, 1", "1, 1, 0"])
def test_ids_of_sessions_are_positive(rows: Rows, ids: str) -> None:
    with pytest.raises(CheckViolation):
        rows(f"INSERT INTO prompt_sessions (exam_id, participant_id, spec_id) VALUES ({ids})")


def test_a_turn_has_one_message_of_each_role(rows: Rows) -> None:
    rows("INSERT INTO prompt_sessions (id, exam_id, participant_id) VALUES (1, 1, 1)")
    insert = "INSERT INTO prompt_messages (session_id, turn, role, content) VALUES (1, {}, '{}', 'text')"
    for turn, role in [(1, "USER"), (1, "ASSISTANT"), (2, "USER")]:
        rows(insert.format(turn, role))
    with pytest.raises(UniqueViolation):
        rows(insert.format(1, "USER"))
    with pytest.raises(CheckViolation):
        rows(insert.format(3, "SYSTEM"))


def test_an_evaluation_of_a_turn_names_it_and_one_of_the_session_does_not(rows: Rows) -> None:
    rows("INSERT INTO prompt_sessions (id, exam_id, participant_id) VALUES (1, 1, 1)")
    insert = "INSERT INTO prompt_evaluations (session_id, turn, evaluation_type) VALUES (1, {}, '{}')"
    rows(insert.format(1, "TURN_EVAL"))
    rows(insert.format("NULL", "HOLISTIC_FLOW"))
    for turn, kind in [("NULL", "TURN_EVAL"), (1, "HOLISTIC_FLOW"), (1, "OTHER")]:
        with pytest.raises(CheckViolation):
            rows(insert.format(turn, kind))


def test_callbacks_are_numbered_once_and_named_once(rows: Rows) -> None:
    rows("INSERT INTO prompt_sessions (id, exam_id, participant_id) VALUES (1, 1, 1)")
    insert = (
        "INSERT INTO callbacks (event_id, session_id, callback_seq, type, status)"
        " VALUES ('{}', 1, {}, 'usage', 'pending')"
    )
    rows(insert.format("a", 1))
    for event_id, number in [("a", 2), ("b", 1)]:
        with pytest.raises(UniqueViolation):
            rows(insert.format(event_id, number))
