"""Proofs that a host cannot run guests, and leases."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what is proved of a host, and how often its lease was renewed."""
    with op.batch_alter_table("hosts") as hosts:
        hosts.add_column(sa.Column("fenced_boot", sa.String(length=64)))
        hosts.add_column(sa.Column("fenced_at", sa.Float()))
        hosts.add_column(sa.Column("fenced_by", sa.String(length=16)))
        hosts.add_column(sa.Column("fence_reason", sa.Text()))
        hosts.add_column(sa.Column("lease_number", sa.Integer(), nullable=False, server_default="0"))
        hosts.add_column(sa.Column("lease_seconds", sa.Float(), nullable=False, server_default="0"))
        hosts.add_column(sa.Column("lease_kept", sa.Boolean(), nullable=False, server_default=sa.false()))
        hosts.add_column(sa.Column("composed", sa.Float(), nullable=False, server_default="0"))
