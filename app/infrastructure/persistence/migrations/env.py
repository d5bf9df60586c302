"""Alembic's environment: runs on the connection it is handed, in one transaction."""

from alembic import context

from app.infrastructure.persistence.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
