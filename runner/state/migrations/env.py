"""Alembic's entry: run against the connection that `migrate.upgrade` opened."""

from alembic import context

from runner.state.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, compare_server_default=False)
with context.begin_transaction():
    context.run_migrations()
