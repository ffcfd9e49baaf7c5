"""The tables of the coordinator's database, and the steps that bring an older one up to them.

The same on SQLite and PostgreSQL. Migrations run in one transaction of whoever may write.
"""

from __future__ import annotations

import threading
from typing import Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from novamesh_proto.errors import Code, NovaMeshError

_MIGRATING: Final = threading.Lock()
"""Alembic keeps its context in a global: one at a time."""

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
WRITERS: Final = sa.Table(
    "writers",
    _META,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("epoch", sa.BigInteger),  # raised by whoever becomes the one that writes
)


def migrate(connection: sa.Connection) -> None:
    """Bring the tables up to date; the caller's transaction holds all of it.

    Raises:
        NovaMeshError: CORRUPT for a schema of a version that this one does not know.
    """
    config = _config()
    config.attributes["connection"] = connection
    try:
        with _MIGRATING:
            command.upgrade(config, "head")
    except CommandError as error:
        raise NovaMeshError(
            Code.CORRUPT,
            f"the database has a schema that this version does not know: {error}",
            "run the version of novamesh that wrote it, or a newer one",
        ) from error


def require_schema(connection: sa.Connection) -> None:
    """Whoever only looks does not migrate either.

    Raises:
        NovaMeshError: CONFLICT for another schema than this version's.
    """
    found = MigrationContext.configure(connection).get_current_revision()
    if found != ScriptDirectory.from_config(_config()).get_current_head():
        raise NovaMeshError(
            Code.CONFLICT,
            f"the database has the schema {found}, which is not the one of this version",
            "start the coordinator once, and it is brought up to date; or run the version of "
            "novamesh that wrote it",
        )


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "novamesh_coordinator:migrations")
    return config
