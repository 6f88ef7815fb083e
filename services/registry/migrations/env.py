"""Alembic's entry: the environment all services share."""

from shared.db.env import run

run()
