"""Exams have versions of settings, judgements have runs, calls, scores, reviews; the feed keeps sessions in order."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "evaluation_documents",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('rubric', 'prompt', 'policy')", name=op.f("ck_evaluation_documents_kind")),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_evaluation_documents")),
    )
    op.create_table(
        "exam_versions",
        sa.Column("exam_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("problem_text", sa.Text(), nullable=False),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("exam_id", "version", name=op.f("pk_exam_versions")),
    )
    op.create_table(
        "evaluation_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("waiting", "done", name="status", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("cause", sa.String(length=16), server_default="turn", nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=True),
        sa.Column("rubric_hash", sa.String(length=64), nullable=True),
        sa.Column("prompt_hash", sa.String(length=64), nullable=True),
        sa.Column("policy_hash", sa.String(length=64), nullable=True),
        sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("published", sa.Boolean(), server_default="true", nullable=False),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("owner", sa.BigInteger(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("cause IN ('turn', 'rerun', 'appeal')", name=op.f("ck_evaluation_runs_cause")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_evaluation_runs_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_evaluation_runs")),
        sa.UniqueConstraint("session_id", "turn", "revision", name=op.f("uq_evaluation_runs_session_id_turn_revision")),
    )
    op.create_index(
        "ix_evaluation_runs_waiting", "evaluation_runs", ["due_at"], unique=False, postgresql_where="status = 'waiting'"
    )
    op.create_table(
        "score_overrides",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("score", sa.Numeric(asdecimal=False), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("score BETWEEN 0 AND 100", name=op.f("ck_score_overrides_score")),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_score_overrides_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_score_overrides")),
    )
    op.create_index("ix_score_overrides_session_id_turn", "score_overrides", ["session_id", "turn"], unique=False)
    op.create_table(
        "criterion_scores",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("criterion", sa.String(length=16), nullable=False),
        sa.Column("score", sa.Integer(), nullable=False),
        sa.Column("quote", sa.Text(), nullable=False),
        sa.Column("quote_start", sa.Integer(), nullable=False),
        sa.Column("quote_end", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("score BETWEEN 1 AND 5", name=op.f("ck_criterion_scores_score")),
        sa.ForeignKeyConstraint(
            ["run_id"], ["evaluation_runs.id"], name=op.f("fk_criterion_scores_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_criterion_scores")),
        sa.UniqueConstraint("run_id", "sample", "criterion", name=op.f("uq_criterion_scores_run_id_sample_criterion")),
    )
    op.create_table(
        "judge_calls",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("input_hash", sa.String(length=64), nullable=False),
        sa.Column("cached", sa.Boolean(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("parameters", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("raw_answer", sa.Text(), nullable=False),
        sa.Column("parsed", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("prompt_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("completion_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("cached_tokens", sa.Integer(), server_default="0", nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["evaluation_runs.id"], name=op.f("fk_judge_calls_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_judge_calls")),
        sa.UniqueConstraint("run_id", "sample", "attempt", name=op.f("uq_judge_calls_run_id_sample_attempt")),
    )
    op.create_index(
        "ix_judge_calls_answered", "judge_calls", ["input_hash"], unique=False, postgresql_where="parsed IS NOT NULL"
    )
    op.create_index(op.f("ix_judge_calls_run_id"), "judge_calls", ["run_id"], unique=False)
    op.create_table(
        "review_items",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.BigInteger(), nullable=True),
        sa.Column(
            "reason",
            sa.Enum(
                "samples_differ",
                "attack_flagged",
                "refused",
                "near_grade_edge",
                "unscored",
                "appeal",
                name="reason",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("details", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=True),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("resolved_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("resolved_by", sa.Text(), nullable=True),
        sa.Column("resolution", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(resolved_at IS NULL) = (resolved_by IS NULL)", name=op.f("ck_review_items_resolved_by_somebody")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["evaluation_runs.id"], name=op.f("fk_review_items_run_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_review_items_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_review_items")),
        sa.UniqueConstraint(
            "session_id", "turn", "run_id", "reason", name=op.f("uq_review_items_session_id_turn_run_id_reason")
        ),
    )
    op.create_index(
        "ix_review_items_open", "review_items", ["id"], unique=False, postgresql_where="resolved_at IS NULL"
    )
    op.add_column("prompt_sessions", sa.Column("feed_place", sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("exams", sa.Column("version", sa.Integer(), server_default="1", nullable=False))
    op.add_column(
        "exams", sa.Column("settings", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False)
    )
    op.add_column("prompt_evaluations", sa.Column("run_id", sa.BigInteger(), nullable=True))
    op.create_unique_constraint(op.f("uq_prompt_evaluations_run_id"), "prompt_evaluations", ["run_id"])
    op.create_foreign_key(
        op.f("fk_prompt_evaluations_run_id"),
        "prompt_evaluations",
        "evaluation_runs",
        ["run_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column("prompt_turns", sa.Column("exam_version", sa.Integer(), nullable=True))
    op.add_column("prompt_turns", sa.Column("labels", sa.ARRAY(sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("prompt_turns", "labels")
    op.drop_column("prompt_turns", "exam_version")
    op.drop_constraint(op.f("fk_prompt_evaluations_run_id"), "prompt_evaluations", type_="foreignkey")
    op.drop_constraint(op.f("uq_prompt_evaluations_run_id"), "prompt_evaluations", type_="unique")
    op.drop_column("prompt_evaluations", "run_id")
    op.drop_column("prompt_sessions", "feed_place")
    op.drop_column("exams", "settings")
    op.drop_column("exams", "version")
    op.drop_index("ix_review_items_open", table_name="review_items", postgresql_where="resolved_at IS NULL")
    op.drop_table("review_items")
    op.drop_index(op.f("ix_judge_calls_run_id"), table_name="judge_calls")
    op.drop_index("ix_judge_calls_answered", table_name="judge_calls", postgresql_where="parsed IS NOT NULL")
    op.drop_table("judge_calls")
    op.drop_table("criterion_scores")
    op.drop_index("ix_score_overrides_session_id_turn", table_name="score_overrides")
    op.drop_table("score_overrides")
    op.drop_index("ix_evaluation_runs_waiting", table_name="evaluation_runs", postgresql_where="status = 'waiting'")
    op.drop_table("evaluation_runs")
    op.drop_table("exam_versions")
    op.drop_table("evaluation_documents")
