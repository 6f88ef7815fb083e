"""Which submissions came as retries, so that a first try that was overtaken joins its own."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("submissions", sa.Column("retried", sa.Boolean(), nullable=False, server_default=sa.false()))
