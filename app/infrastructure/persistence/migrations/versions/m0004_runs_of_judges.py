"""Runs of judges: batches, answers that can be found again, and revisions that overrides share with runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("evaluation_runs", sa.Column("batch", sa.String(length=32), nullable=True))
    op.create_index("ix_evaluation_runs_batch", "evaluation_runs", ["batch"], postgresql_where="batch IS NOT NULL")
    op.drop_index("ix_evaluation_runs_waiting", table_name="evaluation_runs", postgresql_where="status = 'waiting'")
    op.create_index(
        "ix_evaluation_runs_waiting", "evaluation_runs", ["cause", "due_at"], postgresql_where="status = 'waiting'"
    )
    op.add_column("judge_calls", sa.Column("source", sa.String(length=16), server_default="provider", nullable=False))
    op.drop_index("ix_judge_calls_answered", table_name="judge_calls", postgresql_where="parsed IS NOT NULL")
    op.create_index("ix_judge_calls_answered", "judge_calls", ["input_hash"], postgresql_where="raw_answer <> ''")
    op.add_column("score_overrides", sa.Column("revision", sa.Integer(), server_default="1", nullable=False))


def downgrade() -> None:
    op.drop_column("score_overrides", "revision")
    op.drop_index("ix_judge_calls_answered", table_name="judge_calls", postgresql_where="raw_answer <> ''")
    op.create_index("ix_judge_calls_answered", "judge_calls", ["input_hash"], postgresql_where="parsed IS NOT NULL")
    op.drop_column("judge_calls", "source")
    op.drop_index("ix_evaluation_runs_waiting", table_name="evaluation_runs", postgresql_where="status = 'waiting'")
    op.create_index("ix_evaluation_runs_waiting", "evaluation_runs", ["due_at"], postgresql_where="status = 'waiting'")
    op.drop_index("ix_evaluation_runs_batch", table_name="evaluation_runs", postgresql_where="batch IS NOT NULL")
    op.drop_column("evaluation_runs", "batch")
