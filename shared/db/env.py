"""The Alembic environment that every service's migrations share."""

from alembic import context


def run() -> None:
    """Run the migrations on the connection that `shared.db.migrate` opened."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, render_as_batch=True)
    context.run_migrations()
