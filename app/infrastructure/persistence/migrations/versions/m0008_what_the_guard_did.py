"""Answers say what the guard did about their message.

Of the refusals that are there some were a provider's filter: where the model was asked.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        """
        UPDATE prompt_messages AS answer SET meta = answer.meta || '{"guard": "refuse"}'
        FROM prompt_turns AS turn
        WHERE turn.session_id = answer.session_id AND turn.turn = answer.turn AND answer.role = 'ASSISTANT'
          AND turn.finish_reason = 'refused' AND NOT EXISTS (
              SELECT FROM provider_calls AS call
              WHERE call.session_id = turn.session_id AND call.turn = turn.turn AND call.purpose = 'chat'
          )
        """
    )


def downgrade() -> None:
    op.execute("UPDATE prompt_messages SET meta = meta - 'guard' WHERE meta ? 'guard'")
