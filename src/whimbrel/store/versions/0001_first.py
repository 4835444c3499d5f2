"""The first schema.

The tables are frozen here by creating them from the release's metadata; every later change is a version of its own.
"""

from alembic import op

from whimbrel.store.tables import metadata

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    metadata.create_all(op.get_bind())


def downgrade() -> None:
    """Drop every table."""
    metadata.drop_all(op.get_bind())
