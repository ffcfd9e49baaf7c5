"""The tables of the coordinator's database, as the newest migration leaves them."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

_META: Final = sa.MetaData()
EVENTS: Final = sa.Table(
    "events",
    _META,
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("kind", sa.Text),
    sa.Column("job", sa.LargeBinary),
    sa.Column("body", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary),
)
SNAPSHOTS: Final = sa.Table(
    "snapshots",
    _META,
    sa.Column("seq", sa.BigInteger, primary_key=True),
    sa.Column("log_digest", sa.LargeBinary),
    sa.Column("body", sa.LargeBinary),  # the digests of its parts, end to end
    sa.Column("digest", sa.LargeBinary),
)
PARTS: Final = sa.Table(
    "snapshot_parts",
    _META,
    sa.Column("digest", sa.LargeBinary, primary_key=True),
    sa.Column("body", sa.LargeBinary),
)
BODIES: Final = sa.Table(
    "bodies",
    _META,
    sa.Column("job", sa.LargeBinary, primary_key=True),
    sa.Column("body", sa.LargeBinary),
    sa.Column("digest", sa.LargeBinary),
)
PROBES: Final = sa.Table(
    "probes",
    _META,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("at_ms", sa.BigInteger),
)
