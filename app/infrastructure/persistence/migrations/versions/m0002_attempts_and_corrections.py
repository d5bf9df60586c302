"""Every try of a callback is kept, the ledger takes corrections, and the tables say which programs they serve."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    reach = op.create_table(
        "schema_reach",
        sa.Column("oldest_program", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("oldest_program", name=op.f("pk_schema_reach")),
    )
    op.bulk_insert(reach, [{"oldest_program": "0001"}])
    op.create_table(
        "callback_attempts",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("callback_id", sa.BigInteger(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tried_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("body_start", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["callback_id"], ["callbacks.id"], name=op.f("fk_callback_attempts_callback_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_callback_attempts")),
    )
    op.create_index(op.f("ix_callback_attempts_callback_id"), "callback_attempts", ["callback_id"], unique=False)
    op.add_column("provider_calls", sa.Column("provider_ref", sa.Text(), nullable=True))
    op.add_column("provider_calls", sa.Column("adjusts", sa.BigInteger(), nullable=True))
    op.add_column("provider_calls", sa.Column("reason", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("fk_provider_calls_adjusts"), "provider_calls", "provider_calls", ["adjusts"], ["id"], ondelete="CASCADE"
    )
    op.create_check_constraint(
        op.f("ck_provider_calls_corrections_have_reasons"), "provider_calls", "(adjusts IS NULL) = (reason IS NULL)"
    )
    op.create_index("ix_provider_calls_adjusts", "provider_calls", ["adjusts"], postgresql_where="adjusts IS NOT NULL")
    op.create_index("ix_provider_calls_created_at", "provider_calls", ["created_at"])


def downgrade() -> None:
    op.drop_index("ix_provider_calls_created_at", table_name="provider_calls")
    op.drop_index("ix_provider_calls_adjusts", table_name="provider_calls")
    op.drop_constraint(op.f("ck_provider_calls_corrections_have_reasons"), "provider_calls")
    op.drop_constraint(op.f("fk_provider_calls_adjusts"), "provider_calls")
    for column in ("reason", "adjusts", "provider_ref"):
        op.drop_column("provider_calls", column)
    op.drop_table("callback_attempts")
    op.drop_table("schema_reach")
