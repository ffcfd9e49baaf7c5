"""Snapshots are kept in parts; those of one piece are dropped, the log still gives their state."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table of parts."""
    op.create_table(
        "snapshot_parts",
        sa.Column("digest", sa.LargeBinary, primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.execute(sa.delete(sa.table("snapshots")))


def downgrade() -> None:
    """A newer log is not read by an older version."""
    raise NotImplementedError("an older version cannot read snapshots in parts")
