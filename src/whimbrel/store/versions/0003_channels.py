"""How a host is reached by another that is given a pass, and the key that passes of its own are for."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what hosts say of their channels; the next heartbeat of each fills it."""
    with op.batch_alter_table("hosts") as hosts:
        hosts.add_column(sa.Column("channel", sa.JSON()))
