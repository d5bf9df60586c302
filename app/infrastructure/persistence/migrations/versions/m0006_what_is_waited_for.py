"""What jobs wait for, and since when: patience counts from there, and not from when they were asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("evaluation_runs", sa.Column("wait", postgresql.JSONB(), nullable=True))
    op.add_column(
        "submission_evaluations",
        sa.Column("waits", postgresql.JSONB(), server_default="{}", nullable=False),
    )


def downgrade() -> None:
    op.drop_column("submission_evaluations", "waits")
    op.drop_column("evaluation_runs", "wait")
