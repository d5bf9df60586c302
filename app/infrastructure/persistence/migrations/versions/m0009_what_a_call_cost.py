"""What a call to a judge cost, at the price of the time; of older calls it is not known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("judge_calls", sa.Column("cost", sa.Float(), nullable=True))
    op.add_column("judge_calls", sa.Column("currency", sa.String(length=8), nullable=True))


def downgrade() -> None:
    op.drop_column("judge_calls", "currency")
    op.drop_column("judge_calls", "cost")
