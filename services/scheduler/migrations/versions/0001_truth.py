"""Jobs, deployments, the outbox and the leader's epoch."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("shape", sa.String, nullable=False),
        sa.Column("queued_at", sa.Float, nullable=False),
        sa.Column("not_before", sa.Float),
        sa.Column("finished_at", sa.Float),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("desired_version", sa.Integer, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_index("jobs_in_line", "jobs", ["status", "tenant", "priority", "shape", "queued_at"])
    op.create_index("jobs_due", "jobs", ["status", "not_before"])
    op.create_index("jobs_finished", "jobs", ["finished_at"])
    op.create_table(
        "deployments",
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
    )
    op.create_table(
        "handled_commands",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "early_cancels",
        sa.Column("job_id", sa.String, primary_key=True),
        sa.Column("at", sa.Float, nullable=False, index=True),
    )
    op.create_table(
        "outbox_states",
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.PrimaryKeyConstraint("topic", "key"),
    )
    op.create_index("outbox_states_since", "outbox_states", ["since"])
    op.create_table(
        "outbox_messages",
        sa.Column("seq", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("raw", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    leader = op.create_table(
        "leader",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("writes", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(leader, [{"id": 1, "epoch": 0, "writes": 0}])
