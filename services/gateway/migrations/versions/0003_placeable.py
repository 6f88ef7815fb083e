"""Which queued jobs no known node could take, so that they are not counted as those in front."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("placeable", sa.Boolean(), nullable=False, server_default=sa.true()))
