"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "exams",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("problem_text", sa.Text(), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_exams")),
    )
    op.create_table(
        "prompt_sessions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("exam_id", sa.BigInteger(), nullable=False),
        sa.Column("participant_id", sa.BigInteger(), nullable=False),
        sa.Column("spec_id", sa.BigInteger(), nullable=True),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("total_tokens", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("last_turn", sa.Integer(), server_default="0", nullable=False),
        sa.Column("callback_seq", sa.Integer(), server_default="0", nullable=False),
        sa.CheckConstraint(
            "exam_id > 0 AND participant_id > 0 AND spec_id > 0", name=op.f("ck_prompt_sessions_ids_positive")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt_sessions")),
    )
    op.create_index(
        "ix_prompt_sessions_exam_id_participant_id", "prompt_sessions", ["exam_id", "participant_id"], unique=False
    )
    op.create_index(
        "uq_prompt_sessions_active",
        "prompt_sessions",
        ["exam_id", "participant_id"],
        unique=True,
        postgresql_where="ended_at IS NULL",
    )
    op.create_table(
        "workers",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("beats", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("fenced_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "callback_lanes",
        sa.Column("session_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("claimed_by", sa.BigInteger(), nullable=True),
        sa.Column("wakes", sa.Integer(), server_default="1", nullable=False),
        sa.Column("failing", sa.Boolean(), server_default="false", nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_callback_lanes_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_callback_lanes")),
    )
    op.create_index("ix_callback_lanes_failing_due_at", "callback_lanes", ["failing", "due_at"], unique=False)
    op.create_table(
        "callbacks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("event_id", sa.String(length=64), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("callback_seq", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "held",
                "pending",
                "delivered",
                "failed",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("occurred_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("delivered_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "recorded_in",
            sa.BigInteger(),
            server_default=sa.text("((pg_current_xact_id())::text)::bigint"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_callbacks_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callbacks")),
        sa.UniqueConstraint("event_id", name=op.f("uq_callbacks_event_id")),
        sa.UniqueConstraint("session_id", "callback_seq", name=op.f("uq_callbacks_session_id_callback_seq")),
    )
    op.create_index(
        "ix_callbacks_not_delivered",
        "callbacks",
        ["status", "id"],
        unique=False,
        postgresql_where="status <> 'delivered'",
    )
    op.create_index(
        "ix_callbacks_pending",
        "callbacks",
        ["session_id", "callback_seq"],
        unique=False,
        postgresql_where="status = 'pending'",
    )
    op.create_index("ix_callbacks_recorded_in_id", "callbacks", ["recorded_in", "id"], unique=False)
    op.create_table(
        "prompt_evaluations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=True),
        sa.Column(
            "evaluation_type",
            sa.Enum(
                "TURN_EVAL",
                "HOLISTIC_FLOW",
                name="evaluation_type",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(evaluation_type = 'TURN_EVAL') = (turn IS NOT NULL)",
            name=op.f("ck_prompt_evaluations_turn_where_one_is_judged"),
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_prompt_evaluations_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt_evaluations")),
    )
    op.create_index(op.f("ix_prompt_evaluations_session_id"), "prompt_evaluations", ["session_id"], unique=False)
    op.create_table(
        "prompt_messages",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column(
            "role",
            sa.Enum("USER", "ASSISTANT", name="role", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("token_count", sa.Integer(), nullable=True),
        sa.Column("meta", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_prompt_messages_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt_messages")),
        sa.UniqueConstraint("session_id", "turn", "role", name=op.f("uq_prompt_messages_session_id_turn_role")),
    )
    op.create_table(
        "prompt_turns",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("client_turn_id", sa.String(length=128), nullable=False),
        sa.Column("turn_id_is_int", sa.Boolean(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "running",
                "completed",
                "cancelled",
                "failed",
                "interrupted",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("owner", sa.BigInteger(), nullable=False),
        sa.Column("cancel_requested_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column(
            "finish_reason",
            sa.Enum(
                "stop",
                "length",
                "refused",
                "exam_closed",
                "budget_exhausted",
                name="finish_reason",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=True,
        ),
        sa.Column("error_code", sa.String(length=32), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("error_retryable", sa.Boolean(), nullable=True),
        sa.Column("delta_lengths", sa.LargeBinary(), server_default="", nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("usage_source", sa.String(length=16), server_default="counted", nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("first_token_ms", sa.Integer(), nullable=True),
        sa.Column("duration_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_prompt_turns_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_prompt_turns")),
        sa.UniqueConstraint("session_id", "client_turn_id", name=op.f("uq_prompt_turns_session_id_client_turn_id")),
        sa.UniqueConstraint("session_id", "turn", name=op.f("uq_prompt_turns_session_id_turn")),
    )
    op.create_index(
        "ix_prompt_turns_running_owner", "prompt_turns", ["owner"], unique=False, postgresql_where="status = 'running'"
    )
    op.create_index(
        "uq_prompt_turns_running", "prompt_turns", ["session_id"], unique=True, postgresql_where="status = 'running'"
    )
    op.create_table(
        "provider_calls",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=True),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.Integer(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("cached_tokens", sa.Integer(), nullable=False),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("tokenizer", sa.Text(), nullable=True),
        sa.Column("approximate", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("outcome", sa.String(length=32), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_provider_calls_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provider_calls")),
    )
    op.create_index(op.f("ix_provider_calls_session_id"), "provider_calls", ["session_id"], unique=False)
    op.create_table(
        "turn_chunks",
        sa.Column("turn_pk", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("first_seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("delta_lengths", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["turn_pk"], ["prompt_turns.id"], name=op.f("fk_turn_chunks_turn_pk"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("turn_pk", "first_seq", name=op.f("pk_turn_chunks")),
    )


def downgrade() -> None:
    op.drop_table("turn_chunks")
    op.drop_index(op.f("ix_provider_calls_session_id"), table_name="provider_calls")
    op.drop_table("provider_calls")
    op.drop_index("uq_prompt_turns_running", table_name="prompt_turns", postgresql_where="status = 'running'")
    op.drop_index("ix_prompt_turns_running_owner", table_name="prompt_turns", postgresql_where="status = 'running'")
    op.drop_table("prompt_turns")
    op.drop_table("prompt_messages")
    op.drop_index(op.f("ix_prompt_evaluations_session_id"), table_name="prompt_evaluations")
    op.drop_table("prompt_evaluations")
    op.drop_index("ix_callbacks_recorded_in_id", table_name="callbacks")
    op.drop_index("ix_callbacks_pending", table_name="callbacks", postgresql_where="status = 'pending'")
    op.drop_index("ix_callbacks_not_delivered", table_name="callbacks", postgresql_where="status <> 'delivered'")
    op.drop_table("callbacks")
    op.drop_index("ix_callback_lanes_failing_due_at", table_name="callback_lanes")
    op.drop_table("callback_lanes")
    op.drop_table("workers")
    op.drop_index("uq_prompt_sessions_active", table_name="prompt_sessions", postgresql_where="ended_at IS NULL")
    op.drop_index("ix_prompt_sessions_exam_id_participant_id", table_name="prompt_sessions")
    op.drop_table("prompt_sessions")
    op.drop_table("exams")
