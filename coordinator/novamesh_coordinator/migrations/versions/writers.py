"""Which of several coordinators on one database may write: a number that each one raises."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the table and its one row."""
    writers = op.create_table(
        "writers",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(writers, [{"id": 1, "epoch": 0}])


def downgrade() -> None:
    """An older version would not look whether it may write."""
    raise NotImplementedError("an older version does not know of epochs")
