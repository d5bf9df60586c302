"""Problems, submissions, their evaluations with checkpoints, runs of test cases and scores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

_CAUSES = "'turn', 'rerun', 'appeal'"
_REASONS = "'samples_differ', 'attack_flagged', 'refused', 'near_grade_edge', 'unscored', 'appeal'"


def upgrade() -> None:
    op.create_table(
        "problem_versions",
        sa.Column("spec_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("content", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("content_hash", sa.String(length=64), nullable=False),
        sa.Column("verification", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("spec_id", "version", name=op.f("pk_problem_versions")),
    )
    op.create_table(
        "submissions",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("session_id", sa.BigInteger(), nullable=False),
        sa.Column("client_id", sa.String(length=128), nullable=False),
        sa.Column("client_id_is_int", sa.Boolean(), nullable=False),
        sa.Column("language", sa.String(length=32), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("code_hash", sa.String(length=64), nullable=False),
        sa.Column("last_turn", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "QUEUED",
                "RUNNING",
                "DONE",
                "FAILED",
                name="status",
                native_enum=False,
                create_constraint=True,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("progress", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"], ["prompt_sessions.id"], name=op.f("fk_submissions_session_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submissions")),
        sa.UniqueConstraint("client_id", name=op.f("uq_submissions_client_id")),
    )
    op.create_index(op.f("ix_submissions_session_id"), "submissions", ["session_id"], unique=False)
    op.create_table(
        "submission_evaluations",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("submission_id", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column(
            "status",
            sa.Enum("waiting", "held", "done", name="status", native_enum=False, create_constraint=True, length=24),
            nullable=False,
        ),
        sa.Column("cause", sa.String(length=16), server_default="submission", nullable=False),
        sa.Column("asked_by", sa.Text(), nullable=True),
        sa.Column("basis", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("result", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("published", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("due_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("owner", sa.BigInteger(), nullable=True),
        sa.Column("tries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("cause IN ('submission', 'rerun', 'appeal')", name=op.f("ck_submission_evaluations_cause")),
        sa.ForeignKeyConstraint(
            ["submission_id"],
            ["submissions.id"],
            name=op.f("fk_submission_evaluations_submission_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submission_evaluations")),
        sa.UniqueConstraint("submission_id", "revision", name=op.f("uq_submission_evaluations_submission_id_revision")),
    )
    op.create_index(
        "ix_submission_evaluations_waiting",
        "submission_evaluations",
        ["due_at"],
        unique=False,
        postgresql_where="status = 'waiting'",
    )
    op.create_table(
        "evaluation_steps",
        sa.Column("evaluation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("node", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("outcome", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("worker", sa.BigInteger(), nullable=False),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("ended_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('ok', 'missing', 'skipped')", name=op.f("ck_evaluation_steps_status")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["submission_evaluations.id"],
            name=op.f("fk_evaluation_steps_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("evaluation_id", "node", name=op.f("pk_evaluation_steps")),
    )
    op.create_table(
        "scores",
        sa.Column("evaluation_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("submission_id", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("prompt_score", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("correctness_score", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("performance_score", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("total_score", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("grade", sa.Text(), nullable=True),
        sa.Column("components", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False),
        sa.Column("policy_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("status IN ('SCORED', 'PENDING_REVIEW')", name=op.f("ck_scores_status")),
        sa.ForeignKeyConstraint(
            ["evaluation_id"], ["submission_evaluations.id"], name=op.f("fk_scores_evaluation_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["submission_id"], ["submissions.id"], name=op.f("fk_scores_submission_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("evaluation_id", name=op.f("pk_scores")),
    )
    op.create_index(op.f("ix_scores_submission_id"), "scores", ["submission_id"], unique=False)
    op.create_table(
        "submission_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("evaluation_id", sa.BigInteger(), nullable=False),
        sa.Column("program", sa.String(length=16), nullable=False),
        sa.Column("repetition", sa.Integer(), nullable=False),
        sa.Column("case_index", sa.Integer(), nullable=False),
        sa.Column("case_name", sa.Text(), nullable=False),
        sa.Column("case_group", sa.String(length=16), nullable=False),
        sa.Column("weight", sa.Numeric(asdecimal=False), nullable=False),
        sa.Column("verdict", sa.String(length=8), nullable=False),
        sa.Column("cause", sa.Text(), server_default="", nullable=False),
        sa.Column("cpu_ms", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("wall_ms", sa.Numeric(asdecimal=False), nullable=True),
        sa.Column("memory_kb", sa.BigInteger(), nullable=True),
        sa.Column("stdout_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stderr_bytes", sa.BigInteger(), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("signal", sa.Integer(), nullable=True),
        sa.Column("isolation", sa.Text(), server_default="", nullable=False),
        sa.CheckConstraint("program IN ('candidate', 'reference')", name=op.f("ck_submission_runs_program")),
        sa.CheckConstraint(
            "verdict IN ('AC', 'WA', 'TLE', 'MLE', 'RE', 'CE', 'OLE', 'SE')", name=op.f("ck_submission_runs_verdict")
        ),
        sa.ForeignKeyConstraint(
            ["evaluation_id"],
            ["submission_evaluations.id"],
            name=op.f("fk_submission_runs_evaluation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_submission_runs")),
        sa.UniqueConstraint(
            "evaluation_id",
            "program",
            "repetition",
            "case_index",
            name=op.f("uq_submission_runs_evaluation_id_program_repetition_case_index"),
        ),
    )
    op.add_column("criterion_scores", sa.Column("turn", sa.Integer(), nullable=True))
    op.add_column("evaluation_runs", sa.Column("evaluation_id", sa.BigInteger(), nullable=True))
    op.alter_column("evaluation_runs", "turn", existing_type=sa.INTEGER(), nullable=True)
    op.create_unique_constraint(
        op.f("uq_evaluation_runs_evaluation_id_cause"), "evaluation_runs", ["evaluation_id", "cause"]
    )
    op.create_foreign_key(
        op.f("fk_evaluation_runs_evaluation_id"),
        "evaluation_runs",
        "submission_evaluations",
        ["evaluation_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column("review_items", sa.Column("evaluation_id", sa.BigInteger(), nullable=True))
    op.alter_column("review_items", "turn", existing_type=sa.INTEGER(), nullable=True)
    op.create_unique_constraint(
        op.f("uq_review_items_evaluation_id_reason"), "review_items", ["evaluation_id", "reason"]
    )
    op.create_foreign_key(
        op.f("fk_review_items_evaluation_id"),
        "review_items",
        "submission_evaluations",
        ["evaluation_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.add_column("score_overrides", sa.Column("submission_id", sa.BigInteger(), nullable=True))
    op.add_column("score_overrides", sa.Column("component", sa.String(length=16), nullable=True))
    op.alter_column("score_overrides", "turn", existing_type=sa.INTEGER(), nullable=True)
    op.create_foreign_key(
        op.f("fk_score_overrides_submission_id"),
        "score_overrides",
        "submissions",
        ["submission_id"],
        ["id"],
        ondelete="CASCADE",
    )
    op.drop_constraint(op.f("ck_evaluation_runs_cause"), "evaluation_runs", type_="check")
    op.create_check_constraint(
        op.f("ck_evaluation_runs_cause"), "evaluation_runs", f"cause IN ({_CAUSES}, 'panel', 'review')"
    )
    op.create_check_constraint(
        op.f("ck_evaluation_runs_of_a_turn_or_a_submission"),
        "evaluation_runs",
        "(turn IS NULL) = (evaluation_id IS NOT NULL)",
    )
    op.drop_constraint(op.f("ck_review_items_reason"), "review_items", type_="check")
    op.create_check_constraint(
        op.f("ck_review_items_reason"),
        "review_items",
        f"reason IN ({_REASONS}, 'component_missing', 'held_for_review')",
    )
    op.create_check_constraint(
        op.f("ck_score_overrides_component_of_a_submission"),
        "score_overrides",
        "(submission_id IS NULL) = (component IS NULL)",
    )
    op.create_check_constraint(
        op.f("ck_score_overrides_of_a_turn_or_a_submission"),
        "score_overrides",
        "(turn IS NULL) = (submission_id IS NOT NULL)",
    )


def downgrade() -> None:
    # What only these tables can hold goes; the rest is as it was.
    op.execute("DELETE FROM score_overrides WHERE turn IS NULL")
    op.execute("DELETE FROM review_items WHERE turn IS NULL OR reason IN ('component_missing', 'held_for_review')")
    op.execute("DELETE FROM evaluation_runs WHERE turn IS NULL")
    op.drop_constraint(op.f("ck_score_overrides_of_a_turn_or_a_submission"), "score_overrides", type_="check")
    op.drop_constraint(op.f("ck_score_overrides_component_of_a_submission"), "score_overrides", type_="check")
    op.drop_constraint(op.f("ck_review_items_reason"), "review_items", type_="check")
    op.create_check_constraint(op.f("ck_review_items_reason"), "review_items", f"reason IN ({_REASONS})")
    op.drop_constraint(op.f("ck_evaluation_runs_of_a_turn_or_a_submission"), "evaluation_runs", type_="check")
    op.drop_constraint(op.f("ck_evaluation_runs_cause"), "evaluation_runs", type_="check")
    op.create_check_constraint(op.f("ck_evaluation_runs_cause"), "evaluation_runs", f"cause IN ({_CAUSES})")

    op.drop_constraint(op.f("fk_score_overrides_submission_id"), "score_overrides", type_="foreignkey")
    op.alter_column("score_overrides", "turn", existing_type=sa.INTEGER(), nullable=False)
    op.drop_column("score_overrides", "component")
    op.drop_column("score_overrides", "submission_id")
    op.drop_constraint(op.f("fk_review_items_evaluation_id"), "review_items", type_="foreignkey")
    op.drop_constraint(op.f("uq_review_items_evaluation_id_reason"), "review_items", type_="unique")
    op.alter_column("review_items", "turn", existing_type=sa.INTEGER(), nullable=False)
    op.drop_column("review_items", "evaluation_id")
    op.drop_constraint(op.f("fk_evaluation_runs_evaluation_id"), "evaluation_runs", type_="foreignkey")
    op.drop_constraint(op.f("uq_evaluation_runs_evaluation_id_cause"), "evaluation_runs", type_="unique")
    op.alter_column("evaluation_runs", "turn", existing_type=sa.INTEGER(), nullable=False)
    op.drop_column("evaluation_runs", "evaluation_id")
    op.drop_column("criterion_scores", "turn")
    op.drop_table("submission_runs")
    op.drop_index(op.f("ix_scores_submission_id"), table_name="scores")
    op.drop_table("scores")
    op.drop_table("evaluation_steps")
    op.drop_index(
        "ix_submission_evaluations_waiting", table_name="submission_evaluations", postgresql_where="status = 'waiting'"
    )
    op.drop_table("submission_evaluations")
    op.drop_index(op.f("ix_submissions_session_id"), table_name="submissions")
    op.drop_table("submissions")
    op.drop_table("problem_versions")
