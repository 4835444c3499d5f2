"""How fast a migration may copy, and whether it is to be hurried on."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what administrators say of migrations while they run; nothing was said of those that are there."""
    with op.batch_alter_table("migrations") as migrations:
        migrations.add_column(sa.Column("steering", sa.JSON()))
