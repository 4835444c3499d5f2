"""Which hosts can give guests a TPM."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what a host says of TPMs; one that is there says it with its next heartbeat."""
    with op.batch_alter_table("hosts") as hosts:
        hosts.add_column(sa.Column("tpm", sa.Boolean(), nullable=False, server_default=sa.false()))
