"""Which hosts have UEFI firmware."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what a host says of its firmware; one that is there says it with its next heartbeat."""
    with op.batch_alter_table("hosts") as hosts:
        hosts.add_column(sa.Column("uefi", sa.Boolean(), nullable=False, server_default=sa.false()))
