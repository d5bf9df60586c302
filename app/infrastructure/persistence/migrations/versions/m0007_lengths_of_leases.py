"""After which silence a process is taken for dead: its own length, whatever those are set to that watch it.

What an older program writes has the longest length that can be set.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("workers", sa.Column("lease_s", sa.Float(), server_default="15", nullable=False))


def downgrade() -> None:
    op.drop_column("workers", "lease_s")
